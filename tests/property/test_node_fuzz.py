"""Hostile bytes against a living node: no 1011, no traceback in an answer, no growth, and nobody else disturbed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

import msgpack
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eventbus.errors import CloseCode
from eventbus.testing import MemoryStore
from gateway.node import Node
from tests.support.raw_websocket import (
    BINARY,
    CLOSE,
    CONT,
    PING,
    PONG,
    READ_TIMEOUT_S,
    TEXT,
    RawClient,
    client_frame,
    connected,
    split_server_frames,
    upgrade_head,
)
from tests.support.wire_client import JSON, MSGPACK, Nodes, bearer, opened, publish, settled, texts, token_of

OPS = ["hello", "ack", "nack", "refresh", "send", "filter", "working", "ping", "pong", "welcome", "", "__class__"]
FIELDS = [
    *("ids", "upto", "level", "note", "ref", "id", "reason", "delay_ms", "token", "type", "data", "run", "thread"),
    *("filter", "session", "start", "cursor", "epoch", "window"),
]
CLOSE_CODES = {int(code) for code in CloseCode}


class Living:
    """A node on a loop of its own, for tests that are not asynchronous; a witness is served between the examples."""

    def __init__(self, nodes: Nodes, node: Node) -> None:
        self.nodes = nodes
        self.node = node

    @asynccontextmanager
    async def socket(self, subprotocol: str = JSON, *, hello: bool = True) -> AsyncIterator[RawClient]:
        async with connected(self.node.port) as raw:
            await raw.upgrade(authorization=bearer(token_of("mallory")), sec_websocket_protocol=subprotocol)
            if hello:
                value = {"op": "hello", "session": "fuzz"}
                if subprotocol == JSON:
                    raw.frame(TEXT, orjson.dumps(value))
                else:
                    raw.frame(BINARY, msgpack.packb(value))
                await raw.read_frame()
            yield raw

    async def check(self) -> None:
        """Everything that was opened is gone, and an honest client is served as ever."""
        await settled(self.node)
        assert not self.node.failed.is_set()
        async with opened(self.node, "witness", session="w") as witness:
            await witness.expect("caught_up")
            await publish(self.node, "still here", user="witness")
            (event,) = await witness.events(1)
            assert texts([event]) == ["still here"]
            witness.send("ack", ids=[event["id"]], ref=1)
            await witness.expect("acked", count=1)
        await settled(self.node)


@pytest.fixture
def living() -> Iterator[tuple[asyncio.Runner, Living]]:
    with asyncio.Runner() as runner:
        nodes = Nodes("redis://127.0.0.1:1/0")
        node = runner.run(
            nodes.start(store=MemoryStore(), max_frame_bytes=2_048, max_body_bytes=20_000, handshakes_per_address=0)
        )
        yield runner, Living(nodes, node)
        runner.run(nodes.__aexit__(None, None, None))


def close_code_of(data: bytes) -> int | None:
    """The code of the close frame in what a node sent, None when there is none."""
    for opcode, payload in split_server_frames(data):
        if opcode == CLOSE:
            return int.from_bytes(payload[:2], "big") if payload else None
    return None


async def talk(raw: RawClient, *pieces: bytes) -> bytes:
    """Sends, says goodbye, ends its side, and returns all that the node sent until it hung up."""
    with suppress(ConnectionError):
        for piece in pieces:
            raw.writer.write(piece)
            await raw.writer.drain()
        raw.writer.write(client_frame(CLOSE, b"\x03\xe8"))
        raw.writer.write_eof()
    return await raw.read_all()


def judge(data: bytes, peers_own: bool = False) -> None:
    """No 1011, and no code that the page does not name, unless the client's own close was echoed."""
    code = close_code_of(data)
    assert code != 1011
    assert code is None or peers_own or code in CLOSE_CODES, code
    for word in (b"Traceback", b"most recent call", b".py"):
        assert word not in data


