"""For tests of the Python client: a node whose every frame a test writes, and a real node in this process."""

from __future__ import annotations

import asyncio
import contextlib
import http
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Self

import msgpack
import orjson
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.typing import Subprotocol

from eventbus.clock import SystemClock
from eventbus.subscriber import Delivery, State, StateDetail, Subscriber
from eventbus.tokens import make_token
from gateway.config import NodeSettings
from gateway.node import Node
from tests.support.waiting import until

JSON, MSGPACK = "eventbus.v1.json", "eventbus.v1.msgpack"
SECRET = "s" * 40

WELCOME: dict[str, Any] = {
    "op": "welcome",
    "protocol": 1,
    "node": "n1",
    "connection": "k1",
    "session": "s1",
    "resumed": False,
    "cursor": "0-0",
    "pending": 0,
    "window": 256,
    "heartbeat_ms": 20_000,
    "ack_timeout_ms": 30_000,
    "max_frame_bytes": 65_536,
    "token_expires_ms": 4_000_000_000_000,
    "epoch": "epoch-1",
}


def item(number: int, *, entry: int | None = None, delivery: int = 1) -> dict[str, Any]:
    """Event number so-and-so, as it is delivered."""
    event = {"v": 1, "id": f"e{number}", "type": "step", "user": "ann", "time_ms": 1, "data": {"number": number}}
    return {"id": f"1000-{number if entry is None else entry}", "delivery": delivery, "event": event}


class Peer:
    """One connection as the node sees it.

    Attributes:
        frames: All that the client sent.
        closed: The client's close code, once it has gone.
    """

    def __init__(self, socket: ServerConnection) -> None:
        assert socket.request is not None
        self.headers = socket.request.headers
        self.path = socket.request.path
        self.frames: list[dict[str, Any]] = []
        self.closed: int | None = None
        self._socket = socket

    async def listen(self) -> None:
        try:
            while True:
                data = await self._socket.recv()
                self.frames.append(orjson.loads(data) if isinstance(data, str) else msgpack.unpackb(data))
        except ConnectionClosed:
            self.closed = self._socket.close_code

    async def send(self, op: str, **fields: Any) -> None:
        frame = {"op": op, **fields}
        if self._socket.subprotocol == MSGPACK:
            await self._socket.send(msgpack.packb(frame))
        else:
            await self._socket.send(orjson.dumps(frame).decode())

    async def send_raw(self, payload: str | bytes) -> None:
        await self._socket.send(payload)

    async def events(self, *items: dict[str, Any]) -> None:
        await self.send("events", events=list(items))

    async def greet(self, **fields: Any) -> dict[str, Any]:
        """Waits for the hello, and welcomes."""
        hello = await self.frame("hello")
        await self.send(**{**WELCOME, **fields})
        return hello

    def all(self, op: str) -> list[dict[str, Any]]:
        return [frame for frame in self.frames if frame["op"] == op]

    async def frame(self, op: str, number: int = 1) -> dict[str, Any]:
        """Waits for the frame of that op with that number, from 1."""
        await until(lambda: len(self.all(op)) >= number, message=lambda: f"frame {number} of {op}; came: {self.frames}")
        return self.all(op)[number - 1]

    @property
    def acked(self) -> list[str]:
        """All entry ids acked so far, in order."""
        return [entry for frame in self.all("ack") for entry in frame["ids"]]

    async def acks(self, *numbers: int) -> None:
        """Waits until exactly these are acked."""
        wanted = [f"1000-{number}" for number in numbers]
        await until(lambda: len(self.acked) >= len(wanted), message=lambda: f"acks of {wanted}; came: {self.frames}")
        assert sorted(self.acked) == sorted(wanted)

    async def ping(self) -> None:
        """A WebSocket ping; returns when its pong has come."""
        await (await self._socket.ping())

    async def close(self, code: int, reason: str = "") -> None:
        await self._socket.close(code, reason)

    def cut(self) -> None:
        self._socket.transport.abort()

    async def gone(self) -> int | None:
        """Waits until the client has gone; its close code."""
        await until(lambda: self.closed is not None, message="the client goes")
        return self.closed


