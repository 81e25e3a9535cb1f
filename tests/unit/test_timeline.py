"""The deadlines of a run's timeline: which were met, missed, are open, or were not needed."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from eventbus import Bus
from eventbus.cli.timeline import show_timeline, timeline_object
from eventbus.event import Event
from eventbus.ids import EntryId, EventId, RunId, UserId
from eventbus.store.running import RunRecord
from eventbus.testing import MemoryStore
from eventbus.timeline import DeadlineState, RunTimeline, TimelineDeadline, assemble, deadlines_of, run_timeline
from eventbus.watch import RunLimits

ADA, RUN = UserId("ada"), RunId("run_1")
LIMITS = RunLimits()
MET, MISSED, OPEN, NOT_NEEDED = DeadlineState

RUNNING = {"state": "running", "agent": "planner", "requested_ms": "500", "started_ms": "1000"}
COMPLETED = {**RUNNING, "state": "completed", "outcome": "success", "ended_ms": "9000"}


def event(type: str, seq: int, call: str | None = None) -> Event:
    data = {} if call is None else {"call_id": call, "tool": "search"}
    # The publisher's clock is a day behind: no deadline holds by it.
    return Event(id=EventId(f"e{seq}"), user=ADA, type=type, data=data, time_ms=0, run=RUN, seq=seq)


def timeline(fields: Mapping[str, str], *told: tuple[int, str, str | None]) -> RunTimeline:
    events = [(EntryId(f"{ms}-0"), event(kind, seq, call)) for seq, (ms, kind, call) in enumerate(told, 1)]
    return assemble(ADA, RUN, RunRecord(user=ADA, run=RUN, fields=fields), events)


STARTED, THOUGHT = (1_000, "agent_started", None), (3_300, "agent_thinking", None)
BEGUN, ENDED, COMPLETE = (
    (4_000, "tool_executing", "a"),
    (6_000, "tool_completed", "a"),
    (9_000, "agent_completed", None),
)


def by_name(found: tuple[TimelineDeadline, ...]) -> dict[str, TimelineDeadline]:
    return {one.deadline: one for one in found}


@pytest.mark.requirement("R17", "R27")
def test_what_came_in_time_is_met_and_what_came_late_says_by_how_much() -> None:
    fields = {**COMPLETED, "breach:thinking": "3000", "breaches": "1"}
    found = by_name(deadlines_of(timeline(fields, STARTED, THOUGHT, BEGUN, ENDED, COMPLETE), LIMITS))
    assert {name: one.state for name, one in found.items()} == {
        "started": MET,
        "thinking": MISSED,
        "completed": MET,
        "agent": MET,
    }
    assert (found["thinking"].due_ms, found["thinking"].met_ms, found["thinking"].late_ms) == (3_000, 3_300, 300)
    assert (found["started"].due_ms, found["started"].late_ms) == (1_500, None)
    assert (found["completed"].call, found["completed"].tool, found["completed"].due_ms) == ("a", "search", 9_000)


@pytest.mark.requirement("R17", "R27")
def test_what_a_run_still_owes_is_open_and_what_it_never_owed_is_not_needed() -> None:
    open_run = by_name(deadlines_of(timeline(RUNNING, STARTED, BEGUN), LIMITS))
    assert [open_run[name].state for name in ("thinking", "completed", "agent")] == [OPEN, OPEN, OPEN]
    over = by_name(deadlines_of(timeline(COMPLETED, STARTED, COMPLETE), LIMITS))
    assert (over["thinking"].state, over["thinking"].met_ms, over["agent"].state) == (NOT_NEEDED, None, MET)


@pytest.mark.requirement("R17", "R27")
def test_a_missed_deadline_is_shown_also_where_nothing_else_tells_of_it() -> None:
    fields = {"state": "requested", "breach:started": "700", "breach:lease": "800", "breach:executing:a": "900"}
    found = by_name(deadlines_of(timeline(fields), None))
    assert {name: (one.state, one.due_ms, one.met_ms) for name, one in found.items()} == {
        "started": (MISSED, 700, None),
        "lease": (MISSED, 800, None),
        "executing": (MISSED, 900, None),
    }
    late = by_name(deadlines_of(timeline({**RUNNING, "breach:executing:a": "3500"}, STARTED, BEGUN), None))
    assert (late["executing"].met_ms, late["executing"].late_ms, late["executing"].tool) == (4_000, 500, "search")


def test_without_the_limits_of_its_tier_what_was_met_has_no_time_when_it_was_due() -> None:
    found = by_name(deadlines_of(timeline(COMPLETED, STARTED, THOUGHT, COMPLETE), None))
    assert [(one.due_ms, one.state) for one in found.values()] == [(None, MET)] * 3


class _JustBegun(MemoryStore):
    """A run begins behind the first look at its record."""

    looks = 0

    async def run(self, user: UserId, run: RunId) -> RunRecord | None:
        self.looks += 1
        return None if self.looks == 1 else await super().run(user, run)


async def test_a_run_that_begins_while_it_is_looked_at_is_not_taken_for_one_that_is_forgotten() -> None:
    store = _JustBegun()
    async with Bus(store=store) as bus, bus.run(user=ADA, agent="planner") as run:
        await run.flush()
        store.looks = 0
        found = await run_timeline(store, ADA, run.id)
    assert found is not None
    assert (found.state, len(found.events)) == ("running", 1)


def test_a_run_of_which_only_events_are_left_owes_nothing() -> None:
    events = [(EntryId("1000-0"), event("agent_started", 1))]
    found = by_name(deadlines_of(assemble(ADA, RUN, None, events), LIMITS))
    assert [one.state for one in found.values()] == [NOT_NEEDED, NOT_NEEDED]


@pytest.mark.requirement("R27")
def test_a_run_is_shown_with_its_gaps_and_what_it_missed_where_it_was_due(capsys: pytest.CaptureFixture[str]) -> None:
    found = timeline({**COMPLETED, "breach:thinking": "3000"}, STARTED, THOUGHT, BEGUN, ENDED, COMPLETE)
    deadlines = deadlines_of(found, LIMITS)
    show_timeline(found, deadlines)
    said = capsys.readouterr()
    steps = [line.split()[1:] for line in said.out.split("\n\n")[1].splitlines()[1:]]
    assert [" ".join(words) for words in steps] == [
        "0 ms - 1 agent_started - -",
        "2.0 s - - missed: thinking - -",
        "2.3 s 2.3 s 2 agent_thinking - -",
        "3.0 s 700 ms 3 tool_executing search a",
        "5.0 s 2.0 s 4 tool_completed search a",
        "8.0 s 3.0 s 5 agent_completed - -",
    ]
    assert "Missed: thinking; it came 300 ms late." in said.err
    as_json = timeline_object(found, deadlines)
    assert [one["gap_ms"] for one in as_json["events"]] == [None, 2_300, 700, 2_000, 3_000]
    assert (as_json["breaches"], as_json["outcome"], as_json["started_ms"]) == (1, "success", 1_000)


def test_a_hole_in_the_order_and_a_dead_process_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    events = [(EntryId(f"{1_000 + seq}-0"), event(kind, seq)) for seq, kind in ((1, "agent_started"), (5, "note"))]
    fields = {**COMPLETED, "breach:lease": "1500"}
    found = assemble(ADA, RUN, RunRecord(user=ADA, run=RUN, fields=fields), events)
    show_timeline(found, deadlines_of(found, LIMITS))
    said = capsys.readouterr().err
    assert "order: " in said
    assert "was gone" in said
    assert "in order" not in said
