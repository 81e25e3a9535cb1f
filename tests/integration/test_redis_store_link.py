"""How commands travel: one write a turn, answers in order, and healing after every kind of loss."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
import redis

from eventbus.config import StoreSettings
from eventbus.errors import StoreBusy, StoreError, StoreTimeout, StoreUnavailable
from eventbus.ids import EntryId, UserId
from eventbus.store import Appended, ReadState
from eventbus.store.command import Command
from eventbus.store.links import Links
from eventbus.store.redis_store import RedisStore
from tests.support.proxy import Proxy
from tests.support.redis_stores import ALICE, bodies, event_of, fence_of, open_session, publish, read
from tests.support.servers import NewServer, freeze, thaw
from tests.support.waiting import until

MakeStore = Callable[..., RedisStore]


@pytest.fixture
async def make_store() -> AsyncIterator[MakeStore]:
    """Makes stores that are closed after the test: `make_store(url, command_timeout_ms=...)`."""
    async with AsyncExitStack() as stack:

        def make(url: str, settings: StoreSettings | None = None, **options: Any) -> RedisStore:
            store = RedisStore(url, settings, **options)
            stack.push_async_callback(store.aclose)
            return store

        yield make


def reads_processed(client: Any) -> int:
    return int(client.info("stats")["total_reads_processed"])


def echo(word: str) -> Command[str]:
    return Command(("ECHO", word), lambda reply, _primary: str(reply.decode()))


async def test_calls_of_one_turn_leave_in_one_write(redis_url: str, make_store: MakeStore) -> None:
    store = make_store(redis_url)
    await store.ping()
    with redis.Redis.from_url(redis_url) as client:
        before = reads_processed(client)
        await asyncio.gather(*(publish(store, event_of(f"e{number}")) for number in range(200)))
        # One for the 200 calls, one for asking; a large write may arrive in a few pieces.
        assert reads_processed(client) - before <= 6
        assert client.xlen(f"eb:{{{store.keys.partition_of(ALICE)}}}:s:alice") == 200


async def test_answers_match_their_calls_whatever_was_cancelled(redis_url: str) -> None:
    link = Links(redis_url, timeout_ms=5_000)
    try:
        futures = [link.execute(echo(str(number))) for number in range(300)]
        for future in futures[::3]:
            future.cancel()
        kept = [(number, await future) for number, future in enumerate(futures) if number % 3]
        assert all(answer == str(number) for number, answer in kept)
        assert await link.execute(echo("after")) == "after"
        assert link.statistics()["connections"] == 1, "a cancellation costs no connection"
    finally:
        await link.aclose()


async def test_cancelled_publish_disturbs_no_other(redis_url: str, make_store: MakeStore) -> None:
    store = make_store(redis_url)
    tasks = [asyncio.create_task(publish(store, event_of(f"e{number}"))) for number in range(60)]
    await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(result, list) for result in results[1::2])
    history = await store.history(ALICE, EntryId("0-0"), 100)
    stored = {entry.body.decode(): entry.id for entry in history.entries}
    for number, result in enumerate(results):
        if isinstance(result, list):
            assert stored[f"e{number}"] == result[0].entry


async def test_events_of_a_user_are_stored_in_the_order_of_the_calls_when_scripts_are_gone(
    redis_url: str, make_store: MakeStore
) -> None:
    """NOSCRIPT: loaded and repeated, each stored once and in its place."""
    store = make_store(redis_url)
    await store.ping()
    with redis.Redis.from_url(redis_url) as client:
        client.script_flush()
    results = await asyncio.gather(*(publish(store, event_of(f"e{number:02}")) for number in range(40)))
    history = await store.history(ALICE, EntryId("0-0"), 100)
    assert [entry.body.decode() for entry in history.entries] == [f"e{number:02}" for number in range(40)]
    assert [entry.id for entry in history.entries] == [result[0].entry for result in results]
    assert not any(result[0].duplicate for result in results)


async def test_too_many_calls_at_once_are_refused_as_busy(redis_url: str) -> None:
    link = Links(redis_url, timeout_ms=5_000, max_calls=10)
    try:
        futures = [link.execute(echo(str(number))) for number in range(12)]
        answers = [await future for future in futures]
        assert answers[:10] == [str(number) for number in range(10)]
        assert all(isinstance(answer, StoreBusy) for answer in answers[10:])
        assert await link.execute(echo("later")) == "later"
    finally:
        await link.aclose()


async def test_too_many_bytes_at_once_are_refused_as_busy(redis_url: str) -> None:
    link = Links(redis_url, timeout_ms=5_000, max_bytes=3_000)
    try:
        futures = [link.execute(echo("x" * 1_000)) for _ in range(4)]
        kinds = [isinstance(await future, StoreBusy) for future in futures]
        assert kinds == [False, False, True, True]
    finally:
        await link.aclose()


async def test_lost_connection_fails_what_is_under_way_and_heals_with_the_next_call(
    server_url: str, make_store: MakeStore
) -> None:
    async with Proxy(int(server_url.rpartition(":")[2].partition("/")[0])) as proxy:
        store = make_store(proxy.redis_url)
        await publish(store, event_of("before"))
        proxy.to_server.stall()
        under_way = asyncio.create_task(store.append([event_of("under way")]))
        await asyncio.sleep(0)
        proxy.to_server.flow()
        proxy.cut()
        (result,) = await under_way
        assert isinstance(result, StoreUnavailable | Appended)
        await publish(store, event_of("after"))


async def test_publish_whose_answer_was_lost_is_stored_once_when_it_is_repeated(
    server_url: str, make_store: MakeStore
) -> None:
    """D1, D6: nothing is sent twice by itself, and the caller's repetition is a duplicate."""
    async with Proxy(int(server_url.rpartition(":")[2].partition("/")[0])) as proxy:
        store = make_store(proxy.redis_url)
        await store.ping()
        struck = proxy.cut_before_reply(b"EVALSHA")
        (lost,) = await store.append([event_of("once")])
        assert isinstance(lost, StoreUnavailable)
        assert struck.is_set()
        (again,) = await publish(store, event_of("once"))
        assert again.duplicate
        assert len((await store.history(ALICE, EntryId("0-0"), 10)).entries) == 1


