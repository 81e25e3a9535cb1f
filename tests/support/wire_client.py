"""A client of the wire protocol that says what the test says and no more, and a node to say it to.

It acks nothing by itself, answers pings unless told not to, and keeps every frame that it was sent.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Self

import msgpack
import orjson

from eventbus.clock import Clock
from eventbus.store import Store
from eventbus.testing import ManualClock
from eventbus.tokens import make_token
from gateway.config import NodeSettings
from gateway.node import Node
from gateway.sessions.clockwork import STALL_MS
from tests.support.raw_websocket import BINARY, CLOSE, PING, PONG, TEXT, RawClient, connected, upgrade_head
from tests.support.waiting import until

SECRET = "a-secret-of-at-least-32-bytes-for-tests"
JSON, MSGPACK = "eventbus.v1.json", "eventbus.v1.msgpack"


def token_of(user: str = "alice", *, ttl_ms: int = 3_600_000, **claims: Any) -> str:
    """A token of the tests' issuer; `scopes`, `tier`, `session` as `make_token` takes them."""
    return make_token(user=user, secret=SECRET.encode(), now_ms=_now_ms(), ttl_ms=ttl_ms, **claims)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def bearer(token: str) -> str:
    """The value of an Authorization header."""
    return f"Bearer {token}"


@dataclass(frozen=True, slots=True)
class Closed:
    """How a node ended a connection."""

    code: int | None
    reason: str


class WireClient:
    """One connection after its handshake.

    Attributes:
        seen: every frame of the protocol that came, in order.
        pings: how many pings came.
    """

    def __init__(self, raw: RawClient, subprotocol: str = JSON) -> None:
        self.raw = raw
        self.seen: list[dict[str, Any]] = []
        self.pings = 0
        self.answers_pings = True
        self._binary = subprotocol == MSGPACK

    def send(self, op: str, **fields: Any) -> None:
        """Sends a frame."""
        self.send_object({"op": op, **fields})

    def send_object(self, value: object) -> None:
        """Sends whatever as one message in the connection's format."""
        if self._binary:
            self.raw.frame(BINARY, msgpack.packb(value))
        else:
            self.raw.frame(TEXT, orjson.dumps(value))

    async def next(self) -> dict[str, Any]:
        """The next frame of the protocol; a close instead fails the test."""
        frame = await self._next()
        assert not isinstance(frame, Closed), f"closed: {frame}, after {self.seen[-3:]}"
        return frame

    async def _next(self) -> dict[str, Any] | Closed:
        while True:
            opcode, payload = await self.raw.read_frame()
            if opcode == PING:
                self.pings += 1
                if self.answers_pings:
                    self.raw.frame(PONG, payload)
            elif opcode == CLOSE:
                return Closed(int.from_bytes(payload[:2], "big") if payload else None, payload[2:].decode())
            elif opcode != PONG:
                assert opcode == (BINARY if self._binary else TEXT)
                frame: dict[str, Any] = msgpack.unpackb(payload) if self._binary else orjson.loads(payload)
                self.seen.append(frame)
                return frame

    async def expect(self, op: str, **fields: Any) -> dict[str, Any]:
        """The next frame, which must be of this op and have these fields."""
        frame = await self.next()
        assert frame["op"] == op, frame
        found = {name: frame.get(name) for name in fields}
        assert found == fields, frame
        return frame

    async def until_op(self, op: str) -> dict[str, Any]:
        """The next frame of this op; others before it are only kept."""
        while (frame := await self.next())["op"] != op:
            pass
        return frame

    async def until_closed(self) -> Closed:
        """How the node ended the connection; frames before are kept."""
        while not isinstance(frame := await self._next(), Closed):
            pass
        return frame

    async def hello(self, **fields: Any) -> dict[str, Any]:
        """Opens the session; the welcome."""
        self.send("hello", **fields)
        return await self.expect("welcome")

    async def events(self, count: int) -> list[dict[str, Any]]:
        """The next `count` events, from as many frames as they take; other frames fail the test."""
        found: list[dict[str, Any]] = []
        while len(found) < count:
            found += (await self.expect("events"))["events"]
        assert len(found) == count, found
        return found

    async def nothing_more(self) -> None:
        """Fails if anything but the answer to a ping comes: the node has nothing more to say."""
        self.send("ping", ref="nothing more")
        await self.expect("pong", ref="nothing more")


