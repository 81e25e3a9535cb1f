"""The front door: one port for the browser. What is for a node goes to a living one, all else to the page's server.

A stand-in for a load balancer, as small as can be: it reads the head of a connection's first request, chooses, and
from then on moves bytes. When a node is killed its sockets are cut, and the door cuts those of the browser: nothing is
hidden from the client, which reconnects.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import socket
from typing import Final, Protocol

from eventbus.clock import seconds

__all__ = ["Chooser", "Door"]

HEAD_MAX_BYTES: Final = 32 * 1024
HEAD_TIMEOUT_MS: Final = 10_000
CHUNK_BYTES: Final = 64 * 1024
NODE_TRIES: Final = 3

_FOR_NODES: Final = re.compile(rb"^[A-Z]+ /(?:v1/|client[./])")
_UPGRADE: Final = re.compile(rb"\r\nupgrade:[ \t]*websocket[ \t]*\r\n", re.IGNORECASE)
_CONNECTION: Final = re.compile(rb"\r\n(?:connection|keep-alive):[^\r\n]*", re.IGNORECASE)
_NO_NODE: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nCache-Control: no-store\r\nConnection: close\r\n"
    b"Content-Type: application/json\r\n\r\n"
    b'{"error":{"code":"no_node","message":"no node takes connections now"}}'
)

logger = logging.getLogger(__name__)

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Node(Protocol):
    """A node, as far as the door knows it."""

    @property
    def port(self) -> int:
        """Where it takes connections, on this machine."""


class Chooser(Protocol):
    """Who knows which nodes are alive."""

    async def choose(self) -> Node | None:
        """The node for the next connection; None: there is none, and none came back in a while."""


class Door:
    """Takes the browser's connections.

    Args:
        chooser: chooses a node.
        page_port: where the page's server is, on this machine.
    """

    def __init__(self, chooser: Chooser, page_port: int) -> None:
        self._chooser = chooser
        self._page_port = page_port
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, listening: socket.socket) -> None:
        """Take connections on a bound socket."""
        self._server = await asyncio.start_server(self._meet, sock=listening, limit=HEAD_MAX_BYTES)

    async def stop(self) -> None:
        """Take no more, and cut those that are there."""
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _meet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if (task := asyncio.current_task()) is not None:
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        try:
            await self._serve(reader, writer)
        except (OSError, EOFError, TimeoutError, asyncio.LimitOverrunError) as error:
            logger.debug("a connection ended: %r", error)
        except asyncio.CancelledError:
            pass  # `stop`, which waits for this task alone
        finally:
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with asyncio.timeout(seconds(HEAD_TIMEOUT_MS)):
            head = await reader.readuntil(b"\r\n\r\n")
        far = await (self._node() if _FOR_NODES.match(head) else self._connect(self._page_port))
        if far is None:
            writer.write(_NO_NODE)
            await writer.drain()
            return
        far_reader, far_writer = far
        try:
            if not _UPGRADE.search(head):
                # One request a connection: the next one may be for somebody else.
                head = _CONNECTION.sub(b"", head)[:-2] + b"Connection: close\r\n\r\n"
            far_writer.write(head)
            there = asyncio.ensure_future(_move(reader, far_writer))
            try:
                await _move(far_reader, writer)
            finally:
                there.cancel()
                await asyncio.wait([there])
        finally:
            far_writer.transport.abort()

    async def _node(self) -> Streams | None:
        for _ in range(NODE_TRIES):
            node = await self._chooser.choose()
            if node is None:
                return None
            with contextlib.suppress(OSError):  # it died a moment ago
                return await self._connect(node.port)
            await asyncio.sleep(0.05)
        return None

    async def _connect(self, port: int) -> Streams:
        return await asyncio.open_connection("127.0.0.1", port, limit=CHUNK_BYTES)


async def _move(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Moves bytes one way until the sender has no more; then the receiver is told."""
    with contextlib.suppress(ConnectionError):
        while chunk := await reader.read(CHUNK_BYTES):
            writer.write(chunk)
            await writer.drain()
    with contextlib.suppress(OSError, RuntimeError):  # it is closed already
        writer.write_eof()
