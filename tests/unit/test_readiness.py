"""Readiness stands on probes that came back, and on nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from zlib import crc32

import pytest

from eventbus.errors import StoreUnavailable
from eventbus.ids import NodeName, UserId
from eventbus.testing import ManualClock, MemoryStore
from gateway.readiness.probes import Readiness
from tests.support.waiting import until

NODE = NodeName("n1")
PROBE_MS = 50


class Channel(MemoryStore):
    """A store whose probes come back when the test says so.

    Attributes:
        written: the tokens that were written, in order.
        echo: whether they come back at once.
        ahead_ms: how far its clock is ahead.
    """

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(clock=clock)
        self.written: list[str] = []
        self.echo = True
        self.ahead_ms = 0
        self.readiness: Readiness | None = None

    async def probe(self, node: NodeName, token: str) -> None:
        async with self._call():
            assert node == NODE
            self.written.append(token)
            if self.echo and self.readiness is not None:
                self.readiness.probed(token)

    async def ping(self) -> int:
        return await super().ping() + self.ahead_ms


class Probed:
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.store = Channel(self.clock)
        self.readiness = Readiness(self.store, NODE, self.clock, probe_ms=PROBE_MS)
        self.store.readiness = self.readiness

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.readiness.run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def probes(self, count: int = 2) -> None:
        """Waits for so many more probes."""
        wanted = len(self.store.written) + count
        await until(lambda: len(self.store.written) >= wanted)
        await asyncio.sleep(0)


@pytest.mark.requirement("R30")
async def test_a_node_is_not_ready_before_its_first_probe_has_come_back() -> None:
    made = Probed()
    assert made.readiness.problem() == "no probe has come back yet"
    assert not made.readiness.first.is_set()
    async with made.running():
        await made.readiness.first.wait()
        assert made.readiness.problem() is None
        assert repr(made.readiness) == "<Readiness ready>"


@pytest.mark.requirement("R30")
async def test_a_node_whose_probes_do_not_come_back_is_deaf_and_its_store_is_not_away() -> None:
    made = Probed()
    async with made.running():
        await made.probes()
        made.store.echo = False
        made.clock.advance(made.readiness.proof_life_ms + 1)
        await made.probes()
        problem = made.readiness.problem()
        assert problem is not None
        assert "deaf" in problem
        assert made.readiness.store_failed_ms() == 0
        made.store.echo = True
        await until(lambda: made.readiness.problem() is None)


@pytest.mark.requirement("R30")
@pytest.mark.requirement("R25")
async def test_how_long_the_store_has_failed_is_known_and_forgotten_when_it_answers() -> None:
    made = Probed()
    async with made.running():
        await made.probes()
        made.store.fail(StoreUnavailable("no route to Redis"))
        made.clock.advance(60_000)
        assert made.readiness.store_failed_ms() >= 60_000
        await until(lambda: "no route to Redis" in (made.readiness.problem() or ""))
        made.store.heal()
        await until(lambda: made.readiness.problem() is None)
        assert made.readiness.store_failed_ms() == 0


@pytest.mark.requirement("R2")
async def test_the_time_for_which_the_node_itself_stood_still_is_not_held_against_the_store() -> None:
    """D23."""
    made = Probed()
    async with made.running():
        await made.probes()
        made.store.hang()
        made.clock.advance(90_000)
        made.readiness.stood_still(90_000)
        assert made.readiness.store_failed_ms() == 0
        made.clock.advance(60_000)
        assert made.readiness.store_failed_ms() >= 60_000


async def test_a_short_silence_is_not_counted_as_a_failing_store() -> None:
    made = Probed()
    async with made.running():
        await made.probes()
        made.store.hang()
        made.clock.advance(made.readiness.proof_life_ms - 1)
        assert made.readiness.store_failed_ms() == 0
        assert made.readiness.problem() is None


@pytest.mark.requirement("R30")
async def test_a_wake_up_that_is_later_than_the_next_probe_still_proves_the_path() -> None:
    made = Probed()
    made.store.echo = False
    async with made.running():
        await made.probes(3)
        first, *_ = made.store.written
        made.readiness.probed(first)
        assert made.readiness.problem() is None


@pytest.mark.requirement("R30")
async def test_a_wake_up_that_is_too_old_or_of_somebody_else_proves_nothing() -> None:
    made = Probed()
    made.store.echo = False
    async with made.running():
        await made.probes(1)
        old = made.store.written[0]
        made.clock.advance(made.readiness.proof_life_ms + 1)
        await made.probes(2)
        made.readiness.probed(old)
        made.readiness.probed("stranger")
        assert made.readiness.problem() is not None
        # What is proven is as old as the probe, not as its wake-up.
        token = made.store.written[-1]
        made.clock.advance(made.readiness.proof_life_ms + 1)
        made.readiness.probed(token)
        assert made.readiness.problem() is not None


async def test_the_stores_clock_is_compared_with_the_own_one() -> None:
    made = Probed()
    made.store.ahead_ms = 1_234
    async with made.running():
        await until(lambda: made.readiness.store_ahead_ms == 1_234)


async def test_a_probe_can_be_asked_for_at_once() -> None:
    made = Probed()
    made.readiness = Readiness(made.store, NODE, made.clock, probe_ms=60_000)
    made.store.readiness = made.readiness
    async with made.running():
        await made.probes(1)
        for _ in range(3):
            await asyncio.sleep(0)
            made.readiness.probe_at_once()
            await made.probes(1)


@pytest.mark.requirement("R25")
async def test_a_store_that_never_answers_a_probe_does_not_stop_the_probing() -> None:
    made = Probed()
    made.store.hang()
    async with made.running():
        await until(lambda: "does not answer" in (made.readiness.problem() or ""))
        made.store.resume()
        await until(lambda: made.readiness.problem() is None)


# --- a store in parts -------------------------------------------------------------------------------------------------


class Parts(Channel):
    """A store of three parts: what goes to those in `away` fails, and from those in `mute` no wake-up comes.

    Attributes:
        is_one: it is one server after all.
        lost: how many wake-ups did not come.
        clock_is_away: whether its time can not be asked.
    """

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(clock)
        self.away: set[int] = set()
        self.mute: set[int] = set()
        self.is_one = False
        self.lost = 0
        self.clock_is_away = False

    def lane_of(self, user: UserId) -> int:
        return 0 if self.is_one else crc32(user.encode()) % 3

    async def probe(self, node: NodeName, token: str) -> None:
        lane = self.lane_of(UserId(token))
        if lane in self.away:
            raise StoreUnavailable("a primary is away")
        async with self._call():
            self.written.append(token)
            if lane in self.mute:
                self.lost += 1
            elif self.readiness is not None:
                self.readiness.probed(token)

    async def ping(self) -> int:
        if self.clock_is_away:
            raise StoreUnavailable("a primary is away")
        return await super().ping()


class ProbedParts(Probed):
    def __init__(self) -> None:
        super().__init__()
        self.parts = self.store = Parts(self.clock)
        self.readiness = Readiness(self.store, NODE, self.clock, probe_ms=PROBE_MS)
        self.store.readiness = self.readiness

    async def proven(self, count: int) -> None:
        await until(lambda: len(self.readiness.proven) == count)

    async def pass_time(self, ms: int) -> None:
        """In steps in which every part that answers is proven anew."""
        while ms > 0:
            self.clock.advance(PROBE_MS)
            ms -= PROBE_MS
            self.readiness.probe_at_once()
            await self.probes(6)

    def user(self, part: int) -> UserId:
        return next(user for number in range(100) if self.parts.lane_of(user := UserId(f"user{number}")) == part)


@pytest.mark.requirement("R30")
@pytest.mark.requirement("R2")
async def test_a_node_is_ready_while_one_of_three_primaries_is_away() -> None:
    """All nodes have lost the same users: were none of them ready, the others would be shut out too."""
    made = ProbedParts()
    async with made.running():
        await made.proven(3)
        made.parts.away = {1}
        await made.pass_time(2 * made.readiness.proof_life_ms)
        assert made.readiness.problem() is None
        assert sorted(made.readiness.proven) == [0, 2]
        assert made.readiness.store_failed_ms() == 0
        assert made.readiness.failed_ms_of(made.user(1)) >= 2 * made.readiness.proof_life_ms
        assert made.readiness.failed_ms_of(made.user(0)) == 0
        assert not made.readiness.is_deaf
        made.parts.away = set()
        await made.proven(3)
        assert made.readiness.longest_failed_ms() == 0


@pytest.mark.requirement("R30")
async def test_a_node_is_not_ready_when_all_primaries_are_away() -> None:
    made = ProbedParts()
    async with made.running():
        await made.proven(3)
        made.parts.away = {0, 1, 2}
        made.clock.advance(made.readiness.proof_life_ms + 1)
        await until(lambda: "a primary is away" in (made.readiness.problem() or ""))
        assert made.readiness.store_failed_ms() > 0
        made.parts.away = {2}
        await until(lambda: made.readiness.problem() is None)


@pytest.mark.requirement("R30")
async def test_a_node_that_hears_one_of_three_primaries_no_more_is_not_ready() -> None:
    """That primary answers, so the fault is the node's own: another node may serve its users."""
    made = ProbedParts()
    async with made.running():
        await made.proven(3)
        made.parts.mute = {1}
        await made.pass_time(2 * made.readiness.proof_life_ms)
        assert "deaf" in (made.readiness.problem() or "")
        made.parts.mute = set()
        await until(lambda: made.readiness.problem() is None)


