"""A small installation in processes of its own: one server, some nodes, a publisher, clients. The test only looks on,
and does harm.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest
import redis.asyncio

from eventbus.embedded import EmbeddedServer
from eventbus.ids import UserId
from eventbus.store.keys import Keys
from tests.support.checker import Report
from tests.support.load.logs import ClientLog, PublisherLog, SessionSeen, judge
from tests.support.load.plans import ClientPlan, PublisherPlan
from tests.support.ports import free_port
from tests.support.processes import Child, Processes
from tests.support.servers import NewServer
from tests.support.waiting import until

SECRET = "a secret of the fault tests, 32 bytes and more"
_PACE_MS = 50
# Who expects these tests to fail (the mutants) does not wait long for what can not come.
_PATIENCE_MS = int(os.environ.get("EVENTBUS_TEST_PATIENCE_MS", "3600000"))


class Node:
    """A gateway node's process; it keeps its port when it is started anew."""

    def __init__(self, name: str, child: Child, port: int) -> None:
        self.name = name
        self.child = child
        self.port = port

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"


class Clients:
    """A client process and its log."""

    def __init__(self, plan: ClientPlan, child: Child) -> None:
        self.plan = plan
        self.child = child
        self.log = ClientLog(Path(plan.log))

    @property
    def names(self) -> list[tuple[str, str]]:
        """Its users and sessions."""
        return [(user, session) for user in self.plan.users for session in self.plan.sessions]

    def seen(self, user: str, session: str = "tab") -> SessionSeen:
        """What came to one session so far."""
        return self.log.read().sessions[user, session]

    @property
    def closes(self) -> Counter[int]:
        """How its connections ended, by code."""
        return Counter(code for seen in self.log.read().sessions.values() for code, _ in seen.closed)

    @property
    def gaps(self) -> list[tuple[str, ...]]:
        """All gaps that it was told of."""
        return [gap for seen in self.log.read().sessions.values() for gap in seen.gaps]


class Publishing:
    """A publisher process and its log."""

    def __init__(self, plan: PublisherPlan, child: Child) -> None:
        self.plan = plan
        self.child = child
        self.log = PublisherLog(Path(plan.log))