# --- frames ---------------------------------------------------------------------------------------------------------

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["1-0", "0-0", "18446744073709551615-18446744073709551615", "new", "cursor", "received", "\x00"])
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
frames = st.fixed_dictionaries({"op": st.sampled_from(OPS) | values}) | st.dictionaries(
    st.sampled_from(FIELDS), values, max_size=5
).flatmap(lambda fields: st.sampled_from(OPS).map(lambda op: {"op": op, **fields}))


def packed(value: Any, subprotocol: str) -> bytes:
    if subprotocol == JSON:
        return client_frame(TEXT, orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS | orjson.OPT_PASSTHROUGH_DATETIME))
    with suppress(ValueError, OverflowError):
        body = msgpack.packb(value)
        assert isinstance(body, bytes)
        return client_frame(BINARY, body)
    return client_frame(BINARY, b"\xc1")


def safely(value: Any, subprotocol: str) -> bytes:
    try:
        return packed(value, subprotocol)
    except (TypeError, ValueError):  # orjson knows no integer above 64 bits and no lone surrogate
        return packed(str(value).encode("ascii", "replace").decode(), subprotocol)


@pytest.mark.requirement("R23")
@pytest.mark.requirement("R25")
@settings(max_examples=150, suppress_health_check=list(HealthCheck))
@given(
    batch=st.lists(frames | values, min_size=1, max_size=8), subprotocol=st.sampled_from([JSON, MSGPACK]),
    hello=st.booleans(),
)  # fmt: skip
def test_frames_of_any_content_are_answered_by_the_page(
    living: tuple[asyncio.Runner, Living], batch: list[Any], subprotocol: str, hello: bool
) -> None:
    runner, node = living

    async def run() -> None:
        async with node.socket(subprotocol, hello=hello) as raw:
            data = await talk(raw, *(safely(value, subprotocol) for value in batch))
            judge(data)
            for opcode, payload in split_server_frames(data):
                if opcode in (TEXT, BINARY):
                    frame = orjson.loads(payload) if opcode == TEXT else msgpack.unpackb(payload)
                    assert isinstance(frame["op"], str)

    runner.run(run())
    runner.run(settled(node.node))


@pytest.mark.requirement("R23")
@settings(max_examples=150, suppress_health_check=list(HealthCheck))
@given(pieces=st.lists(st.binary(min_size=1, max_size=200), min_size=1, max_size=6))
def test_bytes_that_are_no_frames_end_the_connection_by_the_rules(
    living: tuple[asyncio.Runner, Living], pieces: list[bytes]
) -> None:
    runner, node = living

    async def run() -> None:
        async with node.socket() as raw:
            judge(await talk(raw, *pieces), peers_own=True)

    runner.run(run())
    runner.run(settled(node.node))


def broken_frames(chance: random.Random) -> bytes:
    """Frames that are nearly right: a wrong opcode, bit, length or mask, fragments, and cut in any place."""
    data = b""
    for _ in range(chance.randrange(1, 12)):
        payload = chance.choice(
            [
                b'{"op":"ping"}',
                b'{"op":"ack","ids":["1-0"]}',
                b'{"op":"hello"}',
                b"",
                b"\xff\xfe",
                chance.randbytes(chance.randrange(300)),
                b" " * chance.randrange(4_000),
            ]
        )
        opcode = chance.choice([TEXT, TEXT, TEXT, BINARY, CONT, PING, PONG, CLOSE, 3, 11])
        frame = bytearray(
            client_frame(
                opcode,
                payload,
                fin=chance.random() < 0.8,
                masked=chance.random() < 0.9,
                rsv=chance.choice([0, 0, 0, 0, 1, 4]),
            )
        )
        if chance.random() < 0.2:
            frame[chance.randrange(len(frame))] ^= 1 << chance.randrange(8)
        data += frame
    return data[: chance.randrange(1, len(data) + 1)]


