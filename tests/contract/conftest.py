"""One suite over all stores: `world` is a store with power over its time and its faults.

fakeredis is not among them: it has no INFO, which tells a restart from a reconnect, and it loads no script with flags,
which D14 asks for (`test_fakeredis.py` notices when that changes).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any, Final

import pytest

from eventbus.config import StoreSettings
from eventbus.testing import ManualClock, MemoryStore
from tests.contract.worlds import MemoryPower, RedisPower, World
from tests.support.leaks import check_keys
from tests.support.servers import ServerPool
from tests.support.servers import request as send

MEMORY: Final = "memory"
SERVERS: Final = ("valkey", "redis")

MakeWorld = Callable[..., Awaitable[World]]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "corner(id): the dangerous corner (docs/corners.md) whose rule the test holds")


@pytest.fixture(params=[MEMORY, *SERVERS])
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
            pool: ServerPool = request.getfixturevalue("server_pool")
            return await _redis_world(pool.get(world_kind).url, StoreSettings(**settings), stack)

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


async def _redis_world(url: str, settings: StoreSettings, stack: AsyncExitStack) -> World:
    from eventbus.store.redis_store import RedisStore

    assert send(url, "FLUSHALL") == b"+OK"
    stack.callback(check_keys, url)
    store = RedisStore(url, settings)
    stack.push_async_callback(store.aclose)
    return World(store, settings, RedisPower(url, store, settings))
