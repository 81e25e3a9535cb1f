"""The inside of a node without a port and without a server: sessions on sockets that write down what they are sent, a
store in memory, and a clock that stands still.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self, cast

import msgpack
import orjson

from eventbus.ids import EntryId, EventId, SessionId, UserId
from eventbus.store import Append, Appended, LiveRecord
from eventbus.testing import ManualClock, MemoryStore
from gateway.access.auth import Identity, Scope
from gateway.config import NodeSettings
from gateway.node import Node
from gateway.sessions.session import Session
from gateway.transport.framing import SOCKET
from gateway.transport.handshake import Subprotocol
from gateway.transport.outbox import Backlog
from gateway.transport.websocket import Connection
from tests.support.raw_websocket import PING, split_server_frames

SECRET = "a-secret-of-at-least-32-bytes-for-tests"
SETTLE_TURNS = 30


def identity_of(user: str = "alice", *, expires_ms: int = 4_000_000_000_000, **changes: Any) -> Identity:
    """Who a handshake found."""
    fields: dict[str, Any] = {"session": None, "tier": "free", "scopes": frozenset({Scope.SUBSCRIBE})} | changes
    return Identity(user=UserId(user), expires_ms=expires_ms, **fields)


class FakeConnection:
    """A socket that writes down what it is sent.

    Attributes:
        closed: code and reason, once it was closed.
        reading: whether it takes anything from the client.
        writable: whether the client reads.
        pings: how many pings it was sent.
        raw: what it was sent, as it was handed over; `frames` is the same, decoded.
    """

    def __init__(self, clock: ManualClock, subprotocol: Subprotocol = Subprotocol.JSON) -> None:
        self.subprotocol = subprotocol
        self.framing = SOCKET[subprotocol]
        self.last_received_ms = clock.monotonic_ms()
        self.buffered_bytes = 0
        self.writable = True
        self.stalled_ms = 0
        self.closed: tuple[int, str] | None = None
        self.reading = True
        self.pings = 0
        self.raw: list[bytes] = []
        self.frames: list[dict[str, Any]] = []

    def send(self, frame: bytes) -> None:
        self.raw.append(frame)
        for opcode, payload in split_server_frames(frame):
            assert opcode != PING
            self.frames.append(
                orjson.loads(payload) if self.subprotocol is Subprotocol.JSON else msgpack.unpackb(payload)
            )

    def ping(self) -> None:
        self.pings += 1

    def backlog(self, now_ms: int) -> Backlog:
        return Backlog(waiting_bytes=self.buffered_bytes, stalled_ms=self.stalled_ms)

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def close(self, code: int, reason: str = "") -> None:
        if self.closed is None:
            self.closed = (code, reason)


class BenchClient:
    """One client: its socket and its session."""

    def __init__(self, bench: Bench, identity: Identity | None) -> None:
        self._bench = bench
        self.left = 0
        self.socket = FakeConnection(bench.clock)
        self.session = Session(bench.node, identity, left=self._gone)
        self.session.on_open(cast(Connection, self.socket))

    def _gone(self) -> None:
        self.left += 1

    def say(self, op: str, **fields: Any) -> None:
        """Sends a frame; it counts as a sign of life."""
        self.socket.last_received_ms = self._bench.clock.monotonic_ms()
        self.session.on_message(orjson.dumps({"op": op, **fields}))

    def alive(self) -> None:
        """A sign of life without a frame, such as a pong."""
        self.socket.last_received_ms = self._bench.clock.monotonic_ms()

    def hang_up(self) -> None:
        """The socket is gone."""
        self.session.on_close(1006, "")

    def close_code(self) -> int | None:
        """What the node closed it with."""
        return self.socket.closed[0] if self.socket.closed else None

    def ops(self) -> list[str]:
        """What it was sent, by op."""
        return [frame["op"] for frame in self.socket.frames]

    def of(self, op: str) -> list[dict[str, Any]]:
        """The frames of one op."""
        return [frame for frame in self.socket.frames if frame["op"] == op]

    def events(self) -> list[tuple[str, int]]:
        """The entry id and delivery of each event that it was sent."""
        return [(event["id"], event["delivery"]) for frame in self.of("events") for event in frame["events"]]


class Bench:
    """A node's inside. Its store may be one that a test made.

    Args:
        store: made with `clock`.
        clock: the node's and the store's.
        env: settings, by the names of their variables without the prefix, in lower case.
    """

    def __init__(self, store: MemoryStore | None = None, clock: ManualClock | None = None, **env: Any) -> None:
        self.clock = clock or ManualClock()
        variables = {"EVENTBUS_JWT_SECRET": SECRET, "EVENTBUS_PORT": "0"}
        variables |= {f"EVENTBUS_{key.upper()}": str(value) for key, value in env.items()}
        settings = NodeSettings.from_env(variables, node="n1")
        self.store = store or MemoryStore(settings.store, self.clock)
        self.node = Node(settings, store=self.store, clock=self.clock)
        self._tasks: list[asyncio.Task[None]] = []
        self._published = 0

    async def __aenter__(self) -> Self:
        node = self.node
        self._listening = await self.store.listen(node.name, node.hearing)
        await node.revocations.load()
        for run in (node.reader.run, node.keeper.run_attaches, node.keeper.run_beats):
            self._tasks.append(asyncio.create_task(run(), name=run.__qualname__))
        await self.settle()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        results = await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.store.aclose()
        assert not [result for result in results if not isinstance(result, asyncio.CancelledError)]

    async def settle(self) -> None:
        """Lets everything run that can."""
        for _ in range(SETTLE_TURNS):
            await asyncio.sleep(0)

    async def pass_time(self, ms: int, *, step_ms: int = 1_000) -> None:
        """Lets time pass, the wheel turn, and everything run that can."""
        while ms > 0:
            self.clock.advance(min(ms, step_ms))
            ms -= step_ms
            self.node.clockwork.turn()
            await self.settle()

    async def deafen(self) -> None:
        """From now on no wake-up and no message of a takeover reaches the node."""
        await self._listening.aclose()

    def connect(self, user: str = "alice", **identity: Any) -> BenchClient:
        """A client whose handshake told who it is."""
        return BenchClient(self, identity_of(user, **identity))

    async def open(self, user: str = "alice", session: str = "tab", **hello: Any) -> BenchClient:
        """A client with an open session."""
        client = self.connect(user)
        client.say("hello", session=session, **hello)
        await self.settle()
        assert client.ops()[0] == "welcome", client.socket.frames
        return client

    async def publish(self, count: int = 1, user: str = "alice", **fields: Any) -> list[EntryId]:
        """Stores events; everything that follows from it is done on return."""
        appends = []
        for _ in range(count):
            self._published += 1
            event: dict[str, Any] = {
                "v": 1,
                "id": f"e{self._published}",
                "type": "note",
                "user": user,
                "time_ms": self.clock.now_ms(),
                "data": {"n": self._published},
            } | fields
            appends.append(
                Append(user=UserId(user), event=EventId(event["id"]), body=cast(bytes, msgpack.packb(event)))
            )
        stored = await self.store.append(appends)
        await self.settle()
        return [result.entry for result in stored if isinstance(result, Appended)]

    async def live(self, user: str = "alice", session: str = "tab") -> LiveRecord | None:
        """Who holds a session in the store."""
        records = await self.store.sessions(UserId(user))
        (record,) = [record for record in records if record.session == SessionId(session)]
        return record.live

    async def pending(self, user: str = "alice", session: str = "tab") -> Sequence[EntryId]:
        """What waits for an ack in the store."""
        records = await self.store.pending(UserId(user), SessionId(session), EntryId("0-0"), 1_000)
        return [record.id for record in records]
