"""When a connection is looked at, and whether it may go on."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from gateway.sessions.liveness import AFTER_STALL_MS, Liveness, LivenessRules, Look
from gateway.transport.outbox import Backlog

RULES = LivenessRules(heartbeat_ms=20_000, beat_ms=10_000, stalled_ms=30_000, backlog_bytes=1_000_000)


def made(spread: int = 0, timeout_ms: int = 40_000) -> Liveness:
    return Liveness(RULES, connection_timeout_ms=timeout_ms, now_ms=0, spread=spread)


def look(liveness: Liveness, now_ms: int, **changes: Any) -> Look:
    fields: dict[str, Any] = {
        "silent_ms": 0,
        "token_left_ms": 3_600_000,
        "owes": False,
        "backlog": Backlog(waiting_bytes=0, stalled_ms=0),
    }
    return liveness.look(now_ms, **(fields | changes))


@pytest.mark.requirement("R24")
@pytest.mark.parametrize("spread", [0, 1, 7_777, 19_999, 16**6])
def test_looked_at_when_it_wants_to_a_connection_is_pinged_every_heartbeat(spread: int) -> None:
    liveness = made(spread)
    pings, now_ms = [], 0
    while now_ms < 300_000:
        now_ms = liveness.look_due_ms
        if look(liveness, now_ms).ping:
            pings.append(now_ms)
    assert pings[0] <= 20_000
    assert {later - earlier for earlier, later in pairwise(pings)} == {20_000}


@pytest.mark.requirement("R24")
@pytest.mark.parametrize("timeout_ms, allowed_ms", [(40_000, 50_000), (60_000, 60_000), (180_000, 180_000)])
def test_silence_is_judged_by_the_longer_of_the_tiers_time_and_two_and_a_half_heartbeats(
    timeout_ms: int, allowed_ms: int
) -> None:
    liveness = made(timeout_ms=timeout_ms)
    assert look(liveness, 1, silent_ms=allowed_ms).close is None
    assert look(liveness, 1, silent_ms=allowed_ms + 1).close == 4003


@pytest.mark.requirement("R9")
def test_only_a_large_backlog_that_stood_still_of_a_client_that_owes_nothing_is_a_slow_consumer() -> None:
    still = Backlog(waiting_bytes=1_000_001, stalled_ms=30_000)
    assert look(made(), 1, backlog=still).close == 4002
    assert look(made(), 1, backlog=still, owes=True).close is None
    assert look(made(), 1, backlog=Backlog(waiting_bytes=1_000_000, stalled_ms=90_000)).close is None
    assert look(made(), 1, backlog=Backlog(waiting_bytes=9_000_000, stalled_ms=29_999)).close is None


@pytest.mark.requirement("R23")
def test_a_token_that_ends_is_looked_at_then_and_not_before() -> None:
    liveness = made(spread=9_000)
    liveness.token_ends(0, 1_234)
    assert liveness.look_due_ms == 1_234
    assert look(liveness, 1_233, token_left_ms=1).close is None
    assert liveness.look_due_ms == 1_234
    assert look(liveness, 1_234, token_left_ms=0).close == 4004


def test_a_token_of_long_life_makes_no_look_earlier() -> None:
    liveness = made()
    due_ms = liveness.look_due_ms
    liveness.token_ends(0, 3_600_000)
    assert liveness.look_due_ms == due_ms


def test_after_a_stall_nobody_is_judged_for_a_moment() -> None:
    liveness = made()
    liveness.stood_still(70_000)
    assert liveness.look_due_ms == 70_000 + AFTER_STALL_MS


def test_heartbeats_and_looks_of_connections_that_came_together_are_spread() -> None:
    many = [made(spread=spread) for spread in range(0, 16**6, 99_991)]
    assert len({liveness.beat_due_ms for liveness in many}) > len(many) * 0.9
    assert all(5_000 <= liveness.beat_due_ms <= 10_000 for liveness in many)
    assert len({liveness.look_due_ms for liveness in many}) > len(many) * 0.9


def test_connection_is_due_when_the_first_of_its_times_comes() -> None:
    liveness = made()
    assert liveness.due_ms == liveness.look_due_ms < liveness.beat_due_ms
    liveness.look_due_ms = 20_000
    assert liveness.due_ms == liveness.beat_due_ms