class ScriptedNode:
    """A node that does what a test says.

    Attributes:
        peers: The connections so far.
        refusals: HTTP answers for the next handshakes: status, headers, body.
        tried: How many handshakes came.
        tokens: The `Authorization` of each.
    """

    def __init__(self) -> None:
        self.peers: list[Peer] = []
        self.refusals: list[tuple[int, dict[str, str], bytes]] = []
        self.tokens: list[str | None] = []
        self._server: Server | None = None

    @property
    def tried(self) -> int:
        return len(self.tokens)

    @property
    def url(self) -> str:
        assert self._server is not None
        return f"http://127.0.0.1:{next(iter(self._server.sockets)).getsockname()[1]}"

    async def __aenter__(self) -> Self:
        self._server = await serve(
            self._accepted,
            "127.0.0.1",
            0,
            subprotocols=[Subprotocol(JSON), Subprotocol(MSGPACK)],
            process_request=self._asked,
            compression=None,
            ping_interval=None,
            close_timeout=1,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        for peer in self.peers:
            peer.cut()
        self._server.close()
        await self._server.wait_closed()

    async def peer(self, number: int = 1) -> Peer:
        """Waits for the connection with that number, from 1."""
        await until(lambda: len(self.peers) >= number, message=f"connection {number}")
        return self.peers[number - 1]

    async def _accepted(self, socket: ServerConnection) -> None:
        peer = Peer(socket)
        self.peers.append(peer)
        await peer.listen()

    def _asked(self, socket: ServerConnection, request: Request) -> Response | None:
        self.tokens.append(request.headers.get("Authorization"))
        if not self.refusals:
            return None
        status, headers, body = self.refusals.pop(0)
        all_headers = Headers({"Content-Length": str(len(body)), "Connection": "close", **headers})
        return Response(status, http.HTTPStatus(status).phrase, all_headers, body)


class Log:
    """What an application was handed, and what it was told.

    Attributes:
        numbers: `data["number"]` of the events, in order.
        deliveries: The deliveries.
        states: The states.
        details: Their details.
        errors: What `on_error` was called with.
    """

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self.deliveries: list[Delivery] = []
        self.states: list[State] = []
        self.details: list[StateDetail] = []
        self.errors: list[Exception] = []

    def on_state(self, state: State, detail: StateDetail) -> None:
        self.states.append(state)
        self.details.append(detail)

    def take(self, delivery: Delivery) -> None:
        self.deliveries.append(delivery)
        self.numbers.append(delivery.event.data["number"])

    async def follow(self, subscriber: Subscriber) -> None:
        async for delivery in subscriber:
            self.take(delivery)

    async def has(self, *numbers: int) -> None:
        """Waits until exactly these were handed over, in this order."""
        await until(lambda: len(self.numbers) >= len(numbers), message=lambda: f"{numbers}; came: {self.numbers}")
        assert self.numbers == list(numbers)


@asynccontextmanager
async def background(work: Callable[[], Awaitable[None]]) -> AsyncIterator[asyncio.Task[None]]:
    """Runs something beside the test; what it raises fails the test."""
    task = asyncio.ensure_future(_run(work))
    try:
        yield task
    finally:
        if not task.done():
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def _run(work: Callable[[], Awaitable[None]]) -> None:
    await work()


# --- real nodes -------------------------------------------------------------------------------------------------------


def token(user: str = "ann", ttl_ms: int = 3_600_000, **claims: Any) -> str:
    """A token that the nodes of `running_node` take."""
    return make_token(user=user, secret=SECRET.encode(), now_ms=SystemClock().now_ms(), ttl_ms=ttl_ms, **claims)


@asynccontextmanager
async def running_node(redis_url: str, name: str = "n1", **settings: str) -> AsyncIterator[Node]:
    """A real node in this process, on a free port; ended at once, if it was not drained."""
    env = {"EVENTBUS_REDIS_URL": redis_url, "EVENTBUS_JWT_SECRET": SECRET, "EVENTBUS_PORT": "0", **settings}
    node = Node(NodeSettings.from_env(env, node=name))
    await node.start()
    try:
        yield node
    finally:
        await node.aclose()
