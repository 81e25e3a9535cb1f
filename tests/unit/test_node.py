"""The composition root: what a node does when a part of it fails."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Sequence
from typing import Any

import pytest

from eventbus.ids import NodeName
from eventbus.store import Fence
from eventbus.testing import MemoryStore
from tests.support.waiting import until
from tests.support.wire_client import Nodes, opened, settled, token_of, wired

NOWHERE = "redis://127.0.0.1:1/0"


class DefectiveStore(MemoryStore):
    """Raises what no store may, from heartbeats."""

    async def heartbeat(self, fences: Sequence[Fence], node: NodeName) -> Any:
        raise RuntimeError("a defect")


@pytest.mark.requirement("R25")
async def test_a_part_that_dies_ends_the_node_and_not_in_silence(caplog: pytest.LogCaptureFixture) -> None:
    async with Nodes(NOWHERE) as nodes:
        node = await nodes.start(store=DefectiveStore(), session_heartbeat_ms=50)
        assert not node.failed.is_set()
        async with opened(node):
            async with asyncio.timeout(5):
                await node.failed.wait()
    assert [record.levelno for record in caplog.records if record.levelno > logging.WARNING] == [logging.CRITICAL]
    assert "a defect" in caplog.text
    caplog.clear()


async def test_a_node_that_can_not_listen_leaves_nothing_running() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        async with Nodes(NOWHERE) as nodes:
            node = nodes.make(store=MemoryStore(), port=taken.getsockname()[1])
            with pytest.raises(OSError, match="address already in use"):
                await node.start()
            assert node.port == 0


async def test_a_start_that_is_cancelled_leaves_nothing_running() -> None:
    store = MemoryStore()
    store.hang()
    async with Nodes(NOWHERE) as nodes:
        node = nodes.make(store=store)
        starting = asyncio.create_task(node.start())
        await asyncio.sleep(0)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting


async def test_closing_a_node_twice_or_before_its_start_is_no_error() -> None:
    async with Nodes(NOWHERE) as nodes:
        node = nodes.make(store=MemoryStore())
        await node.aclose()
        await node.aclose()
        assert "draining" in repr(node)


async def test_a_node_tells_of_itself_and_leaves_the_list_after_its_drain() -> None:
    store = MemoryStore()
    async with Nodes(NOWHERE) as nodes:
        node = await nodes.start(store=store, drain_ms=1_000)
        async with opened(node):
            (record,) = await until(store.nodes)
            assert (record.node, record.state) == ("n1", "ready")
            await node.announce("ready")
            (record,) = await store.nodes()
            assert (record.figures["connections"], record.figures["sessions"]) == (1, 1)
            assert record.address.endswith(f":{node.port}")
        await settled(node)
        await node.drain()
        assert node.connections == 0


@pytest.mark.requirement("R23")
async def test_a_tier_of_a_token_gives_its_limits() -> None:
    async with Nodes(NOWHERE) as nodes:
        node = await nodes.start(store=MemoryStore())
        async with wired(node, token_of(tier="enterprise")) as client:
            await client.hello()
            (session,) = node.hub
            assert session.opening.tier.frames_per_second == 500
        await until(lambda: not len(node.hub))
