"""What a deadline that has passed means."""

from __future__ import annotations

from typing import Any

import pytest

from eventbus.breach import (
    AGAIN_MS,
    abandoned,
    deadline_of,
    missed_confirmation,
    missed_deadline,
    operator_object,
    reached_by,
    webhook_failed,
)
from eventbus.event import Require, make_event
from eventbus.fields import Level
from eventbus.ids import EntryId, RunId, SessionId, UserId
from eventbus.store import ConfirmationRecord
from eventbus.store.running import DueRecord, OperatorEvent, RunRecord, Settlement

ANN = UserId("ann")
RUN = RunId("run_1")
ENTRY = EntryId("5000-0")


def due(name: str = "thinking", **changes: Any) -> DueRecord:
    fields: dict[str, Any] = {"partition": 7, "member": f"run ann run_1 {name}", "due_ms": 9_000, "now_ms": 9_700}
    return DueRecord(**fields | changes)


def record(**fields: str) -> RunRecord:
    return RunRecord(user=ANN, run=RUN, fields={"agent": "planner", "state": "running", **fields})


def told(settlement: Settlement) -> dict[str, str]:
    assert settlement.announce is not None
    return dict(settlement.announce)


# --- runs -----------------------------------------------------------------------------------------------------------


@pytest.mark.requirement("R17")
def test_a_missed_deadline_is_marked_counted_and_told_with_how_late_it_was_found() -> None:
    settlement = missed_deadline(due(), "thinking", record(thread="t1", tier="pro"), posted=True)
    assert settlement.run == (ANN, RUN)
    assert settlement.fields == {"breach:thinking": "9000"}
    assert settlement.counts == {"breaches": 1}
    assert settlement.webhook
    assert settlement.watch == {}
    assert told(settlement) == {
        "kind": "missed_deadline",
        "user": "ann",
        "run": "run_1",
        "agent": "planner",
        "thread": "t1",
        "tier": "pro",
        "deadline": "thinking",
        "due_ms": "9000",
        "late_ms": "700",
    }


@pytest.mark.requirement("R17")
@pytest.mark.parametrize("name, deadline", [("call:c1", "completed"), ("executing:c1", "executing")])
def test_a_late_tool_is_told_with_its_call_and_its_name(name: str, deadline: str) -> None:
    words = told(missed_deadline(due(name), name, record(**{"call:c1": "8000 web search"}), posted=False))
    assert (words["deadline"], words["call"], words["tool"]) == (deadline, "c1", "web search")
    over = told(missed_deadline(due(name), name, record(), posted=False))
    assert "tool" not in over


@pytest.mark.requirement("R17")
@pytest.mark.parametrize("state", ["requested", "running", "completed"])
def test_a_deadline_that_is_still_due_was_missed_whatever_became_of_the_run_since(state: str) -> None:
    """A step that is in time takes its deadline away; a late one leaves it, also the last one of a run."""
    assert missed_deadline(due("agent"), "agent", record(state=state), posted=False).announce


@pytest.mark.parametrize("name, known", [("thinking", False), ("something", True), ("started:x", True)])
def test_a_deadline_without_a_run_or_a_meaning_only_goes(name: str, known: bool) -> None:
    given = due(name)
    assert missed_deadline(given, name, record() if known else None, posted=True) == Settlement(due=given)


def test_calls_may_have_any_name() -> None:
    assert deadline_of("call:a: b") == ("completed", "a: b")
    assert deadline_of("lease") is None


@pytest.mark.requirement("R16")
def test_an_abandoned_run_is_told_once_and_stays_due_until_it_is_closed() -> None:
    lease = due("lease")
    first = abandoned(lease, record(), posted=True)
    assert first.watch == {lease.member: AGAIN_MS}
    assert first.fields == {"breach:lease": "9000"}
    assert told(first)["kind"] == "run_abandoned"
    again = abandoned(lease, record(**first.fields), posted=True)
    assert (again.watch, again.announce, again.counts) == ({lease.member: AGAIN_MS}, None, {})
    assert abandoned(lease, record(**first.fields, state="completed"), posted=True) == Settlement(due=lease)
    assert abandoned(lease, None, posted=True) == Settlement(due=lease)