async def test_entries_of_a_read_whose_answer_was_lost_come_with_the_pending_pages(
    server_url: str, make_store: MakeStore
) -> None:
    """D1."""
    async with Proxy(int(server_url.rpartition(":")[2].partition("/")[0])) as proxy:
        store = make_store(proxy.redis_url)
        fence = fence_of()
        await open_session(store, fence)
        await publish(store, event_of("e1"), event_of("e2"))
        proxy.cut_before_reply(b"EVALSHA")
        with pytest.raises(AssertionError):
            await read(store, fence)
        assert bodies(await read(store, fence)) == []
        attached = await open_session(store, fence)
        page: Any = await store.read_pending(fence, EntryId("0-0"), 10)
        assert attached.pending == 2
        assert [entry.body for entry in page.entries] == [b"e1", b"e2"]


async def test_frozen_server_is_a_timeout_and_heals_when_it_thaws(new_server: NewServer, make_store: MakeStore) -> None:
    server = new_server(appendonly=False)
    store = make_store(server.url, command_timeout_ms=300)
    await store.ping()
    freeze(server.pid)
    (result,) = await store.append([event_of("e1")])
    assert isinstance(result, StoreTimeout)
    with pytest.raises(StoreUnavailable):
        await store.ping()
    thaw(server.pid)

    async def healed() -> bool:
        (again,) = await store.append([event_of("e1")])
        return isinstance(again, Appended)

    await until(healed)
    assert len((await store.history(ALICE, EntryId("0-0"), 10)).entries) == 1


async def test_store_is_made_without_a_server_and_works_when_there_is_one(
    new_server: NewServer, make_store: MakeStore
) -> None:
    server = new_server()
    server.kill()
    store = make_store(server.url)
    with pytest.raises(StoreUnavailable):
        await store.ping()
    (result,) = await store.append([event_of("e1")])
    assert isinstance(result, StoreUnavailable)
    with pytest.raises(StoreError):
        await RedisStore.connect(server.url)
    server.start()

    async def healed() -> bool:
        (again,) = await store.append([event_of("e1")])
        return isinstance(again, Appended)

    await until(healed)


@pytest.mark.requirement("R2")
async def test_restart_with_its_file_keeps_everything_and_shows_as_another_primary(
    new_server: NewServer, make_store: MakeStore
) -> None:
    server = new_server(appendonly=True)
    store = make_store(server.url)
    fence = fence_of()
    attached = await open_session(store, fence)
    before = await publish(store, *(event_of(f"e{number}") for number in range(20)))
    assert len((await read(store, fence, 10)).entries) == 10
    # With `everysec` a server puts the writing off, for 2 s at most, while the disk is still at the last second's.
    with redis.Redis.from_url(server.url) as client:
        await until(lambda: client.info("persistence")["aof_buffer_length"] == 0)
    server.kill()
    server.start()

    async def healed() -> bool:
        try:
            return bool(await store.ping())
        except StoreUnavailable:
            return False

    await until(healed)
    (after,) = await publish(store, event_of("e20"))
    assert after.primary != before[0].primary
    again = await open_session(store, fence, epoch=attached.epoch, cursor=EntryId("0-0"))
    assert (again.resumed, again.pending, again.gap, again.epoch) == (True, 10, None, attached.epoch)
    result = await read(store, fence)
    assert (result.state, list(bodies(result))) == (ReadState.OK, [f"e{number}" for number in range(10, 21)])


async def test_calls_under_way_end_when_the_store_is_closed(new_server: NewServer) -> None:
    server = new_server(appendonly=False)
    store = RedisStore(server.url)
    await store.ping()
    freeze(server.pid)
    waiting = asyncio.create_task(store.append([event_of("e1")]))
    await asyncio.sleep(0)
    await store.aclose()
    (result,) = await waiting
    assert isinstance(result, StoreUnavailable)
    await store.aclose()
    thaw(server.pid)


async def test_server_behind_a_unix_socket_is_used(new_server: NewServer, make_store: MakeStore) -> None:
    from eventbus.embedded import Listen

    server = new_server(appendonly=False, listen=Listen.UNIX_SOCKET)
    store = make_store(server.url)
    assert (await publish(store, event_of("e1", UserId("bob"))))[0].duplicate is False
