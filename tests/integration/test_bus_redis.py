"""The bus over real servers: cut replies, outages, restarts that lose data, replicas, forks."""

from __future__ import annotations

import asyncio
import dataclasses
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest

from eventbus import Bus, blocking
from eventbus.blocking import Bus as BlockingBus
from eventbus.breaker import BreakerState
from eventbus.config import PublishSettings, Settings, StoreSettings
from eventbus.errors import NotReplicated, PublishTimeout
from eventbus.event import decode_envelope
from eventbus.ids import EntryId, UserId
from eventbus.publishing.receipt import Receipt
from eventbus.store.redis_store import RedisStore
from tests.support.proxy import Proxy
from tests.support.servers import NewServer, request
from tests.support.stalls import within
from tests.support.waiting import until

QUICK = Settings(
    store=StoreSettings(redis_timeout_ms=500),
    publish=PublishSettings(retry_base_ms=10, retry_max_ms=100, breaker_open_ms=50, breaker_open_max_ms=200),
)


async def stored(url: str, user: str) -> list[tuple[str, str]]:
    """Entry id and event id of all that is in a user's stream."""
    store = RedisStore(url)
    try:
        page = await store.history(UserId(user), EntryId("0-0"), 10_000)
    finally:
        await store.aclose()
    return [(entry.id, decode_envelope(entry.body).id) for entry in page.entries]


async def names(url: str, user: str) -> list[str]:
    return [event for _, event in await stored(url, user)]


def publish(bus: Bus, user: str, name: str, **more: Any) -> asyncio.Task[Receipt]:
    return asyncio.ensure_future(bus.publish(user=user, type="note", data={"name": name}, id=name, **more))


@asynccontextmanager
async def bus_through_proxy(url: str, settings: Settings = QUICK) -> AsyncIterator[tuple[Bus, Proxy]]:
    async with Proxy(urlsplit(url).port or 6379) as proxy, Bus(proxy.redis_url, settings=settings) as bus:
        yield bus, proxy


@pytest.mark.requirement("R1")
async def test_a_receipt_names_the_entry_in_the_stream(redis_url: str) -> None:
    async with Bus(redis_url) as bus:
        one = await publish(bus, "ada", "one")
        again = await publish(bus, "ada", "one")
        many = await bus.publish_many([{"user": "ada", "type": "note", "data": {}, "id": f"m{n}"} for n in range(100)])
    assert await stored(redis_url, "ada") == [(receipt.entry, receipt.event) for receipt in [one, *many]]
    assert (again.entry, again.duplicate) == (one.entry, True)


@pytest.mark.requirement("R4")
async def test_a_publish_whose_reply_was_cut_off_is_stored_once(redis_url: str) -> None:
    async with bus_through_proxy(redis_url) as (bus, proxy):
        await publish(bus, "ada", "first")
        struck = proxy.cut_before_reply(b"EVALSHA")
        receipt = await publish(bus, "ada", "second")
        assert struck.is_set()
        assert (receipt.duplicate, receipt.attempts > 1) == (True, True)
    assert await names(redis_url, "ada") == ["first", "second"]


@pytest.mark.requirement("R6")
async def test_events_keep_their_order_while_the_connection_is_cut_again_and_again(server_url: str) -> None:
    async with bus_through_proxy(server_url) as (bus, proxy):
        work = []
        for number in range(300):
            work.append(publish(bus, f"user-{number % 3}", f"e{number:03}"))
            if number % 20 == 19:
                proxy.cut()
                await asyncio.wait([work[-20]])
        await asyncio.gather(*work)
        assert bus.statistics().retries > 0
    for user in range(3):
        assert await names(server_url, f"user-{user}") == [
            f"e{number:03}" for number in range(300) if number % 3 == user
        ]


@pytest.mark.requirement("R2")
async def test_publishes_made_while_the_server_is_away_are_stored_when_it_is_back(new_server: NewServer) -> None:
    server = new_server(appendonly=True, appendfsync="always")
    async with Bus(server.url, settings=QUICK) as bus:
        await publish(bus, "ada", "e0")
        server.kill()
        work = [publish(bus, "ada", f"e{number}") for number in range(1, 20)]
        await until(lambda: bus.statistics().breaker is BreakerState.OPEN)
        server.start()
        await asyncio.gather(*work)
        await until(lambda: bus.statistics().breaker is BreakerState.CLOSED)
        assert await names(server.url, "ada") == [f"e{number}" for number in range(20)]
        assert bus.statistics().recovered == 0


