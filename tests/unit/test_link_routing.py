"""Where a call goes when servers say that it belongs elsewhere, or that they can not do it now."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from eventbus.errors import StoreBusy, StoreError, StoreMoved, StoreTimeout, StoreUnavailable
from eventbus.store.command import Command, key_of
from eventbus.store.links import Links
from eventbus.store.topology import slot_of
from tests.support.fake_redis import FakeRedis, FakeSentinel, map_of
from tests.support.waiting import until

KEY = "eb:{1}:s:alice"
SLOT = slot_of(KEY)

MakeLinks = Callable[..., Links]


@pytest.fixture
async def make_links() -> AsyncIterator[MakeLinks]:
    """Makes links that are closed after the test."""
    async with AsyncExitStack() as stack:

        def make(url: str, timeout_ms: int = 5_000, **options: Any) -> Links:
            links = Links(url, timeout_ms=timeout_ms, **options)
            stack.push_async_callback(links.aclose)
            return links

        yield make


@pytest.fixture
async def pair() -> AsyncIterator[tuple[FakeRedis, FakeRedis]]:
    """Two servers of a Cluster; the first has all slots."""
    async with FakeRedis("one", mode="cluster") as one, FakeRedis("two", mode="cluster") as two:
        one.map = two.map = map_of(one)
        yield one, two


def read(*, pinned: bool = False) -> Command[str]:
    return Command(("GET", KEY), lambda reply, _primary: str(reply.decode()), pinned=pinned)


def cluster_url(*servers: FakeRedis) -> str:
    return "redis+cluster://" + ",".join(str(server.address) for server in servers)


# --- a Cluster ------------------------------------------------------------------------------------------------------


async def test_call_follows_its_slot_and_those_after_it_go_there_at_once(
    pair: tuple[FakeRedis, FakeRedis], make_links: MakeLinks
) -> None:
    """MOVED."""
    one, two = pair
    links = make_links(cluster_url(one))
    assert await links.execute(read()) == "one"
    one.errors = [f"MOVED {SLOT} {two.address}"]
    one.map = two.map = map_of(two)
    assert await links.execute(read()) == "two"
    count = len(one.log)
    assert await links.execute(read()) == "two"
    assert len(one.log) == count


async def test_pinned_call_comes_back_when_its_slot_has_moved(
    pair: tuple[FakeRedis, FakeRedis], make_links: MakeLinks
) -> None:
    """D6: what its caller stored before may have to go there first."""
    one, two = pair
    links = make_links(cluster_url(one))
    assert await links.execute(read(pinned=True)) == "one"
    one.errors = [f"MOVED {SLOT} {two.address}"]
    one.map = two.map = map_of(two)
    answer = await links.execute(read(pinned=True))
    assert isinstance(answer, StoreMoved)
    assert answer.retryable
    assert two.log == []
    assert await links.execute(read(pinned=True)) == "two"


async def test_call_for_a_key_on_its_way_is_asked_for_at_its_destination_once(
    pair: tuple[FakeRedis, FakeRedis], make_links: MakeLinks
) -> None:
    """ASK."""
    one, two = pair
    links = make_links(cluster_url(one))
    await links.execute(read())
    one.errors = [f"ASK {SLOT} {two.address}"]
    assert await links.execute(read()) == "two"
    assert two.names() == ["ASKING", "GET"]
    assert await links.execute(read()) == "one", "the slot is still where it was"


async def test_script_that_the_destination_does_not_know_is_asked_for_again(
    pair: tuple[FakeRedis, FakeRedis], make_links: MakeLinks
) -> None:
    """ASK, then NOSCRIPT: ASKING counts for one command."""
    one, two = pair
    links = make_links(cluster_url(one))
    await links.execute(read())
    one.errors, two.errors = [f"ASK {SLOT} {two.address}"], ["NOSCRIPT No matching script"]
    script: Command[str] = Command(
        ("EVALSHA", "sha", 1, KEY), lambda reply, _primary: str(reply.decode()), scripted=True
    )
    assert await links.execute(script) == "two"
    assert two.names() == ["ASKING", "EVALSHA", "ASKING", "EVALSHA"]


@pytest.mark.parametrize(
    "error", ["TRYAGAIN half is here", "LOADING its file", "CLUSTERDOWN no majority", "BUSY a script"]
)
async def test_call_waits_while_a_server_of_a_cluster_can_not_answer(
    pair: tuple[FakeRedis, FakeRedis], make_links: MakeLinks, error: str
) -> None:
    one, _ = pair
    links = make_links(cluster_url(one))
    one.errors = [error, error]
    assert await links.execute(read()) == "one"
    assert one.names() == ["GET"] * 3


async def test_call_that_no_server_takes_in_time_says_why(
    pair: tuple[FakeRedis, FakeRedis], make_links: MakeLinks
) -> None:
    """R25: no wait is endless."""
    one, _ = pair
    links = make_links(cluster_url(one), timeout_ms=200)
    await links.execute(read())
    one.errors = ["CLUSTERDOWN The cluster is down"] * 1_000
    answer = await links.execute(read())
    assert isinstance(answer, StoreTimeout)
    assert "The cluster is down" in str(answer)


async def test_call_waits_for_the_new_primary_when_the_old_one_is_gone(
    pair: tuple[FakeRedis, FakeRedis], make_links: MakeLinks
) -> None:
    one, two = pair
    links = make_links(cluster_url(one, two))
    assert await links.execute(read()) == "one"
    assert links.primary_of(KEY) == "one"
    await one.stop()
    waiting = links.execute(read())
    two.map, two.epoch = map_of(two), 2
    answer = await waiting
    assert answer == "two" or isinstance(answer, StoreUnavailable)
    assert await links.execute(read()) == "two"
    assert links.primary_of(KEY) == "two"


async def test_server_that_was_cut_off_is_not_believed(
    pair: tuple[FakeRedis, FakeRedis], make_links: MakeLinks
) -> None:
    """The map of the latest change is taken, whoever answers first."""
    one, two = pair
    one.map, one.epoch, two.map, two.epoch = map_of(one), 3, map_of(two), 4
    links = make_links(cluster_url(one, two), refresh_ms=50)
    assert await links.execute(read()) == "two"


async def test_frozen_primary_is_left_as_soon_as_another_has_its_slots(
    pair: tuple[FakeRedis, FakeRedis], make_links: MakeLinks
) -> None:
    """R2: long before the time-out of the answer."""
    one, two = pair
    links = make_links(cluster_url(one, two), timeout_ms=30_000)
    assert await links.execute(read()) == "one"
    one.silent = True
    lost = links.execute(read())
    two.map, two.epoch = map_of(two), 2
    async with asyncio.timeout(5):
        answer = await lost
        assert isinstance(answer, StoreUnavailable)
        assert await links.execute(read()) == "two"


async def test_one_server_of_a_cluster_is_recognised(pair: tuple[FakeRedis, FakeRedis], make_links: MakeLinks) -> None:
    one, two = pair
    one.map = two.map = map_of(one, two)
    links = make_links(one.url)
    assert links.scattered, "until it is known, calls are made as for a Cluster"
    places = await links.primaries()
    assert set(places) == {one.address, two.address}
    assert await links.execute(read()) == ("one" if slot_of(KEY) < 8_192 else "two")


async def test_command_without_a_key_goes_where_it_is_sent(
    pair: tuple[FakeRedis, FakeRedis], make_links: MakeLinks
) -> None:
    one, two = pair
    one.map = two.map = map_of(one, two)
    links = make_links(cluster_url(one))
    scan: Command[str] = Command(("SCAN", "0"), lambda reply, primary: primary)
    answers = []
    for place in await links.primaries():
        answer = await links.execute(scan, at=place)
        answers.append(answer)
    assert set(answers) == {"one", "two"}


async def test_command_without_a_key_goes_to_a_primary_that_answers(
    pair: tuple[FakeRedis, FakeRedis], make_links: MakeLinks
) -> None:
    """While another is away: what operators ask must not depend on the one that they ask about."""
    one, two = sorted(pair, key=lambda server: server.address)
    one.map = two.map = map_of(one, two)
    links = make_links(cluster_url(two), refresh_ms=60_000)
    assert len(await links.primaries()) == 2
    await until(lambda: links.connected)
    await one.stop()
    await until(lambda: not links.connected)
    ping: Command[str] = Command(("PING",), lambda _reply, primary: primary)
    assert await links.execute(ping) == two.run_id


# --- who is told of primaries ---------------------------------------------------------------------------------------


async def test_whoever_watches_is_told_before_anything_goes_to_another_primary(
    pair: tuple[FakeRedis, FakeRedis], make_links: MakeLinks
) -> None:
    """D6: so that what is kept can go first."""
    one, two = pair
    links = make_links(cluster_url(one, two))
    told: list[tuple[str, str]] = []

    def stands() -> None:
        if links.primary_of(KEY) == "two" and not two.log:
            told.append(("stands", links.primary_of(KEY)))

    unwatch = links.watchers.watch(lambda: told.append(("lost", "")), stands)
    await links.execute(read())
    await one.stop()
    two.map, two.epoch = map_of(two), 2
    await until(lambda: ("stands", "two") in told)
    assert ("lost", "") in told
    assert await links.execute(read()) == "two"
    unwatch()


async def test_whoever_watches_is_told_of_a_slot_that_moved_though_the_server_stays_a_primary(
    pair: tuple[FakeRedis, FakeRedis], make_links: MakeLinks
) -> None:
    """Any command may be the first to learn of it; what is kept for the slot's users has to be looked after then."""
    one, two = pair
    links = make_links(cluster_url(one))
    assert await links.execute(read()) == "one"
    told: list[str] = []
    links.watchers.watch(lambda: told.append(links.primary_of(KEY)), lambda: None)
    one.errors = [f"MOVED {SLOT} {two.address}"]
    assert await links.execute(read()) == "two"
    assert told[0] == "", "before a connection to the other one stands"


