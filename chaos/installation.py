"""A whole installation in processes: a store, nodes, HAProxy before them, publishers, clients, and networks between.

    clients-0 (lean clients) ----------------\
    clients-1 (lean clients) ------ "door" --- HAProxy --- node-1..3 --- [proxies] --- store
    clients-2 (client library) --- (a proxy)                publishers --- [proxies] ---/

The proxies belong to the harness; those before the store are there only with a single server, for clients of a cluster
or of Sentinels connect to the addresses that the servers announce.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx

from chaos.history import Kind, Log, Op, merged, read
from chaos.plans import SECRET, ClientPlan, PublisherPlan
from chaos.progress import Progress
from chaos.stores import SingleStore, Store, until
from eventbus.embedded import tied
from tests.support import needs
from tests.support.ports import free_port
from tests.support.processes import ROOT, Child, Processes
from tests.support.proxy import Proxy

__all__ = ["Installation", "Node", "Size"]

_NODES = ("node-1", "node-2", "node-3")
_SKEW = ROOT / "chaos" / "skew"
_DOOR_SESSIONS, _DESK_SESSIONS, _LIBRARY_SESSIONS = ("phone",), ("desk",), ("app",)
# Quicker than the defaults, so that short runs see everything; each is a setting that an operator could choose.
_NODE_SETTINGS = {
    "ACK_TIMEOUT_MS": 5_000,
    "DRAIN_MS": 3_000,
    "HANDSHAKES_PER_ADDRESS": 0,
    "CONNECTIONS_PER_ADDRESS": 0,
    "TRUSTED_PROXIES": "127.0.0.1",
    "LOG_LEVEL": "warning",
    "ADMIN_PORT": 0,
}
_START_MS = 60_000
_MOST_STARTS = 20
_FLOOD_MS = 20_000
_KEPT_S = 35.0  # longer than a publisher keeps its events to send them again


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much there is of everything.

    Attributes:
        users: each with three sessions: one straight at the load balancer, two behind a bad network, one of which is
            the client library's.
        publishers: processes.
        rate: events a second of all publishers together.
        durability: what they ask for.
    """

    users: int = 30
    publishers: int = 3
    rate: int = 90
    durability: str = "memory"


