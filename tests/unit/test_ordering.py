"""The order of runs: what is wrong is said once, at its event; what is extra is allowed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from eventbus import Bus
from eventbus.event import Event, make_event
from eventbus.ids import EntryId, RunId, UserId
from eventbus.inspection import run_timeline
from eventbus.ordering import OrderChecker, ProblemKind
from eventbus.store.running import DueRecord, RunRecord, Settlement
from eventbus.testing import ManualClock, MemoryStore
from eventbus.timeline import assemble

pytestmark = pytest.mark.requirement("R18")

ADA, RUN = UserId("ada"), RunId("run_1")
DATA: dict[str, dict[str, Any]] = {
    "agent_started": {"agent": "planner"},
    "agent_thinking": {"text": "Hm"},
    "tool_executing": {"tool": "search", "call_id": "a"},
    "tool_completed": {"tool": "search", "call_id": "a", "result": 1},
    "agent_completed": {"outcome": "success"},
}
SHORT = {"S": "agent_started", "T": "agent_thinking", "X": "tool_executing", "C": "tool_completed"}
SHORT |= {"E": "agent_completed", "n": "note"}


def event(letter: str, seq: int | None, run: str | None = RUN, id: str | None = None) -> Event:
    kind = SHORT[letter]
    return make_event(
        id=id or f"{run}-{letter}-{seq}",
        type=kind,
        user="ada",
        time_ms=1_000 + (seq or 0),
        data=DATA.get(kind, {}),
        run=run,
        seq=seq,
    )


def events(letters: str, seqs: Sequence[int] | None = None) -> list[Event]:
    return [event(letter, seq) for letter, seq in zip(letters, seqs or range(1, len(letters) + 1), strict=True)]


def kinds(told: Sequence[Event], *, from_start: bool = True) -> list[str]:
    checker = OrderChecker(from_start=from_start)
    found = [problem for one in told for problem in checker.see(one)]
    return [problem.kind.value for problem in (*found, *checker.missing())]


@pytest.mark.parametrize("letters", ["SE", "STE", "STXCE", "SXCXCE", "SnTnXnCnE", "SXTCTE", "STTTE"])
def test_whole_runs_have_no_problem(letters: str) -> None:
    assert kinds(events(letters)) == []


@pytest.mark.parametrize(
    "letters, seqs, expected",
    [
        ("STE", [1, 3, 4], ["hole"]),
        ("STE", [1, 2, 9], ["hole"]),
        ("STTE", [1, 3, 2, 4], ["hole", "repeated"]),
        ("TE", [2, 3], ["hole", "not_started"]),
        ("SSE", [1, 2, 3], ["started_again"]),
        ("SET", [1, 2, 3], ["after_end"]),
        ("SEE", [1, 2, 3], ["after_end"]),
        ("SCE", [1, 2, 3], ["not_executing"]),
        ("SXXCE", [1, 2, 3, 4, 5], ["executing_again"]),
        ("SXE", [1, 2, 3], ["not_completed"]),
        ("STX", [1, 2, 3], ["not_completed"]),
        ("S", [1], ["not_completed"]),
    ],
)
def test_each_wrong_order_is_reported_by_its_kind(letters: str, seqs: list[int], expected: list[str]) -> None:
    assert kinds(events(letters, seqs)) == expected


def test_a_problem_says_where_it_is_and_what_is_missing() -> None:
    checker = OrderChecker()
    (problem,) = [found for one in events("STE", [1, 5, 6]) for found in checker.see(one)]
    assert (problem.kind, problem.run, problem.seq) == (ProblemKind.HOLE, RUN, 5)
    assert problem.event == f"{RUN}-T-5"
    assert problem.detail == "events 2 to 4 are missing before event 5"


def test_a_redelivered_event_is_passed_over() -> None:
    told = events("STXCE")
    assert kinds([one for one in told for _ in range(3)]) == []
    assert kinds([*told, told[1]]) == []


def test_runs_do_not_disturb_each_other() -> None:
    one, other = events("SXCE"), [event(letter, seq, "run_2") for letter, seq in zip("STE", (1, 2, 3), strict=True)]
    mixed = [one[0], other[0], one[1], other[1], one[2], other[2], one[3]]
    assert kinds(mixed) == []


def test_events_without_a_run_or_a_number_are_extra() -> None:
    assert kinds([event("n", None, None), event("n", None), *events("SE"), event("n", None)]) == []


def test_a_critical_event_that_an_application_published_itself_is_judged_by_its_kind() -> None:
    assert kinds([event("T", None), *events("SE")]) == ["not_started", "started_again"]


def test_a_history_whose_beginning_is_gone_is_judged_from_there() -> None:
    assert kinds(events("TXCE", [7, 8, 9, 10]), from_start=False) == []
    assert kinds(events("TXE", [7, 9, 10]), from_start=False) == ["hole", "not_completed"]


# --- the timeline -----------------------------------------------------------------------------------------------------


async def test_a_timeline_shows_a_run_with_its_times_and_what_it_missed() -> None:
    clock = ManualClock()
    store = MemoryStore(clock=clock)
    async with Bus(store=store, clock=clock) as bus:
        start_ms = clock.now_ms()
        await bus.publish(user="ada", type="note", data={})
        async with bus.run(user="ada", agent="planner", thread="t1", requested_ms=start_ms - 200) as run:
            await run.flush()
            await clock.pass_time(2_500)
            await run.thinking("Hm")
            call = await run.tool("search", call_id="a").__aenter__()
            await run.flush()
            await _mark_what_is_due(store)
            running = await run_timeline(store, ADA, run.id)
            await call.__aexit__(None, None, None)
        timeline = await run_timeline(store, ADA, run.id)
        assert await run_timeline(store, ADA, RunId("run_unknown")) is None
    assert running is not None
    assert timeline is not None
    assert (running.state, running.open_calls, running.ended_ms, running.problems) == ("running", ("a",), None, ())
    assert (timeline.state, timeline.outcome, timeline.agent, timeline.thread) == (
        "completed",
        "success",
        "planner",
        "t1",
    )
    assert (timeline.requested_ms, timeline.started_ms) == (start_ms - 200, start_ms)
    assert (timeline.thinking_ms, timeline.ended_ms) == (start_ms + 2_500, start_ms + 2_500)
    assert [(one.seq, one.type) for one in timeline.events] == [
        (1, "agent_started"),
        (2, "agent_thinking"),
        (3, "tool_executing"),
        (4, "tool_completed"),
        (5, "agent_completed"),
    ]
    assert [one.stored_ms - start_ms for one in timeline.events] == [0, 2_500, 2_500, 2_500, 2_500]
    assert [(breach.name, breach.due_ms) for breach in timeline.breaches] == [("thinking", start_ms + 2_000)]
    assert (timeline.problems, timeline.open_calls) == ((), ())


async def _mark_what_is_due(store: MemoryStore) -> None:
    """What a node does, in short."""
    due: list[DueRecord] = []
    for answer in await store.due(range(store.settings.partitions), 10):
        assert isinstance(answer, list)
        due += answer
    for one in due:
        _, user, run, name = one.member.split(" ", 3)
        marked = Settlement(due=one, run=(UserId(user), RunId(run)), fields={f"breach:{name}": str(one.due_ms)})
        assert (await store.settle([marked]))[0]


def test_a_timeline_says_what_is_wrong_and_does_without_a_record() -> None:
    told = [(EntryId(f"{number}-0"), one) for number, one in enumerate(events("SXE", [1, 3, 4]), 5)]
    timeline = assemble(ADA, RUN, None, told)
    assert (timeline.state, timeline.agent, timeline.requested_ms) == ("", None, None)
    assert [problem.kind for problem in timeline.problems] == [ProblemKind.HOLE, ProblemKind.NOT_COMPLETED]
    open_run = RunRecord(user=ADA, run=RUN, fields={"state": "running"})
    assert assemble(ADA, RUN, open_run, told[:1]).problems == ()
