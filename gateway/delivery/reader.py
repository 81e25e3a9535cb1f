"""Where a node talks to the store for its sessions: reads, acks, and the steps that only Redis can take, in cycles.

A cycle takes up all that has gathered and leaves in one write; the next one begins when it is answered. So the batches
grow by themselves with the load, and a session has at most one read under way.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from typing import Final

from eventbus import moves, wire
from eventbus.clock import Clock, seconds
from eventbus.errors import StoreError
from eventbus.ids import EntryId, UserId
from eventbus.store import NewRead, PendingPage, ReadRequest, ReadState, ReleaseReason, Store
from gateway.counters import Counters
from gateway.delivery.confirming import Confirming
from gateway.delivery.kept_acks import KeptAcks, count_age
from gateway.delivery.refused import put_off
from gateway.delivery.room import Room
from gateway.delivery.steps import Step, Steps
from gateway.sessions.session import Session
from gateway.transport.payload import Payload, facts_of, payload_of

__all__ = ["Reader"]

logger = logging.getLogger(__name__)

READS_MAX: Final = 512
"""Most sessions that one cycle reads for; the others go first in the next."""

PAGES_MAX: Final = 128
"""Most pages of pending entries under way in one cycle."""

CYCLE_MAX_MS: Final = 3_000
"""A cycle that stands for longer reads for nobody: the node is not ready."""

PAUSE_MS: Final = 100
"""How long a cycle waits after the store failed."""


class Reader:
    """The cycles of one lane.

    Args:
        store: where everything is.
        clock: the node's.
        counters: what the node counts.
        store_wait_ms: so long may an ack wait before a client that wants an answer is told.
        room: for the confirmations of all lanes; its own when absent.
    """

    def __init__(
        self, store: Store, clock: Clock, counters: Counters, *, store_wait_ms: int, room: Room | None = None
    ) -> None:
        self._store = store
        self._clock = clock
        self._counters = counters
        self._dirty: dict[Session, None] = {}
        self._acks = KeptAcks(
            store, clock, counters, store_wait_ms=store_wait_ms, failed=self._failed, wanted=self._begin
        )
        self._confirming = Confirming(
            store, clock, counters, store_wait_ms=store_wait_ms, room=room, wanted=self._begin
        )
        self._steps = Steps(store, counters, failed=self._failed, wanted=self._begin)
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
        self._acks.add(session, said, ref)
        self._ack_came.set()
        self._begin()

    def confirm(self, session: Session, acks: moves.Acknowledge, ack: wire.Ack) -> bool:
        """Puts a confirmation above `received` on its way. Returns False when too many of its connection wait."""
        if acks.ids:
            wall_ms, now_ms = self._clock.now_ms(), self._clock.monotonic_ms()
            count_age(self._counters.ack_seconds, session, acks.ids[0], len(acks.ids), wall_ms, now_ms)
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
        self._steps.add(session, effect)
        self._begin()

    def leave(self, session: Session) -> None:
        """Gives the session's hold up, after its acks."""
        self._dirty.pop(session, None)
        self._acks.leave(session)
        self._begin()

    def _begin(self) -> None:
        self._wanted.set()
        self._idle.clear()

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
        acks = self._acks.take()
        steps = self._steps.take()
        reads, pages = self._take_reads()
        # Acks go first: an entry that is acked in this cycle is not pending for a page that is read in it.
        work = [self._acks.store(acks)] if acks else []
        if self._confirming.waiting:
            work.append(self._confirming.carry_out())
        if reads:
            work.append(self._read(reads))
        work += [self._page(session, read, attaches) for session, read, attaches in pages]
        work += [self._steps.carry_out(session, step) for session, step in steps]
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
            if len(reads) >= READS_MAX or len(pages) >= PAGES_MAX:
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
                answered = self._read_failed(session, answer) and answered
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
                    count_age(self._counters.delivery_seconds, session, first, count, wall_ms, now_ms)
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

    def _read_failed(self, session: Session, error: StoreError) -> bool:
        """The session attaches again; one whose read is refused does so later, and alone. Returns whether the store
        answered.
        """
        self._failed(error)
        if error.retryable:
            session.apply(moves.ReadFailed())
            return False
        attaches = session.attaches

        def again() -> None:
            # Unless an attach that was answered meanwhile began anew.
            if session.attaches == attaches:
                session.apply(moves.ReadFailed())

        put_off(again)
        return True

    async def _page(self, session: Session, read: moves.ReadPending, attaches: int) -> bool:
        try:
            page = await self._store.read_pending(session.fence, read.after, read.count)
        except StoreError as error:
            session.count_read()
            return self._read_failed(session, error)
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
