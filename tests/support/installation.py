"""Two nodes on one server, the network before them, an agent and an application: where the JavaScript client is tried.

The clients connect to `proxy`, which stands for the network and for a load balancer: it goes to one node at a time. The
agent is a `Bus` in the test's own loop, so what was published, and in which order, is known without asking the store.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import httpx
import pytest
import redis.asyncio

from eventbus import Bus
from eventbus.clock import SystemClock
from eventbus.embedded import EmbeddedServer
from eventbus.ids import UserId
from eventbus.store.keys import Keys
from eventbus.tokens import make_token
from tests.support.pages import PageServer
from tests.support.ports import free_port
from tests.support.processes import ROOT, Child, Processes
from tests.support.proxy import Proxy
from tests.support.servers import NewServer
from tests.support.waiting import until

SECRET = "a secret of the tests of clients, 32 bytes and more"
USER = "ada"
# Quick enough for a test; each is a setting that an operator could choose.
_QUICK = {
    "HEARTBEAT_MS": 1_000,
    "SESSION_HEARTBEAT_MS": 500,
    "READY_PROBE_MS": 200,
    "DRAIN_MS": 1_000,
    "LOG_LEVEL": "warning",
}
_PACE_S = 0.002
_AT_ONCE = 5


class Node:
    """A node's process, which keeps its name and its port when it is started anew."""

    def __init__(self, name: str, child: Child, port: int) -> None:
        self.name = name
        self.child = child
        self.port = port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def ready(self) -> bool:
        """Whether it takes connections."""
        async with httpx.AsyncClient(timeout=2, trust_env=False, verify=False) as client:  # noqa: S501 - no TLS here
            try:
                return (await client.get(f"{self.url}/readyz")).status_code == 200
            except httpx.HTTPError:
                return False


