"""What a command costs the process that sends it: the own link, redis-py's connection and redis-py's pipeline."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import uvloop
from redis.asyncio import Redis
from redis.asyncio.connection import Connection

from benchmarks.events import EVENT_BYTES, envelope, padding
from benchmarks.report import per_event_us
from eventbus.embedded import EmbeddedServer, ServerBinary
from eventbus.errors import StoreError
from eventbus.store.command import Command, pack
from eventbus.store.links import Links

__all__ = ["measure_link"]

Values = dict[tuple[str, str], float]
Send = Callable[[int], Awaitable[None]]

BATCHES = (1, 10, 100)
"""How many commands leave in one write."""
SCRIPT = "return redis.call('SET', KEYS[1], ARGV[1])"


class _Contender:
    """Something that sends the same script call so many times in one write and waits for the answers.

    Args:
        url: the server.
        sha: of the script.
        body: its argument.
    """

    name = ""

    def __init__(self, url: str, sha: str, body: bytes) -> None:
        self.url = url
        self.words: tuple[str | bytes | int, ...] = ("EVALSHA", sha, 1, "bench:{1}", body)

    async def open(self) -> None:
        """Connect."""

    async def send(self, count: int) -> None:
        """Send and wait."""

    async def aclose(self) -> None:
        """Let go of the connection."""


class _OwnLink(_Contender):
    name = "own link"

    async def open(self) -> None:
        self.links = Links(self.url, timeout_ms=5_000)
        self.command: Command[Any] = Command(self.words, lambda reply, _primary: reply)

    async def send(self, count: int) -> None:
        for future in [self.links.execute(self.command) for _ in range(count)]:
            if isinstance(answer := await future, StoreError):
                raise answer

    async def aclose(self) -> None:
        await self.links.aclose()


class _OwnLinkTogether(_OwnLink):
    name = "own link, one future"

    async def send(self, count: int) -> None:
        for answer in await self.links.execute_all([self.command] * count):
            if isinstance(answer, StoreError):
                raise answer


class _Connection(_Contender):
    name = "redis-py's connection"

    async def open(self) -> None:
        host, _, port = self.url.removeprefix("redis://").partition("/")[0].partition(":")
        self.connection = Connection(host=host, port=int(port), socket_timeout=None, protocol=2)
        await self.connection.connect()  # type: ignore[no-untyped-call]

    async def send(self, count: int) -> None:
        packed = b"".join([pack(self.words) for _ in range(count)])
        await self.connection.send_packed_command(packed, check_health=False)
        for _ in range(count):
            await self.connection.read_response()

    async def aclose(self) -> None:
        await self.connection.disconnect()


class _Pipeline(_Contender):
    name = "redis-py's pipeline"

    async def open(self) -> None:
        self.client = Redis.from_url(self.url, protocol=2)

    async def send(self, count: int) -> None:
        pipeline = self.client.pipeline(transaction=False)
        for _ in range(count):
            pipeline.execute_command(*self.words)
        await pipeline.execute()

    async def aclose(self) -> None:
        await self.client.aclose()


CONTENDERS: tuple[type[_Contender], ...] = (_OwnLink, _OwnLinkTogether, _Connection, _Pipeline)


def measure_link(binary: ServerBinary, *, commands: int, say: Callable[[str], object]) -> list[tuple[str, Values]]:
    """The CPU time of the client for a command, for each contender and loop, one right after the other.

    Args:
        binary: the server.
        commands: how many commands a figure is made of.
        say: told what goes on.

    Returns:
        The values by the name of the case.
    """
    found: list[tuple[str, Values]] = []
    with tempfile.TemporaryDirectory() as directory, EmbeddedServer(Path(directory), binary=binary) as server:
        for loop_name, factory in (("uvloop", uvloop.new_event_loop), ("asyncio", asyncio.new_event_loop)):
            for batch in BATCHES:
                values: Values = {}
                for contender in CONTENDERS:
                    with asyncio.Runner(loop_factory=factory) as runner:
                        spent_ns = runner.run(_spent_ns(contender, server.url, batch, commands))
                    values[contender.name, "us/command"] = per_event_us(spent_ns, commands)
                name = "one at a time" if batch == 1 else f"{batch} in one write"
                say(f"link: {loop_name}, {name}: {values}")
                found.append((f"{loop_name}, {name}", values))
    return found


async def _spent_ns(kind: type[_Contender], url: str, batch: int, commands: int) -> int:
    async with Redis.from_url(url, protocol=2) as client:
        sha = await client.script_load(SCRIPT)
    contender = kind(url, str(sha), envelope(padding(EVENT_BYTES)))
    await contender.open()
    try:
        for _ in range(max(1, commands // batch // 10)):
            await contender.send(batch)
        before_ns = time.process_time_ns()
        for _ in range(commands // batch):
            await contender.send(batch)
        return time.process_time_ns() - before_ns
    finally:
        await contender.aclose()