@pytest.mark.requirement("R23")
@pytest.mark.requirement("R25")
@pytest.mark.parametrize("seed", range(8))
def test_nearly_right_frames_from_many_sockets_at_once_cost_only_these(
    living: tuple[asyncio.Runner, Living], seed: int
) -> None:
    runner, node = living
    chance = random.Random(seed)

    async def one(hello: bool, data: bytes, subprotocol: str, rude: bool) -> None:
        async with node.socket(subprotocol, hello=hello) as raw:
            if rude:
                with suppress(ConnectionError):
                    raw.writer.write(data)
                    await raw.writer.drain()
                raw.cut()
                return
            judge(await talk(raw, data), peers_own=True)

    async def run() -> None:
        work: list[Coroutine[Any, Any, None]] = [
            one(
                chance.random() < 0.8,
                broken_frames(chance),
                chance.choice([JSON, MSGPACK]),
                chance.random() < 0.2,
            )
            for _ in range(30)
        ]
        await asyncio.gather(*work)
        await node.check()

    runner.run(run())


# --- handshakes and HTTP --------------------------------------------------------------------------------------------

NAMES = [
    *("authorization", "origin", "host", "sec-websocket-protocol", "sec-websocket-key", "upgrade", "connection"),
    *("content-length", "transfer-encoding", "idempotency-key", "x-forwarded-for", "cookie", "expect"),
]
VALUES = [
    *("", "Bearer ", "Bearer x.y.z", "websocket", "Upgrade", "13", "null", "-1", "1e9", "chunked", "identity"),
    *("a" * 300, "eventbus.v1.json", "base64url.bearer.eventbus.", "http://x", "\xff\xfe", "100-continue", "[::1]"),
]
PATHS = [
    *("/", "/v1/connect", "/v1/events", "/v1/tickets", "/readyz", "/healthz", "/client.js", "/../etc/passwd", "/%00"),
    *("/v1/events?limit=99999999999999999999", "/v1/events?cursor=%ff", "/v1/connect?ticket=%f0%9f%98%80", "*"),
]
BODIES = [b"", b"{", b"[]", b"[" * 5_000, b'{"type":1}', b"\xff" * 100, b'{"a":' + b"9" * 400 + b"}", b"x" * 30_000]


async def read_some(raw: RawClient) -> bytes:
    """The beginning of what the node answers; nothing when it hangs up."""
    with suppress(ConnectionError):
        async with asyncio.timeout(READ_TIMEOUT_S):
            return await raw.reader.read(65_536)
    return b""