class _Skewed:
    """The wall clock of one process, as `chaos.skew` reads it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.set(0)

    def set(self, offset_ms: int) -> None:
        # In place: the process has the file mapped.
        with self.path.open("r+b" if self.path.exists() else "wb") as file:
            file.write(offset_ms.to_bytes(8, "little", signed=True))

    @property
    def env(self) -> dict[str, str]:
        return {"CHAOS_CLOCK": str(self.path), "PYTHONPATH": f"{_SKEW}:{ROOT}"}


class Node:
    """A gateway node; `lock` is held by what harms it."""

    def __init__(self, name: str, port: int, clock: _Skewed) -> None:
        self.name = name
        self.port = port
        self.clock = clock
        self.lock = asyncio.Lock()
        self.child: Child | None = None
        self.starts = 0

    @property
    def process(self) -> Child:
        """Its process, which was started."""
        assert self.child is not None
        return self.child


class _Publisher:
    def __init__(self, place: int, clock: _Skewed) -> None:
        self.place = place
        self.clock = clock
        self.generation = -1
        self.plan: PublisherPlan | None = None
        self.child: Child | None = None


class Installation:
    """Everything of a run; an asynchronous context manager.

    Args:
        directory: for files, logs and histories.
        store: not yet started.
        size: how much there is of everything.
        seed: of what the processes leave to chance.
    """

    def __init__(self, directory: Path, store: Store, size: Size, seed: int) -> None:
        self.store = store
        self.size = size
        self.users = [f"user{number}" for number in range(size.users)]
        self.door: Proxy
        self.log = Log(directory / "harness.jsonl", "harness")
        self.clients: list[Child] = []
        self._directory = directory
        self._seed = seed
        self._stack = contextlib.AsyncExitStack()
        (directory / "output").mkdir(parents=True, exist_ok=True)
        self._processes = Processes(directory / "output")
        self.nodes = [Node(name, free_port(), _Skewed(directory / f"{name}.clock")) for name in _NODES]
        self._balancer_port, self._operators_port = free_port(), free_port()
        self._balancer: Child | None = None
        self._publishers = [
            _Publisher(place, _Skewed(directory / f"publisher-{place}.clock")) for place in range(size.publishers)
        ]
        self._floods = itertools.count()
        self._flooding: list[_Publisher] = []
        self._expected_dead: set[Child] = set()
        names = [*_DESK_SESSIONS, *_DOOR_SESSIONS, *_LIBRARY_SESSIONS]
        self.progress = Progress(dict.fromkeys(self.users, names))

    async def __aenter__(self) -> Installation:
        async with contextlib.AsyncExitStack() as stack:
            await self._start(stack)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *raised: object) -> None:
        await self._stack.aclose()

    async def _start(self, stack: contextlib.AsyncExitStack) -> None:
        stack.callback(self.log.close)
        await self.store.start(stack)
        stack.callback(self._processes.reap)
        if isinstance(self.store, SingleStore):
            for process in [*_NODES, *(f"publisher-{one.place}" for one in self._publishers)]:
                await self.store.link(process)
        self.door = await stack.enter_async_context(Proxy(self._balancer_port))
        await asyncio.gather(*(self.start_node(node) for node in self.nodes))
        await self.start_balancer()
        for number, (sessions, port, module) in enumerate(
            (
                (_DESK_SESSIONS, self._balancer_port, "chaos.client"),
                (_DOOR_SESSIONS, self.door.port, "chaos.client"),
                (_LIBRARY_SESSIONS, self.door.port, "chaos.application"),
            )
        ):
            plan = ClientPlan(
                name=f"clients-{number}",
                users=self.users,
                sessions=list(sessions),
                addresses=[f"127.0.0.1:{port}"],
                log=str(self._directory / f"clients-{number}.jsonl"),
                seed=self._seed,
            )
            path = plan.write(self._directory / f"clients-{number}.json")
            self.clients.append(self._launch(sys.executable, "-m", module, path, name=plan.name, env={}))
        await until(self._all_open, _START_MS, "all sessions are open")
        for publisher in self._publishers:
            await self.start_publisher(publisher)

    async def _all_open(self) -> bool:
        await self.read()
        return len(self.progress.opened) >= 3 * len(self.users)

    # --- parts, started again when they are harmed --------------------------------------------------------------------

    async def start_node(self, node: Node) -> None:
        """Starts a node; returns when it accepts. One that finds no store and ends is started again, as any supervisor
        would.
        """
        env = {
            **{f"EVENTBUS_{name}": str(value) for name, value in _NODE_SETTINGS.items()},
            "EVENTBUS_REDIS_URL": self.store.url(node.name),
            "EVENTBUS_JWT_SECRET": SECRET,
            "EVENTBUS_NODE": node.name,
            "EVENTBUS_PORT": str(node.port),
            **node.clock.env,
        }

        def launch() -> Child:
            return self._launch(sys.executable, "-m", "gateway", "serve", name=node.name, env=env)

        node.child, node.starts = launch(), 1

        def accepts() -> bool:
            if not node.process.running:
                self._expected_dead.add(node.process)
                node.child = launch()
                node.starts += 1
                assert node.starts < _MOST_STARTS, node.process.stderr
            return "ready node=" in node.process.stdout

        await until(accepts, _START_MS, lambda: f"{node.name} accepts: {node.process.stderr[-2000:]}")

    async def start_balancer(self) -> None:
        """Starts HAProxy with the configuration that is deployed."""
        program = needs.find("haproxy")
        assert program is not None, "needs the package haproxy"
        env = {
            "BIND": f"127.0.0.1:{self._balancer_port}",
            "OPERATORS_BIND": f"127.0.0.1:{self._operators_port}",
            **{f"NODE_{number}": f"127.0.0.1:{node.port}" for number, node in enumerate(self.nodes, 1)},
        }
        config = ROOT / "deploy" / "haproxy.cfg"
        self._balancer = self._launch(program, "-db", "-f", config, name="haproxy", env=env)

        async def answers() -> bool:
            async with httpx.AsyncClient(timeout=2, trust_env=False) as client:
                with contextlib.suppress(httpx.HTTPError):
                    return (await client.get(f"http://127.0.0.1:{self._balancer_port}/readyz")).status_code == 200
            return False

        await until(answers, _START_MS, "the load balancer finds a node")

    def kill_balancer(self) -> None:
        """SIGKILL to HAProxy."""
        assert self._balancer is not None
        self._expected_dead.add(self._balancer)
        self._balancer.kill()

    def kill_node(self, node: Node) -> None:
        """SIGKILL to a node."""
        self._expected_dead.add(node.process)
        node.process.kill()

    async def drain_node(self, node: Node) -> None:
        """SIGTERM to a node; returns when it has ended."""
        child = node.process
        self._expected_dead.add(child)
        child.terminate()
        await until(lambda: not child.running, 30_000, f"{node.name} has drained")
        if child.exit_code != 0:
            self.log.write_of(node.name, Kind.INFO, "died", code=child.exit_code, output=child.stderr[-500:])

    async def start_publisher(self, publisher: _Publisher) -> None:
        """Starts a publisher; after a kill it is another one, with events of its own."""
        publisher.generation += 1
        name = f"publisher-{publisher.place}.{publisher.generation}"
        publisher.plan = PublisherPlan(
            name=name,
            url=self.store.url(f"publisher-{publisher.place}"),
            users=self.users,
            log=str(self._directory / f"{name}.jsonl"),
            durability=self.size.durability,
            rate=max(1, self.size.rate // self.size.publishers),
            seed=self._seed,
        )
        publisher.child = self._launch_publisher(publisher.plan, publisher.clock)
        child = publisher.child
        await until(lambda: "ready" in child.stdout, _START_MS, lambda: f"{name} is ready: {child.stderr[-2000:]}")

    def _launch_publisher(self, plan: PublisherPlan, clock: _Skewed) -> Child:
        path = plan.write(self._directory / f"{plan.name}.json")
        return self._launch(sys.executable, "-m", "chaos.publisher", path, name=plan.name, env=clock.env)

    def _launch(self, *command: str | Path, name: str, env: Mapping[str, str]) -> Child:
        """Starts a process that does not outlive this one, however it ends."""
        words = tied([str(word) for word in command], signal.SIGKILL)
        return self._processes.start(*words, name=name, env=env)

    async def kill_publisher(self, chance: random.Random) -> None:
        """SIGKILL to a publisher, and another one in its place."""
        publisher = chance.choice(self._publishers)
        assert publisher.child is not None
        assert publisher.plan is not None
        self._expected_dead.add(publisher.child)
        publisher.child.kill()
        self.log.write_of(publisher.plan.name, Kind.INFO, "crash")
        await self.start_publisher(publisher)

    async def flood(self, chance: random.Random, events: int) -> None:
        """A further publisher that publishes as fast as it goes, for one user; it stays to the end."""
        name = f"flood-{next(self._floods)}"
        plan = PublisherPlan(
            name=name,
            url=self.store.url(f"publisher-{chance.randrange(self.size.publishers)}"),
            users=[chance.choice(self.users)],
            log=str(self._directory / f"{name}.jsonl"),
            durability=self.size.durability,
            rate=0,
            events=events,
            seed=self._seed,
        )
        flood = _Publisher(len(self._publishers), self._publishers[0].clock)
        flood.plan, child = plan, self._launch_publisher(plan, flood.clock)
        flood.child = child
        self._flooding.append(flood)
        # While the store is in trouble it takes its time; it goes on beside the faults that follow.
        with contextlib.suppress(AssertionError):
            await until(lambda: "idle" in child.stdout, _FLOOD_MS, f"{name} is through")
        loop = asyncio.get_running_loop()
        # A publisher that has published all, and whose last seconds nobody could need any more, goes.
        loop.call_later(_KEPT_S, self._end, child)

    def _end(self, child: Child) -> None:
        if "idle" in child.stdout:
            self._expected_dead.add(child)
            child.terminate()

    def skew(self, chance: random.Random, offset_ms: int) -> tuple[str, Callable[[], None]]:
        """Sets the wall clock of a node or a publisher wrong. Returns whose, and what sets it right."""
        whose: list[Node | _Publisher] = [*self.nodes, *self._publishers]
        one = chance.choice(whose)
        one.clock.set(offset_ms)
        return getattr(one, "name", "a publisher"), lambda: one.clock.set(0)

    def churn(self) -> None:
        """A third of the connections end, guests come."""
        for child in self.clients[:2]:
            os.kill(child.pid, signal.SIGUSR1)

    # --- the end ------------------------------------------------------------------------------------------------------

    def check_processes(self) -> None:
        """Writes down what has ended without having been killed, once each."""
        children = [node.process for node in self.nodes] + self.clients
        children += [one.child for one in [*self._publishers, *self._flooding] if one.child is not None]
        for child in children:
            if not child.running and child not in self._expected_dead:
                self._expected_dead.add(child)
                self.log.write_of(child.name, Kind.INFO, "died", code=child.exit_code, output=child.stderr[-500:])

    async def read(self) -> None:
        """Brings `progress` up to date."""
        await asyncio.to_thread(self.progress.read, self._histories("publisher", "flood", "clients"))

    def _histories(self, *beginnings: str) -> list[Path]:
        return [path for path in sorted(self._directory.glob("*.jsonl")) if path.name.startswith(beginnings)]

    async def caught_up(self, timeout_ms: int) -> bool:
        """Waits until every session has what was answered so far. Returns whether it came to that."""

        async def all_came() -> bool:
            await self.read()
            self.check_processes()
            return self.progress.missing == 0

        try:
            await until(all_came, timeout_ms, "all that was answered has come")
        except AssertionError:
            return False
        return True

    async def settle(self, timeout_ms: int) -> None:
        """Publishers publish nothing new; waits until all has come and is acked, or until nothing more comes."""
        living = [
            one.child for one in [*self._publishers, *self._flooding] if one.child is not None and one.child.running
        ]
        for child in living:
            os.kill(child.pid, signal.SIGUSR1)
        # A publish returns or raises within its deadline; the checker says what did not.
        with contextlib.suppress(AssertionError):
            await until(lambda: all("idle" in child.stdout for child in living), 40_000, "publishers are idle")
        await self.caught_up(timeout_ms)
        waiting: dict[str, int] = {}
        sessions = {name for names in self.progress.sessions.values() for name in names}

        async def nothing_waits() -> bool:
            waiting.clear()
            waiting.update(await asyncio.to_thread(self.store.waiting, self.users, sessions.__contains__))
            return not waiting

        with contextlib.suppress(AssertionError):
            await until(nothing_waits, timeout_ms, "nothing waits for an ack")
        dead = await asyncio.to_thread(self.store.dead_letters, self.users)
        self.log.write(Kind.OK, "look", pending=waiting, dead=dead)
        self.check_processes()
        for child in [*self.clients, *living]:
            child.terminate()
        await until(lambda: not any(child.running for child in [*self.clients, *living]), 30_000, "all have ended")

    def history(self) -> list[Op]:
        """All that was written down, after `settle`."""
        self.log.flush()
        return merged(read(path) for path in sorted(self._directory.glob("*.jsonl")))

    def complaints(self) -> list[str]:
        """The last lines of what the nodes' logs show as defects: exceptions that nobody handled."""
        found = []
        for path in sorted((self._directory / "output").glob("*node-*.stderr")):
            text = path.read_text(errors="replace")
            found += [f"{path.stem}: {block[-300:].strip()}" for block in text.split("Traceback")[1:]]
        return found
