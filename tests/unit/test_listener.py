"""One port: sockets at /v1/connect, HTTP everywhere else, and clients that stop half-way."""

from __future__ import annotations

import asyncio
import datetime
import logging
import signal
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from eventbus.errors import CloseCode, StoreUnavailable
from gateway.transport.handshake import Accept, AcceptThenClose, Decision, Reject, UpgradeRequest
from gateway.transport.listener import ListenerSettings, serve
from gateway.transport.outbox import text_frame
from gateway.transport.upgrade import Route as Origin
from gateway.transport.websocket import Connection, SocketSettings
from tests.support.loops import on_both_loops
from tests.support.raw_websocket import (
    CLOSE,
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
    no_application,
    upgrade_head,
)
from tests.support.stalls import within
from tests.support.waiting import until

GET = b"GET /hello HTTP/1.1\r\nhost: x\r\n\r\n"


def echo(connection: Connection, payload: bytes) -> None:
    connection.send(text_frame(payload))


class Deciding:
    """A gatekeeper whose decisions the test makes."""

    def __init__(self) -> None:
        self.decisions: list[asyncio.Future[Decision]] = []
        self.cancelled = 0

    async def decide(self, request: UpgradeRequest) -> Decision:
        decision: asyncio.Future[Decision] = asyncio.get_running_loop().create_future()
        self.decisions.append(decision)
        try:
            return await decision
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    async def asked(self, count: int = 1) -> asyncio.Future[Decision]:
        await until(lambda: len(self.decisions) == count)
        return self.decisions[-1]


class Always:
    """A gatekeeper with one answer."""

    def __init__(self, answer: Decision | Callable[[], Decision | Awaitable[Decision]]) -> None:
        self._answer = answer

    def decide(self, request: UpgradeRequest) -> Decision | Awaitable[Decision]:
        return self._answer() if callable(self._answer) else self._answer


class Site:
    """An application with the kinds of request that a node has."""

    def __init__(self) -> None:
        self.started = asyncio.Event()
        self.release = asyncio.Event()
        self.cancelled = False
        self.app = Starlette(
            routes=[
                Route("/hello", self.hello),
                Route("/echo", self.echo, methods=["POST"]),
                Route("/slow", self.slow),
                Route("/big", self.big),
                Route("/who", self.who),
            ]
        )

    async def hello(self, request: Request) -> Response:
        return PlainTextResponse("hello")

    async def echo(self, request: Request) -> Response:
        return Response(await request.body())

    async def slow(self, request: Request) -> Response:
        self.started.set()
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        return PlainTextResponse("at last")

    async def big(self, request: Request) -> Response:
        async def endless() -> AsyncIterator[bytes]:
            while True:
                yield b"x" * 65536
                await asyncio.sleep(0)  # to a client that has gone, sending does not wait

        return StreamingResponse(endless())

    async def who(self, request: Request) -> Response:
        assert request.client is not None
        return JSONResponse({"client": request.client.host, "scheme": request.url.scheme})


# Both on one port.


@on_both_loops
async def test_http_and_sockets_share_a_port() -> None:
    site, door = Site(), Door(echo)
    async with listening(door, site.app) as listener, connected(listener.port) as client:
        await client.upgrade()
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{listener.port}") as http:
            assert (await http.get("/hello")).text == "hello"
            body = bytes(range(256)) * 4096
            assert (await http.post("/echo", content=body)).content == body
            answer = await http.get("/nowhere")
            assert answer.status_code == 404
            assert "date" in answer.headers
        client.frame(TEXT, b"still here")
        assert await client.read_frame() == (TEXT, b"still here")


@on_both_loops
async def test_bytes_behind_the_head_are_kept_and_answered_after_the_101() -> None:
    async with listening(Door(echo)) as listener, connected(listener.port) as client:
        client.write(upgrade_head(), client_frame(PING, b"early"), client_frame(TEXT, b"bird")[:5])
        assert (await client.head()).startswith("HTTP/1.1 101 Switching Protocols\r\n")
        assert await client.read_frame() == (PONG, b"early")


