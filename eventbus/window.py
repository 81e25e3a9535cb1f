"""The window of a delivery machine: what is held, what the client says of it, and what time does to it.

An entry is *held* from the moment it is read until it is acked, released or given up, with its payload, so that a
redelivery needs no second read. What was acked or released and not yet heard by the store is *unstored*: it is said
again when it shows up among the pending entries. This half of the machine knows no reads and no phases;
`eventbus.delivery` is the other half.

Source: docs/delivery.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Final

from eventbus import moves
from eventbus.ids import EntryId, entry_order
from eventbus.moves import Effect, Item, Sending
from eventbus.redelivery import RedeliveryPolicy, ack_wait_ms, nack_wait_ms
from eventbus.store import Redelivery, RedeliveryOutcome, ReleaseReason

__all__ = ["Window"]

STEP_RETRY_MS: Final = 1_000
"""How long a redelivery or a dead letter waits that the store could not record."""

ENTRY_GUESS_BYTES: Final = 256 << 10
"""What an entry is taken to cost before any was read."""

_NEVER: Final = 2**62


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


class Window:
    """What is held, and what is not stored yet.

    Args:
        policy: waits and the delivery cap.
        window: most entries in flight.
        max_held_bytes: there is no room while the held entries are at least this large.
        read_max: the most room there ever is.
        previous: the id that counts as read before all others.
    """

    __slots__ = (
        "_due_ms",
        "_ended",
        "_entry_bytes",
        "_held",
        "_held_bytes",
        "_max_held_bytes",
        "_owed",
        "_policy",
        "_previous",
        "_read_max",
        "_reserved",
        "_unstored",
        "_waiting",
        "_window",
    )

    def __init__(
        self, policy: RedeliveryPolicy, *, window: int, max_held_bytes: int, read_max: int, previous: EntryId
    ) -> None:
        self._policy = policy
        self._window = window
        self._max_held_bytes = max_held_bytes
        self._read_max = read_max
        self._previous = previous
        self._held: dict[EntryId, _Entry] = {}
        self._held_bytes = 0
        self._entry_bytes = ENTRY_GUESS_BYTES
        self._unstored: dict[EntryId, ReleaseReason | None] = {}
        # What ended elsewhere: a read that brings it may have been carried out before that.
        self._ended: set[EntryId] = set()
        self._waiting = 0
        self._owed = 0
        self._reserved = 0
        self._due_ms = _NEVER

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
    def oldest(self) -> EntryId | None:
        """The entry that is held for longest; None when nothing is."""
        return next(iter(self._held), None)

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
    def furthest(self) -> EntryId:
        """The highest id that is held, else `cursor`: a store that does not have it any more has lost it, and with it
        what came behind it (D4).
        """
        return max(self._held, key=entry_order) if self._held else self.cursor

    @property
    def due_ms(self) -> int:
        """No `Clock` is needed before this time."""
        return 0 if self._owed and self._spare > 0 else self._due_ms

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

    def again(self, entry_id: EntryId) -> Sending | None:
        """An entry that was sent and is not handled, as it would be sent once more; None when it is not held."""
        entry = self._held.get(entry_id)
        if entry is None or not entry.delivery or entry.state not in (_FLIGHT, _WAITING):
            return None
        return Sending(entry_id, entry.delivery + 1, entry.item.payload)

    @property
    def _spare(self) -> int:
        """What the window has left beside what is in flight and what a read under way may bring."""
        return self._window - self.in_flight - self._reserved

    @property
    def _affordable(self) -> int:
        """How many entries a read may bring.

        Their sizes are known only when they are here, so it is as many as fit into what may be held, if they are like
        the largest of late.
        """
        return min(self.room, max(1, (self._max_held_bytes - self._held_bytes) // self._entry_bytes))

    # --- what the client says -----------------------------------------------------------------------------------------

    def _acked(self, event: moves.Acked, now_ms: int) -> list[Effect]:
        ids: list[EntryId] = []
        payloads: list[object] = []
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
            payloads.append(None if entry is None else entry.item.payload)
        return [moves.Acknowledge(tuple(ids), payloads)] if ids else []

    def _acked_up_to(self, event: moves.AckedUpTo, now_ms: int) -> list[Effect]:
        top = entry_order(event.id)
        return self._acked(moves.Acked([entry_id for entry_id in self._held if entry_order(entry_id) <= top]), now_ms)

    def _acked_elsewhere(self, event: moves.AckedElsewhere, now_ms: int) -> list[Effect]:
        for entry_id in event.ids:
            self._end(entry_id)
        return []

    def _dead_lettered_elsewhere(self, event: moves.DeadLetteredElsewhere, now_ms: int) -> list[Effect]:
        ended = [entry for entry_id in event.ids if (entry := self._end(entry_id)) is not None]
        sent = tuple(entry.item.id for entry in ended if entry.delivery)
        return [moves.Dropped(sent, moves.DropReason.DEAD_LETTERED)] if sent else []

    def _released_elsewhere(self, event: moves.ReleasedElsewhere, now_ms: int) -> list[Effect]:
        return self._withdraw([entry for entry_id in event.ids if (entry := self._end(entry_id)) is not None])

    def _end(self, entry_id: EntryId) -> _Entry | None:
        """Forgets what is pending no more; a read under way may bring it all the same."""
        if len(self._ended) < 4 * self._window:
            self._ended.add(entry_id)
        entry = self._held.get(entry_id)
        if entry is not None:
            self._forget(entry)
        return entry

    def _withdraw(self, entries: Sequence[_Entry]) -> list[Effect]:
        """Tells the client what it was sent and need not handle any more; only of shared entries it has to know."""
        ids = tuple(entry.item.id for entry in entries if entry.item.shared and entry.delivery)
        return [moves.Withdrawn(ids)] if ids else []

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
        expired: list[Item] = []
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
                expired.append(item)
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
            released = self._release(expired, ReleaseReason.EXPIRED)
            effects += [released, moves.Dropped(released.ids, moves.DropReason.EXPIRED)]
        if again:
            effects.append(moves.Redeliver(tuple(again)))
        return effects

    def _redelivered(self, event: moves.Redelivered, now_ms: int) -> list[Effect]:
        sending: list[Sending] = []
        gone: list[_Entry] = []
        for entry_id, outcome in event.outcomes:
            entry = self._held.get(entry_id)
            if entry is None or entry.state is not _REDELIVERING:
                continue
            if outcome is RedeliveryOutcome.GONE:
                self._forget(entry)
                gone.append(entry)
                continue
            # A trimmed entry goes out from memory and stays held: it is still pending (D11).
            entry.attempts += 1
            entry.delivery += 1
            entry.state = _FLIGHT
            self._due_at(entry, now_ms + ack_wait_ms(self._policy, entry.attempts, event.outcomes[0][0]))
            sending.append(Sending(entry_id, entry.delivery, entry.item.payload))
        return [*([moves.Send(tuple(sending))] if sending else []), *self._withdraw(gone)]

    def _give_up(self, entry: _Entry, reason: str) -> moves.GiveUp:
        entry.state = _DYING
        entry.reason = reason
        entry.deadline_ms = _NEVER
        return moves.GiveUp(entry.item.id, entry.attempts, reason, entry.item.payload)

    def _given_up(self, event: moves.GivenUp, now_ms: int) -> list[Effect]:
        entry = self._held.get(event.id)
        gone = entry is not None and entry.state is _DYING
        if entry is not None and gone:
            self._forget(entry)
        if event.dead:
            return [moves.Dropped((event.id,), moves.DropReason.DEAD_LETTERED)]
        return self._withdraw([entry]) if entry is not None and gone else []

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

    # --- holding and letting go ---------------------------------------------------------------------------------------

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

    def _knows(self, entry_id: EntryId) -> bool:
        return entry_id in self._held or entry_id in self._unstored

    def _repeat(self, item: Item) -> moves.Acknowledge | moves.Release:
        """Says again to the store what it may not have heard."""
        ids, reason, payloads = (item.id,), self._unstored[item.id], (item.payload,)
        return moves.Acknowledge(ids, payloads) if reason is None else moves.Release(ids, reason, payloads)

    def _forget(self, entry: _Entry) -> None:
        self._leave_waiting(entry)
        del self._held[entry.item.id]
        self._held_bytes -= entry.item.size_bytes

    def _leave_waiting(self, entry: _Entry) -> None:
        if entry.state is _WAITING:
            self._waiting -= 1

    def _release(self, items: Sequence[Item], reason: ReleaseReason) -> moves.Release:
        ids = tuple(item.id for item in items)
        self._unstored.update(dict.fromkeys(ids, reason))
        return moves.Release(ids, reason, [item.payload for item in items])

    def _due_at(self, entry: _Entry, deadline_ms: int) -> None:
        entry.deadline_ms = deadline_ms
        self._due_ms = min(self._due_ms, deadline_ms)

    def _forget_above(self, position: EntryId) -> None:
        """What is above the position is gone with a life of the stream (D4); the same ids may name other events now."""
        top = entry_order(position)
        for entry in [entry for entry_id, entry in self._held.items() if entry_order(entry_id) > top]:
            self._forget(entry)
        for entry_id in [entry_id for entry_id in self._unstored if entry_order(entry_id) > top]:
            del self._unstored[entry_id]
        self._previous = position

    def _clear(self) -> None:
        self._held.clear()
        self._unstored.clear()
        self._ended.clear()
        self._held_bytes = self._waiting = self._owed = self._reserved = 0
        self._due_ms = _NEVER
