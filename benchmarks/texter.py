"""Either end of token streams: one process writes them as an agent does, another follows them as applications do."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import Any

from benchmarks.roles import follow_orders
from eventbus import Bus, Chunk, Subscriber
from eventbus.clock import SystemClock
from eventbus.subscriber import State
from eventbus.tokens import make_token

DELTA: str = "token "
READY_S = 60.0


class Texter:
    """`open` and `write` in one process, `follow` and `result` in another."""

    def __init__(self) -> None:
        self._stack = AsyncExitStack()
        self._bus: Bus | None = None
        self._subscribers: list[Subscriber] = []
        self._got: list[int] = []
        self._finals = self._chunks = self._wanted = 0
        self._all = asyncio.Event()

    async def open(self, url: str) -> Mapping[str, Any]:
        """Connect to the store."""
        self._bus = await self._stack.enter_async_context(Bus(url))
        return {}

    async def write(self, users: int, deltas: int, rate: float) -> Mapping[str, Any]:
        """One run a user, each with one stream, all at once.

        Args:
            users: how many.
            deltas: calls of `write` for each.
            rate: calls a second for each; 0: as fast as they are taken.
        """
        began_ns = time.monotonic_ns()
        await asyncio.gather(*(self._write(f"user{number}", deltas, rate) for number in range(users)))
        return {"began_ns": began_ns, "written_ns": time.monotonic_ns()}

    async def _write(self, user: str, deltas: int, rate: float) -> None:
        assert self._bus is not None
        async with self._bus.run(user=user, agent="bench") as run, run.stream() as stream:
            began = time.monotonic()
            for number in range(deltas):
                await stream.write(DELTA)
                if rate:
                    await asyncio.sleep(max(0.0, began + number / rate - time.monotonic()))
                elif number % 20 == 19:
                    await asyncio.sleep(0)

    async def follow(self, url: str, secret: str, users: int, sessions: int) -> Mapping[str, Any]:
        """Open sessions, so many for each user, and wait until all are live."""
        for number in range(users):
            token = make_token(
                user=f"user{number}", secret=secret.encode(), now_ms=SystemClock().now_ms(), ttl_ms=3_600_000
            )
            for session in range(sessions):
                place = len(self._got)
                self._got.append(0)
                subscriber = Subscriber(url, token, session=f"s{session}", on_text=self._taker(place), on_event=_ignore)
                self._subscribers.append(subscriber)
                task = asyncio.create_task(subscriber.run())
                self._stack.push_async_callback(asyncio.gather, task)  # its failure is the benchmark's
        async with asyncio.timeout(READY_S):
            while not all(subscriber.state is State.LIVE for subscriber in self._subscribers):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        return {}

    def _taker(self, place: int) -> Any:
        def take(chunk: Chunk) -> None:
            self._got[place] += len(chunk.text)
            self._chunks += 1
            self._finals += chunk.final
            if self._finals >= self._wanted > 0:
                self._all.set()

        return take

    async def expect(self, finals: int) -> Mapping[str, Any]:
        """Count anew, up to so many ends of streams."""
        self._got = [0] * len(self._got)
        self._finals = self._chunks = 0
        self._wanted = finals
        self._all.clear()
        return {}

    async def result(self, timeout_s: float) -> Mapping[str, Any]:
        """Wait for the ends; what came of text since `expect`."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._all.wait()
        except TimeoutError:
            pass
        return {
            "reached_ns": time.monotonic_ns(),
            "characters": sum(self._got),
            "finals": self._finals,
            "chunks": self._chunks,
        }


def _ignore(_delivery: object) -> None:
    """Acked by having returned."""


def _orders() -> Mapping[str, Any]:
    texter = Texter()
    return {
        "open": texter.open,
        "write": texter.write,
        "follow": texter.follow,
        "expect": texter.expect,
        "result": texter.result,
    }


if __name__ == "__main__":
    follow_orders(_orders)
