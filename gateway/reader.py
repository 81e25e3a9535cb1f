"""Where a node talks to the store for its sessions: reads, acks, and the steps that only Redis can take, in cycles.

A cycle takes up all that has gathered and leaves in one write; the next one begins when it is answered. So the batches
grow by themselves with the load, and a session has at most one read under way. Acks are kept until Redis answered (D1),
also those of sessions that are gone; a session's hold is given up only after its acks.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from eventbus import moves, wire
from eventbus.clock import Clock, seconds
from eventbus.errors import StoreError
from eventbus.ids import ENTRY_ZERO, ConnectionId, EntryId, EventId, UserId
from eventbus.store import (
    LOST,
    AckRequest,
    DeadLetter,
    DeadOutcome,
    EntryFacts,
    Fence,
    NewRead,
    PendingPage,
    ReadRequest,
    ReadState,
    ReleaseReason,
    Store,
)
from gateway.confirming import Confirming
from gateway.counters import Counters
from gateway.histogram import Histogram
from gateway.payload import Payload, facts_of, payload_of
from gateway.session import Session

__all__ = ["Reader"]

logger = logging.getLogger(__name__)

READS_MAX: Final = 512
"""Most sessions that one cycle reads for; the others go first in the next."""

STEPS_MAX: Final = 128
"""Most pages and steps under way in one cycle."""

REFS_MAX: Final = 1_024
"""Most acks of one connection that wait with an answer to give; one more is kept, and its client told so at once."""

CYCLE_MAX_MS: Final = 3_000
"""A cycle that stands for longer reads for nobody: the node is not ready."""

PAUSE_MS: Final = 100
"""How long a cycle waits after the store failed."""

Step = moves.Release | moves.Redeliver | moves.GiveUp


@dataclass(slots=True)
class _Acks:
    """The acks of one session that Redis has not answered yet; kept when the session is gone. Those with an answer to
    give are asked for one by one.
    """

    fence: Fence
    session: Session | None
    ids: list[EntryId] = field(default_factory=list)
    facts: list[EntryFacts | None] = field(default_factory=list)
    refs: list[tuple[wire.Ref, AckRequest, int]] = field(default_factory=list)
    leaving: EntryId | None = None


class Reader:
    """The cycles of a node.

    Args:
        store: where everything is.
        clock: the node's.
        counters: what the node counts.
        store_wait_ms: so long may an ack wait before a client that wants an answer is told.
    """

    def __init__(self, store: Store, clock: Clock, counters: Counters, *, store_wait_ms: int) -> None:
        self._store = store
        self._clock = clock
        self._counters = counters
        self._store_wait_ms = store_wait_ms
        self._dirty: dict[Session, None] = {}
        self._acks: dict[ConnectionId, _Acks] = {}
        self._confirming = Confirming(store, clock, counters, store_wait_ms=store_wait_ms)
        self._steps: list[tuple[Session, Step]] = []
        self._wanted = asyncio.Event()
        self._ack_came = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._reading = True
        self._failed_since_ms: int | None = None
        self._cycle_since_ms: int | None = None

    def __repr__(self) -> str:
        return f"<Reader dirty={len(self._dirty)} acks={len(self._acks)} steps={len(self._steps)}>"

    @property
    def failed_since_ms(self) -> int | None:
        """Since when the store does not answer (monotonic); None while it does."""
        return self._failed_since_ms

    def problem(self) -> str | None:
        """Why nothing is read; None while cycles end."""
        if self._cycle_since_ms is None:
            return None
        stands_ms = self._clock.monotonic_ms() - self._cycle_since_ms
        return f"a cycle of reads has stood for {stands_ms} ms" if stands_ms > CYCLE_MAX_MS else None

    @property
    def backlog(self) -> dict[str, int]:
        """What waits, by kind."""
        acks = len(self._acks) + self._confirming.waiting
        return {"reads": len(self._dirty), "acks": acks, "steps": len(self._steps)}

    @property
    def is_busy(self) -> bool:
        """Whether something waits or is under way."""
        return not self._idle.is_set()

    # --- what sessions ask ------------------------------------------------------------------------------------------

    def want_read(self, session: Session) -> None:
        """The session wants to read in the next cycle."""
        self._dirty[session] = None
        self._begin()

    def acknowledge(self, session: Session, said: moves.Acknowledge, ref: wire.Ref | None) -> None:
        """Puts acks on their way; with `ref`, the answer is counted for these ids alone."""
        acks = self._acks_of(session)
        if ref is not None and len(acks.refs) >= REFS_MAX:
            session.ack_is_late(ref)
            ref = None
        if ref is None:
            acks.ids.extend(said.ids)
            acks.facts.extend(facts_of(said.payloads))
        else:
            request = _request(acks.fence, said.ids, facts_of(said.payloads))
            acks.refs.append((ref, request, self._clock.monotonic_ms()))
        self._ack_came.set()
        self._begin()

    def confirm(self, session: Session, acks: moves.Acknowledge, ack: wire.Ack) -> bool:
        """Puts a confirmation above `received` on its way. Returns False when too many of its connection wait."""
        if acks.ids:
            wall_ms, now_ms = self._clock.now_ms(), self._clock.monotonic_ms()
            _count(self._counters.ack_seconds, session, acks.ids[0], len(acks.ids), wall_ms, now_ms)
        taken = self._confirming.add(session, acks.ids, facts_of(acks.payloads), ack)
        self._ack_came.set()
        self._begin()
        return taken

    async def ack_came(self) -> None:
        """Waits for the next ack of any client."""
        self._ack_came.clear()
        await self._ack_came.wait()

    def step(self, session: Session, effect: Step) -> None:
        """Puts a step on its way."""
        self._steps.append((session, effect))
        self._begin()

    def leave(self, session: Session) -> None:
        """Gives the session's hold up, after its acks."""
        self._dirty.pop(session, None)
        acks = self._acks_of(session)
        acks.session = None
        acks.leaving = session.last_cursor
        self._begin()

    def _begin(self) -> None:
        self._wanted.set()
        self._idle.clear()

    def _acks_of(self, session: Session) -> _Acks:
        acks = self._acks.get(session.connection_id)
        if acks is None:
            acks = self._acks[session.connection_id] = _Acks(session.fence, session)
        return acks

    # --- the cycles -------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Runs cycles until it is cancelled. What a cancelled cycle asked for may or may not have taken effect."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            self._cycle_since_ms = self._clock.monotonic_ms()
            answered = await self._cycle()
            self._cycle_since_ms = None
            if not answered:
                self._wanted.set()
                await asyncio.sleep(seconds(PAUSE_MS))
            if not self._wanted.is_set():
                self._idle.set()

    def stop_reading(self) -> None:
        """From now on only acks and steps are carried out: the node drains."""
        self._reading = False
        self._dirty.clear()

    async def flush(self, timeout_ms: int) -> bool:
        """Waits until every ack is stored and every hold given up. Returns False when the time did not suffice."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds(timeout_ms)):
                await self._idle.wait()
        return not self._acks and not self._confirming.waiting

    async def _cycle(self) -> bool:
        """One write to the store and its answers. Returns whether the store answered."""
        acks, self._acks = self._acks, {}
        steps, self._steps = self._steps[:STEPS_MAX], self._steps[STEPS_MAX:]
        reads, pages = self._take_reads()
        # Acks go first: an entry that is acked in this cycle is not pending for a page that is read in it.
        work = [self._ack(list(acks.values()))] if acks else []
        if self._confirming.waiting:
            work.append(self._confirming.carry_out())
        if reads:
            work.append(self._read(reads))
        work += [self._page(session, read, attaches) for session, read, attaches in pages]
        work += [self._carry_out(session, step) for session, step in steps]
        # One thing is the rule while little happens, and a task for it would cost more than the rest of the cycle.
        answers = [await work[0]] if len(work) == 1 else await asyncio.gather(*work)
        answered = all(answers)
        if answered:
            self._failed_since_ms = None
        elif self._failed_since_ms is None:
            self._failed_since_ms = self._clock.monotonic_ms()
        if self._steps or self._dirty:
            self._wanted.set()
        return answered

    def _take_reads(self) -> tuple[list[tuple[Session, ReadRequest]], list[tuple[Session, moves.ReadPending, int]]]:
        reads: list[tuple[Session, ReadRequest]] = []
        pages: list[tuple[Session, moves.ReadPending, int]] = []
        later: dict[Session, None] = {}
        for session in self._dirty:
            if len(reads) >= READS_MAX or len(pages) >= STEPS_MAX:
                later[session] = None
                continue
            read = session.delivery.take_read() if self._reading else None
            if read is None:
                continue
            session.count_read()
            if isinstance(read, moves.ReadNew):
                reads.append((session, ReadRequest(fence=session.fence, count=read.count, verify=read.verify)))
            else:
                pages.append((session, read, session.attaches))
        self._dirty = later
        return reads, pages

    def _failed(self, error: StoreError) -> None:
        self._counters.store_errors[error.code] += 1
        logger.debug("the store failed: %s", error)

    # --- reads ------------------------------------------------------------------------------------------------------

    async def _read(self, reads: Sequence[tuple[Session, ReadRequest]]) -> bool:
        answers: Sequence[NewRead | StoreError]
        try:
            answers = await self._store.read_new([request for _, request in reads])
        except StoreError as error:
            answers = [error] * len(reads)
        payloads: dict[tuple[UserId, EntryId], Payload | str] = {}
        wall_ms, now_ms = self._clock.now_ms(), self._clock.monotonic_ms()
        answered = True
        for (session, _), answer in zip(reads, answers, strict=True):
            session.count_read()
            if isinstance(answer, StoreError):
                answered = False
                self._failed(answer)
                session.apply(moves.ReadFailed())
            elif answer.state is ReadState.LOST:
                session.disowned()
                session.apply(moves.ReadFailed())
            elif answer.state is ReadState.NO_GROUP or answer.primary != session.primary:
                # Another primary than the one that knows the session: it may have lost what the session has seen, and
                # what it gives would hide that. The attach looks for the gap; these entries come with its pages.
                session.apply(moves.ReadFailed())
            else:
                if answer.entries:
                    first, count = answer.entries[0].id, len(answer.entries)
                    _count(self._counters.delivery_seconds, session, first, count, wall_ms, now_ms)
                items = []
                released = answer.released
                for entry in answer.entries:
                    key = (session.user, entry.id)
                    payload = payloads.get(key)
                    if payload is None:
                        payload = payloads[key] = payload_of(session.user, entry.id, entry.body)
                    item = self._item(session, entry.id, payload, 1, wall_ms)
                    if released and entry.id in released:
                        item.skip = ReleaseReason.RELEASED
                    items.append(item)
                session.apply(moves.NewItems(items=items, gap=answer.gap))
        return answered

    async def _page(self, session: Session, read: moves.ReadPending, attaches: int) -> bool:
        try:
            page = await self._store.read_pending(session.fence, read.after, read.count)
        except StoreError as error:
            self._failed(error)
            session.count_read()
            session.apply(moves.ReadFailed())
            return False
        session.count_read()
        if session.attaches != attaches:
            # An attach that was answered meanwhile began the pending list anew: this page is none of its.
            return True
        if isinstance(page, PendingPage) and page.primary != session.primary:
            session.apply(moves.ReadFailed())
        elif isinstance(page, PendingPage):
            wall_ms = self._clock.now_ms()
            items = []
            for entry in page.entries:
                payload = None if entry.body is None else payload_of(session.user, entry.id, entry.body)
                item = self._item(session, entry.id, payload, entry.attempts, wall_ms)
                if entry.released:
                    item.skip = ReleaseReason.RELEASED
                items.append(item)
            session.apply(moves.PendingItems(items=items, last=page.last))
        else:
            session.disowned()
            session.apply(moves.ReadFailed())
        return True

    def _item(
        self, session: Session, entry: EntryId, payload: Payload | str | None, attempts: int, wall_ms: int
    ) -> moves.Item:
        if payload is None:
            return moves.Item(id=entry, payload=None, attempts=attempts)
        if isinstance(payload, str):
            return moves.Item(id=entry, payload=None, attempts=attempts, poison=payload)
        head = payload.head
        expires_ms = None
        if head.expires_ms is not None:
            expires_ms = head.expires_ms - wall_ms + self._clock.monotonic_ms()
        return moves.Item(
            id=entry,
            payload=payload,
            size_bytes=payload.size_bytes,
            expires_ms=expires_ms,
            skip=session.skip_of(head, wall_ms),
            attempts=attempts,
            shared=payload.is_shared,
        )

    # --- acks and leaving -------------------------------------------------------------------------------------------

    async def _ack(self, batch: Sequence[_Acks]) -> bool:
        requests: list[AckRequest] = []
        owners: list[tuple[_Acks, wire.Ref | None, int]] = []
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
                failed.add(acks.fence.connection)
                self._keep(acks, request, ref, since_ms)
            elif acks.session is not None:
                if request.entries:
                    first, count = request.entries[0], len(request.entries)
                    _count(self._counters.ack_seconds, acks.session, first, count, wall_ms, now_ms)
                acks.session.acks_stored(request.entries, answer, ref)
            else:
                self._counters.events_acked += answer
        leaving = [acks for acks in batch if acks.leaving is not None and acks.fence.connection not in failed]
        results = await asyncio.gather(*(self._detach(acks) for acks in leaving)) if leaving else ()
        return not failed and all(results)

    def _keep(self, acks: _Acks, request: AckRequest, ref: wire.Ref | None, since_ms: int) -> None:
        """Keeps acks whose fate is unknown: XACK may be repeated."""
        kept = self._acks.setdefault(acks.fence.connection, _Acks(acks.fence, acks.session))
        kept.leaving = kept.leaving or acks.leaving
        late = acks.session is not None and since_ms <= self._clock.monotonic_ms() - self._store_wait_ms
        if ref is not None and not late:
            kept.refs.append((ref, request, since_ms))
            return
        if ref is not None and acks.session is not None:
            acks.session.ack_is_late(ref)
        kept.ids[:0] = request.entries
        kept.facts[:0] = request.facts

    async def _detach(self, acks: _Acks) -> bool:
        try:
            await self._store.detach(acks.fence, acks.leaving or ENTRY_ZERO)
        except StoreError as error:
            # Its field in the live hash ages out by itself; nothing is lost.
            self._failed(error)
            return False
        return True

    # --- steps ------------------------------------------------------------------------------------------------------

    async def _carry_out(self, session: Session, step: Step) -> bool:
        try:
            match step:
                case moves.Release():
                    facts = facts_of(step.payloads)
                    released = await self._store.release(session.fence, step.ids, step.reason, facts)
                    if released is LOST:
                        # What is still pending comes with the pages of the next attach, and is released then.
                        session.apply(moves.Stored(step.ids))
                        session.disowned()
                    else:
                        self._counters.events_released[step.reason] += released
                        session.apply(moves.Stored(step.ids))
                case moves.Redeliver():
                    await self._redeliver(session, step)
                case moves.GiveUp():
                    await self._give_up(session, step)
        except StoreError as error:
            self._failed(error)
            if session.is_closed:
                return False  # nobody waits for it any more: the next connection of the session takes it up
            if isinstance(step, moves.Release):
                self.step(session, step)
            elif isinstance(step, moves.Redeliver):
                session.apply(moves.StepFailed([entry.id for entry in step.entries]))
            else:
                session.apply(moves.StepFailed([step.id]))
            return False
        return True

    async def _redeliver(self, session: Session, step: moves.Redeliver) -> None:
        outcomes = await self._store.redeliver(session.fence, step.entries)
        if outcomes is LOST:
            session.apply(moves.StepFailed([entry.id for entry in step.entries]))
            session.disowned()
            return
        pairs = [(entry.id, outcome) for entry, outcome in zip(step.entries, outcomes, strict=True)]
        session.apply(moves.Redelivered(pairs))

    async def _give_up(self, session: Session, step: moves.GiveUp) -> None:
        payload = step.payload
        known = isinstance(payload, Payload)
        letter = DeadLetter(
            id=step.id,
            event=payload.head.id if known else EventId(""),
            type=payload.head.type if known else "",
            reason=step.reason,
            attempts=step.attempts,
            body=payload.body if known else b"",
        )
        outcome = await self._store.dead_letter(session.fence, letter)
        if outcome is LOST:
            session.apply(moves.StepFailed([step.id]))
            session.disowned()
            return
        if outcome is DeadOutcome.DEAD:
            # What makes an entry unreadable stands behind the colon: a label must not hold it.
            self._counters.events_dead_lettered[step.reason.partition(":")[0]] += 1
            logger.warning(
                "an event is given up and becomes a dead letter",
                extra={
                    "user": session.user,
                    "session": session.session_id,
                    "entry": step.id,
                    "event": letter.event,
                    "reason": step.reason,
                    "deliveries": step.attempts,
                },
            )
        session.apply(moves.GivenUp(step.id, dead=outcome is DeadOutcome.DEAD))


def _count(seconds: Histogram, session: Session, first: EntryId, count: int, wall_ms: int, now_ms: int) -> None:
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
