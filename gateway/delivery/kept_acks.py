"""The acks of a node's sessions on their way to the store: kept until it answered, also those of sessions that are
gone (D1). A session's hold is given up only after its acks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from eventbus import moves, wire
from eventbus.clock import Clock
from eventbus.errors import StoreError
from eventbus.ids import ENTRY_ZERO, ConnectionId, EntryId
from eventbus.store import AckRequest, EntryFacts, Fence, Store
from gateway.counters import Counters
from gateway.delivery.refused import put_off
from gateway.histogram import Histogram
from gateway.sessions.session import Session
from gateway.transport.payload import facts_of

__all__ = ["KeptAcks", "Owed", "count_age"]

REFS_MAX: Final = 1_024
"""Most acks of one connection that wait with an answer to give; one more is kept, and its client told so at once."""


@dataclass(slots=True)
class Owed:
    """The acks of one session that Redis has not answered yet; kept when the session is gone. Those with an answer to
    give are asked for one by one.
    """

    fence: Fence
    session: Session | None
    ids: list[EntryId] = field(default_factory=list)
    facts: list[EntryFacts | None] = field(default_factory=list)
    refs: list[tuple[wire.Ref, AckRequest, int]] = field(default_factory=list)
    leaving: EntryId | None = None


class KeptAcks:
    """The acks of many sessions.

    Args:
        store: where they go.
        clock: the node's.
        counters: what the node counts.
        store_wait_ms: so long may an ack wait before a client that wants an answer is told.
        failed: told of each error of the store.
        wanted: called when there is something to store again.
    """

    def __init__(
        self,
        store: Store,
        clock: Clock,
        counters: Counters,
        *,
        store_wait_ms: int,
        failed: Callable[[StoreError], None],
        wanted: Callable[[], None],
    ) -> None:
        self._store = store
        self._clock = clock
        self._counters = counters
        self._store_wait_ms = store_wait_ms
        self._failed = failed
        self._wanted = wanted
        self._owed: dict[ConnectionId, Owed] = {}

    def __len__(self) -> int:
        """Of how many connections acks or a hold wait."""
        return len(self._owed)

    def add(self, session: Session, said: moves.Acknowledge, ref: wire.Ref | None) -> None:
        """Puts acks on their way; with `ref`, the answer is counted for these ids alone."""
        acks = self._of(session)
        if ref is not None and len(acks.refs) >= REFS_MAX:
            session.ack_is_late(ref)
            ref = None
        if ref is None:
            acks.ids.extend(said.ids)
            acks.facts.extend(facts_of(said.payloads))
        else:
            request = _request(acks.fence, said.ids, facts_of(said.payloads))
            acks.refs.append((ref, request, self._clock.monotonic_ms()))

    def leave(self, session: Session) -> None:
        """Gives the session's hold up, after its acks."""
        acks = self._of(session)
        acks.session = None
        acks.leaving = session.last_cursor

    def take(self) -> list[Owed]:
        """All that is owed, to be stored; what comes from here on waits for the next time."""
        owed, self._owed = self._owed, {}
        return list(owed.values())

    async def store(self, batch: Sequence[Owed]) -> bool:
        """Stores acks, tells their sessions, and gives up the holds of those that leave. Returns whether the store
        answered; what it did not take is kept.
        """
        requests: list[AckRequest] = []
        owners: list[tuple[Owed, wire.Ref | None, int]] = []
        for acks in batch:
            if acks.ids:
                requests.append(_request(acks.fence, acks.ids, acks.facts))
                owners.append((acks, None, 0))
            for wanted, request, since_ms in acks.refs:
                requests.append(request)
                owners.append((acks, wanted, since_ms))
        answers: Sequence[int | StoreError] = ()
        if requests:
            try:
                answers = await self._store.ack_many(requests)
            except StoreError as error:
                answers = [error] * len(requests)
        wall_ms, now_ms = self._clock.now_ms(), self._clock.monotonic_ms()
        failed: set[ConnectionId] = set()
        for (acks, ref, since_ms), request, answer in zip(owners, requests, answers, strict=True):
            if isinstance(answer, StoreError):
                self._failed(answer)
                if answer.retryable:
                    failed.add(acks.fence.connection)
                    self._keep(acks, request, ref, since_ms)
                else:
                    self._put_off(acks, request, ref, since_ms)
            elif acks.session is not None:
                if request.entries:
                    first, count = request.entries[0], len(request.entries)
                    count_age(self._counters.ack_seconds, acks.session, first, count, wall_ms, now_ms)
                acks.session.acks_stored(request.entries, answer, ref)
            else:
                self._counters.events_acked += answer
        leaving = [acks for acks in batch if acks.leaving is not None and acks.fence.connection not in failed]
        results = await asyncio.gather(*(self._detach(acks) for acks in leaving)) if leaving else ()
        return not failed and all(results)

    def _of(self, session: Session) -> Owed:
        acks = self._owed.get(session.connection_id)
        if acks is None:
            acks = self._owed[session.connection_id] = Owed(session.fence, session)
        return acks

    def _keep(self, acks: Owed, request: AckRequest, ref: wire.Ref | None, since_ms: int) -> None:
        """Keeps acks whose fate is unknown: XACK may be repeated."""
        kept = self._owed.setdefault(acks.fence.connection, Owed(acks.fence, acks.session))
        kept.leaving = kept.leaving or acks.leaving
        late = acks.session is not None and since_ms <= self._clock.monotonic_ms() - self._store_wait_ms
        if ref is not None and not late:
            kept.refs.append((ref, request, since_ms))
            return
        if ref is not None and acks.session is not None:
            acks.session.ack_is_late(ref)
        kept.ids[:0] = request.entries
        kept.facts[:0] = request.facts

    def _put_off(self, acks: Owed, request: AckRequest, ref: wire.Ref | None, since_ms: int) -> None:
        """Stores acks later that are refused. Those of a session that is gone are given up: what they were for comes
        again.
        """

        def again() -> None:
            if acks.session is not None and not acks.session.is_closed:
                self._keep(acks, request, ref, since_ms)
                self._wanted()

        put_off(again)

    async def _detach(self, acks: Owed) -> bool:
        try:
            await self._store.detach(acks.fence, acks.leaving or ENTRY_ZERO)
        except StoreError as error:
            # Its field in the live hash ages out by itself; nothing is lost.
            self._failed(error)
            return not error.retryable
        return True


def count_age(seconds: Histogram, session: Session, first: EntryId, count: int, wall_ms: int, now_ms: int) -> None:
    """Counts how long ago entries were stored; the first stands for those that came with it. What was stored before its
    client came waited for that, and says nothing of the bus.
    """
    took_ms = wall_ms - int(first.partition("-")[0])
    if took_ms <= now_ms - session.opened_ms:
        seconds.add(took_ms, count)


def _request(fence: Fence, ids: Sequence[EntryId], facts: Sequence[EntryFacts | None]) -> AckRequest:
    return AckRequest(
        user=fence.user, session=fence.session, entries=tuple(ids), facts=tuple(facts), connection=fence.connection
    )