class World:
    """Starts and harms the parts, and knows what is pending in the store.

    Args:
        directory: for plans and logs.
        processes: starts them.
        server: the store.
        env: settings of every process, without the prefix `EVENTBUS_`.

    Attributes:
        missed: for each user the events that no session of it is owed.
    """

    def __init__(
        self, directory: Path, processes: Processes, server: EmbeddedServer, env: Mapping[str, object]
    ) -> None:
        self.server = server
        self.nodes: list[Node] = []
        self.clients: list[Clients] = []
        self.publishers: list[Publishing] = []
        self.redis: Any = self.connected()
        self.keys = Keys("eb", 1024)
        self._directory = directory
        self._processes = processes
        self._env = {f"EVENTBUS_{name}": str(value) for name, value in env.items()}
        self._numbers = itertools.count()
        self.missed: dict[str, set[str]] = {}
        self._addresses = directory / "addresses"
        self._addresses.write_text("")

    def connected(self) -> Any:
        """A client to look at the store with."""
        return redis.asyncio.Redis.from_url(self.server.url, decode_responses=True, encoding_errors="replace")

    # --- the parts ----------------------------------------------------------------------------------------------------

    def launch(self, name: str, *, port: int = 0, redis_url: str | None = None, **env: object) -> Child:
        """Starts a node's process and returns at once."""
        return self._processes.gateway("serve", name=name, env=self._settings(name, port, redis_url, env))

    def _settings(self, name: str, port: int, redis_url: str | None, env: Mapping[str, object]) -> dict[str, str]:
        return {
            "EVENTBUS_REDIS_URL": redis_url or self.server.url,
            "EVENTBUS_JWT_SECRET": SECRET,
            "EVENTBUS_PORT": str(port or free_port()),  # its own, for it may be killed and come back
            "EVENTBUS_ADMIN_PORT": "0",
            "EVENTBUS_NODE": name,
            "EVENTBUS_HANDSHAKES_PER_ADDRESS": "0",
            **self._env,
            **{f"EVENTBUS_{key}": str(value) for key, value in env.items()},
        }

    async def start_nodes(self, *names: str, redis_url: str | None = None, **env: Any) -> list[Node]:
        """Starts nodes and tells the clients' processes of them; returns when they accept."""
        children = [self.launch(name, redis_url=redis_url, **env) for name in names]
        made = []
        for name, child in zip(names, children, strict=True):
            made.append(Node(name, child, await self._port(child)))
        self.nodes += made
        self.publish_addresses()
        return made

    async def restart(self, node: Node, **env: Any) -> None:
        """Starts a node anew, on its port; returns when it accepts."""
        node.child = self.launch(node.name, port=node.port, **env)
        assert await self._port(node.child) == node.port

    async def kill_server(self) -> None:
        """SIGKILL to the server; it comes back with its file on its port."""
        self.server.kill()
        await asyncio.to_thread(self.server.start)
        await self.redis.connection_pool.disconnect()

    @staticmethod
    async def _port(child: Child) -> int:
        line = await child.line(r"^ready .*url=", timeout_ms=30_000)
        return int(line.split("url=")[1].split()[0].rpartition(":")[2])

    def publish_addresses(self, *addresses: str) -> None:
        """Writes down where clients connect: the nodes, or what stands before them."""
        temporary = self._addresses.with_suffix(".new")
        temporary.write_text("\n".join(addresses or [node.address for node in self.nodes]) + "\n")
        temporary.replace(self._addresses)

    async def start_clients(
        self, users: Sequence[str], *, at: Node | None = None, ready: bool = True, **plan: Any
    ) -> Clients:
        """Starts a client process; returns when every session of it is open (or at once, not `ready`).

        Args:
            users: each has every session of the plan.
            at: the only node that they connect to; all that the addresses name when absent.
            ready: whether to wait.
            plan: fields of `ClientPlan`.
        """
        number = next(self._numbers)
        addresses = self._addresses
        if at is not None:
            addresses = self._directory / f"addresses-{number}"
            addresses.write_text(at.address)
        made = ClientPlan(
            addresses=str(addresses),
            secret=SECRET,
            users=list(users),
            log=str(self._directory / f"clients-{number}.log"),
            **{"seed": number, **plan},
        )
        path = made.write(self._directory / f"clients-{number}.json")
        child = self._processes.python("-m", "tests.support.load.client", path, name=f"clients-{number}")
        clients = Clients(made, child)
        self.clients.append(clients)
        if ready:
            await self.wait(lambda: all(clients.seen(*name).opened for name in clients.names), 30_000, "sessions open")
        return clients

    async def start_publisher(self, users: Sequence[str], events: int, **plan: Any) -> Publishing:
        """Starts a publisher; returns when it is about to publish."""
        return await self._start_publisher(users, events, plan, (), self._env)

    async def _start_publisher(
        self, users: Sequence[str], events: int, plan: Mapping[str, Any], words: Sequence[str], env: Mapping[str, str]
    ) -> Publishing:
        """As `start_publisher`; `words` are for the interpreter."""
        number = next(self._numbers)
        made = PublisherPlan(
            users=list(users),
            events=events,
            log=str(self._directory / f"publisher-{number}.log"),
            **{"url": self.server.url, **plan},
        )
        path = made.write(self._directory / f"publisher-{number}.json")
        child = self._processes.python(
            *words, "-m", "tests.support.load.publisher", path, name=f"publisher-{number}", env=env
        )
        publishing = Publishing(made, child)
        self.publishers.append(publishing)
        await self.wait(lambda: publishing.log.read().ready, 30_000, "the publisher is ready")
        return publishing

    # --- looking ------------------------------------------------------------------------------------------------------

    async def wait(self, condition: Callable[[], Any], timeout_ms: int, what: str | Callable[[], str]) -> Any:
        """As `until`, at a pace that leaves the machine to the processes; fails at once when one of them ended."""

        def look() -> Any:
            for child in [part.child for part in self.clients] + [part.child for part in self.publishers]:
                assert child.exit_code in (None, -9), f"{child!r}: {child.stderr[-2000:]}"
            return condition()

        return await until(look, min(timeout_ms, _PATIENCE_MS), what, pace_ms=_PACE_MS)

    async def wait_async(self, condition: Callable[[], Awaitable[bool]], timeout_ms: int, what: str) -> None:
        """As `wait`, for a condition that asks the store or a node."""
        await until(condition, min(timeout_ms, _PATIENCE_MS), what, pace_ms=_PACE_MS)

    async def pending(self) -> Counter[str]:
        """What waits for an ack in the store now: entries by the node that holds their session, "" when none does."""
        names = self.sessions
        pipeline = self.redis.pipeline(transaction=False)
        for user, session in names:
            keys = self.keys.user(UserId(user))
            pipeline.xpending(keys.stream, session)
            pipeline.hget(keys.live, session)
        answers = await pipeline.execute(raise_on_error=False)
        found: Counter[str] = Counter()
        for waiting, live in zip(answers[::2], answers[1::2], strict=True):
            if isinstance(waiting, dict) and waiting["pending"]:
                found[live.split()[0] if live else ""] += waiting["pending"]
        return found

    async def attempts(self, user: str, session: str = "tab") -> dict[str, int]:
        """The pending entries of a session and how often each was delivered, as the store counts."""
        found = await self.redis.xpending_range(self.keys.user(UserId(user)).stream, session, "-", "+", 1000)
        return {item["message_id"]: item["times_delivered"] for item in found}

    async def holder(self, user: str, session: str = "tab") -> tuple[str, str] | None:
        """The node and the connection that hold a session, as the store has it."""
        value = await self.redis.hget(self.keys.user(UserId(user)).live, session)
        if not value:
            return None
        node, connection, _ = value.split()
        return node, connection

    async def dead(self) -> list[dict[str, str]]:
        """All dead letters."""
        found: list[dict[str, str]] = []
        async for key in self.redis.scan_iter(match="eb:{*}:x"):
            found += [fields for _, fields in await self.redis.xrange(key)]
        return found

    async def ready(self, node: Node) -> bool:
        """Whether a node's readiness says so."""
        async with httpx.AsyncClient(timeout=2) as client:
            try:
                return (await client.get(f"http://{node.address}/readyz")).status_code == 200
            except httpx.HTTPError:
                return False

    # --- the judgement ------------------------------------------------------------------------------------------------

    @property
    def sessions(self) -> list[tuple[str, str]]:
        """All sessions, each once."""
        return list(dict.fromkeys(name for clients in self.clients for name in clients.names))

    def report(self) -> Report:
        """What the checker says now."""
        log = _merged([publishing.log.read() for publishing in self.publishers])
        return judge(log, [clients.log.read() for clients in self.clients], self.missed)

    @property
    def owed(self) -> int:
        """Deliveries that the sessions are owed by what was answered so far."""
        sessions = Counter(user for user, _ in self.sessions)
        answered = _merged([publishing.log.read() for publishing in self.publishers]).answered
        return sum(
            sessions[user] * len(set(events).difference(self.missed.get(user, ()))) for user, events in answered.items()
        )

    @property
    def arrived(self) -> int:
        """Deliveries of these that came, each once."""
        logs = [clients.log.read().sessions for clients in self.clients]
        answered = set().union(*(publishing.log.read().entries for publishing in self.publishers))
        count = 0
        for name in self.sessions:
            came = set().union(*(log[name].events for log in logs if name in log))
            count += len(came & answered - self.missed.get(name[0], set()))
        return count

    async def published_at_least(self, publishing: Publishing, count: int) -> None:
        """Waits until so many publishes of a publisher have returned."""
        await self.wait(lambda: publishing.log.read().count >= count, 30_000, f"{count} are published")

    async def published(self, timeout_ms: int = 60_000) -> None:
        """Waits until the publishers have published all that they were told to (or were killed)."""
        await self.wait(
            lambda: all(p.log.read().done or not p.child.running for p in self.publishers),
            timeout_ms,
            lambda: f"published: {[p.log.count for p in self.publishers]}",
        )

    async def settled(self, timeout_ms: int = 30_000, *, acked: bool = True) -> Report:
        """Waits until all is published, has arrived and is acked, and returns the checker's report.

        Raises:
            AssertionError: It does not come to that; the message has the report.
        """
        await self.published()
        await self.wait(
            lambda: self.arrived >= self.owed, timeout_ms, lambda: f"{self.arrived} of {self.owed}: {self.report()}"
        )
        if acked:
            await self.all_acked(timeout_ms)
        return self.report()

    async def all_acked(self, timeout_ms: int = 30_000) -> None:
        """Waits until nothing is pending in the store."""

        async def nothing() -> bool:
            return not await self.pending()

        try:
            await self.wait_async(nothing, timeout_ms, "nothing is pending")
        except AssertionError:
            raise AssertionError(f"still pending: {await self.pending()}\n{self.report()}") from None

    def assert_good(self, report: Report, *, gaps: Sequence[str] = ()) -> None:
        """Fails when the checker found anything, or when a gap was announced that is not among the allowed reasons."""
        told = {gap[0] for clients in self.clients for gap in clients.gaps} - set(gaps)
        assert report.ok, str(report)
        assert not told, f"gaps: {told}"
        assert report.published > 0
        assert not any(1011 in clients.closes for clients in self.clients)

    async def aclose(self) -> None:
        """Lets go of the store; the processes are the fixture's."""
        await self.redis.aclose()


