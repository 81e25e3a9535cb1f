"""Either end of agents' runs: one process has the agents, another follows them as applications do."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from typing import Any

from benchmarks.report import percentile
from benchmarks.roles import follow_orders
from eventbus import Bus, Subscriber
from eventbus.clock import SystemClock
from eventbus.events import agent_completed, agent_started, agent_thinking, tool_completed, tool_executing
from eventbus.subscriber import Delivery, State
from eventbus.tokens import make_token

EVENTS_A_RUN = 5
READY_S = 60.0
TEXT, TOOL, ARGUMENTS, RESULT = "Looking for trains to Rome", "search", {"to": "Rome"}, ["the night train"]
PLAIN = (
    agent_started(agent="bench"),
    agent_thinking(text=TEXT),
    tool_executing(tool=TOOL, call_id="call_1", arguments=ARGUMENTS),
    tool_completed(tool=TOOL, call_id="call_1", result=RESULT),
    agent_completed(outcome="success", result="done"),
)
TYPES = [kind for kind, _ in PLAIN]


class Agents:
    """Runs of the five events, or the same events without a run."""

    def __init__(self) -> None:
        self._stack = AsyncExitStack()
        self._bus: Bus | None = None
        self._errors: list[str] = []
        self._took_ms: list[float] = []

    async def open(self, url: str) -> Mapping[str, Any]:
        """Connect to the store."""
        self._bus = await self._stack.enter_async_context(Bus(url))
        return {}

    async def work(self, how: str, runs: int, rate: float, users: int) -> Mapping[str, Any]:
        """Begin runs at a rate, for one user after the other; returns when all have ended.

        Args:
            how: `run`, or `publish`: the same events without a run.
            runs: how many.
            rate: how many a second.
            users: of how many users.
        """
        once = {"run": self._run, "publish": self._publish}[how]
        self._errors.clear()
        self._took_ms.clear()
        began_ns = time.monotonic_ns()
        async with asyncio.TaskGroup() as group:
            for number in range(runs):
                late_s = began_ns / 1e9 + number / rate - time.monotonic()
                if late_s > 0:
                    await asyncio.sleep(late_s)
                group.create_task(self._timed(once, f"user{number % users}"))
        return {
            "began_ns": began_ns,
            "errors": self._errors[:5],
            "took_ms": {"p50": percentile(sorted(self._took_ms), 0.5), "p99": percentile(sorted(self._took_ms), 0.99)},
        }

    async def _timed(self, once: Callable[[str], Awaitable[None]], user: str) -> None:
        began_ns = time.monotonic_ns()
        try:
            await once(user)
        except Exception as error:
            self._errors.append(f"{type(error).__name__}: {error}")
        self._took_ms.append((time.monotonic_ns() - began_ns) / 1e6)

    async def _run(self, user: str) -> None:
        assert self._bus is not None
        async with self._bus.run(user=user, agent="bench") as run:
            await run.thinking(TEXT)
            async with run.tool(TOOL, ARGUMENTS) as tool:
                tool.result = RESULT
            run.result = "done"

    async def _publish(self, user: str) -> None:
        assert self._bus is not None
        name = f"run_{time.monotonic_ns()}"
        await asyncio.gather(*(self._bus.publish(user=user, run=name, type=kind, data=data) for kind, data in PLAIN))


class Users:
    """One session of each user; counts runs, and sees what is missing or out of order."""

    def __init__(self) -> None:
        self._stack = AsyncExitStack()
        self._subscribers: list[Subscriber] = []
        self._types: dict[str, list[str]] = {}
        self._wrong: list[str] = []
        self._events = self._wanted = 0
        self._all = asyncio.Event()

    async def follow(self, url: str, secret: str, users: int) -> Mapping[str, Any]:
        """Open the sessions, and wait until all are live."""
        for number in range(users):
            now_ms = SystemClock().now_ms()
            token = make_token(user=f"user{number}", secret=secret.encode(), now_ms=now_ms, ttl_ms=3_600_000)
            subscriber = Subscriber(url, token, session="tab", on_event=self._take)
            self._subscribers.append(subscriber)
            task = asyncio.create_task(subscriber.run())
            self._stack.push_async_callback(asyncio.gather, task)  # its failure is the benchmark's
        async with asyncio.timeout(READY_S):
            while not all(subscriber.state is State.LIVE for subscriber in self._subscribers):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        return {}

    def _take(self, delivery: Delivery) -> None:
        event = delivery.event
        types = self._types.setdefault(event.run or "", [])
        types.append(event.type)
        if event.type != TYPES[min(len(types), EVENTS_A_RUN) - 1]:
            self._wrong.append(f"{event.type} is number {len(types)} of {event.run}")
        if event.seq not in (None, len(types)):
            self._wrong.append(f"seq {event.seq} is number {len(types)} of {event.run}")
        self._events += 1
        if self._events >= self._wanted > 0:
            self._all.set()

    async def expect(self, events: int) -> Mapping[str, Any]:
        """Count anew, up to so many events."""
        self._types.clear()
        self._wrong.clear()
        self._events, self._wanted = 0, events
        self._all.clear()
        return {}

    async def result(self, timeout_s: float) -> Mapping[str, Any]:
        """Wait for them; what came since `expect`."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._all.wait()
        except TimeoutError:
            pass
        whole = sum(types == TYPES for types in self._types.values())
        return {"reached_ns": time.monotonic_ns(), "events": self._events, "whole": whole, "wrong": self._wrong[:5]}


def _orders() -> Mapping[str, Any]:
    agents, users = Agents(), Users()
    return {
        "open": agents.open,
        "work": agents.work,
        "follow": users.follow,
        "expect": users.expect,
        "result": users.result,
    }


if __name__ == "__main__":
    follow_orders(_orders)
