"""The readers, keepers and senders of a node: one for each lane of its store, so that sessions whose primary is away
hold up no others.

A store on one server uses one lane. Over a Cluster a lane is a range of slots (`eventbus.store.topology.lane_of`), and
what is done in it waits for nobody else's answers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Coroutine, Iterable
from typing import Any, Generic, TypeVar

from eventbus import moves, wire
from eventbus.clock import Clock
from eventbus.ids import NodeName, UserId
from eventbus.store import Store
from eventbus.store.topology import LANES
from gateway.counters import Counters
from gateway.delivery.confirming import room_of_confirmations
from gateway.delivery.keeper import Keeper
from gateway.delivery.reader import Reader
from gateway.delivery.sending import Sender, room_of_commands
from gateway.delivery.steps import Step
from gateway.sessions.session import Session

__all__ = ["Keepers", "Lanes", "Readers", "Senders", "run_together"]

T = TypeVar("T")


class Lanes(Generic[T]):
    """One of a kind for each lane of a store.

    Args:
        store: it says which lane a user has by `lane_of`, if it has several.
        make: makes one.

    Attributes:
        all: by the number of the lane.
    """

    def __init__(self, store: object, make: Callable[[], T]) -> None:
        self._lane_of: Callable[[UserId], int] | None = getattr(store, "lane_of", None)
        self.all = tuple(make() for _ in range(1 if self._lane_of is None else LANES))

    def __repr__(self) -> str:
        return " ".join(map(repr, self.all))

    def of(self, user: UserId) -> T:
        """The one that looks after a user."""
        return self.all[0 if self._lane_of is None else self._lane_of(user)]


class Keepers(Lanes[Keeper]):
    """All keepers of a node, with the names of one."""

    def __init__(self, store: Store, node: NodeName, counters: Counters) -> None:
        super().__init__(store, lambda: Keeper(store, node, counters))

    @property
    def waiting(self) -> int:
        """How many attaches wait."""
        return sum(keeper.waiting for keeper in self.all)

    def waiting_in(self, proven: Collection[int]) -> int:
        """How many attaches wait in these lanes; in all, where none of them is proven."""
        return sum(self.all[lane].waiting for lane in proven) if proven else self.waiting

    def attach(self, session: Session) -> None:
        """See `Keeper.attach`."""
        self.of(session.user).attach(session)

    def beat(self, session: Session) -> None:
        """See `Keeper.beat`."""
        self.of(session.user).beat(session)

    def forget(self, session: Session) -> None:
        """See `Keeper.forget`."""
        self.of(session.user).forget(session)

    async def run_attaches(self) -> None:
        """Carries the attaches of all lanes out until it is cancelled."""
        await run_together(keeper.run_attaches() for keeper in self.all)

    async def run_beats(self) -> None:
        """Carries the heartbeats of all lanes out until it is cancelled."""
        await run_together(keeper.run_beats() for keeper in self.all)


class Readers(Lanes[Reader]):
    """All readers of a node, with the names of one.

    Args:
        store: where everything is; it says which lane a user has by `lane_of`, if it has several.
        clock: the node's.
        counters: what the node counts.
        store_wait_ms: so long may an ack wait before a client that wants an answer is told.
    """

    def __init__(self, store: Store, clock: Clock, counters: Counters, *, store_wait_ms: int) -> None:
        room = room_of_confirmations()
        super().__init__(store, lambda: Reader(store, clock, counters, store_wait_ms=store_wait_ms, room=room))

    # --- how it stands ----------------------------------------------------------------------------------------------

    @property
    def failed_since_ms(self) -> int | None:
        """Since when a part of the store does not answer (monotonic); None while all do."""
        return min((since for one in self.all if (since := one.failed_since_ms) is not None), default=None)

    def problem(self, proven: Collection[int]) -> str | None:
        """Why nothing is read; None while something is.

        Args:
            proven: the lanes whose part of the store answers. One whose primary is away reads nothing, and that is not
                the node's fault.
        """
        problems = [self.all[lane].problem() for lane in proven]
        return problems[0] if problems and all(problems) else None

    @property
    def backlog(self) -> dict[str, int]:
        """What waits, by kind."""
        parts = [reader.backlog for reader in self.all]
        return {kind: sum(part[kind] for part in parts) for kind in parts[0]}

    @property
    def is_busy(self) -> bool:
        """Whether something waits or is under way."""
        return any(reader.is_busy for reader in self.all)

    # --- what sessions ask ------------------------------------------------------------------------------------------

    def want_read(self, session: Session) -> None:
        """See `Reader.want_read`."""
        self.of(session.user).want_read(session)

    def acknowledge(self, session: Session, said: moves.Acknowledge, ref: wire.Ref | None) -> None:
        """See `Reader.acknowledge`."""
        self.of(session.user).acknowledge(session, said, ref)

    def confirm(self, session: Session, acks: moves.Acknowledge, ack: wire.Ack) -> bool:
        """See `Reader.confirm`."""
        return self.of(session.user).confirm(session, acks, ack)

    def step(self, session: Session, effect: Step) -> None:
        """See `Reader.step`."""
        self.of(session.user).step(session, effect)

    def leave(self, session: Session) -> None:
        """See `Reader.leave`."""
        self.of(session.user).leave(session)

    async def ack_came(self) -> None:
        """Waits for the next ack of any client. A cancelled call leaves nothing behind."""
        if len(self.all) == 1:
            await self.all[0].ack_came()
            return
        waits = [asyncio.ensure_future(reader.ack_came()) for reader in self.all]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)

    # --- the cycles -------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Runs the cycles of all lanes until it is cancelled."""
        await run_together(reader.run() for reader in self.all)

    def stop_reading(self) -> None:
        """See `Reader.stop_reading`."""
        for reader in self.all:
            reader.stop_reading()

    async def flush(self, timeout_ms: int) -> bool:
        """See `Reader.flush`: of all lanes."""
        return all(await asyncio.gather(*(reader.flush(timeout_ms) for reader in self.all)))


class Senders(Lanes[Sender]):
    """All senders of a node, with the names of one.

    Args:
        store: where everything is.
        clock: the node's.
        counters: what the node counts.
        store_wait_ms: so long may a command wait before its client is told.
    """

    def __init__(self, store: Store, clock: Clock, counters: Counters, *, store_wait_ms: int) -> None:
        room = room_of_commands()
        super().__init__(store, lambda: Sender(store, clock, counters, store_wait_ms=store_wait_ms, room=room))

    @property
    def waiting(self) -> int:
        """How many commands wait for the store or are under way."""
        return sum(sender.waiting for sender in self.all)

    @property
    def is_busy(self) -> bool:
        """Whether something waits or is under way, commands or questions."""
        return any(sender.is_busy for sender in self.all)

    def take(self, session: Session, frame: wire.Send) -> None:
        """See `Sender.take`."""
        self.of(session.user).take(session, frame)

    def ask_again(self, session: Session) -> None:
        """See `Sender.ask_again`."""
        self.of(session.user).ask_again(session)

    async def run(self) -> None:
        """Stores what waits in all lanes until it is cancelled."""
        await run_together(sender.run() for sender in self.all)

    async def flush(self, timeout_ms: int) -> bool:
        """See `Sender.flush`: of all lanes."""
        return all(await asyncio.gather(*(sender.flush(timeout_ms) for sender in self.all)))


async def run_together(loops: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Runs the loops of all lanes until it is cancelled, or one of them fails."""
    async with asyncio.TaskGroup() as group:
        for loop in loops:
            group.create_task(loop, name="lane")