@on_both_loops
async def test_head_may_come_byte_by_byte() -> None:
    async with listening(Door(echo)) as listener, connected(listener.port) as client:
        for byte in upgrade_head():
            client.write(bytes([byte]))
            await client.writer.drain()
            await asyncio.sleep(0)
        assert (await client.head()).startswith("HTTP/1.1 101 ")


@on_both_loops
async def test_http_request_may_come_byte_by_byte_and_pipelined() -> None:
    async with listening(Door(), Site().app) as listener, connected(listener.port) as client:
        for byte in GET:
            client.write(bytes([byte]))
            await client.writer.drain()
            await asyncio.sleep(0)
        assert (await client.response())[2] == b"hello"
        client.write(GET, GET)
        assert (await client.response())[2] == b"hello"
        assert (await client.response())[2] == b"hello"


@on_both_loops
async def test_upgrade_on_a_kept_alive_connection_works_and_keeps_early_bytes() -> None:
    async with listening(Door(echo), Site().app) as listener, connected(listener.port) as client:
        client.write(GET)
        assert (await client.response())[2] == b"hello"
        client.write(upgrade_head("/v1/connect?ticket=x"), client_frame(TEXT, b"a\r\n\r\nb"))
        assert (await client.head()).startswith("HTTP/1.1 101 ")
        assert await client.read_frame() == (TEXT, b"a\r\n\r\nb")
        assert not listener.state.connections