@pytest.mark.requirement("R30")
async def test_a_primary_that_took_a_wake_up_along_when_it_went_makes_nobody_deaf() -> None:
    made = ProbedParts()
    async with made.running():
        await made.proven(3)
        made.parts.mute = {1}
        await until(lambda: made.parts.lost == 1)
        made.parts.away = {1}
        for _ in range(4):
            await made.pass_time(made.readiness.proof_life_ms // 2)
            assert made.readiness.problem() is None


@pytest.mark.requirement("R2")
async def test_after_a_part_of_the_subscription_was_lost_the_others_are_proven_at_once() -> None:
    """Else all sessions would be looked after without wake-ups until the next probe."""
    made = ProbedParts()
    made.readiness = Readiness(made.store, NODE, made.clock, probe_ms=60_000)
    made.store.readiness = made.readiness
    async with made.running():
        await made.proven(3)
        made.readiness.unsubscribed()
        assert made.readiness.is_deaf
        await until(lambda: not made.readiness.is_deaf)


@pytest.mark.requirement("R2")
async def test_a_primary_whose_time_can_not_be_asked_is_not_the_whole_store() -> None:
    made = ProbedParts()
    async with made.running():
        await made.proven(3)
        made.parts.clock_is_away = True
        await made.pass_time(2 * made.readiness.proof_life_ms)
        assert made.readiness.store_failed_ms() == 0


async def test_a_store_that_turns_out_to_be_one_server_is_one_part() -> None:
    """Before its first answer it may be a Cluster."""
    made = ProbedParts()
    async with made.running():
        await made.proven(3)
        made.parts.is_one = True
        await until(lambda: made.readiness.parts == 1)
        assert made.readiness.problem() is None
