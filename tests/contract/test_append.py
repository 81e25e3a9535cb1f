"""What a returned publish means: stored once, in order, within the limits of its user's stream."""

from __future__ import annotations

import asyncio

import pytest

from eventbus.config import StreamFullPolicy
from eventbus.errors import NotReplicated, StreamFull
from eventbus.ids import ENTRY_ZERO, EntryId, EventId, SessionId, UserId, entry_order
from eventbus.store import Append, Appended, Durability, StoredEntry
from tests.contract.conftest import CLUSTER, MEMORY, SENTINEL, SERVERS, MakeWorld, once
from tests.contract.timely import timely
from tests.contract.worlds import ALICE, World, fence_of, stored

BOB = UserId("bob")
SESSION_DESK = SessionId("desk")


def event(name: str, user: UserId = ALICE, body: bytes = b"body") -> Append:
    return Append(user=user, event=EventId(name), body=body)


async def test_events_are_kept_whole_under_rising_entry_ids(world: World) -> None:
    bodies = [bytes(range(256)), b"", b"\r\n$3\r\n", "ü".encode()]

    results = [stored(result) for result in await world.append(*(event(f"e{i}", body=b) for i, b in enumerate(bodies)))]

    assert [result.duplicate for result in results] == [False] * 4
    entries = [result.entry for result in results]
    assert entries == sorted(set(entries), key=entry_order)
    page = await world.store.history(ALICE, ENTRY_ZERO, 10)
    assert list(page.entries) == [StoredEntry(entry, body) for entry, body in zip(entries, bodies, strict=True)]


async def test_entry_ids_carry_the_time_of_the_store(world: World) -> None:
    before_ms = await world.store.ping()
    (entry,) = await world.publish("one")
    after_ms = await world.store.ping()

    assert before_ms <= entry_order(entry)[0] <= after_ms


@pytest.mark.requirement("R4")
async def test_known_event_id_is_answered_with_its_first_entry_and_stored_once(world: World) -> None:
    (first,) = await world.append(event("e1", body=b"first"))
    (again,) = await world.append(event("e1", body=b"again"))

    assert stored(again).entry == stored(first).entry
    assert (stored(first).duplicate, stored(again).duplicate) == (False, True)
    assert await world.retained() == ["first"]


async def test_event_id_twice_in_one_batch_is_stored_once(world: World) -> None:
    first, other, again = await world.append(event("e1"), event("e2"), event("e1"))

    assert [stored(result).duplicate for result in (first, other, again)] == [False, False, True]
    assert stored(again).entry == stored(first).entry
    assert len(await world.retained()) == 2


@pytest.mark.requirement("R4")
@timely
async def test_event_id_is_known_for_the_whole_dedupe_window(make_world: MakeWorld) -> None:
    """Also when the window lies across the edge of a bucket."""
    world = await make_world(dedupe_ms=800)
    (first,) = await world.append(event("e1"))
    now_ms = await world.store.ping()
    await world.pass_time(800 - now_ms % 800)

    (again,) = await world.append(event("e1"))

    assert (stored(again).entry, stored(again).duplicate) == (stored(first).entry, True)


async def test_event_id_is_stored_again_after_the_dedupe_window(make_world: MakeWorld) -> None:
    """The window is two buckets at the most, and the docs say so."""
    world = await make_world(dedupe_ms=100)
    (first,) = await world.append(event("e1"))
    await world.pass_time(201)

    (again,) = await world.append(event("e1"))

    assert not stored(again).duplicate
    assert entry_order(stored(again).entry) > entry_order(stored(first).entry)
    assert len(await world.retained()) == 2


@pytest.mark.corner("D13")
async def test_user_and_event_id_are_never_confused(make_world: MakeWorld) -> None:
    world = await make_world(partitions=1)

    results = await world.append(event("b:c", UserId("a")), event("c", UserId("a:b")))

    assert [stored(result).duplicate for result in results] == [False, False]
    assert len(await world.retained(UserId("a"))) == len(await world.retained(UserId("a:b"))) == 1


async def test_same_event_id_of_two_users_is_two_events(make_world: MakeWorld) -> None:
    world = await make_world(partitions=1)

    results = await world.append(event("e1", ALICE, b"for alice"), event("e1", BOB, b"for bob"))

    assert [stored(result).duplicate for result in results] == [False, False]
    assert (await world.retained(ALICE), await world.retained(BOB)) == (["for alice"], ["for bob"])


@pytest.mark.requirement("R6")
async def test_events_of_a_user_are_stored_in_the_order_of_the_calls(world: World) -> None:
    """Single calls and batches of one turn of the loop, with other users between."""
    calls = []
    for number in range(0, 60, 3):
        calls.append(world.append(event(f"e{number}", body=b"%d" % number)))
        calls.append(world.append(event(f"b{number}", BOB)))
        calls.append(world.append(*(event(f"e{i}", body=b"%d" % i) for i in (number + 1, number + 2))))

    await asyncio.gather(*calls)

    assert await world.retained() == [str(number) for number in range(60)]


