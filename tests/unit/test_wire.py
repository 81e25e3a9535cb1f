"""The wire protocol: every frame in both formats, what is refused, and the prebuilt path of events.

The vectors in `tests/vectors` are fixed by hand and no test writes them: clients in other languages test against them.
"""

from __future__ import annotations

import dataclasses
import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgpack
import orjson
import pytest

from eventbus.errors import BadFrame, CloseCode, InvalidUtf8, UnknownOp
from eventbus.event import Deliver, Event, Level, Require, decode_envelope, encode_envelope, envelope_json, peek
from eventbus.ids import (
    ConnectionId,
    EntryId,
    Epoch,
    EventId,
    NodeName,
    RunId,
    SessionId,
    ThreadId,
    UserId,
)
from eventbus.wire import (
    MAX_FRAME_IDS,
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

VECTORS = Path(__file__).parents[1] / "vectors"
FRAMES: dict[str, Any] = json.loads((VECTORS / "frames.json").read_text())
BAD_FRAMES: list[dict[str, Any]] = json.loads((VECTORS / "bad_frames.json").read_text())["frames"]
EVENTS: list[dict[str, str]] = json.loads((VECTORS / "events.json").read_text())["events"]

T = 1_732_190_000_000
A, B = EntryId(f"{T}-0"), EntryId(f"{T + 1}-12")
TOKEN = "eyJ0.eyJ1.c2ln"
SESSION = SessionId("tab-1_A")
RUN, THREAD = RunId("run_1"), ThreadId("thread_1")
ANN = UserId("ann@example.org")

LEAST = Event(
    id=EventId("019ab3c1-1111-7222-8333-123456789abc"),
    type="agent_thinking",
    user=ANN,
    time_ms=T,
    data={"text": "caf\u00e9 \U0001f600"},
)
WHOLE = Event(
    id=EventId("order.7:paid"),
    type="note.added",
    user=ANN,
    thread=THREAD,
    run=RUN,
    seq=3,
    time_ms=T,
    data={"z": 1, "a": [None, True, 1.5, -3, {"b": ""}], "big": 2**53},
    require=Require(level=Level.DISPLAYED, within_ms=5000),
    deliver=Deliver.ANY,
    expires_ms=T + 60_000,
    trace="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
)
LATER = Event(
    id=EventId("e1"),
    type="note",
    user=UserId("ann"),
    time_ms=T,
    data={},
    v=2,
    extra={"priority": 3, "labels": ["x"]},
)
EVENT_OF = {"least": LEAST, "whole": WHOLE, "of-a-later-version": LATER}

CLIENT: dict[str, ClientFrame] = {
    "hello-least": Hello(),
    "hello-whole": Hello(
        token=TOKEN,
        session=SESSION,
        start=Start.CURSOR,
        cursor=A,
        epoch=Epoch("k3v9"),
        window=1024,
        filter=Filter(
            types=frozenset({"note.added", "agent_thinking"}), threads=frozenset({THREAD}), runs=frozenset({RUN})
        ),
    ),
    "hello-filter-of-nothing": Hello(start=Start.EARLIEST, filter=Filter(types=frozenset())),
    "ack-one": Ack(ids=(A,)),
    "ack-many": Ack(ids=(A, B), ref="r1"),
    "ack-none": Ack(ids=()),
    "ack-upto": Ack(upto=B, ref=7),
    "ack-confirmed": Ack(ids=(A,), level=Level.CONFIRMED, note="read aloud \u2713"),
    "ack-displayed": Ack(ids=(A,), level=Level.DISPLAYED),
    "nack-least": Nack(id=A),
    "nack-whole": Nack(id=A, reason="database away", delay_ms=3_600_000),
    "refresh": Refresh(token=TOKEN),
    "send-least": Send(type="cancel", data={}, ref="c-1"),
    "send-whole": Send(type="answer", data={"text": "yes", "parts": [1, 2]}, ref=-1, run=RUN, thread=THREAD),
    "filter-cleared": SetFilter(filter=Filter()),
    "filter-set": SetFilter(filter=Filter(runs=frozenset({"run_2", "run_1"})), ref="f1"),
    "working": Working(ids=(A, B)),
    "ping-least": Ping(),
    "ping-ref": Ping(ref="p1"),
}

SERVER: dict[str, ServerFrame] = {
    "welcome": Welcome(
        protocol=1,
        node=NodeName("node-1"),
        connection=ConnectionId("00112233445566778899aabbccddeeff"),
        session=SESSION,
        resumed=True,
        cursor=A,
        pending=3,
        window=256,
        heartbeat_ms=20_000,
        ack_timeout_ms=30_000,
        max_frame_bytes=65_536,
        token_expires_ms=T + 3_600_000,
        epoch=Epoch("k3v9"),
    ),
    "events-none": Events(events=()),
    "events-one": Events(events=(Delivered(id=A, delivery=1, event=LEAST),)),
    "events-two": Events(events=(Delivered(id=A, delivery=3, event=WHOLE), Delivered(id=B, delivery=1, event=LEAST))),
    "events-unknown-fields": Events(events=(Delivered(id=A, delivery=300, event=LATER),)),
    "caught-up": CaughtUp(cursor=EntryId("0-0")),
    "gap-least": Gap(reason=GapReason.RESET),
    "gap-whole": Gap(reason=GapReason.TRIMMED, after=A, before=B, count=42),
    "acked": Acked(ref="r1", count=2),
    "sent": Sent(ref="c-1", id=A),
    "released": Released(ids=(A,)),
    "filtered-least": Filtered(),
    "filtered-ref": Filtered(ref="f1"),
    "dropped": Dropped(ids=(A, B), reason=DropReason.DEAD_LETTERED),
    "text-part": Text(run=RUN, stream="answer", offset=17, text="and so"),
    "text-final": Text(run=RUN, stream="answer", offset=0, text="", final=True),
    "refreshed": Refreshed(token_expires_ms=T + 3_600_000),
    "pong-least": Pong(),
    "pong-ref": Pong(ref=0),
    "goaway": GoAway(reason=GoAwayReason.DRAINING, reconnect_after_ms=1500),
    "error-least": ErrorFrame(code="bad_frame", message="ids: must be a list, not str"),
    "error-ref": ErrorFrame(code="unknown_op", message="the op 'x' is unknown", ref="r1"),
}


def payload(vector: dict[str, str], format: Format) -> bytes:
    return vector["json"].encode() if format is Format.JSON else bytes.fromhex(vector["msgpack"])


def named(vectors: list[dict[str, Any]]) -> list[Any]:
    return [pytest.param(vector, id=vector["name"]) for vector in vectors]


def json_frame(**fields: object) -> bytes:
    return orjson.dumps(fields)


# --- the vectors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", Format)
@pytest.mark.parametrize("vector", named(FRAMES["client"]))
def test_a_frame_of_a_client_is_written_and_read_as_the_vector_says(vector: dict[str, str], format: Format) -> None:
    frame = CLIENT[vector["name"]]
    assert encode_client(frame, format) == payload(vector, format)
    assert decode_client(payload(vector, format), format) == frame


@pytest.mark.parametrize("format", Format)
@pytest.mark.parametrize("vector", named(FRAMES["server"]))
def test_a_frame_of_a_node_is_written_and_read_as_the_vector_says(vector: dict[str, str], format: Format) -> None:
    frame = SERVER[vector["name"]]
    assert encode_server(frame, format) == payload(vector, format)
    assert decode_server(payload(vector, format), format) == frame


def test_every_frame_has_a_vector() -> None:
    assert [vector["name"] for vector in FRAMES["client"]] == list(CLIENT)
    assert [vector["name"] for vector in FRAMES["server"]] == list(SERVER)
    assert {type(frame) for frame in CLIENT.values()} == set(ClientFrame.__args__)
    assert {type(frame) for frame in SERVER.values()} == set(ServerFrame.__args__)


@pytest.mark.parametrize("vector", named(EVENTS))
def test_an_event_is_written_and_read_as_the_vector_says(vector: dict[str, str]) -> None:
    event = EVENT_OF[vector["name"]]
    body = bytes.fromhex(vector["msgpack"])
    assert encode_envelope(event) == body
    assert decode_envelope(body) == event
    assert envelope_json(body) == vector["json"].encode()


@pytest.mark.requirement("R23")
@pytest.mark.parametrize("vector", named(BAD_FRAMES))
def test_a_bad_frame_is_refused_as_the_vector_says(vector: dict[str, Any]) -> None:
    formats = {Format.JSON: vector.get("json_hex"), Format.MSGPACK: vector.get("msgpack")}
    for wire_format, text in formats.items():
        if text is None:
            continue
        with pytest.raises((BadFrame, UnknownOp)) as caught:
            decode_client(bytes.fromhex(text), wire_format)
        error = caught.value
        assert error.code == vector["code"]
        assert error.close_code == vector["close"]
        assert getattr(error, "field", None) == vector.get("field")
        assert getattr(error, "ref", None) == vector.get("ref")


def documented(heading: str) -> dict[str, list[str]]:
    """The table of frames under a heading of the page of the protocol: the fields of each op, `?` where optional."""
    page = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text(encoding="utf-8")
    section = page.split(f"## {heading}\n")[1].split("\n### ")[0].split("\n## ")[0]
    rows = [line.split("|") for line in section.splitlines() if line.startswith("| `")]
    fields = {row[1].strip(" `"): re.sub(r"\([^)]*\)", "", row[2]).split(":")[0] for row in rows}
    return {op: re.findall(r"`([a-z_]+\??)`", text) for op, text in fields.items()}


def fields_of(frames: dict[str, Any]) -> dict[str, list[str]]:
    def optional(field: dataclasses.Field[Any]) -> str:
        return "" if field.default is dataclasses.MISSING else "?"

    return {
        frame.op: [field.name + optional(field) for field in dataclasses.fields(frame)] for frame in frames.values()
    }


def test_the_page_of_the_protocol_names_every_frame_with_its_fields_in_order() -> None:
    clients = fields_of(CLIENT)
    # Exactly one of these two, which no mark tells.
    clients["ack"][:2] = ["ids", "upto"]
    assert documented("2. Client frames") == clients
    assert documented("3. Server frames") == fields_of(SERVER)


def test_the_page_of_the_protocol_names_every_close_code() -> None:
    page = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text(encoding="utf-8")
    table = page.split("## 5. Close codes\n")[1].split("\n## ")[0]
    assert sorted(map(int, re.findall(r"\| (4\d\d\d) \|", table))) == [code for code in CloseCode if code >= 4000]


# --- reading what clients send ----------------------------------------------------------------------------------------


def test_formats_are_named_by_their_subprotocols() -> None:
    assert Format("eventbus.v1.json") is Format.JSON
    assert Format("eventbus.v1.msgpack") is Format.MSGPACK
    assert Format.JSON.subprotocol == "eventbus.v1.json"


def test_unknown_fields_of_a_frame_are_ignored() -> None:
    assert decode_client(json_frame(op="ping", ref="p", mood="good"), Format.JSON) == Ping(ref="p")
    assert decode_client(json_frame(op="ack", ids=[A], mood=None), Format.JSON) == Ack(ids=(A,))
    assert decode_client(json_frame(op="hello", filter={"users": ["x"]}), Format.JSON) == Hello(filter=Filter())
    assert decode_server(json_frame(op="pong", at=1), Format.JSON) == Pong()


def test_blanks_and_the_order_of_keys_do_not_matter() -> None:
    assert decode_client(b' { "ref" : 1 , "op" : "ping" } ', Format.JSON) == Ping(ref=1)
    assert decode_client(json_frame(ids=[A], op="ack"), Format.JSON) == Ack(ids=(A,))


def test_of_a_key_that_comes_twice_the_last_one_counts() -> None:
    assert decode_client(b'{"op":"ping","ref":"a","ref":"b"}', Format.JSON) == Ping(ref="b")


def test_an_ack_may_name_as_many_entries_as_a_frame_of_the_default_size_holds_and_more() -> None:
    ids = [EntryId(f"{number}-0") for number in range(1, MAX_FRAME_IDS + 1)]
    assert decode_client(json_frame(op="ack", ids=ids), Format.JSON) == Ack(ids=tuple(ids))
    assert len(json_frame(op="ack", ids=[A] * MAX_FRAME_IDS)) > 65_536
    for op in ("ack", "working"):
        with pytest.raises(BadFrame, match="ids: has 4097 items, and 4096 are allowed"):
            decode_client(json_frame(op=op, ids=[*ids, A]), Format.JSON)


def test_the_largest_entry_id_is_taken() -> None:
    entry = "18446744073709551615-18446744073709551615"
    assert decode_client(json_frame(op="ack", ids=[entry]), Format.JSON) == Ack(ids=(EntryId(entry),))


def test_an_integer_of_json_too_large_for_64_bits_is_no_integer() -> None:
    for digits in (b"18446744073709551616", b"1" * 400):
        with pytest.raises(BadFrame):
            decode_client(b'{"op":"nack","id":"1-0","delay_ms":' + digits + b"}", Format.JSON)


def test_bytes_of_messagepack_are_no_string() -> None:
    for frame in ({"op": b"ping"}, {"op": "ping", "ref": b"x"}, {"op": "ack", "ids": [b"1-0"]}):
        with pytest.raises(BadFrame):
            decode_client(msgpack.packb(frame), Format.MSGPACK)


def test_text_that_is_not_utf8_is_told_from_a_bad_frame() -> None:
    with pytest.raises(InvalidUtf8, match="at byte 7"):
        decode_client(b'{"op":"\xff"}', Format.JSON)


def test_the_ref_of_an_unknown_op_is_kept_for_the_answer() -> None:
    with pytest.raises(UnknownOp) as caught:
        decode_client(json_frame(op="x" * 500, ref=7), Format.JSON)
    assert caught.value.ref == 7
    assert len(str(caught.value)) < 100


# --- reading what nodes send ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields,field",
    [
        ({"op": "events"}, "events"),
        ({"op": "events", "events": {}}, "events"),
        ({"op": "events", "events": [7]}, "events[0]"),
        ({"op": "events", "events": [{"delivery": 1, "event": {}}]}, "events[0].id"),
        ({"op": "events", "events": [{"id": A, "event": {}}]}, "events[0].delivery"),
        ({"op": "events", "events": [{"id": A, "delivery": 1}]}, "events[0].event"),
        ({"op": "events", "events": [{"id": A, "delivery": 1, "event": {}}]}, "events[0].event.id"),
        ({"op": "events", "events": [{"id": A, "delivery": 1, "event": []}]}, "events[0].event"),
        ({"op": "caught_up", "cursor": "end"}, "cursor"),
        ({"op": "gap", "reason": "bored"}, "reason"),
        ({"op": "released", "ids": ["x"]}, "ids"),
        ({"op": "text", "run": "run_1", "stream": "a", "offset": -1, "text": ""}, "offset"),
        ({"op": "text", "run": "run_1", "stream": "a", "offset": 0, "text": "", "final": 1}, "final"),
        ({"op": "acked", "count": 1}, "ref"),
    ],
)
def test_a_bad_frame_of_a_node_is_refused(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(BadFrame) as caught:
        decode_server(orjson.dumps(fields), Format.JSON)
    assert caught.value.field == field


def test_a_bad_event_is_named_by_its_place_in_the_frame() -> None:
    good = {"id": A, "delivery": 1, "event": orjson.loads(EVENTS[0]["json"])}
    for changed, field in (
        ({"id": "x"}, "events[1].id"),
        ({"delivery": 0}, "events[1].delivery"),
        ({"event": {**good["event"], "user": ""}}, "events[1].event.user"),
        ({"event": "none"}, "events[1].event"),
    ):
        with pytest.raises(BadFrame) as caught:
            decode_server(json_frame(op="events", events=[good, {**good, **changed}]), Format.JSON)
        assert caught.value.field == field


def test_a_frame_of_a_later_version_is_told_from_a_bad_one() -> None:
    with pytest.raises(UnknownOp):
        decode_server(json_frame(op="weather"), Format.JSON)


# --- filters ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wanted,matches",
    [
        (Filter(), True),
        (Filter(types=frozenset({"note", "other"})), True),
        (Filter(types=frozenset({"other"})), False),
        (Filter(types=frozenset()), False),
        (Filter(threads=frozenset({"t1"})), True),
        (Filter(threads=frozenset({"t2"})), False),
        (Filter(types=frozenset({"note"}), threads=frozenset({"t2"})), False),
        (Filter(types=frozenset({"note"}), threads=frozenset({"t1", "t2"})), True),
        (Filter(runs=frozenset({"r1"})), False),
    ],
)
def test_a_filter_wants_one_of_each_list(wanted: Filter, matches: bool) -> None:
    # An event of the type `note` in the thread `t1` and in no run.
    assert wanted.matches("note", "t1", None) is matches


