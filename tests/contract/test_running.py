"""Runs over all stores: steps in order or refused, leases, requests, deadlines that are settled once."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from eventbus.errors import OutOfOrder, RunClosed, StoreError
from eventbus.fields import Level
from eventbus.ids import ENTRY_ZERO, EventId, RunId, UserId, entry_order
from eventbus.store import Append, Appended, Demand
from eventbus.store.running import DueRecord, Lease, RunRequest, RunStep, Settlement, StepOrder
from tests.contract.conftest import MakeWorld
from tests.contract.worlds import ALICE, World, stored
from tests.support.waiting import until

BOB = UserId("bob")
RUN = RunId("run_1")


def step(seq: int, owner: str = "me", lease_ms: int = 60_000, **more: Any) -> RunStep:
    return RunStep(run=RUN, seq=seq, owner=owner, lease_ms=lease_ms, **more)


def event(step: RunStep | None, name: str | None = None, user: UserId = ALICE, **more: Any) -> Append:
    name = name or f"e{step.seq if step else ''}"
    return Append(user=user, event=EventId(name), body=b"body of " + name.encode(), type="note", step=step, **more)


async def take(world: World, *appends: Append) -> list[Appended | StoreError]:
    return list(await world.append(*appends))


async def fields(world: World, run: RunId = RUN, user: UserId = ALICE) -> dict[str, str]:
    record = await world.store.run(user, run)
    assert record is not None
    return dict(record.fields)


def partition_of(world: World, user: UserId = ALICE) -> int:
    from eventbus.store.keys import Keys

    return Keys("eb", world.settings.partitions).partition_of(user)


async def due(world: World, user: UserId = ALICE) -> list[DueRecord]:
    (found,) = await world.store.due([partition_of(world, user)], 100)
    assert not isinstance(found, StoreError)
    return list(found)


async def waited_for(world: World, count: int = 1) -> list[DueRecord]:
    """What is due, once so many members are."""
    await world.pass_time(1)
    found: list[DueRecord] = []

    async def there() -> bool:
        found[:] = await due(world)
        return len(found) >= count

    await until(there, message=f"{count} deadlines are due")
    return found


# --- steps ------------------------------------------------------------------------------------------------------------


@pytest.mark.requirement("R6")
async def test_steps_of_a_run_keep_their_place_among_other_events_of_one_call(world: World) -> None:
    events = [event(None, f"before-{number}") for number in range(20)]
    events += [event(step(1)), event(None, "between"), event(step(2)), event(None, "others", BOB)]
    events += [event(None, f"after-{number}") for number in range(20)]

    assert all(isinstance(result, Appended) for result in await take(world, *events))

    assert await world.retained() == [one.body.decode() for one in events if one.user == ALICE]
    assert await world.retained(BOB) == ["body of others"]


@pytest.mark.requirement("R16")
@pytest.mark.corner("D6")
async def test_steps_are_stored_in_their_order_and_write_the_run(world: World) -> None:
    one = step(1, fields={"state": "running", "agent": "planner", "call:a": "17 search"})
    two = step(2, fields={"thinking_ms": "18"}, gone=("call:a",))

    first, second = await take(world, event(one), event(two))

    assert stored(first).entry != stored(second).entry
    found = await fields(world)
    assert found == {
        "user": ALICE,
        "seq": "2",
        "owner": "me",
        "lease_ms": "60000",
        "entry": stored(second).entry,
        "state": "running",
        "agent": "planner",
        "thinking_ms": "18",
    }


@pytest.mark.requirement("R16")
@pytest.mark.corner("D6")
@pytest.mark.parametrize("seq", [3, 4, 100])
async def test_step_that_does_not_follow_the_last_one_is_refused_and_changes_nothing(world: World, seq: int) -> None:
    await take(world, event(step(1)))

    (answer,) = await take(world, event(step(seq, fields={"state": "completed"}, watch={"agent": 1})))

    assert isinstance(answer, OutOfOrder)
    assert (answer.last, answer.retryable) == (1, True)
    assert len(await world.retained()) == 1
    assert (await fields(world))["seq"] == "1"
    assert (await fields(world))["state"] == "running"
    assert await due(world) == []


@pytest.mark.corner("D6")
async def test_first_step_of_a_run_that_is_not_known_must_be_the_first(world: World) -> None:
    (answer,) = await take(world, event(step(2)))

    assert isinstance(answer, OutOfOrder)
    assert answer.last == 0
    assert await world.store.run(ALICE, RUN) is None


@pytest.mark.requirement("R18")
@pytest.mark.corner("D6")
async def test_step_anew_goes_on_behind_events_that_are_lost_and_operators_are_told(world: World) -> None:
    (answer,) = await take(world, event(step(7, order=StepOrder.ANEW)))

    assert not stored(answer).duplicate
    assert (await fields(world))["seq"] == "7"
    (told,) = await world.store.operator_events(partition_of(world), ENTRY_ZERO, 10)
    assert dict(told.fields) == {"kind": "order", "user": ALICE, "run": RUN, "after_seq": "0", "seq": "7"}


async def test_known_event_id_is_answered_and_changes_nothing_else(world: World) -> None:
    (first,) = await take(world, event(step(1)))
    await take(world, event(step(2)))
    demand = Demand(level=Level.DISPLAYED, within_ms=0)

    (again,) = await take(world, replace(event(step(1, fields={"state": "completed"})), demand=demand))

    assert stored(again) == replace(stored(first), duplicate=True, woken=0)
    assert ((await fields(world))["seq"], (await fields(world))["state"]) == ("2", "running")
    assert await due(world) == []


@pytest.mark.corner("D6")
async def test_event_of_a_number_that_is_passed_is_not_stored_again_when_its_id_is_forgotten(
    make_world: MakeWorld,
) -> None:
    """A run whose answers were lost for longer than the dedupe window sends its events again."""
    world = await make_world(dedupe_ms=100)
    first, second = await take(world, event(step(1)), event(step(2, fields={"state": "completed"})))
    await world.pass_time(201)

    again = await take(world, event(step(1)), event(step(2)))

    assert [stored(answer) for answer in again] == [
        replace(stored(first), duplicate=True, woken=0),
        replace(stored(second), duplicate=True, woken=0),
    ]
    assert len(await world.retained()) == 2


async def test_completed_run_takes_no_further_step(world: World) -> None:
    await take(world, event(step(1, lease_ms=0, fields={"state": "completed"})))

    (answer,) = await take(world, event(step(2)))

    assert isinstance(answer, RunClosed)
    assert not answer.retryable
    assert len(await world.retained()) == 1


@pytest.mark.requirement("R16")
async def test_step_of_another_owner_is_refused(world: World) -> None:
    await take(world, event(step(1)))

    results = await take(world, event(step(2, owner="other")), event(step(1, owner="other"), "x"))

    assert all(isinstance(result, RunClosed) for result in results)
    assert len(await world.retained()) == 1


async def test_plain_events_may_name_any_run(world: World) -> None:
    """Only steps are refused: what an application says about a run that is over is its own."""
    await take(world, event(step(1, lease_ms=0, fields={"state": "completed"})))

    (answer,) = await take(world, event(None, "afterwards"))

    assert not stored(answer).duplicate


@pytest.mark.requirement("R22")
async def test_runs_of_two_users_may_have_one_id(make_world: MakeWorld) -> None:
    world = await make_world(partitions=1)

    results = await take(world, event(step(1, owner="a")), event(step(1, owner="b"), user=BOB))

    assert [stored(result).duplicate for result in results] == [False, False]
    assert ((await fields(world))["owner"], (await fields(world, user=BOB))["owner"]) == ("a", "b")


@pytest.mark.requirement("R2")
@pytest.mark.corner("D6")
async def test_steps_that_a_failover_took_back_come_again_in_order(world: World) -> None:
    """What the new primary has is a duplicate, what it lost is stored once more; the run ends as it was."""
    await take(world, event(step(1)), event(step(2)))
    snapshot = await world.power.snapshot(ALICE)
    await take(world, event(step(3, fields={"call:a": "1 x"})), event(step(4, gone=("call:a",))))
    before = await fields(world)
    await world.power.roll_back(ALICE, snapshot)

    (early,) = await take(world, event(step(5)))
    results = [(await take(world, event(made)))[0] for made in (step(1), step(2), step(3), step(4), step(5))]

    assert isinstance(early, OutOfOrder)
    assert early.last == 2
    assert [stored(result).duplicate for result in results] == [True, True, False, False, False]
    assert len(await world.retained()) == 5
    after = await fields(world)
    assert (after["seq"], set(after)) == ("5", set(before))


# --- deadlines --------------------------------------------------------------------------------------------------------


@pytest.mark.requirement("R17")
async def test_deadline_is_due_when_its_time_has_come_and_not_before(world: World) -> None:
    now_ms = await world.store.ping()
    await take(world, event(step(1, watch={"agent": 60_000, "thinking": 300})))
    assert await due(world) == []

    await world.pass_time(301)
    (found,) = await waited_for(world)

    assert found.member == f"run {ALICE} {RUN} thinking"
    assert now_ms + 300 <= found.due_ms <= found.now_ms
    assert found.partition == partition_of(world)


@pytest.mark.requirement("R17")
async def test_deadline_that_is_met_is_not_due(world: World) -> None:
    await take(world, event(step(1, watch={"thinking": 300})), event(step(2, unwatch=("thinking",))))

    await world.pass_time(301)

    assert await due(world) == []


@pytest.mark.requirement("R17")
async def test_deadline_that_is_met_too_late_stays_due(world: World) -> None:
    await take(world, event(step(1, watch={"thinking": 20})))
    await world.pass_time(25)

    await take(world, event(step(2, unwatch=("thinking",), fields={"thinking_ms": "1"})))

    assert [found.member for found in await due(world)] == [f"run {ALICE} {RUN} thinking"]


@pytest.mark.requirement("R17")
async def test_step_that_comes_too_late_is_watched_as_due(world: World) -> None:
    now_ms = await world.store.ping()
    by = {"executing:a": now_ms - 100, "executing:b": now_ms + 60_000, "started": now_ms - 7}

    await take(world, event(step(1, by=by, fields={"breach:started": "1"})), event(step(2, by={"started": 1})))

    found = {(one.member, one.due_ms) for one in await due(world)}
    assert (f"run {ALICE} {RUN} executing:a", now_ms - 100) in found
    assert not any("executing:b" in member for member, _ in found)
    assert (f"run {ALICE} {RUN} started", 1) not in found, "it was marked before"


@pytest.mark.requirement("R13")
async def test_demand_of_an_event_is_watched_once(world: World) -> None:
    demand = Demand(level=Level.DISPLAYED, within_ms=30)
    made = Append(user=ALICE, event=EventId("e1"), body=b"x", demand=demand)

    (first,) = await take(world, made)
    await world.pass_time(10)
    await take(world, made)
    await world.pass_time(31)
    (found,) = await waited_for(world)

    assert found.member == f"demand {ALICE} {stored(first).entry} displayed"
    assert found.due_ms == pytest.approx(entry_order(stored(first).entry)[0] + 30, abs=2)


async def test_most_overdue_come_first_and_no_more_than_asked_for(world: World) -> None:
    now_ms = await world.store.ping()
    by = {f"executing:{number}": now_ms - number - 1 for number in range(5)}
    await take(world, event(step(1, by=by)))

    (found,) = await world.store.due([partition_of(world)], 2)

    assert not isinstance(found, StoreError)
    assert [one.member.split(":")[1] for one in found] == ["4", "3"]


async def test_each_partition_is_answered_in_the_order_asked(make_world: MakeWorld) -> None:
    world = await make_world(partitions=4)
    now_ms = await world.store.ping()
    await take(world, event(step(1, by={"executing:a": now_ms - 5})))

    answers = await world.store.due([3, 2, 1, 0], 10)

    counts = [len(answer) for answer in answers if not isinstance(answer, StoreError)]
    expected = [1 if number == partition_of(world) else 0 for number in (3, 2, 1, 0)]
    assert counts == expected


# --- settling ---------------------------------------------------------------------------------------------------------


async def one_due(world: World) -> DueRecord:
    now_ms = await world.store.ping()
    await take(world, event(step(1, by={"executing:a": now_ms - 5})))
    (found,) = await due(world)
    return found


@pytest.mark.requirement("R17")
@pytest.mark.corner("D22")
async def test_deadline_is_settled_by_one_of_many(world: World) -> None:
    found = await one_due(world)
    settlement = Settlement(
        due=found,
        run=(ALICE, RUN),
        fields={"breach:executing:a": str(found.due_ms)},
        counts={"breaches": 1},
        announce={"kind": "missed_deadline", "user": ALICE},
    )

    answers = await asyncio.gather(*(world.store.settle([settlement, settlement]) for _ in range(4)))

    flat = [answer for batch in answers for answer in batch]
    settled = [answer for answer in flat if answer]
    assert len(settled) == 1
    assert isinstance(settled[0], int)
    assert settled[0] >= found.now_ms
    assert (await fields(world))["breaches"] == "1"
    assert (await fields(world))["breach:executing:a"] == str(found.due_ms)
    (told,) = await world.store.operator_events(found.partition, ENTRY_ZERO, 10)
    assert dict(told.fields) == {"kind": "missed_deadline", "user": ALICE}
    assert (told.partition, told.time_ms) == (found.partition, entry_order(told.id)[0])
    assert list(await world.store.operator_partitions()) == [found.partition]
    assert await due(world) == []


@pytest.mark.corner("D22")
async def test_deadline_that_was_moved_is_not_settled(world: World) -> None:
    found = await one_due(world)

    (answer,) = await world.store.settle([Settlement(due=replace(found, due_ms=found.due_ms - 1), announce={"a": "b"})])

    assert answer == 0
    assert [(one.member, one.due_ms) for one in await due(world)] == [(found.member, found.due_ms)]
    assert list(await world.store.operator_events(found.partition, ENTRY_ZERO, 10)) == []


async def test_settled_member_may_be_watched_again_at_a_later_time(world: World) -> None:
    found = await one_due(world)

    (moved,) = await world.store.settle([Settlement(due=found, watch={found.member: 30})])
    assert isinstance(moved, int)
    assert await due(world) == []
    await world.pass_time(31)
    (again,) = await waited_for(world)

    assert (again.member, again.due_ms) == (found.member, moved + 30)
    assert (await world.store.settle([Settlement(due=again)]))[0]
    assert await due(world) == []


@pytest.mark.requirement("R13")
async def test_announced_event_is_given_to_the_webhook_when_asked(world: World) -> None:
    found = await one_due(world)

    await world.store.settle([Settlement(due=found, announce={"kind": "missed"}, webhook=True)])

    (told,) = await world.store.operator_events(found.partition, ENTRY_ZERO, 10)
    assert [one.member for one in await due(world)] == [f"webhook {told.id} 1"]


async def test_settling_writes_nothing_into_a_run_that_is_gone(world: World) -> None:
    found = await one_due(world)
    other = RunId("run_gone")

    (answer,) = await world.store.settle(
        [Settlement(due=found, run=(ALICE, other), fields={"breach:x": "1"}, counts={"breaches": 1})]
    )

    assert answer
    assert await world.store.run(ALICE, other) is None


async def test_events_for_operators_are_read_page_by_page(world: World) -> None:
    now_ms = await world.store.ping()
    await take(world, event(step(1, by={f"executing:{number}": now_ms - 9 + number for number in range(5)})))
    found = await due(world)
    await world.store.settle([Settlement(due=one, announce={"member": one.member}) for one in found])

    first = await world.store.operator_events(found[0].partition, ENTRY_ZERO, 3)
    rest = await world.store.operator_events(found[0].partition, first[-1].id, 3)

    assert [told.fields["member"] for told in (*first, *rest)] == [one.member for one in found]


# --- leases -----------------------------------------------------------------------------------------------------------


@pytest.mark.requirement("R16")
async def test_lease_that_is_not_renewed_is_due(world: World) -> None:
    await take(world, event(step(1, lease_ms=50)))
    await world.pass_time(51)

    assert [found.member for found in await waited_for(world)] == [f"run {ALICE} {RUN} lease"]


@pytest.mark.requirement("R16")
async def test_lease_is_renewed_by_steps_and_by_its_owner(world: World) -> None:
    await take(world, event(step(1, lease_ms=40)))

    await take(world, event(step(2, lease_ms=60_000)))
    (renewed,) = await world.store.renew_leases([Lease(user=ALICE, run=RUN, owner="me", lease_ms=60_000)])
    await world.pass_time(60)

    assert renewed is True
    assert await due(world) == []


@pytest.mark.requirement("R16")
async def test_lease_of_another_or_of_a_completed_run_is_not_renewed(world: World) -> None:
    await take(world, event(step(1)))
    (others,) = await world.store.renew_leases([Lease(user=ALICE, run=RUN, owner="other", lease_ms=1)])
    await take(world, event(step(2, lease_ms=0, fields={"state": "completed"})))
    mine, unknown = await world.store.renew_leases(
        [
            Lease(user=ALICE, run=RUN, owner="me", lease_ms=1),
            Lease(user=ALICE, run=RunId("run_unknown"), owner="me", lease_ms=1),
        ]
    )
    await world.pass_time(10)

    assert (others, mine) == (False, False)
    assert unknown is True, "nothing says that it is lost"
    assert await due(world) == []


@pytest.mark.requirement("R16")
async def test_run_is_claimed_by_one_and_its_old_owner_is_refused(world: World) -> None:
    await take(world, event(step(1, fields={"agent": "planner"})))
    leases = [Lease(user=ALICE, run=RUN, owner=f"node-{number}", lease_ms=60_000) for number in range(3)]

    claims = await asyncio.gather(*(world.store.claim_run(lease, "me") for lease in leases))

    (claimed,) = [claim for claim in claims if claim is not None]
    owner = claimed.fields["owner"]
    assert owner in {"node-0", "node-1", "node-2"}
    assert (claimed.user, claimed.run, claimed.fields["agent"]) == (ALICE, RUN, "planner")
    repeated = await world.store.claim_run(Lease(user=ALICE, run=RUN, owner=owner, lease_ms=60_000), "me")
    assert repeated == claimed, "an answer that was lost does no harm"
    refused, taken = await take(world, event(step(2)), event(step(2, owner=owner), "by the node"))
    assert isinstance(refused, RunClosed)
    assert not stored(taken).duplicate


async def test_completed_or_unknown_run_is_not_claimed(world: World) -> None:
    lease = Lease(user=ALICE, run=RUN, owner="node", lease_ms=1_000)
    assert await world.store.claim_run(lease, "") is None
    await take(world, event(step(1, lease_ms=0, fields={"state": "completed"})))

    assert await world.store.claim_run(lease, "me") is None


async def test_step_that_gives_up_the_lease_is_the_last_of_its_deadline(world: World) -> None:
    await take(world, event(step(1, lease_ms=20)), event(step(2, lease_ms=0)))
    await world.pass_time(25)

    assert await due(world) == []


# --- requests and lists -----------------------------------------------------------------------------------------------


@pytest.mark.requirement("R17")
async def test_requested_run_is_watched_until_it_starts(world: World) -> None:
    request = RunRequest(user=ALICE, run=RUN, fields={"agent": "planner"}, watch={"started": 30})

    now_ms = await world.store.ping()
    assert await world.store.request_run(request) is True
    assert await world.store.request_run(request) is False
    found = await fields(world)
    await world.pass_time(31)
    (waiting,) = await waited_for(world)

    assert (found["state"], found["agent"], found["owner"], found["seq"]) == ("requested", "planner", "", "0")
    assert now_ms <= int(found["requested_ms"]) <= await world.store.ping()
    assert waiting.member == f"run {ALICE} {RUN} started"


@pytest.mark.requirement("R17")
async def test_requested_run_belongs_to_whoever_starts_it_in_time(world: World) -> None:
    await world.store.request_run(RunRequest(user=ALICE, run=RUN, fields={}, watch={"started": 300}))

    await take(world, event(step(1, fields={"state": "running"}, unwatch=("started",))))
    await world.pass_time(301)

    found = await fields(world)
    assert (found["state"], found["owner"], "requested_ms" in found) == ("running", "me", True)
    assert await due(world) == []


async def test_unknown_run_is_none(world: World) -> None:
    assert await world.store.run(ALICE, RUN) is None


async def test_runs_of_all_users_are_listed(world: World) -> None:
    made = {(user, RunId(f"run_{number}")) for user in (ALICE, BOB, UserId("a:b|c")) for number in range(4)}
    for user, run in made:
        await world.store.request_run(RunRequest(user=user, run=run, fields={}, watch={}))

    listed, cursor = set(), ""
    while True:
        page, cursor = await world.store.runs(cursor, 5)
        listed |= {(record.user, record.run) for record in page}
        if not cursor:
            break

    assert listed == made