@on_both_loops
async def test_upgrade_ahead_of_the_answer_to_an_earlier_request_is_cut_off() -> None:
    site, door = Site(), Door()
    async with listening(door, site.app) as listener, connected(listener.port) as client:
        client.write(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n", upgrade_head())
        assert await client.read_all() == b""
        site.release.set()
        await until(lambda: not listener.state.tasks)
        assert not door.requests


@on_both_loops
async def test_request_tells_the_gatekeeper_what_it_needs() -> None:
    door = Door()
    async with listening(door) as listener, connected(listener.port) as client:
        offer = "base64url.bearer.eventbus.e30, eventbus.v1.msgpack"
        head = await client.upgrade(
            "/v1/connect?ticket=a%20b", Origin="https://x.example", sec_websocket_protocol=offer
        )
        assert "sec-websocket-protocol: eventbus.v1.msgpack\r\n" in head.lower()
        assert "bearer" not in head
        (asked,) = door.requests
        assert (asked.path, asked.query, asked.origin) == ("/v1/connect", "ticket=a%20b", "https://x.example")
        assert (asked.peer, asked.client, asked.scheme) == ("127.0.0.1", "127.0.0.1", "http")
        assert asked.offered == ("base64url.bearer.eventbus.e30", "eventbus.v1.msgpack")
        assert asked.header("host") == "localhost"


@on_both_loops
async def test_without_an_offer_no_subprotocol_is_named() -> None:
    async with listening(Door()) as listener, connected(listener.port) as client:
        assert "sec-websocket-protocol" not in (await client.upgrade()).lower()


# Refusals.

REFUSED: dict[str, tuple[bytes, int, str]] = {
    "another path": (upgrade_head("/elsewhere"), 404, "not_found"),
    "a path below": (upgrade_head("/v1/connect/x"), 404, "not_found"),
    "only an unknown subprotocol": (upgrade_head(sec_websocket_protocol="soap"), 400, "unknown_subprotocol"),
    "only the bearer": (upgrade_head(sec_websocket_protocol="base64url.bearer.eventbus.x"), 400, "unknown_subprotocol"),
    "POST": (upgrade_head(method="POST"), 405, "bad_handshake"),
    "no key": (upgrade_head(sec_websocket_key=None), 400, "bad_handshake"),
    "short key": (upgrade_head(sec_websocket_key="YQ=="), 400, "bad_handshake"),
    "version 8": (upgrade_head(sec_websocket_version="8"), 400, "bad_handshake"),
    "no version": (upgrade_head(sec_websocket_version=None), 400, "bad_handshake"),
    "a body": (upgrade_head(content_length="5") + b"abcde", 400, "bad_request"),
    "chunks": (upgrade_head(transfer_encoding="chunked") + b"0\r\n\r\n", 400, "bad_request"),
    "HTTP/1.0": (upgrade_head().replace(b"HTTP/1.1", b"HTTP/1.0"), 505, "bad_handshake"),
    "a bad header name": (upgrade_head(**{"bad header": "x"}), 400, "bad_request"),
    "a long line": (upgrade_head(x_long="x" * 9000), 431, "bad_request"),
    "many headers": (upgrade_head(**{f"x{number}": "y" for number in range(200)}), 431, "bad_request"),
    "a long head": (upgrade_head(**{f"x{number}": "y" * 5000 for number in range(4)}), 431, "head_too_long"),
}


@pytest.mark.requirement("R23")
@pytest.mark.parametrize("case", REFUSED)
@on_both_loops
async def test_bad_handshake_is_refused_in_json_and_closed(case: str) -> None:
    data, status, code = REFUSED[case]
    door = Door()
    async with listening(door) as listener, connected(listener.port) as client:
        client.write(data)
        got, head, body = await client.response()
        assert got == status
        assert "content-type: application/json\r\n" in head.lower()
        assert "connection: close\r\n" in head.lower()
        assert httpx.Response(200, content=body).json()["error"]["code"] == code
        assert await client.read_all() == b""
        assert not door.requests


@pytest.mark.requirement("R23")
@pytest.mark.parametrize(
    "data",
    [
        b"nonsense\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: bus\r\nContent-Length: -5\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: bus\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET / HTTP/1.1\r\nbad header" + b"x" * 20_000 + b": y\r\n\r\n",
    ],
    ids=["no request", "negative length", "two lengths", "a bad name in a long head"],
)
@on_both_loops
async def test_what_is_no_http_is_refused_once_in_json_as_everything_is(data: bytes) -> None:
    async with listening(Door()) as listener, connected(listener.port) as client:
        client.write(data)
        status, head, body = await client.response()
        assert status in (400, 431)
        assert "content-type: application/json\r\n" in head.lower()
        assert httpx.Response(200, content=body).json()["error"]["code"] in ("bad_request", "head_too_long")
        assert await client.read_all() == b""


@on_both_loops
async def test_a_later_head_that_is_no_http_and_too_long_is_answered_once() -> None:
    faults: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, fault: faults.append(fault))
    async with listening(Door()) as listener, connected(listener.port) as client:
        client.write(b"GET /hello HTTP/1.1\r\nHost: bus\r\n\r\n")
        await client.response()
        client.write(b"GET / HTTP/1.1\r\nbad header: y\r\nX: " + b"x" * 20_000)
        status, _, body = await client.response()
        assert (status, httpx.Response(200, content=body).json()["error"]["code"]) == (400, "bad_request")
        assert await client.read_all() == b""
    assert faults == []


@on_both_loops
async def test_rejection_of_the_gatekeeper_is_the_answer() -> None:
    reject = Reject(status=429, code="rate_limited", message='too "many"', headers=(("Retry-After", "2"),))
    async with listening(Always(reject)) as listener, connected(listener.port) as client:
        client.write(upgrade_head())
        status, head, body = await client.response()
        assert (status, body) == (429, b'{"error":{"code":"rate_limited","message":"too \\"many\\""}}')
        assert "Retry-After: 2\r\n" in head
        assert await client.read_all() == b""


@on_both_loops
async def test_browser_that_is_turned_away_gets_a_close_code() -> None:
    gatekeeper = Always(AcceptThenClose(code=4001, reason="draining"))
    async with listening(gatekeeper) as listener, connected(listener.port) as client:
        client.write(upgrade_head(), client_frame(TEXT, b"hello"))
        await client.head()
        assert await client.read_close() == (4001, "draining")
        client.frame(CLOSE, b"\x0f\xa1")
        assert await client.read_all() == b""


