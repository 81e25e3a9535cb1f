"""Threads, presence and counts, over every store."""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import pytest

from eventbus.errors import StoreError
from eventbus.ids import ENTRY_ZERO, EventId, SessionId, ThreadId, UserId, entry_order
from eventbus.store import Append, Appended
from eventbus.store.figures import ThreadRecord
from eventbus.store.inbound import Told
from tests.contract.conftest import MakeWorld
from tests.contract.timely import timely
from tests.contract.worlds import ALICE, NODE, OTHER_NODE, World, fence_of, stored
from tests.support.waiting import until

BOB = UserId("bob")
PHONE, TABLET = fence_of("phone-1"), fence_of("tablet-1", session=SessionId("tablet"))
_numbers = itertools.count()


def event(thread: str | None = None, type: str = "note", user: UserId = ALICE) -> Append:
    name = f"e{next(_numbers)}"
    return Append(
        user=user,
        event=EventId(name),
        body=name.encode(),
        type=type,
        thread=None if thread is None else ThreadId(thread),
    )


async def put(world: World, *threads: str | None, user: UserId = ALICE) -> list[Appended]:
    """Stores an event in each thread, each in a millisecond of its own."""
    answers = []
    for thread in threads:
        answers += [stored(answer) for answer in await world.append(event(thread, user=user))]
        await world.pass_time(2)
    return answers


async def listed(world: World, user: UserId = ALICE, **page: Any) -> list[str]:
    found = await world.store.threads(user, page.get("before"), page.get("count", 100))
    return [record.thread for record in found.threads]


# --- threads ----------------------------------------------------------------------------------------------------------


@pytest.mark.requirement("R26")
async def test_threads_are_listed_by_their_last_event_the_newest_first(world: World) -> None:
    answers = await put(world, "trip", "work", None, "trip", "home")

    page = await world.store.threads(ALICE, None, 10)

    assert [(record.thread, record.last_ms) for record in page.threads] == [
        ("home", entry_order(answers[4].entry)[0]),
        ("trip", entry_order(answers[3].entry)[0]),
        ("work", entry_order(answers[1].entry)[0]),
    ]
    assert not page.more


@pytest.mark.requirement("R26")
async def test_threads_of_one_millisecond_are_listed_by_their_last_event_too(world: World) -> None:
    names = [f"t{number * 7 % 60}" for number in range(120)]
    answers = [stored(answer) for answer in await world.append(*(event(name) for name in names))]
    assert len({entry_order(answer.entry)[0] for answer in answers}) < 60, "some share a millisecond"

    assert await listed(world) == names[:59:-1]
    page = await world.store.threads(ALICE, None, 60)
    assert [record.last_ms for record in page.threads] == [entry_order(one.entry)[0] for one in answers[:59:-1]]


@pytest.mark.requirement("R26")
async def test_pages_of_threads_hold_each_thread_once_also_those_of_one_millisecond(world: World) -> None:
    names = [f"t{number}" for number in range(23)]
    for start in (0, 11):
        answers = await world.append(*(event(name) for name in names[start : start + 11]))
        assert all(isinstance(answer, Appended) for answer in answers)
    await world.pass_time(2)
    await put(world, names[22])

    for count in (1, 2, 7, 23, 24):
        seen: list[str] = []
        before: ThreadRecord | None = None
        for _ in range(30):
            page = await world.store.threads(ALICE, before, count)
            assert len(page.threads) <= count
            seen += [record.thread for record in page.threads]
            if not page.more:
                break
            before = page.threads[-1]
        assert sorted(seen) == sorted(names), count
        assert seen[0] == names[22]


@pytest.mark.requirement("R26")
async def test_a_thread_whose_events_are_all_gone_is_not_listed(world: World) -> None:
    await put(world, "old", "kept", "kept")
    await world.power.trim(ALICE, 2)
    assert await listed(world) == ["kept"]

    await world.power.trim(ALICE, 0)
    assert await listed(world) == []


@pytest.mark.requirement("R22")
@pytest.mark.requirement("R26")
async def test_each_user_has_threads_of_their_own(world: World) -> None:
    await put(world, "trip")
    await put(world, "work", user=BOB)
    assert await listed(world) == ["trip"]
    assert await listed(world, BOB) == ["work"]
    assert await listed(world, UserId("nobody")) == []


async def test_a_repeated_event_leaves_its_thread_where_it_was(world: World) -> None:
    first = event("first")
    await world.append(first)
    await world.pass_time(2)
    await put(world, "second")
    assert stored((await world.append(first))[0]).duplicate
    assert await listed(world) == ["second", "first"]


