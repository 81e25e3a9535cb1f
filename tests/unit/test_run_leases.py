"""Runs and the store: leases, requests, resuming, closing, and what a store took back."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from eventbus import Bus, Run
from eventbus.config import PublishSettings, Settings
from eventbus.errors import InvalidEvent, RunClosed, RunMisused, StoreError, StoreUnavailable
from eventbus.event import Event, decode_envelope
from eventbus.ids import ENTRY_ZERO, RunId, SessionId, UserId
from eventbus.run import TOOL_RESTARTED
from eventbus.runs.closing import AGENT_LOST, close_run, closing_event_id, owed_by_record
from eventbus.store.inbound import Ask, NewCommand, QuestionState
from eventbus.store.running import DueRecord, Lease, RunRecord
from eventbus.testing import ManualClock, MemoryStore
from eventbus.watch import RunLimits, open_calls

pytestmark = pytest.mark.requirement("R16")

ADA = UserId("ada")
LEASE_MS = 9_000


class World:
    """Buses over one store in memory, on one clock that stands still."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.store = MemoryStore(clock=self.clock)
        self.buses: list[Bus] = []

    async def bus(self, **values: Any) -> Bus:
        publish = replace(PublishSettings(), **{"run_lease_ms": LEASE_MS, **values})
        bus = Bus(settings=Settings(publish=publish), store=self.store, clock=self.clock)
        self.buses.append(bus)
        return await bus.__aenter__()

    async def events(self, run: str | None = None) -> list[Event]:
        page = await self.store.history(ADA, ENTRY_ZERO, 10_000)
        found = [decode_envelope(entry.body) for entry in page.entries]
        return [event for event in found if run is None or event.run == run]

    async def types(self, run: str | None = None) -> list[str]:
        return [event.type for event in await self.events(run)]

    async def record(self, run: str) -> RunRecord:
        record = await self.store.run(ADA, RunId(run))
        assert record is not None
        return record

    async def due(self) -> list[DueRecord]:
        found: list[DueRecord] = []
        for answer in await self.store.due(range(self.store.settings.partitions), 100):
            assert not isinstance(answer, StoreError)
            found += answer
        return found

    async def names(self) -> list[str]:
        return [one.member.split(" ", 3)[3] for one in await self.due()]


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with made() as one:
        yield one


@asynccontextmanager
async def made() -> AsyncIterator[World]:
    world = World()
    try:
        yield world
    finally:
        world.store.heal()
        for bus in world.buses:
            await bus.aclose(0)


def in_order(events: list[Event]) -> bool:
    types = [event.type for event in events]
    return (
        [event.seq for event in events] == list(range(1, len(events) + 1))
        and len({event.id for event in events}) == len(events)
        and (types[0], types[-1]) == ("agent_started", "agent_completed")
        and (types.count("agent_started"), types.count("agent_completed")) == (1, 1)
    )


async def begun(bus: Bus, **more: Any) -> Run:
    """A run whose process will not end it."""
    run = await bus.run(user="ada", agent="planner", **more).__aenter__()
    await run.flush()
    return run


# --- leases -----------------------------------------------------------------------------------------------------------


