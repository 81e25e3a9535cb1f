"""Deadlines hold by the store's clock, whatever the wall clock of an agent's machine says."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from eventbus import Bus
from eventbus.errors import RunTimeout
from eventbus.store_time import WINDOW_MS, StoreTime
from eventbus.testing import ManualClock
from eventbus.watch import RunLimits
from tests.unit.test_run_leases import World, made

pytestmark = pytest.mark.requirement("R17")

MINUTE_MS = 60_000


class WrongClock:
    """A clock whose wall time is off.

    Attributes:
        off_ms: by how much.
    """

    def __init__(self, clock: ManualClock, off_ms: int) -> None:
        self.off_ms = off_ms
        self._clock = clock
        self.monotonic_ms = clock.monotonic_ms
        self.call_later = clock.call_later

    def now_ms(self) -> int:
        return self._clock.now_ms() + self.off_ms


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with made() as one:
        yield one


async def bus_with(world: World, clock: WrongClock) -> Bus:
    bus = Bus(store=world.store, clock=clock)
    world.buses.append(bus)
    return await bus.__aenter__()


@pytest.mark.parametrize("off_ms", [-5 * MINUTE_MS, 5 * MINUTE_MS])
async def test_a_tool_in_time_is_no_breach_though_the_clock_is_off(world: World, off_ms: int) -> None:
    bus = await bus_with(world, WrongClock(world.clock, off_ms))
    async with bus.run(user="ada", agent="planner") as run:
        await run.thinking("Hm")
        await run.flush()
        async with run.tool("search", call_id="a") as tool:
            tool.result = 1
        await run.flush()
        await world.clock.pass_time(RunLimits().executing_ms + 1)
        assert await world.names() == []


@pytest.mark.parametrize("off_ms", [-5 * MINUTE_MS, 5 * MINUTE_MS])
async def test_a_tool_that_is_late_is_one_though_the_clock_is_off(world: World, off_ms: int) -> None:
    bus = await bus_with(world, WrongClock(world.clock, off_ms))
    async with bus.run(user="ada", agent="planner") as run:
        await run.thinking("Hm")
        await run.flush()
        world.store.hang()
        async with run.tool("search", call_id="a"):
            await world.clock.pass_time(RunLimits().executing_ms + 1)
            world.store.resume()
            await run.flush()
        assert await world.names() == ["executing:a"]


async def test_a_clock_that_jumps_within_a_run_makes_no_breach(world: World) -> None:
    clock = WrongClock(world.clock, 0)
    bus = await bus_with(world, clock)
    async with bus.run(user="ada", agent="planner") as run:
        await run.thinking("Hm")
        await run.flush()
        for off_ms in (-MINUTE_MS, MINUTE_MS, 0):
            clock.off_ms = off_ms
            async with run.tool("search") as tool:
                tool.result = 1
        await run.flush()
        await world.clock.pass_time(RunLimits().executing_ms + 1)
        assert await world.names() == []


@pytest.mark.requirement("R24")
@pytest.mark.parametrize("old_ms, new_ms", [(0, 5 * MINUTE_MS), (-5 * MINUTE_MS, 0), (5 * MINUTE_MS, -5 * MINUTE_MS)])
async def test_a_run_that_is_resumed_where_the_clock_is_another_has_what_is_left_of_its_time(
    world: World, old_ms: int, new_ms: int
) -> None:
    first = await bus_with(world, WrongClock(world.clock, old_ms))
    second = await bus_with(world, WrongClock(world.clock, new_ms))
    left = await first.run(user="ada", agent="planner", run="run_1").__aenter__()
    await left.flush()
    await world.clock.pass_time(25_000)

    async def work(reached: list[str]) -> None:
        async with second.run(user="ada", agent="planner", run="run_1", resume=True, on_timeout="cancel") as run:
            await world.clock.pass_time(RunLimits().run_ms - 25_000 - 1)
            await run.thinking("still here")
            reached.append("still here")
            await world.clock.pass_time(1)
            await run.thinking("too late")
            reached.append("too late")

    reached: list[str] = []
    with pytest.raises(RunTimeout):
        await work(reached)
    assert reached == ["still here"]


def test_nothing_is_known_of_the_stores_clock_before_it_has_answered() -> None:
    assert StoreTime().at(5) is None


def test_the_quickest_answer_tells_the_stores_clock_best() -> None:
    time = StoreTime()
    for stored_ms, made_ms in ((1_030, 0), (1_011, 10), (1_500, 100)):
        time.learn(stored_ms, made_ms)
    assert time.at(200) == 1_201


def test_a_store_whose_clock_went_forward_is_believed_after_two_windows() -> None:
    time = StoreTime()
    time.learn(1_000, 0)
    for made_ms in range(1_000, 3 * WINDOW_MS, 1_000):
        time.learn(made_ms + 9_000, made_ms)
    assert time.at(3 * WINDOW_MS) == 3 * WINDOW_MS + 9_000
