"""What lies between a subscriber's socket and its application: each event once and in order. Pure.

The node keeps the window, so what is held is bounded by it. What came before a connection ended stays queued, and what
the node sends again of it is merged by event id.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from eventbus.client.state import CursorTracker, SeenEvents
from eventbus.event import Event
from eventbus.frames import Delivered, Gap
from eventbus.ids import EntryId, EventId, entry_order
from eventbus.store import GapReason

__all__ = ["CaughtUpMark", "Inbox", "Item", "Phase", "Turn"]

SPARE: Final = 16
"""Queued turns beside the events: gaps, and the marks of caught-up connections."""


class Phase(Enum):
    """Where an event stands on its way through the application."""

    QUEUED = auto()
    IN_HAND = auto()
    WITHDRAWN = auto()
    SETTLED = auto()


@dataclass(slots=True, kw_only=True, eq=False)
class Item:
    """One event that is held.

    Attributes:
        event: the event.
        entry: its entry id, as last delivered.
        delivery: its delivery count, as last delivered.
        entries: all entry ids under which it came.
        renewed_ms: when it came, or the node was last told that the handler is still at it.
        here: it was delivered on the connection that stands.
        phase: where it stands.
    """

    event: Event
    entry: EntryId
    delivery: int
    entries: set[EntryId]
    renewed_ms: int
    here: bool = True
    phase: Phase = Phase.QUEUED


@dataclass(frozen=True, slots=True)
class CaughtUpMark:
    """Everything before it was stored when the connection with this number opened."""

    connection: int


Turn = Item | Gap | CaughtUpMark
"""What the application's side takes, one after the other."""


class Inbox:
    """The queue, the events that are held, those that were handled lately, and the cursor.

    Args:
        cursor: where the application says that it stands.
    """

    def __init__(self, cursor: EntryId | None) -> None:
        self.tracker = CursorTracker(cursor)
        self._queue: deque[Turn] = deque()
        self._held: dict[EventId, Item] = {}
        self._seen = SeenEvents()

    @property
    def held(self) -> int:
        """Events queued or in hand."""
        return len(self._held)

    def is_full(self, window: int) -> bool:
        """Whether more is queued than a node that keeps the window can send, even after a rollback."""
        return len(self._queue) >= 2 * window + SPARE

    # --- from the node ------------------------------------------------------------------------------------------------

    def arrived(self, entries: Iterable[Delivered], now_ms: int) -> list[EntryId]:
        """Takes what was delivered.

        Returns:
            Entry ids of duplicates: an ack was lost, or an event was stored twice. They are acked again.
        """
        return [item.id for item in entries if self._is_duplicate(item, now_ms)]

    def _is_duplicate(self, delivered: Delivered, now_ms: int) -> bool:
        event, entry = delivered.event, delivered.id
        if event.id in self._seen:
            self.tracker.done(entry)
            self.tracker.passed(entry)
            return True
        self.tracker.arrived(entry)
        held = self._held.get(event.id)
        if held is not None:
            held.entries.add(entry)
            held.entry, held.delivery, held.renewed_ms, held.here = entry, delivered.delivery, now_ms, True
            return False
        item = Item(
            event=event, entry=entry, delivery=delivered.delivery, entries={entry}, renewed_ms=now_ms, here=True
        )
        self._held[event.id] = item
        self._queue.append(item)
        return False

    def gap(self, gap: Gap) -> None:
        """Events that will never come: the application hears of it after those before it."""
        if gap.reason is GapReason.RESET:
            self.tracker.rebase(None)
        elif gap.reason is GapReason.ROLLBACK:
            cursor = self.tracker.cursor
            survives = gap.after is not None and cursor is not None and entry_order(gap.after) < entry_order(cursor)
            self.tracker.rebase(gap.after if survives else None)
        self._queue.append(gap)

    def caught_up(self, cursor: EntryId, connection: int) -> None:
        """All that was stored when the connection opened has been sent."""
        self.tracker.passed(cursor)
        # One mark is enough: it is the last connection's that counts.
        for turn in self._queue:
            if isinstance(turn, CaughtUpMark):
                self._queue.remove(turn)
                break
        self._queue.append(CaughtUpMark(connection))

    def withdrawn(self, entries: Collection[EntryId]) -> None:
        """These will not come again: what is queued of them is not handed over any more."""
        for entry in entries:
            self.tracker.done(entry)
        gone = set(entries)
        for event, item in list(self._held.items()):
            if item.phase is Phase.QUEUED and item.entry in gone:
                item.phase = Phase.WITHDRAWN
                del self._held[event]

    def disconnected(self) -> None:
        """The connection ended; what is held stays."""
        self.tracker.rewind(entry for item in self._held.values() for entry in item.entries)
        for item in self._held.values():
            item.here = False

    def overdue(self, age_ms: int, now_ms: int) -> tuple[EntryId, ...]:
        """Entries held for `age_ms` since they came or were last named here: the node is to go on waiting for them."""
        late = [item for item in self._held.values() if item.here and now_ms - item.renewed_ms >= age_ms]
        for item in late:
            item.renewed_ms = now_ms
        return tuple(item.entry for item in late)

    # --- to the application -------------------------------------------------------------------------------------------

    def peek(self) -> Turn | None:
        """What is next; None when nothing is queued. `take` removes it."""
        queue = self._queue
        while queue:
            turn = queue[0]
            if not (isinstance(turn, Item) and turn.phase is Phase.WITHDRAWN):
                return turn
            queue.popleft()
        return None

    def take(self) -> None:
        """Remove what `peek` returned; an event is in the application's hands from here on."""
        turn = self._queue.popleft()
        if isinstance(turn, Item):
            turn.phase = Phase.IN_HAND

    def handled(self, item: Item, now_ms: int) -> Collection[EntryId]:
        """The application is done with an event.

        Returns:
            The entry ids to ack; none when it was settled before.
        """
        if item.phase is not Phase.IN_HAND:
            return ()
        self._settle(item)
        self._seen.add(item.event.id, now_ms)
        for entry in item.entries:
            self.tracker.done(entry)
        return item.entries

    def failed(self, item: Item) -> EntryId | None:
        """The application failed with an event: it must not count as seen, for it comes again.

        Returns:
            The entry id to nack; None when it was settled before.
        """
        if item.phase is not Phase.IN_HAND:
            return None
        self._settle(item)
        return item.entry

    def was_handled(self, item: Item) -> bool:
        """Whether the application is done with an event, and did not fail with it."""
        return item.phase is Phase.SETTLED and item.event.id in self._seen

    def _settle(self, item: Item) -> None:
        item.phase = Phase.SETTLED
        del self._held[item.event.id]

    def clear(self) -> None:
        """The subscriber is over: nothing is handed over any more."""
        self._queue.clear()
