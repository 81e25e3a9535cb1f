"""Runs with very many calls of tools: cheap one after the other, and bounded at a time."""

from __future__ import annotations

import pytest

from eventbus.breach import MAX_MARKS, missed_deadline
from eventbus.errors import RunMisused
from eventbus.events import CallId
from eventbus.ids import RunId, UserId
from eventbus.run import MAX_OPEN_CALLS, RunState, Start, ToolEnd, ToolStart, next_call_id, step
from eventbus.store.running import DueRecord, RunRecord


def started() -> RunState:
    return step(RunState(), Start(agent="planner"))[0]


@pytest.mark.requirement("R16")
def test_the_ids_of_very_many_calls_are_kept_in_a_few_sets_and_none_is_used_again() -> None:
    state, calls = started(), 5_000
    for _ in range(calls):
        call_id = next_call_id(state)
        state, _made = step(state, ToolStart(call_id=call_id, tool="search"))
        state, _made = step(state, ToolEnd(call_id=call_id))
    assert sum(map(len, state.ended)) == calls
    assert len(state.ended) <= calls.bit_length()
    for number in (1, 2, calls // 2, calls):
        with pytest.raises(RunMisused, match="was begun in this run before"):
            step(state, ToolStart(call_id=CallId(f"call_{number}"), tool="search"))
        with pytest.raises(RunMisused, match="has ended before"):
            step(state, ToolEnd(call_id=CallId(f"call_{number}")))
    assert next_call_id(state) == f"call_{calls + 1}"


@pytest.mark.requirement("R17")
def test_a_run_has_so_many_open_calls_and_no_more_until_one_ends() -> None:
    state = started()
    for number in range(MAX_OPEN_CALLS):
        state, _ = step(state, ToolStart(call_id=CallId(f"c{number}"), tool="search"))
    with pytest.raises(RunMisused, match="1000 calls of tools are open"):
        step(state, ToolStart(call_id=CallId("more"), tool="search"))
    state, _ = step(state, ToolEnd(call_id=CallId("c0")))
    step(state, ToolStart(call_id=CallId("more"), tool="search"))


@pytest.mark.requirement("R17")
def test_breaches_beyond_the_marks_that_a_run_holds_are_counted_and_told_all_the_same() -> None:
    marks = {f"breach:call:c{number}": "1" for number in range(MAX_MARKS)}
    record = RunRecord(user=UserId("ann"), run=RunId("run_1"), fields={"state": "running", "agent": "a", **marks})
    due = DueRecord(partition=7, member="run ann run_1 call:more", due_ms=9_000, now_ms=9_700)
    settlement = missed_deadline(due, "call:more", record, posted=False)
    assert settlement.fields == {}
    assert settlement.counts == {"breaches": 1}
    assert settlement.announce is not None
