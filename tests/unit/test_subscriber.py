"""The Python client against a node whose every frame the test writes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from eventbus import Subscriber
from eventbus.client.callbacks import MAX_UNDER_WAY
from eventbus.errors import (
    AuthError,
    CallbackFailed,
    ClosedForGood,
    EventBusError,
    Forbidden,
    HandlerFailed,
    InvalidField,
    NodeFault,
    SessionEnded,
    SubscriberError,
    Superseded,
    TokenFailed,
)
from eventbus.event import event_fields
from eventbus.ids import EntryId
from eventbus.subscriber import Delivery, Dropped, Gap, State, StateDetail
from eventbus.testing import ManualClock
from tests.support.subscribing import Log, Peer, ScriptedNode, background, item
from tests.support.waiting import until


@pytest.fixture
async def node() -> AsyncIterator[ScriptedNode]:
    async with ScriptedNode() as node:
        yield node


@pytest.fixture
def log() -> Log:
    return Log()


def client(node: ScriptedNode, log: Log, **options: Any) -> Subscriber:
    """A subscriber that does not wait before it comes back, unless the test says so."""
    given = {"token": "jwt", "on_state": log.on_state, "on_error": log.errors.append, "random": lambda: 0.0, **options}
    return Subscriber(node.url, **given)


@asynccontextmanager
async def following(node: ScriptedNode, log: Log, **options: Any) -> AsyncIterator[tuple[Subscriber, Peer]]:
    """A subscriber whose events go into the log, and its first connection, which was greeted."""
    async with client(node, log, **options) as subscriber, background(lambda: log.follow(subscriber)):
        peer = await node.peer()
        await peer.greet()
        yield subscriber, peer


async def turns() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


# --- hello and welcome ------------------------------------------------------------------------------------------------


async def test_the_token_is_in_the_header_and_the_hello_says_what_is_wanted(node: ScriptedNode, log: Log) -> None:
    options = {"session": "s-1", "start": "new", "window": 7, "filter": {"types": ["step"]}}
    async with client(node, log, **options):
        peer = await node.peer()
        hello = await peer.frame("hello")
    assert hello == {"op": "hello", "session": "s-1", "start": "new", "window": 7, "filter": {"types": ["step"]}}
    assert (peer.path, peer.headers["Authorization"]) == ("/v1/connect", "Bearer jwt")
    assert "Sec-WebSocket-Extensions" not in peer.headers


@pytest.mark.parametrize("wire_format", ["json", "msgpack"])
async def test_both_formats_carry_the_same(node: ScriptedNode, log: Log, wire_format: str) -> None:
    async with following(node, log, format=wire_format) as (subscriber, peer):
        await peer.events(item(1), item(2, delivery=3))
        await peer.acks(1, 2)
        assert subscriber.session == "s1"
        assert subscriber.cursor == "1000-2"
    first, second = log.deliveries
    assert event_fields(first.event)["data"] == {"number": 1}
    assert (first.entry, first.delivery, first.redelivered) == ("1000-1", 1, False)
    assert (second.entry, second.delivery, second.redelivered) == ("1000-2", 3, True)


async def test_states_tell_the_way_to_live_and_back(node: ScriptedNode, log: Log) -> None:
    async with following(node, log) as (_, peer):
        await peer.events(item(1))
        await peer.send("caught_up", cursor="1000-1")
        await until(lambda: State.LIVE in log.states)
        peer.cut()
        await (await node.peer(2)).frame("hello")
    way = [State.CONNECTING, State.OPEN, State.CATCHING_UP, State.LIVE, State.WAITING, State.CONNECTING, State.OPEN]
    assert log.states == [*way, State.CLOSED]


async def test_live_comes_after_what_was_stored_has_been_handled(node: ScriptedNode, log: Log) -> None:
    async with client(node, log) as subscriber:
        peer = await node.peer()
        await peer.greet()
        await peer.events(item(1))
        await peer.send("caught_up", cursor="1000-1")
        assert (await anext(subscriber)).entry == "1000-1"
        await turns()
        assert log.states[-1] is State.CATCHING_UP
        async with background(lambda: log.follow(subscriber)):
            await until(lambda: subscriber.state is State.LIVE)


async def test_live_comes_at_once_when_nothing_was_stored(node: ScriptedNode, log: Log) -> None:
    async with client(node, log) as subscriber:
        peer = await node.peer()
        await peer.greet()
        await peer.send("caught_up", cursor="1000-9")
        await until(lambda: subscriber.state is State.LIVE)
        assert subscriber.cursor == "1000-9"


# --- acks -------------------------------------------------------------------------------------------------------------


@pytest.mark.requirement("R8")
async def test_an_event_is_acked_when_the_next_is_asked_for_and_not_before(node: ScriptedNode, log: Log) -> None:
    async with client(node, log) as subscriber:
        peer = await node.peer()
        await peer.greet()
        await peer.events(item(1), item(2))
        await anext(subscriber)
        await turns()
        assert peer.acked == []
        await anext(subscriber)
        await peer.acks(1)


@pytest.mark.requirement("R8")
async def test_a_handler_is_acked_after_it_has_returned(node: ScriptedNode, log: Log) -> None:
    release = asyncio.Event()

    async def handle(delivery: Delivery) -> None:
        log.take(delivery)
        await release.wait()

    subscriber = client(node, log, on_event=handle)
    async with background(subscriber.run):
        peer = await node.peer()
        await peer.greet()
        await peer.events(item(1), item(2))
        await log.has(1)
        await turns()
        assert peer.acked == []
        release.set()
        await peer.acks(1, 2)
        await subscriber.close()
    assert log.numbers == [1, 2]


async def test_a_handler_may_be_an_ordinary_function(node: ScriptedNode, log: Log) -> None:
    subscriber = client(node, log, on_event=log.take)
    async with background(subscriber.run):
        peer = await node.peer()
        await peer.greet()
        await peer.events(item(1))
        await peer.acks(1)
        await subscriber.close()
    assert log.numbers == [1]


async def test_the_acks_of_a_turn_share_a_frame(node: ScriptedNode, log: Log) -> None:
    async with following(node, log) as (_, peer):
        await peer.events(*[item(number) for number in range(1, 201)])
        await peer.acks(*range(1, 201))
        assert len(peer.all("ack")) <= 2


async def test_an_early_ack_goes_out_at_once_and_only_once(node: ScriptedNode, log: Log) -> None:
    async with client(node, log) as subscriber:
        peer = await node.peer()
        await peer.greet()
        await peer.events(item(1), item(2))
        delivery = await anext(subscriber)
        await delivery.ack()
        await peer.acks(1)
        await delivery.nack("too late")
        await anext(subscriber)
    assert peer.acked == ["1000-1", "1000-2"]
    assert peer.all("nack") == []


async def test_a_nack_asks_for_redelivery_and_the_event_is_handed_over_again(node: ScriptedNode, log: Log) -> None:
    async with client(node, log) as subscriber:
        peer = await node.peer()
        await peer.greet()
        await peer.events(item(1), item(2))
        delivery = await anext(subscriber)
        with pytest.raises(InvalidField, match="delay_ms"):
            await delivery.nack(delay_ms=-1)
        await delivery.nack("not now", delay_ms=50)
        assert await peer.frame("nack") == {"op": "nack", "id": "1000-1", "reason": "not now", "delay_ms": 50}
        assert (await anext(subscriber)).entry == "1000-2"
        assert subscriber.cursor is None
        await peer.events(item(1, delivery=2))
        again = await anext(subscriber)
        assert (again.entry, again.redelivered) == ("1000-1", True)
        await peer.acks(2)


async def test_leaving_the_block_well_acks_the_event_in_hand(node: ScriptedNode, log: Log) -> None:
    async with client(node, log) as subscriber:
        peer = await node.peer()
        await peer.greet()
        await peer.events(item(1), item(2))
        async for delivery in subscriber:
            log.take(delivery)
            break
    assert await peer.gone() == 1000
    assert peer.acked == ["1000-1"]


async def test_a_block_that_raises_nacks_the_event_in_hand(node: ScriptedNode, log: Log) -> None:
    async def consume() -> None:
        async with client(node, log, nack_delay_ms=7) as subscriber:
            async for _ in subscriber:
                raise KeyError("boom")

    consuming = asyncio.ensure_future(consume())
    peer = await node.peer()
    await peer.greet()
    await peer.events(item(1))
    with pytest.raises(KeyError, match="boom"):
        await consuming
    assert await peer.gone() == 1000
    assert peer.all("nack") == [{"op": "nack", "id": "1000-1", "reason": "'boom'", "delay_ms": 7}]
    assert peer.acked == []


async def test_a_cancelled_block_leaves_the_event_in_hand_and_stores_the_acks_before_it(
    node: ScriptedNode, log: Log
) -> None:
    async def consume() -> None:
        async with client(node, log) as subscriber:
            async for delivery in subscriber:
                log.take(delivery)
                if delivery.entry == "1000-2":
                    await asyncio.Event().wait()

    async with background(consume) as task:
        peer = await node.peer()
        await peer.greet()
        await peer.events(item(1), item(2))
        await log.has(1, 2)
        task.cancel()
        assert await peer.gone() == 1000
    assert task.cancelled()
    assert peer.acked == ["1000-1"]
    assert peer.all("nack") == []


async def test_a_cancelled_wait_for_the_next_event_takes_nothing(node: ScriptedNode, log: Log) -> None:
    async with client(node, log) as subscriber:
        peer = await node.peer()
        await peer.greet()
        waiting = asyncio.ensure_future(anext(subscriber))
        await turns()
        waiting.cancel()
        await asyncio.wait({waiting})
        await peer.events(item(1))
        assert (await anext(subscriber)).entry == "1000-1"


# --- handlers that fail -----------------------------------------------------------------------------------------------


def failing_once(log: Log, number: int) -> Callable[[Delivery], None]:
    failed = False

    def handle(delivery: Delivery) -> None:
        nonlocal failed
        if delivery.event.data["number"] == number and not failed:
            failed = True
            raise ValueError("no luck")
        log.take(delivery)

    return handle


async def test_a_failed_event_is_nacked_and_the_ones_behind_it_go_on(node: ScriptedNode, log: Log) -> None:
    subscriber = client(node, log, on_event=failing_once(log, 1), nack_delay_ms=5)
    async with background(subscriber.run):
        peer = await node.peer()
        await peer.greet()
        await peer.events(item(1), item(2))
        assert await peer.frame("nack") == {"op": "nack", "id": "1000-1", "reason": "no luck", "delay_ms": 5}
        await log.has(2)
        await peer.events(item(1, delivery=2))
        await log.has(2, 1)
        await peer.acks(2, 1)
        await subscriber.close()
    (error,) = log.errors
    assert isinstance(error, HandlerFailed)
    assert error.event.id == "e1"  # type: ignore[attr-defined]
    assert isinstance(error.__cause__, ValueError)


async def test_an_error_whose_words_are_no_unicode_nacks_and_ends_nothing(node: ScriptedNode, log: Log) -> None:
    def handle(delivery: Delivery) -> None:
        log.take(delivery)
        if delivery.event.data["number"] == 1:
            raise OSError("no such file: caf\udce9")

    subscriber = client(node, log, on_event=handle)
    async with background(subscriber.run):
        peer = await node.peer()
        await peer.greet()
        await peer.events(item(1), item(2))
        assert (await peer.frame("nack"))["reason"] == "no such file: caf?"
        await log.has(1, 2)
        await peer.acks(2)
        await subscriber.close()


async def test_a_failed_event_may_be_skipped(node: ScriptedNode, log: Log) -> None:
    subscriber = client(node, log, on_event=failing_once(log, 1), failed_events="skip")
    async with background(subscriber.run):
        peer = await node.peer()
        await peer.greet()
        await peer.events(item(1), item(2))
        await peer.acks(1, 2)
        await subscriber.close()
    assert log.numbers == [2]
    assert [type(error) for error in log.errors] == [HandlerFailed]


# --- reconnecting -----------------------------------------------------------------------------------------------------


@pytest.mark.requirement("R8")
@pytest.mark.parametrize("wire_format", ["json", "msgpack"])
async def test_what_comes_again_after_a_cut_is_handed_over_once_and_acked_again(
    node: ScriptedNode, log: Log, wire_format: str
) -> None:
    async with following(node, log, format=wire_format) as (_, peer):
        await peer.events(item(1), item(2))
        await log.has(1, 2)
        peer.cut()
        second = await node.peer(2)
        hello = await second.greet(resumed=True)
        assert (hello["session"], hello["cursor"], hello["epoch"]) == ("s1", "1000-2", "epoch-1")
        assert "start" not in hello
        await second.events(item(1, delivery=2), item(2, delivery=2), item(3))
        await second.acks(1, 2, 3)
    assert log.numbers == [1, 2, 3]


@pytest.mark.requirement("R8")
async def test_what_was_received_before_a_cut_is_handed_over_after_it_without_waiting(
    node: ScriptedNode, log: Log
) -> None:
    async with client(node, log) as subscriber:
        peer = await node.peer()
        await peer.greet()
        await peer.events(item(1), item(2), item(3))
        log.take(await anext(subscriber))
        peer.cut()
        second = await node.peer(2)
        hello = await second.frame("hello")
        assert "cursor" not in hello  # nothing is handled yet
        async with background(lambda: log.follow(subscriber)):
            await log.has(1, 2, 3)
            await second.greet(resumed=True, pending=3)
            await second.events(item(1, delivery=2), item(2, delivery=2), item(3, delivery=2))
            await second.acks(1, 2, 3)
    assert log.numbers == [1, 2, 3]


@pytest.mark.requirement("R8")
async def test_an_event_stored_twice_by_a_failover_is_handed_over_once(node: ScriptedNode, log: Log) -> None:
    """R8, D4, D5: ids run lower after a rollback, and the lost event comes again under another one."""
    async with following(node, log) as (subscriber, peer):
        await peer.events(item(8), item(9))
        await peer.acks(8, 9)
        peer.cut()
        second = await node.peer(2)
        await second.greet(resumed=True, epoch="epoch-2")
        await second.send("gap", reason="rollback", after="1000-8")
        await second.events(item(9, entry=3), item(10, entry=4))
        await second.acks(3, 4)
        assert subscriber.cursor == "1000-8"
    assert log.numbers == [8, 9, 10]


async def test_an_event_in_hand_during_a_cut_is_acked_when_it_comes_again(node: ScriptedNode, log: Log) -> None:
    async with client(node, log) as subscriber:
        peer = await node.peer()
        await peer.greet()
        await peer.events(item(1))
        await anext(subscriber)
        peer.cut()
        second = await node.peer(2)
        await second.greet(resumed=True)
        await second.events(item(1, delivery=2), item(2))
        assert (await anext(subscriber)).entry == "1000-2"
        await second.acks(1)


@pytest.mark.parametrize("code", [1000, 1001, 1012, 4001, 4002, 4003, 4005, 4006, 4007])
async def test_closes_that_are_not_final_bring_it_back_with_the_same_session(
    node: ScriptedNode, log: Log, code: int
) -> None:
    async with following(node, log) as (_, peer):
        await peer.close(code, "why")
        hello = await (await node.peer(2)).frame("hello")
        assert hello["session"] == "s1"
    waiting = log.details[log.states.index(State.WAITING)]
    assert (waiting.code, waiting.reason, waiting.wait_ms) == (code, "why", 0)
    assert log.errors == []


async def test_a_defect_of_the_node_is_reported_and_survived(node: ScriptedNode, log: Log) -> None:
    async with following(node, log) as (_, peer):
        await peer.close(1011, "oops")
        await (await node.peer(2)).frame("hello")
    (error,) = log.errors
    assert isinstance(error, NodeFault)
    assert (error.closed_with, error.retryable) == (1011, True)


@pytest.mark.parametrize(
    "code,kind",
    [(4500, ClosedForGood), (4502, Forbidden), (4504, Superseded), (4506, SessionEnded)],
)
async def test_final_closes_are_raised_where_events_are_asked_for(
    node: ScriptedNode, log: Log, code: int, kind: type[EventBusError]
) -> None:
    async with client(node, log) as subscriber:
        peer = await node.peer()
        await peer.greet()
        await peer.events(item(1), item(2))
        await anext(subscriber)
        await peer.close(code, "why")
        await until(lambda: subscriber.state is State.CLOSED)
        # What is queued belongs to whoever has the session now.
        for _ in range(2):
            with pytest.raises(kind, match=f"{code}: why"):
                await anext(subscriber)
    assert node.tried == 1
    assert (log.states[-1], log.details[-1].code) == (State.CLOSED, code)
    assert log.states.count(State.CLOSED) == 1


async def test_a_hello_that_was_late_is_said_again_and_only_the_fifth_in_a_row_is_final(
    node: ScriptedNode, log: Log
) -> None:
    async with client(node, log) as subscriber:
        for number in range(1, 5):
            await (await node.peer(number)).close(4503, "late")
        peer = await node.peer(5)
        await peer.greet()  # a welcome: what came before does not count any more
        await peer.close(1012, "restart")
        for number in range(6, 11):
            assert subscriber.state is not State.CLOSED
            await (await node.peer(number)).close(4503, "late")
        await until(lambda: subscriber.state is State.CLOSED)
        with pytest.raises(ClosedForGood, match="4503: late"):
            await anext(subscriber)
    assert node.tried == 10


async def test_run_raises_what_ended_it(node: ScriptedNode, log: Log) -> None:
    subscriber = client(node, log, on_event=log.take)
    running = asyncio.ensure_future(subscriber.run())
    peer = await node.peer()
    await peer.greet()
    await peer.close(4504)
    with pytest.raises(Superseded):
        await running


# --- time -------------------------------------------------------------------------------------------------------------


async def test_it_comes_back_after_growing_waits_with_full_jitter(node: ScriptedNode, log: Log) -> None:
    clock, chances = ManualClock(), iter([0.5] * 3 + [1.0] * 9)
    node.refusals = [(503, {}, b"")] * 4
    async with client(node, log, clock=clock, random=lambda: next(chances)):
        waits = []
        for number in range(1, 5):
            await until(lambda n=number: log.states.count(State.WAITING) == n)  # type: ignore[misc]
            wait_ms = [detail.wait_ms for detail in log.details if detail.wait_ms is not None][-1]
            waits.append(wait_ms)
            await clock.pass_time(wait_ms - 1)
            assert node.tried == number
            await clock.pass_time(1)
            await until(lambda n=number: node.tried == n + 1)  # type: ignore[misc]
        assert waits == [125, 250, 500, 2_000]


@pytest.mark.parametrize("status", [429, 503])
async def test_retry_after_of_a_refused_handshake_is_obeyed(node: ScriptedNode, log: Log, status: int) -> None:
    clock = ManualClock()
    body = b'{"error": {"code": "draining", "message": "the node is draining"}}'
    node.refusals = [(status, {"Retry-After": "7"}, body)]
    async with client(node, log, clock=clock):
        await until(lambda: State.WAITING in log.states)
        detail = log.details[-1]
        assert (detail.code, detail.reason, detail.wait_ms) == (status, "the node is draining", 7_000)
        await clock.pass_time(6_999)
        assert node.tried == 1
        await clock.pass_time(1)
        await (await node.peer()).frame("hello")
    assert log.errors == []


async def test_an_unexpected_answer_is_reported_and_tried_again(node: ScriptedNode, log: Log) -> None:
    node.refusals = [(404, {}, b"not here")]
    async with client(node, log):
        await (await node.peer()).frame("hello")
    (error,) = log.errors
    assert isinstance(error, NodeFault)
    assert error.closed_with == 404
    assert "not here" in str(error)


async def test_a_node_that_is_not_there_is_tried_until_it_is(log: Log, unused_tcp_port: int) -> None:
    async with Subscriber(
        f"http://127.0.0.1:{unused_tcp_port}", "jwt", on_state=log.on_state, random=lambda: 0.001
    ) as subscriber:
        await until(lambda: log.states.count(State.WAITING) >= 3)
        assert subscriber.state is not State.CLOSED
    assert log.details[log.states.index(State.WAITING)].code == 1006


@pytest.mark.requirement("R10")
async def test_a_goaway_is_obeyed_to_the_millisecond_and_acks_leave_first(node: ScriptedNode, log: Log) -> None:
    clock = ManualClock()
    async with following(node, log, clock=clock) as (_, peer):
        await peer.events(item(1))
        await peer.acks(1)
        await clock.pass_time(10_000)
        await peer.send("goaway", reason="draining", reconnect_after_ms=700)
        await peer.events(item(2))
        await peer.acks(1, 2)
        await clock.pass_time(699)
        assert peer.closed is None
        await clock.pass_time(1)
        assert await peer.gone() == 1000
        await until(lambda: State.WAITING in log.states)
        assert log.details[log.states.index(State.WAITING)].wait_ms == 0
        await clock.pass_time(0)
        await (await node.peer(2)).frame("hello")


@pytest.mark.requirement("R10")
async def test_a_node_that_closes_after_its_goaway_is_left_alone_until_its_time(node: ScriptedNode, log: Log) -> None:
    clock = ManualClock()
    async with following(node, log, clock=clock) as (_, peer):
        await clock.pass_time(10_000)
        await peer.send("goaway", reason="draining", reconnect_after_ms=5_000)
        await peer.close(4001, "draining")
        await until(lambda: State.WAITING in log.states)
        assert log.details[-1].wait_ms == 5_000


@pytest.mark.requirement("R2")
async def test_a_half_open_connection_is_noticed_and_replaced(node: ScriptedNode, log: Log) -> None:
    """R2: nothing comes for a heartbeat, nor an answer within ten seconds."""
    clock = ManualClock()
    async with following(node, log, clock=clock) as (_, peer):
        await until(lambda: State.CATCHING_UP in log.states)
        await clock.pass_time(20_000)
        await peer.frame("ping")
        await clock.pass_time(9_999)
        assert State.WAITING not in log.states
        await clock.pass_time(1)
        await until(lambda: State.WAITING in log.states)
        assert log.details[-1].reason == "the node does not answer"
        await clock.pass_time(0)
        await (await node.peer(2)).frame("hello")


async def test_pings_of_the_node_are_signs_of_life(node: ScriptedNode, log: Log) -> None:
    clock = ManualClock()
    async with following(node, log, clock=clock) as (_, peer):
        await until(lambda: State.CATCHING_UP in log.states)
        for _ in range(5):
            await clock.pass_time(15_000)
            await peer.ping()
        assert peer.all("ping") == []


async def test_no_welcome_within_forty_seconds_is_a_lost_connection(node: ScriptedNode, log: Log) -> None:
    clock = ManualClock()
    async with client(node, log, clock=clock):
        await (await node.peer()).frame("hello")
        await clock.pass_time(40_000)
        await until(lambda: State.WAITING in log.states)
        assert log.details[-1].reason == "no welcome came"


async def test_a_slow_application_keeps_the_node_waiting(node: ScriptedNode, log: Log) -> None:
    clock = ManualClock()
    async with client(node, log, clock=clock) as subscriber:
        peer = await node.peer()
        await peer.greet(ack_timeout_ms=3_000)
        await peer.events(item(1), item(2))
        await anext(subscriber)
        await clock.pass_time(1_000)
        assert (await peer.frame("working"))["ids"] == ["1000-1", "1000-2"]
        await clock.pass_time(1_000)
        await peer.frame("working", 2)


# --- tokens -----------------------------------------------------------------------------------------------------------


class Tokens:
    """A token callback that counts, and fails when told so."""

    def __init__(self, *failures: Exception) -> None:
        self.given = 0
        self.failures = list(failures)

    async def __call__(self) -> str:
        await asyncio.sleep(0)
        if self.failures:
            raise self.failures.pop(0)
        self.given += 1
        return f"jwt-{self.given}"


async def test_a_token_is_fetched_for_each_connection(node: ScriptedNode, log: Log) -> None:
    async with following(node, log, token=Tokens()) as (_, peer):
        peer.cut()
        await (await node.peer(2)).frame("hello")
    assert node.tokens == ["Bearer jwt-1", "Bearer jwt-2"]


async def test_a_token_is_refreshed_on_the_live_socket(node: ScriptedNode, log: Log) -> None:
    clock = ManualClock()
    async with client(node, log, clock=clock, token=Tokens(), start="new") as subscriber:
        peer = await node.peer()
        await peer.greet(token_expires_ms=clock.now_ms() + 20_000, cursor="1000-4", heartbeat_ms=1_000_000)
        await until(lambda: subscriber.state is State.CATCHING_UP)
        assert subscriber.cursor == "1000-4"
        await clock.pass_time(10_000)
        assert await peer.frame("refresh") == {"op": "refresh", "token": "jwt-2"}
        await peer.send("refreshed", token_expires_ms=clock.now_ms() + 100_000)
        await peer.send("pong")
        await peer.events(item(5))
        await anext(subscriber)
        await clock.pass_time(69_999)
        assert len(peer.all("refresh")) == 1
        await clock.pass_time(1)
        assert (await peer.frame("refresh", 2))["token"] == "jwt-3"
    assert node.tried == 1


async def test_a_refresh_that_fails_is_tried_again_before_the_end(node: ScriptedNode, log: Log) -> None:
    clock, tokens = ManualClock(), Tokens()
    async with client(node, log, clock=clock, token=tokens) as subscriber:
        peer = await node.peer()
        await peer.greet(token_expires_ms=clock.now_ms() + 20_000, heartbeat_ms=1_000_000)
        await until(lambda: subscriber.state is State.CATCHING_UP)
        tokens.failures.append(OSError("no issuer"))
        await clock.pass_time(10_000)
        await until(lambda: bool(log.errors))
        await clock.pass_time(5_000)
        await peer.frame("refresh")
    (error,) = log.errors
    assert isinstance(error, TokenFailed)
    assert isinstance(error.__cause__, OSError)


@pytest.mark.parametrize("code", [4004, 4501])
async def test_an_expired_or_refused_token_is_replaced(node: ScriptedNode, log: Log, code: int) -> None:
    async with following(node, log, token=Tokens()) as (_, peer):
        await peer.close(code)
        await (await node.peer(2)).greet()
        await (await node.peer(2)).close(code)
        await (await node.peer(3)).frame("hello")
    assert node.tokens == ["Bearer jwt-1", "Bearer jwt-2", "Bearer jwt-3"]


async def test_two_refused_tokens_in_a_row_are_final(node: ScriptedNode, log: Log) -> None:
    node.refusals = [(401, {}, b'{"error": {"code": "x", "message": "wrong key"}}')] * 3
    async with client(node, log, token=Tokens()) as subscriber:
        with pytest.raises(AuthError, match="wrong key"):
            await anext(subscriber)
    assert node.tried == 2


@pytest.mark.parametrize("status,kind", [(401, AuthError), (403, Forbidden)])
async def test_a_refused_handshake_is_final_for_a_given_token(
    node: ScriptedNode, log: Log, status: int, kind: type[EventBusError]
) -> None:
    node.refusals = [(status, {}, b"no")] * 2
    async with client(node, log) as subscriber:
        with pytest.raises(kind):
            await anext(subscriber)
    assert node.tried == 1


async def test_a_token_callback_that_fails_is_asked_again(node: ScriptedNode, log: Log) -> None:
    async with client(node, log, token=Tokens(OSError("down"), ValueError("odd"))):
        await (await node.peer()).frame("hello")
    assert [type(error) for error in log.errors] == [TokenFailed, TokenFailed]
    assert all(error.__cause__ is not None for error in log.errors)


@pytest.mark.parametrize("given", ["jwt\n", lambda: " jwt\r\n"])
async def test_a_token_may_end_with_a_line_as_a_file_does(node: ScriptedNode, log: Log, given: Any) -> None:
    async with client(node, log, token=given):
        peer = await node.peer()
        assert peer.headers["Authorization"] == "Bearer jwt"


async def test_a_token_callback_must_give_a_token(node: ScriptedNode, log: Log) -> None:
    given: list[Any] = [None, "", "jwt"]
    async with client(node, log, token=lambda: given.pop(0)):
        await (await node.peer()).frame("hello")
    assert [type(error) for error in log.errors] == [TokenFailed, TokenFailed]
    assert node.tokens == ["Bearer jwt"]


# --- gaps, drops, faults ----------------------------------------------------------------------------------------------


@pytest.mark.requirement("R7")
async def test_a_gap_is_told_in_its_place_and_holds_the_next_event_back(node: ScriptedNode, log: Log) -> None:
    told: list[tuple[Gap, list[int]]] = []
    release = asyncio.Event()

    async def on_gap(gap: Gap) -> None:
        told.append((gap, list(log.numbers)))
        await release.wait()

    async with following(node, log, on_gap=on_gap) as (_, peer):
        await peer.events(item(1))
        await peer.send("gap", reason="trimmed", after="1000-1", before="1000-5", count=3)
        await peer.events(item(5))
        await until(lambda: bool(told))
        await turns()
        assert log.numbers == [1]
        release.set()
        await log.has(1, 5)
    ((gap, before),) = told
    assert (gap.reason, gap.after, gap.before, gap.count, before) == ("trimmed", "1000-1", "1000-5", 3, [1])


async def test_dropped_events_are_told_and_not_handed_over(node: ScriptedNode, log: Log) -> None:
    dropped: list[Dropped] = []
    async with client(node, log, on_dropped=dropped.append) as subscriber:
        peer = await node.peer()
        await peer.greet()
        await peer.events(item(1), item(2), item(3))
        log.take(await anext(subscriber))
        await peer.send("dropped", ids=["1000-2"], reason="expired")
        await until(lambda: bool(dropped))
        async with background(lambda: log.follow(subscriber)):
            await log.has(1, 3)
            await peer.acks(1, 3)
        assert subscriber.cursor == "1000-3"
    assert dropped == [Dropped(ids=(EntryId("1000-2"),), reason=dropped[0].reason)]


async def test_released_events_are_not_handed_over(node: ScriptedNode, log: Log) -> None:
    async with client(node, log) as subscriber:
        peer = await node.peer()
        await peer.greet()
        await peer.events(item(1), item(2), item(3))
        log.take(await anext(subscriber))
        await peer.send("released", ids=["1000-2"])
        await peer.send("caught_up", cursor="1000-3")
        await until(lambda: subscriber.cursor is None)
        await turns()
        async with background(lambda: log.follow(subscriber)):
            await peer.acks(1, 3)
    assert log.numbers == [1, 3]


@pytest.mark.parametrize("payload", ["no json", "[]", '{"op": 1}', '{"op": "events", "events": [{"id": "x"}]}'])
async def test_what_is_no_frame_costs_the_connection_and_nothing_else(
    node: ScriptedNode, log: Log, payload: str
) -> None:
    async with following(node, log) as (_, peer):
        await peer.events(item(1))
        await peer.send_raw(payload)
        second = await node.peer(2)
        await second.greet()
        await second.events(item(2))
        await log.has(1, 2)
    assert [type(error) for error in log.errors] == [NodeFault]


async def test_frames_of_later_versions_are_passed_over(node: ScriptedNode, log: Log) -> None:
    async with following(node, log) as (_, peer):
        await peer.send("hologram", of="a cat")
        await peer.send("text", run="r", stream="s", offset=0, text="x")
        await peer.send("pong", colour="blue")
        await peer.events(item(1))
        await log.has(1)
    assert node.tried == 1
    assert log.errors == []


async def test_an_error_frame_is_reported(node: ScriptedNode, log: Log) -> None:
    async with following(node, log) as (_, peer):
        await peer.send("error", code="store_unavailable", message="later")
        await until(lambda: bool(log.errors))
    assert "store_unavailable: later" in str(log.errors[0])


@pytest.mark.requirement("R9")
async def test_a_node_that_ignores_the_window_is_not_read_any_further(node: ScriptedNode, log: Log) -> None:
    async with client(node, log) as subscriber:
        peer = await node.peer()
        await peer.greet(window=4)
        for number in range(1, 200):
            await peer.events(item(number))
        await until(lambda: "held=24" in repr(subscriber))
        await turns()
        assert "held=24" in repr(subscriber)
        async with background(lambda: log.follow(subscriber)):
            await peer.acks(*range(1, 200))
    assert log.numbers == list(range(1, 200))


# --- callbacks --------------------------------------------------------------------------------------------------------


async def test_callbacks_may_be_asynchronous_and_may_fail(node: ScriptedNode, log: Log) -> None:
    states: list[State] = []

    async def on_state(state: State, detail: StateDetail) -> None:
        await asyncio.sleep(0)
        states.append(state)
        raise RuntimeError("on_state is broken")

    def on_gap(gap: Gap) -> None:
        raise RuntimeError("on_gap is broken")

    async with following(node, log, on_state=on_state, on_gap=on_gap) as (_, peer):
        await peer.send("gap", reason="trimmed")
        await peer.events(item(1))
        await log.has(1)
    assert states == [State.CONNECTING, State.OPEN, State.CATCHING_UP, State.CLOSED]
    assert {type(error) for error in log.errors} == {CallbackFailed}
    assert {str(error) for error in log.errors} == {
        "on_state failed: on_state is broken",
        "on_gap failed: on_gap is broken",
    }


async def test_errors_are_logged_when_nobody_listens(
    node: ScriptedNode, log: Log, caplog: pytest.LogCaptureFixture
) -> None:
    async with following(node, log, on_error=None) as (_, peer):
        await peer.send("error", code="oops", message="a message")
        await peer.send("gap", reason="trimmed", after="1000-1")
        await peer.send("dropped", ids=["1000-2"], reason="dead_lettered")
        await until(lambda: len(caplog.messages) >= 3)
    assert "the node refused a frame: oops: a message" in caplog.text
    assert "gone for ever" in caplog.text
    assert "1 events will not come again: dead_lettered" in caplog.text


async def test_callbacks_that_never_end_are_bounded_and_ended_with_the_subscriber(
    node: ScriptedNode, log: Log, caplog: pytest.LogCaptureFixture
) -> None:
    started = 0

    async def on_dropped(dropped: Dropped) -> None:
        nonlocal started
        started += 1
        await asyncio.Event().wait()

    async with following(node, log, on_dropped=on_dropped) as (_, peer):
        for number in range(MAX_UNDER_WAY + 10):
            await peer.send("dropped", ids=[f"1000-{number}"], reason="expired")
        await peer.events(item(1))
        await log.has(1)
    assert started == MAX_UNDER_WAY
    assert sum("on_dropped is left out" in message for message in caplog.messages) == 10


# --- the end ----------------------------------------------------------------------------------------------------------


async def test_close_ends_the_iteration_and_is_safe_to_repeat(node: ScriptedNode, log: Log) -> None:
    async with client(node, log) as subscriber:
        peer = await node.peer()
        await peer.greet()
        following = asyncio.ensure_future(log.follow(subscriber))
        await peer.events(item(1))
        await log.has(1)
        await asyncio.gather(subscriber.close(), subscriber.close())
        await following
        await subscriber.close()
        with pytest.raises(StopAsyncIteration):
            await anext(subscriber)
    assert await peer.gone() == 1000
    assert peer.acked == ["1000-1"]
    assert subscriber.state is State.CLOSED
    assert log.states.count(State.CLOSED) == 1


async def test_close_inside_the_handler_leaves_its_event_unacked(node: ScriptedNode, log: Log) -> None:
    async def handle(delivery: Delivery) -> None:
        log.take(delivery)
        if delivery.entry == "1000-2":
            await subscriber.close()

    subscriber = client(node, log, on_event=handle)
    async with background(subscriber.run) as running:
        peer = await node.peer()
        await peer.greet()
        await peer.events(item(1), item(2), item(3))
        await asyncio.wait({running})
    assert log.numbers == [1, 2]
    assert peer.acked == ["1000-1"]


async def test_close_in_each_state_ends_at_once(node: ScriptedNode, log: Log) -> None:
    at_once = client(node, log)
    await at_once.__aenter__()
    await at_once.close()

    forgotten = asyncio.Event()

    async def never() -> str:
        try:
            await asyncio.Event().wait()
        finally:
            forgotten.set()
        return ""

    async with client(node, log, token=never):
        await turns()
    assert forgotten.is_set()

    clock = ManualClock()
    node.refusals = [(503, {"Retry-After": "100"}, b"")]
    async with client(node, log, clock=clock) as waiting:
        await until(lambda: waiting.state is State.WAITING)
    async with client(node, log):
        await (await node.peer()).frame("hello")


async def test_close_inside_a_callback_does_not_wait_for_itself(node: ScriptedNode, log: Log) -> None:
    async def token() -> str:
        await subscriber.close()
        return "jwt"

    subscriber = client(node, log, token=token)
    async with subscriber:
        with pytest.raises(StopAsyncIteration):
            await anext(subscriber)

    async def on_state(state: State, detail: StateDetail) -> None:
        if state is State.OPEN:
            await second.close()

    second = client(node, log, on_state=on_state)
    async with second:
        with pytest.raises(StopAsyncIteration):
            await anext(second)


async def test_a_peer_that_does_not_answer_the_handshake_does_not_hold_the_end_up(log: Log) -> None:
    asked = asyncio.Event()

    async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        asked.set()
        await reader.read()  # until the client has gone
        writer.close()

    async with await asyncio.start_server(mute, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with Subscriber(f"http://127.0.0.1:{port}", "jwt", on_state=log.on_state):
            await asked.wait()
    assert log.states == [State.CONNECTING, State.CLOSED]


async def test_a_subscriber_is_opened_once_and_iterated_by_one_task(node: ScriptedNode, log: Log) -> None:
    subscriber = client(node, log)
    with pytest.raises(SubscriberError, match="open the subscriber first"):
        await anext(subscriber)
    with pytest.raises(SubscriberError, match="needs `on_event`"):
        await subscriber.run()
    async with subscriber:
        with pytest.raises(SubscriberError, match="opened before"):
            await subscriber.__aenter__()
        first = asyncio.ensure_future(anext(subscriber))
        await turns()
        with pytest.raises(SubscriberError, match="one task"):
            await anext(subscriber)
        first.cancel()
        await asyncio.wait({first})
    with pytest.raises(SubscriberError, match="opened before"):
        await subscriber.__aenter__()


@pytest.mark.parametrize(
    "options,field",
    [
        ({"session": "a b"}, "session"),
        ({"cursor": "1"}, "cursor"),
        ({"start": "middle"}, "start"),
        ({"start": "cursor"}, "start"),
        ({"start": "new", "cursor": "1-1"}, "start"),
        ({"window": 0}, "window"),
        ({"window": 1025}, "window"),
        ({"window": True}, "window"),
        ({"format": "xml"}, "format"),
        ({"token": ""}, "token"),
        ({"token": "two words"}, "token"),
        ({"token": "jetón"}, "token"),
        ({"token": None}, "token"),
        ({"failed_events": "ignore"}, "failed_events"),
        ({"nack_delay_ms": 3_600_001}, "nack_delay_ms"),
        ({"filter": {"kinds": []}}, "filter"),
        ({"filter": 5}, "filter"),
        ({"on_event": 5}, "on_event"),
        ({"on_error": "log"}, "on_error"),
    ],
)
def test_a_wrong_argument_is_refused_by_name(options: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidField, match=field):
        Subscriber("http://127.0.0.1", **{"token": "jwt", **options})