# --- Sentinels ------------------------------------------------------------------------------------------------------


async def test_primary_that_was_demoted_is_left_for_the_one_that_sentinels_name(make_links: MakeLinks) -> None:
    """READONLY."""
    async with FakeRedis("one") as one, FakeRedis("two") as two, FakeSentinel() as sentinel:
        sentinel.primary = lambda: one.address
        links = make_links(f"redis+sentinel://{sentinel.address}/main/0")
        assert await links.execute(read()) == "one"
        one.errors, one.role = ["READONLY You can't write against a read only replica."], "slave"
        sentinel.primary = lambda: two.address
        assert await links.execute(read()) == "two"
        one.log.clear()
        assert await links.execute(read(pinned=True)) == "two"
        assert one.log == []


async def test_replica_that_a_sentinel_still_names_is_not_used(make_links: MakeLinks) -> None:
    async with FakeRedis("one", role="slave") as one, FakeSentinel() as sentinel:
        sentinel.primary = lambda: one.address
        links = make_links(f"redis+sentinel://{sentinel.address}/main/0", timeout_ms=300)
        answer = await links.execute(read())
        assert isinstance(answer, StoreUnavailable)
        assert one.log == []


async def test_sentinel_that_has_not_heard_of_a_failover_leads_nobody_back(make_links: MakeLinks) -> None:
    """The old primary may be back, and take for a moment what it is to lose."""
    async with FakeRedis("one") as one, FakeRedis("two") as two, FakeSentinel() as first, FakeSentinel() as late:
        first.primary = late.primary = lambda: one.address
        links = make_links(f"redis+sentinel://{first.address},{late.address}/main/0", timeout_ms=500)
        assert await links.execute(read()) == "one"
        first.primary, first.failovers = lambda: two.address, 1
        links.seek()
        await until(lambda: links.primary == "two")
        await first.stop()
        one.log.clear()
        await two.stop()
        answer = await links.execute(read())
        assert isinstance(answer, StoreUnavailable)
        assert one.log == []
        await two.start()
        late.primary, late.failovers = lambda: two.address, 1
        assert await links.execute(read()) == "two"


