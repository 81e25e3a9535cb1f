"""The state machine of one session on one connection: what is in flight, what is sent again, what is given up.

Theory of operation. A session reads its stream through a window (`eventbus.window`, the half of the machine that knows
what is held). Inputs say what happened (a page came, the client acked, time passed); `handle` changes the state and
returns effects, which the shell carries out in order. Some effects come back as inputs: `Redeliver` as `Redelivered`,
`GiveUp` as `GivenUp` (or either as `StepFailed`), `Acknowledge` and `Release` as `Stored`.

At most one read is under way. `take_read` says what to read next, or None: first the pending entries in pages, then
what is new; each read has exactly one answer. A re-attach with the socket open (D1) reads the pending entries again and
merges them: what is held is not sent again, what was acked is acked again, what nobody holds was lost on the way and is
sent now.

One watermark, `_sent_to`, tells a first delivery from another: what lies above it was never sent to this session.

Nothing here knows a clock, a socket or Redis; `now_ms` is the node's monotonic clock. A missing key of `TABLE` is an
illegal move. Source: docs/delivery.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from eventbus import moves
from eventbus.errors import EventBusError
from eventbus.ids import ENTRY_ZERO, EntryId, entry_order
from eventbus.moves import Effect, Input, Item, ReadNew, ReadPending, Sending
from eventbus.redelivery import RedeliveryPolicy, ack_wait_ms
from eventbus.store import GapReason, ReleaseReason, StoreGap
from eventbus.window import Window

__all__ = ["TABLE", "Cell", "Delivery", "IllegalMove", "Phase"]


class IllegalMove(EventBusError):
    """An input came in a phase that has no place for it: a defect of the caller, never of a client."""

    code = "illegal_move"


class Phase(StrEnum):
    """Where a session stands on its connection."""

    ATTACHING = "attaching"
    PENDING = "pending"
    LIVE = "live"
    CLOSED = "closed"


class Delivery(Window):
    """One session on one connection.

    Args:
        policy: waits and the delivery cap.
        window: most entries in flight, 1 to 1024.
        cursor: up to where the client has handled everything, as it says; `0-0` when it does not.
        max_held_bytes: nothing new is read while the held entries are at least this large.
        read_max: most entries a read asks for.
    """

    __slots__ = (
        "_after",
        "_asked",
        "_caught_up",
        "_dirty",
        "_gap_before",
        "_has_been_live",
        "_last_read",
        "_merging",
        "_reattach_wanted",
        "_sent_to",
        "_stale",
        "_steps",
        "_stuck",
        "_tail",
        "_verify",
        "phase",
    )

    def __init__(
        self,
        policy: RedeliveryPolicy,
        *,
        window: int,
        cursor: EntryId = ENTRY_ZERO,
        max_held_bytes: int = 8 << 20,
        read_max: int = 256,
    ) -> None:
        super().__init__(policy, window=window, max_held_bytes=max_held_bytes, read_max=read_max, previous=cursor)
        self._dirty = False
        self._asked = 0
        self._stale = False
        self._merging = False
        self._stuck = False
        self._reattach_wanted = False
        self._has_been_live = False
        self._caught_up = False
        self._verify: EntryId | None = None
        self._after = ENTRY_ZERO
        self._gap_before = ENTRY_ZERO
        self._last_read = ENTRY_ZERO
        self._tail = ENTRY_ZERO
        self._sent_to = entry_order(cursor)
        self._enter(Phase.ATTACHING)

    def __repr__(self) -> str:
        return (
            f"<Delivery {self.phase} in_flight={self.in_flight}/{self._window} waiting={self._waiting} "
            f"last_read={self._last_read} dirty={self._dirty}>"
        )

    # --- what the shell asks ------------------------------------------------------------------------------------------

    @property
    def reattach_wanted(self) -> bool:
        """Whether entries may be pending that nobody holds (D1)."""
        return self._reattach_wanted

    @property
    def dirty(self) -> bool:
        """Whether a read of what is new is owed: it was woken, or its last read was a full one (D20)."""
        return self._dirty

    @property
    def wants_read(self) -> bool:
        """Whether `take_read` would return something."""
        if self._asked or self._reattach_wanted:
            return False
        if self.phase is Phase.LIVE:
            return self._dirty and self.room > 0
        return self.phase is Phase.PENDING and (self.room > 0 or (not self._stuck and self._unseen > 0))

    @property
    def _unseen(self) -> int:
        """How many held entries a merge has not met yet."""
        if not self._merging:
            return 0
        after = entry_order(self._after)
        return sum(1 for entry_id in self._held if entry_order(entry_id) > after)

    def may_remind(self, entry_id: EntryId) -> bool:
        """Whether an entry may be sent beside the rules: it was handed out before, and is not in the window."""
        return entry_order(entry_id) <= self._sent_to and not self._knows(entry_id)

    def take_read(self) -> ReadPending | ReadNew | None:
        """What to read now, None for nothing.

        One read at a time: its answer is `PendingItems`, `NewItems` or `ReadFailed`.
        """
        if not self.wants_read:
            return None
        self._stuck = False
        # What ended before the read is carried out the read knows of.
        self._ended.clear()
        if self.phase is Phase.PENDING:
            # While merging, held entries fill the page too; what exceeds the room then is read again later.
            self._asked = self._affordable + self._unseen
            return ReadPending(self._after, self._asked)
        # Cleared when the read is written: a wake-up that comes before the answer sets it again (D20).
        self._dirty = False
        self._asked = self._reserved = self._affordable
        return ReadNew(self._asked, self._verify)

    def handle(self, event: Input, now_ms: int) -> list[Effect]:
        """Takes one input; returns the effects to carry out, in order. A closed machine takes all and does nothing.

        Raises:
            IllegalMove: the phase has no place for the input.
        """
        step = self._steps.get(type(event))
        if step is not None:
            return step(self, event, now_ms)
        if self.phase is Phase.CLOSED:
            return []
        raise IllegalMove(f"{type(event).__name__} in phase {self.phase}: {self!r}")

    def _enter(self, phase: Phase) -> None:
        self.phase = phase
        self._steps = _STEPS[phase]
        self._has_been_live = self._has_been_live or phase is Phase.LIVE

    # --- opening and reading ------------------------------------------------------------------------------------------

    def _opened(self, event: moves.Opened, now_ms: int) -> list[Effect]:
        effects = self._announced(event.gap, again=self.phase is not Phase.ATTACHING)
        self._last_read = event.position
        # Entries may be trimmed unread from here on (D7); 0-0 never existed (D15).
        self._verify = event.position if event.position != ENTRY_ZERO else None
        if self.phase is Phase.ATTACHING:
            self._tail = event.tail
            self._previous = self._previous if event.pending else event.position
            # The connections before this one may have sent all that the group has handed out.
            self._sent_to = max(self._sent_to, entry_order(event.position))
            self._dirty = self._dirty or event.tail != event.position
            if not event.pending:
                self._enter(Phase.LIVE)
                return effects + self._check_caught_up(exhausted=not self._dirty)
        else:
            # Always through the pages, even when nothing was pending: a read that was lost may have taken effect since.
            self._previous = self.cursor
            if event.gap and event.gap.reason in (GapReason.ROLLBACK, GapReason.RESET):
                self._forget_above(event.position)
            self._merging = self._dirty = True
            # The answer to a read under way will bring nothing that the pages do not bring.
            self._stale = self._asked > 0
            self._reserved = 0
            self._stuck = self._reattach_wanted = False
        self._after = ENTRY_ZERO
        self._enter(Phase.PENDING)
        return effects

    def _announced(self, gap: StoreGap | None, *, again: bool) -> list[Effect]:
        """Tells the client of a gap. A re-attach brings again what the store takes to be unheard of: what was said on
        this connection is not said twice.
        """
        if gap is None:
            return []
        if gap.reason is not GapReason.TRIMMED:
            self._gap_before = ENTRY_ZERO
        elif gap.before is not None:
            if again and entry_order(gap.before) <= entry_order(self._gap_before):
                return []
            self._gap_before = max(self._gap_before, gap.before, key=entry_order)
        return [moves.AnnounceGap(gap)]

    def _pending_items(self, event: moves.PendingItems, now_ms: int) -> list[Effect]:
        self._asked = 0
        if self._stale:
            # Asked before the re-attach: its pages begin again.
            self._stale = False
            return []
        effects = self._settle(event) if self._merging else []
        sending: list[Sending] = []
        skipped: dict[ReleaseReason, list[Item]] = {}
        hole: list[Item] = []
        for item in event.items:
            if item.payload is None and not item.poison and not self._knows(item.id):
                hole.append(item)
                continue
            self._announce(hole, item.id, sending, effects)
            if not self._merge(item, now_ms, sending, skipped, effects):
                # No room: this entry and what follows are read again when there is some (D20).
                self._stuck = True
                break
        else:
            self._announce(hole, None, sending, effects)
        self._finish(sending, skipped, effects)
        if (event.last or not event.items) and not self._stuck:
            self._merging = False
            self._enter(Phase.LIVE)
            self._previous = max(self._previous, self._last_read, key=entry_order)
            effects += self._check_caught_up(exhausted=not self._dirty)
        return effects

    def _settle(self, page: moves.PendingItems) -> list[Effect]:
        """Forgets what is held within the page's range and not on it: acked elsewhere, or gone with the data."""
        pending = {item.id for item in page.items}
        if page.items and entry_order(page.items[-1].id) > entry_order(self._last_read):
            self._last_read = self._verify = page.items[-1].id
        low = entry_order(self._after)
        high = entry_order(page.items[-1].id if page.items and not page.last else self._last_read)
        gone = [
            entry
            for entry_id, entry in self._held.items()
            if entry_id not in pending and low < entry_order(entry_id) <= high
        ]
        for entry in gone:
            self._forget(entry)
        return self._withdraw(gone)

    def _merge(
        self,
        item: Item,
        now_ms: int,
        sending: list[Sending],
        skipped: dict[ReleaseReason, list[Item]],
        effects: list[Effect],
    ) -> bool:
        """Takes one pending entry up; False when there is no room for it."""
        entry = self._held.get(item.id)
        if entry is not None:
            entry.previous = self._previous
        elif item.id in self._unstored:
            effects.append(self._repeat(item))
        elif item.skip is not None:
            skipped.setdefault(item.skip, []).append(item)
        elif item.id in self._ended:
            pass
        elif self.room:
            wait_ms = ack_wait_ms(self._policy, item.attempts, item.id)
            self._hold(item, self._delivery_of(item), now_ms + wait_ms, sending, effects)
        else:
            return False
        self._after = self._previous = item.id
        return True

    def _announce(
        self, hole: list[Item], before: EntryId | None, sending: list[Sending], effects: list[Effect]
    ) -> None:
        """Pending entries that were trimmed: a gap, after what was to be sent before it."""
        if not hole:
            return
        self._finish(sending, {}, effects)
        after = self._after if self._after != ENTRY_ZERO else None
        gap = StoreGap(reason=GapReason.TRIMMED, after=after, before=before, count=len(hole))
        effects += [*self._announced(gap, again=False), self._release(hole, ReleaseReason.TRIMMED)]
        self._after = self._previous = hole[-1].id
        hole.clear()

    def _finish(self, sending: list[Sending], skipped: dict[ReleaseReason, list[Item]], effects: list[Effect]) -> None:
        if sending:
            effects.append(moves.Send(tuple(sending)))
            sending.clear()
        for reason, items in skipped.items():
            effects.append(self._release(items, reason))

    def _new_items(self, event: moves.NewItems, now_ms: int) -> list[Effect]:
        asked, self._asked, self._reserved = self._asked, 0, 0
        effects = self._announced(event.gap, again=False)
        if self._stale:
            # Asked before the re-attach: what it brought is pending, and the pages bring it in its place.
            self._stale = False
            return effects
        items = event.items
        if items:
            self._take_new(items, now_ms, effects)
            self._last_read = items[-1].id
        full = len(items) >= asked
        self._verify = self._last_read if full else None
        self._dirty = self._dirty or full
        if not self._caught_up:
            effects += self._check_caught_up(exhausted=not full)
        return effects

    def _take_new(self, items: Sequence[Item], now_ms: int, effects: list[Effect]) -> None:
        # What came together comes due together: one call of the store counts all of it.
        deadline_ms = now_ms + ack_wait_ms(self._policy, 1, items[0].id)
        first = entry_order(items[0].id) > self._sent_to
        sending: list[Sending] = []
        skipped: dict[ReleaseReason, list[Item]] = {}
        for item in items:
            if item.skip is not None:
                skipped.setdefault(item.skip, []).append(item)
            elif item.id in self._unstored:
                effects.append(self._repeat(item))
            elif item.id not in self._held and item.id not in self._ended:
                self._hold(item, 1 if first else self._delivery_of(item), deadline_ms, sending, effects)
            self._previous = item.id
        if first:
            self._sent_to = entry_order(items[-1].id)
        self._finish(sending, skipped, effects)

    def _check_caught_up(self, *, exhausted: bool) -> list[Effect]:
        if self._caught_up or not (exhausted or entry_order(self._last_read) >= entry_order(self._tail)):
            return []
        self._caught_up = True
        return [moves.CaughtUp(self._last_read)]

    def _read_failed(self, event: moves.ReadFailed, now_ms: int) -> list[Effect]:
        self._asked = self._reserved = 0
        self._stale = False
        self._dirty = self._reattach_wanted = True
        return []

    def _reattach_started(self, event: moves.ReattachStarted, now_ms: int) -> list[Effect]:
        self._reattach_wanted = True
        return []

    def _woken(self, event: moves.Woken, now_ms: int) -> list[Effect]:
        self._dirty = True
        return []

    def _delivery_of(self, item: Item) -> int:
        """What the client is told: Redis's count, and one more when it may have been sent before."""
        order = entry_order(item.id)
        if order > self._sent_to:
            self._sent_to = order
            # Until its first read of what is new, all that is pending was handed out to another connection.
            if self._has_been_live:
                return item.attempts
        return item.attempts + 1

    def _window_changed(self, event: moves.WindowChanged, now_ms: int) -> list[Effect]:
        self._window = event.window
        return []

    def _closed(self, event: moves.Closed, now_ms: int) -> list[Effect]:
        self._enter(Phase.CLOSED)
        self._clear()
        return []