class Installation:
    """The parts, and what a test does to them.

    Attributes:
        entries: the events that were published for `USER`: event id -> entry id.
        token_ttl_ms: life of the tokens that the application gives.
        gives_tokens: whether it gives any.
        tokens_given: how many it gave.
    """

    def __init__(
        self,
        processes: Processes,
        server: EmbeddedServer,
        pages: PageServer,
        proxy: Proxy,
        bus: Bus,
        env: dict[str, str],
    ) -> None:
        self.processes = processes
        self.server = server
        self.pages = pages
        self.proxy = proxy
        self.bus = bus
        self.nodes: list[Node] = []
        self.entries: dict[str, str] = {}
        self.redis: Any = redis.asyncio.Redis.from_url(server.url, decode_responses=True)
        self.token_ttl_ms = 3_600_000
        self.gives_tokens = True
        self.tokens_given = 0
        self._env = env
        self._numbers = itertools.count(1)
        self._stream = Keys("eb", 1024).user(UserId(USER)).stream
        pages.routes["/my/token"] = self._give_token

    @property
    def published(self) -> list[str]:
        """The ids of the events that were published, in the order in which they were stored."""
        return sorted(self.entries, key=lambda event: tuple(map(int, self.entries[event].split("-"))))

    # --- the nodes ----------------------------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """Where clients connect."""
        return f"http://127.0.0.1:{self.proxy.port}"

    async def start_nodes(self, *names: str, **env: object) -> None:
        """Starts nodes; the proxy goes to the first."""
        children = [self._launch(name, 0, env) for name in names]
        for name, child in zip(names, children, strict=True):
            self.nodes.append(Node(name, child, await _port(child)))
        self.proxy.aim(self.nodes[0].port)

    async def restart(self, node: Node) -> None:
        """Starts a node that has ended, on its old port; returns when it accepts."""
        node.child = self._launch(node.name, node.port, {})
        assert await _port(node.child) == node.port

    def switch(self) -> tuple[Node, Node]:
        """Sends new connections to the other node. Returns the node that had them, and the one that gets them."""
        self.nodes.reverse()
        self.proxy.aim(self.nodes[0].port)
        return self.nodes[1], self.nodes[0]

    def _launch(self, name: str, port: int, env: dict[str, object]) -> Child:
        settings = {
            **self._env,
            **{f"EVENTBUS_{key}": str(value) for key, value in env.items()},
            "EVENTBUS_NODE": name,
            "EVENTBUS_PORT": str(port or free_port()),  # its own, for it may be killed and come back
        }
        return self.processes.gateway("serve", name=name, env=settings)

    # --- the agent and the application --------------------------------------------------------------------------------

    def token(self, ttl_ms: int | None = None, **claims: Any) -> str:
        """A token for the user."""
        now_ms = SystemClock().now_ms()
        ttl_ms = self.token_ttl_ms if ttl_ms is None else ttl_ms
        return make_token(user=claims.pop("user", USER), secret=SECRET.encode(), now_ms=now_ms, ttl_ms=ttl_ms, **claims)

    async def publish(self, count: int = 1, *, pace_s: float = 0.0, **more: Any) -> list[str]:
        """Publishes so many events, numbered on, at a pace or all at once; returns their ids."""
        numbers = [next(self._numbers) for _ in range(count)]
        step = _AT_ONCE if pace_s else count
        for few in [numbers[at : at + step] for at in range(0, count, step)]:
            await asyncio.gather(*(self._publish(number, more) for number in few))
            await asyncio.sleep(pace_s * len(few))  # real time: the pace of a publisher
        return [f"e{number}" for number in numbers]

    async def _publish(self, number: int, more: dict[str, Any]) -> None:
        fields = {"type": "step.done", "data": {"number": number}, **more}
        receipt = await self.bus.publish(user=USER, id=f"e{number}", **fields)
        self.entries[f"e{number}"] = receipt.entry

    def serve_client(self) -> None:
        """Lets the application's own server give the client's module, as an application that bundles it does."""
        module = (ROOT / "clients" / "js" / "eventbus-client.js").read_text()
        self.pages.routes["/client.js"] = lambda: module

    def _give_token(self) -> str | None:
        if not self.gives_tokens:
            return None
        self.tokens_given += 1
        return self.token()

    # --- the store ----------------------------------------------------------------------------------------------------

    async def pending(self) -> int:
        """How many deliveries wait for an ack in the store, in all sessions."""
        groups = await self.redis.xinfo_groups(self._stream)
        return sum(group["pending"] for group in groups)

    async def unread(self) -> int:
        """How many events no session has been sent, as the store counts."""
        groups = await self.redis.xinfo_groups(self._stream)
        return sum(group["lag"] or 0 for group in groups)

    async def sessions(self) -> list[str]:
        """The sessions that the store has for the user."""
        return [group["name"] for group in await self.redis.xinfo_groups(self._stream)]

    async def all_acked(self, timeout_ms: int = 15_000) -> None:
        """Waits until every event was sent to every session, and acked, as the store has it."""

        async def nothing() -> bool:
            return await self.pending() + await self.unread() == 0

        await until(nothing, timeout_ms, "everything is acked in the store", pace_ms=50)

    async def aclose(self) -> None:
        """Lets go of the store; the processes are the fixture's."""
        await self.redis.aclose()


