"""docs/protocol.md, sections 4, 5 and 7: why a node closes a connection, and what never makes it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest

from eventbus.clock import SystemClock
from eventbus.ids import UserId
from eventbus.testing import ManualClock
from gateway.node import Node
from tests.support.raw_websocket import (
    BINARY,
    CLOSE,
    CONT,
    PING,
    TEXT,
    RawClient,
    client_frame,
    connected,
    upgrade_head,
)
from tests.support.stalls import within
from tests.support.waiting import until
from tests.support.wire_client import (
    MSGPACK,
    Nodes,
    WireClient,
    bearer,
    ids,
    opened,
    pass_time,
    publish,
    settled,
    token_of,
    wired,
)


def manual_clock() -> ManualClock:
    """A clock that stands still, at a time at which the tests' tokens are good."""
    return ManualClock(SystemClock().now_ms())


# --- section 4: heartbeats ------------------------------------------------------------------------------------------


@pytest.mark.requirement("R24")
async def test_the_node_pings_every_heartbeat(nodes: Nodes) -> None:
    clock = manual_clock()
    node = await nodes.start(clock=clock, heartbeat_ms=3_000)
    async with opened(node) as client:
        await client.expect("caught_up")
        await pass_time(node, clock, 15_000)
        await client.nothing_more()
        assert client.pings in (5, 6)


@pytest.mark.requirement("R24")
@pytest.mark.requirement("R25")
async def test_a_client_of_which_nothing_is_heard_is_closed_with_4003_after_40_seconds(nodes: Nodes) -> None:
    clock = manual_clock()
    node = await nodes.start(clock=clock, heartbeat_ms=4_000)
    async with opened(node) as client:
        await client.expect("caught_up")
        await pass_time(node, clock, 39_000, step_ms=3_000)
        assert len(node.hub) == 1
        await pass_time(node, clock, 4_000)
        client.answers_pings = False
        assert (await client.until_closed()).code == 4003
    await settled(node)


@pytest.mark.requirement("R24")
async def test_a_client_that_answers_pings_and_says_nothing_else_is_kept(nodes: Nodes) -> None:
    clock = manual_clock()
    # The store's probes know nothing of the manual clock.
    node = await nodes.start(clock=clock, heartbeat_ms=8_000, store_down_ms=3_600_000)
    async with opened(node) as client:
        await client.expect("caught_up")
        reading = asyncio.create_task(client.until_closed())
        for _ in range(15):
            await pass_time(node, clock, 6_000, step_ms=4_000)
            # The pong has to arrive within the time of the manual clock, too.
            (connection,) = [session.connection for session in node.hub]
            heard_ms = clock.monotonic_ms() - 10_000
            await until(lambda: connection.last_received_ms >= heard_ms)  # noqa: B023
        assert not reading.done()
        reading.cancel()
        assert client.pings > 9


# --- section 5: the token's end -------------------------------------------------------------------------------------


@pytest.mark.requirement("R23")
async def test_a_token_that_expires_ends_the_connection_with_4004_within_two_seconds(nodes: Nodes) -> None:
    clock = manual_clock()
    node = await nodes.start(clock=clock)
    async with wired(node, token_of(ttl_ms=10_000)) as client:
        ends_ms = (await client.hello(session="tab"))["token_expires_ms"]
        await pass_time(node, clock, ends_ms - clock.now_ms() - 1)
        client.send("ping", ref="still here")
        await client.until_op("pong")
        await pass_time(node, clock, 2_000)
        assert (await client.until_closed()).code == 4004
    await settled(node)


@pytest.mark.requirement("R23")
async def test_a_token_that_expires_between_handshake_and_hello_opens_nothing_for_long(nodes: Nodes) -> None:
    clock = manual_clock()
    node = await nodes.start(clock=clock)
    async with wired(node, token_of(ttl_ms=60_000)) as client:
        clock.set_wall(clock.now_ms() + 61_000)
        client.send("hello")
        await client.expect("welcome")
        await pass_time(node, clock, 1_000)
        assert (await client.until_closed()).code == 4004


# --- section 7: frames of the socket --------------------------------------------------------------------------------


async def _closed_for(node: Node, *pieces: bytes, subprotocol: str = "eventbus.v1.json") -> int | None:
    async with wired(node, token_of(), subprotocol=subprotocol) as client:
        await client.hello()
        client.raw.write(*pieces)
        return (await client.until_closed()).code


