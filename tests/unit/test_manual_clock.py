"""The clock that tests move."""

from __future__ import annotations

import asyncio

import pytest

from eventbus.clock import Clock, new_event_id
from eventbus.ids import event_id_time_ms
from eventbus.testing import ManualClock


def test_clock_stands_still_until_it_is_advanced() -> None:
    clock = ManualClock(start_ms=1_000)

    assert (clock.now_ms(), clock.monotonic_ms()) == (1_000, 0)
    clock.advance(250)
    assert (clock.now_ms(), clock.monotonic_ms()) == (1_250, 250)


def test_clock_stands_in_for_the_clock_of_the_machine() -> None:
    clock: Clock = ManualClock()

    assert event_id_time_ms(new_event_id(clock)) == clock.now_ms()


def test_time_never_runs_backwards() -> None:
    clock = ManualClock()

    with pytest.raises(ValueError, match="forward only, not by -1 ms"):
        clock.advance(-1)

    assert clock.monotonic_ms() == 0


def test_wall_clock_jumps_alone() -> None:
    clock = ManualClock(start_ms=1_000)
    clock.advance(100)
    called: list[int] = []
    clock.call_later(50, lambda: called.append(clock.monotonic_ms()))

    clock.set_wall(500)

    assert (clock.now_ms(), clock.monotonic_ms(), called) == (500, 100, [])
    clock.advance(50)
    assert (clock.now_ms(), called) == (550, [150])


def test_timers_are_called_in_order_and_each_at_its_own_time() -> None:
    clock = ManualClock()
    calls: list[tuple[str, int]] = []
    for name, delay_ms in (("late", 30), ("early", 10), ("same", 30), ("beyond", 41)):
        clock.call_later(delay_ms, lambda name=name: calls.append((name, clock.monotonic_ms())))  # type: ignore[misc]

    clock.advance(40)

    assert calls == [("early", 10), ("late", 30), ("same", 30)]
    assert (clock.monotonic_ms(), clock.waiting) == (40, 1)


def test_timer_set_by_a_timer_falls_due_in_the_same_advance() -> None:
    clock = ManualClock()
    ticks: list[int] = []

    def tick() -> None:
        ticks.append(clock.monotonic_ms())
        clock.call_later(10, tick)

    clock.call_later(10, tick)
    clock.advance(35)

    assert ticks == [10, 20, 30]


def test_timer_without_delay_waits_for_the_next_advance() -> None:
    clock = ManualClock()
    called: list[int] = []
    clock.call_later(0, lambda: called.append(clock.monotonic_ms()))
    clock.call_later(-5, lambda: called.append(clock.monotonic_ms()))

    assert called == []
    clock.advance(0)
    assert called == [0, 0]


def test_cancelled_timer_is_not_called() -> None:
    clock = ManualClock()
    called: list[str] = []
    timer = clock.call_later(10, lambda: called.append("cancelled"))
    kept = clock.call_later(10, lambda: called.append("kept"))

    timer.cancel()
    timer.cancel()
    clock.advance(10)
    kept.cancel()

    assert (called, clock.waiting) == (["kept"], 0)


async def test_sleeper_wakes_when_its_time_is_reached() -> None:
    clock = ManualClock()
    woken: list[int] = []

    async def sleeper(ms: int) -> None:
        await clock.sleep(ms)
        woken.append(ms)

    async with asyncio.TaskGroup() as group:
        group.create_task(sleeper(20))
        group.create_task(sleeper(10))
        await clock.pass_time(0)
        await clock.pass_time(9)
        assert woken == []
        await clock.pass_time(1)
        assert woken == [10]
        await clock.pass_time(100)

    assert (woken, clock.waiting) == ([10, 20], 0)


async def test_cancelled_sleeper_leaves_no_timer_behind() -> None:
    clock = ManualClock()
    task = asyncio.create_task(clock.sleep(10))
    await asyncio.sleep(0)
    assert clock.waiting == 1

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert clock.waiting == 0
    clock.advance(10)


def test_clock_shows_where_it_stands() -> None:
    clock = ManualClock(start_ms=5)
    clock.call_later(1, lambda: None)

    assert repr(clock) == "<ManualClock now_ms=5 monotonic_ms=0 timers=1>"