@on_both_loops
async def test_browser_that_is_turned_away_in_a_storm_is_told_when_to_come_back() -> None:
    gatekeeper = Always(AcceptThenClose(code=4007, reason="full", come_back_ms=2_500))
    async with listening(gatekeeper) as listener, connected(listener.port) as client:
        client.write(upgrade_head())
        await client.head()
        told = b'{"op":"goaway","reason":"rebalance","reconnect_after_ms":2500}'
        assert await client.read_frame() == (TEXT, told)
        assert await client.read_close() == (4007, "full")


@on_both_loops
async def test_gatekeeper_that_fails_tells_nothing_of_the_inside(caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> Decision:
        raise ZeroDivisionError("secret")

    async def fail_later() -> Decision:
        return fail()

    for answer in (fail, fail_later):
        async with listening(Always(answer)) as listener, connected(listener.port) as client:
            client.write(upgrade_head())
            status, _, body = await client.response()
            assert status == 500
            assert b"secret" not in body
    assert caplog.text.count("ZeroDivisionError: secret") == 2


@on_both_loops
async def test_error_of_the_bus_in_the_gatekeeper_is_a_503_with_its_code() -> None:
    def fail() -> Decision:
        raise StoreUnavailable("no answer from the store")

    async with listening(Always(fail)) as listener, connected(listener.port) as client:
        client.write(upgrade_head())
        status, head, body = await client.response()
        assert (status, b'"store_unavailable"' in body, "Retry-After" in head) == (503, True, True)


# Decisions that take time.


@on_both_loops
async def test_frames_sent_while_the_decision_is_awaited_are_delivered_after_it() -> None:
    gatekeeper, handler = Deciding(), Recorder(echo)
    async with (
        listening(gatekeeper, socket=SocketSettings(max_frame_bytes=1000)) as listener,
        connected(listener.port) as client,
    ):
        client.write(upgrade_head(), client_frame(TEXT, b"one"))
        decision = await gatekeeper.asked()
        for _ in range(200):  # far above what is kept: the rest waits in the kernel
            client.frame(TEXT, b"x" * 1000)
        await client.writer.drain()
        assert handler.connection is None
        decision.set_result(Accept(handler=handler))
        assert (await client.head()).startswith("HTTP/1.1 101 ")
        assert await client.read_frame() == (TEXT, b"one")
        for _ in range(200):
            assert await client.read_frame() == (TEXT, b"x" * 1000)
        assert not listener.upgrades.pending


@pytest.mark.requirement("R23")
@on_both_loops
async def test_client_that_leaves_takes_the_decision_with_it() -> None:
    gatekeeper = Deciding()
    async with listening(gatekeeper) as listener, connected(listener.port) as client:
        client.write(upgrade_head())
        await gatekeeper.asked()
        client.cut()
        await until(lambda: gatekeeper.cancelled == 1)
        await until(lambda: not listener.upgrades.pending)


@on_both_loops
async def test_handler_accepted_for_a_client_that_has_left_is_told() -> None:
    handler = Recorder()
    release = asyncio.Event()

    async def stubborn() -> Decision:
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                release.set()
        return Accept(handler=handler)

    async with listening(Always(stubborn)) as listener, connected(listener.port) as client:
        client.write(upgrade_head())
        await until(lambda: listener.upgrades.pending)
        client.cut()
        await until(lambda: handler.closes == [(CloseCode.ABNORMAL, "")])
        assert handler.connection is None
        assert not listener.sockets.connections


@on_both_loops
async def test_handler_accepted_at_once_for_a_client_that_has_left_is_told() -> None:
    door = Door()
    async with listening(door) as listener:
        transport = FakeTransport()
        transport.abort()
        listener.upgrades.begin(transport, upgrade_head(), b"", Origin(peer="192.0.2.1", scheme="http"))
        assert door.handlers[0].closes == [(CloseCode.ABNORMAL, "")]
        assert transport.writes == []


@pytest.mark.requirement("R25")
@on_both_loops
async def test_decision_that_takes_too_long_is_a_503() -> None:
    gatekeeper = Deciding()
    async with listening(gatekeeper, decision_timeout_ms=30) as listener, connected(listener.port) as client:
        client.write(upgrade_head())
        status, _, body = await client.response()
        assert (status, b'"handshake_timeout"' in body) == (503, True)
        assert await client.read_all() == b""
        await until(lambda: gatekeeper.cancelled == 1)


@on_both_loops
async def test_decision_that_is_awaited_when_the_listener_stops_is_a_503() -> None:
    gatekeeper = Deciding()
    async with listening(gatekeeper) as listener, connected(listener.port) as client:
        client.write(upgrade_head())
        await gatekeeper.asked()
        await listener.stop()
        assert (await client.response())[0] == 503
        assert gatekeeper.cancelled == 1


# Clients that stop half-way.


async def hung_up(client: RawClient, within_s: float = 3) -> bytes:
    async with within(within_s):
        return await client.read_all()


@pytest.mark.requirement("R23")
@pytest.mark.requirement("R25")
@pytest.mark.parametrize("start", [b"", b"GET", upgrade_head()[:-2], b"PROXY ", b"\x16\x03\x01"])
@on_both_loops
async def test_half_a_head_is_cut_off(start: bytes) -> None:
    async with listening(Door(), head_timeout_ms=30) as listener, connected(listener.port) as client:
        client.write(start)
        assert await hung_up(client) == b""
        assert not listener.heads


@pytest.mark.requirement("R23")
@on_both_loops
async def test_head_without_an_end_is_431() -> None:
    async with listening(Door(), head_bytes=2000) as listener, connected(listener.port) as client:
        client.write(b"GET / HTTP/1.1\r\nx: " + b"y" * 2000)
        assert (await client.response())[0] == 431


@pytest.mark.requirement("R25")
@on_both_loops
async def test_half_a_head_on_a_kept_alive_connection_is_408() -> None:
    async with listening(Door(), Site().app, head_timeout_ms=50) as listener, connected(listener.port) as client:
        client.write(GET)
        assert (await client.response())[2] == b"hello"
        client.write(GET[:-2])
        status, _, body = await client.response()
        assert (status, b"request_timeout" in body) == (408, True)
        assert await hung_up(client) == b""
        assert not listener.state.connections


@pytest.mark.requirement("R23")
@on_both_loops
async def test_endless_head_on_a_kept_alive_connection_is_431() -> None:
    async with listening(Door(), Site().app, head_bytes=2000) as listener, connected(listener.port) as client:
        client.write(GET)
        assert (await client.response())[2] == b"hello"
        client.write(b"GET / HTTP/1.1\r\nhost: x\r\n", *(b"x%d: %s\r\n" % (number, b"y" * 100) for number in range(30)))
        assert (await client.response())[0] == 431


@pytest.mark.requirement("R25")
@on_both_loops
async def test_body_that_does_not_end_is_408() -> None:
    async with listening(Door(), Site().app, body_timeout_ms=50) as listener, connected(listener.port) as client:
        client.write(b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\nhalf")
        assert (await client.response())[0] == 408
        assert await hung_up(client) == b""
        await until(lambda: not listener.state.tasks)


@pytest.mark.requirement("R25")
@on_both_loops
async def test_response_that_nobody_reads_is_cut_off() -> None:
    async with (
        listening(Door(), Site().app, body_timeout_ms=50) as listener,
        connected(listener.port, limit=1024) as client,
    ):
        client.write(b"GET /big HTTP/1.1\r\nhost: x\r\n\r\n")
        await until(lambda: listener.state.tasks)
        await until(lambda: not listener.state.connections)
        await until(lambda: not listener.state.tasks)


@on_both_loops
async def test_idle_connection_is_closed() -> None:
    async with listening(Door(), Site().app, keep_alive_ms=30) as listener, connected(listener.port) as client:
        client.write(GET)
        assert (await client.response())[2] == b"hello"
        assert await hung_up(client) == b""


@on_both_loops
async def test_request_that_runs_longer_than_every_bound_is_left_alone() -> None:
    site = Site()
    bounds = {"head_timeout_ms": 20, "body_timeout_ms": 20, "keep_alive_ms": 20}
    async with listening(Door(), site.app, **bounds) as listener, connected(listener.port) as client:
        client.write(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n")
        await site.started.wait()
        late = asyncio.get_running_loop().time() + 0.1
        await until(lambda: asyncio.get_running_loop().time() > late)
        site.release.set()
        assert (await client.response())[2] == b"at last"


@pytest.mark.requirement("R23")
@pytest.mark.parametrize(
    "junk", [b"\x00\x01\x02\r\n\r\n", b"GET\r\n\r\n", b"CONNECT x:443 HTTP/1.1\r\n\r\n", b"GET / HTTP/9\r\n\r\n"]
)
@on_both_loops
async def test_junk_is_answered_or_cut_off_and_hurts_nobody(junk: bytes) -> None:
    async with listening(Door(), Site().app, head_timeout_ms=200, keep_alive_ms=50) as listener:
        async with connected(listener.port) as client:
            client.write(junk)
            assert b"Traceback" not in await hung_up(client)
        async with connected(listener.port) as client:
            client.write(GET)
            assert (await client.response())[2] == b"hello"


@on_both_loops
async def test_client_is_not_blamed_for_a_body_that_the_application_does_not_read() -> None:
    site = Site()
    async with listening(Door(), site.app, body_timeout_ms=20) as listener, connected(listener.port) as client:
        client.write(b"GET /slow HTTP/1.1\r\nhost: x\r\ncontent-length: 300000\r\n\r\n", b"x" * 300_000)
        await site.started.wait()
        late = asyncio.get_running_loop().time() + 0.1
        await until(lambda: asyncio.get_running_loop().time() > late)
        site.release.set()
        assert (await client.response())[2] == b"at last"


# Proxies.


def is_loopback(address: str) -> bool:
    return address == "127.0.0.1"


@pytest.mark.requirement("R23")
@on_both_loops
async def test_client_behind_a_trusted_proxy_is_known_by_either_way() -> None:
    door, site = Door(), Site()
    line = b"PROXY TCP4 192.0.2.7 127.0.0.1 5 6\r\n"
    async with listening(door, site.app, trusted_proxy=is_loopback) as listener:
        async with connected(listener.port) as client:
            client.write(line[:9])
            await asyncio.sleep(0)
            client.write(line[9:], upgrade_head(x_forwarded_for="203.0.113.5"))
            await client.head()  # the PROXY source is no trusted proxy: what it forwards does not count
        async with connected(listener.port) as client:
            await client.upgrade(x_forwarded_for="203.0.113.9, 198.51.100.9", x_forwarded_proto="https")
        seen = [(asked.peer, asked.client, asked.scheme) for asked in door.requests]
        assert seen == [("192.0.2.7", "192.0.2.7", "http"), ("127.0.0.1", "198.51.100.9", "https")]
        async with connected(listener.port) as client:
            client.write(
                b"GET /who HTTP/1.1\r\nhost: x\r\nx-forwarded-for: 198.51.100.9\r\nx-forwarded-proto: https\r\n\r\n"
            )
            assert (await client.response())[2] == b'{"client":"198.51.100.9","scheme":"https"}'
        async with connected(listener.port) as client:
            client.write(line, b"GET /who HTTP/1.1\r\nhost: x\r\n\r\n")
            assert (await client.response())[2] == b'{"client":"192.0.2.7","scheme":"http"}'


@pytest.mark.requirement("R23")
@on_both_loops
async def test_nobody_else_can_claim_an_address() -> None:
    door, site = Door(), Site()
    async with listening(door, site.app) as listener:
        async with connected(listener.port) as client:
            await client.upgrade(x_forwarded_for="198.51.100.9")
        assert door.requests[0].client == "127.0.0.1"
        async with connected(listener.port) as client:
            client.write(b"PROXY TCP4 192.0.2.7 127.0.0.1 5 6\r\n", upgrade_head())
            assert b"101" not in (await hung_up(client))[:20]
        assert len(door.requests) == 1


@on_both_loops
async def test_malformed_proxy_header_is_400() -> None:
    async with listening(Door(), trusted_proxy=is_loopback) as listener, connected(listener.port) as client:
        client.write(b"PROXY TCP9 a b c d\r\n", upgrade_head())
        assert (await client.response())[0] == 400


# Beginning and end.


@on_both_loops
async def test_stop_ends_requests_and_leaves_sockets_open() -> None:
    site, door = Site(), Door(echo)
    async with (
        listening(door, site.app) as listener,
        connected(listener.port) as socket_client,
        connected(listener.port) as client,
    ):
        await socket_client.upgrade()
        client.write(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n")
        await site.started.wait()
        stopping = asyncio.create_task(listener.stop())
        await asyncio.sleep(0)
        with pytest.raises(OSError, match=r"\[Errno"):
            await asyncio.open_connection("127.0.0.1", listener.port)
        site.release.set()
        status, head, body = await client.response()
        assert (status, body, "connection: close" in head.lower()) == (200, b"at last", True)
        await stopping
        assert not listener.state.connections
        socket_client.frame(TEXT, b"still here")
        assert await socket_client.read_frame() == (TEXT, b"still here")
        await listener.stop()


@pytest.mark.requirement("R25")
@on_both_loops
async def test_stop_is_bounded(caplog: pytest.LogCaptureFixture) -> None:
    site = Site()
    with caplog.at_level(logging.CRITICAL, "uvicorn.error"):
        async with (
            listening(Door(), site.app, stop_timeout_ms=30) as listener,
            connected(listener.port) as client,
            connected(listener.port) as silent,
        ):
            silent.write(b"G")
            client.write(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n")
            await site.started.wait()
            await listener.stop()
            assert site.cancelled
            assert not listener.state.tasks
            assert await silent.read_all() == b""


@on_both_loops
async def test_taken_port_is_an_error_and_no_exit() -> None:
    async with listening(Door()) as listener:
        with pytest.raises(OSError, match="ddress"):
            await serve(no_application, Door(), port=listener.port)


@on_both_loops
async def test_sockets_that_are_given_are_served_and_closed() -> None:
    with socket.create_server(("127.0.0.1", 0)) as given:
        port = given.getsockname()[1]
        listener = await serve(no_application, Door(echo), sockets=[given])
        try:
            assert listener.port == port
            async with connected(port) as client:
                await client.upgrade()
        finally:
            await listener.stop()
            assert await listener.sockets.wait_closed(5_000)
        with pytest.raises(OSError, match=r"\[Errno"):
            await asyncio.open_connection("127.0.0.1", port)


@on_both_loops
async def test_signals_stay_the_nodes() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    async with listening(Door()):
        assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


@on_both_loops
async def test_listener_shows_what_it_holds() -> None:
    async with listening(Door()) as listener, connected(listener.port) as client:
        await client.upgrade()
        assert repr(listener) == f"<Listener {listener.port}: 1 sockets, 0 handshakes, 0 HTTP, 0 heads>"


@pytest.fixture
def tls(tmp_path: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """What a server and a client need to speak TLS with each other."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path = tmp_path / "node.pem"
    path.write_bytes(private + certificate)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(path)
    return server, ssl.create_default_context(cadata=certificate.decode())


@pytest.mark.requirement("R23")
@on_both_loops
async def test_tls_is_served_directly(tls: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    server, trusting = tls
    door, site = Door(echo), Site()
    bounds = ListenerSettings(socket=SocketSettings(close_timeout_ms=100))
    listener = await serve(site.app, door, ssl=server, settings=bounds)
    try:
        options: dict[str, Any] = {"ssl": trusting, "server_hostname": "localhost"}
        async with connected(listener.port, **options) as client:
            client.write(GET)
            assert (await client.response())[2] == b"hello"
        async with connected(listener.port, **options) as client:
            await client.upgrade()
            assert door.requests[0].scheme == "https"
            client.frame(TEXT, b"x" * 60_000)
            assert await client.read_frame() == (TEXT, b"x" * 60_000)
            client.frame(3)
            assert (await client.read_close())[0] == 1002
            await until(lambda: door.handlers[0].closes)
        async with connected(listener.port, **options) as client:
            client.write(upgrade_head("/elsewhere"))
            assert (await client.response())[0] == 404
    finally:
        await listener.stop()
        assert await listener.sockets.wait_closed(5_000)
