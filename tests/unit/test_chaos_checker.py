"""The judge of chaos finds what is wrong in a history, by kind, and nothing in a good one."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chaos.checker import Verdict, check, slices
from chaos.faults import FAULTS, names_for
from chaos.history import Kind, Log, Op, merged, read, write
from chaos.mix import plan_mix
from chaos.page import cells_of, filled, impossible, merged_cells, mix_of
from chaos.progress import Progress
from chaos.report import summary, table
from chaos.stores import TOPOLOGIES

pytestmark = pytest.mark.requirement("R2")


class Book:
    """Writes a history by hand: one user, one publisher, one session unless told otherwise."""

    def __init__(self) -> None:
        self.ops: list[Op] = []
        self.connection = 0

    def add(self, process: str, kind: Kind, f: str, **value: Any) -> None:
        self.ops.append(Op(time_ms=len(self.ops), process=process, kind=kind, f=f, value=value))

    def published(self, *numbers: int, process: str = "p", user: str = "ann", milliseconds: int = 1) -> None:
        for number in numbers:
            event = f"{process}{number}"
            self.add(process, Kind.INVOKE, "publish", event=event, user=user)
            self.add(process, Kind.OK, "publish", event=event, entry=f"{milliseconds}-{number}", duplicate=False)

    def unsure(self, number: int) -> None:
        self.add("p", Kind.INVOKE, "publish", event=f"p{number}", user="ann")
        self.add("p", Kind.INFO, "publish", event=f"p{number}", error="publish_timeout")

    def client(self, kind: Kind, f: str, *, session: str = "tab", **value: Any) -> None:
        self.add("c", kind, f, user="ann", session=session, **value)

    def opened(self, *, library: bool = False, session: str = "tab") -> None:
        self.connection += 1
        self.client(
            Kind.OK, "open", session=session, library=library, connection=self.connection, node="n", resumed=False
        )

    def received(
        self, *events: str, entry: str = "", delivery: int = 1, owner: str = "ann", session: str = "tab"
    ) -> None:
        for event in events:
            self.client(
                Kind.OK,
                "receive",
                session=session,
                connection=self.connection,
                event=event,
                owner=owner,
                entry=entry or f"1-{event[1:]}",
                delivery=delivery,
            )

    def gap(self, reason: str, after: str | None = None, before: str | None = None) -> None:
        self.client(Kind.INFO, "gap", reason=reason, after=after, before=before, count=None)

    def judged(self, **options: Any) -> Verdict:
        return check(self.ops, **options)


@pytest.fixture
def book() -> Book:
    made = Book()
    made.opened()
    return made


def wrong(verdict: Verdict) -> list[tuple[str, str]]:
    return [(finding.kind, finding.event) for finding in verdict.findings]


# --- good histories ---------------------------------------------------------------------------------------------------


def test_all_received_once_and_in_order_is_good(book: Book) -> None:
    book.published(1, 2, 3)
    book.received("p1", "p2", "p3")
    verdict = book.judged()
    assert verdict.ok, verdict.findings
    assert (verdict.published, verdict.total("owed"), verdict.total("received")) == (3, 3, 3)


def test_a_marked_repetition_is_good_and_counted(book: Book) -> None:
    book.published(1, 2)
    book.received("p1", "p2")
    book.received("p1", delivery=2)
    assert book.judged().ok
    assert book.judged().marked == 1


def test_a_redelivery_that_is_marked_may_come_behind_later_events(book: Book) -> None:
    book.published(1, 2)
    book.received("p2")
    book.received("p1", delivery=2)
    assert book.judged().ok


def test_after_a_rollback_that_was_announced_an_event_may_come_again_under_another_entry_id(book: Book) -> None:
    book.published(1, 2)
    book.received("p1", "p2")
    book.gap("rollback", after="1-1")
    book.received("p2", entry="1-1")
    verdict = book.judged()
    assert verdict.ok, verdict.findings
    assert verdict.restored == 1


def test_what_a_server_lost_may_come_again_under_another_entry_id_also_to_who_was_told_of_no_gap(book: Book) -> None:
    book.published(1, 2)
    book.received("p1")
    book.add("harness", Kind.INVOKE, "fault", number=1, name="rollback", group="store", target="a primary")
    book.add("harness", Kind.OK, "fault", number=1)
    book.received("p1", entry="2-0")
    book.received("p2", entry="2-1")
    verdict = book.judged()
    assert verdict.ok, verdict.findings
    assert (verdict.restored, verdict.untold) == (1, 1)


@pytest.mark.parametrize("elsewhere", [True, False])
def test_what_a_server_no_longer_knows_to_be_read_may_come_again_on_another_connection(
    book: Book, elsewhere: bool
) -> None:
    book.published(1)
    book.received("p1")
    book.add("harness", Kind.INVOKE, "fault", number=1, name="failover", group="store", target="a primary")
    book.add("harness", Kind.OK, "fault", number=1)
    if elsewhere:
        book.opened()
    book.received("p1")
    assert wrong(book.judged()) == ([] if elsewhere else [("unmarked", "p1")])
    assert book.judged().reread == elsewhere


@pytest.mark.parametrize("came", [True, False])
def test_a_publish_that_raised_may_have_arrived_or_not(book: Book, came: bool) -> None:
    book.published(1)
    book.unsure(2)
    book.received("p1", *["p2"] * came)
    assert book.judged().ok
    assert book.judged().unsure == 1


def test_what_a_killed_publisher_published_and_a_rollback_took_is_announced_and_not_lost(book: Book) -> None:
    book.published(1, 2)
    book.received("p1")
    book.add("p", Kind.INFO, "crash")
    book.gap("rollback", after="1-1")
    verdict = book.judged()
    assert verdict.ok, verdict.findings
    assert (verdict.total("announced"), verdict.total("lost")) == (1, 0)
    assert wrong(book.judged(durability="fsync")) == [("unrestored", "p2")]


def test_a_session_that_began_after_a_killed_publishers_event_was_taken_back_is_not_owed_it(book: Book) -> None:
    """There is no trace of it in the store; those who were there were told."""
    book.opened()
    book.published(1, 2)
    book.received("p1", "p2")
    book.add("p", Kind.INFO, "crash")
    book.gap("rollback", after="1-1")
    book.opened(session="late")
    book.received("p1", session="late")
    verdict = book.judged()
    assert wrong(verdict) == []
    assert (verdict.outcomes["p2"].owed, verdict.outcomes["p2"].received) == (1, 1)


@pytest.mark.parametrize("missing", ["crash", "gap", "memory", "began-before", "crash-before-gap", "in-range"])
def test_a_session_is_owed_what_may_have_been_there_when_it_began(book: Book, missing: str) -> None:
    book.opened()
    if missing == "began-before":
        book.opened(session="late")
    book.published(1, 2)
    book.received("p1", "p2")
    if missing not in ("crash", "crash-before-gap"):
        book.add("p", Kind.INFO, "crash")
    if missing != "gap":
        book.gap("rollback", after="1-2" if missing == "in-range" else "1-1")
    if missing == "crash-before-gap":
        book.add("p", Kind.INFO, "crash")
    book.opened(session="late")
    book.received("p1", session="late")
    verdict = book.judged(durability="replicated" if missing == "memory" else "memory")
    assert wrong(verdict) == [("lost", "p2")]


def test_a_session_that_left_is_owed_what_lies_before_the_newest_that_it_received(book: Book) -> None:
    book.published(1, 2, 3)
    book.received("p1", "p2", "p3")
    book.opened(session="guest")
    book.received("p1", "p2", session="guest")
    book.client(Kind.INFO, "leave", session="guest")
    assert book.judged().ok


# --- bad ones ---------------------------------------------------------------------------------------------------------


def test_an_event_that_never_came_is_lost(book: Book) -> None:
    book.published(1, 2, 3)
    book.received("p1", "p3")
    assert wrong(book.judged()) == [("lost", "p2")]


def test_an_event_that_only_one_of_two_sessions_received_is_lost(book: Book) -> None:
    book.published(1)
    book.received("p1")
    book.opened(session="other")
    found = book.judged().findings
    assert [(finding.kind, finding.session) for finding in found] == [("lost", "other")]


def test_a_hole_before_the_newest_of_a_session_that_left_is_lost(book: Book) -> None:
    book.published(1, 2, 3)
    book.received("p1", "p3")
    book.client(Kind.INFO, "leave")
    assert wrong(book.judged()) == [("lost", "p2")]


def test_a_gap_excuses_nothing_outside_its_range(book: Book) -> None:
    book.published(1, 2, 3, 4)
    book.gap("trimmed", after="1-1", before="1-3")
    book.received("p1", "p4")
    assert wrong(book.judged()) == [("unrestored", "p2"), ("lost", "p3")]


def test_a_loss_that_was_announced_although_the_publisher_lives_is_told(book: Book) -> None:
    book.published(1, 2)
    book.received("p1")
    book.gap("rollback", after="1-1")
    assert wrong(book.judged()) == [("unrestored", "p2")]


def test_a_gap_that_hides_nothing_is_counted(book: Book) -> None:
    book.published(1, 2)
    book.received("p1", "p2")
    book.gap("trimmed", after="1-1", before="1-3")
    assert book.judged().empty_gaps == 1
    assert book.judged().ok


def test_a_repetition_that_is_not_marked_is_told(book: Book) -> None:
    book.published(1)
    book.received("p1", "p1")
    assert wrong(book.judged()) == [("unmarked", "p1")]


def test_a_repetition_under_the_same_entry_id_is_unmarked_also_after_a_rollback(book: Book) -> None:
    book.published(1, 2)
    book.received("p1", "p2")
    book.gap("rollback", after="1-2")
    book.received("p2")
    assert wrong(book.judged()) == [("unmarked", "p2")]


@pytest.mark.parametrize("delivery", [1, 2])
def test_another_entry_id_without_an_announced_rollback_means_stored_twice(book: Book, delivery: int) -> None:
    book.published(1)
    book.received("p1")
    book.received("p1", entry="2-0", delivery=delivery)
    book.gap("rollback", after="1-0")  # too late
    assert wrong(book.judged()) == [("stored_twice", "p1")]


def test_entry_ids_that_fall_are_out_of_order_also_over_connections(book: Book) -> None:
    book.published(1, 2)
    book.received("p2")
    book.opened()
    book.received("p1")
    assert wrong(book.judged()) == [("disordered", "p1")]


def test_events_stored_in_another_order_than_published_are_out_of_order(book: Book) -> None:
    book.published(1, 2)
    book.received("p2", entry="1-1")
    book.received("p1", entry="1-2")
    assert ("disordered", "p1") in wrong(book.judged())


def test_another_users_event_is_foreign_and_one_of_nobody_unknown(book: Book) -> None:
    book.published(1, process="q", user="bob")
    book.received("q1", owner="bob")
    book.received("x9")
    assert wrong(book.judged()) == [("foreign", "q1"), ("unknown", "x9")]


@pytest.mark.parametrize("entry, delivery", [("1-1", 2), ("1-1", 1), ("2-0", 1)])
def test_an_application_that_is_handed_an_event_twice_is_told_however_it_is_marked(entry: str, delivery: int) -> None:
    book = Book()
    book.opened(library=True)
    book.published(1)
    book.received("p1")
    book.gap("rollback", after="1-0")
    book.received("p1", entry=entry, delivery=delivery)
    assert wrong(book.judged()) == [("handed_twice", "p1")]


@pytest.mark.parametrize("code, bad", [(1011, True), (4504, True), (4001, False), (1006, False)])
def test_a_close_that_blames_the_client_or_tells_of_a_defect_is_told(book: Book, code: int, bad: bool) -> None:
    book.client(Kind.INFO, "close", connection=1, code=code, reason="")
    assert [kind for kind, _ in wrong(book.judged())] == ["closed"] * bad


def test_what_still_waits_in_the_store_dead_letters_and_ended_processes_are_told(book: Book) -> None:
    book.published(1)
    book.received("p1")
    dead = {"user": "ann", "session": "tab", "event": "p1", "reason": "ack_timeout"}
    book.add("harness", Kind.OK, "look", pending={"ann/tab": 2}, dead=[dead])
    book.add("node-1", Kind.INFO, "died", code=1, output="")
    assert {kind for kind, _ in wrong(book.judged())} == {"unsettled", "dead", "died"}


@given(st.sets(st.integers(1, 9)))
def test_exactly_what_is_missing_is_lost(came: set[int]) -> None:
    book = Book()
    book.opened()
    book.published(*range(1, 10))
    book.received(*(f"p{number}" for number in sorted(came)))
    assert wrong(book.judged()) == [("lost", f"p{number}") for number in range(1, 10) if number not in came]


@given(st.permutations(range(1, 7)))
def test_every_order_but_the_right_one_is_out_of_order(order: list[int]) -> None:
    book = Book()
    book.opened()
    book.published(*range(1, 7))
    book.received(*(f"p{number}" for number in order))
    falls = any(first > second for first, second in itertools.pairwise(order))
    assert {kind for kind, _ in wrong(book.judged())} == ({"disordered"} if falls else set())


# --- around it --------------------------------------------------------------------------------------------------------


def test_a_fault_concerns_what_was_published_from_shortly_before_it_to_shortly_after() -> None:
    book = Book()
    book.opened()
    book.published(1)
    book.add("harness", Kind.INVOKE, "fault", number=1, name="node-kill", group="node", target="n")
    book.published(2)
    book.add("harness", Kind.OK, "fault", number=1)
    book.published(3)
    book.received("p1", "p2", "p3")
    verdict = book.judged()
    assert [outcome.event for outcome in slices(verdict, lead_ms=0)[1]] == ["p2"]
    assert [outcome.event for outcome in slices(verdict, lead_ms=2)[1]] == ["p1", "p2", "p3"]
    assert "node-kill" in table(verdict, 0)
    assert summary(verdict)["faults"] == {"node-kill": 1}


def test_a_history_is_read_as_it_was_written_and_an_unfinished_line_is_left_out(tmp_path: Path) -> None:
    log = Log(tmp_path / "a.jsonl", "p")
    log.write(Kind.INVOKE, "publish", event="p1", user="ann")
    log.close()
    held = Log(tmp_path / "b.jsonl", "c", held=True)
    held.write(Kind.OK, "receive", event="p1")
    assert list(read(tmp_path / "b.jsonl")) == []
    held.close()
    with (tmp_path / "b.jsonl").open("ab") as file:
        file.write(b'{"time_ms": 1')
    whole = merged([read(tmp_path / "b.jsonl"), read(tmp_path / "a.jsonl")])
    assert sorted(op.f for op in whole) == ["publish", "receive"]
    write(tmp_path / "whole.gz", whole)
    assert list(read(tmp_path / "whole.gz")) == whole


def test_progress_counts_what_is_owed_and_has_not_come(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    book = Book()
    book.published(1, 2)
    path.write_bytes(b"".join(op.line() for op in book.ops))
    progress = Progress({"ann": ["tab", "other"]})
    progress.read([path])
    assert progress.missing == 4
    book.ops.clear()
    book.received("p1")
    with path.open("ab") as file:
        file.write(b"".join(op.line() for op in book.ops))
    progress.read([path])
    assert progress.missing == 3


def test_a_seed_names_its_faults() -> None:
    weights = {name: FAULTS[name].weight for name in names_for("single")}
    plan = plan_mix(7, 600, weights)
    assert plan == plan_mix(7, 600, weights)
    assert plan != plan_mix(8, 600, weights)
    assert {planned.name for planned in plan} == set(weights), "ten minutes have every fault"


def test_a_fault_that_cannot_be_staged_somewhere_says_why() -> None:
    for kind in FAULTS.values():
        assert kind.why_not or kind.topologies == TOPOLOGIES


# --- the tables -------------------------------------------------------------------------------------------------------


ORIGIN = {"topology": "single", "durability": "memory", "server": "S", "commit": "c", "seed": 1, "date": "d"}
PAGE = "# A page\n<!-- matrix: begin -->\nold\n<!-- matrix: end -->\n<!-- mixes: begin -->\n<!-- mixes: end -->\nend\n"


def _harmed() -> Verdict:
    book = Book()
    book.opened()
    book.add("harness", Kind.INVOKE, "fault", number=1, name="node-kill", group="node", target="n")
    book.published(1, 2)
    book.received("p1")
    book.add("harness", Kind.OK, "fault", number=1)
    return book.judged()


def test_a_cell_counts_what_was_sent_received_lost_and_announced() -> None:
    [cell] = cells_of(_harmed(), ORIGIN)
    assert (cell["fault"], cell["sent"], cell["owed"], cell["received"], cell["lost"]) == ("node-kill", 2, 2, 1, 1)
    page = filled(PAGE, {"cells": [cell], "mixes": []})
    assert "sent 2, received 1 of 2, lost 1, announced 0" in page
    assert "old" not in page
    assert page.startswith("# A page")
    assert page.endswith("end\n")


def test_a_new_cell_takes_the_place_of_the_old_one() -> None:
    [cell] = cells_of(_harmed(), ORIGIN)
    other = {**cell, "fault": "node-freeze"}
    assert merged_cells([cell, other], [{**cell, "sent": 9}]) == [{**cell, "sent": 9}, other]


def test_a_long_run_is_a_column_of_its_own() -> None:
    mix = mix_of(_harmed(), {**ORIGIN, "minutes": 10.0})
    assert "| lost | 1 |" in filled(PAGE, {"cells": [], "mixes": [mix]})


def test_what_can_not_be_staged_is_said_in_words() -> None:
    assert "not_replicated" in (impossible("node-kill", "replicated", "single") or "")
    assert impossible("failover", "memory", "single") == "there is no replica"
    assert impossible("failover", "replicated", "cluster") is None
