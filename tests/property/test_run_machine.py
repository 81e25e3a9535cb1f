"""The state machine of a run under hypothesis: whatever happens, what is owed comes, once and in order."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventbus.errors import InvalidEvent, RunMisused
from eventbus.events import CallId, Outcome
from eventbus.ids import RunId, UserId
from eventbus.run import (
    TABLE,
    TOOL_LEFT,
    Complete,
    Emit,
    Move,
    Owed,
    Phase,
    RunState,
    Start,
    Think,
    ToolEnd,
    ToolStart,
    next_call_id,
    resumed,
    step,
)
from eventbus.runs.closing import owed_by_record
from eventbus.schemas import CRITICAL_TYPES
from eventbus.store.running import RunRecord
from eventbus.watch import RunAbout, RunLimits, Watch, open_calls, seq_of, step_of, watch_of

pytestmark = pytest.mark.requirement("R16")

words = st.sampled_from(["", " ", "Hm", "x"])
calls = st.sampled_from(["a", "b", "c", "run_1"]).map(CallId)
moves: st.SearchStrategy[Move] = st.one_of(
    st.builds(Start, agent=words),
    st.builds(Think, text=words),
    st.builds(ToolStart, call_id=calls, tool=words),
    st.builds(ToolEnd, call_id=calls, result=st.none() | st.integers(0, 3), error=st.none() | words),
    st.builds(Emit, type=st.sampled_from(["note", *CRITICAL_TYPES]), data=st.just({})),
    st.builds(Complete, outcome=st.sampled_from(Outcome), result=st.none() | st.just(1), error=st.none() | words),
)


@dataclass
class Told:
    """What a user was told, and what of it is not allowed."""

    events: list[Owed] = field(default_factory=list)

    def check(self, state: RunState) -> None:
        types = [event.type for event in self.events]
        assert [event.seq for event in self.events] == list(range(1, len(self.events) + 1))
        assert state.seq == len(self.events)
        assert types.count("agent_started") == (state.phase is not Phase.NEW)
        assert types.count("agent_completed") == (state.phase is Phase.COMPLETED)
        assert not types or types[0] == "agent_started"
        assert "agent_completed" not in types[:-1]
        open_calls: dict[str, str] = {}
        seen = set()
        for event in self.events:
            if event.type == "tool_executing":
                assert event.data["call_id"] not in seen
                seen.add(event.data["call_id"])
                open_calls[event.data["call_id"]] = event.data["tool"]
            if event.type == "tool_completed":
                assert open_calls.pop(event.data["call_id"]) == event.data["tool"]
        assert open_calls == dict(state.open)
        if state.phase is Phase.COMPLETED:
            assert not open_calls


def walk(state: RunState, told: Told, walked: list[Move]) -> RunState:
    for move in walked:
        try:
            state, owed = step(state, move)
        except (RunMisused, InvalidEvent):
            continue  # nothing has happened, as the next check shows
        told.events += owed
        told.check(state)
    return state


@given(st.lists(moves, max_size=40), st.sampled_from(Outcome))
def test_whatever_happens_what_is_owed_comes_once_in_order_and_without_a_hole(
    walked: list[Move], outcome: Outcome
) -> None:
    told = Told()
    state = walk(RunState(), told, walked)
    if state.phase is Phase.NEW:
        state = walk(state, told, [Start(agent="planner")])
    still_open = list(state.open)
    if state.phase is Phase.STARTED:
        before = len(told.events)
        state = walk(state, told, [Complete(outcome=outcome)])
        ended = told.events[before:]
        assert [(event.type, event.data.get("call_id"), event.data.get("error")) for event in ended[:-1]] == [
            ("tool_completed", call_id, TOOL_LEFT) for call_id in still_open
        ]
        assert ended[-1].data == {"outcome": outcome.value}
    assert state.phase is Phase.COMPLETED
    assert told.events[-1].type == "agent_completed"


@given(st.lists(moves, max_size=20), moves)
def test_a_move_is_allowed_or_refused_with_a_sentence_that_helps(walked: list[Move], move: Move) -> None:
    state = walk(RunState(), Told(), walked)
    if (state.phase, type(move)) in TABLE:
        return
    with pytest.raises(RunMisused) as caught:
        step(state, move)
    assert "run" in str(caught.value)
    assert len(str(caught.value)) > 40


@given(st.lists(moves, max_size=20), st.integers(1, 6))
def test_ids_made_for_calls_are_never_used_again(walked: list[Move], count: int) -> None:
    told = Told()
    state = walk(RunState(), told, [Start(agent="planner"), *walked])
    for number in range(count if state.phase is Phase.STARTED else 0):
        call_id = next_call_id(state)
        state = walk(state, told, [ToolStart(call_id=call_id, tool="t"), *[ToolEnd(call_id=call_id)] * (number % 2)])
        assert told.events[-1].data["call_id"] == call_id


# --- against the hash in the store ------------------------------------------------------------------------------------

ABOUT = RunAbout(
    user=UserId("ada"), run=RunId("run_1"), agent="planner", owner="me", lease_ms=9_000, limits=RunLimits()
)


@dataclass
class Stored:
    """A run's hash and what is due of it, as the store would have them after each step."""

    fields: dict[str, str] = field(default_factory=dict)
    due: set[str] = field(default_factory=set)
    watch: Watch = field(default_factory=Watch)

    def take(self, owed: Owed, time_ms: int) -> None:
        self.watch, made = step_of(self.watch, ABOUT, owed.seq, owed.type, owed.data, time_ms)
        assert self.fields.get("state") != "completed"
        assert made.seq == int(self.fields.get("seq", "0")) + 1
        self.fields |= {"user": ABOUT.user, "seq": str(made.seq), "owner": made.owner, **made.fields}
        for name in made.gone:
            del self.fields[name]
        self.due |= set(made.watch)
        assert set(made.unwatch) - {"started"} <= self.due, "only what is watched is met"
        self.due -= set(made.unwatch)
        self.due = self.due | {"lease"} if made.lease_ms else self.due - {"lease"}

    @property
    def record(self) -> RunRecord:
        return RunRecord(user=ABOUT.user, run=ABOUT.run, fields=dict(self.fields))


