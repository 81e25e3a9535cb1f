"""The event: judged where it is made, read back as it travels."""

from __future__ import annotations

from typing import Any

import msgpack
import orjson
import pytest

from eventbus.errors import InvalidEvent, InvalidField
from eventbus.event import (
    MAX_AHEAD_MS,
    MAX_ENVELOPE_BYTES,
    Deliver,
    Event,
    Level,
    Require,
    decode_envelope,
    encode_envelope,
    envelope_json,
    event_fields,
    event_from_object,
    event_of_fields,
    make_event,
    parse_event_type,
    peek,
)
from eventbus.schemas import Schema, Schemas

NOW_MS = 1_732_190_000_000
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

LEAST: dict[str, Any] = {"id": "e1", "type": "note", "user": "ann", "time_ms": NOW_MS, "data": {"a": 1}}
WHOLE: dict[str, Any] = {
    "id": "e1",
    "type": "note.added",
    "user": "ann@example.org",
    "thread": "thread_1",
    "run": "run_1",
    "seq": 3,
    "time_ms": NOW_MS,
    "data": {"z": 1, "a": ["caf\u00e9", None, True, 1.5]},
    "require": {"level": "displayed", "within_ms": 5000},
    "deliver": "any",
    "expires_ms": NOW_MS + 60_000,
    "trace": TRACE,
    "v": 1,
}


def make(**changed: Any) -> Event:
    return make_event(**{**LEAST, **changed})


def whole() -> Event:
    return make_event(
        **{name: value for name, value in WHOLE.items() if name not in ("require", "deliver", "v")},
        require=Require(level=Level.DISPLAYED, within_ms=5000),
        deliver=Deliver.ANY,
    )


def parsed(obj: object, **kept: Any) -> Event:
    return event_from_object(obj, default_id="given", default_time_ms=NOW_MS, **kept)


def problem_of(call: Any, *args: Any, **kept: Any) -> InvalidEvent:
    with pytest.raises(InvalidEvent) as caught:
        call(*args, **kept)
    return caught.value


# Every bad field, as a publisher and as a caller of HTTP may give it.
BAD: list[tuple[str, object, str]] = [
    ("id", "", "id"),
    ("id", "a b", "id"),
    ("id", 7, "id"),
    ("type", "Note", "type"),
    ("type", "9", "type"),
    ("type", "n" * 65, "type"),
    ("type", 7, "type"),
    ("user", "", "user"),
    ("user", "run_1", "user"),
    ("user", "a/b", "user"),
    ("thread", "a b", "thread"),
    ("thread", "", "thread"),
    ("run", "thread_1", "run"),
    ("run", 7, "run"),
    ("time_ms", -1, "time_ms"),
    ("time_ms", 1.5, "time_ms"),
    ("time_ms", True, "time_ms"),
    ("time_ms", "now", "time_ms"),
    ("time_ms", 2**53 + 1, "time_ms"),
    ("data", [], "data"),
    ("data", "text", "data"),
    ("data", {"text": "\ud800"}, "data.text"),
    ("data", {"items": [0, 1, 2, {"x": 2**60}]}, "data.items[3].x"),
    ("deliver", "all", "deliver"),
    ("deliver", 1, "deliver"),
    ("expires_ms", "soon", "expires_ms"),
    ("expires_ms", -5, "expires_ms"),
    ("trace", "00-abc", "trace"),
    ("trace", 7, "trace"),
    ("trace", TRACE.upper(), "trace"),
    ("trace", "ff" + TRACE[2:], "trace"),
    ("trace", f"00-{'0' * 32}-b7ad6b7169203331-01", "trace"),
    ("trace", f"00-0af7651916cd43dd8448eb211c80319c-{'0' * 16}-01", "trace"),
    ("trace", TRACE + "\n", "trace"),
]

BAD_REQUIRE: list[tuple[object, str]] = [
    ("displayed", "require"),
    ({}, "require.level"),
    ({"level": "displayed"}, "require.within_ms"),
    ({"level": "seen", "within_ms": 1}, "require.level"),
    ({"level": 2, "within_ms": 1}, "require.level"),
    ({"level": "displayed", "within_ms": 0}, "require.within_ms"),
    ({"level": "displayed", "within_ms": 1.0}, "require.within_ms"),
    ({"level": "displayed", "within_ms": True}, "require.within_ms"),
    ({"level": "displayed", "within_ms": 2**53 + 1}, "require.within_ms"),
]


# --- where an event is made -------------------------------------------------------------------------------------------


