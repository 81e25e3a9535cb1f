"""Clients that want nothing of a node but its time, memory and descriptors."""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tests.support.raw_websocket import BINARY, CONT, PING, TEXT, client_frame, upgrade_head

NEST = b'{"op":"hello","filter":' + b"[" * 30_000


def _random() -> bytes:
    return os.urandom(random.randrange(1, 2_000))


def _upgraded(*frames: bytes) -> bytes:
    return upgrade_head() + b"".join(frames)


def _endless() -> bytes:
    """A message of fragments that never ends, above the longest frame."""
    return _upgraded(client_frame(TEXT, b"x" * 1_000, fin=False), *[client_frame(CONT, b"y" * 1_000, fin=False)] * 70)


KINDS: dict[str, Callable[[], bytes]] = {
    "silence": lambda: b"",
    "random": _random,
    "tls": lambda: b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + os.urandom(60),
    "half a head": lambda: b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * random.randrange(1, 2_000),
    "a long head": lambda: b"GET / HTTP/1.1\r\n" + b"".join(b"x%d: %s\r\n" % (n, b"y" * 500) for n in range(60)),
    "half a body": lambda: b"POST /v1/events HTTP/1.1\r\nHost: x\r\nContent-Length: 8000000\r\n\r\n" + b"[" * 5_000,
    "two lengths": lambda: b"POST / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /",
    "chunks": lambda: b"POST /v1/events HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFF\r\n",
    "proxy": lambda: b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\nGET / HTTP/1.1\r\n\r\n",
    "no hello": upgrade_head,
    "a bad token": lambda: upgrade_head(authorization="Bearer " + "e30." * 2 + "x" * 4_000),
    "no token": lambda: _upgraded(client_frame(TEXT, b'{"op":"hello"}')),
    "a huge frame": lambda: upgrade_head() + b"\x81\xff" + (2**62).to_bytes(8, "big") + b"mask" + b"x" * 3_000,
    "a long frame": lambda: _upgraded(client_frame(TEXT, b"x" * 70_000)),
    "endless fragments": _endless,
    "compressed": lambda: _upgraded(client_frame(TEXT, b"\xaa\x56\x4a\x2d" * 100, rsv=4)),
    "nested": lambda: _upgraded(client_frame(TEXT, NEST)),
    "no text": lambda: _upgraded(client_frame(TEXT, b"\xff\xfe\x80" * 50)),
    "pings": lambda: _upgraded(*[client_frame(PING, b"p" * 125)] * 1_500),
    "unmasked": lambda: _upgraded(client_frame(BINARY, b"x" * 100, masked=False)),
}


ADDRESSES = tuple(f"127.0.0.{number}" for number in range(2, 10))
"""Where the connections come from: one address alone runs out of ports for tens of thousands of them in a minute."""


class Attack:
    """Connections that send garbage, so many at a time.

    Args:
        port: of the node.
        hold_ms: how long each stays when the node does not hang up.

    Attributes:
        ends: how the connections ended: `hung_up` by the node, `held` until they left by themselves, or `refused`
            with what the system said.
    """

    def __init__(self, port: int, hold_ms: int = 300) -> None:
        self._port = port
        self._hold_s = hold_ms / 1_000
        self.ends: Counter[str] = Counter()

    async def run(self, count: int, at_a_time: int) -> None:
        """Makes `count` connections, of all kinds in turn."""
        kinds = list(KINDS.values())
        numbers = iter(range(count))

        async def worker() -> None:
            for number in numbers:
                address = ADDRESSES[number % len(ADDRESSES)]
                self.ends[await self._one(kinds[number % len(kinds)](), address)] += 1

        await asyncio.gather(*(worker() for _ in range(at_a_time)))

    async def _one(self, words: bytes, address: str) -> str:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port, local_addr=(address, 0))
        except OSError as error:
            return f"refused: {error}"
        try:
            with suppress(OSError):
                writer.write(words)
            try:
                async with asyncio.timeout(self._hold_s):
                    while await reader.read(65_536):
                        pass
            except TimeoutError:
                return "held"
            except OSError:
                pass
            return "hung_up"
        finally:
            writer.transport.abort()


def descriptors(pid: int) -> int:
    """How many files a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def resident_bytes(pid: int) -> int:
    """How much memory a process has in use."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
