"""How what a session says becomes bytes: WebSocket frames in two formats, or messages of Server-Sent Events. Pure.

An SSE message carries one JSON object in one line. `event:` is the frame's op, `id:` the entry id; an `events` frame of
many becomes a message for each entry, so that the `Last-Event-ID` of a client is exact.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Protocol

import orjson

from eventbus import wire
from eventbus.ids import EntryId
from eventbus.moves import Sending
from gateway.transport.handshake import Subprotocol
from gateway.transport.outbox import binary_frame, text_frame
from gateway.transport.payload import event_frames

__all__ = ["COMMENT", "SOCKET", "SSE", "Framing", "close_message", "is_ended", "message"]

COMMENT: Final = b":\n\n"
"""What keeps a quiet response alive: clients ignore it."""

RETRY_MIN_MS: Final = 500
RETRY_SPREAD_MS: Final = 1_000

_ENDED: Final = "close-"


class Framing(Protocol):
    """The bytes of one kind of connection."""

    def frame(self, frame: wire.ServerFrame) -> bytes:
        """A frame that is not `events`."""

    def events(self, events: Sequence[Sending]) -> list[bytes]:
        """Events in their order, in as few pieces as the kind allows."""


class SocketFraming:
    """WebSocket frames.

    Args:
        format: how they are encoded.
    """

    __slots__ = ("format",)

    def __init__(self, format: wire.Format) -> None:
        self.format = format

    def frame(self, frame: wire.ServerFrame) -> bytes:
        """One whole frame."""
        payload = wire.encode_server(frame, self.format)
        return text_frame(payload) if self.format is wire.Format.JSON else binary_frame(payload)

    def events(self, events: Sequence[Sending]) -> list[bytes]:
        """Frames of at most 1 MiB, unless a single event is more."""
        return event_frames(events, self.format)


class SseFraming:
    """Messages of Server-Sent Events. Source: docs/protocol.md, section 9; WHATWG HTML, section 9.2."""

    __slots__ = ()

    def frame(self, frame: wire.ServerFrame) -> bytes:
        """One message without an id."""
        retry_ms = None
        if isinstance(frame, wire.GoAway):
            retry_ms = frame.reconnect_after_ms
        elif isinstance(frame, wire.Welcome):
            # Also undoes what a `goaway` said before: a browser keeps the last one.
            retry_ms = RETRY_MIN_MS + int(frame.connection[:6], 16) % RETRY_SPREAD_MS
        return message(frame.op, wire.encode_server(frame, wire.Format.JSON), retry_ms=retry_ms)

    def events(self, events: Sequence[Sending]) -> list[bytes]:
        """A message for each event."""
        return [_event_message(event) for event in events]


SSE: Final[Framing] = SseFraming()
SOCKET: Final[Mapping[Subprotocol, Framing]] = {
    Subprotocol.JSON: SocketFraming(wire.Format.JSON),
    Subprotocol.MSGPACK: SocketFraming(wire.Format.MSGPACK),
}


def _event_message(event: Sending) -> bytes:
    item = event.payload.item(event.delivery, wire.Format.JSON)
    return message("events", wire.events_payload([item], wire.Format.JSON), id=event.id)


def message(event: str, data: bytes, *, id: EntryId | str | None = None, retry_ms: int | None = None) -> bytes:
    """One message.

    Args:
        event: its type.
        data: JSON, so without a line break.
        id: what the client says as `Last-Event-ID` when it comes back; None leaves that as it was.
        retry_ms: how long the client is to wait before it comes back, from now on.
    """
    retry = b"" if retry_ms is None else b"retry: %d\n" % retry_ms
    name = b"" if id is None else b"id: %b\n" % id.encode()
    return b"%bevent: %b\n%bdata: %b\n\n" % (retry, event.encode(), name, data)


def close_message(code: int, reason: str, *, retry_ms: int | None = None) -> bytes:
    """The last message of a response: what a close frame is for a socket.

    A browser comes back by itself, whatever the code. After a code that says not to, its `Last-Event-ID` says so, and
    `is_ended` finds it on whichever node it comes to.

    Args:
        code: 4000 to 4999.
        reason: short text.
        retry_ms: how long the client is to wait before it comes back.
    """
    ended = f"{_ENDED}{code}" if code >= 4500 else None
    return message("close", orjson.dumps({"code": code, "reason": reason}), id=ended, retry_ms=retry_ms)


def is_ended(last_event_id: str | None) -> bool:
    """Whether a client comes back that was told not to; it is answered 204, at which a browser stops."""
    return last_event_id is not None and last_event_id.startswith(_ENDED)