def test_an_event_holds_what_it_was_given() -> None:
    event = whole()
    assert event_fields(event) == WHOLE
    assert list(event_fields(event)) == list(WHOLE)
    assert event.extra == {}


def test_optional_fields_that_were_not_given_are_left_out() -> None:
    assert event_fields(make()) == {**LEAST, "v": 1}
    assert event_fields(make(deliver=Deliver.EACH)) == {**LEAST, "v": 1}


def test_data_is_a_copy() -> None:
    data = {"a": [1]}
    event = make(data=data)
    data["a"].append(2)
    assert event.data == {"a": [1]}


def test_an_event_can_not_be_changed() -> None:
    with pytest.raises(AttributeError):
        make().user = "bob"  # type: ignore[misc, assignment]


@pytest.mark.requirement("R15")
@pytest.mark.parametrize("name,value,field", BAD)
def test_a_bad_field_is_refused_where_the_event_is_made(name: str, value: object, field: str) -> None:
    assert problem_of(make, **{name: value}).field == field


@pytest.mark.parametrize("level,within_ms,field", [("seen", 1, "require.level"), ("displayed", 0, "require.within_ms")])
def test_a_bad_demand_is_refused_where_the_event_is_made(level: Any, within_ms: int, field: str) -> None:
    assert problem_of(make, require=Require(level=level, within_ms=within_ms)).field == field


def test_a_number_in_a_run_needs_the_run_and_begins_at_1() -> None:
    assert make(run="run_1", seq=1).seq == 1
    assert problem_of(make, seq=1).field == "seq"
    assert problem_of(make, run="run_1", seq=0).field == "seq"


@pytest.mark.requirement("R21")
def test_a_run_id_given_as_the_user_is_refused_with_a_sentence_that_helps() -> None:
    assert "give the user's id here" in str(problem_of(make, user="run_019ab3c1"))


@pytest.mark.requirement("R15")
def test_a_critical_event_is_checked_by_its_schema_where_it_is_made() -> None:
    assert problem_of(make, type="agent_thinking", data={"text": " "}).field == "data.text"
    assert make(type="agent_thinking", data={"text": "hm"}).data == {"text": "hm"}


def test_an_event_of_the_application_is_checked_by_its_own_schema() -> None:
    schemas = Schemas()
    schemas.register("note", Schema(strings=("title",)))
    assert problem_of(make, schemas=schemas).field == "data.title"
    assert problem_of(parsed, LEAST, schemas=schemas).field == "data.title"
    assert make(data={"title": "x"}, schemas=schemas).data == {"title": "x"}


def test_data_may_be_as_large_as_the_setting_says_and_no_larger() -> None:
    size = len(msgpack.packb({"a": "x" * 500}))
    assert make(data={"a": "x" * 500}, max_event_bytes=size).data == {"a": "x" * 500}
    assert problem_of(make, data={"a": "x" * 501}, max_event_bytes=size).field == "data"
    assert problem_of(parsed, {**LEAST, "data": {"a": "x" * 501}}, max_event_bytes=size).field == "data"


def test_data_may_be_empty_where_no_schema_says_otherwise() -> None:
    assert make(data={}).data == {}


# --- from a parsed object ---------------------------------------------------------------------------------------------


def test_an_object_becomes_the_event_that_make_event_would_make() -> None:
    obj = {name: value for name, value in WHOLE.items() if name != "seq"}
    event = parsed(obj)
    assert event_fields(event) == obj
    assert type(event.deliver) is Deliver
    assert event.require == Require(level=Level.DISPLAYED, within_ms=5000)


def test_a_missing_id_and_time_are_filled_in() -> None:
    event = parsed({"type": "note", "user": "ann", "data": {}})
    assert (event.id, event.time_ms) == ("given", NOW_MS)


@pytest.mark.requirement("R15")
@pytest.mark.parametrize("name,value,field", BAD)
def test_a_bad_field_of_an_object_is_refused_with_its_index(name: str, value: object, field: str) -> None:
    error = problem_of(parsed, {**LEAST, name: value}, index=4)
    assert (error.field, error.index) == (field, 4)
    assert str(error).startswith(f"event 4: {field}: ")


@pytest.mark.parametrize("require,field", BAD_REQUIRE)
def test_a_bad_demand_of_an_object_is_refused(require: object, field: str) -> None:
    assert problem_of(parsed, {**LEAST, "require": require}).field == field


