"""What becomes of runs when their agent is killed or frozen, a node dies with it, or the store loses events."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from functools import partial
from pathlib import Path

import pytest

from eventbus import Bus
from eventbus.event import decode_envelope
from eventbus.ids import ENTRY_ZERO, RunId, UserId
from eventbus.inspection import run_timeline
from eventbus.store.redis_store import RedisStore
from eventbus.timeline import RunTimeline
from tests.support.installation import Installation, NewInstallation
from tests.support.load.agents import USERS, names_of
from tests.support.processes import Child
from tests.support.waiting import until

pytestmark = [pytest.mark.requirement("R16"), pytest.mark.timeout(120)]

RUNS = 20
LEASE_MS = 2_000
# A node looks every 100 ms, at quiet partitions every 400; when the one that had the partition is dead, another takes
# what is late. The rest is room for a slow machine.
LATE_MS = 8_000


@pytest.fixture
async def installation(new_installation: NewInstallation) -> Installation:
    return await new_installation(nodes=2, watch_ms=100, node_heartbeat_ms=500, run_lease_ms=LEASE_MS)


def agents(installation: Installation, mode: str, *more: Path, lease_ms: int = LEASE_MS) -> Child:
    env = {"EVENTBUS_REDIS_URL": installation.server.url, "EVENTBUS_RUN_LEASE_MS": str(lease_ms)}
    return installation.processes.python("-m", "tests.support.load.agents", mode, str(RUNS), *more, env=env)


def all_runs() -> list[tuple[UserId, RunId]]:
    return [(UserId(names[0]), RunId(run)) for names in map(names_of, range(RUNS)) for run in names[1:]]


async def timelines(store: RedisStore) -> list[RunTimeline]:
    found = [await run_timeline(store, user, run) for user, run in all_runs()]
    assert None not in found
    return [timeline for timeline in found if timeline is not None]


async def all_completed(store: RedisStore) -> list[RunTimeline]:
    """The timelines of all runs, once the store has each as completed."""

    async def completed() -> bool:
        records = [await store.run(user, run) for user, run in all_runs()]
        return all(record is not None and record.fields["state"] == "completed" for record in records)

    await until(completed, 30_000, "every run is completed")
    return await timelines(store)


def assert_whole(timeline: RunTimeline) -> None:
    types = Counter(event.type for event in timeline.events)
    assert timeline.problems == ()
    assert [event.seq for event in timeline.events] == list(range(1, len(timeline.events) + 1))
    assert (types["agent_started"], types["agent_completed"]) == (1, 1)
    assert types["tool_executing"] == types["tool_completed"]
    assert timeline.open_calls == ()


def closed_after_ms(timeline: RunTimeline) -> int:
    """How long behind the last event of the agent the run was closed."""
    *_, before, last = [event for event in timeline.events if event.type != "tool_completed"]
    return last.stored_ms - before.stored_ms


@pytest.mark.slow
@pytest.mark.parametrize("harm", ["agent", "agent and node"])
async def test_runs_whose_agent_was_killed_are_closed_as_failed_within_their_lease(
    installation: Installation, harm: str
) -> None:
    store = RedisStore(installation.server.url)
    try:
        agent = agents(installation, "work")
        await agent.line("^inside$")
        agent.kill()
        if harm == "agent and node":
            # Somebody's deadlines were this node's to watch; it is killed when the leases are about to run out.
            installation.nodes[0].child.kill()
        told = await all_completed(store)
        for timeline in told:
            assert_whole(timeline)
            assert timeline.outcome == "failed"
            assert LEASE_MS - 100 <= closed_after_ms(timeline) <= LEASE_MS + LATE_MS
        kinds: Counter[tuple[str, str]] = Counter()
        for number in await store.operator_partitions():
            for event in await store.operator_events(number, ENTRY_ZERO, 10_000):
                kinds[event.fields["kind"], event.fields["run"]] += 1
        assert {run: kinds["run_abandoned", run] for _, run in all_runs()} == {run: 1 for _, run in all_runs()}
    finally:
        await store.aclose()


async def test_an_agent_that_thaws_after_its_lease_adds_nothing_to_runs_that_were_closed(
    installation: Installation,
) -> None:
    store = RedisStore(installation.server.url)
    try:
        agent = agents(installation, "work")
        await agent.line("^inside$")
        agent.freeze()
        before = await all_completed(store)
        agent.thaw()
        for number in range(RUNS):
            await agent.line(f"^closed {names_of(number)[1]}$")
        after = await timelines(store)
        for timeline in after:
            assert_whole(timeline)
        assert [timeline.events for timeline in after] == [timeline.events for timeline in before]
    finally:
        await store.aclose()


async def test_runs_of_a_killed_agent_are_resumed_by_its_restart(
    new_installation: NewInstallation, tmp_path: Path
) -> None:
    """The restart comes within the lease, so no node has closed them; child runs that nobody resumes are closed."""
    lease_ms = 2 * LEASE_MS  # a slow machine needs some of it to take all of them over
    installation = await new_installation(nodes=2, watch_ms=100, node_heartbeat_ms=500, run_lease_ms=lease_ms)
    store = RedisStore(installation.server.url)
    try:
        # It is up before it is needed: a slow machine needs longer for that than the lease is.
        restarted = agents(installation, "finish", tmp_path / "go", lease_ms=lease_ms)
        await restarted.line("^ready$")
        agent = agents(installation, "work", lease_ms=lease_ms)
        await agent.line("^inside$")
        agent.kill()
        (tmp_path / "go").touch()
        assert await restarted.line("^finished") == f"finished {RUNS}"
        told = await all_completed(store)
        for timeline in told:
            assert_whole(timeline)
        assert {timeline.outcome for timeline in told if not timeline.run.endswith("child")} == {"success"}
        assert {timeline.outcome for timeline in told if timeline.run.endswith("child")} == {"failed"}
    finally:
        await store.aclose()


@pytest.mark.requirement("R2")
@pytest.mark.parametrize("lost_bytes", [0, 40_000])
async def test_runs_are_whole_when_the_server_is_killed_and_has_lost_the_end_of_its_file(
    new_installation: NewInstallation, lost_bytes: int
) -> None:
    """D6: what the server lost of a run comes again, in its order, before what is new."""
    installation = await new_installation(nodes=1, run_lease_ms=60_000)
    server = installation.server
    steps = 150

    async def work(bus: Bus, number: int) -> str:
        async with bus.run(user=f"user{number % USERS}", agent="worker") as run, run.tool("count") as tool:
            for step in range(steps):
                await run.publish("progress", {"step": step})
                await asyncio.sleep(0.005)  # real time: the pace of the publisher
            tool.result = steps
        return run.id

    async with Bus.from_env(redis_url=server.url, publish_deadline_ms=30_000) as bus:
        tasks = [asyncio.create_task(work(bus, number)) for number in range(RUNS)]
        for _ in range(2):
            published = bus.statistics().published + 800
            await until(partial(_has_published, bus, published), 20_000, "the runs go on")
            server.kill()
            for file in server.directory.rglob("*.incr.aof"):
                os.truncate(file, max(0, file.stat().st_size - lost_bytes))
            server.start()
        runs = await asyncio.gather(*tasks)
        assert bus.statistics().recovered > 0 or not lost_bytes, "nothing was lost"
    store = RedisStore(server.url)
    try:
        for number, run in enumerate(runs):
            timeline = await run_timeline(store, UserId(f"user{number % USERS}"), RunId(run))
            assert timeline is not None
            assert_whole(timeline)
            assert len(timeline.events) == steps + 4
    finally:
        await store.aclose()


def _has_published(bus: Bus, count: int) -> bool:
    return bus.statistics().published >= count


async def test_a_run_that_was_asked_for_and_never_begun_is_told_to_operators(installation: Installation) -> None:
    run = await installation.bus.request_run(user="alice", agent="planner")
    store = RedisStore(installation.server.url)
    try:

        async def marked() -> bool:
            record = await store.run(UserId("alice"), run)
            return record is not None and "breach:started" in record.fields

        await until(marked, 10_000, "the breach is marked")
        page = await store.history(UserId("alice"), ENTRY_ZERO, 10)
        assert [decode_envelope(entry.body).type for entry in page.entries] == []
    finally:
        await store.aclose()