async def test_append_names_the_server_that_answered(world: World, world_kind: str) -> None:
    (first,) = await world.append(event("e1"))
    (again,) = await world.append(event("e1"))
    info = await world.store.info()

    assert stored(first).primary == stored(again).primary != ""
    if world_kind != CLUSTER:  # which has several
        assert stored(first).primary == info.primary


async def test_stream_ends_its_life_after_the_retention(make_world: MakeWorld) -> None:
    world = await make_world(retention_ms=1_000)
    await world.publish("old")
    await world.pass_time(1_001)

    assert await world.retained() == []
    await world.publish("new")
    assert await world.retained() == ["new"]


async def test_stream_never_grows_beyond_its_cap(make_world: MakeWorld) -> None:
    world = await make_world(max_stream_entries=5)

    await world.publish(*(f"e{i}" for i in range(12)))

    assert await world.retained() == ["e7", "e8", "e9", "e10", "e11"]


async def test_stream_at_its_cap_drops_the_oldest_under_the_policy_gap(make_world: MakeWorld) -> None:
    world = await make_world(max_stream_entries=3, stream_full_policy=StreamFullPolicy.GAP)
    await world.open(fence_of("c1"))

    results = await world.append(*(event(f"e{i}", body=b"e%d" % i) for i in range(5)))

    assert all(isinstance(result, Appended) for result in results)
    assert await world.retained() == ["e2", "e3", "e4"]


async def test_stream_at_its_cap_refuses_under_the_policy_reject(make_world: MakeWorld) -> None:
    """Only the user whose stream is full is refused, and nothing of his is lost."""
    world = await make_world(max_stream_entries=3, stream_full_policy=StreamFullPolicy.REJECT)
    fence = fence_of("c1")
    await world.open(fence)
    await world.publish("e0", "e1", "e2")

    refused, other = await world.append(event("e3"), event("e3", BOB, b"for bob"))

    assert isinstance(refused, StreamFull)
    assert isinstance(other, Appended)
    assert await world.received(fence) == ["e0", "e1", "e2"]


@pytest.mark.corner("D18")
async def test_entry_that_is_pending_is_still_needed(make_world: MakeWorld) -> None:
    world = await make_world(max_stream_entries=3, stream_full_policy=StreamFullPolicy.REJECT)
    fence = fence_of("c1")
    await world.open(fence)
    first, *_ = await world.publish("e0", "e1", "e2")
    await world.received(fence)

    (while_pending,) = await world.append(event("e3", body=b"e3"))
    await world.ack(fence, first)
    (once_acked,) = await world.append(event("e3", body=b"e3"))

    assert isinstance(while_pending, StreamFull)
    assert isinstance(once_acked, Appended)
    assert not once_acked.duplicate
    assert await world.retained() == ["e1", "e2", "e3"]


@pytest.mark.corner("D18")
async def test_entry_that_is_pending_and_gone_holds_nothing_back(make_world: MakeWorld) -> None:
    """It was trimmed by age; what was acked behind it makes room all the same."""
    world = await make_world(max_stream_entries=3, stream_full_policy=StreamFullPolicy.REJECT)
    fence = fence_of("c1")
    await world.open(fence)
    await world.publish("e0", "e1")
    await world.received(fence)
    await world.power.trim(ALICE, 0)
    entries = await world.publish("e2", "e3", "e4")
    await world.received(fence)

    (while_needed,) = await world.append(event("e5", body=b"e5"))
    await world.ack(fence, entries[0])
    (once_acked,) = await world.append(event("e5", body=b"e5"))

    assert isinstance(while_needed, StreamFull)
    assert isinstance(once_acked, Appended)
    assert await world.retained() == ["e3", "e4", "e5"]


@pytest.mark.corner("D18")
async def test_acked_entries_do_not_count_towards_the_cap(make_world: MakeWorld) -> None:
    world = await make_world(max_stream_entries=3, stream_full_policy=StreamFullPolicy.REJECT)
    fence = fence_of("c1")
    await world.open(fence)
    for number in range(0, 9, 3):
        names = [f"e{number + i}" for i in range(3)]
        entries = await world.publish(*names)
        assert await world.received(fence) == names
        assert await world.ack(fence, *entries) == 3


@pytest.mark.corner("D18")
async def test_entries_that_another_session_needs_count(make_world: MakeWorld) -> None:
    world = await make_world(max_stream_entries=3, stream_full_policy=StreamFullPolicy.REJECT)
    phone, desk = fence_of("c1"), fence_of("c2", session=SESSION_DESK)
    await world.open(phone)
    await world.open(desk)
    entries = await world.publish("e0", "e1", "e2")
    await world.received(phone)
    await world.ack(phone, *entries)

    (refused,) = await world.append(event("e3"))

    assert isinstance(refused, StreamFull)
    assert await world.received(desk) == ["e0", "e1", "e2"]


async def test_stream_that_nobody_reads_is_never_full(make_world: MakeWorld) -> None:
    world = await make_world(max_stream_entries=3, stream_full_policy=StreamFullPolicy.REJECT)

    await world.publish("e0", "e1", "e2", "e3", "e4")

    assert (await world.retained())[-1] == "e4"


