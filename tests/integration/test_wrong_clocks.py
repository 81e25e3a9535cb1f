"""A node whose machine's clock is wrong by minutes does as the others do."""

from __future__ import annotations

import asyncio

import pytest

from eventbus import Bus, Subscriber
from eventbus.clock import SystemClock
from gateway.config import NodeSettings
from gateway.node import Node
from tests.support.subscribing import SECRET, token

MINUTE_MS = 60_000


class WrongClock(SystemClock):
    """The machine's clock, set wrongly."""

    __slots__ = ("_off_ms",)

    def __init__(self, off_ms: int) -> None:
        self._off_ms = off_ms

    def now_ms(self) -> int:
        return super().now_ms() + self._off_ms


@pytest.mark.requirement("R1")
@pytest.mark.parametrize("off_ms", [-5 * MINUTE_MS, 5 * MINUTE_MS])
async def test_an_event_expires_when_the_stores_clock_says_so(server_url: str, off_ms: int) -> None:
    env = {"EVENTBUS_REDIS_URL": server_url, "EVENTBUS_JWT_SECRET": SECRET, "EVENTBUS_PORT": "0"}
    node = Node(NodeSettings.from_env(env, node="n1"), clock=WrongClock(off_ms))
    await node.start()
    got = []
    try:
        async with Bus(server_url) as bus:
            now_ms = SystemClock().now_ms()
            await bus.publish(user="ann", type="note", data={"is": "over"}, expires_ms=now_ms - MINUTE_MS)
            await bus.publish(user="ann", type="note", data={"is": "in time"}, expires_ms=now_ms + MINUTE_MS)
        url = f"http://127.0.0.1:{node.port}"
        async with asyncio.timeout(10), Subscriber(url, token(), start="earliest") as subscriber:
            async for delivery in subscriber:
                got.append(delivery.event.data["is"])
                break
    finally:
        await node.aclose()
    assert got == ["in time"]
