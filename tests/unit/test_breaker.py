"""The circuit breaker as a table of moves."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventbus.breaker import MOVES, Breaker, BreakerInput, BreakerState, Permit

OPEN_MS = 1_000
OPEN_MAX_MS = 3_000


def make(failures: int = 3) -> Breaker:
    return Breaker(failures=failures, open_ms=OPEN_MS, open_max_ms=OPEN_MAX_MS)


def opened(now_ms: int = 0) -> Breaker:
    breaker = make(1)
    breaker.failed(breaker.ask(now_ms), now_ms)
    assert breaker.state is BreakerState.OPEN
    return breaker


@pytest.mark.requirement("R5")
def test_failures_in_a_row_open_it_and_one_less_does_not() -> None:
    breaker = make(3)
    for _ in range(2):
        breaker.failed(breaker.ask(0), 0)
    assert (breaker.state, breaker.ask(0)) == (BreakerState.CLOSED, Permit.CALL)
    breaker.failed(breaker.ask(0), 0)
    assert (breaker.state, breaker.ask(0), breaker.opened) == (BreakerState.OPEN, Permit.WAIT, 1)


def test_an_answer_between_failures_starts_the_count_anew() -> None:
    breaker = make(2)
    for _ in range(5):
        breaker.failed(breaker.ask(0), 0)
        breaker.succeeded(breaker.ask(0))
    assert breaker.state is BreakerState.CLOSED


@pytest.mark.requirement("R5")
def test_nothing_passes_before_the_probe_is_due_and_one_probe_at_a_time_then() -> None:
    breaker = opened()
    assert breaker.ask(OPEN_MS - 1) is Permit.WAIT
    assert breaker.ask(OPEN_MS) is Permit.PROBE
    assert breaker.state is BreakerState.HALF_OPEN
    assert breaker.ask(OPEN_MS) is Permit.WAIT
    assert breaker.ask(OPEN_MS + 60_000) is Permit.WAIT


@pytest.mark.requirement("R5")
def test_a_probe_that_is_answered_closes_it() -> None:
    breaker = opened()
    breaker.succeeded(breaker.ask(OPEN_MS))
    assert (breaker.state, breaker.failures, breaker.ask(OPEN_MS)) == (BreakerState.CLOSED, 0, Permit.CALL)


def test_the_time_between_probes_doubles_up_to_its_limit_and_is_short_again_after_a_good_one() -> None:
    breaker = opened()
    now_ms = 0
    waits = []
    for _ in range(4):
        waits.append(breaker.next_probe_ms - now_ms)
        now_ms = breaker.next_probe_ms
        breaker.failed(breaker.ask(now_ms), now_ms)
    assert waits == [1_000, 2_000, 3_000, 3_000]
    now_ms = breaker.next_probe_ms
    breaker.succeeded(breaker.ask(now_ms))
    breaker.failed(breaker.ask(now_ms), now_ms)
    assert breaker.next_probe_ms == now_ms + OPEN_MS


def test_a_probe_that_was_withdrawn_is_given_to_the_next_who_asks() -> None:
    breaker = opened()
    assert breaker.ask(OPEN_MS) is Permit.PROBE
    breaker.withdrawn()
    assert breaker.ask(OPEN_MS) is Permit.PROBE


def test_a_sign_that_the_target_is_back_makes_the_probe_due() -> None:
    breaker = opened()
    breaker.seems_back(OPEN_MS // 2)
    assert breaker.ask(OPEN_MS // 2) is Permit.PROBE
    breaker.seems_back(OPEN_MS // 2)
    assert breaker.ask(OPEN_MS // 2) is Permit.WAIT, "one probe at a time"
    breaker.failed(Permit.PROBE, OPEN_MS // 2)
    assert breaker.next_probe_ms == OPEN_MS // 2 + 2 * OPEN_MS, "a sign alone closes nothing"


def test_a_late_failure_of_an_older_call_does_not_move_the_probe() -> None:
    breaker = opened()
    breaker.failed(Permit.CALL, 900)
    assert breaker.next_probe_ms == OPEN_MS
    assert breaker.ask(OPEN_MS) is Permit.PROBE
    breaker.failed(Permit.CALL, OPEN_MS)
    assert breaker.state is BreakerState.HALF_OPEN


@pytest.mark.parametrize("state", [BreakerState.OPEN, BreakerState.HALF_OPEN])
def test_a_late_answer_to_an_older_call_closes_it(state: BreakerState) -> None:
    breaker = opened()
    if state is BreakerState.HALF_OPEN:
        breaker.ask(OPEN_MS)
    breaker.succeeded(Permit.CALL)
    assert breaker.state is BreakerState.CLOSED
    if state is BreakerState.HALF_OPEN:
        breaker.failed(Permit.PROBE, OPEN_MS)  # the probe that was under way: one failure as any
        assert breaker.failures == 1


def test_no_way_leads_from_closed_straight_to_a_probe_and_every_input_has_a_move() -> None:
    edges = {(before, after) for (before, _), after in MOVES.items()}
    assert (BreakerState.CLOSED, BreakerState.HALF_OPEN) not in edges
    assert {state for _, state in edges} == set(BreakerState)
    assert {happened for _, happened in MOVES} == set(BreakerInput)


@given(
    st.lists(st.tuples(st.integers(0, 1_500), st.sampled_from(["ask", "good", "bad", "late good", "late bad", "none"])))
)
def test_any_history_is_made_of_moves_of_the_table(history: list[tuple[int, str]]) -> None:
    breaker, now_ms, permits = make(2), 0, [Permit.CALL]
    for wait_ms, step in history:
        now_ms += wait_ms
        probes = permits.count(Permit.PROBE)
        match step:
            case "ask":
                permit = breaker.ask(now_ms)
                if permit is not Permit.WAIT:
                    permits.append(permit)
            case "good" | "bad" | "none" if permits:
                permit = permits.pop()
                if step == "good":
                    breaker.succeeded(permit)
                elif step == "bad":
                    breaker.failed(permit, now_ms)
                elif permit is Permit.PROBE:
                    breaker.withdrawn()
            case "late good":
                breaker.succeeded(Permit.CALL)
            case "late bad":
                breaker.failed(Permit.CALL, now_ms)
        if breaker.state is BreakerState.HALF_OPEN:
            assert permits.count(Permit.PROBE) >= 1
        assert permits.count(Permit.PROBE) <= probes + 1
    # However it stands: when time passes and nothing is under way, it lets somebody through again.
    while permits:
        if permits.pop() is Permit.PROBE:
            breaker.withdrawn()
    assert breaker.ask(now_ms + OPEN_MAX_MS) is not Permit.WAIT
