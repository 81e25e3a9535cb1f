"""What is Redis's own: the hole that the cap leaves, the buckets' lives, stale fields, long pending lists."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
import redis

from eventbus.config import StoreSettings
from eventbus.errors import StoreError
from eventbus.ids import EntryId, NodeName, ThreadId, UserId
from eventbus.store import LOST, AckRequest, GapReason, NewRead, ReadRequest, ReadState, Start, StoreGap
from eventbus.store.redis_store import RedisStore
from tests.support.redis_stores import ALICE, NODE, bodies, event_of, fence_of, open_session, publish, read

MakeStore = Callable[..., RedisStore]


@pytest.fixture
async def make_store(redis_url: str) -> AsyncIterator[MakeStore]:
    """Makes a store with settings of the test's own: `make_store(max_stream_entries=10)`."""
    async with AsyncExitStack() as stack:

        def make(**settings: Any) -> RedisStore:
            store = RedisStore(redis_url, StoreSettings(**settings))
            stack.push_async_callback(store.aclose)
            return store

        yield make


@pytest.fixture
def client(redis_url: str) -> Any:
    with redis.Redis.from_url(redis_url, decode_responses=True) as made:
        yield made


async def test_cap_that_overtakes_a_quiet_session_is_a_gap_without_being_asked_for(make_store: MakeStore) -> None:
    """D7, beyond its letter: the session had read everything, so nothing is verified, and still it is told."""
    store, fence = make_store(max_stream_entries=10), fence_of()
    await open_session(store, fence)
    (first,) = await publish(store, event_of("first"))
    assert bodies(await read(store, fence)) == ["first"]
    await publish(store, *(event_of(f"e{number:02}") for number in range(25)))
    result = await read(store, fence)
    assert result.gap is not None
    assert (result.gap.reason, result.gap.after) == (GapReason.TRIMMED, first.entry)
    assert result.gap.before == result.entries[0].id
    assert result.gap.count == 25 - len(result.entries)
    again = await read(store, fence)
    assert (again.state, again.gap) == (ReadState.OK, None)


async def test_threads_that_an_older_version_wrote_stay_and_are_listed_last(make_store: MakeStore, client: Any) -> None:
    """Its scores are milliseconds. While the publishers are replaced, both are written."""
    store = make_store()
    (first,) = await publish(store, event_of("first", thread=ThreadId("new")))
    now_ms = int(first.entry.partition("-")[0])
    client.zadd(store.keys.user(ALICE).threads, {"gone": now_ms - 1, "old": now_ms + 3, "older": now_ms + 2})
    await publish(store, *(event_of(f"e{number}", thread=ThreadId("new")) for number in range(40)))
    for count in (1, 2, 3):
        page = await store.threads(ALICE, None, count)
        seen = [*page.threads]
        while page.more:
            page = await store.threads(ALICE, seen[-1], count)
            seen += page.threads
        assert [record.thread for record in seen] == ["new", "old", "older"], count
        assert [record.last_ms for record in seen[1:]] == [now_ms + 3, now_ms + 2]
    assert "gone" not in client.zrange(store.keys.user(ALICE).threads, 0, -1)

    await publish(store, event_of("last", thread=ThreadId("older")))
    assert [record.thread for record in (await store.threads(ALICE, None, 9)).threads] == ["older", "new", "old"]


async def test_a_place_that_is_round_is_listed_whole(make_store: MakeStore, client: Any) -> None:
    """A server may write such a score with an exponent."""
    store = make_store()
    await publish(store, event_of("first", thread=ThreadId("new")))
    client.zadd(store.keys.user(ALICE).threads, {"new": 2_000_000_000_000_000})
    (record,) = (await store.threads(ALICE, None, 9)).threads
    assert (record.place, record.last_ms) == (2 * 10**15, 2 * 10**12)


async def test_mark_of_a_hole_stays_until_every_live_session_has_passed_it(make_store: MakeStore, client: Any) -> None:
    store = make_store(max_stream_entries=8)
    phone, tablet = fence_of("phone"), fence_of("tablet")
    for fence in (phone, tablet):
        await open_session(store, fence)
    await publish(store, *(event_of(f"e{number:02}") for number in range(20)))
    live = store.keys.user(ALICE).live
    assert client.hexists(live, "#")
    first = await read(store, phone)
    assert first.gap is not None
    assert client.hexists(live, "#")
    second = await read(store, tablet)
    assert isinstance(second.gap, StoreGap)
    assert not client.hexists(live, "#")


async def test_mark_of_a_hole_is_no_session(make_store: MakeStore, client: Any) -> None:
    store, fence = make_store(max_stream_entries=8), fence_of()
    await open_session(store, fence)
    (*_, last) = await publish(store, *(event_of(f"e{number:02}") for number in range(20)))
    assert last.woken == 1
    assert [record.session for record in await store.sessions(ALICE)] == ["phone"]
    beats = await store.heartbeat([fence], NODE)
    assert [getattr(beat, "unread", None) for beat in beats] == [True]
    assert client.hexists(store.keys.user(ALICE).live, "#"), "a heartbeat does not take the mark away"


