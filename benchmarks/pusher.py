"""The floor of a push: frames built before, written to as many sockets, with nothing else around it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any, cast

from benchmarks.roles import follow_orders
from gateway.transport.outbox import text_frame


class _Peer(asyncio.Protocol):
    def __init__(self, pusher: Pusher) -> None:
        self._pusher = pusher

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._pusher.joined(cast(asyncio.Transport, transport))  # uvloop's is none by its class


class _Sink(asyncio.Protocol):
    def __init__(self, pusher: Pusher) -> None:
        self._pusher = pusher

    def data_received(self, data: bytes) -> None:
        self._pusher.came(len(data))


class Pusher:
    """Either end of the floor: `listen` and `push` in one process, `sink` and `result` in another."""

    def __init__(self) -> None:
        self._peers: list[asyncio.Transport] = []
        self._sinks: list[asyncio.BaseTransport] = []
        self._bytes = self._wanted = 0
        self._all = asyncio.Event()
        self._joined = asyncio.Event()

    def joined(self, peer: asyncio.Transport) -> None:
        self._peers.append(peer)
        self._joined.set()

    def came(self, size: int) -> None:
        self._bytes += size
        if self._bytes >= self._wanted:
            self._all.set()

    async def listen(self) -> Mapping[str, Any]:
        """Wait for connections."""
        server = await asyncio.get_running_loop().create_server(lambda: _Peer(self), "127.0.0.1", 0)
        return {"port": server.sockets[0].getsockname()[1]}

    async def push(self, rate: float, events: int, payload_bytes: int, sockets: int) -> Mapping[str, Any]:
        """Write one frame an event, to one socket after the other, at a rate, once all are connected."""
        async with asyncio.timeout(20):
            while len(self._peers) < sockets:
                self._joined.clear()
                await self._joined.wait()
        frame, peers = text_frame(b"p" * payload_bytes), self._peers
        began, done = time.monotonic(), 0
        while done < events:
            due = min(events, int((time.monotonic() - began) * rate) + 1)
            for number in range(done, due):
                peers[number % len(peers)].write(frame)
            done = due
            await asyncio.sleep(0.001)
        return {"bytes": events * len(frame)}

    async def sink(self, port: int, sockets: int) -> Mapping[str, Any]:
        """Open connections."""
        loop = asyncio.get_running_loop()
        for _ in range(sockets):
            transport, _protocol = await loop.create_connection(lambda: _Sink(self), "127.0.0.1", port)
            self._sinks.append(transport)
        return {}

    async def result(self, size: int) -> Mapping[str, Any]:
        """Wait until so many bytes have come since the start."""
        self._wanted = size
        self.came(0)
        async with asyncio.timeout(20):
            await self._all.wait()
        return {"received": self._bytes}


def _orders() -> Mapping[str, Any]:
    pusher = Pusher()
    return {"listen": pusher.listen, "push": pusher.push, "sink": pusher.sink, "result": pusher.result}


if __name__ == "__main__":
    follow_orders(_orders)