async def test_the_lease_of_a_run_that_says_nothing_is_renewed_as_long_as_its_process_lives(world: World) -> None:
    bus = await world.bus()
    async with bus.run(user="ada", agent="planner"):
        for _ in range(100):
            await world.clock.pass_time(LEASE_MS // 4)
            assert "lease" not in await world.names()
    await world.clock.pass_time(LEASE_MS)
    assert "lease" not in await world.names()


async def test_the_lease_of_a_run_whose_process_is_gone_runs_out(world: World) -> None:
    bus = await world.bus()
    run = await begun(bus)
    await bus.aclose()
    await world.clock.pass_time(LEASE_MS + 1)
    assert "lease" in await world.names()
    assert (await world.record(run.id)).fields["state"] == "running"


async def test_all_leases_of_a_bus_are_renewed_in_one_batch(world: World) -> None:
    bus = await world.bus()
    runs = [await begun(bus, thread=f"t{number}") for number in range(20)]
    before = world.store.calls
    await world.clock.pass_time(LEASE_MS // 3)
    assert world.store.calls == before + 1
    await world.clock.pass_time(LEASE_MS * 2 // 3)
    assert "lease" not in await world.names()
    for run in runs:
        await run.__aexit__(None, None, None)


async def test_a_store_that_is_away_for_less_than_the_lease_costs_no_run(world: World) -> None:
    bus = await world.bus()
    async with bus.run(user="ada", agent="planner") as run:
        await run.flush()
        world.store.fail()
        for _ in range(8):
            await world.clock.pass_time(LEASE_MS // 10)
        world.store.heal()
        await world.clock.pass_time(LEASE_MS // 10)
        assert "lease" not in await world.names()
        await run.thinking("Hm")
    assert in_order(await world.events(run.id))


@pytest.mark.parametrize("told", ["by the lease", "by an event"])
async def test_a_run_that_was_taken_cancels_nothing_and_its_next_call_raises(world: World, told: str) -> None:
    bus = await world.bus()
    run = bus.run(user="ada", agent="planner")
    reached = []

    async def agent() -> None:
        async with run:
            await run.flush()
            owner = (await world.record(run.id)).fields["owner"]
            await world.store.claim_run(Lease(user=ADA, run=run.id, owner="node", lease_ms=60_000), owner)
            if told == "by the lease":
                await world.clock.pass_time(LEASE_MS)
            else:
                await run.thinking("nobody hears this")
                with pytest.raises(RunClosed):
                    await run.flush()
            reached.append(True)
            await run.thinking("nor this")
            reached.append(True)

    with pytest.raises(RunClosed, match=r"another|lease"):
        await agent()
    assert reached == [True]
    assert await world.types(run.id) == ["agent_started"]


async def test_the_agents_own_exception_passes_on_from_a_run_that_was_taken(world: World) -> None:
    bus = await world.bus()
    run = bus.run(user="ada", agent="planner")

    async def agent() -> None:
        async with run, run.tool("search"):
            await run.flush()
            await close_run(world.store, world.clock, await world.record(run.id))
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        await agent()
    events = await world.events(run.id)
    assert in_order(events)
    assert events[-1].data["error"] == AGENT_LOST


async def test_a_child_run_goes_on_when_the_run_above_it_was_taken(world: World) -> None:
    bus = await world.bus()
    run = bus.run(user="ada", agent="planner")
    children: list[Run] = []

    async def agent() -> None:
        async with run, run.child(agent="searcher") as child:
            children.append(child)
            await run.flush()
            await close_run(world.store, world.clock, await world.record(run.id))
            await run.thinking("nobody hears this")
            await child.thinking("this is heard")
            await child.flush()
            await child.thinking("and this")

    with pytest.raises(RunClosed):
        await agent()
    assert in_order(await world.events(run.id))
    told = await world.events(children[0].id)
    assert in_order(told)
    assert [event.data["text"] for event in told if event.type == "agent_thinking"] == ["this is heard", "and this"]


# --- deadlines --------------------------------------------------------------------------------------------------------


@pytest.mark.requirement("R17")
async def test_a_run_that_keeps_its_deadlines_leaves_nothing_due(world: World) -> None:
    bus = await world.bus()
    async with bus.run(user="ada", agent="planner", requested_ms=world.clock.now_ms()) as run:
        await run.flush()
        await world.clock.pass_time(1_500)
        await run.thinking("Hm")
        async with run.tool("search") as tool:
            await run.flush()
            await world.clock.pass_time(4_500)
            tool.result = 1
        await run.flush()
    await world.clock.pass_time(3_600_000)
    assert await world.due() == []


@pytest.mark.requirement("R17")
async def test_each_missed_deadline_of_a_run_is_due(world: World) -> None:
    bus = await world.bus()
    limits = RunLimits()
    async with bus.run(user="ada", agent="planner", requested_ms=world.clock.now_ms() - 1_200) as run:
        await run.flush()
        assert await world.names() == ["started"]
        await world.clock.pass_time(limits.thinking_ms + 1)
        assert set(await world.names()) == {"started", "thinking"}
        await run.thinking("too late")
        async with run.tool("search", call_id="a"):
            await run.flush()
            await world.clock.pass_time(limits.completed_ms + 1)
        world.store.hang()
        async with run.tool("search", call_id="b"):
            await world.clock.pass_time(limits.executing_ms + 1)
            world.store.resume()
        await run.flush()
        await world.clock.pass_time(limits.run_ms)
    assert set(await world.names()) == {"started", "thinking", "call:a", "executing:b", "agent"}
    assert (await world.record(run.id)).fields["state"] == "completed"


@pytest.mark.requirement("R17")
async def test_the_deadlines_are_those_of_the_runs_tier(world: World) -> None:
    bus = await world.bus()
    async with bus.run(user="ada", agent="planner", tier="enterprise") as run:
        await run.thinking("Hm")
        await run.flush()
        await world.clock.pass_time(100_000)
        assert await world.names() == []
        assert (await world.record(run.id)).fields["tier"] == "enterprise"
        await world.clock.pass_time(20_001)
        assert await world.names() == ["agent"]
    with pytest.raises(InvalidEvent) as caught:
        bus.run(user="ada", agent="planner", tier="gold")
    assert caught.value.field == "tier"


# --- requests ---------------------------------------------------------------------------------------------------------


@pytest.mark.requirement("R17")
async def test_a_run_that_nobody_starts_is_due_and_known_as_requested(world: World) -> None:
    bus = await world.bus()
    run = await bus.request_run(user="ada", agent="planner", thread="t1", tier="pro")
    fields = (await world.record(run)).fields
    assert (fields["state"], fields["agent"], fields["thread"], fields["tier"]) == ("requested", "planner", "t1", "pro")
    assert fields["requested_ms"] == str(world.clock.now_ms())
    assert await world.names() == []
    await world.clock.pass_time(1_001)
    assert await world.names() == ["started"]


@pytest.mark.requirement("R17")
async def test_a_requested_run_is_begun_by_its_worker_in_another_process(world: World) -> None:
    asking, working = await world.bus(), await world.bus()
    run = await asking.request_run(user="ada", agent="planner")
    await world.clock.pass_time(500)
    async with working.run(user="ada", agent="planner", run=run) as begun:
        await begun.flush()
        assert await asking.request_run(user="ada", agent="planner", run=run) == run, "asked again, it stays as it is"
        fields = (await world.record(run)).fields
        assert fields["state"] == "running"
        assert int(fields["started_ms"]) - int(fields["requested_ms"]) == 500
    await world.clock.pass_time(60_000)
    assert await world.names() == []


@pytest.mark.requirement("R17")
async def test_the_time_that_a_request_has_waited_elsewhere_counts(world: World) -> None:
    bus = await world.bus()
    await bus.request_run(user="ada", agent="planner", requested_ms=world.clock.now_ms() - 900)
    await world.clock.pass_time(101)
    assert await world.names() == ["started"]


async def test_a_request_is_tried_again_within_the_deadline_and_written_once(world: World) -> None:
    bus = await world.bus()
    world.store.lose_replies(calls=2)
    task = asyncio.create_task(bus.request_run(user="ada", agent="planner", run="run_7"))
    for _ in range(20):
        await world.clock.pass_time(100)
    assert await task == "run_7"
    world.store.fail()
    task = asyncio.create_task(bus.request_run(user="ada", agent="planner", run="run_8"))
    for _ in range(120):
        await world.clock.pass_time(100)
    with pytest.raises(StoreUnavailable):
        await task


@pytest.mark.parametrize(
    "wrong, field",
    [
        ({"user": "run_1"}, "user"),
        ({"agent": " "}, "data.agent"),
        ({"thread": "run_1"}, "thread"),
        ({"run": "thread_1"}, "run"),
        ({"tier": "gold"}, "tier"),
        ({"requested_ms": 0}, "requested_ms"),
        ({"requested_ms": "now"}, "requested_ms"),
    ],
)
async def test_a_wrong_request_is_refused_where_it_is_made(world: World, wrong: dict[str, Any], field: str) -> None:
    bus = await world.bus()
    good: dict[str, Any] = {"user": "ada", "agent": "planner"}
    with pytest.raises(InvalidEvent) as caught:
        await bus.request_run(**{**good, **wrong})
    assert caught.value.field == field
    with pytest.raises(InvalidEvent) as caught:
        bus.run(**{**good, **wrong})
    assert caught.value.field == field


# --- resuming ---------------------------------------------------------------------------------------------------------


async def test_a_run_is_resumed_where_its_process_left_it(world: World) -> None:
    first, second = await world.bus(), await world.bus()
    old = await begun(first)
    await old.thinking("Hm")
    await old.tool("search", call_id="a").__aenter__()
    await old.flush()
    async with second.run(user="ada", agent="planner", run=old.id, resume=True) as run:
        assert (await world.record(run.id)).fields["seq"] == "4", "the end of the old call is stored"
        async with run.tool("search", call_id="a") as tool:
            tool.result = 7
        async with run.tool("search") as again:
            again.result = 8
        run.result = "done"
    events = await world.events(old.id)
    assert in_order(events)
    assert [(event.type, event.data.get("error", event.data.get("result"))) for event in events[3:]] == [
        ("tool_completed", TOOL_RESTARTED),
        ("tool_executing", None),
        ("tool_completed", 7),
        ("tool_executing", None),
        ("tool_completed", 8),
        ("agent_completed", "done"),
    ]
    calls = [event.data["call_id"] for event in events if event.type == "tool_executing"]
    assert calls[:2] == ["a", "a"]
    assert calls[2] not in calls[:2]
    await old.thinking("I am still here")
    with pytest.raises(RunClosed):
        await old.flush()
    with pytest.raises(RunClosed):
        await old.thinking("I am still here")
    assert in_order(await world.events(old.id))


async def test_a_resumed_run_keeps_the_deadlines_that_it_has(world: World) -> None:
    first, second = await world.bus(), await world.bus()
    old = await begun(first)
    async with second.run(user="ada", agent="planner", run=old.id, resume=True) as run:
        await run.thinking("Hm")
    await world.clock.pass_time(3_600_000)
    assert await world.names() == []


async def test_a_run_that_has_not_begun_is_begun_when_it_is_to_be_resumed(world: World) -> None:
    """A worker that is given its work again says `resume=True` and need not know how far it came."""
    bus = await world.bus()
    requested = await bus.request_run(user="ada", agent="planner")
    for run in (requested, "run_unknown"):
        async with bus.run(user="ada", agent="planner", run=run, resume=True):
            pass
        assert in_order(await world.events(run))


async def test_a_completed_run_is_not_resumed(world: World) -> None:
    bus = await world.bus()
    async with bus.run(user="ada", agent="planner") as run:
        pass
    with pytest.raises(RunClosed, match="completed"):
        async with bus.run(user="ada", agent="planner", run=run.id, resume=True):
            raise AssertionError("not reached")
    assert await world.types() == ["agent_started", "agent_completed"]


async def test_a_run_is_resumed_by_its_id(world: World) -> None:
    bus = await world.bus()
    with pytest.raises(InvalidEvent) as caught:
        bus.run(user="ada", agent="planner", resume=True)
    assert caught.value.field == "run"


async def test_a_run_that_two_processes_resume_at_once_goes_on_in_one_of_them(world: World) -> None:
    first = await world.bus()
    old = await begun(first)
    buses = [await world.bus() for _ in range(4)]

    async def work(bus: Bus, number: int) -> bool:
        try:
            async with bus.run(user="ada", agent="planner", run=old.id, resume=True) as run:
                await run.publish("note", {"by": number})
                await run.flush()
                await run.publish("note", {"by": number})
        except RunClosed:
            return False
        return True

    done = await asyncio.gather(*(work(bus, number) for number, bus in enumerate(buses)))
    assert sum(done) == 1
    assert in_order(await world.events(old.id))


# --- closing ----------------------------------------------------------------------------------------------------------


async def abandoned(world: World) -> Run:
    run = await begun(await world.bus(), thread="t1")
    for call in ("b", "a"):
        await run.tool("search", call_id=call).__aenter__()
        await world.clock.pass_time(1)
    await run.flush()
    return run


async def test_a_run_whose_process_is_gone_is_closed_as_failed_with_its_open_calls_first(world: World) -> None:
    run = await abandoned(world)
    assert await close_run(world.store, world.clock, await world.record(run.id)) is True
    events = await world.events(run.id)
    assert in_order(events)
    assert [(event.type, event.data.get("call_id")) for event in events[3:]] == [
        ("tool_completed", "b"),
        ("tool_completed", "a"),
        ("agent_completed", None),
    ]
    assert events[-1].data == {"outcome": "failed", "error": AGENT_LOST}
    assert {event.thread for event in events} == {"t1"}
    fields = (await world.record(run.id)).fields
    assert (fields["state"], fields["outcome"]) == ("completed", "failed")
    assert open_calls(await world.record(run.id)) == {}
    await world.clock.pass_time(3_600_000)
    assert "lease" not in await world.names()


@pytest.mark.requirement("R20")
async def test_a_run_that_is_closed_leaves_no_command_and_no_open_question(world: World) -> None:
    """They would count as the user's until the retention is over, and at the cap the user could say nothing more."""
    run = await begun(await world.bus())
    ask = Ask(user=ADA, run=run.id, question="q1", body=b"?", timeout_ms=None)
    command = NewCommand(user=ADA, session=SessionId("phone"), type="message", data=b"", ref="1", run=run.id)
    await world.store.ask(ask)
    await world.store.send_command(command)
    assert await close_run(world.store, world.clock, await world.record(run.id)) is True
    assert await world.store.sent_commands(ADA, ENTRY_ZERO, 10) == []
    assert [one.state for one in await world.store.questions(ADA)] == [QuestionState.CLOSED]


async def test_two_closers_store_what_is_owed_once(world: World) -> None:
    run = await abandoned(world)
    record = await world.record(run.id)
    results = await asyncio.gather(*(close_run(world.store, world.clock, record) for _ in range(5)))
    assert any(results)
    assert in_order(await world.events(run.id))


@pytest.mark.parametrize("lost", range(1, 4))
async def test_a_closer_that_lost_the_store_in_the_midst_leaves_the_rest_to_the_next(world: World, lost: int) -> None:
    run = await abandoned(world)
    record = await world.record(run.id)
    world.store.lose_replies(calls=lost)
    for _ in range(lost):
        with pytest.raises(StoreUnavailable):
            await close_run(world.store, world.clock, record)
        # As a watcher would: the lease is over again, and the run is read anew.
    record = await world.record(run.id)
    assert await close_run(world.store, world.clock, record) is True
    assert in_order(await world.events(run.id))


async def test_a_run_that_has_not_begun_or_is_over_owes_nothing(world: World) -> None:
    bus = await world.bus()
    requested = await bus.request_run(user="ada", agent="planner")
    assert await close_run(world.store, world.clock, await world.record(requested)) is False
    async with bus.run(user="ada", agent="planner") as run:
        pass
    assert await close_run(world.store, world.clock, await world.record(run.id)) is True
    assert owed_by_record(await world.record(run.id)) == ()
    assert await world.types() == ["agent_started", "agent_completed"]


def test_closing_events_have_ids_of_their_own_that_repeat() -> None:
    ids = {closing_event_id(UserId(user), RunId(run), seq) for user in "ab" for run in "cd" for seq in (1, 2)}
    assert len(ids) == 8
    assert closing_event_id(ADA, RunId("r" * 128), 10**9) == closing_event_id(ADA, RunId("r" * 128), 10**9)


# --- what the store took back -----------------------------------------------------------------------------------------


@pytest.mark.requirement("R2")
@pytest.mark.parametrize("kept", [0, 1, 2, 3, 4])
async def test_events_of_a_run_that_a_failover_took_back_come_again_in_order(world: World, kept: int) -> None:
    bus = await world.bus()
    async with bus.run(user="ada", agent="planner") as run:
        for number in range(3):
            await run.publish("note", {"number": number})
        await run.flush()
        entries = [receipt.entry for receipt in run.receipts]
        world.store.roll_back(ADA, entries[kept - 1] if kept else ENTRY_ZERO)
        await run.publish("note", {"number": 3})
    events = await world.events(run.id)
    assert in_order(events)
    assert [event.data["number"] for event in events if event.type == "note"] == [0, 1, 2, 3]


@pytest.mark.requirement("R2")
async def test_events_of_a_run_come_again_when_the_store_lost_everything(world: World) -> None:
    """FLUSHALL: the server says nothing of it, only the run's order shows it."""
    bus = await world.bus()
    async with bus.run(user="ada", agent="planner") as run, run.tool("search") as tool:
        await run.flush()
        world.store.flush()
        tool.result = 1
    assert in_order(await world.events(run.id))


@pytest.mark.requirement("R2")
async def test_a_run_goes_on_behind_what_nobody_has_any_more(world: World) -> None:
    """The publisher keeps its events for some seconds; what is older and lost is a gap, as for any event."""
    bus = await world.bus(kept_ms=0)
    async with bus.run(user="ada", agent="planner") as run:
        await run.publish("note", {"number": 0})
        await run.flush()
        world.store.flush()
        await run.publish("note", {"number": 1})
        await run.publish("note", {"number": 2})
    events = await world.events(run.id)
    assert [event.seq for event in events] == [3, 4, 5]
    assert events[-1].type == "agent_completed"
    assert (await world.record(run.id)).fields["state"] == "completed"


async def test_an_answer_that_was_lost_for_longer_than_the_dedupe_window_stores_nothing_twice() -> None:
    clock = ManualClock()
    from eventbus.config import StoreSettings

    store = MemoryStore(StoreSettings(dedupe_ms=1_000), clock=clock)
    publish = replace(PublishSettings(), publish_deadline_ms=500, kept_ms=0)
    async with Bus(settings=Settings(publish=publish), store=store, clock=clock) as bus:
        run = await bus.run(user="ada", agent="planner").__aenter__()
        await run.flush()
        store.lose_replies()
        await run.publish("note", {})
        for _ in range(30):
            await clock.pass_time(100)
        store.heal()
        for _ in range(100):
            await clock.pass_time(100)
        with pytest.raises(StoreUnavailable):
            await run.flush()
        await run.__aexit__(None, None, None)
    page = await store.history(ADA, ENTRY_ZERO, 100)
    events = [decode_envelope(entry.body) for entry in page.entries]
    assert in_order(events)
    assert len(events) == 3


# --- a thousand runs --------------------------------------------------------------------------------------------------


async def test_a_thousand_runs_with_exceptions_and_cancellations_are_complete_and_in_order() -> None:
    chance = random.Random(7)
    async with made() as world:
        bus = await world.bus()
        runs = [bus.run(user="ada", agent=f"agent-{number}") for number in range(1_000)]

        async def agent(run: Run, moves: list[str], ending: str) -> None:
            async with run:
                for move in moves:
                    match move:
                        case "think":
                            await run.thinking("Hm")
                        case "tool":
                            async with run.tool("search") as tool:
                                await asyncio.sleep(0)
                                tool.result = 1
                        case "fail":
                            try:
                                async with run.tool("search"):
                                    raise ValueError("no")
                            except ValueError:
                                pass
                        case "child":
                            async with run.child(agent="helper") as child:
                                await child.thinking("Hm")
                        case _:
                            await asyncio.sleep(0)
                if ending == "raise":
                    raise ValueError("no")
                if ending == "cancel":
                    await asyncio.Event().wait()

        moves = ["think", "tool", "fail", "child", "pause"]
        endings = [chance.choice(["return", "raise", "cancel"]) for _ in runs]
        tasks = [
            asyncio.create_task(agent(run, chance.choices(moves, k=chance.randrange(6)), ending))
            for run, ending in zip(runs, endings, strict=True)
        ]
        for _ in range(200):
            for task in chance.sample(tasks, 5):
                if not task.done():
                    task.cancel()
            await world.clock.pass_time(1)
        for task, ending in zip(tasks, endings, strict=True):
            if ending == "cancel":
                task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(result) for result in results} <= {type(None), ValueError, asyncio.CancelledError}
        told: dict[str, list[Event]] = {}
        for event in [decode_envelope(entry.body) for entry in await _all(world)]:
            told.setdefault(str(event.run), []).append(event)
        assert len(told) > 500
        assert [run for run, events in told.items() if not in_order(events)] == []
        for run, events in told.items():
            begun = [event.data["call_id"] for event in events if event.type == "tool_executing"]
            assert sorted(begun) == sorted(event.data["call_id"] for event in events if event.type == "tool_completed")
            assert (await world.record(run)).fields["state"] == "completed"


async def _all(world: World) -> list[Any]:
    entries: list[Any] = []
    while True:
        page = await world.store.history(ADA, entries[-1].id if entries else ENTRY_ZERO, 5_000)
        entries += page.entries
        if not page.more:
            return entries


def test_misuse_is_still_an_error_of_its_own() -> None:
    assert not issubclass(RunClosed, RunMisused)
