"""What operators do, over the store in memory: what a plan says, and that a purge leaves nothing."""

from __future__ import annotations

from typing import Any

import pytest

from eventbus import inspection
from eventbus.cli.output import about_in_words
from eventbus.ids import RunId
from eventbus.inspection import Actions, Planned, action_asked_for
from eventbus.store.running import RunRequest, Settlement
from tests.unit.test_inspection import ALICE, PARTITIONS, Desk

pytestmark = pytest.mark.requirement("R28")


@pytest.fixture
def desk() -> Desk:
    return Desk()


def actions(desk: Desk) -> Actions:
    return Actions(desk.store, by="a test", partitions=PARTITIONS)


async def planned(desk: Desk, **asked: Any) -> Planned:
    return await actions(desk).plan(action_asked_for({"user": ALICE, **asked}))


async def test_a_session_that_is_not_there_is_said_with_those_that_are(desk: Desk) -> None:
    await desk.attach("phone")
    for action in ("skip", "redeliver", "dead_letter", "end_session"):
        plan = await planned(desk, action=action, session="fone")
        assert (plan.count, plan.notes) == (0, ["alice has no session fone; there is phone"])
    plan = await planned(desk, action="skip", user="nobody", session="phone")
    assert plan.notes == ["nobody has no session phone; there is none"]


async def test_what_a_session_has_not_read_is_said_not_to_be_pending(desk: Desk) -> None:
    fence = await desk.attach()
    await desk.publish(2)
    await desk.read(fence, 1)
    plan = await planned(desk, action="skip", session="phone")
    assert plan.count == 1
    assert "not read yet" in plan.notes[0]
    await desk.read(fence)
    assert (await planned(desk, action="skip", session="phone")).notes == []


async def test_dead_letters_and_holds_that_are_gone_are_said_to_be(desk: Desk) -> None:
    plan = await actions(desk).plan(action_asked_for({"action": "replay", "letters": ["1:1-1", "2:2-2"]}))
    assert (plan.count, plan.notes) == (0, ["2 of the dead letters are not there (any more)"])
    plan = await actions(desk).plan(action_asked_for({"action": "undrain", "node": "gw-1"}))
    assert (plan.count, "no operator drains gw-1" in plan.notes[0]) == (0, True)


async def test_a_purge_takes_what_others_share_also_when_all_of_the_users_own_has_ended(desk: Desk) -> None:
    """Dead letters hold whole events, for a week; the stream that they came from ends after a day."""
    fence = await desk.attach()
    ((event, entry),) = await desk.publish()
    await desk.read(fence)
    await desk.give_up(fence, event, entry, b"what alice was told")
    await told_to_operators(desk)
    desk.clock.advance(desk.store.settings.retention_ms + desk.store.settings.session_ttl_ms)
    plan = await planned(desk, action="purge")
    assert [item.rpartition(" ")[0] for item in plan.items if " " in item] == ["dead letter", "event for operators"]
    done = await actions(desk).carry_out(plan)
    assert done.results == {"erased": plan.count}
    assert (await inspection.dead_letters(desk.store, partitions=PARTITIONS, user=ALICE)).rows == []
    assert (await planned(desk, action="purge")).items == []


async def told_to_operators(desk: Desk) -> None:
    """A run of the user's was late, and a node told of it."""
    await desk.store.request_run(RunRequest(user=ALICE, run=RunId("run_1"), fields={}, watch={"started": 0}))
    for answer in await desk.store.due(range(PARTITIONS), 10):
        assert isinstance(answer, list)
        for due in answer:
            announce = {"kind": "missed_deadline", "user": ALICE}
            assert (await desk.store.settle([Settlement(due=due, announce=announce)]))[0]


def test_an_action_on_all_dead_letters_says_that_it_is_on_all() -> None:
    for where, about in (({}, {}), ({"type": "note"}, {"type": "note"})):
        asked = action_asked_for({"action": "drop", "where": where})
        assert asked.about() == {"where": about}
    assert about_in_words(action_asked_for({"action": "replay", "where": {}}).about()) == "where all, to session"
    assert about_in_words({"user": "ada", "entries": ["1-0", "2-0"]}) == "user ada, entries 1-0, 2-0"