def as_stored(walked: list[Move]) -> tuple[RunState, Stored]:
    state, stored = RunState(), Stored()
    for number, move in enumerate([Start(agent="planner"), *walked]):
        try:
            state, owed = step(state, move)
        except (RunMisused, InvalidEvent):
            continue
        for one in owed:
            stored.take(one, 1_000 + number)
    return state, stored


@given(st.lists(moves, max_size=40))
def test_the_hash_of_a_run_says_what_its_process_knows(walked: list[Move]) -> None:
    state, stored = as_stored(walked)
    record = stored.record
    assert seq_of(record) == state.seq
    assert open_calls(record) == dict(state.open)
    assert record.fields["state"] == ("completed" if state.phase is Phase.COMPLETED else "running")
    assert watch_of(record) == stored.watch
    assert stored.due == (set() if state.phase is Phase.COMPLETED else {*stored.watch.names, "lease"})


@given(st.lists(moves, max_size=40))
def test_whoever_closes_a_run_owes_what_its_process_would(walked: list[Move]) -> None:
    """A process may be killed behind any of its events."""
    state, stored = as_stored(walked)
    owed = owed_by_record(stored.record, "lost")
    if state.phase is Phase.COMPLETED:
        assert owed == ()
        return
    _, expected = step(state, Complete(outcome=Outcome.FAILED, error="lost"))
    assert owed == expected
    for one in owed:
        stored.take(one, 9_000)
    assert stored.fields["state"] == "completed"
    assert stored.due == set()
    assert owed_by_record(stored.record) == ()


@given(st.lists(moves, max_size=20), st.lists(moves, max_size=20))
def test_a_resumed_run_goes_on_in_order(walked: list[Move], further: list[Move]) -> None:
    state, stored = as_stored(walked)
    if state.phase is Phase.COMPLETED:
        return
    again, owed = resumed(seq_of(stored.record), open_calls(stored.record))
    assert [one.data["call_id"] for one in owed] == list(state.open)
    stored.watch = watch_of(stored.record)
    for one in owed:
        stored.take(one, 2_000)
    for move in [*further, Complete(outcome=Outcome.SUCCESS)]:
        try:
            again, made = step(again, move)
        except (RunMisused, InvalidEvent):
            continue
        for one in made:
            stored.take(one, 3_000)
    assert again.phase is Phase.COMPLETED
    assert stored.fields["state"] == "completed"
    assert seq_of(stored.record) == again.seq


def test_every_move_is_known_to_the_table_or_refused_in_every_phase() -> None:
    for phase in Phase:
        for kind in get_args(Move):
            if (phase, kind) not in TABLE:
                with pytest.raises(RunMisused):
                    step(RunState(phase=phase), _example(kind))


def _example(kind: type[Move]) -> Move:
    examples: list[Move] = [
        Start(agent="a"),
        Think(text="a"),
        ToolStart(call_id=CallId("a"), tool="t"),
        ToolEnd(call_id=CallId("a")),
        Emit(type="note", data={}),
        Complete(outcome=Outcome.SUCCESS),
    ]
    return next(example for example in examples if type(example) is kind)
