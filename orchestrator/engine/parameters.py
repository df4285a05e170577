"""Arguments of flows and tasks: binding them to names, validating and coercing them, and saying as JSON schema what is wanted.

Binding is Python's. Validation is pydantic's, one parameter at a time, so that any parameter name works; where a value's type
is exactly the plain type that is asked for, pydantic (70 ms to import) is not needed at all.
"""

from __future__ import annotations

import inspect
import sys
import types
import typing
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from orchestrator.exceptions import ParameterBindError, ParameterTypeError, ReservedArgumentError

if TYPE_CHECKING:
    from pydantic import TypeAdapter

_EMPTY = inspect.Parameter.empty
_ANYTHING = (Any, object, _EMPTY)
_TRAVELS = frozenset({int, float, str, bool, bytes, list, dict, type(None)})
_PLAIN = _TRAVELS | {tuple, set, frozenset}
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_RESERVED = frozenset({"return_state", "wait_for"})


class Signature:
    """How one function is called. ``bound`` arguments (``self``) come first and are nobody's business.

    Raises ReservedArgumentError where a parameter has a name that calls of flows and tasks use themselves.
    """

    def __init__(self, fn: Callable[..., Any], what: str, *, bound: int = 0) -> None:
        self.what = what
        self._fn = fn
        signature = inspect.signature(fn)
        parameters = list(signature.parameters.values())[bound:]
        taken = sorted(_RESERVED.intersection(parameter.name for parameter in parameters))
        if taken:
            raise ReservedArgumentError(
                f"{what} has a parameter {taken[0]!r}, which every call of it understands already.",
                hint="Rename the parameter.",
            )
        self._signature = signature.replace(parameters=parameters)
        self.parameters = {parameter.name: parameter for parameter in parameters}
        # For the check of a plain positional call, which need not cost a full binding.
        positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        self._at_least = sum(p.default is _EMPTY for p in positional)
        self._at_most = sys.maxsize if any(p.kind is p.VAR_POSITIONAL for p in parameters) else len(positional)
        if any(p.kind is p.KEYWORD_ONLY and p.default is _EMPTY for p in parameters):
            self._at_most = -1

    def check(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Raise ParameterBindError unless the function can be called so."""
        if kwargs or not self._at_least <= len(args) <= self._at_most:
            self._bind(args, kwargs)

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments by name, defaults included; ``*args`` as a tuple, ``**kwargs`` as a dict under their own names.

        Raises ParameterBindError.
        """
        bound = self._bind(args, kwargs)
        bound.apply_defaults()
        return {name: _default(value) for name, value in bound.arguments.items()}

    def bind_given(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments by name, without defaults. Raises ParameterBindError."""
        return dict(self._bind(args, kwargs).arguments)

    def bind_names(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Complete arguments that are known by name, as a deployment's are. Raises ParameterBindError."""
        args, kwargs = self.arrange(values)
        return self.bind(args, kwargs)

    def arrange(self, values: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments by name as those of a call. Missing ones are left out, unknown ones stay keywords."""
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        rest = dict(values)
        by_position = True
        for name, parameter in self.parameters.items():
            if name not in rest:
                by_position = by_position and parameter.kind is parameter.VAR_POSITIONAL
                continue
            value = rest.pop(name)
            if parameter.kind is parameter.VAR_POSITIONAL:
                args.extend(value)
            elif parameter.kind is parameter.VAR_KEYWORD:
                kwargs.update(value)
            elif by_position and parameter.kind is not parameter.KEYWORD_ONLY:
                args.append(value)
            else:
                kwargs[name] = value
        return tuple(args), {**kwargs, **rest}

    def _bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> inspect.BoundArguments:
        try:
            return self._signature.bind(*args, **kwargs)
        except TypeError as problem:
            wanted = ", ".join(str(parameter).replace("'", "") for parameter in self.parameters.values()) or "none"
            raise ParameterBindError(f"{self.what} cannot be called so: {problem}.", hint=f"Its parameters: {wanted}") from None

    # Validation

    def validate(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The values as their annotations want them. A default that was not overridden is taken as it stands.

        Raises ParameterTypeError that names every wrong parameter.
        """
        validated: dict[str, Any] = {}
        problems: list[str] = []
        for name, value in values.items():
            parameter = self.parameters.get(name)
            annotation = self._annotations.get(name, _EMPTY)
            unchanged = parameter is not None and (value is parameter.default or isinstance(parameter.default, _Field))
            if parameter is None or annotation in _ANYTHING or _fits(value, annotation):
                validated[name] = value
            elif unchanged and value is None:
                validated[name] = value  # `limit: int = None`, as everyone writes it
            else:
                try:
                    validated[name] = self._coerce(name, value)
                except _Invalid as problem:
                    problems.append(str(problem))
        if problems:
            raise ParameterTypeError(
                f"{self.what} cannot take these parameters:\n" + "\n".join(f" - {line}" for line in problems)
            )
        return validated

    def made_again(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of a call that has travelled, made again what they were where the annotations say so.

        Raises ParameterBindError, ParameterTypeError.
        """
        if not self._with_types:
            self.check(args, kwargs)
            return args, kwargs
        given = self.bind_given(args, kwargs)
        return self.arrange(given | self.validate({name: given[name] for name in self._with_types if name in given}))

    def prepare(self) -> None:
        """Make ready whatever needs pydantic. For a process whose forks shall not each import it anew."""
        for name, annotation in self._annotations.items():
            if annotation not in _ANYTHING and annotation not in _PLAIN:
                self._adapter(name)

    @cached_property
    def _with_types(self) -> list[str]:
        """Parameters that want something else than what travels as it is."""
        annotations = self._annotations.items()
        return [name for name, annotation in annotations if annotation not in _ANYTHING and annotation not in _TRAVELS]

    def _coerce(self, name: str, value: Any) -> Any:
        adapter = self._adapter(name)
        if adapter is None:
            return value
        from pydantic import ValidationError

        parameter = self.parameters[name]
        try:
            if parameter.kind is parameter.VAR_POSITIONAL:
                return tuple(adapter.validate_python(item) for item in value)
            if parameter.kind is parameter.VAR_KEYWORD:
                return {key: adapter.validate_python(item) for key, item in value.items()}
            return adapter.validate_python(value)
        except ValidationError as error:
            raise _Invalid("; ".join(_line(name, found) for found in error.errors(include_url=False))) from None

    def _adapter(self, name: str) -> TypeAdapter[Any] | None:
        if name not in self._adapters:
            self._adapters[name] = _make_adapter(self._annotations.get(name, Any))
        return self._adapters[name]

    @cached_property
    def _adapters(self) -> dict[str, TypeAdapter[Any] | None]:
        return {}

    @cached_property
    def _annotations(self) -> dict[str, Any]:
        resolved = _resolve_annotations(self._fn, self.parameters)
        for name, parameter in self.parameters.items():
            if isinstance(parameter.default, _Field):
                resolved[name] = typing.Annotated[resolved.get(name, Any), parameter.default]
        return resolved

    # Description

    def schema(self) -> dict[str, Any]:
        """The parameters as JSON schema: an object with ``properties``, ``required`` and ``definitions``.

        Each property has its ``position``, for forms. A type that has no JSON form is described by nothing.
        """
        from pydantic import TypeAdapter

        named = {n: p for n, p in self.parameters.items() if p.kind not in _VARIADIC}
        adapters = {name: adapter for name in named if (adapter := self._adapter(name)) is not None and _describable(adapter)}
        template = "#/definitions/{model}"
        schemas, common = TypeAdapter.json_schemas(
            [(name, "validation", adapter) for name, adapter in adapters.items()], ref_template=template
        )
        properties: dict[str, Any] = {}
        for position, (name, parameter) in enumerate(named.items()):
            described = dict(schemas.get((name, "validation"), {}))
            default = _default(parameter.default)
            if default is not _EMPTY:
                described["default"] = _json_form(default)
            properties[name] = {"title": name, **described, "position": position}
        schema: dict[str, Any] = {"title": "Parameters", "type": "object", "properties": properties}
        required = [name for name, parameter in named.items() if _default(parameter.default) is _EMPTY]
        if required:
            schema["required"] = required
        if any(parameter.kind is parameter.VAR_KEYWORD for parameter in self.parameters.values()):
            schema["additionalProperties"] = True
        if common.get("$defs"):
            schema["definitions"] = common["$defs"]
        return schema


class _Invalid(Exception):
    """One parameter does not fit."""


class _FieldMeta(type):
    def __instancecheck__(cls, instance: object) -> bool:
        # Not imported for this: whoever has a FieldInfo has imported pydantic.
        module = sys.modules.get("pydantic.fields")
        return module is not None and isinstance(instance, module.FieldInfo)


class _Field(metaclass=_FieldMeta):
    """Stands for pydantic's FieldInfo: ``limit: int = Field(default=3, ge=0)``."""


def _default(value: Any) -> Any:
    if isinstance(value, _Field):
        from pydantic_core import PydanticUndefined

        made = value.get_default(call_default_factory=True)  # type: ignore[attr-defined]
        return _EMPTY if made is PydanticUndefined else made
    return value


def _fits(value: Any, annotation: Any) -> bool:
    """The value's type is plain and exactly one that the annotation names."""
    kind = type(value)
    if kind not in _PLAIN:
        return False
    if annotation is kind or (annotation is None and value is None):
        return True
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return kind in typing.get_args(annotation)
    return False


def _resolve_annotations(fn: Callable[..., Any], parameters: Mapping[str, inspect.Parameter]) -> dict[str, Any]:
    """Annotations as types. One that nobody can resolve (imported for type checkers only) counts as Any."""
    raw = inspect.unwrap(fn)
    around = inspect.getclosurevars(raw).nonlocals if inspect.isfunction(raw) else {}
    try:
        return typing.get_type_hints(raw, localns=around or None, include_extras=True)
    except (NameError, TypeError, AttributeError, SyntaxError):
        pass
    resolved: dict[str, Any] = {}
    for name, parameter in parameters.items():
        annotation = parameter.annotation
        if isinstance(annotation, str):
            holder = types.SimpleNamespace(__annotations__={name: annotation})
            try:
                annotation = typing.get_type_hints(holder, getattr(raw, "__globals__", {}), around, include_extras=True)[name]
            except (NameError, TypeError, AttributeError, SyntaxError):
                annotation = Any
        resolved[name] = annotation
    return resolved


def _make_adapter(annotation: Any) -> TypeAdapter[Any] | None:
    """Whoever judges values of a type; None where everything is welcome, or the type is beyond pydantic."""
    if annotation in _ANYTHING:
        return None
    from pydantic import ConfigDict, PydanticUserError, TypeAdapter

    try:
        return TypeAdapter(annotation, config=ConfigDict(arbitrary_types_allowed=True))
    except PydanticUserError:
        pass
    try:
        return TypeAdapter(annotation)  # a model brings its own configuration and takes no other
    except PydanticUserError:
        return None


def _describable(adapter: TypeAdapter[Any]) -> bool:
    from pydantic import PydanticUserError

    try:
        adapter.json_schema()
    except PydanticUserError:
        return False
    return True


def _line(name: str, found: Mapping[str, Any]) -> str:
    where = ".".join([name, *map(str, found["loc"])])
    return f"{where}: {found['msg']}"


def _json_form(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    from pydantic_core import to_jsonable_python

    return to_jsonable_python(value, fallback=repr)
