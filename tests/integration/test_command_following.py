"""The subscription of an agent to its users on a real server: renewed when it is lost, left when nobody listens."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import redis

from eventbus import Bus
from eventbus.ids import RunId, SessionId, UserId
from eventbus.store.following import Followers
from eventbus.store.inbound import NewCommand, Told
from eventbus.store.links import Links
from eventbus.store.redis_store import RedisStore
from tests.contract.test_commands import Heard
from tests.support.servers import NewServer, freeze, thaw
from tests.support.waiting import until

pytestmark = pytest.mark.requirement("R20")

ALICE, BOB = UserId("alice"), UserId("bob")


@contextmanager
def administrator(url: str) -> Iterator[Any]:
    with redis.Redis.from_url(url, decode_responses=True) as client:
        yield client


def kill_followers(url: str) -> int:
    """Cuts the connections on which agents listen. Returns how many there were."""
    with administrator(url) as client:
        found = [each["id"] for each in client.client_list() if each["name"] == "eventbus-follow"]
        return sum(client.client_kill_filter(_id=number) for number in found)


def channels(url: str) -> list[str]:
    with administrator(url) as client:
        found: list[str] = client.pubsub_shardchannels()
        return found


async def send(store: RedisStore, ref: str, **about: Any) -> None:
    fields: dict[str, Any] = {"user": ALICE, "session": SessionId("s"), "type": "a", "data": b"\x80", "ref": ref}
    await store.send_command(NewCommand(**(fields | about)))


@pytest.fixture
async def store(redis_url: str) -> AsyncIterator[RedisStore]:
    made = RedisStore(redis_url)
    yield made
    await made.aclose()


async def test_followers_are_told_to_look_when_a_lost_subscription_stands_again(
    store: RedisStore, redis_url: str
) -> None:
    alice, bob = Heard(), Heard()
    following = [store.follow(ALICE, alice), store.follow(BOB, bob)]
    await alice.until(Told.ANYTHING)
    await bob.until(Told.ANYTHING, user=BOB)
    for heard in (alice, bob):
        heard.told_of.clear()

    assert kill_followers(redis_url) == 1
    await alice.until(Told.ANYTHING)
    await bob.until(Told.ANYTHING, user=BOB)
    await send(store, "r1")
    await alice.until(Told.COMMAND)
    for each in following:
        each.close()


async def test_one_connection_serves_all_and_a_channel_that_nobody_follows_is_left(
    store: RedisStore, redis_url: str
) -> None:
    assert channels(redis_url) == []
    heards = [Heard() for _ in range(20)]
    users = [UserId(f"user{number}") for number in range(20)]
    following = [store.follow(user, heard) for user, heard in zip(users, heards, strict=True)]
    for user, heard in zip(users, heards, strict=True):
        await heard.until(Told.ANYTHING, user=user)
    assert sorted(channels(redis_url)) == sorted(store.keys.user(user).channel for user in users)
    with administrator(redis_url) as client:
        assert sum(each["name"] == "eventbus-follow" for each in client.client_list()) == 1
    for each in following[1:]:
        each.close()
    await until(lambda: channels(redis_url) == [store.keys.user(users[0]).channel])
    following[0].close()
    await until(lambda: channels(redis_url) == [])


async def test_a_run_listens_as_long_as_it_is_open(store: RedisStore, redis_url: str) -> None:
    channel = store.keys.user(UserId("ada")).channel
    async with Bus(store=store) as bus:
        async with bus.run(user="ada", agent="a"), bus.run(user="ada", agent="b"):
            await until(lambda: channels(redis_url) == [channel])
        await until(lambda: channels(redis_url) == [])


async def test_a_cancel_whose_message_was_lost_is_seen_when_the_subscription_stands_again(
    store: RedisStore, redis_url: str
) -> None:
    async with Bus(store=store) as bus:
        async with bus.run(user="alice", agent="a", run="run_1") as run:
            await until(lambda: len(channels(redis_url)) == 1)
            with administrator(redis_url) as client:
                # What is sent while Redis tells nobody.
                client.execute_command("CLIENT", "PAUSE", 300, "WRITE")
            assert kill_followers(redis_url) == 1
            await send(store, "r1", type="cancel", run=RunId("run_1"))
            await run.cancelled.wait()
        assert run.outcome == "cancelled"


async def test_a_silent_connection_is_given_up_and_followers_look_when_it_is_renewed(new_server: NewServer) -> None:
    server = new_server()
    links = Links(server.url, timeout_ms=1_000)
    followers = Followers(links, timeout_ms=1_000, ping_ms=100, silence_ms=300, poll_ms=600_000)
    heard = Heard()
    followers.follow(ALICE, "eb:{1}:d:alice", heard)
    await heard.until(Told.ANYTHING)
    heard.told_of.clear()
    freeze(server.pid)
    await until(lambda: "subscribed=0" in repr(followers))
    thaw(server.pid)
    await heard.until(Told.ANYTHING)
    await followers.aclose()
    await followers.aclose()
    await links.aclose()


async def test_followers_look_now_and_then_though_no_message_comes(new_server: NewServer) -> None:
    """The net below it: a server that is away, or a message that was lost."""
    server = new_server()
    links = Links(server.url, timeout_ms=200)
    followers = Followers(links, timeout_ms=200, ping_ms=100, silence_ms=300, poll_ms=20)
    server.kill()
    heard = Heard()
    following = followers.follow(ALICE, "eb:{1}:d:alice", heard)
    await until(lambda: len(heard.told_of) >= 3)
    following.close()
    await followers.aclose()
    await links.aclose()


async def test_neither_a_bad_follower_nor_a_message_without_sense_makes_the_others_deaf(server_url: str) -> None:
    class Bad:
        def told(self, user: UserId, what: Told) -> None:
            raise KeyError(user)

    links = Links(server_url, timeout_ms=1_000)
    followers = Followers(links, timeout_ms=1_000, ping_ms=1_000, silence_ms=3_000, poll_ms=600_000)
    heard = Heard()
    channel = "eb:{1}:d:alice"
    followers.follow(ALICE, channel, Bad())
    followers.follow(ALICE, channel, heard)
    await heard.until(Told.ANYTHING)
    with administrator(server_url) as client:
        for message in ("of a later version", "\udcff".encode(errors="surrogateescape"), "c"):
            client.execute_command("SPUBLISH", channel, message)
    await heard.until(Told.COMMAND)
    await followers.aclose()
    await links.aclose()
