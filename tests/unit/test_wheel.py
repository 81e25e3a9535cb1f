"""The timing wheel: everything comes up when it is due, and nothing before."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.sessions.wheel import NEVER_MS, Wheel

TICK_MS = 50


class Alarm:
    """Something that is due."""

    def __init__(self, due_ms: int) -> None:
        self.due_ms = due_ms
        self.wheel_slot = -1


def placed(*alarms: Alarm, now_ms: int = 0) -> Wheel[Alarm]:
    wheel: Wheel[Alarm] = Wheel(tick_ms=TICK_MS, now_ms=now_ms)
    for alarm in alarms:
        wheel.place(alarm)
    return wheel


def test_item_comes_up_when_it_is_due_and_at_most_a_tick_later() -> None:
    alarm = Alarm(1_010)
    wheel = placed(alarm)
    assert list(wheel.turn(1_009)) == []
    assert list(wheel.turn(1_010 + TICK_MS)) == [alarm]
    assert (len(wheel), alarm.wheel_slot) == (0, -1)


def test_item_that_is_due_already_comes_up_with_the_next_turn() -> None:
    alarm = Alarm(3)
    wheel = placed(alarm, now_ms=10_000)
    assert list(wheel.turn(10_000 + TICK_MS)) == [alarm]


def test_item_that_is_never_due_is_not_taken() -> None:
    wheel = placed(Alarm(NEVER_MS))
    assert len(wheel) == 0


def test_item_made_earlier_comes_up_earlier_and_once() -> None:
    alarm = Alarm(9_000)
    wheel = placed(alarm)
    alarm.due_ms = 1_000
    wheel.place(alarm)
    assert len(wheel) == 1
    assert list(wheel.turn(1_000)) == [alarm]
    assert list(wheel.turn(20_000)) == []


def test_item_made_later_is_put_back_when_its_old_time_comes() -> None:
    alarm = Alarm(1_000)
    wheel = placed(alarm)
    alarm.due_ms = 9_000
    wheel.place(alarm)
    assert list(wheel.turn(1_000)) == []
    assert list(wheel.turn(9_000)) == [alarm]


def test_item_that_will_never_be_due_any_more_leaves_when_its_old_time_comes() -> None:
    alarm = Alarm(1_000)
    wheel = placed(alarm)
    alarm.due_ms = NEVER_MS
    assert list(wheel.turn(1_000)) == []
    assert len(wheel) == 0


def test_removed_item_does_not_come_up() -> None:
    alarm, other = Alarm(1_000), Alarm(1_000)
    wheel = placed(alarm, other)
    wheel.remove(alarm)
    wheel.remove(alarm)
    assert list(wheel.turn(1_000)) == [other]


def test_item_removed_while_the_wheel_is_turned_does_not_come_up() -> None:
    alarms = [Alarm(1_000) for _ in range(5)]
    wheel = placed(*alarms)
    for alarm in wheel.turn(1_000):
        for other in alarms:
            if other is not alarm:
                wheel.remove(other)
        alarms.remove(alarm)
    assert len(alarms) == 4


def test_item_that_is_due_again_at_once_waits_for_the_next_turn() -> None:
    alarm = Alarm(1_000)
    wheel = placed(alarm)
    for item in wheel.turn(1_000):
        wheel.place(item)
    assert list(wheel.turn(1_000)) == []
    assert list(wheel.turn(1_000 + TICK_MS)) == [alarm]


def test_turn_that_is_left_in_the_middle_forgets_nothing() -> None:
    alarms = [Alarm(1_000) for _ in range(3)]
    wheel = placed(*alarms)
    first = next(iter(wheel.turn(1_000)))
    wheel.place(alarms[1])  # it has come up already
    rest = list(wheel.turn(1_001))
    assert {first, *rest} == set(alarms)


@pytest.mark.parametrize("stall_ms", [0, 3_600_000])
def test_long_stall_brings_up_everything_that_came_due_in_it(stall_ms: int) -> None:
    alarms = [Alarm(due_ms) for due_ms in (100, 5_000, 20_000)]
    wheel = placed(*alarms, Alarm(10**9))
    assert set(wheel.turn(20_000 + stall_ms)) == set(alarms)
    assert len(wheel) == 1


@given(
    due=st.lists(st.integers(0, 5_000), max_size=20),
    steps=st.lists(st.integers(1, 900), max_size=30),
    moved=st.lists(st.tuples(st.integers(0, 19), st.integers(0, 6_000)), max_size=20),
)
def test_nothing_comes_up_early_late_or_twice(due: list[int], steps: list[int], moved: list[tuple[int, int]]) -> None:
    alarms = [Alarm(due_ms) for due_ms in due]
    wheel = placed(*alarms)
    waiting = {alarm: alarm.due_ms for alarm in alarms}  # since when it may come up
    now_ms = 0
    for step, move in zip(steps, [*moved, *[None] * len(steps)], strict=False):
        if move is not None and move[0] < len(alarms) and alarms[move[0]] in waiting:
            alarms[move[0]].due_ms = move[1]
            wheel.place(alarms[move[0]])
            waiting[alarms[move[0]]] = max(now_ms, move[1])
        now_ms += step
        for alarm in wheel.turn(now_ms):
            assert alarm.due_ms <= now_ms
            del waiting[alarm]
        assert all(since_ms > now_ms - TICK_MS for since_ms in waiting.values())
        assert len(wheel) == len(waiting)
    assert set(waiting) == set(wheel.turn(40_000))
