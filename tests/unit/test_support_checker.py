"""The checker finds what is wrong, and nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.checker import Received, Report, SessionLog, check

PUBLISHED = {"ann": ["e0", "e1", "e2", "e3"]}


def _received(*steps: str) -> list[Received]:
    """`"e1"` a first delivery, `"e1*2"` its second, `"|"` a new connection; the entry id is 1-<number>."""
    connection = 0
    received = []
    for step in steps:
        if step == "|":
            connection += 1
            continue
        event, _, delivery = step.partition("*")
        received.append(
            Received(event=event, entry=f"1-{event[1:]}", delivery=int(delivery or 1), connection=connection)
        )
    return received


def _check(*steps: str) -> Report:
    return check(PUBLISHED, [SessionLog(user="ann", session="s", received=_received(*steps))])


@pytest.mark.parametrize(
    "steps",
    [
        "e0 e1 e2 e3",
        "e0 e1 | e1*2 e2 e3",
        "e0 e1 e0*2 e2 e3",
        "e0 e1 e2 e3 | e0*2 e1*2 e2*2 e3*2",
        "e0 e2 | e1*2 e3",
    ],
)
def test_a_good_log_has_no_faults(steps: str) -> None:
    report = _check(*steps.split())
    assert report.ok, str(report)


@pytest.mark.parametrize(
    "steps, kind, events",
    [
        ("e0 e1 e3", "lost", ["e2"]),
        ("", "lost", ["e0", "e1", "e2", "e3"]),
        ("e0 e1 | e1 e2 e3", "unmarked", ["e1"]),
        ("e0 e2 e1 e3", "disordered", ["e1"]),
        ("e0 e2 | e1 e3", "disordered", ["e1"]),
        ("e0 e1 e2 e3 e9", "unknown", ["e9"]),
    ],
)
def test_a_bad_log_is_told_by_kind_and_event(steps: str, kind: str, events: list[str]) -> None:
    report = _check(*steps.split())
    assert set(report.faults) == {kind}, str(report)
    assert [finding.event for finding in report.faults[kind]] == events
    assert f"{kind}: {len(events)}" in str(report)


def test_each_session_of_the_user_is_owed_each_event() -> None:
    logs = [SessionLog(user="ann", session=name, received=_received("e0", "e1", "e2", "e3")) for name in "ab"]
    assert check(PUBLISHED, logs).owed == 8
    logs.append(SessionLog(user="ann", session="c", received=[]))
    assert [finding.session for finding in check(PUBLISHED, logs).lost] == ["c"] * 4


def test_what_a_session_is_not_owed_is_not_lost() -> None:
    log = SessionLog(user="ann", session="s", received=_received("e2", "e3"), missed={"e0", "e1"})
    report = check(PUBLISHED, [log])
    assert report.ok
    assert report.owed == 2


def test_another_users_event_is_foreign_even_when_it_is_marked() -> None:
    log = SessionLog(user="bob", session="s", received=_received("e0*2"))
    assert [finding.detail for finding in check({**PUBLISHED, "bob": []}, [log]).foreign] == ["of ann"]


def test_an_event_under_two_entry_ids_was_stored_twice() -> None:
    received = [*_received("e0", "e1", "e2", "e3"), Received(event="e1", entry="2-0", delivery=2)]
    report = check(PUBLISHED, [SessionLog(user="ann", session="s", received=received)])
    assert set(report.faults) == {"stored_twice"}


def test_after_an_announced_rollback_an_event_may_come_under_another_entry_id() -> None:
    received = [*_received("e0", "e1", "e2"), Received(event="e2", entry="0-9", delivery=1), *_received("e3")]
    log = SessionLog(user="ann", session="s", received=received, rolled_back=True)
    report = check(PUBLISHED, [log])
    assert report.ok, str(report)
    assert report.restored == 1


def test_an_unsure_event_may_come_or_not_but_not_twice() -> None:
    unsure = {"ann": ["e4"]}
    for tail, kinds in (([], set()), (["e4"], set()), (["e4", "|", "e4"], {"unmarked"})):
        log = SessionLog(user="ann", session="s", received=_received("e0", "e1", "e2", "e3", *tail))
        assert set(check(PUBLISHED, [log], unsure=unsure).faults) == kinds


def test_redeliveries_and_repetitions_are_counted() -> None:
    report = _check(*["e0", "e2", "|", "e1*2", "e2*3", "e3"])
    assert (report.received, report.redelivered, report.repeated, report.late) == (5, 2, 1, 1)


@given(st.lists(st.sampled_from(["e0", "e1", "e2", "e3"]), unique=True))
def test_exactly_what_is_missing_is_lost(arrived: list[str]) -> None:
    report = _check(*sorted(arrived))
    assert {finding.event for finding in report.lost} == set(PUBLISHED["ann"]) - set(arrived)
    assert set(report.faults) <= {"lost"}