@pytest.mark.requirement("R23")
async def test_a_frame_above_the_limit_is_close_4505(nodes: Nodes) -> None:
    node = await nodes.start(max_frame_bytes=1_000)
    assert await _closed_for(node, client_frame(TEXT, b" " * 1_001)) == 4505
    # Its size alone tells: the payload need not come.
    assert await _closed_for(node, client_frame(TEXT, b" " * 70_000)[:14]) == 4505
    # All fragments together count.
    assert await _closed_for(node, client_frame(TEXT, b" " * 600, fin=False), client_frame(CONT, b" " * 600)) == 4505


async def test_a_frame_of_just_the_limit_is_taken(nodes: Nodes) -> None:
    node = await nodes.start(max_frame_bytes=1_000)
    async with opened(node) as client:
        await client.expect("caught_up")
        ping = orjson.dumps({"op": "ping", "ref": 1})
        client.raw.frame(TEXT, ping.ljust(1_000))
        await client.expect("pong", ref=1)


@pytest.mark.requirement("R23")
@pytest.mark.parametrize(
    "frame, code",
    [
        (client_frame(TEXT, b'{"op":"ping"}', masked=False), 1002),
        (client_frame(TEXT, b'{"op":"ping"}', rsv=4), 1002),
        (client_frame(TEXT, b'{"op":"ping"}', rsv=1), 1002),
        (client_frame(3, b"x"), 1002),
        (client_frame(0xB, b"x"), 1002),
        (client_frame(CONT, b"x"), 1002),
        (client_frame(PING, b"x" * 126), 1002),
        (client_frame(PING, b"x", fin=False), 1002),
        (client_frame(CLOSE, b"x"), 1002),
        (client_frame(CLOSE, b"\x00\x01"), 1002),
        (client_frame(BINARY, b'{"op":"ping"}'), 1003),
        (client_frame(TEXT, b'{"op":"ping","ref":"\xff"}'), 1007),
        (client_frame(TEXT, b"\xed\xa0\x80"), 1007),
    ],
    # Names of their own: the mask is random, and workers must agree on what a test is called.
    ids=[
        "unmasked",
        "rsv1",
        "rsv3",
        "opcode 3",
        "opcode 11",
        "continues nothing",
        "long ping",
        "ping in fragments",
        "close of one byte",
        "close code 1",
        "binary on json",
        "no utf-8",
        "surrogate",
    ],
)
async def test_what_breaks_the_rules_of_the_socket_is_closed_with_the_code_of_its_rfc(
    node: Node, frame: bytes, code: int
) -> None:
    assert await _closed_for(node, frame) == code
    await settled(node)


async def test_a_text_frame_on_the_messagepack_subprotocol_is_1003(node: Node) -> None:
    assert await _closed_for(node, client_frame(TEXT, b'{"op":"ping"}'), subprotocol=MSGPACK) == 1003


async def test_a_message_in_fragments_with_pings_between_them_is_one_message(node: Node) -> None:
    async with opened(node) as client:
        await client.expect("caught_up")
        payload = orjson.dumps({"op": "ping", "ref": "whole"})
        client.raw.write(
            client_frame(TEXT, payload[:5], fin=False),
            client_frame(PING, b"between"),
            client_frame(CONT, payload[5:9], fin=False),
            client_frame(CONT, payload[9:]),
        )
        await client.expect("pong", ref="whole")


async def test_a_clients_close_is_answered_with_its_own_code(node: Node) -> None:
    async with opened(node) as client:
        await client.expect("caught_up")
        client.raw.frame(CLOSE, (4321).to_bytes(2, "big") + b"bye")
        assert (await client.until_closed()).code == 4321
    await settled(node)
    assert node.counters.connections_closed[4321] == 1


# --- section 7: the rate of frames ----------------------------------------------------------------------------------


