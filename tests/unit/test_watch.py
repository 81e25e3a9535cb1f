"""What is watched of a run: members, fields, and what each event changes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventbus.fields import Level
from eventbus.ids import EntryId, RunId, ThreadId, UserId
from eventbus.store.running import RunRecord, RunStep
from eventbus.watch import (
    AGENT,
    LEASE,
    STARTED,
    THINKING,
    DemandMember,
    RunAbout,
    RunLimits,
    RunMember,
    Watch,
    WebhookMember,
    breaches_of,
    call_name,
    demand_member,
    executing_name,
    open_calls,
    parse_member,
    request_fields,
    run_member,
    seq_of,
    step_of,
    watch_of,
    webhook_member,
)

pytestmark = pytest.mark.requirement("R17")

ALICE, RUN = UserId("alice"), RunId("run_1")
users = st.from_regex(r"[A-Za-z0-9_.@:|+-]{1,128}", fullmatch=True).map(UserId)
runs = st.from_regex(r"[A-Za-z0-9_.:-]{1,128}", fullmatch=True).map(RunId)
LIMITS = RunLimits(started_ms=11, thinking_ms=22, executing_ms=33, completed_ms=44, run_ms=55)


def about(**more: Any) -> RunAbout:
    return RunAbout(user=ALICE, run=RUN, agent="planner", owner="me", lease_ms=30_000, limits=LIMITS, **more)


def record(**fields: str) -> RunRecord:
    return RunRecord(user=ALICE, run=RUN, fields=fields)


def stepped(watch: Watch, type: str, data: Mapping[str, Any], seq: int = 2) -> tuple[Watch, RunStep]:
    return step_of(watch, about(), seq, type, data, 1_000)


@given(users, runs, st.text(min_size=1, max_size=128))
def test_deadlines_of_runs_are_read_as_they_were_written(user: UserId, run: RunId, call: str) -> None:
    """A call id may hold blanks, and anything else."""
    for name in (STARTED, THINKING, AGENT, LEASE, call_name(call), executing_name(call)):
        assert parse_member(run_member(user, run, name)) == RunMember(user, run, name)


@given(users, st.sampled_from(Level), st.integers(1, 99))
def test_other_members_are_read_as_they_were_written(user: UserId, level: Level, attempt: int) -> None:
    entry = EntryId("1750000000000-3")
    assert parse_member(demand_member(user, entry, level)) == DemandMember(user, entry, level)
    assert parse_member(webhook_member(entry, attempt)) == WebhookMember(entry, attempt)


@pytest.mark.parametrize(
    "member",
    ["", "run", "run alice", "run alice r", "demand alice 1-1", "demand alice 1-1 seen", "webhook 1-1 x", "alarm 7"],
)
def test_members_of_a_later_version_are_nobodys(member: str) -> None:
    assert parse_member(member) is None


def test_the_first_event_watches_what_is_to_come_and_meets_the_request() -> None:
    asked = about(thread=ThreadId("t1"), parent=RunId("run_0"), tier="pro", requested_ms=900)
    watch, step = step_of(Watch(), asked, 1, "agent_started", {"agent": "planner"}, 1_000)

    assert (step.run, step.seq, step.owner, step.lease_ms) == (RUN, 1, "me", 30_000)
    assert step.fields == {
        "state": "running",
        "agent": "planner",
        "thread": "t1",
        "parent": "run_0",
        "tier": "pro",
        "requested_ms": "900",
        "started_ms": "1000",
    }
    assert (step.watch, step.unwatch) == ({THINKING: 22, AGENT: 55}, (STARTED,))
    assert step.by == {STARTED: 911}
    assert watch.names == {THINKING, AGENT}


def test_a_run_that_nobody_asked_for_is_not_late() -> None:
    _, step = step_of(Watch(), about(), 1, "agent_started", {"agent": "planner"}, 1_000)
    assert step.by == {}
    assert "requested_ms" not in step.fields
    assert request_fields(about()) == {"agent": "planner"}


def test_the_first_thought_alone_meets_its_deadline() -> None:
    watch, first = stepped(Watch(frozenset({THINKING, AGENT})), "agent_thinking", {"text": "Hm"})
    after, second = stepped(watch, "agent_thinking", {"text": "Hm"})

    assert (first.fields, first.unwatch) == ({"thinking_ms": "1000"}, (THINKING,))
    assert (second.fields, second.unwatch, second.watch) == ({}, (), {})
    assert watch.names == after.names == {AGENT}


def test_a_call_is_watched_until_it_is_completed() -> None:
    watch, begun = stepped(Watch(), "tool_executing", {"tool": "search the web", "call_id": "a b"})
    after, ended = stepped(watch, "tool_completed", {"tool": "search the web", "call_id": "a b", "result": 1})

    assert begun.fields == {"call:a b": "1000 search the web"}
    assert begun.watch == {"call:a b": 44}
    assert begun.by == {"executing:a b": 1_033}, "the event is to be stored so soon after the tool was entered"
    assert (ended.gone, ended.unwatch, ended.by) == (("call:a b",), ("call:a b",), {})
    assert watch.names == {"call:a b"}
    assert after.names == frozenset()


def test_the_last_event_meets_all_that_is_left_and_gives_the_lease_up() -> None:
    watch, step = stepped(
        Watch(frozenset({THINKING, AGENT})), "agent_completed", {"outcome": "failed", "error": "no"}, seq=9
    )

    assert step.lease_ms == 0
    assert step.fields == {"state": "completed", "outcome": "failed", "ended_ms": "1000"}
    assert set(step.unwatch) == {THINKING, AGENT}
    assert watch.names == frozenset()


def test_an_event_of_the_application_changes_nothing_but_the_number() -> None:
    before = Watch(frozenset({AGENT}))
    watch, step = stepped(before, "progress", {"percent": 3})
    assert watch == before
    assert step == RunStep(run=RUN, seq=2, owner="me", lease_ms=30_000)


def test_a_record_tells_how_far_its_run_came() -> None:
    calls = {"call:b": "20 look up", "call:a": "30 search"}
    missed = {"breach:thinking": "17", "breach:call:a": "18", "breaches": "2"}
    found = record(state="running", seq="7", **calls, **missed)
    assert seq_of(found) == 7
    assert list(open_calls(found).items()) == [("b", "look up"), ("a", "search")]
    assert watch_of(found).names == {THINKING, AGENT, "call:a", "call:b"}
    assert breaches_of(found) == {"thinking": 17, "call:a": 18}


def test_a_run_that_has_thought_or_is_over_has_less_to_meet() -> None:
    assert watch_of(record(state="running", thinking_ms="5")).names == {AGENT}
    assert watch_of(record(state="completed")).names == frozenset()
    assert watch_of(record(state="requested")).names == frozenset()
    assert seq_of(record()) == 0
