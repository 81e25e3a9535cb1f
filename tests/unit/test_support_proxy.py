"""The proxy's faults are what they claim to be."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from tests.support.proxy import Proxy
from tests.support.waiting import until


class Echo:
    """A server that sends back what it got, and remembers it."""

    def __init__(self) -> None:
        self.got = b""
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while chunk := await reader.read(65_536):
                self.got += chunk
                writer.write(chunk)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()


@pytest.fixture
async def echo() -> AsyncIterator[Echo]:
    echo = Echo()
    server = await asyncio.start_server(echo.serve, "127.0.0.1", 0)
    echo.port = server.sockets[0].getsockname()[1]
    yield echo
    server.close()
    await server.wait_closed()


@pytest.fixture
async def proxy(echo: Echo) -> AsyncIterator[Proxy]:
    async with Proxy(echo.port) as proxy:
        yield proxy


class Client:
    """A connection through the proxy."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def ask(self, text: bytes) -> bytes:
        self.writer.write(text)
        return await asyncio.wait_for(self.reader.readexactly(len(text)), 5)

    async def broken(self) -> bool:
        """Waits for the connection's end."""
        try:
            return await asyncio.wait_for(self.reader.read(1), 5) == b""
        except ConnectionError:
            return True


@pytest.fixture
async def client(proxy: Proxy) -> AsyncIterator[Client]:
    client = Client(*await asyncio.open_connection("127.0.0.1", proxy.port))
    assert await client.ask(b"hello") == b"hello"
    yield client
    client.writer.close()
    with contextlib.suppress(ConnectionError):
        await client.writer.wait_closed()


async def test_without_a_fault_everything_goes_through(proxy: Proxy, client: Client) -> None:
    text = bytes(range(256)) * 4096
    assert await client.ask(text) == text
    assert proxy.to_server.forwarded_bytes == proxy.to_client.forwarded_bytes == len(text) + 5
    assert (proxy.accepted, proxy.open) == (1, 1)


async def test_the_end_of_one_side_reaches_the_other(proxy: Proxy, client: Client) -> None:
    client.writer.write(b"last words")
    client.writer.write_eof()
    assert await asyncio.wait_for(client.reader.read(-1), 5) == b"last words"
    await until(lambda: proxy.open == 0)


@pytest.mark.parametrize("way", ["to_server", "to_client"])
async def test_a_delay_holds_bytes_back_in_their_order(proxy: Proxy, client: Client, way: str) -> None:
    getattr(proxy, way).delay_ms = 60
    loop = asyncio.get_running_loop()
    begin = loop.time()
    assert await client.ask(b"one") == b"one"
    assert loop.time() - begin >= 0.055
    assert await client.ask(b"two") == b"two"


async def test_a_cut_breaks_the_connection_and_takes_new_ones(proxy: Proxy, client: Client) -> None:
    proxy.cut()
    assert await client.broken()
    await until(lambda: proxy.open == 0)
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    assert await Client(reader, writer).ask(b"again") == b"again"
    writer.close()
    await writer.wait_closed()


async def test_refusing_lasts_until_healed(proxy: Proxy, client: Client) -> None:
    proxy.refuse()
    assert await client.broken()
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    other = Client(reader, writer)
    assert await other.broken()
    writer.close()
    proxy.heal()
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    assert await Client(reader, writer).ask(b"again") == b"again"
    writer.close()
    await writer.wait_closed()


async def test_half_open_connections_stand_and_are_dead(proxy: Proxy, client: Client, echo: Echo) -> None:
    proxy.half_open()
    client.writer.write(b"nobody hears")
    await until(lambda: proxy.to_server.swallowed_bytes == len(b"nobody hears"))
    assert echo.got == b"hello"
    assert proxy.open == 1
    assert not client.reader.at_eof()
    proxy.cut()
    assert await client.broken()
    await until(lambda: proxy.open == 0)


async def test_the_end_of_a_half_open_connection_is_never_told(proxy: Proxy, client: Client) -> None:
    proxy.to_server.swallow = True
    client.writer.write_eof()
    proxy.to_client.delay_ms = 1
    client.writer.close()
    assert proxy.open == 1


async def test_one_way_can_be_dead_alone(proxy: Proxy, client: Client, echo: Echo) -> None:
    proxy.to_client.swallow = True
    client.writer.write(b"heard")
    await until(lambda: echo.got == b"helloheard")
    await until(lambda: proxy.to_client.swallowed_bytes == 5)


async def test_a_stall_loses_nothing(proxy: Proxy, client: Client, echo: Echo) -> None:
    proxy.stall()
    client.writer.write(b"later")
    forwarded = proxy.to_server.forwarded_bytes
    await client.writer.drain()
    assert proxy.to_server.forwarded_bytes == forwarded
    proxy.heal()
    assert await asyncio.wait_for(client.reader.readexactly(5), 5) == b"later"


async def test_a_cut_after_bytes_lets_exactly_these_through(proxy: Proxy, client: Client, echo: Echo) -> None:
    proxy.to_server.cut_after_bytes = 3
    client.writer.write(b"abcdef")
    assert await client.broken() or echo.got == b"helloabc"
    await until(lambda: echo.got == b"helloabc")
    await until(lambda: proxy.open == 0)
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    assert await Client(reader, writer).ask(b"again") == b"again"
    writer.close()
    await writer.wait_closed()


async def test_a_reply_is_lost_after_its_request_arrived(proxy: Proxy, client: Client, echo: Echo) -> None:
    struck = proxy.cut_before_reply(b"READ")
    assert await client.ask(b"other") == b"other"
    assert not struck.is_set()
    client.writer.write(b"xxRE")
    await asyncio.wait_for(client.reader.readexactly(4), 5)
    client.writer.write(b"ADxx")  # the words lie across two chunks
    assert await client.broken()
    assert struck.is_set()
    assert echo.got.endswith(b"xxREADxx")
    assert proxy.to_client.swallowed_bytes == 4


async def test_a_dead_target_breaks_the_connection(echo: Echo) -> None:
    async with Proxy(1) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        assert await Client(reader, writer).broken()
        writer.close()
