"""A way between one node and Redis on which the subscription alone can be made to die without a word."""

from __future__ import annotations

import asyncio
import contextlib
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit, urlunsplit

_CHUNK_BYTES = 65_536
# The subscriber's connection is told by what it asks for; it begins with what every connection says.
_SUBSCRIBES = (b"SSUBSCRIBE", b"eventbus-listen")


class StoreWay:
    """Listens on a free port of 127.0.0.1 and passes everything on to Redis.

    Args:
        url: of the Redis behind it.

    Attributes:
        deaf: what Redis says on connections that subscribe is swallowed, on new ones too; both sides think that they
            stand.
    """

    def __init__(self, url: str) -> None:
        self._parts = urlsplit(url)
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.deaf = False

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accepted, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    @property
    def url(self) -> str:
        """Where the node finds Redis."""
        assert self._server is not None
        credentials = self._parts.netloc.rpartition("@")[0]
        port = self._server.sockets[0].getsockname()[1]
        return urlunsplit(self._parts._replace(netloc=f"{credentials}@127.0.0.1:{port}".lstrip("@")))

    async def _accepted(self, from_node: asyncio.StreamReader, to_node: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        writers = [to_node]
        try:
            from_redis, to_redis = await asyncio.open_connection(self._parts.hostname, self._parts.port)
            writers.append(to_redis)
            subscribes = asyncio.Event()
            ways = {
                asyncio.create_task(self._pump(from_node, to_redis, subscribes, asks=True)),
                asyncio.create_task(self._pump(from_redis, to_node, subscribes, asks=False)),
            }
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)
        except (OSError, asyncio.CancelledError):
            pass  # the way closes, or Redis is not there: the node sees the end of its connection
        finally:
            for writer in writers:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
            self._tasks.discard(task)

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, subscribes: asyncio.Event, *, asks: bool
    ) -> None:
        while chunk := await reader.read(_CHUNK_BYTES):
            if asks and any(word in chunk for word in _SUBSCRIBES):
                subscribes.set()
            if self.deaf and subscribes.is_set() and not asks:
                continue
            writer.write(chunk)
            await writer.drain()