# --- events, prebuilt -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 2, 15, 16, 65_535, 65_536])
@pytest.mark.parametrize("format", Format)
def test_spliced_events_are_the_frame_that_the_encoder_would_write(format: Format, count: int) -> None:
    body = encode_envelope(LATER)
    encoded = peek(body).json if format is Format.JSON else body
    item = event_item(A, 1, encoded, format)
    plain = {"id": A, "delivery": 1, "event": orjson.loads(envelope_json(body))}
    frame = {"op": "events", "events": [plain] * count}
    expected = orjson.dumps(frame) if format is Format.JSON else msgpack.packb(frame)
    assert events_payload([item] * count, format) == expected


@pytest.mark.parametrize("delivery", [1, 127, 128, 255, 256, 70_000])
@pytest.mark.parametrize("entry", ["0-0", str(A), "18446744073709551615-18446744073709551615"])
@pytest.mark.parametrize("format", Format)
def test_a_spliced_event_reads_back(format: Format, entry: str, delivery: int) -> None:
    body = encode_envelope(WHOLE)
    encoded = peek(body).json if format is Format.JSON else body
    frame = decode_server(events_payload([event_item(EntryId(entry), delivery, encoded, format)], format), format)
    assert frame == Events(events=(Delivered(id=EntryId(entry), delivery=delivery, event=WHOLE),))


