"""How many come in at a time, and what the others are told."""

from __future__ import annotations

import pytest

from gateway.access.admission import BURST_MS, FIRST_WAIT_MS, WAIT_MAX_MS, WAITING_MS, Admission, Entry

PER_SECOND = 1_000


def admission(per_second: int = PER_SECOND, attaches_max: int = 100) -> Admission:
    return Admission(per_second, attaches_max, 0)


@pytest.mark.requirement("R10")
def test_a_storm_is_let_in_at_the_nodes_pace_whatever_its_size() -> None:
    door = admission()
    entered = sum(door.take(0, now_ms) for now_ms in range(2_000) for _ in range(20))
    assert entered == pytest.approx(2 * PER_SECOND + PER_SECOND * BURST_MS // 1_000, abs=5)


@pytest.mark.requirement("R10")
def test_who_comes_waits_behind_those_who_wait_and_is_sent_away_when_too_many_do() -> None:
    door = admission()
    assert door.enter(0, 0, 0) is Entry.NOW
    assert door.enter(1, 0, 0) is Entry.WAIT, "nobody overtakes"
    assert door.waiting_max == PER_SECOND * WAITING_MS // 1_000
    assert door.enter(door.waiting_max - 1, 0, 0) is Entry.WAIT
    assert door.enter(door.waiting_max, 0, 0) is Entry.AWAY


@pytest.mark.requirement("R10")
def test_nobody_comes_in_while_redis_has_too_many_sessions_to_open() -> None:
    door = admission(attaches_max=3)
    assert door.take(2, 0)
    assert not door.take(3, 0)
    assert door.enter(0, 3, 0) is Entry.WAIT


def test_without_a_pace_only_the_attaches_bound_the_door() -> None:
    door = admission(per_second=0, attaches_max=50)
    assert all(door.take(49, 0) for _ in range(10_000))
    assert not door.take(50, 0)


@pytest.mark.requirement("R10")
def test_places_in_the_line_are_as_far_apart_as_the_pace_and_never_too_far_away() -> None:
    door = admission()
    waits = [door.come_back_ms(0) for _ in range(5_000)]
    assert waits == sorted(waits)
    assert waits[0] >= FIRST_WAIT_MS
    assert waits[999] - waits[0] == pytest.approx(999, abs=2)
    many = [door.come_back_ms(0) for _ in range(100_000)]
    assert FIRST_WAIT_MS <= min(many) <= max(many) <= WAIT_MAX_MS


def test_a_line_that_has_passed_begins_anew() -> None:
    door = admission()
    for _ in range(5_000):
        door.come_back_ms(0)
    assert door.come_back_ms(60_000) <= FIRST_WAIT_MS + 2