@asynccontextmanager
async def wired(
    node: Node,
    token: str | None = None,
    *,
    subprotocol: str | None = JSON,
    query: str = "",
    **headers: str | None,
) -> AsyncIterator[WireClient]:
    """A connection to a node, its handshake done; `token` goes into the Authorization header."""
    fields: dict[str, str | None] = {"sec_websocket_protocol": subprotocol, **headers}
    if token is not None:
        fields["authorization"] = bearer(token)
    async with connected(node.port) as raw:
        await raw.upgrade(f"/v1/connect{query}", **fields)
        yield WireClient(raw, subprotocol or JSON)


@asynccontextmanager
async def opened(node: Node, user: str = "alice", *, session: str = "tab", **hello: Any) -> AsyncIterator[WireClient]:
    """An open session that has nothing to catch up with, or the frames of that still to come: its welcome was read."""
    async with wired(node, token_of(user)) as client:
        await client.hello(session=session, **hello)
        yield client


async def refused(node: Node, path: str = "/v1/connect", **headers: str | None) -> tuple[int, str, dict[str, Any]]:
    """The answer to an upgrade that is refused: status, head in lower case, and what stands in `error`."""
    async with connected(node.port) as raw:
        raw.write(upgrade_head(path, method="GET", **headers))
        status, head, body = await raw.response()
    content = orjson.loads(body)
    assert set(content) == {"error"}
    return status, head.lower(), content["error"]


class Nodes:
    """The nodes of a test, closed when it ends."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._made: list[Node] = []

    async def start(
        self, name: str = "n1", *, url: str | None = None, store: Store | None = None, clock: Clock | None = None,
        proof_wait_ms: int = 10_000, **env: Any,
    ) -> Node:  # fmt: skip
        """Starts a node; `env` are settings by the names of their variables, without the prefix, in lower case."""
        node = self.make(name, url=url, store=store, clock=clock, **env)
        await node.start(proof_wait_ms=proof_wait_ms)
        return node

    def make(
        self, name: str = "n1", *, url: str | None = None, store: Store | None = None, clock: Clock | None = None,
        **env: Any,
    ) -> Node:  # fmt: skip
        """Makes a node that is not started yet."""
        variables = {"EVENTBUS_REDIS_URL": url or self.url, "EVENTBUS_JWT_SECRET": SECRET, "EVENTBUS_PORT": "0"}
        variables |= {f"EVENTBUS_{key.upper()}": str(value) for key, value in env.items()}
        node = Node(NodeSettings.from_env(variables, node=name), store=store, clock=clock)
        self._made.append(node)
        return node

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for node in self._made:
            listener = node.listener
            await node.aclose()
            if listener is not None:
                assert await listener.sockets.wait_closed(5_000)


async def publish(node: Node, *texts: str, user: str = "alice", type: str = "note", **fields: Any) -> list[str]:
    """Publishes events, one after the other; their entry ids."""
    receipts = [await node.bus.publish(user=user, type=type, data={"text": text}, **fields) for text in texts]
    return [receipt.entry for receipt in receipts]


def texts(events: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the events of `publish` say."""
    return [event["event"]["data"]["text"] for event in events]


def ids(events: Sequence[Mapping[str, Any]]) -> list[str]:
    """The entry ids of delivered events."""
    return [event["id"] for event in events]


async def pass_time(node: Node, clock: ManualClock, ms: int, *, step_ms: int = 1_000) -> None:
    """Lets a node live through some time of its manual clock, in steps that it must not take for a stall."""
    assert step_ms < STALL_MS
    while ms > 0:
        clock.advance(min(ms, step_ms))
        ms -= step_ms
        now_ms = clock.monotonic_ms()
        await until(lambda now_ms=now_ms: node.clockwork.turned_ms >= now_ms)  # type: ignore[misc]


async def settled(node: Node) -> None:
    """Waits until the node holds nothing of anybody: no connection, no session, nothing that waits."""

    def rest() -> dict[str, int]:
        return {
            "connections": node.connections,
            "sessions": len(node.hub),
            "users": node.hub.users,
            "wheel": len(node.wheel),
            "attaches": node.keeper.waiting,
            "busy": int(node.reader.is_busy),
            **node.reader.backlog,
        }

    await until(lambda: not any(rest().values()), message=lambda: f"left over: {rest()}")