@pytest.mark.requirement("R23")
async def test_frames_above_the_tiers_rate_wait_and_all_are_answered_in_order(nodes: Nodes) -> None:
    """Ten seconds' worth at once (20 a second in the tier `free`), then as many a second."""
    clock = manual_clock()
    node = await nodes.start(clock=clock)
    async with opened(node) as client, opened(node, "bob") as other:
        await client.expect("caught_up")
        await other.expect("caught_up")
        for number in range(260):
            client.send("ping", ref=number)
        for number in range(200):
            await client.expect("pong", ref=number)
        (session,) = [session for session in node.hub if session.user == "alice"]
        await until(lambda: session.dialogue.held > 0)
        # Nobody else is kept waiting.
        await other.nothing_more()
        for first in (200, 220, 240):
            await pass_time(node, clock, 1_000)
            for number in range(first, first + 20):
                await client.expect("pong", ref=number)
        await pass_time(node, clock, 1_000)
        await client.nothing_more()


@pytest.mark.requirement("R23")
async def test_a_client_that_keeps_above_its_rate_for_30_seconds_is_closed_with_4006(nodes: Nodes) -> None:
    clock = manual_clock()
    node = await nodes.start(clock=clock)
    async with opened(node) as client:
        for number in range(1_500):
            client.send("ping", ref=number)
        await pass_time(node, clock, 31_000)
        assert (await client.until_closed()).code == 4006
    pongs = sum(frame["op"] == "pong" for frame in client.seen)
    assert 200 + 20 * 25 <= pongs <= 200 + 20 * 32
    await settled(node)


# --- section 7: slow consumers --------------------------------------------------------------------------------------


