"""The spans of the deliveries that a node has open: begun when an event is sent, ended by the ack that is stored."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from eventbus.ids import ConnectionId, EntryId, NodeName, SessionId, UserId
from eventbus.moves import Sending
from eventbus.tracing import DeliverySpan, Outcome, Tracing

__all__ = ["SPANS_MAX", "DeliverySpans"]

SPANS_MAX: Final = 20_000
"""Deliveries that are recorded at once; what is sent beyond is delivered and not recorded."""


class DeliverySpans:
    """Args:
        tracing: what records them.
        node: this node.
        spans_max: how many may be open at once.

    Attributes:
        left_out: how many deliveries were not recorded for want of room.
    """

    def __init__(self, tracing: Tracing, node: NodeName, *, spans_max: int = SPANS_MAX) -> None:
        self._tracing = tracing
        self._node = node
        self._spans_max = spans_max
        self._open: dict[ConnectionId, dict[EntryId, DeliverySpan]] = {}
        self._count = 0
        self.left_out = 0

    def __len__(self) -> int:
        return self._count

    def sent(self, connection: ConnectionId, user: UserId, session: SessionId, events: Sequence[Sending]) -> None:
        """Events were written to the socket of a connection."""
        spans = self._open.get(connection)
        for event in events:
            span = spans.get(event.id) if spans else None
            if span is None:
                if event.payload.head.trace is None:
                    continue
                if self._count >= self._spans_max:
                    self.left_out += 1
                    continue
                span = self._tracing.delivering(event.payload.head, user, session, self._node)
                if span is None:
                    continue
                if spans is None:
                    spans = self._open.setdefault(connection, {})
                spans[event.id] = span
                self._count += 1
            span.sent(event.delivery)

    def ended(self, connection: ConnectionId, entries: Iterable[EntryId], outcome: Outcome) -> None:
        """Deliveries of a connection ended; those that are not recorded are nothing to it."""
        spans = self._open.get(connection)
        if spans is None:
            return
        for entry in entries:
            if (span := spans.pop(entry, None)) is not None:
                self._count -= 1
                span.ended(outcome)
        if not spans:
            del self._open[connection]

    def left(self, connection: ConnectionId) -> None:
        """A connection is over."""
        for span in (spans := self._open.pop(connection, {})).values():
            span.ended(Outcome.LEFT)
        self._count -= len(spans)