async def test_large_cap_is_trimmed_a_little_more_than_needed(make_store: MakeStore, client: Any) -> None:
    store = make_store(max_stream_entries=160)
    stream = store.keys.user(ALICE).stream
    await publish(store, *(event_of(f"e{number:03}") for number in range(160)))
    assert client.xlen(stream) == 160
    await publish(store, event_of("one more"))
    assert client.xlen(stream) == 151, "a sixteenth goes at once, so that not every publish has to trim"


async def test_bucket_of_event_ids_lives_to_the_end_of_the_next_window(make_store: MakeStore, client: Any) -> None:
    store = make_store(dedupe_ms=60_000)
    await publish(store, event_of("e1"), event_of("e2"))
    partition = store.keys.user(ALICE).partition
    (bucket,) = [name for name in (partition.bucket_even, partition.bucket_odd) if client.exists(name)]
    now_ms = await store.ping()
    window = now_ms // 60_000
    assert bucket.endswith(f":{window % 2}")
    assert abs(int(client.execute_command("PEXPIRETIME", bucket)) - (window + 2) * 60_000) <= 1
    assert client.hget(bucket, "#") == str(window)
    assert client.hlen(bucket) == 3  # two ids, and that mark


async def test_duplicate_is_written_again_so_that_its_window_begins_anew(make_store: MakeStore, client: Any) -> None:
    """D12: a duplicate is a write of its own."""
    store = make_store()
    await publish(store, event_of("e1"))
    before = client.info("persistence")["rdb_changes_since_last_save"]
    (again,) = await publish(store, event_of("e1"))
    assert again.duplicate
    assert client.info("persistence")["rdb_changes_since_last_save"] > before


async def test_gap_is_found_also_where_nobody_can_count_it(make_store: MakeStore, client: Any) -> None:
    """A group that begins far from the end has no number of entries read, and what it lost is a gap all the same."""
    store, fence = make_store(), fence_of()
    stored = await publish(store, *(event_of(f"e{number}") for number in range(1_500)))
    opened = await open_session(store, fence, start=Start.CURSOR, cursor=stored[10].entry)
    assert opened.gap is None
    stream = store.keys.user(ALICE).stream
    assert client.xinfo_groups(stream)[0]["entries-read"] is None
    client.xtrim(stream, maxlen=5, approximate=False)
    again = await open_session(store, fence)
    assert again.gap == StoreGap(reason=GapReason.TRIMMED, after=stored[10].entry, before=stored[1_495].entry)
    assert (await open_session(store, fence)).gap is None


async def test_group_that_no_session_owns_goes_with_the_next_attach(make_store: MakeStore, client: Any) -> None:
    """D16: the hash of sessions expired as a whole, the groups did not."""
    store = make_store()
    ghost = fence_of("ghost")
    await open_session(store, ghost)
    (stored,) = await publish(store, event_of("e1"))
    await read(store, ghost)
    keys = store.keys.user(ALICE)
    client.delete(keys.live, keys.known)
    await open_session(store, fence_of("phone"))
    assert [group["name"] for group in client.xinfo_groups(keys.stream)] == ["phone"]
    ((_, record),) = await store.confirmations(ALICE, EntryId("0-0"), 10)
    assert (record.session, record.level, record.entries) == ("ghost", "expired", (stored.entry,))


async def test_all_pending_entries_of_an_ended_session_are_recorded(make_store: MakeStore) -> None:
    store, fence = make_store(), fence_of()
    await open_session(store, fence)
    stored = await publish(store, *(event_of(f"e{number}") for number in range(1_200)))
    for _ in range(3):
        await read(store, fence, 500)
    assert await store.end_session(ALICE, fence.session) == 1_200
    records = await store.confirmations(ALICE, EntryId("0-0"), 10)
    assert [entry for _, record in records for entry in record.entries] == [appended.entry for appended in stored]
    assert await store.detach(fence, EntryId("0-0")) is LOST


async def test_stream_lives_on_while_a_session_is_live(make_store: MakeStore, client: Any) -> None:
    """D15: a quiet user's stream must not expire under a live session."""
    store, fence = make_store(), fence_of()
    await open_session(store, fence)
    stream = store.keys.user(ALICE).stream
    client.pexpire(stream, 5_000)
    await store.heartbeat([fence], NODE)
    assert client.pttl(stream) > 80_000_000
    client.pexpire(stream, 5_000)
    await store.detach(fence, EntryId("0-0"))
    assert client.pttl(stream) > 80_000_000


async def test_read_for_no_room_reads_one_entry_and_never_all(make_store: MakeStore) -> None:
    """D20: COUNT 0 would mean all."""
    store, fence = make_store(), fence_of()
    await open_session(store, fence)
    await publish(store, event_of("e1"), event_of("e2"), event_of("e3"))
    assert bodies(await read(store, fence, 0)) == ["e1"]
    page: Any = await store.read_pending(fence, EntryId("0-0"), 0)
    assert len(page.entries) == 1


