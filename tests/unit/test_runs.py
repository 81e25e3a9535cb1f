"""Runs: what is owed always comes, in order, whatever the agent, its tasks and the store do."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eventbus import Bus, Run
from eventbus.config import PublishSettings, Settings
from eventbus.errors import EventBusError, InvalidEvent, PublishTimeout, RunMisused, StreamFull
from eventbus.event import Event, Level, Require, decode_envelope
from eventbus.ids import EntryId, UserId
from eventbus.runs.line import MAX_UNANSWERED
from eventbus.schemas import Schema
from eventbus.store import Append, Appended, Durability
from eventbus.testing import ManualClock, MemoryStore
from tests.support.waiting import until

pytestmark = pytest.mark.requirement("R16")

SECRET = "password=hunter2"
DEADLINE_MS = 10_000


class World:
    """A bus over a store in memory, on a clock that stands still."""

    def __init__(self, store: MemoryStore, clock: ManualClock, bus: Bus) -> None:
        self.store, self.clock, self.bus = store, clock, bus

    async def events(self, user: str = "ada") -> list[Event]:
        page = await self.store.history(UserId(user), EntryId("0-0"), 10_000)
        return [decode_envelope(entry.body) for entry in page.entries]

    async def types(self) -> list[str]:
        return [event.type for event in await self.events()]

    async def pass_until_done(self, task: asyncio.Task[Any], limit_ms: int = 60_000) -> None:
        for _ in range(limit_ms // 100):
            await self.clock.pass_time(100)
            if task.done():
                return
        raise AssertionError(f"not done within {limit_ms} ms of the manual clock")


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with made() as one:
        yield one


@asynccontextmanager
async def made(**values: Any) -> AsyncIterator[World]:
    clock = ManualClock()
    store = MemoryStore(clock=clock)
    bus = Bus(settings=Settings(publish=replace(PublishSettings(), **values)), store=store, clock=clock)
    await bus.__aenter__()
    try:
        yield World(store, clock, bus)
    finally:
        store.heal()
        await bus.aclose()


def checked(events: list[Event]) -> None:
    """What holds for the events of every run."""
    assert events, "no events"
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    types = [event.type for event in events]
    assert types[0] == "agent_started"
    assert types[-1] == "agent_completed"
    assert (types.count("agent_started"), types.count("agent_completed")) == (1, 1)
    open_calls: list[str] = []
    for event in events:
        if event.type == "tool_executing":
            open_calls.append(event.data["call_id"])
        if event.type == "tool_completed":
            open_calls.remove(event.data["call_id"])
    assert not open_calls


# --- the happy path ---------------------------------------------------------------------------------------------------


@pytest.mark.requirement("R15")
async def test_a_run_sends_the_five_events_in_order_each_with_the_time_at_which_it_happened(world: World) -> None:
    start_ms = world.clock.now_ms()
    async with world.bus.run(user="ada", thread="t1", agent="planner") as run:
        world.clock.advance(10)
        await run.thinking("Looking at your calendar", step=1)
        world.clock.advance(10)
        async with run.tool("search", {"query": "free"}) as tool:
            world.clock.advance(10)
            tool.result = ["Monday"]
        world.clock.advance(10)
        run.result = "On Monday"
    events = await world.events()
    checked(events)
    assert [(event.type, event.data) for event in events] == [
        ("agent_started", {"agent": "planner"}),
        ("agent_thinking", {"text": "Looking at your calendar", "step": 1}),
        ("tool_executing", {"tool": "search", "call_id": "call_1", "arguments": {"query": "free"}}),
        ("tool_completed", {"tool": "search", "call_id": "call_1", "result": ["Monday"]}),
        ("agent_completed", {"outcome": "success", "result": "On Monday"}),
    ]
    assert [event.time_ms - start_ms for event in events] == [0, 10, 20, 30, 40]
    assert {(event.user, event.thread, event.run) for event in events} == {("ada", "t1", run.id)}
    assert run.id.startswith("run_")
    assert [receipt.event for receipt in run.receipts] == [event.id for event in events]


async def test_an_event_tells_when_it_happened_and_not_when_it_was_sent(world: World) -> None:
    world.store.hang()
    async with world.bus.run(user="ada", agent="planner") as run:
        happened_ms = world.clock.now_ms()
        await run.thinking("Hm")
        await world.clock.pass_time(3_000)
        assert run.receipts == ()
        world.store.resume()
    thought = (await world.events())[1]
    assert thought.time_ms == happened_ms


async def test_a_call_returns_before_its_event_is_stored_and_flush_waits_until_it_is(world: World) -> None:
    async with world.bus.run(user="ada", agent="planner") as run:
        event = await run.thinking("Hm")
        assert event not in [receipt.event for receipt in run.receipts]
        await run.flush()
        assert event in [receipt.event for receipt in run.receipts]


async def test_extra_events_take_a_seq_and_carry_what_was_demanded(world: World) -> None:
    demand = Require(level=Level.DISPLAYED, within_ms=5_000)
    async with world.bus.run(user="ada", agent="planner") as run:
        await run.publish("progress", {"percent": 50}, require=demand)
    events = await world.events()
    checked(events)
    assert (events[1].type, events[1].seq, events[1].require) == ("progress", 2, demand)


async def test_parallel_and_nested_tools_have_calls_of_their_own(world: World) -> None:
    async def call(run: Run, name: str) -> None:
        async with run.tool(name) as tool:
            async with run.tool(f"{name}.inner") as inner:
                await asyncio.sleep(0)
                inner.result = name
            tool.result = name

    async with world.bus.run(user="ada", agent="planner") as run, asyncio.TaskGroup() as group:
        for name in "abc":
            group.create_task(call(run, name))
    events = await world.events()
    checked(events)
    ids = [event.data["call_id"] for event in events if event.type == "tool_executing"]
    assert len(set(ids)) == 6
    assert {event.data.get("result") for event in events if event.type == "tool_completed"} == set("abc")


async def test_a_child_run_has_an_id_and_a_seq_of_its_own_and_names_its_parent(world: World) -> None:
    async with world.bus.run(user="ada", thread="t1", agent="planner") as run:
        await run.thinking("I ask another")
        async with run.child(agent="searcher") as child:
            await child.thinking("I look")
            child.result = 7
        await run.thinking("It says 7")
    events = await world.events()
    of_child = [event for event in events if event.run == child.id]
    checked(of_child)
    checked([event for event in events if event.run == run.id])
    assert of_child[0].data == {"agent": "searcher", "parent": run.id}
    assert {event.thread for event in events} == {"t1"}
    # Their events stand in the order in which things happened, whichever run they are of.
    assert [(event.run == child.id, event.seq) for event in events] == [
        (False, 1), (False, 2), (True, 1), (True, 2), (True, 3), (False, 3), (False, 4)
    ]  # fmt: skip
    assert {receipt.event for receipt in child.receipts} == {event.id for event in of_child}


# --- what fails -------------------------------------------------------------------------------------------------------


async def test_an_exception_passes_on_and_the_user_is_told_in_safe_words(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    error = RuntimeError(SECRET)
    with pytest.raises(RuntimeError) as caught, caplog.at_level(logging.ERROR, "eventbus.runs"):
        async with world.bus.run(user="ada", agent="planner") as run, run.tool("search"):
            raise error
    assert caught.value is error
    events = await world.events()
    checked(events)
    assert [event.data for event in events[-2:]] == [
        {"tool": "search", "call_id": "call_1", "error": "the tool failed"},
        {"outcome": "failed", "error": "the agent failed"},
    ]
    assert all(SECRET not in repr(event) for event in events)
    assert SECRET in caplog.text  # the operators have it in full
    assert run.id in caplog.text


@pytest.mark.parametrize(
    "public_error, told",
    [
        ("No calendar today", "No calendar today"),
        (lambda error: f"No {error.args[0]}", "No calendar"),
        (lambda error: None, "the agent failed"),
        (" ", "the agent failed"),
        (lambda error: error.nothing, "the agent failed"),
    ],
)
async def test_the_agent_chooses_the_words_for_the_user(world: World, public_error: Any, told: str) -> None:
    async def agent() -> None:
        async with world.bus.run(user="ada", agent="planner", public_error=public_error) as run:
            async with run.tool("search", public_error="Nothing found") as tool:
                tool.error = "No luck"
            raise RuntimeError("calendar")

    with pytest.raises(RuntimeError):
        await agent()
    assert [event.data.get("error") for event in (await world.events())[-2:]] == ["No luck", told]


async def test_an_error_that_was_set_ends_the_run_as_failed_without_an_exception(world: World) -> None:
    async with world.bus.run(user="ada", agent="planner") as run:
        run.result = "half of it"
        run.error = "I could not find out"
    assert (await world.events())[-1].data == {"outcome": "failed", "error": "I could not find out"}


async def test_a_tool_that_fails_and_is_caught_does_not_fail_the_run(world: World) -> None:
    async with world.bus.run(user="ada", agent="planner") as run:
        with pytest.raises(ValueError, match="no"):
            async with run.tool("search"):
                raise ValueError("no")
    events = await world.events()
    checked(events)
    assert (events[2].data["error"], events[3].data["outcome"]) == ("the tool failed", "success")


async def test_a_result_that_can_not_be_sent_is_named_and_what_is_owed_comes(world: World) -> None:
    async def agent() -> None:
        async with world.bus.run(user="ada", agent="planner") as run:
            with pytest.raises(InvalidEvent, match=r"data\.result\.when"):
                async with run.tool("search") as tool:
                    tool.result = {"when": object()}
            run.result = object()

    with pytest.raises(InvalidEvent) as caught:
        await agent()
    assert caught.value.field == "data.result"
    events = await world.events()
    checked(events)
    assert [event.data["error"] for event in events[-2:]] == ["the result could not be sent"] * 2
    assert events[-1].data["outcome"] == "failed"


async def test_schemas_of_the_application_do_not_take_back_what_is_owed(world: World) -> None:
    world.bus.schemas.register("agent_completed", Schema(strings=("summary",)))
    with pytest.raises(InvalidEvent):
        async with world.bus.run(user="ada", agent="planner"):
            pass
    checked(await world.events())


async def test_what_is_still_open_at_the_end_ends_with_the_run(world: World) -> None:
    left, go_on = asyncio.Event(), asyncio.Event()

    async def leftover(run: Run) -> None:
        async with run.child(agent="searcher") as child, child.tool("slow") as tool, run.tool("slower"):
            left.set()
            await go_on.wait()
            tool.result = "too late"

    async with world.bus.run(user="ada", agent="planner") as run:
        task = asyncio.create_task(leftover(run))
        await left.wait()
    go_on.set()
    await task
    events = await world.events()
    assert events[-1].run == run.id
    checked([event for event in events if event.run == run.id])
    of_child = [event for event in events if event.run != run.id]
    checked(of_child)
    assert [event.data["error"] for event in of_child[-2:]] == [
        "the run ended before the tool was done",
        "the run above ended before the agent was done",
    ]


# --- misuse -----------------------------------------------------------------------------------------------------------


async def test_what_does_not_belong_in_a_run_is_an_error_that_says_what_to_do(world: World) -> None:
    run = world.bus.run(user="ada", agent="planner")
    with pytest.raises(RunMisused, match="async with"):
        await run.thinking("too early")
    with pytest.raises(RunMisused, match="of its parent"):
        await run.child(agent="searcher").__aenter__()
    async with run:
        with pytest.raises(RunMisused, match="once"):
            await run.__aenter__()
        with pytest.raises(RunMisused, match=r"run\.tool"):
            await run.publish("tool_executing", {"tool": "search"})
        tool = run.tool("search", call_id="mine")
        async with tool:
            with pytest.raises(RunMisused, match="once"):
                await tool.__aenter__()
        with pytest.raises(RunMisused, match="id of its own"):
            await run.tool("search", call_id="mine").__aenter__()
    with pytest.raises(RunMisused, match="completed"):
        await run.thinking("too late")
    with pytest.raises(RunMisused, match="new one"):
        await run.__aenter__()
    events = await world.events()
    checked(events)
    assert len(events) == 4


@pytest.mark.requirement("R15")
@pytest.mark.requirement("R21")
@pytest.mark.parametrize(
    "about, field",
    [
        ({"user": "run_1"}, "user"),
        ({"thread": "run_1"}, "thread"),
        ({"run": "thread_1"}, "run"),
        ({"agent": " "}, "data.agent"),
    ],
)
async def test_a_wrong_id_or_name_is_refused_where_the_run_is_made(
    world: World, about: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidEvent) as caught:
        world.bus.run(**{"user": "ada", "agent": "planner", **about})
    assert caught.value.field == field
    assert await world.events() == []


@pytest.mark.requirement("R15")
async def test_a_bad_event_is_refused_at_the_call_and_takes_no_seq(world: World) -> None:
    world.bus.schemas.register("progress", Schema(strings=("step",)))
    calls: list[tuple[Callable[[Run], Coroutine[Any, Any, object]], str]] = [
        (lambda run: run.thinking(" "), "data.text"),
        (lambda run: run.thinking("x" * 300_000), "data"),
        (lambda run: run.publish("progress", {}), "data.step"),
        (lambda run: run.publish("Progress", {}), "type"),
        (lambda run: run.publish("progress", [1]), "data"),  # type: ignore[arg-type]
        (lambda run: run.tool("search", call_id="run_1").__aenter__(), "data.call_id"),
    ]
    async with world.bus.run(user="ada", agent="planner") as run:
        for call, field in calls:
            with pytest.raises(InvalidEvent) as caught:
                await call(run)
            assert caught.value.field == field
    checked(await world.events())


# --- cancellation -----------------------------------------------------------------------------------------------------


async def test_a_cancelled_run_sends_what_it_owes_and_the_cancellation_goes_on(world: World) -> None:
    inside = asyncio.Event()

    async def agent() -> None:
        run = world.bus.run(user="ada", agent="planner")
        async with run, run.child(agent="searcher") as child, child.tool("search"):
            inside.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(agent())
    await inside.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()
    events = await world.events()
    assert [(event.type, event.data.get("error"), event.data.get("outcome")) for event in events[-3:]] == [
        ("tool_completed", "the tool was cancelled", None),
        ("agent_completed", None, "cancelled"),
        ("agent_completed", None, "cancelled"),
    ]


async def test_what_is_owed_is_waited_for_within_the_deadline_however_often_the_run_is_cancelled(
    world: World,
) -> None:
    inside = asyncio.Event()

    async def agent() -> None:
        async with world.bus.run(user="ada", agent="planner"):
            inside.set()
            await asyncio.Event().wait()

    world.store.hang()
    task = asyncio.create_task(agent())
    await inside.wait()
    began_ms = world.clock.monotonic_ms()
    for _ in range(3):
        task.cancel()
        await world.clock.pass_time(1_000)
        assert not task.done()
    await world.pass_until_done(task)
    assert task.cancelled()
    assert world.clock.monotonic_ms() - began_ms <= DEADLINE_MS + 1_500
    world.store.resume()
    await until(lambda: world.bus.statistics().queued_events == 0)


async def test_a_run_cancelled_while_it_waits_for_its_end_is_stored_and_the_cancellation_goes_on(world: World) -> None:
    async def agent() -> None:
        async with world.bus.run(user="ada", agent="planner") as run:
            run.result = 7

    world.store.hang()
    task = asyncio.create_task(agent())
    await world.clock.pass_time(100)
    task.cancel()
    await world.clock.pass_time(100)
    assert not task.done()
    world.store.resume()
    with pytest.raises(asyncio.CancelledError):
        await task
    events = await world.events()
    checked(events)
    assert events[-1].data == {"outcome": "success", "result": 7}


async def test_a_run_cancelled_while_the_store_is_away_is_complete_when_the_store_comes_back(world: World) -> None:
    inside = asyncio.Event()

    async def agent() -> None:
        async with world.bus.run(user="ada", agent="planner") as run, run.tool("search"):
            inside.set()
            await asyncio.Event().wait()

    world.store.hang()
    task = asyncio.create_task(agent())
    await inside.wait()
    task.cancel()
    await world.clock.pass_time(1_000)
    world.store.resume()
    with pytest.raises(asyncio.CancelledError):
        await task
    checked(await world.events())


async def test_a_call_cancelled_while_it_waits_for_room_has_sent_nothing(world: World) -> None:
    async with world.bus.run(user="ada", agent="planner") as run:
        world.store.hang()
        for number in range(MAX_UNANSWERED - 1):
            await run.thinking(f"n{number}")
        waiting = asyncio.create_task(run.thinking("one too many"))
        await world.clock.pass_time(10)
        assert not waiting.done()
        waiting.cancel()
        await world.clock.pass_time(10)
        assert waiting.cancelled()
        world.store.resume()
    events = await world.events()
    checked(events)
    assert len(events) == MAX_UNANSWERED + 1
    assert "one too many" not in [event.data.get("text") for event in events]


# --- a store that fails -----------------------------------------------------------------------------------------------


class FullOnce(MemoryStore):
    """Refuses one event of a type for good, as long as it is told to."""

    refuse = ""

    async def append(self, events: Any, durability: Durability = Durability.MEMORY) -> list[Appended | Any]:
        good = [event for event in events if not self._refused(event)]
        answers = iter(await super().append(good, durability) if good else [])
        return [StreamFull("full") if self._refused(event) else next(answers) for event in events]

    def _refused(self, event: Append) -> bool:
        return decode_envelope(event.body).data.get("text") == self.refuse


async def test_what_could_not_be_stored_is_told_by_the_next_call_and_sent_again_in_its_place() -> None:
    clock = ManualClock()
    store = FullOnce(clock=clock)
    async with Bus(store=store, clock=clock) as bus:
        store.refuse = "b"
        async with bus.run(user="ada", agent="planner") as run:
            async with run.tool("search"):
                for text in "abc":
                    await run.thinking(text)
                    await clock.pass_time(3_000)  # so that the deadline of each comes well after that before
                for _ in range(DEADLINE_MS // 100):
                    await clock.pass_time(100)
            # What is owed is taken without a word, and waits behind what is not stored.
            await clock.pass_time(100)
            with pytest.raises(EventBusError) as caught:
                await run.thinking("this call has done nothing")
            assert caught.value.retryable
            store.refuse = ""
            await run.thinking("d")
        page = await store.history(UserId("ada"), EntryId("0-0"), 100)
    events = [decode_envelope(entry.body) for entry in page.entries]
    checked(events)
    assert [event.data.get("text", event.type) for event in events[2:-1]] == ["a", "b", "c", "tool_completed", "d"]


async def test_a_failure_at_the_end_is_raised_unless_the_agents_own_exception_passes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def agent(bus: Bus, error: Exception | None) -> None:
        async with bus.run(user="ada", agent="planner"):
            if error is not None:
                raise error

    async with made(breaker_failures=10_000) as world:
        world.store.fail()
        quiet = asyncio.create_task(agent(world.bus, None))
        await world.pass_until_done(quiet)
        with pytest.raises(PublishTimeout):
            quiet.result()
        loud = asyncio.create_task(agent(world.bus, KeyError("own")))
        await world.pass_until_done(loud)
        with pytest.raises(KeyError, match="own"):
            loud.result()
        assert "events could not be stored" in caplog.text


async def test_a_lost_reply_stores_nothing_twice(world: World) -> None:
    async with world.bus.run(user="ada", agent="planner") as run:
        world.store.lose_replies(calls=2)
        await run.thinking("Hm")
        for _ in range(30):
            await world.clock.pass_time(100)
    events = await world.events()
    checked(events)
    assert len(events) == 3


async def test_a_run_left_after_its_bus_was_closed_ends_with_an_error_at_once() -> None:
    bus = Bus(store=MemoryStore(), clock=ManualClock())
    with pytest.raises(EventBusError, match="closed"):
        async with bus, bus.run(user="ada", agent="planner"):
            await bus.aclose()


# --- any program ------------------------------------------------------------------------------------------------------

Plan = tuple[str, list[Any]]
plans: st.SearchStrategy[Plan] = st.recursive(
    st.tuples(st.sampled_from(["think", "note", "yield", "raise", "cancel"]), st.just([])),
    lambda inner: st.tuples(st.sampled_from(["tool", "child", "parallel", "guard"]), st.lists(inner, max_size=3)),
    max_leaves=12,
)


class AgentError(Exception):
    """What an agent of a plan raises."""


async def follow(run: Run, plan: Plan) -> None:
    kind, inner = plan
    match kind:
        case "think":
            await run.thinking("Hm")
        case "note":
            await run.publish("note", {})
        case "yield":
            await asyncio.sleep(0)
        case "raise":
            raise AgentError
        case "cancel":
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await asyncio.sleep(0)
        case "tool":
            async with run.tool("search"):
                await follow_all(run, inner)
        case "child":
            async with run.child(agent="searcher") as child:
                await follow_all(child, inner)
        case "parallel":
            async with asyncio.TaskGroup() as group:
                for one in inner:
                    group.create_task(follow(run, one))
        case "guard":
            try:
                await follow_all(run, inner)
            except* AgentError:
                pass


async def follow_all(run: Run, plans: list[Plan]) -> None:
    for plan in plans:
        await follow(run, plan)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(plans, max_size=5), st.integers(0, 3))
def test_every_run_of_any_program_is_complete_and_in_order(program: list[Plan], lost: int) -> None:
    async def agent(bus: Bus) -> None:
        async with bus.run(user="ada", agent="planner") as run:
            await follow_all(run, program)

    async def main() -> list[Event]:
        async with made(breaker_failures=10_000) as world:
            world.store.lose_replies(calls=lost)
            task = asyncio.create_task(agent(world.bus))
            await world.pass_until_done(task)
            if not task.cancelled() and task.exception() is not None:
                assert isinstance(task.exception(), AgentError | BaseExceptionGroup)
            return await world.events()

    logging.disable(logging.ERROR)
    try:
        events = asyncio.run(main())
    finally:
        logging.disable(logging.NOTSET)
    for run_id in {event.run for event in events}:
        checked([event for event in events if event.run == run_id])
    assert events[0].run == events[-1].run
