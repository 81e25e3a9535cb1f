"""The agents' side: one process that publishes at a fixed rate, each event with a call of its own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from benchmarks.events import padding
from benchmarks.roles import follow_orders
from eventbus import Bus

MOST_WAITING = 4_000
"""Publishes under way; a bus refuses more than 10,000."""


class Agents:
    """A bus, and what it published."""

    def __init__(self) -> None:
        self._bus: Bus | None = None
        self._errors: list[str] = []
        self._numbers: list[int] = []
        self._stored = 0
        self._begun = 0
        self._all_stored = asyncio.Event()

    async def open(self, url: str, users: int) -> Mapping[str, Any]:
        """Connect; each user's events are counted from 1."""
        self._bus = await Bus(url).__aenter__()
        self._numbers = [0] * users
        return {}

    async def close(self) -> Mapping[str, Any]:
        """Disconnect."""
        if self._bus is not None:
            await self._bus.aclose()
        return {}

    async def publish(self, rate: float, events: int, body_bytes: int) -> Mapping[str, Any]:
        """Publish at a rate, to one user after the other; returns when all is stored or has failed.

        What is late is made up for at once, so the rate is that of the whole.
        """
        loop = asyncio.get_running_loop()
        pad, users = padding(body_bytes), len(self._numbers)
        self._stored = self._begun = 0
        self._errors.clear()
        tasks: set[asyncio.Task[None]] = set()
        began_ns, late_s = time.monotonic_ns(), 0.0
        while self._begun < events:
            if len(tasks) > MOST_WAITING:  # the store does not keep up: the rate is not kept, but nothing is refused
                await asyncio.sleep(0.001)
                continue
            passed = (time.monotonic_ns() - began_ns) / 1e9
            due = min(events, int(passed * rate) + 1, self._begun + MOST_WAITING - len(tasks) + 1)
            late_s = max(late_s, (due - self._begun) / rate)
            for number in range(self._begun, due):
                task = loop.create_task(self._publish(number % users, pad))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            self._begun = due
            await asyncio.sleep(0.001)
        sent_ns = time.monotonic_ns()
        if tasks:
            await asyncio.wait(tasks)
        return {
            "stored": self._stored,
            "errors": self._errors[:5],
            "began_ns": began_ns,
            "sent_ns": sent_ns,
            "stored_ns": time.monotonic_ns(),
            "late_ms": late_s * 1000,
        }

    async def _publish(self, user: int, pad: str) -> None:
        assert self._bus is not None
        self._numbers[user] += 1
        data = {"t": time.monotonic_ns(), "n": self._numbers[user], "pad": pad}
        try:
            await self._bus.publish(user=f"user{user}", type="bench", data=data)
        except Exception as error:
            self._errors.append(f"{type(error).__name__}: {error}")
        else:
            self._stored += 1


def _orders() -> Mapping[str, Any]:
    agents = Agents()
    return {"open": agents.open, "close": agents.close, "publish": agents.publish}


if __name__ == "__main__":
    follow_orders(_orders)
