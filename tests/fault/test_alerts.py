"""R29: every alert fires when that is done to real nodes which it is there for, and not before.

Prometheus scrapes the nodes and judges the rules of deploy/alerts.yml, see `tests.support.alerting`. What would lose or
hold up events in silence is staged by `make slow`, the rest by `make soak`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx
import pytest
import redis.asyncio
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, WebSocketException

from eventbus import Bus
from eventbus.clock import SystemClock
from eventbus.embedded import EmbeddedServer
from eventbus.event import Require
from eventbus.fields import Level
from eventbus.ids import UserId
from eventbus.store.keys import Keys
from eventbus.tokens import make_token
from tests.support import needs
from tests.support.alerting import SCRAPE_MS, Alerting
from tests.support.balancer_store import StoreWay
from tests.support.clusters import NewCluster, new_cluster
from tests.support.compose import alert_rules
from tests.support.processes import Child, Processes
from tests.support.sentinels import NewSentinels, new_sentinels
from tests.support.servers import NewServer, freeze, thaw
from tests.support.waiting import until

__all__ = ["new_cluster", "new_sentinels"]

pytestmark = [needs.needs_prometheus, pytest.mark.timeout(240)]

SECRET = "a secret of the tests of alerts, of 32 bytes and more"
QUICK = {
    "HOST": "127.0.0.1",
    "PORT": "0",
    "ADMIN_PORT": "0",
    "JWT_SECRET": SECRET,
    "READY_PROBE_MS": "1000",
    "SESSION_HEARTBEAT_MS": "1000",
    "NODE_HEARTBEAT_MS": "500",
    "TALLY_MS": "300",
    "WATCH_MS": "100",
    "DRAIN_MS": "1000",
    "REDIS_TIMEOUT_MS": "800",
    "PUBLISH_DEADLINE_MS": "1000",
    "LOG_LEVEL": "error",
}


@dataclass(frozen=True, slots=True)
class Running:
    """A node's process."""

    child: Child
    url: str
    admin: str