@pytest.mark.requirement("R2")
async def test_what_a_restart_took_back_is_stored_again_in_order_and_before_new_events(new_server: NewServer) -> None:
    server = new_server(appendonly=False)
    async with Bus(server.url, settings=QUICK) as bus:
        for number in range(10):
            await publish(bus, "ada", f"e{number}")
        assert request(server.url, "SAVE") == b"+OK"
        for number in range(10, 20):
            await publish(bus, "ada", f"e{number}")
        await publish(bus, "bob", "b0")
        server.kill()  # what came after the snapshot is gone, ids, idempotency keys and all
        server.start()
        await publish(bus, "ada", "e20")
        await until(lambda: bus.statistics().recovered == 11)
        assert await names(server.url, "ada") == [f"e{number}" for number in range(21)]
        assert await names(server.url, "bob") == ["b0"]


@pytest.mark.requirement("R25")
async def test_a_server_that_says_nothing_ends_in_a_timeout_within_the_deadline(server_url: str) -> None:
    async with bus_through_proxy(server_url) as (bus, proxy):
        await publish(bus, "ada", "first")
        proxy.half_open()
        async with within(5):
            with pytest.raises(PublishTimeout) as caught:
                await bus.publish(user="ada", type="note", data={}, deadline_ms=200)
        assert caught.value.retryable
        proxy.heal()
        proxy.cut()
        await publish(bus, "ada", "second")


@pytest.mark.requirement("R5")
async def test_the_breaker_closes_by_itself_when_the_server_is_back_although_nobody_publishes(server_url: str) -> None:
    async with bus_through_proxy(server_url) as (bus, proxy):
        await publish(bus, "ada", "first")
        proxy.refuse()
        work = publish(bus, "ada", "second")
        await until(lambda: bus.statistics().breaker is BreakerState.OPEN)
        work.cancel()
        await asyncio.wait([work])
        proxy.heal()
        await until(lambda: bus.statistics().breaker is BreakerState.CLOSED)


async def test_replicated_is_told_apart_from_stored(new_server: NewServer) -> None:
    primary, replica = new_server(extra=("--repl-diskless-sync-delay", "0")), new_server()
    settings = dataclasses.replace(QUICK, publish=dataclasses.replace(QUICK.publish, replicated_timeout_ms=200))
    async with Bus(primary.url, settings=settings) as bus:
        with pytest.raises(NotReplicated) as caught:
            await bus.publish(user="ada", type="note", data={}, id="alone", durability="replicated", deadline_ms=2_500)
        assert caught.value.retryable
        assert request(replica.url, "REPLICAOF", "127.0.0.1", str(primary.port)) == b"+OK"
        await until(_linked(replica.url), 20_000)
        receipt = await bus.publish(user="ada", type="note", data={}, id="alone", durability="replicated")
        assert receipt.duplicate, "it was stored all the time"
        second = await bus.publish(user="ada", type="note", data={}, durability="replicated")
    primary.kill()
    assert request(replica.url, "REPLICAOF", "NO", "ONE") == b"+OK"
    assert [entry for entry, _ in await stored(replica.url, "ada")] == [receipt.entry, second.entry]


def _linked(url: str) -> Callable[[], bool]:
    return lambda: b"master_link_status:up" in request(url, "INFO", "replication")


@pytest.fixture
def end_of_the_thread() -> Iterator[None]:
    yield
    blocking.shutdown()


@pytest.mark.usefixtures("end_of_the_thread")
def test_a_forked_worker_and_its_parent_both_publish(server_url: str) -> None:
    with BlockingBus(server_url) as bus:
        bus.publish(user="ada", type="note", data={}, id="parent-1")
        child = os.fork()
        if child == 0:
            status = 1
            try:
                for number in range(10):
                    bus.publish(user="ada", type="note", data={}, id=f"child-{number}")
                bus.close()
                status = 0
            finally:
                os._exit(status)
        for number in range(10):
            bus.publish(user="bob", type="note", data={}, id=f"parent-{number}")
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        bus.publish(user="ada", type="note", data={}, id="parent-2")
        assert bus.statistics().retries == 0, "the child did not touch the parent's connection"
    assert asyncio.run(names(server_url, "ada")) == ["parent-1", *[f"child-{n}" for n in range(10)], "parent-2"]
    assert asyncio.run(names(server_url, "bob")) == [f"parent-{n}" for n in range(10)]


async def test_a_bus_that_is_opened_without_a_server_publishes_when_there_is_one(new_server: NewServer) -> None:
    server = new_server()
    server.kill()
    async with Bus(server.url, settings=QUICK) as bus:
        work = publish(bus, "ada", "early")
        await until(lambda: bus.statistics().retries > 0)
        server.start()
        assert (await work).event == "early"
