"""What `docker compose up` starts, started without an engine, with the commands that stand in docker-compose.yml."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import Any, Self

import httpx
import pytest

from eventbus import Bus, Subscriber
from eventbus.clock import SystemClock
from eventbus.errors import CloseCode
from eventbus.subscriber import Delivery, State, StateDetail
from eventbus.tokens import make_token
from gateway.access.auth import Scope
from gateway.config import NodeSettings, load_authenticator
from gateway.metrics import METRICS
from tests.support import needs
from tests.support.compose import Topology, alert_rules, assert_has, first_look, panel_expressions, topology
from tests.support.waiting import until

__all__ = ["topology"]

NODES = ("node-1", "node-2", "node-3")


class Phone:
    """A client that goes through the load balancer, and what it was given."""

    def __init__(self, topology: Topology) -> None:
        secret = (topology.volume("node-secrets") / "jwt-secret").read_bytes().strip()
        token = make_token(user="demo", secret=secret, now_ms=SystemClock().now_ms(), ttl_ms=600_000)
        self.notes: list[int] = []
        self.steps: dict[str, list[int]] = defaultdict(list)
        self.completed: list[str] = []
        self.gaps = 0
        self.closes: list[int | None] = []
        self._subscriber = Subscriber(
            topology.url("haproxy", 8080),
            token,
            session="phone",
            on_event=self._got,
            on_gap=self._missed,
            on_state=self._changed,
        )

    async def __aenter__(self) -> Self:
        self._running = asyncio.ensure_future(self._subscriber.run())
        return self

    async def __aexit__(self, *raised: object) -> None:
        await self._subscriber.close()
        await self._running

    def _got(self, delivery: Delivery) -> None:
        event = delivery.event
        if event.type == "note":
            self.notes.append(int(event.data["number"]))
        elif event.run is not None and event.seq is not None:
            self.steps[event.run].append(event.seq)
            if event.type == "agent_completed":
                self.completed.append(event.run)

    def _missed(self, gap: object) -> None:
        self.gaps += 1

    def _changed(self, state: State, detail: StateDetail) -> None:
        if state is State.WAITING:
            self.closes.append(detail.code)

    async def has(self, count: int) -> None:
        """Waits for so many notes."""
        await until(lambda: len(self.notes) >= count, 20_000, lambda: f"{count} notes; came: {len(self.notes)}")


async def publish(bus: Bus, first: int, last: int) -> None:
    """Publishes numbered notes, a few at a time."""
    for number in range(first, last + 1):
        await bus.publish(user="demo", type="note", data={"number": number})


async def node_of(bus: Bus, session: str, *, other_than: str = "") -> str:
    """The node that a session is connected to."""

    async def look() -> str | None:
        nodes = [str(one.node) for one in await bus.online("demo") if one.session == session]
        return next((node for node in nodes if node != other_than), None)

    return await until(look, 15_000, f"the session is on a node other than {other_than!r}") or ""


async def all_answered(topology: Topology, count: int) -> None:
    """The load balancer answers each of so many requests: it asks another node where one is dead."""
    async with httpx.AsyncClient(timeout=5, trust_env=False) as client:
        for _ in range(count):
            assert (await client.get(f"{topology.url('haproxy', 8080)}/healthz")).status_code == 200


@pytest.mark.slow
@needs.needs_haproxy
@pytest.mark.requirement("R31", "R2", "R10")
async def test_behind_the_load_balancer_nothing_is_lost_when_a_node_is_killed_and_another_drained(
    topology: Topology,
) -> None:
    await topology.up("haproxy", "agent")
    await topology.answers("haproxy", 8080, "/readyz")
    tail = topology.execute(NODES[0], first_look())
    async with Bus.from_env(redis_url=topology.redis_url) as bus, Phone(topology) as phone:
        await publish(bus, 1, 50)
        await phone.has(50)

        first = await node_of(bus, "phone")
        async with asyncio.TaskGroup() as group:
            group.create_task(publish(bus, 51, 200))
            await until(lambda: len(phone.notes) > 60, 10_000)
            topology.children[first].kill()
            await all_answered(topology, 30)
        await phone.has(200)

        second = await node_of(bus, "phone", other_than=first)
        async with asyncio.TaskGroup() as group:
            group.create_task(publish(bus, 201, 350))
            await until(lambda: len(phone.notes) > 210, 10_000)
            topology.children[second].terminate()
            await all_answered(topology, 30)
        assert await topology.children[second].wait() == 0
        assert "Traceback" not in topology.children[second].stderr
        await phone.has(350)
        [third] = set(NODES) - {first, second}
        assert await node_of(bus, "phone") == third
        assert CloseCode.DRAINING in phone.closes

        # The agent has gone on meanwhile, and of its runs nothing is missing either. The guide's first command shows
        # them.
        done = len(phone.completed)
        await until(lambda: len(phone.completed) > done, 20_000, "a run that ends after all this")
        await tail.line("agent_completed", 20_000)
        topology.children["agent"].terminate()
        assert await topology.children["agent"].wait() == 0, topology.children["agent"].stderr
    assert phone.notes == list(range(1, 351))
    assert phone.gaps == 0
    for run in phone.completed:
        assert phone.steps[run] == list(range(1, len(phone.steps[run]) + 1))


@pytest.mark.requirement("R31", "R29")
async def test_every_metric_of_alerts_and_panels_is_one_that_a_node_has(topology: Topology) -> None:
    await topology.up("node-1")
    text = (await topology.answers("node-1", 8081, "/metrics")).text
    # The others are of the parent of several workers alone.
    assert_has(text, {metric.full_name for metric in METRICS if metric.read is None})


@pytest.mark.requirement("R31", "R29")
async def test_prometheus_has_a_token_that_the_nodes_take_on_their_admin_port(topology: Topology) -> None:
    """In the containers that port is not on the loopback, and wants one."""
    await topology.up("secrets")
    assert await topology.children["secrets"].wait() == 0
    environment = topology.environment("node-1")
    assert topology.services["node-1"].environment["EVENTBUS_ADMIN_HOST"] == "0.0.0.0"  # noqa: S104 - that is the point
    settings = NodeSettings.from_env({name: value for name, value in environment.items() if "EVENTBUS" in name})
    token = (topology.volume("prometheus-secrets") / "token").read_text().strip()
    identity = load_authenticator(settings).verify(token, SystemClock().now_ms())
    assert Scope.ADMIN in identity.scopes


@pytest.mark.slow
@needs.needs_haproxy
@needs.needs_prometheus
@pytest.mark.requirement("R31", "R29")
async def test_prometheus_scrapes_all_nodes_and_answers_every_panel_and_alert(topology: Topology) -> None:
    topology.replaced = {"_interval: 5s": "_interval: 1s"}
    await topology.up("haproxy", "prometheus")
    await topology.answers("prometheus", 9090, "/-/ready")
    api = f"{topology.url('prometheus', 9090)}/api/v1"
    async with httpx.AsyncClient(base_url=api, timeout=5, trust_env=False) as client:

        async def get(path: str, **query: str) -> Any:
            return (await client.get(path, params=query)).json()["data"]

        async def all_up() -> bool:
            health = [target["health"] for target in (await get("/targets"))["activeTargets"]]
            return len(health) == len(NODES) + 1 and set(health) == {"up"}

        async def all_judged() -> list[Any] | None:
            rules = [rule for group in (await get("/rules"))["groups"] for rule in group["rules"]]
            return None if any(rule["health"] == "unknown" for rule in rules) else rules

        await until(all_up, 15_000, "all targets are up")
        rules = await until(all_judged, 15_000, "all alerts were judged")
        assert rules is not None
        assert {rule["name"] for rule in rules} == {rule["alert"] for rule in alert_rules()}
        assert [rule["name"] for rule in rules if rule["health"] != "ok"] == []
        for expression in panel_expressions():
            answer = await client.get("/query", params={"query": expression})
            assert answer.status_code == 200, answer.text
            assert "haproxy_" not in expression or answer.json()["data"]["result"], expression
        [ready] = (await get("/query", query="sum(eventbus_ready)"))["result"]
        assert ready["value"][1] == "3"
        [servers] = (await get("/query", query='sum(haproxy_server_status{proxy="nodes", state="UP"})'))["result"]
        assert servers["value"][1] == "3"