async def test_bytes_of_a_stream_are_capped_too(make_world: MakeWorld) -> None:
    world = await make_world(max_stream_bytes=64 * 1024, stream_full_policy=StreamFullPolicy.REJECT)
    await world.open(fence_of("c1"))

    results = [(await world.append(event(f"e{i}", body=bytes(20_000))))[0] for i in range(8)]

    kept = [result for result in results if isinstance(result, Appended)]
    assert 2 <= len(kept) <= 4
    assert all(isinstance(result, StreamFull) for result in results[len(kept) :])


async def test_event_at_the_cap_that_was_refused_may_be_published_again(make_world: MakeWorld) -> None:
    """A refusal is not remembered as the event's place."""
    world = await make_world(max_stream_entries=1, stream_full_policy=StreamFullPolicy.REJECT)
    fence = fence_of("c1")
    await world.open(fence)
    (entry,) = await world.publish("e0")
    assert isinstance((await world.append(event("e1", body=b"e1")))[0], StreamFull)
    await world.received(fence)
    await world.ack(fence, entry)

    (result,) = await world.append(event("e1", body=b"e1"))

    assert not stored(result).duplicate
    assert await world.received(fence) == ["e1"]


@pytest.mark.parametrize("world_kind", [MEMORY, *SERVERS], indirect=True)
async def test_publish_that_no_replica_confirms_says_so_and_is_stored(world: World) -> None:
    (result,) = await world.store.append([event("e1", body=b"e1")], Durability.REPLICATED)

    assert isinstance(result, NotReplicated)
    assert result.retryable
    assert await world.retained() == ["e1"]


@pytest.mark.parametrize(
    "world_kind", [once(CLUSTER, pytest.mark.slow), once(SENTINEL, pytest.mark.slow)], indirect=True
)
async def test_publish_that_a_replica_confirms_says_nothing(world: World) -> None:
    """Of users on all primaries of a Cluster."""
    users = [UserId(f"user{number}") for number in range(30)]
    results = await world.store.append([event("e1", user=user) for user in users], Durability.REPLICATED)

    assert len([stored(result) for result in results]) == len(users)


async def test_empty_batch_stores_nothing(world: World) -> None:
    assert list(await world.append()) == []


async def test_tail_is_the_newest_entry_ever(make_world: MakeWorld) -> None:
    world = await make_world()
    assert (await world.store.tail(ALICE))[0] == ENTRY_ZERO
    entries = await world.publish("e0", "e1")
    assert (await world.store.tail(ALICE))[0] == entries[-1]
    await world.power.trim(ALICE, 0)
    assert (await world.store.tail(ALICE))[0] == entries[-1]


async def test_history_is_read_in_pages(world: World) -> None:
    entries = await world.publish("e0", "e1", "e2")
    tail, epoch = await world.store.tail(ALICE)

    first = await world.store.history(ALICE, ENTRY_ZERO, 2)
    second = await world.store.history(ALICE, first.entries[-1].id, 2)
    end = await world.store.history(ALICE, second.entries[-1].id, 2)

    assert list(first.entries) == [StoredEntry(entries[0], b"e0"), StoredEntry(entries[1], b"e1")]
    assert list(second.entries) == [StoredEntry(entries[2], b"e2")]
    assert list(end.entries) == []
    assert (first.more, second.more, end.more) == (True, False, False)
    assert {(page.tail, page.epoch) for page in (first, second, end)} == {(tail, epoch)}
    assert tail == entries[2]


async def test_history_says_whether_more_follows_when_a_page_is_just_full(world: World) -> None:
    await world.publish("e0", "e1")

    assert not (await world.store.history(ALICE, ENTRY_ZERO, 2)).more


async def test_history_of_a_user_without_a_stream_is_empty(world: World) -> None:
    page = await world.store.history(BOB, ENTRY_ZERO, 10)

    assert (list(page.entries), page.tail, page.more) == ([], ENTRY_ZERO, False)
    assert page.epoch == (await world.store.tail(BOB))[1] != ""


async def test_one_entry_is_found_by_its_id(world: World) -> None:
    entries = await world.publish("e0", "e1", "e2")
    await world.power.trim(ALICE, 2)

    assert await world.store.entry(ALICE, entries[1]) == StoredEntry(entries[1], b"e1")
    assert await world.store.entry(ALICE, entries[0]) is None
    assert await world.store.entry(ALICE, EntryId("1-1")) is None
    assert await world.store.entry(BOB, entries[1]) is None


@pytest.mark.requirement("R22")
async def test_users_of_one_partition_do_not_see_each_other(make_world: MakeWorld) -> None:
    world = await make_world(partitions=1)
    await world.open(fence_of("c1"))
    await world.open(fence_of("c2", user=BOB))

    await world.publish("for bob", user=BOB)

    assert await world.received(fence_of("c1")) == []
    assert await world.received(fence_of("c2", user=BOB)) == ["for bob"]
    assert await world.retained(ALICE) == []
