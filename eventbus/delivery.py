"""The state machine of one session on one connection: what is in flight, what is sent again, what is given up.

Theory of operation. A session reads its stream through a window: entries that were sent and wait for an ack are *held*,
with their payload, so that a redelivery needs no second read. Inputs say what happened (a page came, the client acked,
time passed); `handle` changes the state and returns effects, which the shell carries out in order. Some effects come
back as
inputs: `Redeliver` as `Redelivered`, `GiveUp` as `GivenUp` (or either as `StepFailed`), `Acknowledge` and `Release` as
    `Stored`.

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
from eventbus.redelivery import RedeliveryPolicy, ack_wait_ms, nack_wait_ms
from eventbus.store import GapReason, Redelivery, RedeliveryOutcome, ReleaseReason, StoreGap

__all__ = ["TABLE", "Cell", "Delivery", "IllegalMove", "Phase"]

STEP_RETRY_MS: Final = 1_000
"""How long a redelivery or a dead letter waits that the store could not record."""

ENTRY_GUESS_BYTES: Final = 256 << 10
"""What an entry is taken to cost before any was read."""

_NEVER: Final = 2**62


class IllegalMove(EventBusError):
    """An input came in a phase that has no place for it: a defect of the caller, never of a client."""

    code = "illegal_move"


class Phase(StrEnum):
    """Where a session stands on its connection."""

    ATTACHING = "attaching"
    PENDING = "pending"
    LIVE = "live"
    CLOSED = "closed"


class _Held(StrEnum):
    """`FLIGHT`: sent. `WAITING`: nacked. `REDELIVERING` and `DYING`: the store is recording it, or failed to."""

    FLIGHT = "flight"
    WAITING = "waiting"
    REDELIVERING = "redelivering"
    DYING = "dying"


_FLIGHT, _WAITING, _REDELIVERING, _DYING = _Held


class _Entry:
    """A held entry.

    Attributes:
        attempts: what Redis counts: ack time-outs and nacks, and the first delivery.
        delivery: what the client is told; a reconnect raises it too. 0: it can not be sent at all.
        previous: the id that was read before it.
        reason: why it is given up, while it is `DYING`.
    """

    __slots__ = ("attempts", "deadline_ms", "delivery", "item", "nacks", "previous", "reason", "state")

    def __init__(self, item: Item, delivery: int, deadline_ms: int, previous: EntryId) -> None:
        self.item = item
        self.attempts = item.attempts
        self.delivery = delivery
        self.deadline_ms = deadline_ms
        self.previous = previous
        self.nacks = 0
        self.reason = ""
        self.state = _FLIGHT


class Delivery:
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
        "_due_ms",
        "_entry_bytes",
        "_has_been_live",
        "_held",
        "_held_bytes",
        "_last_read",
        "_max_held_bytes",
        "_merging",
        "_owed",
        "_policy",
        "_previous",
        "_read_max",
        "_reattach_wanted",
        "_sent_to",
        "_stale",
        "_steps",
        "_stuck",
        "_tail",
        "_unstored",
        "_verify",
        "_waiting",
        "_window",
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
        self._policy = policy
        self._window = window
        self._max_held_bytes = max_held_bytes
        self._read_max = read_max
        self._held: dict[EntryId, _Entry] = {}
        self._held_bytes = 0
        self._entry_bytes = ENTRY_GUESS_BYTES
        self._waiting = 0
        self._owed = 0
        self._unstored: dict[EntryId, ReleaseReason | None] = {}
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
        self._previous = cursor
        self._last_read = ENTRY_ZERO
        self._tail = ENTRY_ZERO
        self._sent_to = entry_order(cursor)
        self._due_ms = _NEVER
        self._enter(Phase.ATTACHING)

    def __repr__(self) -> str:
        return (
            f"<Delivery {self.phase} in_flight={self.in_flight}/{self._window} waiting={self._waiting} "
            f"last_read={self._last_read} dirty={self._dirty}>"
        )

    # --- what the shell asks ------------------------------------------------------------------------------------------

    @property
    def in_flight(self) -> int:
        """How many entries take room in the window."""
        return len(self._held) - self._waiting

    @property
    def outstanding(self) -> int:
        """How many entries this side believes to be pending in Redis: held, and acked or released but not stored
        yet.
        """
        return len(self._held) + len(self._unstored)

    @property
    def held_bytes(self) -> int:
        """What the held payloads cost."""
        return self._held_bytes

    @property
    def cursor(self) -> EntryId:
        """The highest id up to which everything that was read is handled: acked, released, or given up."""
        if not self._held:
            return self._previous
        # A merge puts lower ids behind higher ones.
        return self._held[min(self._held, key=entry_order)].previous

    @property
    def due_ms(self) -> int:
        """No `Clock` is needed before this time."""
        return 0 if self._owed and self._spare > 0 else self._due_ms

    @property
    def reattach_wanted(self) -> bool:
        """Whether entries may be pending that nobody holds (D1)."""
        return self._reattach_wanted

    @property
    def room(self) -> int:
        """How many more entries may be read now.

        Nacked entries that are due come first; those that wait are bounded by a second window, and what the store
        has not heard yet by four.
        """
        if self._held_bytes >= self._max_held_bytes:
            return 0
        window, held = self._window, len(self._held)
        free = window - held + self._waiting - self._owed
        return max(0, min(free, 2 * window - held, 4 * window - len(self._unstored), self._read_max))

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

    @property
    def _spare(self) -> int:
        """What the window has left beside what is in flight and what a read under way may bring."""
        return self._window - self.in_flight - (self._asked if self.phase is Phase.LIVE else 0)

    @property
    def _affordable(self) -> int:
        """How many entries a read may bring.

        Their sizes are known only when they are here, so it is as many as fit into what may be held, if they are like
        the largest of late.
        """
        return min(self.room, max(1, (self._max_held_bytes - self._held_bytes) // self._entry_bytes))

    def take_read(self) -> ReadPending | ReadNew | None:
        """What to read now, None for nothing.

        One read at a time: its answer is `PendingItems`, `NewItems` or `ReadFailed`.
        """
        if not self.wants_read:
            return None
        self._stuck = False
        if self.phase is Phase.PENDING:
            # While merging, held entries fill the page too; what exceeds the room then is read again later.
            self._asked = self._affordable + self._unseen
            return ReadPending(self._after, self._asked)
        # Cleared when the read is written: a wake-up that comes before the answer sets it again (D20).
        self._dirty = False
        self._asked = self._affordable
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

    # --- opening and reading
    # --------------------------------------------------------------------------------------------

    def _opened(self, event: moves.Opened, now_ms: int) -> list[Effect]:
        effects: list[Effect] = [moves.AnnounceGap(event.gap)] if event.gap else []
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
            self._stale = self._asked > 0
            self._stuck = self._reattach_wanted = False
        self._after = ENTRY_ZERO
        self._enter(Phase.PENDING)
        return effects

    def _forget_above(self, position: EntryId) -> None:
        """What is above the position is gone with a life of the stream (D4); the same ids may name other events now."""
        top = entry_order(position)
        for entry in [entry for entry_id, entry in self._held.items() if entry_order(entry_id) > top]:
            self._forget(entry)
        for entry_id in [entry_id for entry_id in self._unstored if entry_order(entry_id) > top]:
            del self._unstored[entry_id]
        self._previous = position

    def _pending_items(self, event: moves.PendingItems, now_ms: int) -> list[Effect]:
        self._asked = 0
        if self._stale:
            # Asked before the re-attach: its pages begin again.
            self._stale = False
            return []
        if self._merging:
            self._settle(event)
        effects: list[Effect] = []
        sending: list[Sending] = []
        skipped: dict[ReleaseReason, list[EntryId]] = {}
        hole: list[EntryId] = []
        for item in event.items:
            if item.payload is None and not item.poison and not self._knows(item.id):
                hole.append(item.id)
                continue
            self._announce(hole, item.id, sending, effects)
            if not self._merge(item, now_ms, sending, skipped, effects):
                # No room: this entry and what follows are read again when there is some (D20).
                self._stuck = True
                break
        else:
            self._announce(hole, None, sending, effects)
        self._finish(sending, skipped, effects)
        if event.last and not self._stuck:
            self._merging = False
            self._enter(Phase.LIVE)
            self._previous = max(self._previous, self._last_read, key=entry_order)
            effects += self._check_caught_up(exhausted=not self._dirty)
        return effects

    def _settle(self, page: moves.PendingItems) -> None:
        """Forgets what is held within the page's range and not on it: acked elsewhere, or gone with the data."""
        pending = {item.id for item in page.items}
        if page.items:
            self._last_read = max(self._last_read, page.items[-1].id, key=entry_order)
        low = entry_order(self._after)
        high = entry_order(self._last_read if page.last else page.items[-1].id)
        for entry in list(self._held.values()):
            if entry.item.id not in pending and low < entry_order(entry.item.id) <= high:
                self._forget(entry)

    def _merge(
        self,
        item: Item,
        now_ms: int,
        sending: list[Sending],
        skipped: dict[ReleaseReason, list[EntryId]],
        effects: list[Effect],
    ) -> bool:
        """Takes one pending entry up; False when there is no room for it."""
        entry = self._held.get(item.id)
        if entry is not None:
            entry.previous = self._previous
        elif item.id in self._unstored:
            effects.append(self._repeat(item.id))
        elif item.skip is not None:
            skipped.setdefault(item.skip, []).append(item.id)
        elif self.room:
            wait_ms = ack_wait_ms(self._policy, item.attempts, item.id)
            self._hold(item, self._delivery_of(item), now_ms + wait_ms, sending, effects)
        else:
            return False
        self._after = self._previous = item.id
        return True

    def _announce(
        self, hole: list[EntryId], before: EntryId | None, sending: list[Sending], effects: list[Effect]
    ) -> None:
        """Pending entries that were trimmed: a gap, after what was to be sent before it."""
        if not hole:
            return
        self._finish(sending, {}, effects)
        after = self._after if self._after != ENTRY_ZERO else None
        gap = StoreGap(reason=GapReason.TRIMMED, after=after, before=before, count=len(hole))
        effects += [moves.AnnounceGap(gap), self._release(tuple(hole), ReleaseReason.TRIMMED)]
        self._after = self._previous = hole[-1]
        hole.clear()

    def _finish(
        self, sending: list[Sending], skipped: dict[ReleaseReason, list[EntryId]], effects: list[Effect]
    ) -> None:
        if sending:
            effects.append(moves.Send(tuple(sending)))
            sending.clear()
        for reason, ids in skipped.items():
            effects.append(self._release(tuple(ids), reason))

    def _new_items(self, event: moves.NewItems, now_ms: int) -> list[Effect]:
        asked, self._asked = self._asked, 0
        effects: list[Effect] = [moves.AnnounceGap(event.gap)] if event.gap else []
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
        skipped: dict[ReleaseReason, list[EntryId]] = {}
        for item in items:
            if item.skip is not None:
                skipped.setdefault(item.skip, []).append(item.id)
            elif item.id in self._unstored:
                effects.append(self._repeat(item.id))
            elif item.id not in self._held:
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
        self._asked = 0
        self._stale = False
        self._dirty = self._reattach_wanted = True
        return []

    def _reattach_started(self, event: moves.ReattachStarted, now_ms: int) -> list[Effect]:
        self._reattach_wanted = True
        return []

    def _woken(self, event: moves.Woken, now_ms: int) -> list[Effect]:
        self._dirty = True
        return []

    # --- what the client says ---------------------------------------------------------------------------------------

    def _acked(self, event: moves.Acked, now_ms: int) -> list[Effect]:
        ids: list[EntryId] = []
        for entry_id in event.ids:
            entry = self._held.get(entry_id)
            if entry is not None:
                if not entry.delivery:
                    continue  # never sent
                self._forget(entry)
            elif entry_id in self._unstored or len(self._unstored) >= 4 * self._window:
                continue  # said before, or more than this session can have had in flight
            # An id that is not held may have been delivered to an earlier connection; XACK decides.
            self._unstored[entry_id] = None
            ids.append(entry_id)
        return [moves.Acknowledge(tuple(ids))] if ids else []

    def _acked_up_to(self, event: moves.AckedUpTo, now_ms: int) -> list[Effect]:
        top = entry_order(event.id)
        return self._acked(moves.Acked([entry_id for entry_id in self._held if entry_order(entry_id) <= top]), now_ms)

    def _acked_elsewhere(self, event: moves.AckedElsewhere, now_ms: int) -> list[Effect]:
        for entry_id in event.ids:
            entry = self._held.get(entry_id)
            if entry is not None:
                self._forget(entry)
        return []

    def _nacked(self, event: moves.Nacked, now_ms: int) -> list[Effect]:
        entry = self._held.get(event.id)
        if entry is None or entry.state is not _FLIGHT:
            return []
        if entry.attempts >= self._policy.max_deliveries:
            return [self._give_up(entry, "nacked")]
        entry.nacks += 1
        entry.state = _WAITING
        self._waiting += 1
        self._due_at(entry, now_ms + nack_wait_ms(self._policy, entry.nacks, event.id, event.delay_ms))
        return []

    def _working(self, event: moves.Working, now_ms: int) -> list[Effect]:
        for entry_id in event.ids:
            entry = self._held.get(entry_id)
            if entry is not None and entry.state is _FLIGHT:
                self._due_at(entry, now_ms + ack_wait_ms(self._policy, entry.attempts, entry_id))
        return []

    # --- time and redelivery ------------------------------------------------------------------------------------------

    def _clock(self, event: moves.Clock, now_ms: int) -> list[Effect]:
        if now_ms < self.due_ms:
            return []
        effects: list[Effect] = []
        again: list[Redelivery] = []
        expired: list[EntryId] = []
        self._due_ms = _NEVER
        self._owed = 0
        for entry in list(self._held.values()):
            item = entry.item
            if entry.deadline_ms > now_ms:
                self._due_ms = min(self._due_ms, entry.deadline_ms)
            elif entry.state is _DYING:
                effects.append(self._give_up(entry, entry.reason))
            elif item.expires_ms is not None and item.expires_ms <= now_ms:
                self._forget(entry)
                expired.append(item.id)
            elif entry.state is _WAITING and self._spare <= 0:
                self._owed += 1
            elif entry.state is _FLIGHT and entry.attempts >= self._policy.max_deliveries:
                effects.append(self._give_up(entry, "ack_timeout"))
            else:
                self._leave_waiting(entry)
                entry.state = _REDELIVERING
                entry.deadline_ms = _NEVER
                again.append(Redelivery(id=item.id, attempts=entry.attempts + 1))
        if expired:
            effects.append(self._release(tuple(expired), ReleaseReason.EXPIRED))
            effects.append(moves.Dropped(tuple(expired), moves.DropReason.EXPIRED))
        if again:
            effects.append(moves.Redeliver(tuple(again)))
        return effects

    def _redelivered(self, event: moves.Redelivered, now_ms: int) -> list[Effect]:
        sending: list[Sending] = []
        for entry_id, outcome in event.outcomes:
            entry = self._held.get(entry_id)
            if entry is None or entry.state is not _REDELIVERING:
                continue
            if outcome is RedeliveryOutcome.GONE:
                self._forget(entry)
                continue
            # A trimmed entry goes out from memory and stays held: it is still pending (D11).
            entry.attempts += 1
            entry.delivery += 1
            entry.state = _FLIGHT
            self._due_at(entry, now_ms + ack_wait_ms(self._policy, entry.attempts, event.outcomes[0][0]))
            sending.append(Sending(entry_id, entry.delivery, entry.item.payload))
        return [moves.Send(tuple(sending))] if sending else []

    def _give_up(self, entry: _Entry, reason: str) -> moves.GiveUp:
        entry.state = _DYING
        entry.reason = reason
        entry.deadline_ms = _NEVER
        return moves.GiveUp(entry.item.id, entry.attempts, reason, entry.item.payload)

    def _given_up(self, event: moves.GivenUp, now_ms: int) -> list[Effect]:
        entry = self._held.get(event.id)
        if entry is not None and entry.state is _DYING:
            self._forget(entry)
        return [moves.Dropped((event.id,), moves.DropReason.DEAD_LETTERED)] if event.dead else []

    def _step_failed(self, event: moves.StepFailed, now_ms: int) -> list[Effect]:
        for entry_id in event.ids:
            entry = self._held.get(entry_id)
            if entry is not None and entry.state in (_REDELIVERING, _DYING):
                entry.state = _DYING if entry.state is _DYING else _FLIGHT
                self._due_at(entry, now_ms + STEP_RETRY_MS)
        return []

    def _stalled(self, event: moves.Stalled, now_ms: int) -> list[Effect]:
        for entry in self._held.values():
            entry.deadline_ms += event.by_ms
        if self._due_ms < _NEVER:
            self._due_ms += event.by_ms
        return []

    def _stored(self, event: moves.Stored, now_ms: int) -> list[Effect]:
        for entry_id in event.ids:
            self._unstored.pop(entry_id, None)
        return []

    def _window_changed(self, event: moves.WindowChanged, now_ms: int) -> list[Effect]:
        self._window = event.window
        return []

    def _closed(self, event: moves.Closed, now_ms: int) -> list[Effect]:
        self._enter(Phase.CLOSED)
        self._held.clear()
        self._unstored.clear()
        self._held_bytes = self._waiting = self._owed = 0
        self._due_ms = _NEVER
        return []

    # --- the window ---------------------------------------------------------------------------------------------------

    def _hold(self, item: Item, delivery: int, deadline_ms: int, sending: list[Sending], effects: list[Effect]) -> None:
        entry = self._held[item.id] = _Entry(item, delivery, deadline_ms, self._previous)
        self._held_bytes += item.size_bytes
        # Forgotten slowly: after a large entry more of them are likely.
        self._entry_bytes = max(item.size_bytes, self._entry_bytes - (self._entry_bytes >> 4), 1)
        if item.poison:
            entry.delivery = 0
            effects.append(self._give_up(entry, item.poison))
            return
        if deadline_ms < self._due_ms:
            self._due_ms = deadline_ms
        sending.append(Sending(item.id, delivery, item.payload))

    def _delivery_of(self, item: Item) -> int:
        """What the client is told: Redis's count, and one more when it may have been sent before."""
        order = entry_order(item.id)
        if order > self._sent_to:
            self._sent_to = order
            # Until its first read of what is new, all that is pending was handed out to another connection.
            if self._has_been_live:
                return item.attempts
        return item.attempts + 1

    def _knows(self, entry_id: EntryId) -> bool:
        return entry_id in self._held or entry_id in self._unstored

    def _repeat(self, entry_id: EntryId) -> moves.Acknowledge | moves.Release:
        """Says again to the store what it may not have heard."""
        reason = self._unstored[entry_id]
        return moves.Acknowledge((entry_id,)) if reason is None else moves.Release((entry_id,), reason)

    def _forget(self, entry: _Entry) -> None:
        self._leave_waiting(entry)
        del self._held[entry.item.id]
        self._held_bytes -= entry.item.size_bytes

    def _leave_waiting(self, entry: _Entry) -> None:
        if entry.state is _WAITING:
            self._waiting -= 1

    def _release(self, ids: Sequence[EntryId], reason: ReleaseReason) -> moves.Release:
        self._unstored.update(dict.fromkeys(ids, reason))
        return moves.Release(ids, reason)

    def _due_at(self, entry: _Entry, deadline_ms: int) -> None:
        entry.deadline_ms = deadline_ms
        self._due_ms = min(self._due_ms, deadline_ms)


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
