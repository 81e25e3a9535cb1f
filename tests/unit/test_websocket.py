"""The socket: what comes in, what goes out, and how it ends."""

from __future__ import annotations

import asyncio
import logging
import tracemalloc
from collections.abc import Callable, Iterator

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol as Name

from eventbus.clock import Clock
from eventbus.errors import BadFrame, CloseCode, Forbidden
from gateway.transport.handshake import Subprotocol
from gateway.transport.outbox import binary_frame, ping_frame, text_frame
from gateway.transport.websocket import Connection, Sockets, SocketSettings
from tests.support.loops import on_both_loops
from tests.support.raw_websocket import (
    BINARY,
    CLOSE,
    CONT,
    PING,
    PONG,
    TEXT,
    Door,
    FakeTransport,
    RawClient,
    Recorder,
    client_frame,
    connected,
    listening,
    request,
)
from tests.support.waiting import until

MSGPACK = Subprotocol.MSGPACK.value


class Time(Clock):
    def __init__(self) -> None:
        self.ms = 1_000

    def now_ms(self) -> int:
        return self.ms

    def monotonic_ms(self) -> int:
        return self.ms


class Bench:
    """One connection on a transport that the test plays."""

    def __init__(self, loop: asyncio.AbstractEventLoop, subprotocol: Subprotocol, settings: SocketSettings) -> None:
        self.time = Time()
        self.sockets = Sockets(loop, settings=settings, clock=self.time)
        self.transport = FakeTransport()
        self.handler = Recorder()
        self.connection = Connection(self.sockets, self.transport, self.handler, request(subprotocol))
        self.connection.open(b"")

    def receive(self, *pieces: bytes) -> None:
        self.connection.data_received(b"".join(pieces))

    def lose(self) -> None:
        self.connection.connection_lost(None)


Make = Callable[..., Bench]


@pytest.fixture
def bench() -> Iterator[Make]:
    loop = asyncio.new_event_loop()

    def make(subprotocol: Subprotocol = Subprotocol.JSON, **settings: int) -> Bench:
        return Bench(loop, subprotocol, SocketSettings(**settings))

    yield make
    loop.close()


def turn(bench: Bench) -> None:
    """Let the loop finish a turn."""
    bench.sockets.loop.run_until_complete(asyncio.sleep(0))


# What comes in.


