"""Variables, on a stand-in for Redis: nothing here blocks."""

from __future__ import annotations

import fakeredis
import pytest

from orchestrator.exceptions import InvalidName, ObjectAlreadyExists, ObjectNotFound, PayloadTooLarge
from orchestrator.keys import Keys
from orchestrator.store.documents import VARIABLE_LIMIT, Documents


@pytest.fixture
def documents() -> Documents:
    return Documents(fakeredis.FakeRedis(), Keys("n"))


@pytest.mark.parametrize("value", [None, True, 0, 1.5, "text", "ü", [1, [2]], {"a": {"b": []}}])
def test_a_variable_holds_any_json_value(documents: Documents, value: object) -> None:
    documents.set_variable("v", value, tags=("a",))
    found = documents.get_variable("v")
    assert (found.name, found.value, found.tags) == ("v", value, ("a",))


def test_a_variable_is_replaced_unless_that_is_not_wanted(documents: Documents) -> None:
    documents.set_variable("v", 1)
    documents.set_variable("v", 2)
    with pytest.raises(ObjectAlreadyExists):
        documents.set_variable("v", 3, overwrite=False)
    assert documents.get_variable("v").value == 2
    assert documents.set_variable("w", 3, overwrite=False).value == 3


def test_variables_are_listed_by_name_and_removed_once(documents: Documents) -> None:
    for name in ("b", "a", "日本"):
        documents.set_variable(name, name)
    assert [variable.name for variable in documents.variables()] == ["a", "b", "日本"]
    documents.unset_variable("a")
    for missing in (documents.unset_variable, documents.get_variable):
        with pytest.raises(ObjectNotFound):
            missing("a")


def test_what_is_too_large_or_has_no_proper_name_is_refused(documents: Documents) -> None:
    with pytest.raises(PayloadTooLarge):
        documents.set_variable("v", "x" * VARIABLE_LIMIT)
    with pytest.raises(InvalidName):
        documents.set_variable("a:b", 1)
    assert documents.variables() == []