@pytest.mark.parametrize("name", ["type", "user", "data"])
def test_an_object_without_a_field_that_it_needs_is_refused(name: str) -> None:
    error = problem_of(parsed, {key: value for key, value in LEAST.items() if key != name})
    assert (error.field, error.problem) == (name, "is missing")


@pytest.mark.parametrize("name", [name for name in WHOLE if name not in ("data", "seq", "v")])
def test_null_is_refused_where_a_field_could_be_left_out(name: str) -> None:
    error = problem_of(parsed, {**LEAST, name: None})
    assert error.field == name
    assert "leave it out" in error.problem


@pytest.mark.parametrize(
    "changed,field",
    [
        ({"foo": 1}, "foo"),
        ({"userId": "ann"}, "userId"),
        ({"f\u00fc\n": 1}, "f\\xfc\\n"),
        ({"": 1}, '""'),
        ({"seq": 1}, "seq"),
        ({"require": {"level": "displayed", "within_ms": 1, "by": "ann"}}, "require.by"),
    ],
)
def test_an_unknown_field_is_refused_with_its_name(changed: dict[str, Any], field: str) -> None:
    error = problem_of(parsed, {**LEAST, **changed})
    assert error.field == field
    assert "leave it out" in error.problem


@pytest.mark.parametrize("value", [2, 0, "1", True, 1.0, None])
def test_only_the_version_of_today_may_be_named(value: object) -> None:
    assert parsed({**LEAST, "v": 1}).v == 1
    assert problem_of(parsed, {**LEAST, "v": value}).field == "v"


@pytest.mark.parametrize("obj", [[], "text", None, 3, {1: 2}])
def test_what_is_no_object_is_no_event(obj: object) -> None:
    assert problem_of(parsed, obj).field == "event"


def test_a_time_more_than_five_minutes_ahead_is_refused() -> None:
    obj = {**LEAST, "time_ms": NOW_MS + MAX_AHEAD_MS}
    assert parsed(obj, now_ms=NOW_MS).time_ms == NOW_MS + 300_000
    error = problem_of(parsed, obj, now_ms=NOW_MS - 1)
    assert error.field == "time_ms"
    assert "300001 ms ahead" in error.problem
    assert parsed(obj).time_ms == NOW_MS + 300_000


def test_an_integer_that_json_rounded_is_refused() -> None:
    obj = orjson.loads(b'{"type":"note","user":"ann","data":{"n":123456789012345678901234567890}}')
    assert problem_of(parsed, obj).field == "data.n"


# --- as it travels ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("event", [make(), whole()], ids=["least", "whole"])
def test_an_envelope_gives_back_the_event(event: Event) -> None:
    body = encode_envelope(event)
    assert decode_envelope(body) == event
    assert orjson.loads(envelope_json(body)) == event_fields(event)


def test_the_json_of_an_envelope_has_no_blanks_and_the_order_of_the_event_table() -> None:
    body = encode_envelope(whole())
    assert envelope_json(body) == orjson.dumps(WHOLE)
    assert list(msgpack.unpackb(body)) == list(WHOLE)


def test_unknown_fields_of_an_envelope_are_passed_on() -> None:
    fields = {**LEAST, "v": 2, "priority": 3, "labels": ["x", {"y": None}]}
    body = msgpack.packb(fields)
    event = decode_envelope(body)
    assert event.extra == {"priority": 3, "labels": ["x", {"y": None}]}
    assert event.v == 2
    assert encode_envelope(event) == body
    assert envelope_json(body) == orjson.dumps(fields)
    assert peek(body).id == "e1"


def test_an_envelope_without_a_version_is_of_the_first() -> None:
    assert decode_envelope(msgpack.packb(LEAST)).v == 1


@pytest.mark.parametrize("name,value,field", BAD)
def test_a_bad_field_of_an_envelope_is_refused(name: str, value: object, field: str) -> None:
    assert problem_of(event_of_fields, {**LEAST, name: value}).field == field


@pytest.mark.parametrize("name", ["id", "type", "user", "time_ms", "data"])
def test_an_envelope_without_a_field_that_it_needs_is_refused(name: str) -> None:
    body = msgpack.packb({key: value for key, value in LEAST.items() if key != name})
    assert problem_of(decode_envelope, body).field == name
    assert problem_of(peek, body).field == "event"