@asynccontextmanager
async def deaf(node: Node, user: str = "alice", **hello: Any) -> AsyncIterator[WireClient]:
    """A client with small buffers that reads only when the test does."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8_192)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", node.port))
    reader, writer = await asyncio.open_connection(sock=sock, limit=2_048)
    try:
        client = WireClient(RawClient(reader, writer))
        await client.raw.upgrade(authorization=bearer(token_of(user)))
        await client.hello(session="tab", **hello)
        await client.expect("caught_up")
        yield client
    finally:
        writer.transport.abort()


async def stall(node: Node) -> list[str]:
    """Publishes large events until the node sees that its one client does not read; all of them are in flight."""
    session = next(iter(node.hub))
    entries: list[str] = []

    def all_in_flight() -> bool:
        return session.delivery.in_flight == len(entries)

    while session.connection.writable:
        entries += await publish(node, "x" * 200_000)
        await until(all_in_flight)
    return entries


@pytest.mark.requirement("R9")
async def test_a_client_that_owes_nothing_and_does_not_read_is_closed_with_4002(nodes: Nodes) -> None:
    node = await nodes.start(slow_consumer_ms=200, slow_consumer_bytes=16_384)
    async with deaf(node) as client:
        entries = await stall(node)
        # It acks what it has not read, so it owes nothing.
        client.send("ack", ids=entries)
        await until(lambda: len(node.hub) == 0)
        assert (await client.until_closed()).code == 4002
    await settled(node)


@pytest.mark.requirement("R9")
async def test_a_client_that_owes_acks_is_judged_by_their_time_outs_and_not_as_a_slow_consumer(nodes: Nodes) -> None:
    clock = manual_clock()
    node = await nodes.start(clock=clock, slow_consumer_ms=1_000, slow_consumer_bytes=16_384)
    async with deaf(node):
        await stall(node)
        session = next(iter(node.hub))
        assert session.connection.buffered_bytes > 2 * 16_384
        await pass_time(node, clock, 20_000)
        assert session.is_open


@pytest.mark.requirement("R9")
async def test_a_stuck_client_costs_bounded_memory_is_sent_no_copies_and_delays_nobody(nodes: Nodes) -> None:
    clock = manual_clock()
    node = await nodes.start(clock=clock, ack_timeout_ms=50, max_wait_ms=100)
    async with deaf(node, window=1024), opened(node, "bob") as other:
        await other.expect("caught_up")
        for _ in range(150):
            await publish(node, "x" * 200_000)
        (session,) = [session for session in node.hub if session.user == "alice"]
        await until(lambda: not session.connection.writable)
        await pass_time(node, clock, 5_000)  # many ack time-outs
        (entry,) = await publish(node, "hello", user="bob")
        assert ids(await other.events(1)) == [entry]
        held = session.delivery.held_bytes
        assert held <= 8 * 1024 * 1024 + 1_000_000
        assert session.connection.buffered_bytes <= 16 * 1024 * 1024
        assert node.counters.events_redelivered == 0
        assert not node.counters.events_dead_lettered


@pytest.mark.requirement("R9")
async def test_a_healthy_client_gets_a_backlog_of_large_events_however_large(node: Node) -> None:
    """120 events of 200 kB are more than may ever be queued for a socket: they come in parts."""
    entries = await publish(node, *(["x" * 200_000] * 120))
    async with wired(node, token_of()) as client:
        await client.hello(session="tab", start="earliest")
        got: list[str] = []
        while len(got) < 120:
            frame = await client.next()
            if frame["op"] == "events":
                got += ids(frame["events"])
                client.send("ack", ids=ids(frame["events"]))
        assert got == entries


# --- section 7: drain -----------------------------------------------------------------------------------------------


@pytest.mark.requirement("R10")
async def test_a_draining_node_tells_its_clients_when_to_come_back_and_closes_with_4001(nodes: Nodes) -> None:
    node = await nodes.start()
    async with opened(node) as client, opened(node, "bob") as second, wired(node, token_of("eve")) as silent:
        await client.expect("caught_up")
        await second.expect("caught_up")
        (entry,) = await publish(node, "one")
        await client.events(1)
        draining = asyncio.create_task(node.drain())
        waits = []
        for each in (client, second):
            goaway = await each.expect("goaway", reason="draining")
            waits.append(goaway["reconnect_after_ms"])
        assert len(set(waits)) == 2
        assert all(0 < wait <= 15_050 for wait in waits)
        # An ack that comes now is still taken.
        client.send("ack", ids=[entry], ref=1)
        await client.expect("acked", count=1)
        for each in (client, second, silent):
            assert (await each.until_closed()).code == 4001
        # The listener still answers, so that a load balancer sees it.
        async with connected(node.port) as raw:
            raw.write(upgrade_head(method="GET", authorization=bearer(token_of())))
            status, head, body = await raw.response()
            assert (status, orjson.loads(body)["error"]["code"]) == (503, "draining")
            assert "retry-after: " in head.lower()
        async with wired(node, token_of(), host="localhost", origin="http://localhost") as browser:
            assert (await browser.until_closed()).code == 4001
        for path, wanted in (("/readyz", 503), ("/healthz", 200)):
            async with connected(node.port) as raw:
                raw.write(f"GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
                assert (await raw.response())[0] == wanted
        await draining
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", node.port or _port_of(client))


def _port_of(client: WireClient) -> int:
    return int(client.raw.writer.get_extra_info("peername")[1])


@pytest.mark.requirement("R10")
async def test_what_a_drained_node_had_pending_is_delivered_by_another_and_nothing_else(nodes: Nodes) -> None:
    first, second = await nodes.start("n1", drain_ms=1_000), await nodes.start("n2")
    async with opened(first) as client:
        await client.expect("caught_up")
        one, two = await publish(first, "one", "two")
        await client.events(2)
        client.send("ack", ids=[one])
        draining = asyncio.create_task(first.drain())
        assert (await client.until_closed()).code == 4001
        (record,) = await second.store.sessions(UserId("alice"))
        assert record.live is None, "the hold was given up before the close"
        async with wired(second, token_of()) as again:
            assert (await again.hello(session="tab"))["pending"] == 1
            (event,) = await again.events(1)
            assert (event["id"], event["delivery"]) == (two, 2)
        await draining
    assert [record.node for record in await second.store.nodes()] == ["n2"]


@pytest.mark.requirement("R25")
async def test_a_drain_is_over_in_its_time_when_a_client_does_not_answer_the_close(nodes: Nodes) -> None:
    node = await nodes.start(drain_ms=1_000)
    async with opened(node) as client:
        await client.expect("caught_up")
        async with within(5):
            await node.drain()
    assert node.connections == 0


# --- section 5: 1011 ------------------------------------------------------------------------------------------------


@pytest.mark.requirement("R25")
async def test_a_defect_of_the_node_costs_one_connection_and_is_never_1011(
    nodes: Nodes, caplog: pytest.LogCaptureFixture
) -> None:
    node = await nodes.start()
    async with wired(node, token_of()) as client, opened(node, "bob") as other:
        await other.expect("caught_up")
        await other.nothing_more()  # its limits are made with its first frame
        node.settings = None  # type: ignore[assignment] # no attribute of it can be read any more
        client.send("hello")
        closed = await client.until_closed()
        assert closed.code == 4007
        assert closed.reason == "internal error"
        await other.nothing_more()
    assert "Traceback" in caplog.text
    caplog.clear()
