"""YAML in which every value knows its line: so that an error can say where, and a hostile file costs nothing.

Only plain data comes out: mappings with text keys, lists, text, numbers, booleans, null. Tags that would build objects are
refused, and so are duplicate keys, files over 1 MiB, and documents too deep or too large once their aliases are followed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.exceptions import InvalidDefinition

SIZE_LIMIT = 1024 * 1024
"""Bytes of a file that is read."""

_NODE_LIMIT = 20_000  # a deployment takes about 30
_DEPTH_LIMIT = 60

_STR = "tag:yaml.org,2002:str"
_MERGE = "tag:yaml.org,2002:merge"
_CONSTRUCTORS = {
    "tag:yaml.org,2002:null": "construct_yaml_null",
    "tag:yaml.org,2002:bool": "construct_yaml_bool",
    "tag:yaml.org,2002:int": "construct_yaml_int",
    "tag:yaml.org,2002:float": "construct_yaml_float",
}


@dataclass(frozen=True, slots=True)
class Place:
    """A point in a file; lines and columns count from 1, as in editors."""

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


@dataclass(slots=True)
class Value:
    """A YAML value and where it stands.

    ``value`` is a scalar, a list of Values or a dict of them; ``text`` the scalar as it was written (``1.10``, which YAML
    takes for 1.1); ``keys`` the places of a mapping's keys.
    """

    value: Any
    place: Place
    text: str | None = None
    keys: dict[str, Place] = field(default_factory=dict)

    @property
    def is_null(self) -> bool:
        """Nothing was given."""
        return self.value is None

    def error(self, message: str, hint: str | None = None) -> InvalidDefinition:
        """An exception that says where this value stands."""
        return InvalidDefinition(f"{self.place}: {message}", hint=hint)

    def plain(self) -> Any:
        """The value without places."""
        if isinstance(self.value, dict):
            return {key: value.plain() for key, value in self.value.items()}
        if isinstance(self.value, list):
            return [value.plain() for value in self.value]
        return self.value

    def map_text(self, change: Callable[[str], Any]) -> Value:
        """The same tree with every text in it (keys apart) replaced by what ``change`` makes of it."""
        if isinstance(self.value, dict):
            return Value({key: value.map_text(change) for key, value in self.value.items()}, self.place, None, self.keys)
        if isinstance(self.value, list):
            return Value([value.map_text(change) for value in self.value], self.place)
        if not isinstance(self.value, str):
            return self
        try:
            changed = change(self.value)
        except InvalidDefinition as error:
            raise self.error(str(error), error.hint) from error
        return self if changed is self.value else located(changed, self.place)


def located(plain: Any, place: Place) -> Value:
    """Plain data as Values that all stand at one place."""
    if isinstance(plain, dict):
        return Value(
            {str(key): located(value, place) for key, value in plain.items()},
            place,
            None,
            dict.fromkeys(map(str, plain), place),
        )
    if isinstance(plain, list | tuple):
        return Value([located(value, place) for value in plain], place)
    return Value(plain, place, plain if isinstance(plain, str) else str(plain))


def read(path: Path) -> Value:
    """The YAML document in a file. Raises InvalidDefinition, with line and column where the text is wrong."""
    try:
        if not path.is_file():
            raise InvalidDefinition(f"{path} is not a file.", hint="Create one with: orch init")
        with path.open("rb") as file:
            data = file.read(SIZE_LIMIT + 1)
    except (OSError, ValueError) as error:
        raise InvalidDefinition(f"{path} cannot be read: {error}.") from None
    if len(data) > SIZE_LIMIT:
        raise InvalidDefinition(
            f"{path.name} is larger than {SIZE_LIMIT // 1024} KiB.", hint="Split its deployments over several files."
        )
    return parse(data, path.name)


def parse(data: bytes, file: str) -> Value:
    """One YAML document. ``file`` is the name that errors show."""
    import yaml

    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = error.start - data.rfind(b"\n", 0, error.start)
        raise InvalidDefinition(f"{file}:{line}:{column}: this is not UTF-8.", hint="Save the file as UTF-8.") from None
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        _prescan(yaml.parse(text, Loader=loader), file)
        node = yaml.compose(text, Loader=loader)
    except yaml.YAMLError as error:
        raise _not_yaml(error, text, file) from None
    if node is None:
        return Value(None, Place(file, 1, 1))
    _Weighing(file).weigh(node)
    return _Building(file).build(node)


def _prescan(events: Iterator[Any], file: str) -> None:
    """Refuse what is too deep or too long before anything is built of it: the builders recurse."""
    import yaml

    depth = nodes = 0
    for event in events:
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if isinstance(event, yaml.NodeEvent):
            nodes += 1
        if depth > _DEPTH_LIMIT or nodes > _NODE_LIMIT:
            raise _too_large(event, file)


def _too_large(item: Any, file: str) -> InvalidDefinition:
    return InvalidDefinition(
        f"{_place(item, file)}: the document is too deep or too large.",
        hint=f"At most {_NODE_LIMIT:,} values, {_DEPTH_LIMIT} levels deep, are read, aliases followed.",
    )


def _not_yaml(error: Any, text: str, file: str) -> InvalidDefinition:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    if mark is not None:
        place, problem = Place(file, mark.line + 1, mark.column + 1), _problem(error)
    else:
        before = text[: getattr(error, "position", 0)]
        place = Place(file, before.count("\n") + 1, len(before) - before.rfind("\n"))
        problem = getattr(error, "reason", str(error))
    line = (text.split("\n") + [""] * place.line)[place.line - 1]
    tabbed = "\t" in line[: len(line) - len(line.lstrip())]
    hint = "YAML is indented with spaces, not tabs." if tabbed else "Check the indentation, quotes and colons around this line."
    return InvalidDefinition(f"{place}: this is not YAML: {problem}.", hint=hint)


def _problem(error: Any) -> str:
    context, problem = getattr(error, "context", None) or "", getattr(error, "problem", None) or ""
    return f"{context} {problem}".strip() if not problem or problem.startswith("but") else str(problem)


def _place(item: Any, file: str) -> Place:
    return Place(file, item.start_mark.line + 1, item.start_mark.column + 1)


class _Weighing:
    """How large and deep a document is, aliases followed. Anchors stand before their aliases, so this never goes deep."""

    def __init__(self, file: str) -> None:
        self._file = file
        self._known: dict[int, tuple[int, int]] = {}
        self._open: set[int] = set()

    def weigh(self, node: Any) -> tuple[int, int]:
        """Count of values, levels."""
        if id(node) in self._known:
            return self._known[id(node)]
        if id(node) in self._open:
            raise InvalidDefinition(
                f"{_place(node, self._file)}: this value contains itself.", hint="Remove the alias inside it."
            )
        children = []
        if not isinstance(node.value, str):
            self._open.add(id(node))
            for child in node.value:
                children += [self.weigh(part) for part in child] if isinstance(child, tuple) else [self.weigh(child)]
            self._open.remove(id(node))
        size = 1 + sum(count for count, _ in children)
        depth = 1 + max((levels for _, levels in children), default=0)
        if size > _NODE_LIMIT or depth > _DEPTH_LIMIT:
            raise _too_large(node, self._file)
        self._known[id(node)] = size, depth
        return size, depth


class _Building:
    """Values from YAML's nodes."""

    def __init__(self, file: str) -> None:
        from yaml.constructor import SafeConstructor

        self._file = file
        self._constructor = SafeConstructor()

    def build(self, node: Any) -> Value:
        import yaml

        if isinstance(node, yaml.MappingNode):
            self._check_tag(node, "tag:yaml.org,2002:map")
            return self._mapping(node)
        if isinstance(node, yaml.SequenceNode):
            self._check_tag(node, "tag:yaml.org,2002:seq")
            return Value([self.build(child) for child in node.value], _place(node, self._file))
        return self._scalar(node)

    def _scalar(self, node: Any) -> Value:
        place = _place(node, self._file)
        if node.tag in _CONSTRUCTORS:
            try:
                value = getattr(self._constructor, _CONSTRUCTORS[node.tag])(node)
            except (ValueError, KeyError, ArithmeticError):
                raise InvalidDefinition(f"{place}: {node.value[:40]!r} is not a {node.tag.rpartition(':')[2]}.") from None
            return Value(value, place, node.value)
        if node.tag not in (_STR, _MERGE, "tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:value"):
            self._check_tag(node, _STR)
        return Value(node.value, place, node.value)

    def _mapping(self, node: Any) -> Value:
        own: dict[str, Value] = {}
        keys: dict[str, Place] = {}
        merged: list[Value] = []
        for key_node, value_node in node.value:
            key, place = self._key(key_node), _place(key_node, self._file)
            if key_node.tag == _MERGE:
                merged += self._merged(value_node)
                continue
            if key in keys:
                raise InvalidDefinition(
                    f"{place}: the key {key!r} stands here for the second time; the first is on line {keys[key].line}.",
                    hint="Remove one of them.",
                )
            keys[key] = place
            own[key] = self.build(value_node)
        for mapping in merged:
            for key, value in mapping.value.items():
                if key not in own:
                    own[key], keys[key] = value, mapping.keys[key]
        return Value(own, _place(node, self._file), None, keys)

    def _merged(self, node: Any) -> list[Value]:
        value = self.build(node)
        mappings = value.value if isinstance(value.value, list) else [value]
        for mapping in mappings:
            if not isinstance(mapping.value, dict):
                raise mapping.error(
                    "'<<' takes a mapping, or a list of mappings.", "Point it at an anchored mapping: <<: *name"
                )
        return list(mappings)

    def _key(self, node: Any) -> str:
        if not isinstance(node.value, str):
            raise InvalidDefinition(f"{_place(node, self._file)}: a key is text, not a list or mapping.")
        if node.tag != _MERGE:
            self._scalar(node)
        return node.value

    def _check_tag(self, node: Any, allowed: str) -> None:
        if node.tag != allowed:
            raise InvalidDefinition(
                f"{_place(node, self._file)}: the tag {node.tag[:60]} is not allowed.", hint="Only plain YAML values are read."
            )
