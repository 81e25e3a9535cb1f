"""A TCP proxy inside the test's event loop that does what networks do: delays, cuts, half-open and stalled connections.

async with Proxy(target_port) as proxy:
    proxy.to_client.delay_ms = 50     # every chunk that the server sends is late
    proxy.half_open()                 # both sides think that the connection stands, nothing arrives
    proxy.heal()
    proxy.cut()                       # every connection ends with a reset
    struck = proxy.cut_before_reply(b"EVALSHA")   # the request arrives, its reply never does
    await struck.wait()
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable
from types import TracebackType
from typing import Self

_CHUNK_BYTES = 65_536

_Seen = Callable[[bytes, "Way"], None]


class Way:
    """The faults and figures of one direction, for all connections.

    Attributes:
        delay_ms: Each chunk waits so long before it goes on; order is kept.
        swallow: Bytes are read and dropped, and so is the end of the connection.
        cut_after_bytes: So many more bytes go on, then the connection that carried the last ends; None: no limit.
        forwarded_bytes: How much went on.
        swallowed_bytes: How much was dropped.
    """

    def __init__(self) -> None:
        self.delay_ms = 0
        self.swallow = False
        self.cut_after_bytes: int | None = None
        self.forwarded_bytes = 0
        self.swallowed_bytes = 0
        self._flows = asyncio.Event()
        self._flows.set()

    def stall(self) -> None:
        """Nothing is read any more: buffers fill up to the sender."""
        self._flows.clear()

    def flow(self) -> None:
        """Ends `stall`."""
        self._flows.set()

    async def wait_until_it_flows(self) -> None:
        await self._flows.wait()

    def heal(self) -> None:
        """Ends every fault; what was swallowed stays lost."""
        self.delay_ms = 0
        self.swallow = False
        self.cut_after_bytes = None
        self.flow()


class _Trap:
    """Waits for a request that contains `match`, then swallows what the server says and cuts."""

    def __init__(self, match: bytes) -> None:
        self.match = match
        self.sprung = False
        self.struck = asyncio.Event()


class _Connection:
    """One client's connection and its twin to the server."""

    def __init__(self, proxy: Proxy, client: asyncio.StreamWriter, server: asyncio.StreamWriter) -> None:
        self._proxy = proxy
        self._client = client
        self._server = server
        self._trap: _Trap | None = None
        self._tail = b""
        self._pumps: tuple[asyncio.Task[None], ...] = ()

    async def run(self, from_client: asyncio.StreamReader, from_server: asyncio.StreamReader) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                self._pumps = (
                    group.create_task(self._pump(from_client, self._server, self._proxy.to_server, self._seen_request)),
                    group.create_task(self._pump(from_server, self._client, self._proxy.to_client, self._seen_reply)),
                )
        except* (OSError, _Cut):  # a reset may come as ENOTCONN, which is no ConnectionError
            pass
        finally:
            if self._trap is not None and not self._trap.struck.is_set():
                self._trap.sprung = False  # it ended by itself before the reply came: the trap is for another
            self.end()

    def end(self) -> None:
        """Closes both sides, after what was already written."""
        for writer in (self._client, self._server):
            writer.close()

    def reset(self) -> None:
        """Ends both sides with a reset; what is on its way is lost."""
        for writer in (self._client, self._server):
            raw: socket.socket | None = writer.get_extra_info("socket")
            if raw is not None:
                with contextlib.suppress(OSError):
                    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        # A pump may be waiting for something that never comes now (a stall, a swallowed end).
        for pump in self._pumps:
            pump.cancel()

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        way: Way,
        seen: _Seen,
    ) -> None:
        while True:
            await way.wait_until_it_flows()
            chunk = await reader.read(_CHUNK_BYTES)
            await way.wait_until_it_flows()
            if way.delay_ms:
                await asyncio.sleep(way.delay_ms / 1000)  # real time: a slow network
            if way.swallow:
                way.swallowed_bytes += len(chunk)
                if not chunk:
                    await asyncio.Event().wait()  # half-open: the other side never learns of the end
                continue
            if not chunk:
                if writer.can_write_eof():
                    writer.write_eof()
                return
            seen(chunk, way)
            limit = way.cut_after_bytes
            part = chunk if limit is None else chunk[:limit]
            writer.write(part)
            await writer.drain()
            way.forwarded_bytes += len(part)
            if limit is not None:
                way.cut_after_bytes = limit - len(part)
                if way.cut_after_bytes == 0:
                    way.cut_after_bytes = None
                    raise _Cut

    def _seen_request(self, chunk: bytes, way: Way) -> None:
        trap = self._proxy.trap
        if trap is None or trap.sprung:
            return
        # The words may lie across two chunks.
        text = self._tail + chunk
        self._tail = text[-len(trap.match) :]
        if trap.match in text:
            trap.sprung = True
            self._trap = trap

    def _seen_reply(self, chunk: bytes, way: Way) -> None:
        if self._trap is None:
            return
        way.swallowed_bytes += len(chunk)
        self._proxy.trap = None
        self._trap.struck.set()
        self.reset()
        raise _Cut


