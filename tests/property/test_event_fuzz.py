"""Events under hypothesis: what is made reads back, and no bytes do more harm than a documented error."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import msgpack
import orjson
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from eventbus.errors import InvalidEvent
from eventbus.event import (
    Deliver,
    Event,
    EventHead,
    Level,
    Require,
    decode_envelope,
    encode_envelope,
    envelope_json,
    event_fields,
    event_from_object,
    event_of_fields,
    make_event,
    peek,
)
from eventbus.wire import Format

# --- strategies -------------------------------------------------------------------------------------------------------

MOST = 2**53
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
numbers = st.integers(-MOST, MOST) | st.floats(allow_nan=False, allow_infinity=False)
values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)
data_objects: st.SearchStrategy[dict[str, Any]] = st.dictionaries(texts, values, max_size=4)
# `x` begins no critical type, whose data would have to keep a schema.
types = st.from_regex(r"x[a-z0-9_.]{0,63}", fullmatch=True)


def maybe(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | strategy


hex_digits = "0123456789abcdef"
traces = st.builds(
    lambda trace, parent, flags: f"00-{trace:032x}-{parent:016x}-{flags:02x}",
    st.integers(1, 2**128 - 1),
    st.integers(1, 2**64 - 1),
    st.integers(0, 255),
)
made: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {
        "id": st.from_regex(r"[A-Za-z0-9_.:-]{1,64}", fullmatch=True),
        "type": types,
        "user": st.from_regex(r"u[A-Za-z0-9_.@:|+-]{0,127}", fullmatch=True),
        "time_ms": st.integers(0, MOST),
        "data": data_objects,
        "thread": maybe(st.from_regex(r"t[A-Za-z0-9_.:-]{0,40}", fullmatch=True)),
        "require": maybe(st.builds(Require, level=st.sampled_from(Level), within_ms=st.integers(1, MOST))),
        "deliver": st.sampled_from(Deliver),
        "expires_ms": maybe(st.integers(0, MOST)),
        "trace": maybe(traces),
    }
).flatmap(
    lambda fields: (
        st.fixed_dictionaries(
            {
                "run": st.just("run_1"),
                "seq": maybe(st.integers(1, MOST)),
            }
        ).map(lambda more: {**fields, **more})
        | st.just(fields)
    )
)
events: st.SearchStrategy[Event] = made.map(lambda fields: make_event(**fields))

anything: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | texts | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts | st.binary(max_size=3), inner, max_size=3),
    max_leaves=8,
)
near_events = st.builds(
    lambda good, wrong, gone: {name: value for name, value in {**good, **wrong}.items() if name not in gone},
    events.map(event_fields),
    st.dictionaries(
        st.sampled_from([field.name for field in dataclasses.fields(Event)]) | texts,
        anything,
        max_size=2,
    ),
    st.sets(st.sampled_from(["id", "type", "user", "data", "v"]), max_size=1),
)


def bodies_of(given_events: Sequence[Event], format: Format) -> list[bytes]:
    """The encodings of events that are spliced into frames."""
    bodies = [encode_envelope(event) for event in given_events]
    return [peek(body).json for body in bodies] if format is Format.JSON else bodies


def reads_or_says_why(body: bytes) -> EventHead | None:
    """What `peek` gives, when it does; nothing but InvalidEvent comes out of any reader."""
    said = ""
    try:
        decode_envelope(body)
    except InvalidEvent as error:
        said = str(error)
    assert len(said.encode()) < 2000
    try:
        return peek(body)
    except InvalidEvent as error:
        said = str(error)
    assert len(said.encode()) < 2000
    return None


# --- guarantees -------------------------------------------------------------------------------------------------------


@given(event=events)
def test_every_event_reads_back_from_its_envelope(event: Event) -> None:
    body = encode_envelope(event)
    assert decode_envelope(body) == event
    assert encode_envelope(decode_envelope(body)) == body


@given(event=events)
def test_every_event_reads_back_from_its_json(event: Event) -> None:
    text = envelope_json(encode_envelope(event))
    assert event_of_fields(orjson.loads(text)) == event
    # And another parser reads the same.
    assert json.loads(text) == orjson.loads(text)


@given(event=events)
def test_what_can_be_peeked_at_agrees_with_the_event(event: Event) -> None:
    head = peek(encode_envelope(event))
    assert (head.id, head.type, head.user, head.time_ms) == (event.id, event.type, event.user, event.time_ms)
    assert (head.thread, head.run) == (event.thread, event.run)
    assert (head.deliver, head.expires_ms) == (event.deliver, event.expires_ms)


@pytest.mark.requirement("R23")
@given(body=st.binary(max_size=200))
@example(body=b"\x81\xa4data" * 300)
@example(body=b"\xc7\x0c\xff" + b"\xff" * 12)
def test_no_bytes_raise_anything_but_invalid_event(body: bytes) -> None:
    reads_or_says_why(body)


@pytest.mark.requirement("R23")
@given(fields=near_events)
def test_what_peek_lets_through_can_be_sent(fields: dict[str, Any]) -> None:
    head = reads_or_says_why(msgpack.packb(fields))
    if head is not None:
        orjson.loads(head.json)
        assert isinstance(head.id + head.type + head.user, str)
        assert isinstance(head.deliver, Deliver)


@pytest.mark.requirement("R15")
@given(obj=near_events | anything)
def test_no_object_raises_anything_but_invalid_event_with_its_place(obj: Any) -> None:
    refused: InvalidEvent | None = None
    try:
        event = event_from_object(obj, default_id="e", default_time_ms=5, now_ms=5, index=3)
    except InvalidEvent as error:
        refused = error
    else:
        assert decode_envelope(encode_envelope(event)) == event
    if refused is not None:
        assert refused.index == 3
        assert refused.field
        assert len(str(refused).encode()) < 2000


@pytest.mark.requirement("R15")
@given(fields=made)
def test_an_event_of_http_is_the_event_of_the_library(fields: dict[str, Any]) -> None:
    event = make_event(**{**fields, "seq": None})
    obj = orjson.loads(envelope_json(encode_envelope(event)))
    # The one difference: a whole number beyond 2**53 in a JSON text may have been an integer.
    assume(not _has_large_whole(obj))
    assert event_from_object(obj, default_id="e", default_time_ms=5) == event


def _has_large_whole(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_has_large_whole, value.values()))
    if isinstance(value, list):
        return any(map(_has_large_whole, value))
    return isinstance(value, float) and value.is_integer() and abs(value) > MOST