class Storm:
    """What can happen to a connection, one thing after the other, while events are published. All chance is seeded.

    Args:
        installation: what it happens to.
        seed: of the chance.
        events: how many are published, spread over the harms.
        arrived: how many the application has been given.
    """

    def __init__(
        self, installation: Installation, seed: int, events: int, arrived: Callable[[], Awaitable[int]]
    ) -> None:
        self.random = random.Random(seed)
        self.struck = 0
        self._installation = installation
        self._events = events
        self._arrived = arrived

    async def run(self, *harms: str) -> None:
        """Does each harm, named as the methods below, in a random order; publishes all the while.

        `struck` counts the harms that came while events were on their way.
        """
        order = self.random.sample(harms, len(harms))
        share = self._events // len(order)
        for place, harm in enumerate(order):
            count = share if place else self._events - share * (len(order) - 1)
            async with asyncio.TaskGroup() as group:
                publishing = group.create_task(self._installation.publish(count, pace_s=_PACE_S))
                await asyncio.sleep(self.random.random() * count * _PACE_S)  # real time: harm at any moment
                self.struck += len(self._installation.published) > await self._arrived() or not publishing.done()
                await getattr(self, harm)()
            await self._goes_on(harm)

    async def _goes_on(self, harm: str) -> None:
        """Waits until something that was published after the harm has come."""
        [event] = await self._installation.publish()
        wanted = self._installation.published.index(event)

        async def came() -> bool:
            return await self._arrived() > wanted

        await until(came, 20_000, f"an event that was published after the harm {harm!r}", pace_ms=20)

    async def _reconnected(self, before: int) -> None:
        await until(lambda: self._installation.proxy.accepted > before, 20_000, "the client connects again")

    async def cut(self) -> None:
        """Both sides see a reset."""
        self._installation.proxy.cut()

    async def torn(self) -> None:
        """The connection ends within a frame."""
        proxy = self._installation.proxy
        before = proxy.accepted
        way, most = self.random.choice(((proxy.to_client, 3_000), (proxy.to_server, 400)))
        way.cut_after_bytes = self.random.randint(1, most)
        async with asyncio.timeout(20):
            while proxy.accepted == before:
                await self._installation.publish(pace_s=_PACE_S)

    async def refused(self) -> None:
        """No connection is taken for a while."""
        proxy = self._installation.proxy
        before = proxy.accepted
        proxy.refuse()
        await until(lambda: proxy.accepted >= before + 3, 20_000, "the client tries three times")
        proxy.heal()

    async def lossy(self) -> None:
        """Every chunk is late by another time, and sometimes nothing moves."""
        proxy = self._installation.proxy
        for _ in range(6):
            proxy.to_client.delay_ms = self.random.randint(0, 120)
            proxy.to_server.delay_ms = self.random.randint(0, 120)
            if self.random.random() < 0.5:
                proxy.stall()
            await asyncio.sleep(self.random.random() * 0.15)  # real time: how long the network is so
            proxy.to_client.flow()
            proxy.to_server.flow()
        proxy.heal()

    async def half_open(self) -> None:
        """Both sides believe in the connection, and nothing goes through."""
        proxy = self._installation.proxy
        before = proxy.accepted
        proxy.half_open()
        await self._reconnected(before)
        proxy.heal()
        proxy.cut()

    async def frozen(self) -> None:
        """The node stands still with its connections open; later it goes on, when the client is elsewhere."""
        before = self._installation.proxy.accepted
        old, _ = self._installation.switch()
        old.child.freeze()
        try:
            await self._reconnected(before)
            await self._goes_on("frozen")
        finally:
            old.child.thaw()

    async def killed(self) -> None:
        """SIGKILL; the other node takes over."""
        old, _ = self._installation.switch()
        old.child.kill()
        await self._goes_on("killed")
        await self._installation.restart(old)

    async def drained(self) -> None:
        """SIGTERM: the node tells its clients when to come back, and ends."""
        old, _ = self._installation.switch()
        old.child.terminate()
        assert await old.child.wait() == 0
        await self._installation.restart(old)


async def _port(child: Child) -> int:
    line = await child.line(r"^ready .*url=", timeout_ms=30_000)
    return int(line.split("url=")[1].split()[0].rpartition(":")[2])


NewInstallation = Callable[..., Awaitable[Installation]]


@pytest.fixture
async def new_installation(processes: Processes, new_server: NewServer) -> AsyncIterator[NewInstallation]:
    """Makes the parts: the number of nodes, and by name their settings, such as `ack_timeout_ms=1_000`."""
    async with AsyncExitStack() as stack:

        async def make(*, nodes: int = 1, **settings: object) -> Installation:
            server = new_server()
            pages = await stack.enter_async_context(PageServer(ROOT / "tests" / "browser" / "pages"))
            proxy = await stack.enter_async_context(Proxy(0))
            upper = {name.upper(): value for name, value in settings.items()}
            env = {
                "REDIS_URL": server.url,
                "JWT_SECRET": SECRET,
                "ADMIN_PORT": "0",
                "ALLOWED_ORIGINS": pages.origin,
                **_QUICK,
                **upper,
            }
            variables = {f"EVENTBUS_{name}": str(value) for name, value in env.items()}
            agent = {"publish_deadline_ms": 20_000, "redis_url": server.url}
            for name in ("max_stream_entries", "retention_ms"):
                if name in settings:
                    agent[name] = settings[name]
            bus = await stack.enter_async_context(Bus.from_env(**agent))
            made = Installation(processes, server, pages, proxy, bus, variables)
            stack.push_async_callback(made.aclose)
            await made.start_nodes(*[f"node-{number}" for number in range(1, nodes + 1)])
            return made

        yield make