@pytest.mark.parametrize("length", [0, 1, 125, 126, 127, 4096, 65535, 65536])
@pytest.mark.parametrize("opcode, subprotocol", [(TEXT, Subprotocol.JSON), (BINARY, Subprotocol.MSGPACK)])
def test_message_of_every_length_arrives_whole(bench: Make, opcode: int, subprotocol: Subprotocol, length: int) -> None:
    made = bench(subprotocol)
    payload = bytes(range(128)) * (length // 128 + 1)
    made.receive(client_frame(opcode, payload[:length]), client_frame(opcode, b"behind"))
    assert made.handler.messages == [payload[:length], b"behind"]


def test_frame_that_comes_byte_by_byte_is_put_together(bench: Make) -> None:
    made = bench()
    for piece in client_frame(TEXT, b"x" * 300) + client_frame(PING, b"p") + client_frame(TEXT, b"y"):
        made.receive(bytes([piece]))
    turn(made)
    assert made.handler.messages == [b"x" * 300, b"y"]
    assert made.transport.frames == [(PONG, b"p")]


def test_control_frame_header_alone_is_not_lost(bench: Make) -> None:
    # Two bytes of header and nothing else leave an empty buffer in the middle of a frame.
    made = bench()
    ping = client_frame(PING, b"here")
    made.receive(ping[:2])
    made.receive(ping[2:])
    made.receive(client_frame(TEXT, b"in step"))
    turn(made)
    assert made.transport.frames == [(PONG, b"here")]
    assert made.handler.messages == [b"in step"]


def test_fragments_are_joined_and_control_frames_between_them_answered(bench: Make) -> None:
    made = bench()
    made.receive(
        client_frame(TEXT, b"one ", fin=False), client_frame(PING, b"?"), client_frame(CONT, b"two ", fin=False)
    )
    assert made.handler.messages == []
    made.receive(client_frame(CONT, b"three"), client_frame(TEXT, b"next"))
    turn(made)
    assert made.handler.messages == [b"one two three", b"next"]
    assert made.transport.frames == [(PONG, b"?")]


def test_utf8_character_may_be_split_over_fragments(bench: Make) -> None:
    made = bench()
    made.receive(client_frame(TEXT, b"\xe2\x82", fin=False), client_frame(CONT, b"\xac"))
    assert made.handler.messages == ["€".encode()]


def test_message_of_exactly_the_limit_passes_also_in_fragments_with_a_ping_between(bench: Make) -> None:
    made = bench(max_frame_bytes=200)
    made.receive(
        client_frame(TEXT, b"x" * 150, fin=False), client_frame(PING, b"p" * 125), client_frame(CONT, b"x" * 50)
    )
    assert made.handler.messages == [b"x" * 200]


def test_binary_may_hold_any_bytes(bench: Make) -> None:
    made = bench(Subprotocol.MSGPACK)
    made.receive(client_frame(BINARY, b"\xff\xfe\x00"))
    assert made.handler.messages == [b"\xff\xfe\x00"]


VIOLATIONS = {
    "unmasked": (client_frame(TEXT, b"x", masked=False), 1002),
    "unmasked, header only": (client_frame(TEXT, b"x" * 1000, masked=False)[:4], 1002),
    "rsv1, as of a compressed frame": (client_frame(TEXT, b"x", rsv=4), 1002),
    "rsv2": (client_frame(TEXT, b"x", rsv=2), 1002),
    "rsv3": (client_frame(PING, b"x", rsv=1), 1002),
    "opcode 3": (client_frame(3, b"x"), 1002),
    "opcode 11": (client_frame(11, b"x"), 1002),
    "continuation of nothing": (client_frame(CONT, b"x"), 1002),
    "text inside a fragmented message": (client_frame(TEXT, b"x", fin=False) + client_frame(TEXT, b"x"), 1002),
    "fragmented ping": (client_frame(PING, b"x", fin=False), 1002),
    "ping of 126 bytes": (client_frame(PING, b"x" * 126), 1002),
    "close of one byte": (client_frame(CLOSE, b"x"), 1002),
    "close with 1005": (client_frame(CLOSE, b"\x03\xed"), 1002),
    "close with invalid UTF-8": (client_frame(CLOSE, b"\x03\xe8\xff"), 1007),
    "invalid UTF-8": (client_frame(TEXT, b"\xff"), 1007),
    "invalid UTF-8, long": (client_frame(TEXT, b"x" * 500 + b"\xe2\x82"), 1007),
    "invalid UTF-8 in fragments": (client_frame(TEXT, b"\xe2", fin=False) + client_frame(CONT, b"x"), 1007),
    "too large": (client_frame(TEXT, b"x" * 1001)[:4], 4505),
    "much too large": (b"\x81\xff" + b"\x7f" * 8, 4505),
    "too large in fragments": (client_frame(TEXT, b"x" * 600, fin=False) + client_frame(CONT, b"x" * 401), 4505),
    "binary where text belongs": (client_frame(BINARY, b"x"), 1003),
    "binary where text belongs, fragmented": (client_frame(BINARY, b"x", fin=False), 1003),
}


@pytest.mark.requirement("R23")
@pytest.mark.requirement("R25")
@pytest.mark.parametrize("case", VIOLATIONS)
def test_violation_closes_with_its_code_and_nothing_behind_it_is_read(bench: Make, case: str) -> None:
    data, code = VIOLATIONS[case]
    made = bench(max_frame_bytes=1000)
    made.receive(client_frame(TEXT, b"before"), data, client_frame(TEXT, b"behind"))
    made.receive(client_frame(TEXT, b"later"))
    assert made.handler.messages == [b"before"]
    (opcode, payload), *more = made.transport.frames
    assert (opcode, int.from_bytes(payload[:2], "big"), more) == (CLOSE, code, [])
    assert made.transport.eof
    assert not made.connection.is_open
    made.lose()
    assert [closed for closed, _ in made.handler.closes] == [code]


def test_text_on_the_msgpack_subprotocol_is_1003(bench: Make) -> None:
    made = bench(Subprotocol.MSGPACK)
    made.receive(client_frame(TEXT, b"{}"))
    assert made.transport.frames[0][1][:2] == (1003).to_bytes(2, "big")


@pytest.mark.requirement("R9")
def test_what_follows_a_violation_is_not_kept(bench: Make) -> None:
    made = bench()
    made.receive(client_frame(3, b""))
    chunk = b"\x81" * 100_000
    tracemalloc.start()
    try:
        for _ in range(50):
            made.receive(chunk)
        assert tracemalloc.get_traced_memory()[0] < 1_000_000
    finally:
        tracemalloc.stop()
    made.lose()
    assert made.handler.messages == []


@pytest.mark.requirement("R23")
def test_flood_of_control_frames_is_4006(bench: Make) -> None:
    made = bench(max_control_frames=10)
    for _ in range(5):  # ten a second are fine for ever
        made.receive(client_frame(PING) * 10)
        made.time.ms += 1_000
    turn(made)
    assert made.connection.is_open
    made.receive(client_frame(PING) * 11)
    assert made.transport.frames[-1][1][:2] == (4006).to_bytes(2, "big")


def test_any_bytes_renew_the_sign_of_life(bench: Make) -> None:
    made = bench()
    assert made.connection.last_received_ms == 1_000
    made.time.ms = 5_000
    made.receive(client_frame(PONG))
    assert made.connection.last_received_ms == 5_000
    made.time.ms = 6_000
    made.receive(b"\x81")
    assert made.connection.last_received_ms == 6_000


def test_paused_reading_holds_what_had_arrived_and_goes_on_in_order(bench: Make) -> None:
    made = bench()
    made.handler.react = lambda connection, payload: connection.pause_reading() if payload == b"2" else None
    frames = [client_frame(TEXT, b"%d" % number) for number in range(6)]
    made.receive(*frames[:5], frames[5][:3])
    assert made.handler.messages == [b"0", b"1", b"2"]
    assert not made.transport.reading
    made.receive(frames[5][3:])
    turn(made)
    assert made.handler.messages == [b"0", b"1", b"2"]
    made.connection.resume_reading()
    assert made.handler.messages == [b"0", b"1", b"2"]  # not from within the call
    turn(made)
    assert made.handler.messages == [b"%d" % number for number in range(6)]
    assert made.transport.reading


def test_reading_resumed_from_within_a_message_keeps_the_order(bench: Make) -> None:
    made = bench()

    def bounce(connection: Connection, payload: bytes) -> None:
        connection.pause_reading()
        connection.resume_reading()

    made.handler.react = bounce
    made.receive(*(client_frame(TEXT, b"%d" % number) for number in range(5)))
    turn(made)
    assert made.handler.messages == [b"0", b"1", b"2", b"3", b"4"]


# What goes out.


def test_frames_of_one_turn_leave_in_one_write_in_order(bench: Make) -> None:
    made = bench()
    for number in range(4):
        made.connection.send(text_frame(b"%d" % number))
    assert made.transport.writes == []
    assert made.connection.buffered_bytes == 12
    turn(made)
    assert made.transport.writes == [b"\x81\x010\x81\x011\x81\x012\x81\x013"]
    made.connection.ping()
    turn(made)
    assert made.transport.writes[1:] == [ping_frame()]


def test_flush_does_not_wait_for_the_end_of_the_turn(bench: Make) -> None:
    made = bench()
    made.connection.send(text_frame(b"now"))
    made.connection.flush()
    assert made.transport.frames == [(TEXT, b"now")]
    turn(made)
    assert made.transport.frames == [(TEXT, b"now")]


@pytest.mark.requirement("R9")
def test_frames_for_a_peer_that_does_not_read_wait_and_leave_when_it_reads(bench: Make) -> None:
    made = bench()
    made.connection.pause_writing()
    assert not made.connection.writable
    for number in range(3):
        made.connection.send(text_frame(b"%d" % number))
        turn(made)
    made.connection.flush()
    assert made.transport.writes == []
    made.connection.resume_writing()
    assert made.transport.frames == [(TEXT, b"0"), (TEXT, b"1"), (TEXT, b"2")]
    assert made.handler.writable == 1


@pytest.mark.requirement("R9")
def test_pings_of_a_peer_that_does_not_read_cost_one_pong(bench: Make) -> None:
    made = bench(max_control_frames=10_000)
    made.connection.pause_writing()
    made.receive(*(client_frame(PING, b"%d" % number) for number in range(1000)))
    assert made.connection.buffered_bytes == 0
    made.connection.resume_writing()
    assert made.transport.frames == [(PONG, b"999")]


@pytest.mark.requirement("R9")
def test_outbox_above_its_hard_bound_is_dropped_and_closed_as_slow_consumer(bench: Make) -> None:
    made = bench(max_queued_bytes=1000)
    made.connection.pause_writing()
    for _ in range(11):
        made.connection.send(text_frame(b"x" * 98))
    assert [opcode for opcode, _ in made.transport.frames] == [CLOSE]
    assert made.transport.frames[0][1][:2] == (4002).to_bytes(2, "big")
    assert made.connection.buffered_bytes == 0


@pytest.mark.requirement("R9")
def test_backlog_tells_how_long_a_client_takes_nothing(bench: Make) -> None:
    made = bench()
    made.connection.pause_writing()
    made.connection.send(b"x" * 100)
    made.transport.buffered = 50
    assert made.connection.backlog(2_000).waiting_bytes == 150
    assert made.connection.backlog(9_000).stalled_ms == 7_000


def test_nothing_is_sent_after_a_close(bench: Make) -> None:
    made = bench()
    made.connection.send(text_frame(b"last"))
    made.connection.close(4001, "draining")
    made.connection.send(text_frame(b"late"))
    made.connection.close(4504, "again")
    turn(made)
    assert made.transport.frames == [(TEXT, b"last"), (CLOSE, b"\x0f\xa1draining")]
    made.lose()
    assert made.handler.closes == [(4001, "draining")]


# How it ends.


@pytest.mark.parametrize(
    "payload, answer, told",
    [
        (b"\x03\xe8bye", b"\x03\xe8", (1000, "bye")),
        (b"\x03\xe9", b"\x03\xe9", (1001, "")),
        (b"", b"", (1005, "")),
        (b"\x0f\xa1", b"\x0f\xa1", (4001, "")),
        (b"\x03\xf3", b"\x03\xe8", (1011, "")),  # 1011 is never sent, not even back
    ],
)
def test_close_of_the_peer_is_answered_and_told_once(
    bench: Make, payload: bytes, answer: bytes, told: tuple[int, str]
) -> None:
    made = bench()
    made.receive(client_frame(CLOSE, payload), client_frame(TEXT, b"behind"))
    assert made.transport.frames == [(CLOSE, answer)]
    assert made.transport.ended == "closed"
    assert made.handler.closes == []  # the transport may still have something to write
    made.lose()
    assert made.handler.closes == [told]
    assert made.handler.messages == []


def test_answer_of_the_peer_ends_a_close(bench: Make) -> None:
    made = bench()
    made.connection.close(4001, "draining")
    made.receive(client_frame(TEXT, b"crossed"), client_frame(PING, b"crossed"))
    assert not made.transport.is_closing()
    made.receive(client_frame(CLOSE, b"\x0f\xa1"))
    assert made.transport.ended == "closed"
    assert made.handler.messages == []
    assert made.transport.frames == [(CLOSE, b"\x0f\xa1draining")]


def test_close_while_reading_is_paused_still_sees_the_answer(bench: Make) -> None:
    made = bench()
    made.connection.pause_reading()
    made.receive(client_frame(TEXT, b"held"))
    made.connection.close(4006, "rate limited")
    assert made.transport.reading
    made.receive(client_frame(CLOSE, b"\x0f\xa6"))
    turn(made)
    assert made.transport.ended == "closed"
    assert made.handler.messages == []


@pytest.mark.requirement("R9")
def test_close_of_a_peer_that_does_not_read_drops_what_waits(bench: Make) -> None:
    made = bench()
    made.connection.pause_writing()
    made.connection.send(text_frame(b"x" * 1000))
    made.connection.close(4002, "slow consumer")
    assert made.transport.frames == [(CLOSE, b"\x0f\xa2slow consumer")]


@pytest.mark.requirement("R25")
def test_close_without_an_answer_is_bounded(bench: Make) -> None:
    made = bench(close_timeout_ms=20)
    made.connection.close(4001)
    made.sockets.loop.run_until_complete(until(lambda: made.transport.ended == "aborted"))
    made.lose()
    assert made.handler.closes == [(4001, "")]


def test_lost_transport_is_1006(bench: Make) -> None:
    made = bench()
    made.lose()
    assert made.handler.closes == [(1006, "")]
    made.connection.send(text_frame(b"x"))
    made.connection.close(4001)
    made.connection.abort()
    assert made.transport.writes == []
    assert made.connection.buffered_bytes == 0
    assert not made.sockets.connections


def test_error_of_the_bus_closes_with_its_own_code(bench: Make) -> None:
    made = bench()

    def refuse(connection: Connection, payload: bytes) -> None:
        raise BadFrame("op", "is missing")

    made.handler.react = refuse
    made.receive(client_frame(TEXT, b"{}"))
    assert made.transport.frames == [(CLOSE, b"\x11\x94op: is missing")]


@pytest.mark.requirement("R25")
def test_defect_of_the_handler_closes_that_connection_with_4007(bench: Make, caplog: pytest.LogCaptureFixture) -> None:
    made = bench()

    def fail(connection: Connection, payload: bytes) -> None:
        raise ZeroDivisionError

    made.handler.react = fail
    with caplog.at_level(logging.ERROR):
        made.receive(client_frame(TEXT, b"secret"), client_frame(TEXT, b"more"))
    assert made.handler.messages == [b"secret"]
    assert made.transport.frames == [(CLOSE, b"\x0f\xa7internal error")]
    assert "secret" not in caplog.text
    assert "ZeroDivisionError" in caplog.text


def test_defect_in_on_open_and_on_close_stays_inside(bench: Make, caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Recorder):
        def on_open(self, connection: Connection) -> None:
            raise Forbidden("no")

        def on_close(self, code: int, reason: str) -> None:
            raise ZeroDivisionError

    made = bench()
    transport = FakeTransport()
    connection = Connection(made.sockets, transport, Broken(), request())
    connection.open(client_frame(TEXT, b"early"))
    assert transport.frames == [(CLOSE, b"\x11\x96no")]
    connection.connection_lost(None)
    assert made.sockets.connections == {made.connection}
    assert "on_close" in caplog.text


def test_repr_shows_an_operator_who_and_how_it_stands(bench: Make) -> None:
    made = bench()
    made.connection.send(b"x" * 7)
    assert repr(made.connection) == "<Connection 192.0.2.1 json open, 7 bytes waiting>"
    made.connection.pause_writing()
    made.connection.pause_reading()
    assert repr(made.connection) == "<Connection 192.0.2.1 json open, not reading, paused, 7 bytes waiting>"


def test_one_broken_transport_keeps_nobody_elses_frames_back(bench: Make, caplog: pytest.LogCaptureFixture) -> None:
    class Broken(FakeTransport):
        def write(self, data: object) -> None:
            raise RuntimeError("gone")

    made = bench()
    transport = Broken()
    broken = Connection(made.sockets, transport, Recorder(), request())
    broken.open(b"")
    broken.send(text_frame(b"x"))
    made.connection.send(text_frame(b"y"))
    turn(made)
    assert made.transport.frames == [(TEXT, b"y")]
    assert transport.ended == "aborted"


# On real sockets.


def echo(connection: Connection, payload: bytes) -> None:
    frame = text_frame if connection.subprotocol is Subprotocol.JSON else binary_frame
    connection.send(frame(payload))


@on_both_loops
async def test_messages_are_echoed_over_a_real_socket() -> None:
    async with listening(Door(echo)) as listener, connected(listener.port) as client:
        await client.upgrade(sec_websocket_protocol=MSGPACK)
        client.frame(BINARY, b"\x80")
        client.frame(BINARY, b"x" * 65536)
        assert await client.read_frame() == (BINARY, b"\x80")
        assert await client.read_frame() == (BINARY, b"x" * 65536)


@on_both_loops
async def test_websockets_client_gets_no_compression_and_a_clean_close() -> None:
    door = Door(echo)
    async with listening(door) as listener:
        url = f"ws://127.0.0.1:{listener.port}/v1/connect"
        async with connect(url, subprotocols=[Name("eventbus.v1.json")], compression="deflate") as client:
            assert client.subprotocol == "eventbus.v1.json"
            assert client.response is not None
            assert "Sec-WebSocket-Extensions" not in client.response.headers
            await client.send("héllo")
            assert await client.recv() == "héllo"
            await client.send(["frag", "ments ", "x" * 60_000])
            assert await client.recv() == "fragments " + "x" * 60_000
            await (await client.ping(b"there?"))
        await until(lambda: door.handlers[0].closes == [(1000, "")])
        assert not listener.sockets.connections


@on_both_loops
async def test_websockets_client_reads_the_servers_close_code() -> None:
    door = Door()
    async with listening(door) as listener, connect(f"ws://127.0.0.1:{listener.port}/v1/connect") as client:
        door.handlers[0].open.close(CloseCode.DRAINING, "come back in 3 s")
        with pytest.raises(ConnectionClosed) as caught:
            await client.recv()
        assert caught.value.rcvd is not None
        assert (caught.value.rcvd.code, caught.value.rcvd.reason) == (4001, "come back in 3 s")
        await until(lambda: door.handlers[0].closes == [(4001, "come back in 3 s")])


@on_both_loops
@pytest.mark.requirement("R25")
async def test_sender_of_a_huge_message_reads_its_close_code_and_not_a_reset() -> None:
    async with listening(Door()) as listener, connect(f"ws://127.0.0.1:{listener.port}/v1/connect") as client:

        async def send_and_listen() -> None:
            await client.send("x" * 3_000_000)
            await client.recv()

        with pytest.raises(ConnectionClosed):
            await send_and_listen()
        assert client.close_code == CloseCode.FRAME_TOO_LARGE


@on_both_loops
@pytest.mark.requirement("R25")
async def test_peer_that_never_answers_a_close_is_cut_off() -> None:
    door = Door()
    async with (
        listening(door, socket=SocketSettings(close_timeout_ms=50)) as listener,
        connected(listener.port) as client,
    ):
        await client.upgrade()
        door.handlers[0].open.close(4504, "superseded")
        assert await client.read_close() == (4504, "superseded")
        assert await client.read_all() == b""
        assert door.handlers[0].closes == [(4504, "superseded")]


@on_both_loops
async def test_reset_by_the_peer_is_1006_once() -> None:
    door = Door()
    async with listening(door) as listener, connected(listener.port) as client:
        await client.upgrade()
        client.cut()
        await until(lambda: door.handlers[0].closes == [(1006, "")])
        assert await listener.sockets.wait_closed(1_000)


@on_both_loops
async def test_end_of_the_peers_stream_without_a_close_is_1006() -> None:
    door = Door()
    async with listening(door) as listener, connected(listener.port) as client:
        await client.upgrade()
        client.writer.write_eof()
        await until(lambda: door.handlers[0].closes == [(1006, "")])


async def _fill(connection: Connection) -> int:
    """Send numbered frames until the connection is not writable; how many."""
    count = 0
    while connection.writable:
        for _ in range(10):
            connection.send(text_frame(b"%07d" % count + b"x" * 993))
            count += 1
        await asyncio.sleep(0)
        assert count < 3_000, "a stalled reader hides megabytes in the kernel"
    return count


async def _read_numbers(client: RawClient, count: int) -> list[int]:
    return [int((await client.read_frame())[1][:7]) for _ in range(count)]


@on_both_loops
@pytest.mark.requirement("R9")
async def test_reader_that_stalls_is_seen_early_and_gets_everything_when_it_reads_again() -> None:
    door = Door()
    async with listening(door) as listener, connected(listener.port, limit=2**16) as client:
        await client.upgrade()
        handler = door.handlers[0]
        count = await _fill(handler.open)
        handler.open.send(text_frame(b"%07d" % count))
        assert handler.open.buffered_bytes > 0
        assert await _read_numbers(client, count + 1) == list(range(count + 1))
        await until(lambda: handler.writable == 1)
        assert handler.open.writable


@on_both_loops
@pytest.mark.requirement("R9")
@pytest.mark.requirement("R25")
async def test_slow_consumer_is_closed_within_the_bound_though_it_reads_nothing() -> None:
    door = Door()
    async with (
        listening(door, socket=SocketSettings(close_timeout_ms=50)) as listener,
        connected(listener.port) as client,
    ):
        await client.upgrade()
        handler = door.handlers[0]
        await _fill(handler.open)
        handler.open.close(4002, "slow consumer")
        await until(lambda: handler.closes == [(4002, "slow consumer")])


@on_both_loops
async def test_wait_for_the_last_connection_is_bounded() -> None:
    async with listening(Door()) as listener:
        assert await listener.sockets.wait_closed(0)
        async with connected(listener.port) as client:
            await client.upgrade()
            assert not await listener.sockets.wait_closed(20)
            client.cut()
            assert await listener.sockets.wait_closed(5_000)
