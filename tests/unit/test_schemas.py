"""The schemas of the five critical events, and those of an application."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventbus.errors import InvalidEvent
from eventbus.schemas import BUILT_IN_TYPES, CRITICAL_TYPES, Schema, Schemas, check_critical

GOOD: list[tuple[str, dict[str, Any]]] = [
    ("agent_started", {"agent": "researcher"}),
    ("agent_started", {"agent": "researcher", "model": "small", "n": 1}),
    ("agent_thinking", {"text": "hm"}),
    ("agent_thinking", {"text": " hm \n"}),
    ("tool_executing", {"tool": "search"}),
    ("tool_executing", {"tool": "search", "call_id": "c1", "arguments": {"q": "x"}}),
    ("tool_completed", {"tool": "search", "result": None}),
    ("tool_completed", {"tool": "search", "call_id": "c1", "result": {"hits": 3}}),
    ("tool_completed", {"tool": "search", "error": "no network"}),
    ("agent_completed", {"outcome": "success"}),
    ("agent_completed", {"outcome": "success", "result": [1]}),
    ("agent_completed", {"outcome": "failed", "error": "no network"}),
    ("agent_completed", {"outcome": "cancelled"}),
    ("agent_completed", {"outcome": "failed", "error": "late", "result": {"part": 1}}),
    ("agent_question", {"question": "q1", "text": "Which?"}),
    ("agent_question", {"question": "q1", "text": "Which?", "options": ["a", 2], "deadline_ms": 1, "default": None}),
    ("agent_answered", {"question": "q1", "answer": None, "by": "deadline"}),
    ("agent_answered", {"question": "q1", "answer": {"n": 1}, "by": "user", "session": "phone"}),
    ("agent_text", {"stream": "s1", "text": ""}),
    ("another_type", {}),
]

BAD: list[tuple[str, dict[str, Any], str]] = [
    ("agent_started", {}, "data.agent"),
    ("agent_started", {"agent": ""}, "data.agent"),
    ("agent_started", {"agent": 7}, "data.agent"),
    ("agent_started", {"agent": None}, "data.agent"),
    ("agent_thinking", {"text": " \t\n\u00a0"}, "data.text"),
    ("agent_thinking", {"txt": "hm"}, "data.text"),
    ("tool_executing", {}, "data.tool"),
    ("tool_executing", {"tool": "  "}, "data.tool"),
    ("tool_executing", {"tool": "search", "call_id": ""}, "data.call_id"),
    ("tool_executing", {"tool": "search", "call_id": 3}, "data.call_id"),
    ("tool_executing", {"tool": "search", "arguments": "q=x"}, "data.arguments"),
    ("tool_executing", {"tool": "search", "arguments": None}, "data.arguments"),
    ("tool_completed", {"result": 1}, "data.tool"),
    ("tool_completed", {"tool": "search"}, "data.result"),
    ("tool_completed", {"tool": "search", "result": 1, "error": "no"}, "data.error"),
    ("tool_completed", {"tool": "search", "error": " "}, "data.error"),
    ("agent_completed", {}, "data.outcome"),
    ("agent_completed", {"outcome": "done"}, "data.outcome"),
    ("agent_completed", {"outcome": ["success"]}, "data.outcome"),
    ("agent_completed", {"outcome": None}, "data.outcome"),
    ("agent_completed", {"outcome": "failed", "error": ""}, "data.error"),
    ("agent_question", {"question": "q1"}, "data.text"),
    ("agent_question", {"question": "q1", "text": "Which?", "options": "a"}, "data.options"),
    ("agent_question", {"question": "q1", "text": "Which?", "deadline_ms": -1}, "data.deadline_ms"),
    ("agent_question", {"question": "q1", "text": "Which?", "deadline_ms": True}, "data.deadline_ms"),
    ("agent_answered", {"question": "q1", "by": "user"}, "data.answer"),
    ("agent_answered", {"question": "q1", "answer": 1, "by": "someone"}, "data.by"),
    ("agent_text", {"stream": "s1"}, "data.text"),
    ("agent_text", {"stream": "s1", "text": 7}, "data.text"),
]


@pytest.mark.requirement("R15")
def test_the_five_critical_types_have_schemas() -> None:
    assert CRITICAL_TYPES == (
        "agent_started",
        "agent_thinking",
        "tool_executing",
        "tool_completed",
        "agent_completed",
    )


@pytest.mark.requirement("R15")
@pytest.mark.parametrize("event_type,data", GOOD)
def test_good_data_passes_and_more_fields_are_allowed(event_type: str, data: dict[str, Any]) -> None:
    check_critical(event_type, data)
    Schemas().check(event_type, data)


@pytest.mark.requirement("R15")
@pytest.mark.parametrize("event_type,data,field", BAD)
def test_bad_data_of_a_built_in_type_is_refused_with_its_field(
    event_type: str, data: dict[str, Any], field: str
) -> None:
    for check in (check_critical, Schemas().check):
        with pytest.raises(InvalidEvent) as caught:
            check(event_type, data)
        assert caught.value.field == field


def test_a_type_of_the_application_is_checked_by_its_function() -> None:
    def positive(data: Mapping[str, Any]) -> None:
        if data.get("amount", 0) <= 0:
            raise InvalidEvent("data.amount", "must be positive")

    schemas = Schemas()
    schemas.check("payment", {"amount": 0})
    schemas.register("payment", positive)
    schemas.check("payment", {"amount": 1})
    with pytest.raises(InvalidEvent, match=r"data\.amount"):
        schemas.check("payment", {"amount": 0})
    assert "payment" in repr(schemas)


def test_a_schema_registered_later_replaces_the_one_before() -> None:
    schemas = Schemas()
    schemas.register("payment", Schema(strings=("currency",)))
    schemas.register("payment", Schema())
    schemas.check("payment", {})


@pytest.mark.requirement("R15")
def test_a_schema_registered_for_a_critical_type_does_not_weaken_it() -> None:
    schemas = Schemas()
    schemas.register("agent_started", Schema(strings=("model",)))
    with pytest.raises(InvalidEvent, match=r"data\.agent"):
        schemas.check("agent_started", {"model": "m"})
    with pytest.raises(InvalidEvent, match=r"data\.model"):
        schemas.check("agent_started", {"agent": "a"})
    schemas.check("agent_started", {"agent": "a", "model": "m"})


def test_registries_do_not_share_what_was_registered() -> None:
    one = Schemas()
    one.register("payment", Schema(strings=("currency",)))
    Schemas().check("payment", {})


@pytest.mark.parametrize(
    "data,field",
    [
        ({}, "data.a"),
        ({"a": 1, "b": 2}, "data.b"),
        ({"a": 1, "c": 1, "d": 1}, "data.d"),
        ({"a": 1, "kind": "z"}, "data.kind"),
        ({"a": 1}, "data.kind"),
    ],
)
def test_a_described_schema_names_what_is_wrong(data: dict[str, Any], field: str) -> None:
    schema = Schema(one_of=("a", "b"), at_most_one_of=("c", "d"), words={"kind": ("x", "y")})
    schema({"a": 1, "kind": "x"})
    schema({"b": 1, "d": 1, "kind": "y"})
    with pytest.raises(InvalidEvent) as caught:
        schema(data)
    assert caught.value.field == field


# --- as JSON Schema ---------------------------------------------------------------------------------------------------

OWN = Schema(
    strings=("currency",),
    optional_strings=("memo",),
    texts=("text",),
    values=("amount",),
    objects=("payee",),
    lists=("items",),
    integers=("count",),
    one_of=("card", "cash"),
    at_most_one_of=("a", "b", "c"),
    words={"state": ("open", "paid")},
)
GOOD_OWN: dict[str, Any] = {"currency": "EUR", "text": "", "amount": None, "cash": 1, "state": "open"}


def is_valid(exported: dict[str, Any], data: Mapping[str, Any]) -> bool:
    return bool(jsonschema.Draft202012Validator(exported).is_valid(data))


@pytest.mark.requirement("R15")
def test_what_is_exported_is_json_schema_that_says_what_the_check_says() -> None:
    exported = Schemas().export()
    assert tuple(exported) == BUILT_IN_TYPES
    for event_type, schema in exported.items():
        jsonschema.Draft202012Validator.check_schema(schema)
        assert schema["title"] == event_type
        assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    for event_type, data in GOOD:
        assert event_type not in exported or is_valid(exported[event_type], data), (event_type, data)
    for event_type, data, _ in BAD:
        assert not is_valid(exported[event_type], data), (event_type, data)


values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 2),
    st.sampled_from(["", " ", "\x1f", "\u2003", "\ufeff", "open", "paid", "x"]),
    st.just([]),
    st.just({}),
)
names = ("currency", "memo", "text", "amount", "payee", "items", "count", "card", "cash", "a", "b", "c", "state", "z")


@pytest.mark.requirement("R15")
@given(changed=st.dictionaries(st.sampled_from(names), values, max_size=4), gone=st.sets(st.sampled_from(names)))
def test_an_exported_schema_takes_and_refuses_what_the_check_does(changed: dict[str, Any], gone: set[str]) -> None:
    data = {name: value for name, value in {**GOOD_OWN, **changed}.items() if name not in gone or name in changed}
    schemas = Schemas()
    schemas.register("payment", OWN)
    try:
        schemas.check("payment", data)
        good = True
    except InvalidEvent:
        good = False
    assert is_valid(schemas.export()["payment"], data) is good


def test_what_code_judges_is_exported_as_an_object_and_a_type_of_the_library_keeps_its_own() -> None:
    schemas = Schemas()
    schemas.register("payment", lambda data: None)
    schemas.register("agent_started", Schema(strings=("model",)))
    exported = schemas.export()
    assert exported["payment"]["type"] == "object"
    assert "code" in exported["payment"]["$comment"]
    assert is_valid(exported["agent_started"], {"agent": "a", "model": "m"})
    assert not is_valid(exported["agent_started"], {"agent": "a"})
    assert not is_valid(exported["agent_started"], {"model": "m"})
