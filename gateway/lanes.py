"""The readers of a node: one for each lane of its store, so that sessions whose primary is away hold up no others.

A store on one server has one lane, and this is its reader. Over a Cluster a lane is a range of slots
(`eventbus.store.topology.lane_of`), and its cycles wait for nobody else's answers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from eventbus import moves, wire
from eventbus.clock import Clock
from eventbus.ids import UserId
from eventbus.store import Store
from eventbus.store.topology import LANES
from gateway.counters import Counters
from gateway.reader import Reader, Step
from gateway.session import Session

__all__ = ["Lanes"]


class Lanes:
    """All readers of a node, with the names of one.

    Args:
        store: where everything is; it says which lane a user has by `lane_of`, if it has several.
        clock: the node's.
        counters: what the node counts.
        store_wait_ms: so long may an ack wait before a client that wants an answer is told.
    """

    def __init__(self, store: Store, clock: Clock, counters: Counters, *, store_wait_ms: int) -> None:
        self._lane_of: Callable[[UserId], int] | None = getattr(store, "lane_of", None)
        self._readers = tuple(
            Reader(store, clock, counters, store_wait_ms=store_wait_ms)
            for _ in range(1 if self._lane_of is None else LANES)
        )

    def __repr__(self) -> str:
        return f"<Lanes {' '.join(f'{name}={count}' for name, count in self.backlog.items())}>"

    def _of(self, session: Session) -> Reader:
        return self._readers[0 if self._lane_of is None else self._lane_of(session.user)]

    # --- how it stands ----------------------------------------------------------------------------------------------

    @property
    def failed_since_ms(self) -> int | None:
        """Since when a part of the store does not answer (monotonic); None while all do."""
        return min((since for one in self._readers if (since := one.failed_since_ms) is not None), default=None)

    def problem(self) -> str | None:
        """Why nothing is read; None while the cycles of some lane end, or nothing is to be read."""
        problems = [reader.problem() for reader in self._readers if reader.is_busy]
        return None if not all(problems) else next(iter(problems), None)

    @property
    def backlog(self) -> dict[str, int]:
        """What waits, by kind."""
        parts = [reader.backlog for reader in self._readers]
        return {kind: sum(part[kind] for part in parts) for kind in parts[0]}

    @property
    def is_busy(self) -> bool:
        """Whether something waits or is under way."""
        return any(reader.is_busy for reader in self._readers)

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
        if len(self._readers) == 1:
            await self._readers[0].ack_came()
            return
        waits = [asyncio.ensure_future(reader.ack_came()) for reader in self._readers]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)

    # --- the cycles -------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Runs the cycles of all lanes until it is cancelled."""
        async with asyncio.TaskGroup() as group:
            for reader in self._readers:
                group.create_task(reader.run(), name="reader")

    def stop_reading(self) -> None:
        """See `Reader.stop_reading`."""
        for reader in self._readers:
            reader.stop_reading()

    async def flush(self, timeout_ms: int) -> bool:
        """See `Reader.flush`: of all lanes."""
        return all(await asyncio.gather(*(reader.flush(timeout_ms) for reader in self._readers)))
