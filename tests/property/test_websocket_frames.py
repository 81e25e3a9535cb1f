"""Any mix of frames, cut anywhere, comes through unchanged; any violation gets its code, and never 1011."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.transport.handshake import Subprotocol
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
    Recorder,
    client_frame,
    connected,
    listening,
    request,
)
from tests.support.waiting import until

LIMIT = 65_536
OPCODES = {Subprotocol.JSON: TEXT, Subprotocol.MSGPACK: BINARY}


@dataclass
class Script:
    """What a client sends, and what must come of it."""

    wire: bytearray = field(default_factory=bytearray)
    messages: list[bytes] = field(default_factory=list)
    pings: list[bytes] = field(default_factory=list)


def write_message(script: Script, chance: random.Random, subprotocol: Subprotocol) -> None:
    """One message, whole or in fragments with control frames between."""
    length = chance.choice([chance.randrange(6), chance.randrange(126), chance.randrange(300), chance.randrange(3000)])
    if subprotocol is Subprotocol.JSON:
        payload = "".join(chance.choices("aé€😀", k=length // 3)).encode()
    else:
        payload = chance.randbytes(length)
    script.messages.append(payload)
    opcode = OPCODES[subprotocol]
    if chance.random() < 0.6:
        script.wire += client_frame(opcode, payload)
        return
    cuts = sorted(chance.randrange(len(payload) + 1) for _ in range(chance.randrange(1, 4)))
    edges = [0, *cuts, len(payload)]
    for number, (begin, end) in enumerate(pairwise(edges)):
        script.wire += client_frame(CONT if number else opcode, payload[begin:end], fin=number == len(edges) - 2)
        if chance.random() < 0.3:
            write_control(script, chance)


def write_control(script: Script, chance: random.Random) -> None:
    payload = chance.randbytes(chance.choice([0, 3, 125]))
    if chance.random() < 0.7:
        script.pings.append(payload)
        script.wire += client_frame(PING, payload)
    else:
        script.wire += client_frame(PONG, payload)


def write_script(chance: random.Random, subprotocol: Subprotocol, count: int) -> Script:
    script = Script()
    for _ in range(count):
        if chance.random() < 0.25:
            write_control(script, chance)
        else:
            write_message(script, chance, subprotocol)
    return script


def pieces(chance: random.Random, wire: bytes) -> Iterator[bytes]:
    """Cut into pieces of random lengths, from single bytes to the size of a segment."""
    at = 0
    while at < len(wire):
        size = chance.choice([1, 2, chance.randrange(1, 20), chance.randrange(1, 2000), 70_000])
        yield wire[at : at + size]
        at += size


def connection_for(
    loop: asyncio.AbstractEventLoop, subprotocol: Subprotocol
) -> tuple[Connection, FakeTransport, Recorder]:
    transport, handler = FakeTransport(), Recorder()
    sockets = Sockets(loop, settings=SocketSettings(max_control_frames=1_000_000))
    connection = Connection(sockets, transport, handler, request(subprotocol))
    connection.open(b"")
    return connection, transport, handler


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    made = asyncio.new_event_loop()
    yield made
    made.close()


@pytest.mark.requirement("R23")
@pytest.mark.parametrize("subprotocol", list(Subprotocol))
@pytest.mark.parametrize("seed", range(10))
def test_every_message_and_ping_of_thousands_of_mixed_frames_comes_through(
    loop: asyncio.AbstractEventLoop, subprotocol: Subprotocol, seed: int
) -> None:
    chance = random.Random(seed)
    script = write_script(chance, subprotocol, 600)
    connection, transport, handler = connection_for(loop, subprotocol)
    paused = False
    for piece in pieces(chance, bytes(script.wire)):
        connection.data_received(piece)
        if paused or chance.random() < 0.05:
            paused = not paused
            (connection.pause_reading if paused else connection.resume_reading)()
            loop.run_until_complete(asyncio.sleep(0))
    connection.resume_reading()
    loop.run_until_complete(asyncio.sleep(0))
    connection.flush()
    assert handler.messages == script.messages
    assert transport.frames == [(PONG, payload) for payload in script.pings]
    assert connection.is_open


BAD = {
    "unmasked": (client_frame(TEXT, b"abc", masked=False), {1002}),
    "reserved bit": (client_frame(TEXT, b"abc", rsv=4), {1002}),
    "reserved opcode": (client_frame(6, b"abc"), {1002}),
    "fragmented control": (client_frame(PING, b"abc", fin=False), {1002}),
    "long control": (client_frame(PONG, b"x" * 200), {1002}),
    "invalid UTF-8": (client_frame(TEXT, b"\xc3("), {1007}),
    "oversize": (client_frame(TEXT, b"x" * (LIMIT + 1)), {4505}),
    "oversize by its word": (b"\x81\xff\x80" + bytes(7), {4505}),
    "wrong type": (client_frame(BINARY, b"abc"), {1003}),
}


@pytest.mark.requirement("R23")
@pytest.mark.requirement("R25")
@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("seed", range(5))
def test_violation_at_any_place_gets_its_code_after_all_that_came_before(
    loop: asyncio.AbstractEventLoop, case: str, seed: int
) -> None:
    chance = random.Random(seed)
    script = write_script(chance, Subprotocol.JSON, 40)
    bad, codes = BAD[case]
    connection, transport, handler = connection_for(loop, Subprotocol.JSON)
    for piece in pieces(chance, bytes(script.wire) + bad + bytes(script.wire)):
        connection.data_received(piece)
    *before, (opcode, payload) = transport.frames
    assert opcode == CLOSE
    assert int.from_bytes(payload[:2], "big") in codes
    assert before == [(PONG, ping) for ping in script.pings]
    assert handler.messages == script.messages
    connection.connection_lost(None)
    assert len(handler.closes) == 1


@pytest.mark.requirement("R25")
@settings(max_examples=300)
@given(st.lists(st.binary(max_size=200), max_size=12), st.sampled_from(Subprotocol))
def test_no_bytes_break_the_connection_but_by_a_close_that_is_not_1011(
    chunks: list[bytes], subprotocol: Subprotocol
) -> None:
    loop = asyncio.new_event_loop()
    try:
        connection, transport, handler = connection_for(loop, subprotocol)
        for chunk in chunks:
            if transport.ended is None:
                connection.data_received(chunk)
        connection.flush()
        closes = [payload for opcode, payload in transport.frames if opcode == CLOSE]
        assert len(closes) <= 1
        assert all(payload[:2] != (1011).to_bytes(2, "big") for payload in closes)
        assert connection.is_open == (not closes)
        connection.connection_lost(None)
        assert len(handler.closes) == 1
    finally:
        loop.close()


@on_both_loops
@pytest.mark.requirement("R23")
async def test_mixed_frames_come_through_a_real_socket() -> None:
    chance = random.Random(7)
    script = write_script(chance, Subprotocol.JSON, 1_000)
    door = Door()
    bounds = SocketSettings(max_control_frames=1_000_000)
    async with listening(door, socket=bounds) as listener, connected(listener.port) as client:
        await client.upgrade()

        async def read_pongs() -> list[tuple[int, bytes]]:
            return [await client.read_frame() for _ in script.pings]

        async with asyncio.TaskGroup() as group:
            pongs = group.create_task(read_pongs())
            for piece in pieces(chance, bytes(script.wire)):
                client.write(piece)
                if chance.random() < 0.3:
                    await client.writer.drain()
                    await asyncio.sleep(0)
        assert pongs.result() == [(PONG, payload) for payload in script.pings]
        await until(lambda: len(door.handlers[0].messages) == len(script.messages))
        assert door.handlers[0].messages == script.messages