class World:
    """One server, its nodes, clients that behave as they are told, and Prometheus."""

    def __init__(self, processes: Processes, new_server: NewServer, directory: Path) -> None:
        self._processes = processes
        self._new_server = new_server
        self.alerting = Alerting(processes, directory / "prometheus")
        self.nodes: list[Running] = []
        self._stack = contextlib.AsyncExitStack()
        self._tasks: list[asyncio.Task[None]] = []
        self._server: EmbeddedServer | None = None

    @property
    def server(self) -> EmbeddedServer:
        """The server; started when it is asked for first."""
        if self._server is None:
            self._server = self._new_server()
        return self._server

    async def start(
        self, *names: str, redis_url: str | None = None, words: tuple[str, ...] = (), **env: object
    ) -> None:
        """Starts nodes; returns when they accept."""
        settings = {**QUICK, **{name: str(value) for name, value in env.items()}}
        settings = {f"EVENTBUS_{name}": value for name, value in settings.items()}
        settings["EVENTBUS_REDIS_URL"] = redis_url or self.server.url
        children = [
            self._processes.gateway("serve", *words, name=name, env={**settings, "EVENTBUS_NODE": name})
            for name in names
        ]
        for child in children:
            line = await child.line("^ready ", 20_000)
            told = dict(word.split("=", 1) for word in line.split()[1:])
            self.nodes.append(Running(child, told["url"], urlsplit(told["admin"]).netloc))

    async def watch(self, *, scrape_ms: int = SCRAPE_MS, **ages: tuple[str, str]) -> None:
        """Starts Prometheus over the nodes that were started."""
        await self.alerting.start([node.admin for node in self.nodes], scrape_ms=scrape_ms, **ages)

    def token(self, user: str, scope: str = "subscribe publish") -> str:
        return make_token(
            user=user, secret=SECRET.encode(), now_ms=SystemClock().now_ms(), ttl_ms=600_000, scopes=scope.split()
        )

    async def client(self, user: str, session: str = "tab", **hello: Any) -> ClientConnection:
        """A client that has said hello and does nothing more."""
        socket = await self._stack.enter_async_context(
            connect(
                self.nodes[0].url.replace("http", "ws") + "/v1/connect",
                additional_headers={"Authorization": f"Bearer {self.token(user)}"},
                proxy=None,
                max_queue=4,
                close_timeout=0.1,
            )
        )
        await socket.send(json.dumps({"op": "hello", "session": session, **hello}))
        return socket

    def goes_on(self, work: Callable[[], Awaitable[None]], *, every_s: float = 0.0) -> None:
        """Does something again and again until the test ends, whether it fails or not."""

        async def again() -> None:
            while True:
                with contextlib.suppress(Exception):
                    await work()
                await asyncio.sleep(every_s)  # real time: the pace of those who do it

        self._tasks.append(asyncio.ensure_future(again()))

    def answering(self, socket: ClientConnection, say: Callable[[str], dict[str, Any] | None]) -> None:
        """Reads a client's events for it, and answers each entry with a frame, or not at all."""

        async def read() -> None:
            with contextlib.suppress(ConnectionClosed):
                async for message in socket:
                    frame = json.loads(message)
                    for item in frame["events"] if frame["op"] == "events" else ():
                        if (answer := say(item["id"])) is not None:
                            await socket.send(json.dumps(answer))

        self._tasks.append(asyncio.ensure_future(read()))

    async def bus(self, **settings: Any) -> Bus:
        return await self._stack.enter_async_context(Bus.from_env(redis_url=self.server.url, **settings))

    async def redis(self, *words: str | int) -> Any:
        """One command."""
        client: Any = redis.asyncio.Redis.from_url(self.server.url, decode_responses=True)
        async with client:
            return await client.execute_command(*words)

    async def aclose(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for node in self.nodes:
            node.child.kill()
        await self._stack.aclose()


@pytest.fixture
async def world(processes: Processes, new_server: NewServer, tmp_path: Path) -> AsyncIterator[World]:
    made = World(processes, new_server, tmp_path)
    yield made
    await made.aclose()


STAGED: dict[str, tuple[str, ...]] = {}
"""Test -> the alerts that it stages."""

F = TypeVar("F", bound=Callable[..., Any])


def staged(*names: str) -> Callable[[F], F]:
    """Writes down what a test stages."""

    def note(test: F) -> F:
        STAGED[test.__name__] = names
        return test

    return note


def ack(entry: str) -> dict[str, Any]:
    return {"op": "ack", "ids": [entry]}


async def publish(bus: Bus, user: str, count: int, size: int = 10) -> None:
    await bus.publish_many([{"user": user, "type": "note", "data": {"text": "x" * size}} for _ in range(count)])


@pytest.fixture
def alerts(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """What the test stages."""
    return STAGED[request.function.__name__]


# --- the stages -------------------------------------------------------------------------------------------------------


@staged(
    "EventbusStoreDown",
    "EventbusNoNodeReady",
    "EventbusStoreErrors",
    "EventbusBreakerOpen",
    "EventbusPublishFailed",
    "EventbusBacklogGrows",
)
@pytest.mark.soak
@pytest.mark.requirement("R29")
async def test_a_server_that_stands_still(world: World, alerts: tuple[str, ...]) -> None:
    await world.start("n1")
    await world.watch()
    await world.alerting.quiet(*alerts)
    freeze(world.server.pid)

    async def post() -> None:
        async with httpx.AsyncClient(timeout=5, trust_env=False) as client:
            event = {"user": "ada", "type": "note", "data": {}}
            headers = {"Authorization": f"Bearer {world.token('ada')}"}
            await client.post(f"{world.nodes[0].url}/v1/events", json=event, headers=headers)

    numbers = iter(range(10_000))

    async def come() -> None:
        await world.client(f"user{next(numbers)}")

    world.goes_on(post, every_s=0.2)
    for _ in range(4):
        world.goes_on(come, every_s=0.01)
    try:
        await world.alerting.fire(*alerts, timeout_ms=40_000)
    finally:
        thaw(world.server.pid)


@staged("EventbusNodeDown", "EventbusWorkerDown")
@pytest.mark.soak
@pytest.mark.requirement("R29")
async def test_a_node_that_dies_and_a_worker_that_stands_still(world: World, alerts: tuple[str, ...]) -> None:
    await world.start("one", words=("--workers", "2"))
    await world.start("two")
    # The parent waits a second for the figures of a worker.
    await world.watch(scrape_ms=2_000)
    await world.alerting.quiet(*alerts)
    async with httpx.AsyncClient(trust_env=False) as client:
        headers = {"Authorization": f"Bearer {world.token('ops', 'admin')}"}
        answer = await client.get(f"http://{world.nodes[0].admin}/healthz", headers=headers)
        assert answer.status_code == 200, answer.text
    [worker, *_] = [int(one["pid"]) for one in answer.json()["processes"]]
    os.kill(worker, signal.SIGSTOP)
    world.nodes[1].child.kill()
    try:
        await world.alerting.fire(*alerts)
    finally:
        os.kill(worker, signal.SIGCONT)


@staged("EventbusNodeDeaf", "EventbusDeafAgain", "EventbusLinkReconnects")
@pytest.mark.slow
@pytest.mark.requirement("R29", "R30")
async def test_a_node_that_hears_nothing_and_one_whose_connections_break(world: World, alerts: tuple[str, ...]) -> None:
    async with StoreWay(world.server.url) as way:
        await world.start("n1", redis_url=way.url)
        await world.watch()
        await world.alerting.quiet(*alerts)
        way.deaf = True
        await world.alerting.fire("EventbusNodeDeaf")
        way.deaf = False

        async def cut() -> None:
            await world.redis("CLIENT", "KILL", "TYPE", "pubsub")
            await world.redis("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

        world.goes_on(cut, every_s=1.0)
        await world.alerting.fire(*alerts)
        await world.aclose()


@staged("EventbusNotDelivered", "EventbusDeliveryLate")
@pytest.mark.soak
@pytest.mark.requirement("R29")
async def test_events_that_are_accepted_and_not_delivered(world: World, alerts: tuple[str, ...]) -> None:
    """The node may do everything but read."""
    await world.redis("ACL", "SETUSER", "one", "on", ">word", "~*", "&*", "+@all")
    await world.start("n1", redis_url=world.server.url.replace("redis://", "redis://one:word@"))
    await world.watch()
    world.answering(await world.client("ada"), ack)
    bus = await world.bus()
    world.goes_on(lambda: publish(bus, "ada", 2), every_s=0.05)
    await until(lambda: world.alerting.value("sum(eventbus_events_delivered_total)"), 10_000, "something is delivered")
    await world.alerting.quiet(*alerts)
    await world.redis("ACL", "SETUSER", "one", "-xreadgroup")
    await world.alerting.fire("EventbusNotDelivered")
    await world.redis("ACL", "SETUSER", "one", "+xreadgroup")
    await world.alerting.fire("EventbusDeliveryLate")


@staged("EventbusNotAcked", "EventbusPendingGrows", "EventbusPendingOld", "EventbusPendingAwayGrows")
@pytest.mark.slow
@pytest.mark.requirement("R29")
async def test_clients_that_take_events_and_do_not_ack_them(world: World, alerts: tuple[str, ...]) -> None:
    # A count that is older than four of these is told no more: on a busy machine one takes its time.
    await world.start("n1", TALLY_MS=1_000)
    await world.watch(old=("> 300", "> 3"))
    await world.alerting.quiet(*alerts)
    bus = await world.bus()
    for number in range(4):
        world.answering(await world.client(f"user{number}", window=1024), lambda _entry: None)
    # One who is away counts once for each of the sessions that were left: 25 times each event.
    for number in range(25):
        leaving = await world.client("gone", f"tab{number}")
        await leaving.recv()
        await leaving.close()

    async def more() -> None:
        users = [*(f"user{number}" for number in range(4)), "gone"]
        await asyncio.gather(*(publish(bus, user, 20) for user in users))

    world.goes_on(more, every_s=0.4)
    await world.alerting.fire(*alerts, timeout_ms=40_000)


@staged("EventbusRedelivered", "EventbusDeadLetters")
@pytest.mark.soak
@pytest.mark.requirement("R29")
async def test_a_client_that_refuses_every_event(world: World, alerts: tuple[str, ...]) -> None:
    await world.start("n1", MAX_DELIVERIES=3)
    await world.watch()
    await world.alerting.quiet(*alerts)
    bus = await world.bus()
    refusing = await world.client("ada")
    world.answering(refusing, lambda entry: {"op": "nack", "id": entry, "delay_ms": 0})
    world.goes_on(lambda: publish(bus, "ada", 10), every_s=0.3)
    await world.alerting.fire(*alerts)


@staged("EventbusGaps", "EventbusSlowConsumers")
@pytest.mark.soak
@pytest.mark.requirement("R29")
async def test_a_client_that_was_away_for_too_long_and_clients_that_do_not_read(
    world: World, alerts: tuple[str, ...]
) -> None:
    await world.start("n1", MAX_STREAM_ENTRIES=50, HELD_BYTES=400_000)
    await world.watch()
    await world.alerting.quiet(*alerts)
    bus = await world.bus(max_stream_entries=50)
    away = await world.client("ada")
    await until(lambda: away.recv(), 5_000)
    await away.close()
    await publish(bus, "ada", 200)
    await world.client("ada")

    async def come_and_read_nothing() -> None:
        for number in range(4):
            await world.client(f"user{number}", start="earliest")
            await publish(bus, f"user{number}", 4, 100_000)

    world.goes_on(come_and_read_nothing, every_s=0.3)
    await world.alerting.fire(*alerts, timeout_ms=40_000)


@staged("EventbusConnectionsRefused", "EventbusRequestsLimited", "EventbusKeysNotRead")
@pytest.mark.soak
@pytest.mark.requirement("R29", "R23")
async def test_clients_without_a_good_token_a_flood_and_a_broken_key_file(
    world: World, alerts: tuple[str, ...], tmp_path: Path
) -> None:
    keys = tmp_path / "secret"
    keys.write_text(SECRET)
    await world.start("n1", REQUESTS_PER_ADDRESS=2, JWT_SECRET="", JWT_SECRET_FILE=keys, JWT_RELOAD_MS=1000)
    await world.watch()
    await world.alerting.quiet(*alerts)
    keys.write_text("short")

    async def knock() -> None:
        with contextlib.suppress(WebSocketException, OSError):
            address = world.nodes[0].url.replace("http", "ws") + "/v1/connect"
            await connect(address, additional_headers={"Authorization": "Bearer no"}, proxy=None)

    async def flood() -> None:
        async with httpx.AsyncClient(timeout=2, trust_env=False) as client:
            for _ in range(10):
                await client.get(f"{world.nodes[0].url}/v1/presence")

    world.goes_on(knock, every_s=0.1)
    world.goes_on(flood, every_s=0.1)
    await world.alerting.fire(*alerts)


@staged(
    "EventbusDeadlinesMissed",
    "EventbusRunsAbandoned",
    "EventbusDemandsMissed",
    "EventbusEscalationFails",
    "EventbusWebhookBreakerOpen",
)
@pytest.mark.soak
@pytest.mark.requirement("R29", "R13", "R17")
async def test_agents_that_are_late_or_die_with_nobody_to_be_told(
    world: World, alerts: tuple[str, ...], processes: Processes
) -> None:
    # Port 9, discard: nobody is there.
    await world.start("n1", WEBHOOK_URL="http://127.0.0.1:9/hook", WEBHOOK_SECRET=SECRET, WEBHOOK_RETRIES=0)
    await world.watch()
    await world.alerting.quiet(*alerts)
    script = (
        "import asyncio\nfrom eventbus import Bus\n"
        "async def main():\n"
        "    async with Bus.from_env() as bus, contextlib.AsyncExitStack() as stack:\n"
        "        for number in range(8):\n"
        "            await stack.enter_async_context(bus.run(user='ada', thread='t', agent='a'))\n"
        "        print('begun', flush=True)\n"
        "        await asyncio.sleep(600)\n"
        "import contextlib\nasyncio.run(main())\n"
    )
    env = {"EVENTBUS_REDIS_URL": world.server.url, "EVENTBUS_RUN_LEASE_MS": "3500"}
    agent = processes.python("-c", script, name="agent", env=env)
    await agent.line("begun")
    bus = await world.bus()

    async def demand() -> None:
        await bus.publish(user="bob", type="note", data={}, require=Require(level=Level.DISPLAYED, within_ms=200))

    world.goes_on(demand, every_s=0.5)
    await until(lambda: world.alerting.value("sum(eventbus_run_breaches_total) > 5"), 10_000, "thinking is late")
    agent.kill()
    await world.alerting.fire(*alerts, timeout_ms=40_000)


@staged("EventbusNodeStalled", "EventbusLoopLag", "EventbusWatchLate")
@pytest.mark.soak
@pytest.mark.requirement("R29")
async def test_a_node_that_stands_still_for_a_while(world: World, alerts: tuple[str, ...]) -> None:
    await world.start("n1")
    await world.watch(late=("> 15", "> 3"))
    await world.alerting.quiet(*alerts)
    bus = await world.bus()
    await bus.publish(user="bob", type="note", data={}, require=Require(level=Level.DISPLAYED, within_ms=300))
    child = world.nodes[0].child
    child.freeze()
    await asyncio.sleep(5.5)  # real time: this is the fault, which the node measures by its own clock
    child.thaw()
    await world.alerting.fire(*alerts)


@staged("EventbusStoreMemory", "EventbusDefect")
@pytest.mark.soak
@pytest.mark.requirement("R29")
async def test_a_server_that_is_nearly_full_and_data_that_nobody_can_understand(
    world: World, alerts: tuple[str, ...]
) -> None:
    await world.start("n1")
    await world.watch()
    await world.alerting.quiet(*alerts)
    used = int((await world.redis("INFO", "memory"))["used_memory"])
    await world.redis("CONFIG", "SET", "maxmemory", int(used * 1.05))
    await world.alerting.fire("EventbusStoreMemory")
    await world.redis("CONFIG", "SET", "maxmemory", 0)
    # A deadline that no version of the bus has written.
    due = Keys("eb", 1024).user(UserId("ada")).partition.due
    await world.redis("ZADD", due, 1, "demand ada nonsense displayed")
    await world.alerting.fire("EventbusDefect")


@staged("EventbusPrimaryChanged")
@needs.needs_redis
@pytest.mark.soak
@pytest.mark.requirement("R29", "R32")
async def test_a_primary_that_is_replaced(world: World, alerts: tuple[str, ...], new_sentinels: NewSentinels) -> None:
    sentinels = new_sentinels()
    await asyncio.to_thread(sentinels.wait_ok)
    await world.start("n1", redis_url=sentinels.url)
    await world.watch()
    await world.alerting.quiet(*alerts)
    await asyncio.to_thread(sentinels.fail_over)
    await world.alerting.fire(*alerts, timeout_ms=40_000)


@staged("EventbusStorePartAway")
@pytest.mark.soak
@pytest.mark.requirement("R29", "R32")
async def test_a_primary_of_a_cluster_that_is_away_with_its_replica(
    world: World, alerts: tuple[str, ...], new_cluster: NewCluster
) -> None:
    cluster = new_cluster()
    lost = cluster.primaries[0]
    replica = cluster.replica(lost)
    await world.start("n1", redis_url=cluster.url)
    await world.watch()
    await world.alerting.quiet(*alerts)
    cluster.freeze(replica)
    cluster.freeze(lost)
    try:
        await world.alerting.fire(*alerts, timeout_ms=40_000)
        assert 0.3 < await world.alerting.value("eventbus_store_away_ratio") < 0.4
        assert await world.alerting.value("eventbus_ready") == 1
    finally:
        cluster.thaw(lost)
        cluster.thaw(replica)


@pytest.mark.soak
@pytest.mark.requirement("R29")
async def test_a_healthy_installation_is_quiet(world: World) -> None:
    """Clients come and go and ack what they get; nothing fires."""
    await world.start("one", "two")
    # A machine that is busy with other tests answers a scrape late, which is no illness.
    await world.watch(scrape_ms=1_500)
    bus = await world.bus()
    world.answering(await world.client("ada"), ack)
    world.goes_on(lambda: publish(bus, "ada", 5), every_s=0.1)

    async def visit() -> None:
        await (await world.client("bob", "phone")).close()

    world.goes_on(visit, every_s=0.5)
    await until(lambda: world.alerting.value("sum(eventbus_events_acked_total) > 100"), 30_000, "100 events are acked")
    await world.alerting.look()
    assert world.alerting.fired == set()


@pytest.mark.requirement("R29")
def test_every_alert_is_staged() -> None:
    names = [rule["alert"] for rule in alert_rules()]
    assert sorted(name for test in STAGED.values() for name in test) == sorted(names)
