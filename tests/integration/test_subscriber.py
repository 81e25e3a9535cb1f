"""The Python client, a real node and a real store."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from eventbus import Subscriber
from eventbus.errors import AuthError, EventBusError, Forbidden, HandlerFailed, Superseded
from eventbus.ids import SessionId, UserId
from eventbus.store import SessionRecord
from eventbus.subscriber import Delivery, Dropped, State
from eventbus.tokens import make_token
from gateway.node import Node
from tests.support.subscribing import Log, background, running_node, token
from tests.support.waiting import until

PAGE = Path(__file__).parents[2] / "docs" / "subscriber.md"
ANN = UserId("ann")


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
async def node(server_url: str) -> AsyncIterator[Node]:
    quick = {"EVENTBUS_NACK_BASE_MS": "10", "EVENTBUS_MAX_DELIVERIES": "3"}
    async with running_node(server_url, **quick) as node:
        yield node


def client(node: Node, log: Log, **options: Any) -> Subscriber:
    given = {"token": token, "on_state": log.on_state, "on_error": log.errors.append, "session": "desk", **options}
    return Subscriber(f"http://127.0.0.1:{node.port}", **given)


@asynccontextmanager
async def following(node: Node, log: Log, **options: Any) -> AsyncIterator[Subscriber]:
    async with client(node, log, **options) as subscriber, background(lambda: log.follow(subscriber)):
        yield subscriber


async def publish(node: Node, *numbers: int, **more: Any) -> None:
    """Publishes events with these numbers, in this order."""
    await node.bus.publish_many([{"user": ANN, "type": "step", "data": {"number": n}, **more} for n in numbers])


async def session(node: Node, name: str = "desk") -> SessionRecord | None:
    return next((record for record in await node.store.sessions(ANN) if record.session == name), None)


async def nothing_pending(node: Node, name: str = "desk") -> None:
    async def released() -> bool:
        record = await session(node, name)
        return record is not None and record.pending == 0 and not record.unread

    await until(released, message=f"everything of session {name} is acked in the store")


@pytest.mark.requirement("R8")
@pytest.mark.parametrize("wire_format", ["json", "msgpack"])
async def test_each_event_comes_once_in_order_and_is_acked_in_the_store(node: Node, log: Log, wire_format: str) -> None:
    async with following(node, log, format=wire_format) as subscriber:
        await publish(node, *range(500))
        await log.has(*range(500))
        await nothing_pending(node)
        assert not any(delivery.redelivered for delivery in log.deliveries)
        assert subscriber.cursor == log.deliveries[-1].entry


@pytest.mark.requirement("R8")
async def test_what_is_not_handled_is_not_acked_in_the_store(node: Node, log: Log) -> None:
    async with client(node, log) as subscriber:
        await publish(node, 1, 2, 3)
        async for delivery in subscriber:
            log.take(delivery)
            if len(log.numbers) == 2:
                record = await until(lambda: session(node))
                assert record is not None
                assert record.pending >= 2
                break

    async def away() -> SessionRecord | None:
        record = await session(node)
        return record if record is not None and record.live is None else None

    record = await until(away, message="the node has left the session, with its acks")
    assert record is not None
    assert record.pending == 1


@pytest.mark.requirement("R7")
async def test_a_session_goes_on_where_the_process_before_it_stopped(node: Node, log: Log) -> None:
    async with following(node, log):
        await publish(node, 1, 2)
        await log.has(1, 2)
    await publish(node, 3, 4)
    async with following(node, log):
        await log.has(1, 2, 3, 4)
        await until(lambda: log.states[-1] is State.LIVE)
    assert [delivery.redelivered for delivery in log.deliveries] == [False] * 4


@pytest.mark.requirement("R7")
async def test_what_the_process_before_it_had_in_hand_comes_again_marked(node: Node, log: Log) -> None:
    async with client(node, log) as subscriber:
        await publish(node, 1)
        await anext(subscriber)
        await subscriber.close()
    async with following(node, log):
        await log.has(1)
    assert log.deliveries[0].redelivered


@pytest.mark.requirement("R7")
async def test_a_session_that_is_gone_goes_on_from_the_clients_cursor(node: Node, log: Log) -> None:
    """R7, D9: not from `new`, which would skip what is retained."""
    async with following(node, log) as subscriber:
        await publish(node, 1, 2)
        await log.has(1, 2)
        cursor = subscriber.cursor
    await node.store.end_session(ANN, SessionId("desk"))
    await publish(node, 3)
    async with following(node, log, cursor=cursor):
        await log.has(1, 2, 3)


async def test_a_new_session_starts_where_it_is_told(node: Node, log: Log) -> None:
    await publish(node, 1, 2)
    late = Log()
    async with following(node, log), following(node, late, session="late", start="new") as new:
        await until(lambda: new.state is State.LIVE)
        assert new.cursor is not None
        await publish(node, 3)
        await log.has(1, 2, 3)
        await late.has(3)


async def test_a_session_without_a_name_is_given_one(node: Node, log: Log) -> None:
    async with following(node, log, session=None) as subscriber:
        await until(lambda: subscriber.session is not None)
        assert await session(node, str(subscriber.session)) is not None


async def test_a_filter_is_the_nodes_to_apply(node: Node, log: Log) -> None:
    async with following(node, log, filter={"runs": ["run_1"]}):
        await publish(node, 1)
        await publish(node, 2, run="run_1")
        await publish(node, 3, run="run_2")
        await publish(node, 4, run="run_1")
        await log.has(2, 4)
        await nothing_pending(node)


@pytest.mark.requirement("R9")
async def test_a_window_bounds_what_is_under_way(node: Node, log: Log) -> None:
    async with client(node, log, window=5) as subscriber:
        await publish(node, *range(100))
        await until(lambda: "held=5" in repr(subscriber))
        record = await session(node)
        assert record is not None
        assert record.pending == 5
        async with background(lambda: log.follow(subscriber)):
            await log.has(*range(100))


async def test_a_slow_handler_is_not_handed_its_event_again(server_url: str, log: Log) -> None:
    """The ack time-out is 3 s; `working` keeps the node waiting, for what is queued behind it too."""

    async def handle(delivery: Delivery) -> None:
        log.take(delivery)
        if len(log.numbers) == 1:
            begun = asyncio.get_running_loop().time()
            await until(lambda: asyncio.get_running_loop().time() - begun > 3.8)

    async with running_node(server_url, EVENTBUS_ACK_TIMEOUT_MS="3000") as node:
        subscriber = client(node, log, on_event=handle)
        async with background(subscriber.run):
            await publish(node, 1, 2, 3)
            await log.has(1, 2, 3)
            await nothing_pending(node)
            await subscriber.close()
        assert node.counters.events_redelivered == 0
    assert [delivery.delivery for delivery in log.deliveries] == [1, 1, 1]


async def test_a_handler_that_fails_is_tried_again_while_the_others_go_on(node: Node, log: Log) -> None:
    def handle(delivery: Delivery) -> None:
        if delivery.event.data["number"] == 2 and delivery.delivery < 3:
            raise ValueError("not yet")
        log.take(delivery)

    subscriber = client(node, log, on_event=handle, nack_delay_ms=50)
    async with background(subscriber.run):
        await publish(node, 1, 2, 3)
        await log.has(1, 3, 2)
        await nothing_pending(node)
        await subscriber.close()
    assert [type(error) for error in log.errors] == [HandlerFailed] * 2


@pytest.mark.requirement("R3")
async def test_an_event_that_always_fails_becomes_a_dead_letter_and_is_told(node: Node, log: Log) -> None:
    dropped: list[Dropped] = []

    def handle(delivery: Delivery) -> None:
        log.take(delivery)
        raise ValueError("never")

    subscriber = client(node, log, on_event=handle, on_dropped=dropped.append)
    async with background(subscriber.run):
        await publish(node, 1)
        await until(lambda: bool(dropped))
        await until(lambda: subscriber.cursor == log.deliveries[0].entry)
        await subscriber.close()
    assert dropped[0].reason == "dead_lettered"
    assert [delivery.delivery for delivery in log.deliveries] == [1, 2, 3]


async def test_a_session_that_is_opened_elsewhere_ends_here_for_good(node: Node, log: Log) -> None:
    """4504: the first does not come back, so the two do not fight."""
    async with client(node, log) as first:
        await until(lambda: first.state is State.LIVE)
        async with following(node, Log()) as second:
            with pytest.raises(Superseded):
                await anext(first)
            await until(lambda: second.state is State.LIVE)
            assert first.state is State.CLOSED


@pytest.mark.slow
@pytest.mark.requirement("R23")
async def test_a_token_is_refreshed_before_it_ends_and_the_connection_stays(node: Node, log: Log) -> None:
    given = 0

    async def fetch() -> str:
        nonlocal given
        given += 1
        return token(ttl_ms=4_000)

    async with following(node, log, token=fetch):
        await until(lambda: given == 4, timeout_ms=15_000)  # at 2 s, 4 s and 6 s: the first token has ended
        await publish(node, 1)
        await log.has(1)
    assert log.states.count(State.CONNECTING) == 1


@pytest.mark.requirement("R23")
@pytest.mark.parametrize(
    "bad,kind",
    [
        ("nonsense", AuthError),
        (make_token(user="ann", secret=b"another secret, of 32 bytes too.", now_ms=4_000_000_000_000), AuthError),
        (token(scopes=("publish",)), Forbidden),
    ],
)
async def test_a_bad_token_is_final_with_the_nodes_reason(
    node: Node, log: Log, bad: str, kind: type[EventBusError]
) -> None:
    async with client(node, log, token=bad) as subscriber:
        with pytest.raises(kind, match=r"HTTP 40[13]: .+"):
            await anext(subscriber)
    assert log.states == [State.CONNECTING, State.CLOSED]


# --- the page ---------------------------------------------------------------------------------------------------------

EXAMPLES = re.findall(r"^```python\n(.*?)^```\n\n```text\n(.*?)^```\n", PAGE.read_text(), re.MULTILINE | re.DOTALL)


def test_the_page_has_examples_that_run() -> None:
    assert len(EXAMPLES) >= 3


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
async def test_an_example_of_the_page_does_what_it_says(
    number: int, node: Node, server_url: str, tmp_path: Path
) -> None:
    program, output = EXAMPLES[number]
    script = tmp_path / "example.py"
    script.write_text(program)
    env = {
        **os.environ,
        "EVENTBUS_REDIS_URL": server_url,
        "BUS_URL": f"http://127.0.0.1:{node.port}",
        "BUS_TOKEN": token("ada"),
        "PYTHONPATH": str(PAGE.parents[1]),
    }

    def run() -> tuple[str, str, int]:
        command = [sys.executable, "-W", "error", str(script)]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=30, check=False)
        return done.stderr, done.stdout, done.returncode

    assert await asyncio.to_thread(run) == ("", output, 0)