async def test_bodies_of_any_bytes_come_back_as_they_were(make_store: MakeStore) -> None:
    store, fence = make_store(), fence_of()
    await open_session(store, fence)
    body = bytes(range(256)) * 1_024
    await publish(store, event_of("binary", body=body))
    result = await read(store, fence)
    assert result.entries[0].body == body
    page: Any = await store.read_pending(fence, EntryId("0-0"), 10)
    assert page.entries[0].body == body


async def test_epoch_is_made_once(make_store: MakeStore) -> None:
    one, other = make_store(), make_store()
    _, first = await one.tail(ALICE)
    _, second = await other.tail(ALICE)
    assert first == second == (await open_session(other, fence_of())).epoch


async def test_installations_in_one_redis_do_not_see_each_other(make_store: MakeStore) -> None:
    one, other = make_store(namespace="one"), make_store(namespace="two")
    await publish(one, event_of("e1"))
    assert (await other.users("", 10))[0] == []
    assert (await other.tail(ALICE))[0] == "0-0"
    assert (await one.users("", 10))[0] == [ALICE]


async def test_what_a_session_was_not_told_goes_with_the_session(make_store: MakeStore, client: Any) -> None:
    """Else the gaps of sessions that are long over would gather for as long as the user has others."""
    store = make_store()
    await open_session(store, fence_of("phone"))
    keys = store.keys.user(ALICE)
    client.hset(keys.known, "old", "1 1 0-0")
    client.hset(keys.gaps, mapping={"old": "- 1-0 - 1,", "phone": "- 1-0 - 1,"})
    client.pexpire(keys.gaps, 60_000)
    await open_session(store, fence_of("tablet"))
    assert client.hkeys(keys.gaps) == ["phone"]


async def test_a_user_whose_data_is_broken_fails_alone_among_those_that_are_served_in_one_call(
    make_store: MakeStore, client: Any
) -> None:
    """One script call reads or acks for many users: what a stranger did to one user's keys is no other's loss."""
    store = make_store()
    fences = [fence_of(user=UserId(f"user-{number}")) for number in range(40)]
    for fence in fences:
        await open_session(store, fence)
        await publish(store, event_of("first", fence.user))
    broken_stream, broken_live = (store.keys.user(fences[number].user) for number in (3, 20))
    client.set(broken_stream.stream, "no stream", px=60_000)
    client.set(broken_live.live, "no hash", px=60_000)
    answers = await store.read_new([ReadRequest(fence=fence, count=10) for fence in fences])
    assert [number for number, answer in enumerate(answers) if isinstance(answer, StoreError)] == [3, 20]
    assert all(bodies(answer) == ["first"] for answer in answers if isinstance(answer, NewRead))

    read_entries = [answer.entries[0].id if isinstance(answer, NewRead) else EntryId("1-1") for answer in answers]
    acked = await store.ack_many(
        [
            AckRequest(user=fence.user, session=fence.session, entries=[entry], connection=fence.connection)
            for fence, entry in zip(fences, read_entries, strict=True)
        ]
    )
    assert [number for number, answer in enumerate(acked) if isinstance(answer, StoreError)] == [3]
    assert [answer for answer in acked if not isinstance(answer, StoreError)] == [1] * 19 + [0] + [1] * 19


async def test_a_user_whose_data_is_broken_fails_alone_among_those_whose_events_are_stored_in_one_call(
    make_store: MakeStore, client: Any
) -> None:
    store = make_store()
    events = [event_of(f"e{number}", UserId(f"user-{number}")) for number in range(40)]
    broken_stream, broken_live = (store.keys.user(events[number].user) for number in (3, 20))
    client.set(broken_stream.stream, "no stream", px=60_000)
    client.set(broken_live.live, "no hash", px=60_000)

    results = await store.append(events)

    assert [number for number, result in enumerate(results) if isinstance(result, StoreError)] == [3, 20]
    for number, event in enumerate(events):
        if number not in (3, 20):
            page = await store.history(event.user, EntryId("0-0"), 10)
            assert [entry.body for entry in page.entries] == [event.body]


async def test_a_hold_of_a_node_that_can_not_be_read_is_one_and_hides_no_other(
    make_store: MakeStore, client: Any
) -> None:
    """Every node reads the whole list again and again: a word too many in it must not end them all."""
    store = make_store()
    await store.hold_node(NodeName("n2"), "ops", "new disk")
    client.hset(
        store.keys.held_nodes, mapping={"n1": "no JSON", "n3": '{"by": "ops", "reason": "", "since_ms": 7, "x": 1}'}
    )
    held = {hold.node: hold for hold in await store.held_nodes()}
    assert held.keys() == {"n1", "n2", "n3"}
    assert (held[NodeName("n2")].reason, held[NodeName("n3")].since_ms) == ("new disk", 7)
    assert await store.free_node(NodeName("n1"))
    assert [hold.node for hold in await store.held_nodes()] == ["n2", "n3"]
