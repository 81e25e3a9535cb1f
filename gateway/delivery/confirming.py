"""Confirmations above `received` on their way to the store: gathered by session and turn, kept until it answered."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from eventbus import wire
from eventbus.clock import Clock
from eventbus.errors import StoreError
from eventbus.fields import Level
from eventbus.ids import ConnectionId, EntryId
from eventbus.store import Confirmed, ConfirmRequest, EntryFacts, Store
from gateway.counters import Counters
from gateway.delivery.refused import put_off
from gateway.delivery.room import Place, Room

if TYPE_CHECKING:
    from gateway.sessions.session import Session

__all__ = ["Confirming", "room_of_confirmations"]

logger = logging.getLogger(__name__)

WAITING_MAX: Final = 16_384
"""Most entries of one connection that wait for the store; what is beyond is released, and its level is not recorded."""

WAITING_ALL_MAX: Final = 1_000_000
"""Most entries of all connections together that wait, some 200 MB; the same becomes of what is beyond."""


@dataclass(slots=True)
class _Wait:
    """One request to come. `since_ms` is monotonic, for a client that wants an answer."""

    session: Session
    level: Level
    ids: list[EntryId]
    facts: list[EntryFacts | None]
    note: str | None
    ref: wire.Ref | None
    since_ms: int
    weight: int

    @property
    def is_plain(self) -> bool:
        """Whether others of its session and level can go with it."""
        return self.note is None and self.ref is None


def room_of_confirmations() -> Room:
    """For the confirmations of all lanes of a node, in entries."""
    return Room(WAITING_ALL_MAX, WAITING_MAX)


class Confirming:
    """The confirmations of a node's sessions, also of those that are gone.

    Args:
        store: where they are recorded.
        clock: the node's.
        counters: what the node counts.
        store_wait_ms: so long may one wait before a client that wants an answer is told.
        room: for those of all lanes; its own when absent.
        wanted: called when there is something to record again.
    """

    def __init__(
        self,
        store: Store,
        clock: Clock,
        counters: Counters,
        *,
        store_wait_ms: int,
        room: Room | None = None,
        wanted: Callable[[], None] = lambda: None,
    ) -> None:
        self._store = store
        self._clock = clock
        self._counters = counters
        self._store_wait_ms = store_wait_ms
        self._wanted = wanted
        self._waits: list[_Wait] = []
        self._plain: dict[tuple[ConnectionId, Level], _Wait] = {}
        self._entries: Counter[ConnectionId] = Counter()
        self._place = Place(room or room_of_confirmations())

    @property
    def waiting(self) -> int:
        """How many requests wait for the store or are under way."""
        return len(self._waits)

    def add(self, session: Session, ids: Sequence[EntryId], facts: Sequence[EntryFacts | None], ack: wire.Ack) -> bool:
        """Puts a client's confirmation on its way. Returns False when too many of its connection wait already."""
        connection = session.connection_id
        # An empty one weighs as much as one entry: it has a place in the list as well.
        weight = max(1, len(ids))
        if self._entries[connection] + weight > WAITING_MAX or not self._place.take(weight):
            return False
        self._entries[connection] += weight
        since_ms = self._clock.monotonic_ms()
        wait = _Wait(session, ack.level, list(ids), list(facts), ack.note, ack.ref, since_ms, weight)
        known = self._plain.get((connection, ack.level)) if wait.is_plain else None
        if known is not None:
            known.ids.extend(ids)
            known.facts.extend(facts)
            known.weight += weight
            return True
        self._waits.append(wait)
        if wait.is_plain:
            self._plain[connection, ack.level] = wait
        return True

    async def carry_out(self) -> bool:
        """Writes what waits, and tells the sessions. Returns whether the store answered; what it missed is kept."""
        # What comes from here on waits for the next call.
        batch = list(self._waits)
        self._plain.clear()
        requests = [
            ConfirmRequest(
                user=wait.session.user,
                session=wait.session.session_id,
                level=wait.level,
                entries=tuple(wait.ids),
                note=wait.note,
                facts=tuple(wait.facts),
                connection=wait.session.connection_id,
            )
            for wait in batch
        ]
        answers: Sequence[Confirmed | StoreError]
        try:
            answers = await self._store.confirm_many(requests)
        except StoreError as error:
            answers = [error] * len(batch)
        kept: list[_Wait] = []
        for wait, answer in zip(batch, answers, strict=True):
            if isinstance(answer, StoreError):
                self._counters.store_errors[answer.code] += 1
                logger.debug("the store failed: %s", answer)
                self._tell_late(wait)
                if answer.retryable:
                    kept.append(wait)
                else:
                    self._put_off(wait)
            else:
                self._stored(wait, answer)
        self._waits[: len(batch)] = kept
        return not kept

    def _put_off(self, wait: _Wait) -> None:
        """Records a confirmation later that is refused. One of a session that is gone is given up."""

        def again() -> None:
            if wait.session.is_closed:
                self._let_go(wait)
            else:
                self._waits.append(wait)
                self._wanted()

        put_off(again)

    def _let_go(self, wait: _Wait) -> None:
        connection = wait.session.connection_id
        self._entries[connection] -= wait.weight
        self._place.give_back(wait.weight)
        if self._entries[connection] <= 0:
            del self._entries[connection]

    def _stored(self, wait: _Wait, answer: Confirmed) -> None:
        self._let_go(wait)
        self._counters.events_confirmed[wait.level] += answer.recorded
        wait.session.acks_stored(wait.ids, answer.released, wait.ref)

    def _tell_late(self, wait: _Wait) -> None:
        if wait.ref is not None and wait.since_ms <= self._clock.monotonic_ms() - self._store_wait_ms:
            wait.session.ack_is_late(wait.ref)
            wait.ref = None
