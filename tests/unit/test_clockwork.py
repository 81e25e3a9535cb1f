"""The turning of the wheel, and what a node does about having stood still."""

from __future__ import annotations

import asyncio
import logging

import pytest

from eventbus.testing import ManualClock
from gateway.sessions.clockwork import STALL_MS, TICK_MS, Clockwork
from gateway.sessions.wheel import NEVER_MS, Wheel
from tests.support.waiting import until


class Item:
    def __init__(self, due_ms: int) -> None:
        self.wheel_slot = -1
        self.due_ms = due_ms


class Works:
    """A clockwork that writes down what it calls."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.wheel: Wheel[Item] = Wheel(tick_ms=TICK_MS, now_ms=0)
        self.calls: list[tuple[str, object]] = []
        self.works = Clockwork(self.clock, self.wheel, due=self._due, stalled=self._stalled)

    def _due(self, item: Item, now_ms: int) -> None:
        self.calls.append(("due", item))
        item.due_ms = NEVER_MS

    def _stalled(self, by_ms: int) -> None:
        self.calls.append(("stalled", by_ms))

    def put(self, due_ms: int) -> Item:
        item = Item(due_ms)
        self.wheel.place(item)
        return item


def test_an_item_comes_up_when_it_is_due_and_not_before() -> None:
    made = Works()
    item = made.put(1_000)
    made.clock.advance(999)
    made.works.turn()
    assert made.calls == []
    made.clock.advance(TICK_MS)
    made.works.turn()
    assert made.calls == [("due", item)]
    assert made.works.turned_ms == made.clock.monotonic_ms()


def test_items_come_up_in_the_order_of_their_slots() -> None:
    made = Works()
    late, early = made.put(3_000), made.put(1_000)
    made.clock.advance(4_000)
    made.works.turn()
    assert [item for _, item in made.calls] == [early, late]


async def test_it_ticks_by_itself() -> None:
    made = Works()
    item = made.put(100)
    running = asyncio.create_task(made.works.run())
    try:
        made.clock.advance(200)
        await until(lambda: made.calls == [("due", item)])
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


@pytest.mark.requirement("R2")
async def test_a_stall_is_told_before_anything_is_found_due(caplog: pytest.LogCaptureFixture) -> None:
    """D23."""
    made = Works()
    item = made.put(1_000)
    running = asyncio.create_task(made.works.run())
    try:
        await asyncio.sleep(0)
        made.clock.advance(STALL_MS + TICK_MS + 1_000)
        await until(lambda: len(made.calls) == 2)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert made.calls == [("stalled", STALL_MS + 1_000), ("due", item)]
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    caplog.clear()


async def test_a_short_delay_is_no_stall() -> None:
    made = Works()
    made.put(1_000)
    running = asyncio.create_task(made.works.run())
    try:
        await asyncio.sleep(0)
        made.clock.advance(STALL_MS - 1)
        await until(lambda: made.calls)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert [kind for kind, _ in made.calls] == ["due"]
