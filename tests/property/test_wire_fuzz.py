"""Frames under hypothesis: what is written reads back, and no bytes do more harm than a documented error."""

from __future__ import annotations

import dataclasses
import tracemalloc
from typing import Any

import msgpack
import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from eventbus.errors import BadFrame, EventBusError, UnknownOp
from eventbus.event import Event
from eventbus.ids import ConnectionId, EntryId, Epoch, NodeName, RunId, SessionId, ThreadId
from eventbus.wire import (
    Ack,
    Acked,
    CaughtUp,
    ClientFrame,
    Delivered,
    Dropped,
    DropReason,
    ErrorFrame,
    Events,
    Filter,
    Filtered,
    Format,
    Gap,
    GapReason,
    GoAway,
    GoAwayReason,
    Hello,
    Level,
    Nack,
    Ping,
    Pong,
    Refresh,
    Refreshed,
    Released,
    Send,
    Sent,
    ServerFrame,
    SetFilter,
    Start,
    Text,
    Welcome,
    Working,
    decode_client,
    decode_server,
    encode_client,
    encode_server,
    event_item,
    events_payload,
    split_items,
)
from tests.property.test_event_fuzz import bodies_of, data_objects, events, types

# --- strategies -------------------------------------------------------------------------------------------------------

formats = st.sampled_from(Format)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
entries = st.builds(lambda ms, seq: EntryId(f"{ms}-{seq}"), st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
entry_lists = st.lists(entries, max_size=5).map(tuple)
refs = st.one_of(st.integers(-(2**53), 2**53), texts)
counts = st.integers(0, 2**53)
from_one = st.integers(1, 2**53)
sessions = st.from_regex(r"[A-Za-z0-9_-]{1,64}", fullmatch=True).map(SessionId)
threads = st.from_regex(r"t[A-Za-z0-9_.:-]{0,20}", fullmatch=True).map(ThreadId)
runs = st.from_regex(r"run_[A-Za-z0-9_.:-]{0,20}", fullmatch=True).map(RunId)
names = texts


def maybe(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | strategy


filters = st.builds(
    Filter,
    types=maybe(st.frozensets(types, max_size=3)),
    threads=maybe(st.frozensets(threads, max_size=3)),
    runs=maybe(st.frozensets(runs, max_size=3)),
)
hellos = st.builds(
    Hello,
    token=maybe(texts),
    session=maybe(sessions),
    start=maybe(st.sampled_from(Start)),
    cursor=entries,
    epoch=maybe(texts.map(Epoch)),
    window=maybe(st.integers(1, 1024)),
    filter=maybe(filters),
)
levels = st.sampled_from(Level)
acks = st.builds(Ack, ids=entry_lists, level=levels, note=maybe(texts), ref=maybe(refs)) | st.builds(
    Ack, upto=entries, level=levels, note=maybe(texts), ref=maybe(refs)
)
client_frames: st.SearchStrategy[ClientFrame] = st.one_of(
    hellos,
    acks,
    st.builds(Nack, id=entries, reason=maybe(texts), delay_ms=maybe(st.integers(0, 3_600_000))),
    st.builds(Refresh, token=texts),
    st.builds(Send, type=types, data=data_objects, ref=refs, run=maybe(runs), thread=maybe(threads)),
    st.builds(SetFilter, filter=filters, ref=maybe(refs)),
    st.builds(Working, ids=entry_lists),
    st.builds(Ping, ref=maybe(refs)),
)
deliveries = st.builds(Delivered, id=entries, delivery=from_one, event=events)
server_frames: st.SearchStrategy[ServerFrame] = st.one_of(
    st.builds(
        Welcome,
        protocol=from_one,
        node=names.map(NodeName),
        connection=names.map(ConnectionId),
        session=sessions,
        resumed=st.booleans(),
        cursor=entries,
        pending=counts,
        window=from_one,
        heartbeat_ms=from_one,
        ack_timeout_ms=from_one,
        max_frame_bytes=from_one,
        token_expires_ms=counts,
        epoch=texts.map(Epoch),
    ),
    st.builds(Events, events=st.lists(deliveries, max_size=3).map(tuple)),
    st.builds(CaughtUp, cursor=entries),
    st.builds(Gap, reason=st.sampled_from(GapReason), after=maybe(entries), before=maybe(entries), count=maybe(counts)),
    st.builds(Acked, ref=refs, count=counts),
    st.builds(Sent, ref=refs, id=entries),
    st.builds(Released, ids=entry_lists),
    st.builds(Filtered, ref=maybe(refs)),
    st.builds(Dropped, ids=entry_lists, reason=st.sampled_from(DropReason)),
    st.builds(Text, run=runs, stream=texts, offset=counts, text=texts, final=st.booleans()),
    st.builds(Refreshed, token_expires_ms=counts),
    st.builds(Pong, ref=maybe(refs)),
    st.builds(GoAway, reason=st.sampled_from(GoAwayReason), reconnect_after_ms=counts),
    st.builds(ErrorFrame, code=texts, message=texts, ref=maybe(refs)),
)

FIELD_NAMES = sorted(
    {"op", "reason", "message", "count", "events"}
    | {field.name for frame in (Hello, Ack, Nack, Send, SetFilter, Text) for field in dataclasses.fields(frame)}
)
OPS = [
    "hello",
    "ack",
    "nack",
    "refresh",
    "send",
    "filter",
    "working",
    "ping",
    "welcome",
    "events",
    "gap",
    "text",
    "sub",
]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | texts | entries,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=10,
)
near_frames = st.builds(
    lambda op, fields: {**fields, "op": op},
    st.sampled_from(OPS) | json_values,
    st.dictionaries(st.sampled_from(FIELD_NAMES) | texts, json_values, max_size=6),
)


def decodes_or_says_why(payload: bytes, format: Format) -> None:
    for decode in (decode_client, decode_server):
        said = ""
        try:
            decode(payload, format)
        except (BadFrame, UnknownOp) as error:
            said = str(error)
        # The message goes to the client and into logs: bounded, and fit for UTF-8.
        assert len(said.encode()) < 2000


# --- guarantees -------------------------------------------------------------------------------------------------------


@given(frame=client_frames, format=formats)
def test_every_frame_of_a_client_reads_back(frame: ClientFrame, format: Format) -> None:
    assert decode_client(encode_client(frame, format), format) == frame


@given(frame=server_frames, format=formats)
def test_every_frame_of_a_node_reads_back(frame: ServerFrame, format: Format) -> None:
    assert decode_server(encode_server(frame, format), format) == frame


@given(frame=client_frames | server_frames)
def test_both_formats_carry_the_same_object(frame: Any) -> None:
    encode: Any = encode_client if isinstance(frame, ClientFrame) else encode_server
    assert orjson.loads(encode(frame, Format.JSON)) == msgpack.unpackb(encode(frame, Format.MSGPACK))


@pytest.mark.requirement("R23")
@given(payload=st.binary(max_size=300), format=formats)
@example(payload=b"\x81" * 600, format=Format.MSGPACK)
@example(payload=b'{"a":' * 3000, format=Format.JSON)
def test_no_bytes_raise_anything_but_the_documented_errors(payload: bytes, format: Format) -> None:
    decodes_or_says_why(payload, format)


@pytest.mark.requirement("R23")
@given(frame=near_frames, format=formats)
def test_no_object_raises_anything_but_the_documented_errors(frame: Any, format: Format) -> None:
    decodes_or_says_why(orjson.dumps(frame) if format is Format.JSON else msgpack.packb(frame), format)


@pytest.mark.requirement("R23")
@given(frame=client_frames | server_frames, format=formats, data=st.data())
def test_no_damage_to_a_good_frame_raises_anything_else(frame: Any, format: Format, data: st.DataObject) -> None:
    encode: Any = encode_client if isinstance(frame, ClientFrame) else encode_server
    payload = bytearray(encode(frame, format))
    at = data.draw(st.integers(0, len(payload) - 1))
    match data.draw(st.sampled_from(["change", "cut", "insert"])):
        case "change":
            payload[at] = data.draw(st.integers(0, 255))
        case "cut":
            del payload[at:]
        case _:
            payload[at:at] = data.draw(st.binary(min_size=1, max_size=5))
    decodes_or_says_why(bytes(payload), format)


@pytest.mark.requirement("R23")
@pytest.mark.parametrize(
    "payload,format",
    [
        (b"[" * 65_536, Format.JSON),
        (b'{"op":"ack","ids":[' + b"[]," * 20_000 + b"[]]}", Format.JSON),
        (b'{"op":"send","type":"a","ref":1,"data":' + b'{"a":' * 9000 + b"1" + b"}" * 9000 + b"}", Format.JSON),
        (b"\xdd\x00\x00\xf0\x00" * 500 + bytes(62_000), Format.MSGPACK),
        (b"\xdf\x00\x00\xff\xff" * 13_000, Format.MSGPACK),
        (b"\xc6\xff\xff\xff\xff", Format.MSGPACK),
        (b"\x91" * 65_536, Format.MSGPACK),
    ],
    ids=["open lists", "many lists", "deep data", "long lists in lists", "long maps", "long bytes", "deep lists"],
)
def test_a_hostile_frame_of_the_largest_size_leaves_nothing_behind(payload: bytes, format: Format) -> None:
    tracemalloc.start()
    try:
        for _ in range(3):
            with pytest.raises(EventBusError):
                decode_client(payload, format)
        left_bytes, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert left_bytes < 100_000
    assert peak_bytes < 16 * 1024 * 1024


@given(given_events=st.lists(events, max_size=6), delivery=from_one, format=formats, most=st.integers(50, 3000))
def test_spliced_events_read_back_however_they_are_split(
    given_events: list[Event], delivery: int, format: Format, most: int
) -> None:
    bodies = bodies_of(given_events, format)
    items = [event_item(EntryId(f"{place}-0"), delivery, body, format) for place, body in enumerate(bodies)]
    seen: list[Delivered] = []
    for part in split_items(items, most):
        payload = events_payload(part, format)
        assert len(payload) <= most or len(part) == 1
        frame = decode_server(payload, format)
        assert isinstance(frame, Events)
        assert encode_server(frame, format) == payload
        seen.extend(frame.events)
    assert [item.event for item in seen] == given_events
    assert [item.id for item in seen] == [f"{place}-0" for place in range(len(given_events))]
