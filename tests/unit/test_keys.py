"""Ids, names, and the one spelling of keys that Python and Lua share."""

from __future__ import annotations

import re
import unicodedata
import uuid
from importlib import resources

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.exceptions import InvalidName
from orchestrator.keys import PERMANENT, Keys, check_name, lengthen, new_id, shorten

ids = st.integers(0, 2**128 - 1).map(lambda number: str(uuid.UUID(int=number)))
FORBIDDEN = "/%&<>{}:*"


@given(ids)
def test_an_id_survives_being_shortened(run: str) -> None:
    assert len(shorten(run)) == 22
    assert lengthen(shorten(run)) == lengthen(shorten(run).encode()) == run


@given(ids, ids)
def test_shortened_ids_sort_as_the_ids_do(one: str, other: str) -> None:
    assert (shorten(one) < shorten(other)) == (one < other)


@given(ids)
def test_a_shortened_id_has_no_character_that_means_something_in_a_key(run: str) -> None:
    assert re.fullmatch(r"[-0-9A-Z_a-z]{22}", shorten(run))


def test_a_new_id_is_a_uuid_of_version_7_and_no_two_are_the_same() -> None:
    made = [new_id() for _ in range(1000)]
    assert {(uuid.UUID(run).version, uuid.UUID(run).variant) for run in made} == {(7, uuid.RFC_4122)}
    assert len(set(made)) == 1000
    times = [uuid.UUID(run).int >> 80 for run in made]
    assert times == sorted(times)


@given(st.text(max_size=120))
def test_a_name_is_printable_without_the_characters_that_mean_something(name: str) -> None:
    fits = (
        bool(name)
        and name == name.strip()
        and not set(name) & set(FORBIDDEN)
        and all(unicodedata.category(c)[0] not in "CZ" or c == " " for c in name)
        and len(name.encode(errors="surrogatepass")) <= 200
    )
    if fits:
        assert check_name("flow", name) == name
    else:
        with pytest.raises(InvalidName):
            check_name("flow", name)


@pytest.mark.parametrize("name", ["hello_flow", "日本語", "Füße 12", "a.b-c", "x" * 200, "'quoted'", "🦦"])
def test_names_that_people_use_are_fine(name: str) -> None:
    assert check_name("flow", name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        " a",
        "a ",
        "a\nb",
        "a\x00",
        "a\u200b",
        "a\u2028b",
        "a\xa0b",
        "\u202eevil",
        "x" * 201,
        "日" * 67,
        *(f"a{c}b" for c in FORBIDDEN),
    ],
)
def test_names_that_would_harm_are_refused_with_a_reason(name: str) -> None:
    with pytest.raises(InvalidName) as caught:
        check_name("work pool", name)
    assert "work pool" in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("namespace", ["", "a b", "a{b}", "a:b", "x" * 65, "ä", "*"])
def test_a_namespace_that_would_break_its_hash_tag_is_refused(namespace: str) -> None:
    with pytest.raises(InvalidName):
        Keys(namespace)


def _python_names() -> set[str]:
    """Every key that Python spells, below the prefix, up to its first variable part."""
    keys = Keys("n")
    found = {value for name, value in vars(keys).items() if name not in ("namespace", "prefix")}
    one = [
        keys.run,
        keys.tasks,
        keys.log,
        keys.resumed,
        keys.control,
        keys.parked,
        keys.slots,
        keys.pool,
        keys.queues,
        keys.worker,
        keys.scheduler,
    ]
    found |= {key("*") for key in [*one, keys.deployment, keys.schedules]}
    found |= {
        keys.queue("*", "*", "*"),
        keys.planned("*", "*"),
        keys.index("all"),
        keys.index("state", "*"),
        keys.idempotency("*", "k"),
    }
    return {key.removeprefix(keys.prefix).split(":")[0] for key in found}


def _lua_names() -> set[str]:
    """Every key that the scripts build: ``prefix .. 'name`` and the names of streams and gates."""
    folder = resources.files("orchestrator.store") / "lua"
    texts = [entry.read_text() for part in (folder, folder / "lib") for entry in part.iterdir() if entry.name.endswith(".lua")]
    return {name for text in texts for name in re.findall(r"prefix \.\. '([a-z_]+)", text)}


def test_lua_spells_no_key_that_python_does_not() -> None:
    assert _lua_names() <= _python_names()


def test_every_key_is_of_a_run_or_permanent_or_has_a_ttl() -> None:
    with_ttl = {"run", "tasks", "log", "idempotency", "control", "worker", "scheduler", "brake", "apart", "confirmed"}
    permanent = {pattern.split(":")[0] for pattern in PERMANENT}
    assert _python_names() == with_ttl | permanent
    assert not with_ttl & permanent


def test_all_keys_of_a_namespace_share_one_cluster_slot() -> None:
    keys = Keys("prod.eu-1")
    assert str(keys) == keys.prefix == "orch:{prod.eu-1}:"
    assert keys.run("x").startswith(keys.prefix)
    assert keys.idempotency("f", "any text {of} the user:*").removeprefix(keys.prefix).count(":") == 2
