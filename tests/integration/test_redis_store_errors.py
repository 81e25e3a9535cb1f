"""What Redis refuses comes out as one of the bus's errors, and says whether trying again helps."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import redis

from eventbus.errors import NotReplicated, StoreBusy, StoreError, StoreFull, StoreMisconfigured, StoreUnavailable
from eventbus.ids import EntryId
from eventbus.store import Appended, BeatState, DeadLetter, DeadOutcome, Durability, Redelivery, ReleaseReason
from eventbus.store.redis_store import RedisStore
from tests.support.redis_stores import ALICE, NODE, event_of, fence_of, open_session, publish, read
from tests.support.servers import NewServer, connect, request
from tests.support.stalls import within
from tests.support.waiting import until


@pytest.fixture
async def store(redis_url: str) -> AsyncIterator[RedisStore]:
    made = RedisStore(redis_url)
    yield made
    await made.aclose()


async def failure(store: RedisStore, durability: Durability = Durability.MEMORY) -> Any:
    (result,) = await store.append([event_of("failing")], durability)
    return result


async def test_key_of_a_wrong_type_is_a_misconfiguration(store: RedisStore, redis_url: str) -> None:
    stream = store.keys.user(ALICE).stream
    with redis.Redis.from_url(redis_url) as client:
        client.set(stream, "not a stream", ex=60)
        assert isinstance(await failure(store), StoreMisconfigured)
        with pytest.raises(StoreMisconfigured):
            await open_session(store, fence_of())
        client.delete(stream)
    await publish(store, event_of("works again"))


@pytest.mark.parametrize("kind", ["valkey", "redis"])
async def test_full_redis_refuses_publishers_and_can_be_drained(new_server: NewServer, kind: str) -> None:
    """D14."""
    server = new_server(kind=kind, appendonly=False)
    store = RedisStore(server.url)
    fence = fence_of()
    try:
        await open_session(store, fence)
        stored = await publish(store, *(event_of(f"e{number}") for number in range(6)))
        with redis.Redis.from_url(server.url) as client:
            client.config_set("maxmemory", "1")
            refused = await failure(store)
            assert isinstance(refused, StoreFull)
            assert refused.retryable
            assert len((await read(store, fence)).entries) == 6
            assert await store.ack(ALICE, fence.session, [stored[0].entry]) == 1
            assert await store.release(fence, [stored[1].entry], ReleaseReason.FILTERED) == 1
            assert await store.redeliver(fence, [Redelivery(id=stored[2].entry, attempts=2)]) == ["ready"]
            letter = DeadLetter(
                id=stored[3].entry, event=event_of("e3").event, type="t", reason="r", attempts=5, body=b""
            )
            assert await store.dead_letter(fence, letter) is DeadOutcome.DEAD
            assert (await store.heartbeat([fence], NODE))[0].state is BeatState.HELD  # type: ignore[union-attr]
            assert await store.detach(fence, stored[1].entry) is True
            attached = await open_session(store, fence_of("tablet"))
            assert attached.resumed is False
            assert len((await store.history(ALICE, EntryId("0-0"), 10)).entries) == 6
            client.config_set("maxmemory", "0")
        await publish(store, event_of("room again"))
    finally:
        await store.aclose()


async def test_replica_refuses_to_store_and_the_connection_is_left(new_server: NewServer) -> None:
    server = new_server(appendonly=False)
    store = RedisStore(server.url)
    try:
        await store.ping()
        with redis.Redis.from_url(server.url) as client:
            client.replicaof("127.0.0.1", 1)
            refused = await failure(store)
            assert isinstance(refused, StoreBusy)
            assert refused.retryable
            client.replicaof("no", "one")
        await publish(store, event_of("primary again"))
        assert store.link.statistics()["connections"] == 2
    finally:
        await store.aclose()


async def test_wrong_password_is_a_misconfiguration(new_server: NewServer) -> None:
    server = new_server(appendonly=False)
    with redis.Redis.from_url(server.url) as client:
        client.config_set("requirepass", "secret")
    for url in (server.url, server.url.replace("//", "//:wrong@")):
        store = RedisStore(url)
        with pytest.raises(StoreMisconfigured):
            await store.ping()
        await store.aclose()
    store = await RedisStore.connect(server.url.replace("//", "//:secret@"))
    await publish(store, event_of("with the password"))
    await store.aclose()


async def test_user_without_a_right_is_a_misconfiguration(new_server: NewServer) -> None:
    server = new_server(appendonly=False)
    with redis.Redis.from_url(server.url) as client:
        client.execute_command("ACL", "SETUSER", "agent", "on", ">secret", "~*", "&*", "+@all", "-xadd", "-client")
    store = RedisStore(server.url.replace("//", "//agent:secret@"))
    try:
        assert isinstance(await failure(store), StoreMisconfigured)
        assert await store.ping() > 0
    finally:
        await store.aclose()


async def test_url_that_is_none_is_a_misconfiguration() -> None:
    with pytest.raises(StoreMisconfigured):
        RedisStore("http://127.0.0.1/")


async def test_server_that_runs_a_long_script_is_busy(new_server: NewServer) -> None:
    server = new_server(appendonly=False)
    store = RedisStore(server.url)
    try:
        await store.ping()
        with redis.Redis.from_url(server.url) as client:
            client.config_set("busy-reply-threshold", "20")
        with connect(server.url) as endless:
            endless.sendall(b"*3\r\n$4\r\nEVAL\r\n$17\r\nwhile true do end\r\n$1\r\n0\r\n")

            async def busy() -> bool:
                return isinstance(await failure(store), StoreBusy)

            await until(busy)
            assert request(server.url, "SCRIPT", "KILL") == b"+OK"

        async def healed() -> bool:
            return isinstance(await failure(store), Appended)

        await until(healed)
    finally:
        await store.aclose()


# --- durability -----------------------------------------------------------------------------------------------------


async def test_publish_waits_for_its_replicas(new_server: NewServer) -> None:
    primary, replica = new_server(appendonly=False), new_server(appendonly=False)
    store = RedisStore(primary.url, replicated_timeout_ms=2_000)
    try:
        with redis.Redis.from_url(replica.url) as client, redis.Redis.from_url(primary.url) as head:
            client.replicaof("127.0.0.1", primary.port)
            await until(lambda: head.info("replication")["connected_slaves"] == 1, 10_000)
            await until(lambda: client.info("replication")["master_link_status"] == "up", 10_000)
            await publish(store, event_of("e1"), event_of("e2"), durability=Durability.REPLICATED)
            assert client.xlen(store.keys.user(ALICE).stream) == 2
    finally:
        await store.aclose()


async def test_duplicate_proves_nothing_while_the_replica_is_away(new_server: NewServer) -> None:
    """D12: the first publish was stored and not replicated; the repetition must not pretend that it was."""
    primary, replica = new_server(appendonly=False), new_server(appendonly=False)
    store = RedisStore(primary.url, replicated_timeout_ms=200)
    try:
        with redis.Redis.from_url(replica.url) as client, redis.Redis.from_url(primary.url) as head:
            client.replicaof("127.0.0.1", primary.port)
            await until(lambda: client.info("replication")["master_link_status"] == "up", 10_000)
            replica.kill()
            await until(lambda: head.info("replication")["connected_slaves"] == 0, 10_000)
        for _ in range(2):
            result = await failure(store, Durability.REPLICATED)
            assert isinstance(result, NotReplicated)
            assert result.retryable
        (stored,) = await publish(store, event_of("failing"))
        assert stored.duplicate
    finally:
        await store.aclose()


async def test_waiting_for_replicas_holds_up_no_other_call(new_server: NewServer) -> None:
    """WAIT has a connection of its own, and calls that come while one waits share the next."""
    server = new_server(appendonly=False)
    store = RedisStore(server.url, replicated_timeout_ms=60_000)
    try:
        slow = [
            asyncio.create_task(store.append([event_of(f"e{number}")], Durability.REPLICATED)) for number in range(20)
        ]
        await until(lambda: store.link.statistics()["connections"] == 1)
        async with within(1):
            await publish(store, event_of("quick"))
        assert not any(task.done() for task in slow)
        with redis.Redis.from_url(server.url, decode_responses=True) as client:

            def over() -> bool:
                # As if the time were: all that wait now, and what is sent then.
                for each in client.client_list():
                    if each["cmd"] == "wait":
                        client.client_unblock(int(each["id"]))
                return all(task.done() for task in slow)

            await until(over)
        assert all(isinstance(result, NotReplicated) for (result,) in [task.result() for task in slow])
    finally:
        await store.aclose()


async def test_fsync_needs_a_server_that_syncs_before_it_answers(new_server: NewServer) -> None:
    server = new_server(appendonly=True, appendfsync="everysec")
    store = RedisStore(server.url)
    try:
        assert isinstance(await failure(store, Durability.FSYNC), StoreMisconfigured)
        with redis.Redis.from_url(server.url) as client:
            client.config_set("appendfsync", "always")
        assert isinstance(await failure(store, Durability.FSYNC), Appended)
    finally:
        await store.aclose()


async def test_every_error_of_a_server_that_is_away_may_be_tried_again(new_server: NewServer) -> None:
    server = new_server(appendonly=False)
    server.kill()
    store = RedisStore(server.url)
    fence = fence_of()
    calls = [
        store.tail(ALICE),
        store.ack(ALICE, fence.session, [EntryId("1-1")]),
        store.read_pending(fence, EntryId("0-0"), 1),
        store.detach(fence, EntryId("0-0")),
        store.users("", 10),
        store.dead_letter_partitions(),
        store.info(),
        store.probe(NODE, "token"),
        store.nodes(),
        store.take_ticket("t"),
    ]
    for call in calls:
        with pytest.raises(StoreError) as caught:
            await call
        assert isinstance(caught.value, StoreUnavailable)
        assert caught.value.retryable
    (beat,) = await store.heartbeat([fence], NODE)
    assert isinstance(beat, StoreUnavailable)
    await store.aclose()
