"""The watch of real nodes over a real server: deadlines of runs, demanded confirmations, and what is told of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from eventbus import events, watched
from eventbus.event import Require, make_event
from eventbus.fields import Level
from eventbus.ids import RunId, UserId
from eventbus.publishing.making import append_of
from eventbus.store.running import RunRequest
from eventbus.watch import RunAbout, RunLimits, Watch, step_of
from gateway.metrics import snapshot
from gateway.node import Node
from gateway.processes.serving import NodeFigures
from tests.integration.test_cli import Command
from tests.support.processes import Processes
from tests.support.receiver import Receiver
from tests.support.waiting import until
from tests.support.wire_client import Nodes, ids, opened, publish

ALICE = UserId("alice")
SECRET = "a secret of the webhook, of 32 bytes"
QUICK: dict[str, Any] = {"watch_ms": 30, "node_heartbeat_ms": 200}


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with Receiver() as made:
        yield made


@pytest.fixture
def command(processes: Processes, server_url: str) -> Command:
    return Command(processes, server_url)


def hooked(receiver: Receiver) -> dict[str, Any]:
    return {**QUICK, "webhook_url": receiver.url, "webhook_secret": SECRET, "webhook_retry_base_ms": 20}


async def told(node: Node, count: int) -> list[dict[str, str]]:
    """Waits until operators were told so much."""

    async def enough() -> list[dict[str, str]]:
        found = [dict(event.fields) for event in await watched.operator_events(node.store)]
        return found if len(found) >= count else []

    found = await until(enough, 10_000, f"{count} events for operators")
    assert len(found) == count, found
    return found


async def nothing_due(node: Node) -> None:
    """Waits until no deadline is left, of now or of later."""

    async def none() -> bool:
        # What is due in a day is due; nothing that these tests watch takes as long.
        return not await _watched(node)

    await until(none, 10_000, "nothing is watched any more")


async def _watched(node: Node) -> int:
    from redis.asyncio import Redis

    async with Redis.from_url(node.node_settings.redis_url, decode_responses=True) as redis:
        return sum([await redis.zcard(key) async for key in redis.scan_iter("eb:{*}:due", count=1_000)])


# --- demands --------------------------------------------------------------------------------------------------------


@pytest.mark.requirement("R13")
async def test_a_demand_that_nobody_meets_is_told_measured_and_posted(nodes: Nodes, receiver: Receiver) -> None:
    node = await nodes.start(**hooked(receiver))
    async with opened(node) as client:
        await client.expect("caught_up")
        require = Require(level=Level.DISPLAYED, within_ms=2_000)
        (entry,) = await publish(node, "look at this", require=require)
        client.send("ack", ids=ids(await client.events(1)), ref="r")  # received, and not displayed
        await client.expect("acked", ref="r")
        (missed,) = await told(node, 1)
    assert (
        missed.items()
        >= {
            "kind": "missed_confirmation",
            "user": "alice",
            "entry": entry,
            "level": "displayed",
            "reached": "received",
            "within_ms": "2000",
        }.items()
    )
    await until(lambda: receiver.accepted)
    await nothing_due(node)
    (post,) = receiver.received
    assert post.content["data"]["event"] == missed["event"]
    figures = snapshot(NodeFigures(node))
    assert figures["eventbus_demands_missed_total", ("displayed",)] == 1
    assert figures["eventbus_webhooks_total", ("delivered",)] == 1


@pytest.mark.requirement("R13")
async def test_a_demand_that_a_client_meets_in_time_is_not_told(nodes: Nodes, receiver: Receiver) -> None:
    node = await nodes.start(**hooked(receiver))
    async with opened(node) as client:
        await client.expect("caught_up")
        await publish(node, "look at this", require=Require(level=Level.DISPLAYED, within_ms=2_000))
        client.send("ack", ids=ids(await client.events(1)), level="confirmed", ref="c")
        await client.expect("acked", ref="c")
        await nothing_due(node)
    assert await watched.operator_events(node.store) == []
    assert receiver.received == []


@pytest.mark.requirement("R13")
async def test_three_nodes_tell_of_each_of_many_demands_once(nodes: Nodes, receiver: Receiver) -> None:
    """D22: the nodes do not know of each other at first, so they all watch everything."""
    started = [await nodes.start(f"n{number}", **hooked(receiver)) for number in range(3)]
    receiver.script = [500, 503, 500]
    for number in range(60):
        require = Require(level=Level.RECEIVED, within_ms=50)
        await started[number % 3].bus.publish(user=f"user{number % 20}", type="note", data={}, require=require)
    found = await told(started[0], 60)
    assert len({(one["user"], one["entry"]) for one in found}) == 60
    await until(lambda: len(receiver.accepted) >= 60, 10_000)
    await nothing_due(started[0])
    assert len(receiver.accepted) == len(set(receiver.accepted)) == 60
    assert sum(node.counters.demands_missed["received"] for node in started) == 60


# --- runs -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.requirement("R17")
async def test_a_requested_run_that_nobody_starts_is_told_within_seconds(nodes: Nodes, command: Command) -> None:
    node = await nodes.start(**QUICK)
    fields = {"agent": "planner", "thread": "t1"}
    request = RunRequest(user=ALICE, run=RunId("run_17"), fields=fields, watch={"started": 100})
    assert await node.store.request_run(request)
    (missed,) = await told(node, 1)
    assert (missed["kind"], missed["deadline"], missed["run"]) == ("missed_deadline", "started", "run_17")
    (row,) = await command.json("runs")
    assert row == {
        "run": "run_17",
        "user": "alice",
        "thread": "t1",
        "agent": "planner",
        "state": "requested",
        "started_ms": None,
        "breaches": 1,
    }
    assert await command.json("runs", "--state", "running") == []
    assert await command.json("runs", "--user", "bob") == []
    assert "started" in (await command.run("runs", "--user", "alice")).stdout
    shown = await command.run("runs", "run_17")
    assert "missed: started" in shown.stdout
    assert "No agent has begun it" in shown.stderr
    (event,) = await command.json("operator-events")
    assert event.items() >= {"kind": "missed_deadline", "user": "alice", "deadline": "started"}.items()
    (timeline,) = await command.json("runs", "--user", "alice", "run_17")
    assert (timeline["breaches"], timeline["state"], timeline["events"]) == (1, "requested", [])
    assert await command.json("runs", "--user", "bob", "run_17", status=1) == []
    await node.store.request_run(RunRequest(user=UserId("bob"), run=RunId("run_17"), fields=fields, watch={}))
    assert "alice, bob" in (await command.run("runs", "run_17", status=1)).stderr
    assert await command.json("operator-events", "--kind", "run_abandoned") == []
    assert await command.json("operator-events", "--user", "alice", "--since", "1h") == [event]
    assert "planner was late: started" in (await command.run("operator-events")).stdout


@pytest.mark.slow
async def test_operator_events_can_be_followed(nodes: Nodes, command: Command) -> None:
    node = await nodes.start(**QUICK)
    await node.store.request_run(RunRequest(user=ALICE, run=RunId("run_1"), fields={}, watch={"started": 0}))
    await told(node, 1)
    child = command.start("operator-events", "--follow", "--json")
    await child.line("Waiting for")
    await node.store.request_run(RunRequest(user=ALICE, run=RunId("run_2"), fields={}, watch={"started": 0}))
    await child.line("run_2")
    assert "run_1" not in child.stdout
    child.interrupt()
    assert await child.wait() == 0


@pytest.mark.requirement("R17")
async def test_deadlines_of_a_working_agent_are_watched_while_it_runs(nodes: Nodes) -> None:
    node = await nodes.start(**QUICK)
    begin_ms = time.time_ns() // 1_000_000
    async with node.bus.run(user="alice", agent="planner") as run:
        (missed,) = await told(node, 1)
        assert (missed["deadline"], missed["run"], missed["agent"]) == ("thinking", run.id, "planner")
        assert int(missed["due_ms"]) - begin_ms >= 2_000
        await run.thinking("at last")
    record = await node.store.run(ALICE, run.id)
    assert record is not None
    assert (record.fields["state"], record.fields["breaches"]) == ("completed", "1")
    assert record.fields["breach:thinking"] == missed["due_ms"]
    await nothing_due(node)
    assert len(await told(node, 1)) == 1
    assert snapshot(NodeFigures(node))["eventbus_run_breaches_total", ("thinking",)] == 1


@pytest.mark.requirement("R17")
async def test_a_node_that_stops_hands_its_share_over_and_one_that_starts_catches_up(nodes: Nodes) -> None:
    first = await nodes.start("n1", **QUICK, drain_ms=1_000)
    second = await nodes.start("n2", **QUICK)
    await asyncio.gather(first.drain())
    for number in range(40):
        request = RunRequest(user=UserId(f"user{number}"), run=RunId("run_1"), fields={}, watch={"started": 0})
        await second.store.request_run(request)
    await told(second, 40)
    await second.drain()
    third = nodes.make("n3", **QUICK)
    for number in range(40):
        request = RunRequest(user=UserId(f"user{number}"), run=RunId("run_2"), fields={}, watch={"started": 0})
        await third.store.request_run(request)
    await third.start()
    missed = await told(third, 80)
    assert len({(one["user"], one["run"]) for one in missed}) == 80, "each run is told once"


@pytest.mark.requirement("R16")
async def test_a_run_whose_process_is_gone_is_closed_as_failed_within_its_lease(
    nodes: Nodes, receiver: Receiver
) -> None:
    node = await nodes.start(**hooked(receiver))
    async with opened(node) as client:
        await client.expect("caught_up")
        about = RunAbout(
            user=ALICE, run=RunId("run_1"), agent="planner", owner="gone", lease_ms=300, limits=RunLimits()
        )
        now_ms = await node.store.ping()
        watch, first = step_of(Watch(), about, 1, *events.agent_started(agent="planner"), now_ms)
        _, second = step_of(watch, about, 2, *events.tool_executing(tool="search", call_id="c1"), now_ms)
        made = [
            make_event(id=f"e{step.seq}", type=kind, user="alice", time_ms=now_ms, data=data, run="run_1", seq=step.seq)
            for step, (kind, data) in (
                (first, events.agent_started(agent="planner")),
                (second, events.tool_executing(tool="search", call_id="c1")),
            )
        ]
        await node.store.append([append_of(event, step) for event, step in zip(made, (first, second), strict=True)])
        shown = [one["event"] for one in await client.events(4)]
    assert [event["type"] for event in shown] == [
        "agent_started",
        "tool_executing",
        "tool_completed",
        "agent_completed",
    ]
    assert [event["seq"] for event in shown] == [1, 2, 3, 4]
    assert shown[-1]["data"]["outcome"] == "failed"
    (abandoned,) = await told(node, 1)
    assert (abandoned["kind"], abandoned["run"], abandoned["agent"]) == ("run_abandoned", "run_1", "planner")
    await until(lambda: receiver.accepted)
    await nothing_due(node)
    figures = snapshot(NodeFigures(node))
    assert figures["eventbus_runs_abandoned_total", ()] == figures["eventbus_runs_closed_total", ()] == 1