@pytest.mark.requirement("R9")
def test_items_are_split_so_that_each_frame_has_at_most_the_bytes_that_were_asked_for() -> None:
    body = encode_envelope(LEAST)
    items = [event_item(EntryId(f"{T + number}-0"), 1, peek(body).json, Format.JSON) for number in range(100)]
    parts = split_items(items, 1000)
    assert [item for part in parts for item in part] == items
    frames = [events_payload(part, Format.JSON) for part in parts]
    assert max(len(frame) for frame in frames) <= 1000
    # Each but the last is full: its neighbour's first item would not have fitted.
    for part, after in pairwise(parts):
        assert len(events_payload([*part, after[0]], Format.JSON)) > 1000


def test_an_item_larger_than_a_frame_goes_alone() -> None:
    assert split_items([b"a", b"b" * 5000, b"c", b"d"], 100) == [[b"a"], [b"b" * 5000], [b"c", b"d"]]
    assert split_items([b"b" * 5000, b"c"], 100) == [[b"b" * 5000], [b"c"]]


def test_few_items_are_one_frame_and_none_are_no_frame() -> None:
    assert split_items([b"a", b"b"]) == [[b"a", b"b"]]
    assert split_items([]) == []


def test_a_frame_of_the_largest_size_is_a_mebibyte() -> None:
    item = b"x" * 1000
    parts = split_items([item] * 3000)
    assert [len(events_payload(part, Format.JSON)) <= 1 << 20 for part in parts] == [True] * 3