async def test_threads_that_are_gone_leave_the_index(make_world: MakeWorld) -> None:
    """Else a user with a thread for each event would keep the names of a whole retention."""
    world = await make_world(max_stream_entries=100)
    for start in range(0, 400, 50):
        await world.append(*(event(f"t{number}") for number in range(start, start + 50)))
        await world.pass_time(2)
    assert len(await listed(world, count=1_000)) <= 150


# --- presence ---------------------------------------------------------------------------------------------------------


async def online(world: World, user: UserId = ALICE) -> list[tuple[str, str]]:
    page = await world.store.online(user)
    assert all(record.last_seen_ms <= page.time_ms for record in page.sessions)
    return [(record.session, record.node) for record in page.sessions]


@pytest.mark.requirement("R35")
async def test_the_live_sessions_of_a_user_are_online_with_their_nodes(world: World) -> None:
    assert await online(world) == []
    await world.open(TABLET, node=OTHER_NODE)
    await world.open(PHONE)
    await world.open(fence_of("b", user=BOB))
    assert await online(world) == [("phone", NODE), ("tablet", OTHER_NODE)]

    await world.store.detach(TABLET, ENTRY_ZERO)
    assert await online(world) == [("phone", NODE)]
    await world.store.end_session(ALICE, PHONE.session)
    assert await online(world) == []


@pytest.mark.corner("D16")
@pytest.mark.requirement("R35")
@timely
async def test_a_session_whose_node_is_silent_is_offline_when_its_time_is_over(make_world: MakeWorld) -> None:
    world = await make_world(live_ttl_ms=1_000)
    await world.open(PHONE)
    await world.open(TABLET)
    await world.pass_time(600)
    await world.store.heartbeat([TABLET], NODE)
    await world.pass_time(500)
    assert await online(world) == [("tablet", NODE)]


@pytest.mark.requirement("R35")
async def test_marks_of_holes_are_no_sessions(world: World) -> None:
    await world.publish("a", "b", "c")
    await world.open(PHONE)
    await world.power.trim(ALICE, 1)
    await world.reattach(PHONE)
    assert await online(world) == [("phone", NODE)]


class Heard:
    """Counts what a follower is told of presence."""

    def __init__(self) -> None:
        self.looks = 0
        self.changes = 0

    def told(self, user: UserId, what: Told) -> None:
        self.looks += what is Told.ANYTHING
        self.changes += what is Told.PRESENCE

    def has_heard(self, changes: int) -> bool:
        return self.changes == changes


@pytest.mark.requirement("R35")
async def test_who_follows_a_user_is_told_of_sessions_that_come_and_go_and_of_nothing_else(world: World) -> None:
    told, other = Heard(), Heard()
    following = world.store.follow(ALICE, told)
    also = world.store.follow(BOB, other)
    await until(lambda: told.looks and other.looks, message="both follow")

    steps = (
        world.open(PHONE),
        world.open(TABLET),
        world.store.detach(TABLET, ENTRY_ZERO),
        world.store.end_session(ALICE, PHONE.session),
    )
    for number, step in enumerate(steps, 1):
        await step
        await until(partial(told.has_heard, number), message=f"change {number} is told")

    # A session taken over, attached again, renewed, or ended while it was away changes nothing.
    await world.open(PHONE)
    await until(lambda: told.changes == 5, message="phone is back")
    taken = fence_of("phone-2")
    await world.open(taken, node=OTHER_NODE)
    await world.reattach(taken, node=OTHER_NODE)
    await world.store.heartbeat([taken], OTHER_NODE)
    await world.store.detach(PHONE, ENTRY_ZERO)
    await world.store.end_session(ALICE, TABLET.session)
    await world.store.detach(taken, ENTRY_ZERO)
    await until(lambda: told.changes == 6, message="phone is away")
    await world.open(fence_of("b", user=BOB))
    await until(lambda: other.changes == 1, message="bob is there")
    assert (told.changes, other.changes) == (6, 1)
    following.close()
    also.close()


# --- counts -----------------------------------------------------------------------------------------------------------


async def counted(world: World) -> dict[tuple[str, str], int]:
    total: dict[tuple[str, str], int] = {}
    for answer in await world.store.counts(range(world.settings.partitions)):
        assert not isinstance(answer, StoreError)
        for key, count in answer.items():
            total[key] = total.get(key, 0) + count
    return total


@pytest.mark.requirement("R14")
async def test_stored_events_are_counted_by_type_over_all_partitions(world: World) -> None:
    await world.append(event(type="note"), event(type="note", user=BOB), event(type="a.b_c"), event(type=""))
    assert await counted(world) == {("stored", "note"): 2, ("stored", "a.b_c"): 1, ("stored", "other"): 1}


@pytest.mark.requirement("R14")
async def test_a_repeated_event_is_counted_once(world: World) -> None:
    again = event()
    await world.append(again)
    await world.append(again)
    assert await counted(world) == {("stored", "note"): 1}