# --- demands --------------------------------------------------------------------------------------------------------


def confirmed(level: str, time_ms: int, *entries: str, session: str = "phone") -> ConfirmationRecord:
    named = [EntryId(entry) for entry in entries or (ENTRY,)]
    return ConfirmationRecord(session=SessionId(session), level=level, time_ms=time_ms, entries=named)


@pytest.mark.requirement("R13")
@pytest.mark.parametrize(
    "records, reached",
    [
        ([], None),
        ([confirmed("received", 9_000)], Level.RECEIVED),
        ([confirmed("received", 9_001)], None),
        ([confirmed("received", 100), confirmed("displayed", 9_001)], Level.RECEIVED),
        ([confirmed("confirmed", 100)], Level.CONFIRMED),
        ([confirmed("displayed", 100, "5000-1")], None),
        ([confirmed("received", 100), confirmed("displayed", 8_000, session="tab")], Level.DISPLAYED),
    ],
    ids=["nothing", "just in time", "late", "too late for more", "more than asked", "another entry", "two sessions"],
)
def test_a_demand_is_met_by_what_any_session_confirmed_in_time(
    records: list[ConfirmationRecord], reached: Level | None
) -> None:
    assert reached_by(records, ENTRY, 9_000) == reached


@pytest.mark.requirement("R13")
@pytest.mark.parametrize("reason", ["filtered", "expired", "trimmed", "released"])
def test_a_nodes_own_release_meets_no_demand(reason: str) -> None:
    """D19."""
    assert reached_by([confirmed(reason, 100)], ENTRY, 9_000) is None


EVENT = make_event(
    id="e1",
    type="note",
    user="ann",
    time_ms=1,
    data={},
    run="run_1",
    require=Require(level=Level.DISPLAYED, within_ms=4_000),
)


@pytest.mark.requirement("R13")
def test_a_missed_demand_is_told_with_what_was_demanded_and_what_was_reached() -> None:
    given = due(member="demand ann 5000-0 displayed")
    missed = missed_confirmation(given, ANN, ENTRY, Level.DISPLAYED, reached=Level.RECEIVED, event=EVENT, posted=True)
    assert told(missed) == {
        "kind": "missed_confirmation",
        "user": "ann",
        "event": "e1",
        "entry": "5000-0",
        "level": "displayed",
        "reached": "received",
        "type": "note",
        "run": "run_1",
        "within_ms": "4000",
        "due_ms": "9000",
        "late_ms": "700",
    }
    assert missed.run is None
    assert missed.webhook


@pytest.mark.requirement("R13")
@pytest.mark.parametrize("reached", [Level.DISPLAYED, Level.CONFIRMED])
def test_a_demand_that_was_met_only_goes(reached: Level) -> None:
    given = due(member="demand ann 5000-0 displayed")
    met = missed_confirmation(given, ANN, ENTRY, Level.DISPLAYED, reached=reached, event=EVENT, posted=True)
    assert met == Settlement(due=given)


@pytest.mark.requirement("R13")
def test_a_demand_whose_entry_is_gone_is_told_all_the_same() -> None:
    words = told(missed_confirmation(due(), ANN, ENTRY, Level.RECEIVED, reached=None, event=None, posted=False))
    assert (words["event"], words["reached"], words["entry"]) == ("", "", "5000-0")


# --- what operators read --------------------------------------------------------------------------------------------


def test_an_operator_event_is_json_with_a_name_of_its_own_and_numbers_where_they_are_numbers() -> None:
    fields = told(webhook_failed(due(), "7:100-0", 11, "status 500"))
    made = operator_object(OperatorEvent(id=EntryId("100-1"), partition=7, time_ms=100, fields=fields))
    assert made == {
        "id": "7:100-1",
        "time_ms": 100,
        "kind": "webhook_failed",
        "event": "7:100-0",
        "attempts": 11,
        "reason": "status 500",
    }