async def test_next_sentinel_is_asked_when_one_is_away(make_links: MakeLinks) -> None:
    async with FakeRedis("one") as one, FakeSentinel() as away, FakeSentinel() as sentinel:
        sentinel.primary = lambda: one.address
        await away.stop()
        links = make_links(f"redis+sentinel://{away.address},{sentinel.address}/main/0")
        assert await links.execute(read()) == "one"


async def test_service_that_no_sentinel_knows_is_said_with_its_name(make_links: MakeLinks) -> None:
    async with FakeSentinel() as sentinel:
        links = make_links(f"redis+sentinel://{sentinel.address}/other/0", timeout_ms=200)
        answer = await links.execute(read())
        assert isinstance(answer, StoreUnavailable)
        assert "'other'" in str(answer)


# --- one server -----------------------------------------------------------------------------------------------------


async def test_half_open_connection_is_found_before_a_call_needs_it(make_links: MakeLinks) -> None:
    """R2: the server has gone without a word."""
    async with FakeRedis("one") as one:
        links = make_links(one.url, timeout_ms=150, ping_ms=50)
        assert await links.execute(read()) == "one"
        one.silent = True
        await until(lambda: not links.connected)
        one.silent = False

        async def healed() -> bool:
            return await links.execute(read()) == "one"

        await until(healed)
        assert one.connections >= 2


