"""The subscription of a node: it renews itself, says so, and notices a connection that only seems to stand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import redis

from eventbus.config import StoreSettings
from eventbus.ids import ConnectionId, EntryId, SessionId
from eventbus.store.listening import acked_message, displaced_message
from eventbus.store.redis_store import RedisStore
from tests.support.proxy import Proxy
from tests.support.redis_stores import ALICE, NODE, Listened, event_of, fence_of, open_session, publish
from tests.support.servers import NewServer, freeze, thaw
from tests.support.stalls import within
from tests.support.waiting import until


@pytest.fixture
async def proxy(server_url: str) -> AsyncIterator[Proxy]:
    async with Proxy(int(server_url.rpartition(":")[2].partition("/")[0])) as made:
        yield made


async def test_cut_subscription_is_renewed_and_both_are_told(server_url: str, proxy: Proxy) -> None:
    near, far = RedisStore(server_url), RedisStore(proxy.redis_url)
    listener = Listened()
    try:
        await far.listen(NODE, listener)
        await until(lambda: listener.subscriptions == 1)
        await open_session(near, fence_of())
        proxy.cut()
        await until(lambda: listener.subscriptions == 2)
        assert len(listener.losses) == 1
        await publish(near, event_of("e1"))
        await until(lambda: listener.wakes == [ALICE])
    finally:
        await far.aclose()
        await near.aclose()


@pytest.mark.requirement("R2")
async def test_half_open_subscription_is_noticed_within_its_silence(server_url: str, proxy: Proxy) -> None:
    store = RedisStore(proxy.redis_url, ping_ms=100, silence_ms=300)
    listener = Listened()
    try:
        await store.listen(NODE, listener)
        await until(lambda: listener.subscriptions == 1)
        proxy.half_open()
        lost = len(listener.losses)
        async with within(3):
            await until(lambda: len(listener.losses) > lost)
        assert "silent" in listener.losses[-1]
        stood = listener.subscriptions
        proxy.heal()
        proxy.cut()
        await until(lambda: listener.subscriptions > stood, 10_000)
        await store.probe(NODE, "token-1")
        await until(lambda: listener.tokens == ["token-1"])
    finally:
        await store.aclose()


async def test_quiet_subscription_stands(server_url: str) -> None:
    store = RedisStore(server_url, ping_ms=100, silence_ms=600)
    listener = Listened()
    loop = asyncio.get_running_loop()
    try:
        await store.listen(NODE, listener)
        await until(lambda: listener.subscriptions == 1)
        before_ms, slowest_ms = await store.ping(), 0.0

        async def some_silences_later() -> bool:
            nonlocal slowest_ms
            begun = loop.time()
            now_ms = await store.ping()
            slowest_ms = max(slowest_ms, 1_000 * (loop.time() - begun))
            return now_ms > before_ms + 1_300

        await until(some_silences_later)
        # A server that answers nobody for nearly as long is silent; these pings go another way than the subscription.
        assert (listener.subscriptions, listener.losses) == (1, []) or slowest_ms > 400, listener.losses
    finally:
        await store.aclose()


async def test_subscription_comes_about_when_the_server_does(new_server: NewServer) -> None:
    server = new_server(appendonly=False)
    server.kill()
    store = RedisStore(server.url)
    listener = Listened()
    try:
        await store.listen(NODE, listener)
        await asyncio.sleep(0)
        assert listener.subscriptions == 0
        server.start()
        await until(lambda: listener.subscriptions == 1)
        assert listener.losses == [], "nothing was lost that never stood"
        server.kill()
        await until(lambda: len(listener.losses) == 1)
        server.start()
        await until(lambda: listener.subscriptions == 2)
    finally:
        await store.aclose()


async def test_frozen_server_is_noticed(new_server: NewServer) -> None:
    server = new_server(appendonly=False)
    store = RedisStore(server.url, ping_ms=100, silence_ms=300, command_timeout_ms=300)
    listener = Listened()
    try:
        await store.listen(NODE, listener)
        await until(lambda: listener.subscriptions == 1)
        freeze(server.pid)
        lost = len(listener.losses)
        async with within(3):
            await until(lambda: len(listener.losses) > lost)
        stood = listener.subscriptions
        thaw(server.pid)
        await until(lambda: listener.subscriptions > stood, 10_000)
    finally:
        await store.aclose()


async def test_every_kind_of_message_reaches_its_method(redis_url: str) -> None:
    store = RedisStore(redis_url, StoreSettings(partitions=2))
    listener = Listened()
    session, connection = SessionId("phone"), ConnectionId("c" * 32)
    try:
        await store.listen(NODE, listener)
        await until(lambda: listener.subscriptions == 1)
        with redis.Redis.from_url(redis_url) as client:
            for message in (
                "garbage message with too many words !",
                "!not enough",
                b"\xff\xfe",
                displaced_message(session, connection, ALICE),
                acked_message(session, ALICE, [EntryId("1-1"), EntryId("2-0")]),
                "?token",
                ALICE,
            ):
                client.execute_command("SPUBLISH", f"eb:{{1}}:w:{NODE}", message)
        await until(lambda: listener.wakes[-1:] == [ALICE])
        assert listener.displacements == [(ALICE, session, connection)]
        assert listener.acks == [(ALICE, session, [EntryId("1-1"), EntryId("2-0")])]
        assert listener.tokens == ["token"]
        assert listener.losses == []
    finally:
        await store.aclose()


async def test_listener_that_fails_does_not_make_the_node_deaf(redis_url: str, caplog: Any) -> None:
    class Failing(Listened):
        def probed(self, token: str) -> None:
            super().probed(token)
            raise RuntimeError("a defect")

    store, listener = RedisStore(redis_url, StoreSettings(partitions=2)), Failing()
    try:
        await store.listen(NODE, listener)
        await until(lambda: listener.subscriptions == 1)
        await store.probe(NODE, "one")
        await store.probe(NODE, "two")
        await until(lambda: listener.tokens == ["one", "two"])
        assert listener.losses == []
    finally:
        await store.aclose()


async def test_takeover_of_a_session_that_was_silent_is_told_to_its_old_node(redis_url: str) -> None:
    """A frozen node that thaws must hear of it, although its field was too old to count."""
    store = RedisStore(redis_url, StoreSettings(live_ttl_ms=200, partitions=2))
    listener = Listened()
    try:
        await store.listen(NODE, listener)
        await until(lambda: listener.subscriptions == 1)
        await open_session(store, fence_of("phone", connection="c1"))
        keeper = fence_of("tablet", connection="t1")
        await open_session(store, keeper)
        start_ms = await store.ping()

        async def too_old() -> bool:
            await store.heartbeat([keeper], NODE)
            return await store.ping() > start_ms + 300

        # The tablet's heartbeats delete the phone's field once it is too old, so look before they do.
        with redis.Redis.from_url(redis_url, decode_responses=True) as client:
            live = store.keys.user(ALICE).live
            value = str(client.hget(live, "phone"))
            await until(too_old)
            client.hset(live, "phone", value)
        attached = await open_session(store, fence_of("phone", connection="c2"), node="node-2")
        assert attached.displaced is None
        await until(lambda: len(listener.displacements) == 1)
    finally:
        await store.aclose()
