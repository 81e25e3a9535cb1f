"""Runs through a real server and a real node: what a client sees of an agent that thinks, fails or is cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from eventbus import Bus, Run, blocking
from gateway.node import Node
from tests.support.waiting import until
from tests.support.wire_client import Nodes, opened

pytestmark = [pytest.mark.requirement("R15"), pytest.mark.requirement("R16")]


def complete(events: Sequence[Mapping[str, Any]], run: str) -> list[Mapping[str, Any]]:
    """The events of a run, which are all that it owes, in order."""
    told = [event["event"] for event in events if event["event"]["run"] == run]
    assert [event["seq"] for event in told] == list(range(1, len(told) + 1))
    types = [event["type"] for event in told]
    assert (types[0], types[-1]) == ("agent_started", "agent_completed")
    assert (types.count("agent_started"), types.count("agent_completed")) == (1, 1)
    calls = [event["data"]["call_id"] for event in told if event["type"] == "tool_executing"]
    assert sorted(calls) == sorted(event["data"]["call_id"] for event in told if event["type"] == "tool_completed")
    return told


async def test_a_client_sees_the_five_events_of_a_run_in_order(nodes_on_each: Nodes) -> None:
    node = await nodes_on_each.start()
    async with opened(node) as client, Bus(nodes_on_each.url) as bus:
        await client.expect("caught_up")
        async with bus.run(user="alice", thread="t1", agent="planner") as run:
            await run.thinking("Looking at your calendar")
            async with run.tool("search", {"query": "free"}) as tool:
                tool.result = ["Monday"]
            run.result = "On Monday"
        events = await client.events(5)
        await client.nothing_more()
    told = complete(events, run.id)
    assert [(event["type"], event["data"]) for event in told] == [
        ("agent_started", {"agent": "planner"}),
        ("agent_thinking", {"text": "Looking at your calendar"}),
        ("tool_executing", {"tool": "search", "call_id": "call_1", "arguments": {"query": "free"}}),
        ("tool_completed", {"tool": "search", "call_id": "call_1", "result": ["Monday"]}),
        ("agent_completed", {"outcome": "success", "result": "On Monday"}),
    ]
    assert {event["thread"] for event in told} == {"t1"}
    assert [receipt.entry for receipt in run.receipts] == [event["id"] for event in events]


async def test_a_client_sees_the_end_of_a_run_that_raised_and_none_of_the_exceptions_text(node: Node) -> None:
    async with opened(node) as client:
        await client.expect("caught_up")
        with pytest.raises(RuntimeError, match="hunter2"):
            async with node.bus.run(user="alice", agent="planner") as run, run.tool("search"):
                raise RuntimeError("password=hunter2")
        events = await client.events(4)
        await client.nothing_more()
    told = complete(events, run.id)
    assert [event["data"].get("error") for event in told[2:]] == ["the tool failed", "the agent failed"]
    assert told[-1]["data"]["outcome"] == "failed"
    assert "hunter2" not in repr(events)


async def test_a_client_sees_the_end_of_a_run_that_was_cancelled_with_all_that_was_open(node: Node) -> None:
    inside = asyncio.Event()
    runs: list[Run] = []

    async def agent() -> None:
        run = node.bus.run(user="alice", agent="planner")
        async with run, run.tool("delegate"), run.child(agent="searcher") as child, child.tool("search"):
            runs.extend((run, child))
            inside.set()
            await asyncio.Event().wait()

    async with opened(node) as client:
        await client.expect("caught_up")
        task = asyncio.create_task(agent())
        await inside.wait()
        task.cancel()
        await until(task.done)
        assert task.cancelled()
        events = await client.events(8)
        await client.nothing_more()
    for run in runs:
        told = complete(events, run.id)
        assert told[-1]["data"] == {"outcome": "cancelled"}
        assert told[-2]["data"]["error"] == "the tool was cancelled"
    assert complete(events, runs[1].id)[0]["data"]["parent"] == runs[0].id


async def test_a_client_sees_parallel_and_nested_tools_and_child_runs_each_complete(node: Node) -> None:
    children: list[Run] = []

    async def work(run: Run, number: int) -> None:
        async with run.tool("delegate", {"number": number}) as tool, run.child(agent=f"worker-{number}") as child:
            children.append(child)
            async with child.tool("outer") as outer, child.tool("inner") as inner:
                await child.publish("progress", {"percent": number})
                await asyncio.sleep(0)
                inner.result = number
                outer.result = number
            tool.result = number

    async with opened(node, window=1024) as client:
        await client.expect("caught_up")
        async with node.bus.run(user="alice", agent="planner") as run, asyncio.TaskGroup() as group:
            for number in range(20):
                group.create_task(work(run, number))
        events = await client.events(2 + 20 * 2 + 20 * 7)
        await client.nothing_more()
    assert len(complete(events, run.id)) == 42
    for child in children:
        assert len(complete(events, child.id)) == 7
    assert (events[0]["event"]["run"], events[-1]["event"]["run"]) == (run.id, run.id)


async def test_a_client_sees_a_run_of_a_thread(nodes: Nodes) -> None:
    node = await nodes.start()

    def agent() -> str:
        with blocking.Bus(nodes.url) as bus, bus.run(user="alice", agent="planner") as run:
            run.thinking("Hm")
            with run.tool("search") as tool:
                tool.result = 7
        return run.id

    try:
        async with opened(node) as client:
            await client.expect("caught_up")
            with ThreadPoolExecutor(1) as pool:
                run = await asyncio.wrap_future(pool.submit(agent))
            events = await client.events(5)
            await client.nothing_more()
    finally:
        await asyncio.to_thread(blocking.shutdown)
    assert len(complete(events, run)) == 5


@pytest.mark.requirement("R17")
async def test_a_client_sees_the_end_of_a_run_whose_process_is_gone(nodes_on_each: Nodes) -> None:
    """Its bus is closed without the run's end, as if killed: the node ends the run after the lease, and the client is
    told of the open call first.
    """
    node = await nodes_on_each.start(watch_ms=100)
    async with opened(node) as client:
        await client.expect("caught_up")
        async with Bus.from_env(redis_url=nodes_on_each.url, run_lease_ms=2_000) as bus:
            run_id = await bus.request_run(user="alice", agent="planner", thread="t1")
            run = bus.run(user="alice", agent="planner", thread="t1", run=run_id)
            await run.__aenter__()
            await run.tool("search").__aenter__()
            await run.flush()
        events = await client.events(4)
        await client.nothing_more()
    told = complete(events, run_id)
    assert [event["type"] for event in told[2:]] == ["tool_completed", "agent_completed"]
    assert told[-1]["data"]["outcome"] == "failed"
    assert {event["thread"] for event in told} == {"t1"}


async def test_a_run_of_a_thread_is_requested_and_resumed_in_another(nodes: Nodes) -> None:
    node = await nodes.start()

    def ask() -> str:
        with blocking.Bus(nodes.url) as bus:
            return bus.request_run(user="alice", agent="planner", tier="pro")

    def work(run_id: str) -> None:
        with blocking.Bus(nodes.url) as bus, bus.run(user="alice", agent="planner", run=run_id, resume=True) as run:
            run.thinking("Hm")

    try:
        async with opened(node) as client:
            await client.expect("caught_up")
            with ThreadPoolExecutor(1) as pool:
                run = await asyncio.wrap_future(pool.submit(ask))
                await asyncio.wrap_future(pool.submit(work, run))
            events = await client.events(3)
            await client.nothing_more()
    finally:
        await asyncio.to_thread(blocking.shutdown)
    assert len(complete(events, run)) == 3
