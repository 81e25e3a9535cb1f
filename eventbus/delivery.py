"""The state machine of one session on one connection: what is in flight, what is sent again, what is given up.

Theory of operation. A session reads its stream through a window: entries that were sent and wait for an ack are *held*, with
their payload, so that a redelivery needs no second read. Inputs say what happened (a page came, the client acked, time
passed); `handle` changes the state and returns effects, which the shell carries out in order. Some effects come back as
inputs: `Redeliver` as `Redelivered`, `GiveUp` as `GivenUp`, `Acknowledge` and `Release` as `Stored`.

There is at most one read under way. `take_read` says what to read next, or None: first the pending entries in pages, then
what is new. A re-attach with the socket open (D1) reads the pending entries again and merges them: what is held is not sent
again, what was acked is acked again, what nobody holds was lost on the way and is sent now.

Nothing here knows a clock, a socket or Redis; `now_ms` is the node's monotonic clock. A missing key of `TABLE` is an illegal
move. Source: DESIGN of the delivery path, docs/delivery.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from enum import StrEnum
from typing import Any, Final

from eventbus.errors import EventBusError
from eventbus.ids import ENTRY_ZERO, EntryId, entry_order
from eventbus.moves import (
    Acked,
    AckedElsewhere,
    AckedUpTo,
    Acknowledge,
    AnnounceGap,
    CaughtUp,
    Clock,
    Closed,
    Dropped,
    DropReason,
    Effect,
    GivenUp,
    GiveUp,
    Input,
    Item,
    Nacked,
    NewItems,
    Opened,
    PendingItems,
    ReadFailed,
    ReadNew,
    ReadPending,
    ReattachStarted,
    Redeliver,
    Redelivered,
    Release,
    Send,
    Sending,
    Stalled,
    StepFailed,
    Stored,
    WindowChanged,
    Woken,
    Working,
)
from eventbus.redelivery import RedeliveryPolicy, ack_wait_ms, nack_wait_ms
from eventbus.store import GapReason, Redelivery, RedeliveryOutcome, ReleaseReason, StoreGap

__all__ = ["TABLE", "Delivery", "IllegalMove", "Phase"]

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
    FLIGHT = "flight"
    WAITING = "waiting"
    REDELIVERING = "redelivering"
    DYING = "dying"


class _Entry:
    """A held entry: `attempts` is what Redis counts, `delivery` what the client is told (a reconnect raises only the latter)."""

    __slots__ = (
        "attempts",
        "deadline_ms",
        "delivery",
        "expires_ms",
        "id",
        "nacks",
        "payload",
        "previous",
        "size_bytes",
        "state",
    )

    def __init__(self, item: Item, delivery: int, deadline_ms: int, previous: EntryId) -> None:
        self.id = item.id
        self.previous = previous
        self.payload = item.payload
        self.size_bytes = item.size_bytes
        self.expires_ms = item.expires_ms
        self.attempts = item.attempts
        self.delivery = delivery
        self.deadline_ms = deadline_ms
        self.nacks = 0
        self.state = _Held.FLIGHT


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
        "_caught_up",
        "_dirty",
        "_due_ms",
        "_entry_bytes",
        "_fresh_above",
        "_held",
        "_held_bytes",
        "_last_read",
        "_max_held_bytes",
        "_owed",
        "_policy",
        "_previous",
        "_read_count",
        "_read_max",
        "_reattach_wanted",
        "_replayed_to",
        "_seen",
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
        self.phase = Phase.ATTACHING
        self._held: dict[EntryId, _Entry] = {}
        self._held_bytes = 0
        self._entry_bytes = ENTRY_GUESS_BYTES
        self._waiting = 0
        self._owed = 0
        self._unstored: dict[EntryId, ReleaseReason | None] = {}
        self._dirty = False
        self._read_count = 0
        self._verify: EntryId | None = None
        self._reattach_wanted = False
        self._after = ENTRY_ZERO
        self._previous = cursor
        self._last_read = ENTRY_ZERO
        self._tail = ENTRY_ZERO
        self._seen: set[EntryId] | None = None
        self._stuck = False
        self._replayed_to: tuple[int, int] | None = None
        self._fresh_above: tuple[int, int] | None = None
        self._caught_up = False
        self._due_ms = _NEVER

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
        """How many entries this side believes to be pending in Redis: held, and acked or released but not stored yet."""
        return len(self._held) + len(self._unstored)

    @property
    def held_bytes(self) -> int:
        """What the held payloads cost."""
        return self._held_bytes

    @property
    def cursor(self) -> EntryId:
        """The highest id up to which everything that was read is handled: acked, released, or given up."""
        for entry in self._held.values():
            return entry.previous
        return self._previous

    @property
    def due_ms(self) -> int:
        """No `Clock` is needed before this time."""
        return self._due_ms

    @property
    def reattach_wanted(self) -> bool:
        """Whether entries may be pending that nobody holds (D1)."""
        return self._reattach_wanted

    @property
    def room(self) -> int:
        """How many more entries may be read now.

        Nacked entries that are due come first; those that wait are bounded by a second window.
        """
        if self._held_bytes >= self._max_held_bytes:
            return 0
        free = min(self._window - self.in_flight - self._owed, 2 * self._window - len(self._held), self._read_max)
        return max(0, free)

    @property
    def wants_read(self) -> bool:
        """Whether `take_read` would return something."""
        if self._read_count or self._reattach_wanted:
            return False
        if self.phase is Phase.PENDING:
            return self.room > 0 or (self._unseen > 0 and not self._stuck)
        return self.phase is Phase.LIVE and self._dirty and self.room > 0

    @property
    def _unseen(self) -> int:
        """How many held entries a merge has not met yet."""
        return 0 if self._seen is None else len(self._held.keys() - self._seen)

    @property
    def _affordable(self) -> int:
        """How many entries a read may bring. Their sizes are known only when they are here, so it is as many as fit into
        what may be held, if they are like the largest of late.
        """
        return min(self.room, max(1, (self._max_held_bytes - self._held_bytes) // self._entry_bytes))

    def take_read(self) -> ReadPending | ReadNew | None:
        """What to read now, None for nothing.

        One read at a time: its answer is `PendingItems`, `NewItems` or `ReadFailed`.
        """
        if not self.wants_read:
            return None
        if self.phase is Phase.PENDING:
            # While merging, held entries fill the page too; what exceeds the room then is read again later.
            self._read_count = self._affordable + self._unseen
            return ReadPending(self._after, self._read_count)
        # Cleared when the read is written: a wake-up that comes before the answer sets it again (D20).
        self._dirty = False
        self._read_count = self._affordable
        return ReadNew(self._read_count, self._verify)

    def handle(self, event: Input, now_ms: int) -> list[Effect]:
        """Takes one input; returns the effects to carry out, in order.

        Raises:
            IllegalMove: the phase has no place for the input.
        """
        if self.phase is Phase.CLOSED:
            return []
        step = TABLE.get((self.phase, type(event)))
        if step is None:
            raise IllegalMove(f"{type(event).__name__} in phase {self.phase}: {self!r}")
        return step(self, event, now_ms)

    # --- opening and reading --------------------------------------------------------------------------------------------

    def _opened(self, event: Opened, now_ms: int) -> list[Effect]:
        again = self.phase is not Phase.ATTACHING
        if again:
            # Only a session that was through its pending list knows that what lies above its last read was never sent.
            self._fresh_above = entry_order(self._last_read) if self.phase is Phase.LIVE else self._fresh_above
            self._seen = set()
            self._stuck = False
            if entry_order(event.position) < entry_order(self._last_read):
                # The group was made anew or rolled back (D4, D10): what this connection has had comes again, marked.
                self._replayed_to = max(self._replayed_to or (0, 0), entry_order(self._last_read))
        else:
            self._previous = self._previous if event.pending else event.position
            self._tail = event.tail
        self._reattach_wanted = False
        self._read_count = 0
        self._verify = None
        self._after = ENTRY_ZERO
        self._last_read = event.position
        self._dirty = self._dirty or again or event.tail != event.position
        effects: list[Effect] = [AnnounceGap(event.gap)] if event.gap else []
        if event.pending or self._held:
            self.phase = Phase.PENDING
            return effects
        return effects + self._through(now_ms)

    def _through(self, now_ms: int) -> list[Effect]:
        """The pending list is through."""
        self.phase = Phase.LIVE
        if self._seen is not None:
            # Held, handed out, and not pending any more: acked elsewhere, or gone with the data.
            position = entry_order(self._last_read)
            for entry in [e for e in self._held.values() if e.id not in self._seen]:
                if entry_order(entry.id) <= position:
                    self._forget(entry)
            self._seen = None
        self._fresh_above = None
        return self._check_caught_up(exhausted=not self._dirty)

    def _pending_items(self, event: PendingItems, now_ms: int) -> list[Effect]:
        self._read_count = 0
        effects: list[Effect] = []
        sending: list[Sending] = []
        trimmed: list[EntryId] = []
        for item in event.items:
            if item.payload is None and item.id not in self._held and item.id not in self._unstored:
                self._flush_sending(sending, effects)
                trimmed.append(item.id)
                continue
            self._flush_trimmed(trimmed, before=item.id, effects=effects)
            if not self._merge(item, now_ms, sending, effects):
                # No room: this entry and what follows are read again when there is some (D20).
                self._stuck = True
                self._flush_sending(sending, effects)
                return effects
            self._after = item.id
        self._flush_sending(sending, effects)
        self._flush_trimmed(trimmed, before=None, effects=effects)
        if event.last:
            effects += self._through(now_ms)
        return effects

    def _merge(self, item: Item, now_ms: int, sending: list[Sending], effects: list[Effect]) -> bool:
        """Takes one pending entry up; False when there is no room for it."""
        if item.id in self._held:
            if self._seen is not None:
                self._seen.add(item.id)
            return True
        if item.id in self._unstored:
            effects.append(self._repeat(item.id))
            return True
        if item.skip is not None:
            effects.append(self._release((item.id,), item.skip))
            self._previous = item.id
            return True
        if not self.room:
            return False
        fresh = self._fresh_above is not None and entry_order(item.id) > self._fresh_above
        self._hold(item, item.attempts if fresh else item.attempts + 1, now_ms, sending, effects)
        if self._seen is not None:
            self._seen.add(item.id)
        return True

    def _flush_trimmed(self, trimmed: list[EntryId], *, before: EntryId | None, effects: list[Effect]) -> None:
        if trimmed:
            after = self._after if self._after != ENTRY_ZERO else None
            effects.append(
                AnnounceGap(StoreGap(reason=GapReason.TRIMMED, after=after, before=before, count=len(trimmed)))
            )
            effects.append(self._release(tuple(trimmed), ReleaseReason.TRIMMED))
            self._after = self._previous = trimmed[-1]
            trimmed.clear()

    @staticmethod
    def _flush_sending(sending: list[Sending], effects: list[Effect]) -> None:
        if sending:
            effects.append(Send(tuple(sending)))
            sending.clear()

    def _new_items(self, event: NewItems, now_ms: int) -> list[Effect]:
        asked, self._read_count = self._read_count, 0
        effects: list[Effect] = [AnnounceGap(event.gap)] if event.gap else []
        sending: list[Sending] = []
        skipped: dict[ReleaseReason, list[EntryId]] = {}
        for item in event.items:
            if item.skip is not None:
                skipped.setdefault(item.skip, []).append(item.id)
            elif item.id in self._unstored:
                effects.append(self._repeat(item.id))
            elif item.id not in self._held:
                again = self._replayed_to is not None and entry_order(item.id) <= self._replayed_to
                self._hold(item, 2 if again else 1, now_ms, sending, effects)
            self._previous = item.id
        self._flush_sending(sending, effects)
        effects += [self._release(tuple(ids), reason) for reason, ids in skipped.items()]
        if event.items:
            self._last_read = event.items[-1].id
        full = len(event.items) >= asked
        self._verify = self._last_read if full else None
        self._dirty = self._dirty or full
        if self.phase is Phase.LIVE:
            effects += self._check_caught_up(exhausted=not full)
        return effects

    def _overtaken(self, event: NewItems, now_ms: int) -> list[Effect]:
        """The answer to a read that a re-attach overtook: what it took is pending, and comes with the pages."""
        self._dirty = True
        return [AnnounceGap(event.gap)] if event.gap else []

    def _check_caught_up(self, *, exhausted: bool) -> list[Effect]:
        if self._caught_up or not (exhausted or entry_order(self._last_read) >= entry_order(self._tail)):
            return []
        self._caught_up = True
        return [CaughtUp(self._last_read)]

    def _read_failed(self, event: ReadFailed, now_ms: int) -> list[Effect]:
        self._read_count = 0
        self._dirty = True
        self._reattach_wanted = True
        return []

    def _reattach_started(self, event: ReattachStarted, now_ms: int) -> list[Effect]:
        self._reattach_wanted = True
        return []

    def _woken(self, event: Woken, now_ms: int) -> list[Effect]:
        self._dirty = True
        return []

    # --- what the client says ---------------------------------------------------------------------------------------

    def _acked(self, event: Acked, now_ms: int) -> list[Effect]:
        ids: list[EntryId] = []
        for entry_id in event.ids:
            entry = self._held.get(entry_id)
            if entry is not None:
                self._forget(entry)
            elif entry_id in self._unstored or len(self._unstored) >= 4 * self._window:
                continue  # said before, or more than this session can have had in flight
            # An id that is not held may have been delivered to an earlier connection; XACK decides.
            self._unstored[entry_id] = None
            ids.append(entry_id)
        return [Acknowledge(tuple(ids))] if ids else []

    def _acked_up_to(self, event: AckedUpTo, now_ms: int) -> list[Effect]:
        limit = entry_order(event.id)
        return self._acked(Acked([entry_id for entry_id in self._held if entry_order(entry_id) <= limit]), now_ms)

    def _acked_elsewhere(self, event: AckedElsewhere, now_ms: int) -> list[Effect]:
        for entry_id in event.ids:
            entry = self._held.get(entry_id)
            if entry is not None:
                self._forget(entry)
        return []

    def _nacked(self, event: Nacked, now_ms: int) -> list[Effect]:
        entry = self._held.get(event.id)
        if entry is None or entry.state is not _Held.FLIGHT:
            return []
        entry.nacks += 1
        if entry.attempts >= self._policy.max_deliveries:
            return [self._give_up(entry, "nacked")]
        entry.state = _Held.WAITING
        self._waiting += 1
        self._due_at(entry, now_ms + nack_wait_ms(self._policy, entry.nacks, entry.id, event.delay_ms))
        return []

    def _working(self, event: Working, now_ms: int) -> list[Effect]:
        for entry_id in event.ids:
            entry = self._held.get(entry_id)
            if entry is not None and entry.state is _Held.FLIGHT:
                self._due_at(entry, now_ms + ack_wait_ms(self._policy, entry.attempts, entry.id))
        return []

    # --- time and redelivery ------------------------------------------------------------------------------------------

    def _clock(self, event: Clock, now_ms: int) -> list[Effect]:
        if now_ms < self._due_ms:
            return []
        effects: list[Effect] = []
        again: list[Redelivery] = []
        expired: list[EntryId] = []
        self._due_ms = _NEVER
        self._owed = 0
        for entry in list(self._held.values()):
            if entry.state not in (_Held.FLIGHT, _Held.WAITING):
                continue
            if entry.deadline_ms > now_ms:
                self._due_ms = min(self._due_ms, entry.deadline_ms)
            elif entry.expires_ms is not None and entry.expires_ms <= now_ms:
                self._forget(entry)
                expired.append(entry.id)
            elif entry.state is _Held.FLIGHT and entry.attempts >= self._policy.max_deliveries:
                effects.append(self._give_up(entry, "ack_timeout"))
            elif entry.state is _Held.WAITING and self.in_flight >= self._window:
                self._due_ms = now_ms
                self._owed += 1
            else:
                self._leave_waiting(entry)
                entry.state = _Held.REDELIVERING
                again.append(Redelivery(id=entry.id, attempts=entry.attempts + 1))
        if expired:
            effects.append(self._release(tuple(expired), ReleaseReason.EXPIRED))
            effects.append(Dropped(tuple(expired), DropReason.EXPIRED))
        if again:
            effects.append(Redeliver(tuple(again)))
        return effects

    def _redelivered(self, event: Redelivered, now_ms: int) -> list[Effect]:
        sending: list[Sending] = []
        for entry_id, outcome in event.outcomes:
            entry = self._held.get(entry_id)
            if entry is None or entry.state is not _Held.REDELIVERING:
                continue
            if outcome is RedeliveryOutcome.GONE:
                self._forget(entry)
                continue
            # A trimmed entry goes out from memory and stays held: it is still pending (D11).
            entry.attempts += 1
            entry.delivery += 1
            entry.state = _Held.FLIGHT
            self._due_at(entry, now_ms + ack_wait_ms(self._policy, entry.attempts, entry.id))
            sending.append(Sending(entry.id, entry.delivery, entry.payload))
        return [Send(tuple(sending))] if sending else []

    def _give_up(self, entry: _Entry, reason: str) -> GiveUp:
        entry.state = _Held.DYING
        return GiveUp(entry.id, entry.attempts, reason, entry.payload)

    def _given_up(self, event: GivenUp, now_ms: int) -> list[Effect]:
        entry = self._held.get(event.id)
        if entry is not None:
            self._forget(entry)
        return [Dropped((event.id,), DropReason.DEAD_LETTERED)] if event.dead else []

    def _step_failed(self, event: StepFailed, now_ms: int) -> list[Effect]:
        for entry_id in event.ids:
            entry = self._held.get(entry_id)
            if entry is not None and entry.state in (_Held.REDELIVERING, _Held.DYING):
                entry.state = _Held.FLIGHT
                self._due_at(entry, now_ms + STEP_RETRY_MS)
        return []

    def _stalled(self, event: Stalled, now_ms: int) -> list[Effect]:
        for entry in self._held.values():
            entry.deadline_ms += event.by_ms
        if self._due_ms != _NEVER:
            self._due_ms += event.by_ms
        return []

    def _stored(self, event: Stored, now_ms: int) -> list[Effect]:
        for entry_id in event.ids:
            self._unstored.pop(entry_id, None)
        return []

    def _window_changed(self, event: WindowChanged, now_ms: int) -> list[Effect]:
        self._window = event.window
        return []

    def _closed(self, event: Closed, now_ms: int) -> list[Effect]:
        self.phase = Phase.CLOSED
        self._held.clear()
        self._unstored.clear()
        self._held_bytes = self._waiting = 0
        return []

    # --- the window ---------------------------------------------------------------------------------------------------

    def _hold(self, item: Item, delivery: int, now_ms: int, sending: list[Sending], effects: list[Effect]) -> None:
        deadline_ms = now_ms + ack_wait_ms(self._policy, item.attempts, item.id)
        entry = self._held[item.id] = _Entry(item, delivery, deadline_ms, self._previous)
        self._held_bytes += item.size_bytes
        self._previous = item.id
        # Forgotten slowly: after a large entry more of them are likely.
        self._entry_bytes = max(item.size_bytes, self._entry_bytes - (self._entry_bytes >> 4), 1)
        if item.poison:
            self._flush_sending(sending, effects)
            effects.append(self._give_up(entry, item.poison))
            return
        self._due_ms = min(self._due_ms, deadline_ms)
        sending.append(Sending(item.id, delivery, item.payload))

    def _repeat(self, entry_id: EntryId) -> Acknowledge | Release:
        """Says again to the store what it may not have heard."""
        reason = self._unstored[entry_id]
        return Acknowledge((entry_id,)) if reason is None else Release((entry_id,), reason)

    def _forget(self, entry: _Entry) -> None:
        self._leave_waiting(entry)
        del self._held[entry.id]
        self._held_bytes -= entry.size_bytes
        self._stuck = False

    def _leave_waiting(self, entry: _Entry) -> None:
        if entry.state is _Held.WAITING:
            self._waiting -= 1

    def _release(self, ids: Sequence[EntryId], reason: ReleaseReason) -> Release:
        self._unstored.update(dict.fromkeys(ids, reason))
        return Release(ids, reason)

    def _due_at(self, entry: _Entry, deadline_ms: int) -> None:
        entry.deadline_ms = deadline_ms
        self._due_ms = min(self._due_ms, deadline_ms)


_Step = Callable[[Delivery, Any, int], list[Effect]]


def _in(phases: Iterable[Phase], step: _Step, *kinds: type[Any]) -> dict[tuple[Phase, type[Any]], _Step]:
    return {(phase, kind): step for phase in phases for kind in kinds}


_OPEN = (Phase.PENDING, Phase.LIVE)
_ANY = (Phase.ATTACHING, *_OPEN)

# The private steps are the table's cells.
TABLE: Final[dict[tuple[Phase, type[Any]], _Step]] = {
    **_in(_ANY, Delivery._opened, Opened),
    **_in(_OPEN, Delivery._reattach_started, ReattachStarted),
    **_in((Phase.PENDING,), Delivery._pending_items, PendingItems),
    **_in((Phase.LIVE,), Delivery._new_items, NewItems),
    **_in((Phase.PENDING,), Delivery._overtaken, NewItems),
    **_in(_OPEN, Delivery._read_failed, ReadFailed),
    **_in(_ANY, Delivery._woken, Woken),
    **_in(_OPEN, Delivery._acked, Acked),
    **_in(_OPEN, Delivery._acked_up_to, AckedUpTo),
    **_in(_OPEN, Delivery._acked_elsewhere, AckedElsewhere),
    **_in(_OPEN, Delivery._nacked, Nacked),
    **_in(_OPEN, Delivery._working, Working),
    **_in(_OPEN, Delivery._redelivered, Redelivered),
    **_in(_OPEN, Delivery._given_up, GivenUp),
    **_in(_OPEN, Delivery._step_failed, StepFailed),
    **_in(_ANY, Delivery._clock, Clock),
    **_in(_ANY, Delivery._stalled, Stalled),
    **_in(_OPEN, Delivery._stored, Stored),
    **_in(_ANY, Delivery._window_changed, WindowChanged),
    **_in(_ANY, Delivery._closed, Closed),
}