async def answers_to(port: int, requests: list[bytes]) -> list[bytes]:
    """What the node answers to each, sent at once; nothing where it waits for the rest of a request.

    That it waits is not told by a clock: these came first, and a row of later requests has been answered since.
    """
    async with AsyncExitStack() as stack:
        raws = [await stack.enter_async_context(connected(port)) for _ in requests]
        for raw, data in zip(raws, requests, strict=True):
            with suppress(ConnectionError):
                raw.write(data)
                await raw.writer.drain()
        readers = [asyncio.create_task(read_some(raw)) for raw in raws]
        for _ in range(20):
            async with connected(port) as probe:
                probe.write(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n")
                status, _head, _body = await probe.response()
                assert status == 200
        for reader in readers:
            reader.cancel()
        await asyncio.wait(readers)
        return [b"" if reader.cancelled() else reader.result() for reader in readers]


def request_of(chance: random.Random) -> bytes:
    if chance.random() < 0.1:
        return chance.randbytes(chance.randrange(1, 400))
    method = chance.choice(["GET", "POST"] * 4 + ["PUT", "HEAD", "OPTIONS", "DELETE", "PATCH", "CONNECT", "FOO", ""])
    lines = [f"{method} {chance.choice(PATHS)} HTTP/{chance.choice(['1.1'] * 8 + ['1.0', '2.0', '9'])}"]
    if chance.random() < 0.5:
        lines += [f"Authorization: {bearer(token_of('mallory', scopes=('publish', 'subscribe')))}"]
    lines += [f"{chance.choice(NAMES)}: {chance.choice(VALUES)}" for _ in range(chance.randrange(4))]
    body = chance.choice(BODIES)
    if chance.random() < 0.7:
        lines += [f"content-length: {len(body)}"]
    head = "\r\n".join(lines).encode("latin-1") + chance.choice(
        [b"\r\n\r\n", b"\r\n\r\n", b"\r\n\r\n", b"\n\n", b"\r\n"]
    )
    data = head + body
    return data[: chance.randrange(1, len(data) + 1)] if chance.random() < 0.2 else data


@pytest.mark.requirement("R23")
@pytest.mark.requirement("R25")
@pytest.mark.parametrize("seed", range(8))
def test_requests_of_any_bytes_are_answered_without_a_traceback_and_never_with_500(
    living: tuple[asyncio.Runner, Living], seed: int
) -> None:
    runner, node = living
    chance = random.Random(1_000 + seed)

    async def run() -> None:
        answers = await answers_to(node.node.port, [request_of(chance) for _ in range(60)])
        for answer in answers:
            for word in (b"Traceback", b"most recent call", b'.py"', b"HTTP/1.1 500", b"Internal Server Error"):
                assert word not in answer, answer
        statuses = {answer[9:12] for answer in answers}
        assert b"400" in statuses
        assert len(statuses) >= 4, statuses
        await node.check()

    runner.run(run())


@pytest.mark.requirement("R23")
@pytest.mark.parametrize("seed", range(4))
def test_upgrade_requests_with_headers_of_any_kind_are_a_socket_or_a_refusal_in_json(
    living: tuple[asyncio.Runner, Living], seed: int
) -> None:
    runner, node = living
    chance = random.Random(2_000 + seed)

    async def one() -> None:
        headers: dict[str, str | None] = {
            chance.choice(NAMES[:5]).replace("-", "_"): chance.choice(VALUES) for _ in range(chance.randrange(4))
        }
        head = upgrade_head(chance.choice(PATHS[1:2] * 5 + PATHS), method="GET", **headers)
        async with connected(node.node.port) as raw:
            raw.write(head)
            answer = await read_some(raw)
        status = int(answer.split(b" ", 2)[1])
        assert status in (101, 200, 400, 401, 403, 404, 405, 426, 431), answer
        if 400 <= status < 500 and b"application/json" in answer:
            assert set(orjson.loads(answer.partition(b"\r\n\r\n")[2])) == {"error"}
        assert b"Traceback" not in answer

    async def run() -> None:
        await asyncio.gather(*(one() for _ in range(60)))
        await node.check()

    runner.run(run())


@pytest.mark.requirement("R9")
def test_clients_that_come_and_go_in_every_state_leave_nothing(living: tuple[asyncio.Runner, Living]) -> None:
    """Cut in the handshake, before hello, while attaching, with events in flight, with held frames, while closing."""
    runner, node = living
    chance = random.Random(7)

    async def one(stage: int) -> None:
        async with connected(node.node.port) as raw:
            if stage == 0:
                raw.write(upgrade_head(method="GET", authorization=bearer(token_of("mallory")))[: chance.randrange(80)])
                await raw.writer.drain()
                return
            await raw.upgrade(authorization=bearer(token_of("mallory")))
            if stage >= 2:
                raw.frame(TEXT, b'{"op":"hello","session":"s%d","start":"earliest"}' % chance.randrange(5))
            if stage >= 3:
                await raw.read_frame()
            if stage == 4:
                raw.write(client_frame(TEXT, b'{"op":"ping"}') * 300)
            if stage == 5:
                raw.frame(CLOSE, b"")
            raw.cut()

    async def run() -> None:
        await publish(node.node, *(f"n{number}" for number in range(20)), user="mallory")
        for _ in range(5):
            await asyncio.gather(*(one(chance.randrange(6)) for _ in range(40)), return_exceptions=True)
        await node.check()
        assert not node.node.reader.is_busy

    runner.run(run())
