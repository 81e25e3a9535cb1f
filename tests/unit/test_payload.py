"""An event as a node holds it: encoded once for each format, cut into frames of bounded size."""

from __future__ import annotations

from typing import Any

import msgpack
import orjson
import pytest

from eventbus.event import peek
from eventbus.ids import EntryId
from eventbus.moves import Sending
from eventbus.wire import MAX_ITEMS_BYTES, Events, Format, decode_server
from gateway.transport.payload import Payload, event_frames
from tests.support.raw_websocket import BINARY, TEXT, split_server_frames


def payload_of(number: int = 1, **data: Any) -> Payload:
    event = {"v": 1, "id": f"e{number}", "type": "note", "user": "alice", "time_ms": 5, "data": {"n": number, **data}}
    body = msgpack.packb(event)
    assert isinstance(body, bytes)
    return Payload(EntryId(f"{number}-0"), body, peek(body))


@pytest.mark.parametrize("format, opcode", [(Format.JSON, TEXT), (Format.MSGPACK, BINARY)])
@pytest.mark.parametrize("deliveries", [[1], [2], [1, 1, 1], [1, 7, 1]])
def test_frames_say_what_the_protocol_says(format: Format, opcode: int, deliveries: list[int]) -> None:
    events = [
        Sending(EntryId(f"{number}-0"), delivery, payload_of(number, text="Grüße \u2028"))
        for number, delivery in enumerate(deliveries, 1)
    ]
    ((found, data),) = split_server_frames(b"".join(event_frames(events, format)))
    assert found == opcode
    frame = decode_server(data, format)
    assert isinstance(frame, Events)
    assert [(item.id, item.delivery) for item in frame.events] == [(event.id, event.delivery) for event in events]
    assert [item.event.data["n"] for item in frame.events] == list(range(1, len(deliveries) + 1))


def test_a_first_delivery_alone_is_built_once_a_format_and_shared() -> None:
    payload = payload_of()
    events = [Sending(EntryId("1-0"), 1, payload)]
    for each in Format:
        assert event_frames(events, each)[0] is event_frames(events, each)[0]
    assert event_frames(events, Format.JSON) != event_frames(events, Format.MSGPACK)
    again = [Sending(EntryId("1-0"), 2, payload)]
    assert orjson.loads(split_server_frames(event_frames(again, Format.JSON)[0])[0][1])["events"][0]["delivery"] == 2


@pytest.mark.requirement("R9")
@pytest.mark.parametrize("format", Format)
def test_a_frame_is_at_most_a_mebibyte_unless_a_single_event_is_more(format: Format) -> None:
    events = [Sending(EntryId(f"{n}-0"), 1, payload_of(n, text="x" * 100_000)) for n in range(1, 31)]
    frames = event_frames(events, format)
    assert max(len(frame) for frame in frames) <= MAX_ITEMS_BYTES + 10
    ids = [
        item.id
        for frame in frames
        for _, data in split_server_frames(frame)
        for item in decode_server(data, format).events  # type: ignore[union-attr]
    ]
    assert ids == [event.id for event in events]
    large = Sending(EntryId("1-0"), 3, payload_of(text="x" * 2_000_000))
    assert len(event_frames([large, large], format)) == 2


def test_what_a_payload_costs_grows_with_its_body() -> None:
    small, large = payload_of(), payload_of(text="x" * 10_000)
    assert large.size_bytes - small.size_bytes >= 20_000
    assert small.size_bytes > 2 * len(small.body)
