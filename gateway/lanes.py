"""The readers and keepers of a node: one for each lane of its store, so that sessions whose primary is away hold up no
others.

A store on one server uses one lane. Over a Cluster a lane is a range of slots (`eventbus.store.topology.lane_of`), and
what is done in it waits for nobody else's answers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Generic, TypeVar

from eventbus import moves, wire
from eventbus.clock import Clock
from eventbus.ids import NodeName, UserId
from eventbus.store import Store
from eventbus.store.topology import LANES
from gateway.counters import Counters
from gateway.keeper import Keeper
from gateway.reader import Reader, Step
from gateway.session import Session

__all__ = ["Keepers", "Readers"]

T = TypeVar("T")


class _Lanes(Generic[T]):
    """One of a kind for each lane of a store."""

    def __init__(self, store: Store, make: Callable[[], T]) -> None:
        self._lane_of: Callable[[UserId], int] | None = getattr(store, "lane_of", None)
        self._all = tuple(make() for _ in range(1 if self._lane_of is None else LANES))

    def __repr__(self) -> str:
        return " ".join(map(repr, self._all))

    def _of(self, session: Session) -> T:
        return self._all[0 if self._lane_of is None else self._lane_of(session.user)]


class Keepers(_Lanes[Keeper]):
    """All keepers of a node, with the names of one."""

    def __init__(self, store: Store, node: NodeName, counters: Counters) -> None:
        super().__init__(store, lambda: Keeper(store, node, counters))

    @property
    def waiting(self) -> int:
        """How many attaches wait."""
        return sum(keeper.waiting for keeper in self._all)

    def attach(self, session: Session) -> None:
        """See `Keeper.attach`."""
        self._of(session).attach(session)

    def beat(self, session: Session) -> None:
        """See `Keeper.beat`."""
        self._of(session).beat(session)

    def forget(self, session: Session) -> None:
        """See `Keeper.forget`."""
        self._of(session).forget(session)

    async def run_attaches(self) -> None:
        """Carries the attaches of all lanes out until it is cancelled."""
        await _run(keeper.run_attaches() for keeper in self._all)

    async def run_beats(self) -> None:
        """Carries the heartbeats of all lanes out until it is cancelled."""
        await _run(keeper.run_beats() for keeper in self._all)


class Readers(_Lanes[Reader]):
    """All readers of a node, with the names of one.

    Args:
        store: where everything is; it says which lane a user has by `lane_of`, if it has several.
        clock: the node's.
        counters: what the node counts.
        store_wait_ms: so long may an ack wait before a client that wants an answer is told.
    """

    def __init__(self, store: Store, clock: Clock, counters: Counters, *, store_wait_ms: int) -> None:
        super().__init__(store, lambda: Reader(store, clock, counters, store_wait_ms=store_wait_ms))

    # --- how it stands ----------------------------------------------------------------------------------------------

    @property
    def failed_since_ms(self) -> int | None:
        """Since when a part of the store does not answer (monotonic); None while all do."""
        return min((since for one in self._all if (since := one.failed_since_ms) is not None), default=None)

    def problem(self) -> str | None:
        """Why nothing is read; None while the cycles of some lane end, or nothing is to be read."""
        problems = [reader.problem() for reader in self._all if reader.is_busy]
        return None if not all(problems) else next(iter(problems), None)

    @property
    def backlog(self) -> dict[str, int]:
        """What waits, by kind."""
        parts = [reader.backlog for reader in self._all]
        return {kind: sum(part[kind] for part in parts) for kind in parts[0]}

    @property
    def is_busy(self) -> bool:
        """Whether something waits or is under way."""
        return any(reader.is_busy for reader in self._all)

    # --- what sessions ask ------------------------------------------------------------------------------------------

    def want_read(self, session: Session) -> None:
        """See `Reader.want_read`."""
        self._of(session).want_read(session)

    def acknowledge(self, session: Session, said: moves.Acknowledge, ref: wire.Ref | None) -> None:
        """See `Reader.acknowledge`."""
        self._of(session).acknowledge(session, said, ref)

    def confirm(self, session: Session, acks: moves.Acknowledge, ack: wire.Ack) -> bool:
        """See `Reader.confirm`."""
        return self._of(session).confirm(session, acks, ack)

    def step(self, session: Session, effect: Step) -> None:
        """See `Reader.step`."""
        self._of(session).step(session, effect)

    def leave(self, session: Session) -> None:
        """See `Reader.leave`."""
        self._of(session).leave(session)

    async def ack_came(self) -> None:
        """Waits for the next ack of any client. A cancelled call leaves nothing behind."""
        if len(self._all) == 1:
            await self._all[0].ack_came()
            return
        waits = [asyncio.ensure_future(reader.ack_came()) for reader in self._all]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)

    # --- the cycles -------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Runs the cycles of all lanes until it is cancelled."""
        await _run(reader.run() for reader in self._all)

    def stop_reading(self) -> None:
        """See `Reader.stop_reading`."""
        for reader in self._all:
            reader.stop_reading()

    async def flush(self, timeout_ms: int) -> bool:
        """See `Reader.flush`: of all lanes."""
        return all(await asyncio.gather(*(reader.flush(timeout_ms) for reader in self._all)))


async def _run(loops: Iterable[Coroutine[Any, Any, None]]) -> None:
    async with asyncio.TaskGroup() as group:
        for loop in loops:
            group.create_task(loop, name="lane")