HOSTILE = [
    b"",
    b"\xc1",
    b"text",
    b"\xff" * 40,
    b"\x91" * 2000 + b"\xc0",
    b"\xdd\xff\xff\xff\xff" * 20,
    b"\xdf\xff\xff\xff\xff",
    b"\xa2\xed\xa0",
    b"\xa3\xed\xa0\x80",
    b"\x81\x01\x02",
    b"\x81\xc4\x01a\x01",
    b"\xd7\xff\xff\xff\xff\xff\xff\xff\xff\xff",
    msgpack.packb(LEAST) + b"\x00",
    msgpack.packb(LEAST)[:-1],
]


@pytest.mark.parametrize("body", HOSTILE)
def test_hostile_bytes_are_refused(body: bytes) -> None:
    for read in (decode_envelope, peek, envelope_json):
        assert problem_of(read, body).field == "event"


@pytest.mark.parametrize("value", [[1], "text", 7, None, True, 1.5])
def test_an_envelope_is_an_object(value: object) -> None:
    for read in (decode_envelope, peek, envelope_json):
        assert problem_of(read, msgpack.packb(value)).field == "event"


def test_an_envelope_of_unbounded_size_is_not_even_decoded() -> None:
    body = msgpack.packb({**LEAST, "data": {"a": b"x" * MAX_ENVELOPE_BYTES}})
    for read in (decode_envelope, peek, envelope_json):
        assert "are the most that is read" in problem_of(read, body).problem


@pytest.mark.parametrize("value", [b"raw", msgpack.ExtType(3, b"x"), msgpack.Timestamp(1), {b"k": 1}])
def test_what_json_does_not_know_is_refused_before_anything_is_sent(value: object) -> None:
    body = msgpack.packb({**LEAST, "data": {"x": value}})
    assert problem_of(decode_envelope, body).field == "data.x"
    for read in (peek, envelope_json):
        assert "holds what JSON does not know" in problem_of(read, body).problem
    body = msgpack.packb({**LEAST, "extra": value})
    assert problem_of(decode_envelope, body).field == "extra"
    for read in (peek, envelope_json):
        assert "holds what JSON does not know" in problem_of(read, body).problem


# --- what a node needs ------------------------------------------------------------------------------------------------


def test_peek_gives_what_routes_filters_and_expires_an_event_and_its_json() -> None:
    body = encode_envelope(whole())
    head = peek(body)
    assert head._asdict() == {
        "id": "e1",
        "type": "note.added",
        "user": "ann@example.org",
        "time_ms": NOW_MS,
        "thread": "thread_1",
        "run": "run_1",
        "deliver": Deliver.ANY,
        "expires_ms": NOW_MS + 60_000,
        "json": envelope_json(body),
        "demanded": True,
        "trace": whole().trace,
    }


def test_peek_of_the_least_event_has_nothing_where_nothing_was_given() -> None:
    head = peek(encode_envelope(make()))
    assert (head.thread, head.run, head.deliver, head.expires_ms) == (None, None, Deliver.EACH, None)


@pytest.mark.parametrize(
    "changed",
    [
        {"id": 7},
        {"type": None},
        {"user": ["ann"]},
        {"time_ms": "now"},
        {"time_ms": True},
        {"thread": 7},
        {"run": {}},
        {"deliver": "all"},
        {"deliver": ["any"]},
        {"expires_ms": 1.5},
        {"data": []},
        {"data": None},
    ],
)
def test_peek_refuses_a_field_of_a_wrong_type(changed: dict[str, Any]) -> None:
    assert problem_of(peek, msgpack.packb({**LEAST, **changed})).field == "event"


# --- words ------------------------------------------------------------------------------------------------------------


@pytest.mark.requirement("R11")
def test_levels_are_ordered_by_what_they_imply_and_not_by_the_alphabet() -> None:
    assert sorted(Level, reverse=True) == [Level.CONFIRMED, Level.DISPLAYED, Level.RECEIVED]
    assert Level.RECEIVED < Level.DISPLAYED < Level.CONFIRMED
    assert Level.CONFIRMED > Level.RECEIVED
    assert Level.CONFIRMED >= Level.CONFIRMED >= Level.DISPLAYED
    assert Level.RECEIVED <= Level.RECEIVED <= Level.DISPLAYED
    assert not Level.RECEIVED >= Level.DISPLAYED
    assert [level.rank for level in Level] == [0, 1, 2]
    assert Level.DISPLAYED > "received"


def test_a_type_of_64_characters_is_the_longest() -> None:
    assert parse_event_type("n" + "x" * 63)
    assert parse_event_type("a.b_9")
    for bad in ("n" + "x" * 64, "_a", "a-b", "a\n", "\u00e4"):
        with pytest.raises(InvalidField, match="does not match"):
            parse_event_type(bad)
