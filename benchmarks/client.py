"""Many clients in one process: each opens a session, acks what comes once a turn of the loop, and checks it.

Every event carries the number that it has among its user's events and the time at which it was published, so a hole, a
wrong order, a duplicate and the latency are seen here.
"""

from __future__ import annotations

import asyncio
import time
from array import array
from collections.abc import Mapping
from typing import Any, cast
from urllib.parse import urlsplit

import orjson

from benchmarks.frames import PING, TEXT, client_frame, next_frame, pong_frame, upgrade_request
from benchmarks.report import percentile
from benchmarks.roles import follow_orders
from eventbus.tokens import make_token

HELLO = client_frame(b'{"op":"hello","session":"tab"}')
TIMEOUT_S = 30.0


class Client(asyncio.Protocol):
    """One session."""

    __slots__ = ("_acks", "_held", "_last", "_opened", "_request", "_swarm", "_transport", "_upgraded")

    def __init__(self, swarm: Swarm, request: bytes, last: int) -> None:
        self._swarm = swarm
        self._request = request
        self._transport: asyncio.Transport | None = None
        self._upgraded = self._opened = False
        self._held = b""
        self._acks: list[str] = []
        self._last = last

    @property
    def last(self) -> int:
        """The number of the last event that came."""
        return self._last

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by its class
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        now_ns = time.monotonic_ns()
        if self._held:
            data, self._held = self._held + data, b""
        start = 0
        if not self._upgraded:
            start = data.find(b"\r\n\r\n") + 4
            if start < 4:
                self._held = data
                return
            if not data.startswith(b"HTTP/1.1 101"):
                self._swarm.refused(data[:200])
                return
            self._upgraded = True
            self._write(HELLO)
        end = len(data)
        while start < end:
            first, body, stop = next_frame(data, start)
            if not stop:
                self._held = data[start:]
                break
            if first == TEXT:
                self._receive(orjson.loads(data[body:stop]), now_ns)
            elif first == PING:
                self._write(pong_frame(data[body:stop]))
            else:
                self._swarm.closed(data[body:stop])
            start = stop

    def _receive(self, frame: dict[str, Any], now_ns: int) -> None:
        op = frame["op"]
        if op == "events":
            if not self._acks:
                self._swarm.owes_acks(self)
            for item in frame["events"]:
                data = item["event"]["data"]
                self._last = self._swarm.received(data["n"], self._last, now_ns - data["t"])
                self._acks.append(item["id"])
        elif op == "caught_up":
            if not self._opened:
                self._opened = True
                self._swarm.opened()
        elif op != "welcome":
            self._swarm.told(frame)

    def send_acks(self) -> None:
        """Ack all that came in this turn."""
        payload = b'{"op":"ack","ids":["%s"]}' % '","'.join(self._acks).encode()
        self._acks.clear()
        self._write(client_frame(payload))

    def drop(self) -> None:
        """Go away without a word."""
        if self._transport is not None:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._swarm.lost()

    def _write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)


class Swarm:
    """All clients of this process, and what they saw."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._clients: list[Client] = []
        self._owing: list[Client] = []
        self._open = self._lost = 0
        self._latencies_ns = array("q")
        self._wrong: list[str] = []
        self._wanted = 0
        self._reached = asyncio.Event()
        self._opening = asyncio.Event()
        self._dropping = asyncio.Event()
        self._tokens: list[str] = []

    # what the clients say

    def opened(self) -> None:
        self._open += 1
        self._opening.set()

    def lost(self) -> None:
        self._lost += 1
        self._dropping.set()
        self._opening.set()

    def refused(self, answer: bytes) -> None:
        self._note(f"no upgrade: {answer!r}")
        self._opening.set()

    def closed(self, payload: bytes) -> None:
        self._note(f"closed: {payload!r}")

    def told(self, frame: Mapping[str, Any]) -> None:
        self._note(f"unexpected: {frame}")

    def owes_acks(self, client: Client) -> None:
        if not self._owing:
            self._loop.call_soon(self._send_acks)
        self._owing.append(client)

    def received(self, number: int, last: int, latency_ns: int) -> int:
        if number != last + 1:
            self._note(f"event {number} came after event {last} of its user")
        latencies = self._latencies_ns
        latencies.append(latency_ns)
        if len(latencies) == self._wanted:
            self._reached.set()
        return number

    def _send_acks(self) -> None:
        owing, self._owing = self._owing, []
        for client in owing:
            client.send_acks()

    def _note(self, what: str) -> None:
        if len(self._wrong) < 20:
            self._wrong.append(what)

    # orders

    async def make(self, users: int, secret: str) -> Mapping[str, Any]:
        """Make the tokens, which is no part of what is measured."""
        now_ms = int(time.time() * 1000)
        self._tokens = [
            make_token(user=f"user{number}", secret=secret.encode(), now_ms=now_ms, scopes=("subscribe",))
            for number in range(users)
        ]
        return {}

    async def connect(self, url: str, users: int, at_once: int) -> Mapping[str, Any]:
        """Open the sessions of the first `users` users, `at_once` at a time; those that were open before are
        forgotten.
        """
        address = urlsplit(url)
        host, port = address.hostname or "", address.port or 0
        numbers = [client.last for client in self._clients] + [0] * users
        self._clients = []
        self._open = self._lost = 0
        began = time.perf_counter()
        for number in range(users):
            while len(self._clients) - self._open >= at_once:
                await self._next(self._opening)
            request = upgrade_request(f"{host}:{port}", self._tokens[number])
            client = Client(self, request, numbers[number])
            self._clients.append(client)
            await self._loop.create_connection(lambda client=client: client, host, port)  # type: ignore[misc]
        while self._open < users:
            await self._next(self._opening)
        return {"seconds": time.perf_counter() - began, "wrong": self._wrong}

    async def drop(self) -> Mapping[str, Any]:
        """Cut all connections."""
        for client in self._clients:
            client.drop()
        while self._lost < len(self._clients):
            await self._next(self._dropping)
        return {}

    async def expect(self, events: int) -> Mapping[str, Any]:
        """Begin to count anew."""
        self._latencies_ns = array("q")
        self._wrong.clear()
        self._wanted = events
        self._reached.clear()
        return {}

    async def result(self, timeout_s: float) -> Mapping[str, Any]:
        """Wait until all expected events are there, and a moment for those that are too many; tell what came."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._reached.wait()
        except TimeoutError:
            self._note(f"{len(self._latencies_ns)} of {self._wanted} events came within {timeout_s} s")
        reached_ns = time.monotonic_ns()
        await asyncio.sleep(0.05)
        latencies = sorted(self._latencies_ns)
        shares = {"p50": 0.5, "p99": 0.99, "p999": 0.999, "most": 1.0}
        return {
            "received": len(latencies),
            "reached_ns": reached_ns,
            "lost_connections": self._lost,
            "wrong": self._wrong,
            "latency_ms": {name: percentile(latencies, share) / 1e6 for name, share in shares.items()}
            if latencies
            else {},
        }

    async def _next(self, event: asyncio.Event) -> None:
        event.clear()
        if self._wrong:
            raise ConnectionError(self._wrong[0])
        async with asyncio.timeout(TIMEOUT_S):
            await event.wait()


def _orders() -> Mapping[str, Any]:
    swarm = Swarm()
    return {
        "make": swarm.make,
        "connect": swarm.connect,
        "drop": swarm.drop,
        "expect": swarm.expect,
        "result": swarm.result,
    }


if __name__ == "__main__":
    follow_orders(_orders)