_Step = Callable[[Delivery, Any, int], list[Effect]]


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell of `TABLE`: the step that an input takes, and the phases in which it may end."""

    step: _Step
    to: tuple[Phase, ...]


def _in(
    phases: Iterable[Phase], kind: type[Any], step: _Step, to: tuple[Phase, ...] = ()
) -> dict[tuple[Phase, type[Any]], Cell]:
    return {(phase, kind): Cell(step, to or (phase,)) for phase in phases}


_OPEN = (Phase.PENDING, Phase.LIVE)
_ANY = (Phase.ATTACHING, *_OPEN)

# The private steps are the table's cells.
TABLE: Final[dict[tuple[Phase, type[Any]], Cell]] = {
    **_in((Phase.ATTACHING,), moves.Opened, Delivery._opened, _OPEN),
    **_in(_OPEN, moves.Opened, Delivery._opened, (Phase.PENDING,)),
    **_in(_OPEN, moves.ReattachStarted, Delivery._reattach_started),
    **_in((Phase.PENDING,), moves.PendingItems, Delivery._pending_items, _OPEN),
    **_in(_OPEN, moves.NewItems, Delivery._new_items),
    **_in(_OPEN, moves.ReadFailed, Delivery._read_failed),
    **_in(_ANY, moves.Woken, Delivery._woken),
    **_in(_OPEN, moves.Acked, Delivery._acked),
    **_in(_OPEN, moves.AckedUpTo, Delivery._acked_up_to),
    **_in(_OPEN, moves.AckedElsewhere, Delivery._acked_elsewhere),
    **_in(_OPEN, moves.DeadLetteredElsewhere, Delivery._dead_lettered_elsewhere),
    **_in(_OPEN, moves.ReleasedElsewhere, Delivery._released_elsewhere),
    **_in(_OPEN, moves.Nacked, Delivery._nacked),
    **_in(_OPEN, moves.Working, Delivery._working),
    **_in(_OPEN, moves.Redelivered, Delivery._redelivered),
    **_in(_OPEN, moves.GivenUp, Delivery._given_up),
    **_in(_OPEN, moves.StepFailed, Delivery._step_failed),
    **_in(_ANY, moves.Clock, Delivery._clock),
    **_in(_ANY, moves.Stalled, Delivery._stalled),
    **_in(_OPEN, moves.Stored, Delivery._stored),
    **_in(_ANY, moves.WindowChanged, Delivery._window_changed),
    **_in(_ANY, moves.Closed, Delivery._closed, (Phase.CLOSED,)),
}

_STEPS: Final[dict[Phase, dict[type[Any], _Step]]] = {
    at: {kind: cell.step for (phase, kind), cell in TABLE.items() if phase is at} for at in Phase
}