def _merged(logs: Sequence[PublisherLog]) -> PublisherLog:
    if len(logs) == 1:
        return logs[0]
    whole = PublisherLog(Path("/nonexistent"))
    for log in logs:
        for user, events in log.answered.items():
            # An event that a second publisher repeats was stored in its first place.
            whole.answered[user] += [event for event in events if event not in whole.entries]
        whole.entries = {**log.entries, **whole.entries}
        whole.tried.update(log.tried)
    return whole


NewWorld = Callable[..., World]
AnyWorld = TypeVar("AnyWorld", bound=World)


def fresh_directory(parent: Path) -> Path:
    """A directory of its own for each world of a test."""
    directory = parent / f"world-{len(list(parent.glob('world-*')))}"
    directory.mkdir()
    return directory


def settings_of(env: Mapping[str, object]) -> dict[str, object]:
    """Keyword arguments as settings of every process, which log little."""
    return {"LOG_LEVEL": "warning", **{name.upper(): value for name, value in env.items()}}


@contextlib.asynccontextmanager
async def maker(
    kind: type[AnyWorld], parent: Path, processes: Processes, new_server: NewServer
) -> AsyncIterator[Callable[..., AnyWorld]]:
    """Makes worlds of a kind, each with a server of its own; they are closed at the end."""
    made: list[AnyWorld] = []

    def make(*, server: Mapping[str, Any] | None = None, **env: object) -> AnyWorld:
        world = kind(fresh_directory(parent), processes, new_server(**(server or {})), settings_of(env))
        made.append(world)
        return world

    yield make
    for world in made:
        await world.aclose()


@pytest.fixture
async def new_world(tmp_path: Path, processes: Processes, new_server: NewServer) -> AsyncIterator[NewWorld]:
    """Makes the parts of a test: `new_world(server={"appendfsync": "always"}, ack_timeout_ms=500)`."""
    async with maker(World, tmp_path, processes, new_server) as make:
        yield make
