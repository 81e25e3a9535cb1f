"""A node whose machine's clock is wrong by minutes does as the others do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from eventbus import Bus, Subscriber
from eventbus.clock import SystemClock
from eventbus.commands.command import Question
from eventbus.config import StoreSettings
from eventbus.ids import RunId, UserId
from eventbus.store.inbound import Ask
from eventbus.store.redis_store import RedisStore
from gateway.config import NodeSettings
from gateway.node import Node
from tests.support.subscribing import SECRET, token

ANN, RUN = UserId("ann"), RunId("run_1")
MINUTE_MS = 60_000


@pytest.fixture
async def redis_store(server_url: str) -> AsyncIterator[RedisStore]:
    store = RedisStore(server_url, StoreSettings())
    yield store
    await store.aclose()


class WrongClock(SystemClock):
    """The machine's clock, set wrongly."""

    __slots__ = ("_off_ms",)

    def __init__(self, off_ms: int) -> None:
        self._off_ms = off_ms

    def now_ms(self) -> int:
        return super().now_ms() + self._off_ms


@asynccontextmanager
async def wrong_node(server_url: str, off_ms: int) -> AsyncIterator[str]:
    """A node on a machine whose clock is off by so much; its address."""
    env = {"EVENTBUS_REDIS_URL": server_url, "EVENTBUS_JWT_SECRET": SECRET, "EVENTBUS_PORT": "0"}
    node = Node(NodeSettings.from_env(env, node="n1"), clock=WrongClock(off_ms))
    await node.start()
    try:
        yield f"http://127.0.0.1:{node.port}"
    finally:
        await node.aclose()


@pytest.mark.requirement("R1")
@pytest.mark.parametrize("off_ms", [-5 * MINUTE_MS, 5 * MINUTE_MS])
async def test_an_event_expires_when_the_stores_clock_says_so(server_url: str, off_ms: int) -> None:
    got = []
    async with wrong_node(server_url, off_ms) as url:
        async with Bus(server_url) as bus:
            now_ms = SystemClock().now_ms()
            await bus.publish(user="ann", type="note", data={"is": "over"}, expires_ms=now_ms - MINUTE_MS)
            await bus.publish(user="ann", type="note", data={"is": "in time"}, expires_ms=now_ms + MINUTE_MS)
        async with asyncio.timeout(10), Subscriber(url, token(), start="earliest") as subscriber:
            async for delivery in subscriber:
                got.append(delivery.event.data["is"])
                break
    assert got == ["in time"]


@pytest.mark.requirement("R20")
@pytest.mark.parametrize("off_ms", [-5 * MINUTE_MS, 5 * MINUTE_MS])
async def test_a_device_that_comes_is_asked_what_is_open_by_the_stores_clock(
    server_url: str, redis_store: RedisStore, off_ms: int
) -> None:
    async with wrong_node(server_url, off_ms) as url, Bus(server_url) as bus:
        for question, left_ms in (("over", -MINUTE_MS), ("open", MINUTE_MS)):
            body = Question(text="Which one?").packed()
            ask = Ask(user=ANN, run=RUN, question=question, body=body, options=(), timeout_ms=MINUTE_MS)
            assert await redis_store.ask(ask) is not None
            data = {"question": question, "text": "Which one?"}
            expires_ms = SystemClock().now_ms() + left_ms
            receipt = await bus.publish(user=ANN, type="agent_question", data=data, run=RUN, expires_ms=expires_ms)
            await redis_store.question_published(ANN, RUN, question, receipt.entry)
        async with asyncio.timeout(10), Subscriber(url, token(), start="new") as subscriber:
            async for delivery in subscriber:  # it is not given them but reminded of them
                assert delivery.event.data["question"] == "open"
                break
