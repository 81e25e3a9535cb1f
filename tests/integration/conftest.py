"""Nodes inside the test's process, on a real server."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest

from gateway.node import Node
from tests.support.wire_client import Nodes


@pytest.fixture
async def nodes(server_url: str) -> AsyncIterator[Nodes]:
    """Starts nodes on a server of the preferred kind."""
    async with Nodes(server_url) as made:
        yield made


@pytest.fixture
async def nodes_on_each(redis_url: str) -> AsyncIterator[Nodes]:
    """Starts nodes, once on each kind of server."""
    async with Nodes(redis_url) as made:
        yield made


@pytest.fixture
async def node(nodes: Nodes) -> Node:
    """One node with the default settings."""
    return await nodes.start()


@pytest.fixture
async def http(node: Node) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the HTTP side of `node`."""
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{node.port}") as client:
        yield client
