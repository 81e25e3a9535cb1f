"""One suite over all stores: `world` is a store with power over its time and its faults.

fakeredis is not among them: it has no INFO, which tells a restart from a reconnect, and it loads no script with flags,
which D14 asks for (`test_fakeredis.py` notices when that changes).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from typing import Any, Final

import pytest

from eventbus.config import StoreSettings
from eventbus.testing import ManualClock, MemoryStore
from tests.contract.worlds import MemoryPower, RedisPower, World
from tests.support.clusters import Cluster
from tests.support.leaks import check_keys
from tests.support.places import Place
from tests.support.rights import LEAST_RIGHTS, PASSWORD, USER
from tests.support.sentinels import SentinelSet
from tests.support.servers import REDIS_8, ServerPool
from tests.support.servers import request as send

MEMORY: Final = "memory"
SERVERS: Final = ("valkey", "redis")
CLUSTER: Final = "cluster"
SENTINEL: Final = "sentinel"

MakeWorld = Callable[..., Awaitable[World]]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "corner(id): the dangerous corner (docs/corners.md) whose rule the test holds")


def once(kind: str, pace: pytest.MarkDecorator) -> Any:
    """A kind whose servers take seconds to start: its tests are of the slow ones, and all of one test process."""
    return pytest.param(kind, marks=[pace, pytest.mark.xdist_group(f"contract-{kind}")])


@pytest.fixture(
    params=[
        MEMORY,
        *SERVERS,
        once(REDIS_8, pytest.mark.soak),
        once(CLUSTER, pytest.mark.slow),
        once(SENTINEL, pytest.mark.soak),
    ]
)
def world_kind(request: pytest.FixtureRequest) -> str:
    """Which store the test runs over."""
    kind: str = request.param
    return kind


@pytest.fixture
async def make_world(world_kind: str, request: pytest.FixtureRequest) -> AsyncIterator[MakeWorld]:
    """A factory of worlds, each with the settings that the test gives."""
    async with AsyncExitStack() as stack:

        async def make(**settings: Any) -> World:
            if world_kind == MEMORY:
                return _memory_world(StoreSettings(**settings), stack)
            url, place = _place(world_kind, request)
            return await _redis_world(url, place, StoreSettings(**settings), stack)

        yield make


@pytest.fixture
async def world(make_world: MakeWorld) -> World:
    """A world with the settings of an ordinary installation."""
    return await make_world()


def _memory_world(settings: StoreSettings, stack: AsyncExitStack) -> World:
    clock = ManualClock()
    store = MemoryStore(settings, clock)
    stack.push_async_callback(store.aclose)
    return World(store, settings, MemoryPower(store, clock))


def _place(kind: str, request: pytest.FixtureRequest) -> tuple[str, Place]:
    """Where the store of a kind connects, and where its data lies."""
    if kind == CLUSTER:
        cluster: Cluster = request.getfixturevalue("shared_cluster")
        return cluster.url, cluster.place
    if kind == SENTINEL:
        sentinels: SentinelSet = request.getfixturevalue("shared_sentinels")
        return sentinels.url, sentinels.place
    pool: ServerPool = request.getfixturevalue("server_pool")
    url = pool.get(kind).url
    if kind != REDIS_8:
        return url, Place.single(url)
    # This one goes by the rights that docs/redis.md gives, so that the suite proves that nothing more is needed.
    assert send(url, "ACL", "SETUSER", USER, "reset", *LEAST_RIGHTS) == b"+OK"
    return url.replace("://", f"://{USER}:{PASSWORD}@"), Place.single(url)


@pytest.fixture(scope="session")
def shared_cluster(server_pool: ServerPool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three primaries and their replicas, for all tests that only use them."""
    cluster = Cluster(tmp_path_factory.mktemp("cluster"), server_pool.preferred(), appendonly=False)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.kill_all()


@pytest.fixture(scope="session")
def shared_sentinels(server_pool: ServerPool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SentinelSet]:
    """A primary, a replica and three Sentinels, for all tests that only use them."""
    sentinels = SentinelSet(tmp_path_factory.mktemp("sentinels"), server_pool.preferred(), appendonly=False)
    try:
        sentinels.start()
        yield sentinels
    finally:
        sentinels.kill_all()


async def _redis_world(url: str, place: Place, settings: StoreSettings, stack: AsyncExitStack) -> World:
    from eventbus.store.redis_store import RedisStore

    for primary in place.primaries():
        assert send(primary, "FLUSHALL") == b"+OK"
        stack.callback(check_keys, primary)
    store = RedisStore(url, settings)
    stack.push_async_callback(store.aclose)
    return World(store, settings, RedisPower(place, store, settings))