async def test_single_server_that_can_not_answer_says_so_at_once(make_links: MakeLinks) -> None:
    async with FakeRedis("one") as one:
        links = make_links(one.url)
        one.errors = ["LOADING Redis is loading the dataset in memory"]
        answer = await links.execute(read())
        assert isinstance(answer, StoreBusy)
        assert await links.execute(read()) == "one"


async def test_answer_that_nobody_asked_for_ends_the_connection(make_links: MakeLinks) -> None:
    """Answers are matched by their order: after such a one none could be trusted."""

    class Talkative(FakeRedis):
        def answer(self, words: list[bytes]) -> bytes:
            return 2 * super().answer(words)

    async with Talkative("one") as one:
        links = make_links(one.url)
        assert await links.execute(read()) == "one"
        await until(lambda: one.connections == 2)


async def test_what_is_no_answer_of_redis_ends_the_connection(make_links: MakeLinks) -> None:
    class Other(FakeRedis):
        def answer(self, words: list[bytes]) -> bytes:
            return b"HTTP/1.1 400 Bad Request\r\n\r\n"

    async with Other("one") as one:
        links = make_links(one.url)
        answer = await links.execute(read())
        assert isinstance(answer, StoreUnavailable)
        assert "protocol" in str(answer)


@pytest.mark.parametrize(
    "words,key",
    [
        (("GET", KEY), KEY),
        (("EVALSHA", "sha", 2, KEY, "other"), KEY),
        (("EVALSHA", "sha", 0), None),
        (("XGROUP", "CREATE", KEY, "g", "$"), KEY),
        (("SPUBLISH", b"eb:{1}:w:node", "x"), "eb:{1}:w:node"),
        (("SCAN", "0"), None),
        (("WAIT", 1, 100), None),
    ],
)
def test_command_goes_by_its_first_key(words: tuple[str | bytes | int, ...], key: str | None) -> None:
    assert key_of(Command(words, lambda reply, _primary: reply)) == key


async def test_error_is_a_value(make_links: MakeLinks) -> None:
    """A future that nobody looks at any more must not cry when it is thrown away."""
    async with FakeRedis("one") as one:
        await one.stop()
        links = make_links(one.url, timeout_ms=200)
        answer = await links.execute(read())
        assert isinstance(answer, StoreError)
