"""Whom to believe when servers differ about who is primary, and what is the same primary."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from eventbus.errors import StoreMoved
from eventbus.ids import EventId, UserId
from eventbus.store import Append, Durability
from eventbus.store.answers import server_of
from eventbus.store.command import Command
from eventbus.store.links import Links
from eventbus.store.redis_store import RedisStore
from eventbus.store.topology import Redirect, slot_of
from tests.support.fake_redis import FakeRedis, FakeSentinel, Words, map_of
from tests.support.waiting import until

pytestmark = pytest.mark.requirement("R2")

KEY = "eb:{1}:s:alice"
SLOT = slot_of(KEY)


@asynccontextmanager
async def linked(url: str, *, timeout_ms: int = 5_000) -> AsyncIterator[Links]:
    """Links that ask for nothing by themselves; closed before the servers are."""
    links = Links(url, timeout_ms=timeout_ms, refresh_ms=600_000)
    try:
        yield links
    finally:
        await links.aclose()


def read() -> Command[str]:
    return Command(("GET", KEY), lambda reply, _primary: str(reply.decode()))


def cluster_url(*servers: FakeRedis) -> str:
    return "redis+cluster://" + ",".join(str(server.address) for server in servers)


# --- whom to believe ------------------------------------------------------------------------------------------------


async def test_server_that_has_no_part_in_a_slot_does_not_change_the_map() -> None:
    """A server that was replaced may say for a while where the slot was before."""
    async with (
        FakeRedis("one", mode="cluster") as one,
        FakeRedis("two", mode="cluster") as two,
        FakeRedis("three", mode="cluster") as three,
    ):
        one.map = two.map = three.map = map_of(one)
        async with linked(cluster_url(one)) as links:
            assert await links.execute(read()) == "one"
            one.errors, two.errors = [f"ASK {SLOT} {two.address}"], [f"MOVED {SLOT} {three.address}"]
            assert await links.execute(read()) == "one"
            assert three.log == []


async def test_map_of_a_change_before_the_latest_is_not_believed() -> None:
    """Right after a failover most servers of a Cluster may not have heard of it, and tell of the old primary."""
    async with FakeRedis("one", mode="cluster") as one, FakeRedis("two", mode="cluster") as two:
        one.map = two.map = map_of(two)
        one.epoch = two.epoch = 2
        async with linked(cluster_url(one, two)) as links:
            assert await links.execute(read()) == "two"
            one.map = two.map = map_of(one)
            one.epoch = two.epoch = 1
            asked = one.connections
            links.seek()
            await until(lambda: one.connections > asked + 1)
            assert await links.execute(read()) == "two"
            one.epoch = two.epoch = 3

            async def is_at_one() -> bool:
                return await links.execute(read()) == "one"

            await until(is_at_one)


async def test_failover_that_a_sentinel_tells_of_is_followed_at_once() -> None:
    """The old primary goes on for seconds as if nothing were, and what it takes is lost."""
    async with FakeRedis("one") as one, FakeRedis("two") as two, FakeSentinel() as sentinel:
        sentinel.primary = lambda: one.address
        async with linked(f"redis+sentinel://{sentinel.address}/main/0") as links:
            assert await links.execute(read()) == "one"
            await until(lambda: "SUBSCRIBE" in sentinel.names())
            sentinel.primary, sentinel.failovers = lambda: two.address, 1
            sentinel.push(
                "message", "+switch-master", f"main 127.0.0.1 {one.address.port} 127.0.0.1 {two.address.port}"
            )
            await until(lambda: links.primary == "two")
            assert await links.execute(read()) == "two"


async def test_sentinel_that_told_of_a_failover_is_heard_though_most_others_answer_first() -> None:
    """The one that leads it knows first."""
    async with (
        FakeRedis("one") as one,
        FakeRedis("two") as two,
        FakeSentinel() as first,
        FakeSentinel() as second,
        FakeSentinel() as leader,
    ):
        sentinels = (first, second, leader)
        for sentinel in sentinels:
            sentinel.primary = lambda: one.address
        places = ",".join(str(sentinel.address) for sentinel in sentinels)
        async with linked(f"redis+sentinel://{places}/main/0") as links:
            assert await links.execute(read()) == "one"
            await until(lambda: all("SUBSCRIBE" in sentinel.names() for sentinel in sentinels))
            leader.primary, leader.failovers = lambda: two.address, 1
            leader.push("message", "+promoted-slave", "slave ...")
            await until(lambda: links.primary == "two")


async def test_primary_that_was_replaced_while_the_connection_was_made_is_not_used() -> None:
    """It may believe for seconds that it is the primary still."""
    async with FakeRedis("one") as one, FakeRedis("two") as two, FakeSentinel() as sentinel:
        sentinel.primary = lambda: one.address
        one.slow = True
        async with linked(f"redis+sentinel://{sentinel.address}/main/0") as links:
            waiting = links.execute(read())
            await until(lambda: one.connections == 1 and "SUBSCRIBE" in sentinel.names())
            sentinel.primary, sentinel.failovers = lambda: two.address, 1
            links.seek()
            await until(lambda: (home := links.home_of(KEY)) is not None and home.address == two.address)
            one.release()
            assert await waiting == "two"
            assert one.log == []


async def test_connection_to_a_server_that_stands_still_is_given_up_when_the_primary_is_elsewhere() -> None:
    """A frozen server takes connections and answers nothing: the time-out of one is no reason to wait."""
    async with FakeRedis("one") as one, FakeRedis("two") as two, FakeSentinel() as sentinel:
        sentinel.primary = lambda: one.address
        one.silent = True
        async with linked(f"redis+sentinel://{sentinel.address}/main/0", timeout_ms=120_000) as links:
            waiting = links.execute(read())
            await until(lambda: one.connections == 1)
            sentinel.primary, sentinel.failovers = lambda: two.address, 1
            links.seek()
            assert await asyncio.wait_for(waiting, 20) == "two"


# --- what a Sentinel has told a server to be --------------------------------------------------------------------------


def promise(one: FakeRedis, two: FakeRedis, service: str = "main") -> tuple[str, str, str]:
    """What the Sentinel that leads a failover says when it has told a replica to be the primary."""
    address = two.address
    told = f"slave {address} {address.host} {address.port} @ {service} {one.address.host} {one.address.port}"
    return "message", "+failover-state-wait-promotion", told


@asynccontextmanager
async def about_to_change() -> AsyncIterator[tuple[FakeRedis, FakeRedis, FakeSentinel, Links]]:
    """A primary, its replica, and a Sentinel that names the first until it is told otherwise."""
    async with FakeRedis("one") as one, FakeRedis("two", role="slave") as two, FakeSentinel() as sentinel:
        sentinel.primary = lambda: one.address
        async with linked(f"redis+sentinel://{sentinel.address}/main/0") as links:
            assert await links.execute(read()) == "one"
            await until(lambda: sentinel.names().count("SUBSCRIBE") == 2)
            yield one, two, sentinel, links


@pytest.mark.requirement("R32")
async def test_server_that_was_told_to_be_the_primary_and_is_one_is_used_before_a_sentinel_names_it() -> None:
    """The Sentinel asks for up to a second whether it did as it was told; all that time nothing is delivered."""
    async with about_to_change() as (one, two, sentinel, links):
        two.role = "master"
        sentinel.push(*promise(one, two))
        await until(lambda: links.primary == "two")
        assert await links.execute(read()) == "two"
        # The others count as late, until they name it under a new number.
        links.seek()
        asked = sentinel.connections
        await until(lambda: sentinel.connections > asked)
        assert await links.execute(read()) == "two"


async def test_server_that_was_told_to_be_the_primary_is_asked_until_it_is_one() -> None:
    async with about_to_change() as (one, two, sentinel, links):
        sentinel.push(*promise(one, two))
        await until(lambda: two.connections > 0)
        assert await links.execute(read()) == "one"
        two.role = "master"
        await until(lambda: links.primary == "two")


async def test_server_that_was_told_to_be_the_primary_of_another_service_is_not_asked() -> None:
    async with about_to_change() as (one, two, sentinel, links):
        two.role = "master"
        asked = sentinel.connections
        sentinel.push(*promise(one, two, "other"))
        await until(lambda: sentinel.connections > asked)
        assert await links.execute(read()) == "one"
        assert two.connections == 0


async def test_server_that_is_no_primary_after_all_is_left_for_the_one_that_the_sentinels_name() -> None:
    """The Sentinel that led the failover died in the midst of it, and the others made it a replica again."""
    async with about_to_change() as (one, two, sentinel, links):
        two.role = "master"
        sentinel.push(*promise(one, two))
        await until(lambda: links.primary == "two")
        two.role = "slave"
        two.errors = ["READONLY You can't write against a read only replica."]
        assert await links.execute(read()) == "one"


# --- what is the same primary ---------------------------------------------------------------------------------------


async def test_server_that_was_demoted_and_promoted_again_is_another_primary() -> None:
    """It has lost what it had not shared, though it never ended: its `run_id` is the same."""
    async with FakeRedis("one") as one:
        one.replication_id = "a1"
        async with linked(one.url) as links:
            await links.execute(read())
            before = links.primary
            await one.stop()
            one.replication_id = "b2"
            await one.start()

            async def is_another() -> bool:
                await links.execute(read())
                return links.primary != before

            await until(is_another)
            assert server_of(links.primary) == server_of(before) == "one"


class Changing(FakeRedis):
    """Calls back when it is asked for its settings."""

    asked: Callable[[], None] = staticmethod(lambda: None)

    def answer(self, words: Words) -> bytes:
        if words[0] == b"CONFIG":
            self.asked()
            return b"*4\r\n$10\r\nappendonly\r\n$3\r\nyes\r\n$11\r\nappendfsync\r\n$6\r\nalways\r\n"
        return super().answer(words)


@pytest.mark.requirement("R6")
async def test_event_is_not_stored_on_another_primary_than_stood_when_its_settings_were_asked_for() -> None:
    """Durability `fsync`: what the publisher has kept may have to go there first (D6)."""
    async with Changing("one", mode="cluster") as one, FakeRedis("two", mode="cluster") as two:
        one.map = two.map = map_of(one)
        store = RedisStore(cluster_url(one))
        try:
            user = UserId("alice")
            slot = slot_of(store.keys.user(user).stream)
            await store.link.execute(Command(("GET", store.keys.user(user).stream), lambda _reply, by: by))
            one.asked = lambda: store.link.correct(Redirect(slot=slot, address=two.address), one.address)
            (answer,) = await store.append(
                [Append(user=user, event=EventId("e1"), body=b"x")], durability=Durability.FSYNC
            )
            assert isinstance(answer, StoreMoved)
            assert "EVALSHA" not in two.names()
        finally:
            await store.aclose()


async def numbered(links: Links, *servers: FakeRedis) -> None:
    """The map has been read, and each primary has told its number over its connection, at least once more."""
    asked = [server.numbers_told for server in servers]

    def told() -> bool:
        links.seek()
        return all(server.numbers_told >= before + 2 for server, before in zip(servers, asked, strict=True))

    await until(told)
    assert await links.execute(read()) is not None  # what was told before this answer has been heard


@pytest.mark.requirement("R32")
async def test_primary_that_took_back_a_slot_between_two_looks_is_another() -> None:
    """Where the slot was in between a failover may have taken back what it had (D6)."""
    async with FakeRedis("one", mode="cluster") as one:
        one.map = map_of(one)
        async with linked(cluster_url(one)) as links:
            await links.execute(read())
            await numbered(links, one)
            before, told = links.primary_of(KEY), list[str]()
            links.watchers.watch(lambda: told.append("lost"), lambda: told.append("stands"))
            await numbered(links, one)
            assert (links.primary_of(KEY), told) == (before, [])
            one.epoch = one.own_epoch = 5
            links.seek()
            await until(lambda: links.primary_of(KEY) != before)
            assert told == ["lost", "stands"]
            after = links.primary_of(KEY)
            await numbered(links, one)
            assert links.primary_of(KEY) == after, "once"


@pytest.mark.requirement("R32")
async def test_primary_that_took_a_slot_which_it_did_not_have_is_the_same() -> None:
    """More primaries, or fewer, while it runs: nobody has to send anything again but for that slot."""
    async with FakeRedis("one", mode="cluster") as one, FakeRedis("two", mode="cluster") as two:
        one.map = two.map = map_of(one, two)
        async with linked(cluster_url(one)) as links:
            await links.execute(read())
            await until(lambda: links.connected)
            await numbered(links, one, two)
            key = next(key for key in (f"{{{n}}}" for n in range(100)) if slot_of(key) < 8_000)
            before = links.primary_of(key)
            one.map = two.map = [
                [0, 8_999, [one.address.host, one.address.port, "one"]],
                [9_000, 16_383, [two.address.host, two.address.port, "two"]],
            ]
            one.epoch = two.epoch = one.own_epoch = 5
            await numbered(links, one)
            await numbered(links, one)
            assert links.primary_of(key) == before
