"""The demo's front door: requests for nodes reach a living one, all else the page; a killed node is not hidden."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest

from gateway.demo.door import Door
from gateway.processes.process import bind, port_of

UPGRADE = b"GET /v1/connect HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"


@dataclass(slots=True)
class Far:
    """A server that answers with its name and what it was sent, then waits."""

    name: bytes
    port: int = 0
    heads: list[bytes] = field(default_factory=list)
    writers: list[asyncio.StreamWriter] = field(default_factory=list)
    _server: asyncio.Server | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._met, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _met(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        self.heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(self.name + b"\n")
        while line := await reader.readline():
            writer.write(self.name + b" " + line)
        writer.close()

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for writer in self.writers:
            writer.transport.abort()


class OneOf:
    """Gives the nodes in the order of a list."""

    def __init__(self, *nodes: Far) -> None:
        self.nodes = list(nodes)

    async def choose(self) -> Far | None:
        return self.nodes.pop(0) if self.nodes else None


@dataclass(slots=True)
class House:
    door: Door
    port: int
    page: Far
    nodes: OneOf

    async def knock(self, head: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(head)
        return reader, writer


@pytest.fixture
async def house() -> AsyncIterator[House]:
    page = Far(b"page")
    await page.start()
    nodes = OneOf()
    door = Door(nodes, page.port)
    sockets = bind("127.0.0.1", 0, setting="PORT")
    await door.start(sockets[0])
    yield House(door, port_of(sockets), page, nodes)
    await door.stop()
    await page.stop()


async def test_sockets_reach_a_node_and_all_else_the_page(house: House) -> None:
    node = Far(b"node")
    await node.start()
    house.nodes.nodes = [node]
    reader, writer = await house.knock(UPGRADE)
    assert await reader.readline() == b"node\n"
    writer.write(b"hello\n")
    assert await reader.readline() == b"node hello\n"
    assert node.heads == [UPGRADE]
    other, page_writer = await house.knock(b"GET /demo/state HTTP/1.1\r\nHost: h\r\nConnection: keep-alive\r\n\r\n")
    assert await other.readline() == b"page\n"
    # The next request of the connection could be for somebody else.
    assert house.page.heads == [b"GET /demo/state HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"]
    writer.close()
    page_writer.close()
    await node.stop()


async def test_a_node_that_dies_takes_the_connection_with_it_and_the_next_one_is_asked(house: House) -> None:
    first, second = Far(b"first"), Far(b"second")
    await first.start()
    await second.start()
    house.nodes.nodes = [first, first, second]
    reader, writer = await house.knock(UPGRADE)
    assert await reader.readline() == b"first\n"
    await first.stop()
    async with asyncio.timeout(5):
        assert await reader.read() == b""
    again, again_writer = await house.knock(UPGRADE)
    assert await again.readline() == b"second\n"
    writer.close()
    again_writer.close()
    await second.stop()


async def test_without_a_node_the_answer_is_503(house: House) -> None:
    reader, writer = await house.knock(UPGRADE)
    answer = await reader.read()
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"no node takes connections" in answer
    writer.close()


async def test_a_head_that_is_too_long_or_cut_off_ends_its_connection_alone(house: House) -> None:
    reader, writer = await house.knock(b"GET / HTTP/1.1\r\n" + b"x" * 100_000)
    with pytest.raises((EOFError, ConnectionError)):
        await reader.readexactly(1)
    _, cut = await house.knock(b"GET /")
    cut.close()
    fine, fine_writer = await house.knock(b"GET / HTTP/1.1\r\n\r\n")
    assert await fine.readline() == b"page\n"
    writer.close()
    fine_writer.close()
