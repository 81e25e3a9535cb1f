"""An event as a node holds it: read once, encoded once for each wire format, shared by all sessions of its user.
Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Final

from eventbus.errors import InvalidEvent
from eventbus.event import Deliver, EventHead, peek
from eventbus.ids import EntryId, UserId
from eventbus.moves import Sending
from eventbus.store import EntryFacts
from eventbus.wire import Format, event_item, events_payload, split_items
from gateway.transport.outbox import binary_frame, text_frame

__all__ = ["Payload", "event_frames", "facts_of", "payload_of"]

OVERHEAD_BYTES: Final = 1_200
"""What a held event costs beside its body, its JSON and its frame: the objects around them, as measured."""


class Payload:
    """One stored event.

    Args:
        entry: its entry id.
        body: the envelope as MessagePack, as it stands in the stream.
        head: what routes, filters and expires it.
    """

    __slots__ = ("_frames", "body", "entry", "head")

    def __init__(self, entry: EntryId, body: bytes, head: EventHead) -> None:
        self.entry = entry
        self.body = body
        self.head = head
        self._frames: dict[Format, bytes] = {}

    @property
    def size_bytes(self) -> int:
        """What holding it costs, about."""
        return 3 * len(self.body) + OVERHEAD_BYTES

    @property
    def is_shared(self) -> bool:
        """Whether it is for any session of its user."""
        return self.head.deliver is Deliver.ANY

    def item(self, delivery: int, wire: Format) -> bytes:
        """The `{id, delivery, event}` of an `events` frame."""
        return event_item(self.entry, delivery, self.head.json if wire is Format.JSON else self.body, wire)

    def first_frame(self, wire: Format) -> bytes:
        """The whole WebSocket frame of its first delivery alone, built once."""
        frame = self._frames.get(wire)
        if frame is None:
            frame = _framed(events_payload([self.item(1, wire)], wire), wire)
            self._frames[wire] = frame
        return frame


@lru_cache(4096)
def _facts(type: str, shared: bool, demanded: bool) -> EntryFacts:
    """One object for all events alike: so many are acked that making one for each would be seen."""
    return EntryFacts(type, shared, demanded)


def facts_of(payloads: Sequence[object]) -> list[EntryFacts | None]:
    """What an ack has to know of these; None for what is no payload."""
    return [
        _facts(payload.head.type, payload.is_shared, payload.head.demanded) if isinstance(payload, Payload) else None
        for payload in payloads
    ]


def payload_of(user: UserId, entry: EntryId, body: bytes) -> Payload | str:
    """The payload of an entry, or why it can not be sent: somebody else wrote into the stream."""
    try:
        head = peek(body)
    except InvalidEvent as error:
        return f"undecodable: {error}"
    if head.user != user:
        return "misplaced: the event names another user than its stream"
    return Payload(entry, body, head)


def event_frames(events: Sequence[Sending], wire: Format) -> list[bytes]:
    """The WebSocket frames that carry these events, in order; none above 1 MiB unless a single event is."""
    if len(events) == 1 and events[0].delivery == 1:
        return [events[0].payload.first_frame(wire)]
    items = [event.payload.item(event.delivery, wire) for event in events]
    return [_framed(events_payload(part, wire), wire) for part in split_items(items)]


def _framed(payload: bytes, wire: Format) -> bytes:
    return text_frame(payload) if wire is Format.JSON else binary_frame(payload)
