"""A client that has gone takes its session from nobody: not even when its attach was under way for a while."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from eventbus.errors import StoreUnavailable
from eventbus.store import AttachMode
from eventbus.store.redis_store import RedisStore
from tests.support.proxy import Proxy
from tests.support.redis_stores import fence_of, open_session
from tests.support.waiting import until

pytestmark = pytest.mark.requirement("R7")


@pytest.fixture
async def proxy(server_url: str) -> AsyncIterator[Proxy]:
    async with Proxy(int(server_url.rpartition(":")[2].partition("/")[0])) as made:
        yield made


@pytest.mark.parametrize("is_there", [True, False])
async def test_an_attach_that_waited_for_a_connection_is_made_only_for_a_client_that_is_still_there(
    server_url: str, proxy: Proxy, is_there: bool
) -> None:
    """The node has no connection to the store; its client gives up and opens the session on another node. What the
    first node had to say for it would take the session from where the client is now.
    """
    here, there = RedisStore(proxy.redis_url), RedisStore(server_url)
    old, new = fence_of(connection="old"), fence_of(connection="new")
    try:
        await here.ping()
        proxy.stall()
        proxy.cut()
        await until(lambda: not here.connected, message="the connection is gone")
        waiting = asyncio.create_task(open_session(here, old, wanted=lambda: is_there))
        await until(lambda: proxy.accepted > 1, message="the node connects again, and nothing comes through")
        await open_session(there, new)
        proxy.heal()
        if is_there:
            assert (await waiting).displaced is not None
        else:
            with pytest.raises(StoreUnavailable):
                await waiting
            assert (await open_session(there, new, mode=AttachMode.REATTACH)).displaced is None
    finally:
        await here.aclose()
        await there.aclose()