class _Cut(Exception):
    """The connection is to end here."""


class Proxy:
    """Listens on a free port of 127.0.0.1 and passes everything on to `target_port`.

    Attributes:
        to_server: Faults from the clients to the server.
        to_client: Faults from the server to the clients.
        accepted: How many connections came.
    """

    def __init__(self, target_port: int, target_host: str = "127.0.0.1") -> None:
        self._target = (target_host, target_port)
        self._server: asyncio.Server | None = None
        self._connections: dict[asyncio.Task[None], _Connection | None] = {}
        self._refusing = False
        self.to_server = Way()
        self.to_client = Way()
        self.accepted = 0
        self.port = 0
        self.trap: _Trap | None = None

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accepted, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        tasks = list(self._connections)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._server.wait_closed()

    @property
    def open(self) -> int:
        """How many connections stand."""
        return sum(connection is not None for connection in self._connections.values())

    @property
    def redis_url(self) -> str:
        """The proxy's address as that of a Redis."""
        return f"redis://127.0.0.1:{self.port}/0"

    def aim(self, target_port: int) -> None:
        """Takes new connections to another port, as a load balancer does when a server of its list has gone."""
        self._target = (self._target[0], target_port)

    def cut(self) -> None:
        """Ends every connection with a reset; new ones are taken."""
        for connection in self._connections.values():
            if connection is not None:
                connection.reset()

    def refuse(self) -> None:
        """Ends every connection and each new one at once, until `heal`."""
        self._refusing = True
        self.cut()

    def half_open(self) -> None:
        """Swallows both directions: the connections stand and are dead, new ones too, until `heal`."""
        self.to_server.swallow = True
        self.to_client.swallow = True

    def stall(self) -> None:
        """Reads nothing from either side: the senders' buffers fill, nothing is lost, until `heal`."""
        self.to_server.stall()
        self.to_client.stall()

    def heal(self) -> None:
        """Ends every fault. Connections whose bytes were swallowed are still broken: cut them, as a network would."""
        self._refusing = False
        self.trap = None
        self.to_server.heal()
        self.to_client.heal()

    def cut_before_reply(self, match: bytes = b"") -> asyncio.Event:
        """Lets the next request that contains `match` through, swallows the reply and resets that connection.

        Replies to requests before it on that connection that have not come back yet are lost with it.

        Returns:
            An event that is set when it has happened; the trap is gone then.
        """
        self.trap = _Trap(match)
        return self.trap.struck

    def _refuses(self) -> bool:
        return self._refusing

    def _turns_away(self) -> bool:
        return self._refusing

    async def _accepted(self, from_client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.accepted += 1
        self._connections[task] = None
        try:
            if self._refuses():
                to_client.transport.abort()
                return
            try:
                from_server, to_server = await asyncio.open_connection(*self._target)
            except OSError:
                to_client.transport.abort()
                return
            if self._refuses():  # since the client came
                to_client.transport.abort()
                to_server.transport.abort()
                return
            connection = _Connection(self, to_client, to_server)
            self._connections[task] = connection
            await connection.run(from_client, from_server)
            for writer in (to_client, to_server):
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
        except asyncio.CancelledError:
            # The proxy closes: asyncio's stream server would report the cancellation as an error.
            pass
        finally:
            to_client.close()
            del self._connections[task]
