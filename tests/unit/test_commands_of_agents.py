"""The agent's side of commands, questions and cancels, over a store in memory: no server, no waiting."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgpack
import pytest

from eventbus import Bus, Outcome, Run
from eventbus.commands.command import NO_DEFAULT, Settled, answered_event_id
from eventbus.commands.reader import HOLD_MS, MAX_DELIVERIES
from eventbus.errors import (
    AnswerTimeout,
    EventBusError,
    InvalidEvent,
    InvalidField,
    QuestionClosed,
    RunCancelled,
    RunMisused,
)
from eventbus.ids import ENTRY_ZERO, RunId, SessionId, UserId
from eventbus.store import Append
from eventbus.store.inbound import (
    Answer,
    Answered,
    AnsweredBy,
    CommandRecord,
    CommandStored,
    NewCommand,
    TakeCommands,
    run_group,
)
from eventbus.testing import ManualClock, MemoryStore
from tests.support.waiting import until

pytestmark = pytest.mark.requirement("R20")

ADA, PHONE, RUN = UserId("ada"), SessionId("phone"), RunId("run_1")


class World:
    """A bus over a store in memory, and what the user does."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.store = MemoryStore(clock=self.clock)
        self.bus = Bus(store=self.store, clock=self.clock)
        self._sent = 0

    async def send(self, type: str, data: dict[str, Any] | None = None, *, run: str | None = RUN) -> None:
        """What a node does with a `send`."""
        self._sent += 1
        command = NewCommand(
            user=ADA,
            session=PHONE,
            type=type,
            data=msgpack.packb(data or {}),
            ref=f"{self._sent}",
            run=None if run is None else RunId(run),
        )
        assert isinstance(await self.store.send_command(command), CommandStored)

    async def answer(self, question: str, answer: Any, *, run: str = RUN) -> Answered:
        """What a node does with an answer."""
        settled = Settled(answer=answer, by=AnsweredBy.USER, session=PHONE, ref="s1")
        event = Append(user=ADA, event=answered_event_id(RunId(run), question), body=b"\x80")
        given = Answer(
            event=event,
            run=RunId(run),
            question=question,
            by=AnsweredBy.USER,
            choice=answer if isinstance(answer, str) else None,
            settled=settled.packed(),
        )
        return (await self.store.answer(given)).result

    async def settle(self) -> None:
        """What was told has been heard."""
        await self.clock.pass_time(0)
        await self.clock.pass_time(0)

    def run(self, **about: Any) -> Run:
        return self.bus.run(**{"user": "ada", "agent": "a", "run": RUN, **about})

    @property
    def told(self) -> list[tuple[str, dict[str, Any]]]:
        """The events of the user: type and data."""
        return [(event.type, dict(event.data)) for event in self.store.published("ada")]


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    async with made.bus:
        yield made


# --- cancel -----------------------------------------------------------------------------------------------------------


async def test_what_was_sent_to_a_run_that_never_read_it_goes_with_the_run(world: World) -> None:
    async with world.run():
        await world.send("message", {"text": "hello"})
        await world.settle()

    assert await world.store.sent_commands(ADA, ENTRY_ZERO, 10) == []


async def test_a_cancel_ends_the_task_of_the_run_and_its_block_ends_without_an_error(world: World) -> None:
    async with world.run() as run, run.tool("search", call_id="c1"):
        await world.send("cancel", {"reason": "too slow"})
        await asyncio.Event().wait()

    assert run.outcome is Outcome.CANCELLED
    assert (run.cancelled.is_set(), bool(run.cancelled)) == (True, True)
    assert (run.cancelled.reason, run.cancelled.session) == ("too slow", "phone")
    assert [kind for kind, _ in world.told] == [
        "agent_started",
        "tool_executing",
        "tool_completed",
        "agent_completed",
    ]
    assert world.told[-1][1] == {"outcome": "cancelled", "error": "too slow"}
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    await asyncio.sleep(0)


async def test_a_cancel_without_a_reason_is_told_in_the_librarys_words(world: World) -> None:
    async with world.run() as run:
        await world.send("cancel")
        await asyncio.Event().wait()
    assert world.told[-1] == ("agent_completed", {"outcome": "cancelled", "error": "the user cancelled the run"})
    assert run.cancelled.reason == "the user cancelled the run"


async def test_a_cancel_that_came_while_the_run_was_only_requested_is_seen(world: World) -> None:
    run_id = await world.bus.request_run(user="ada", agent="a")
    await world.send("cancel", run=run_id)
    async with world.run(run=run_id) as run:
        await asyncio.Event().wait()
    assert run.outcome is Outcome.CANCELLED


async def test_a_cancel_that_was_read_for_another_run_of_the_user_is_seen_by_a_run_that_begins_later(
    world: World,
) -> None:
    async with world.run() as run:
        await world.send("cancel", run="run_2")
        await world.settle()
        async with world.run(run="run_2") as later:
            await asyncio.Event().wait()
    assert (run.outcome, later.outcome) == (Outcome.SUCCESS, Outcome.CANCELLED)


async def test_a_cancel_of_another_run_or_of_none_changes_nothing(world: World) -> None:
    async with world.run() as run, world.run(run="run_2") as other:
        await world.send("cancel", run="run_3")
        await world.send("cancel", run=None)
        await world.settle()
        assert not run.cancelled
        await world.send("cancel", run="run_2")
        await asyncio.Event().wait()
    assert (run.outcome, other.outcome) == (Outcome.SUCCESS, Outcome.CANCELLED)


async def test_two_runs_that_are_cancelled_in_one_task_both_end(world: World) -> None:
    async with world.run() as run:
        async with world.run(run="run_2") as other:
            await world.send("cancel", run=RUN)
            await world.send("cancel", run="run_2")
            await asyncio.Event().wait()
        await asyncio.sleep(0)
    assert {run.outcome, other.outcome} <= {Outcome.CANCELLED, Outcome.SUCCESS}
    assert run.cancelled
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_a_task_that_others_cancel_too_passes_that_on(world: World) -> None:
    entered = asyncio.Event()

    async def work() -> None:
        async with world.run() as run:
            entered.set()
            await run.cancelled.wait()

    task = asyncio.create_task(work())
    await entered.wait()
    await world.send("cancel")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert world.told[-1][1]["outcome"] == "cancelled"


async def test_a_run_that_others_cancel_is_not_taken_for_cancelled_by_its_user(world: World) -> None:
    entered = asyncio.Event()
    runs = []

    async def work() -> None:
        async with world.run() as run:
            runs.append(run)
            entered.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not runs[0].cancelled
    assert runs[0].outcome is Outcome.CANCELLED


async def test_an_agent_that_ends_well_in_spite_of_a_cancel_has_succeeded(world: World) -> None:
    async with world.run() as run:
        await world.send("cancel")
        with pytest.raises(asyncio.CancelledError):
            await asyncio.Event().wait()
        run.result = "saved what there was"
    assert run.outcome is Outcome.SUCCESS
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_an_agent_that_fails_over_a_cancel_has_failed(world: World) -> None:
    run = world.run()

    async def work() -> None:
        async with run:
            await world.send("cancel")
            try:
                await asyncio.Event().wait()
            finally:
                raise KeyError("x")

    with pytest.raises(KeyError):
        await work()
    assert run.outcome is Outcome.FAILED


async def test_a_run_may_only_be_told_of_its_cancel(world: World) -> None:
    async with world.run(on_cancel="flag") as run:
        run.check()
        await world.send("cancel", {"reason": "enough"})
        await run.cancelled.wait()
        with pytest.raises(RunCancelled, match="enough"):
            run.check()
        run.result = 7
    assert run.outcome is Outcome.SUCCESS


async def test_a_run_that_checks_ends_as_cancelled_without_an_error(world: World) -> None:
    async with world.run(on_cancel="flag") as run:
        await world.send("cancel", {"reason": "enough"})
        await run.cancelled.wait()
        run.check()
    assert run.outcome is Outcome.CANCELLED
    assert world.told[-1][1] == {"outcome": "cancelled", "error": "enough"}


async def test_the_cancel_of_a_run_above_passes_through_the_run_below(world: World) -> None:
    async with world.run() as run, run.child(agent="b", run="run_2") as child:
        await world.send("cancel")
        await asyncio.Event().wait()
    assert (run.outcome, child.outcome) == (Outcome.CANCELLED, Outcome.CANCELLED)
    assert not child.cancelled


async def test_the_cancel_of_a_run_below_ends_that_run_alone(world: World) -> None:
    async with world.run() as run:
        async with run.child(agent="b", run="run_2") as child:
            await world.send("cancel", run="run_2")
            await asyncio.Event().wait()
        assert child.outcome is Outcome.CANCELLED
        await run.thinking("going on")
    assert run.outcome is Outcome.SUCCESS


async def test_a_cancel_is_seen_when_the_store_comes_back(world: World) -> None:
    async with world.run() as run:
        await world.settle()
        await world.send("cancel")
        world.store.fail()
        await world.settle()
        assert not run.cancelled
        world.store.heal()
        await world.clock.pass_time(500)
        await asyncio.Event().wait()
    assert run.cancelled


async def test_on_cancel_is_one_of_its_words(world: World) -> None:
    with pytest.raises(InvalidEvent, match="on_cancel"):
        world.run(on_cancel="explode")


# --- commands ---------------------------------------------------------------------------------------------------------


async def test_a_run_reads_its_commands_in_order_and_acks_each_with_the_next(world: World) -> None:
    for number in range(3):
        await world.send("message", {"text": f"m{number}"})
    await world.send("message", {"text": "for nobody"}, run=None)
    seen = []
    async with world.run() as run:
        async for command in run.commands():
            seen.append((command.type, command.data, command.attempts))
            assert (command.user, command.session, command.run, command.thread) == ("ada", "phone", RUN, None)
            assert command.time_ms == world.clock.now_ms()
            if len(seen) == 3:
                await command.ack()
                break
        assert await _unacked(world) == []
    assert seen == [("message", {"text": f"m{number}"}, 1) for number in range(3)]


async def _unacked(world: World) -> Sequence[CommandRecord]:
    """What the run has read and not acked."""
    request = TakeCommands(user=ADA, group=run_group(RUN), run=RUN, count=10, idle_ms=0, max_deliveries=5)
    return await world.store.take_commands(request)


async def test_a_reader_waits_for_what_comes_later(world: World) -> None:
    async with world.run() as run:
        reading = asyncio.create_task(anext(run.commands()))
        await world.settle()
        await world.send("message", {"text": "late"})
        assert (await reading).data == {"text": "late"}


async def test_the_iterator_of_a_run_ends_with_the_run(world: World) -> None:
    async with world.run() as run:
        commands = run.commands()
        reading = asyncio.create_task(_all(commands))
        await world.settle()
    assert await reading == []
    with pytest.raises(RunMisused):
        run.commands()
    assert await _all(commands) == []


async def _all(commands: Any) -> list[Any]:
    return [command async for command in commands]


async def test_a_cancel_does_not_come_with_the_commands(world: World) -> None:
    await world.send("cancel")
    await world.send("message", {"text": "hello"})
    async with world.run(on_cancel="flag") as run:
        command = await anext(run.commands())
        assert command.type == "message"
        await run.cancelled.wait()


async def test_what_a_run_has_not_acked_its_next_reader_gets_at_once(world: World) -> None:
    """Its process died between reading and acking, and another has resumed it."""
    for text in ("a", "b", "c"):
        await world.send("message", {"text": text})
    async with world.run() as run:
        first = run.commands()
        await anext(first)
        again = run.commands()
        found = [await anext(again) for _ in range(3)]
        assert [(command.data["text"], command.attempts) for command in found] == [("a", 2), ("b", 2), ("c", 2)]


async def test_a_nacked_command_comes_again_after_its_delay(world: World) -> None:
    await world.send("message", {"text": "a"})
    async with world.run() as run:
        commands = run.commands()
        await (await anext(commands)).nack(200)
        reading = asyncio.create_task(anext(commands))
        await world.clock.pass_time(150)
        assert not reading.done()
        await world.clock.pass_time(100)
        await world.settle()
        again = await reading
        assert (again.data, again.attempts) == ({"text": "a"}, 2)
        with pytest.raises(InvalidField):
            await again.nack(HOLD_MS + 1)


async def test_workers_of_an_inbox_share_the_commands(world: World) -> None:
    one, two = world.bus.commands(user="ada"), world.bus.commands(user="ada")
    readings = [asyncio.create_task(anext(commands)) for commands in (one, two)]
    await world.settle()
    for text in ("a", "b"):
        await world.send("message", {"text": text}, run=None)
    found = [await reading for reading in readings]
    assert sorted(command.data["text"] for command in found) == ["a", "b"]
    everything = world.bus.commands(user="ada", group="audit")
    assert [(await anext(everything)).data["text"] for _ in range(2)] == ["a", "b"]
    for commands in (one, two, everything):
        commands.close()


async def test_a_block_that_raises_gives_its_command_back_at_once(world: World) -> None:
    await world.send("message", {"text": "a"}, run=None)

    async def work() -> None:
        async with world.bus.commands(user="ada") as commands:
            async for _ in commands:
                raise KeyError("x")

    with pytest.raises(KeyError):
        await work()
    async with world.bus.commands(user="ada") as commands:
        assert (await anext(commands)).attempts == 2
    async with world.bus.commands(user="ada") as commands:
        reading = asyncio.create_task(anext(commands))
        await world.clock.pass_time(HOLD_MS)
        await world.settle()
        assert not reading.done(), "a block that ends well has acked"
        reading.cancel()


async def test_a_command_that_is_worked_on_for_long_goes_to_nobody_else(world: World) -> None:
    await world.send("message", {"text": "a"}, run=None)
    async with world.bus.commands(user="ada") as commands, world.bus.commands(user="ada") as others:
        await anext(commands)
        reading = asyncio.create_task(anext(others))
        for _ in range(20):
            await world.clock.pass_time(HOLD_MS // 4)
            await world.settle()
        assert not reading.done()
        reading.cancel()


async def test_a_command_whose_reader_was_dropped_goes_to_another(world: World) -> None:
    await world.send("message", {"text": "a"}, run=None)
    commands = world.bus.commands(user="ada")
    await anext(commands)
    del commands
    gc.collect()
    async with world.bus.commands(user="ada") as others:
        reading = asyncio.create_task(anext(others))
        for _ in range(8):
            await world.clock.pass_time(HOLD_MS // 4)
            await world.settle()
        assert (await reading).attempts == 2


async def test_a_command_that_nobody_can_handle_is_given_up(world: World) -> None:
    await world.send("message", {"text": "a"})
    async with world.run() as run:
        for attempt in range(1, MAX_DELIVERIES + 1):
            assert (await anext(run.commands())).attempts == attempt
        reading = asyncio.create_task(anext(run.commands()))
        await world.settle()
        assert not reading.done()
        reading.cancel()
    (partition,) = await world.store.dead_letter_partitions()
    (letter,) = await world.store.dead_letters(partition, ENTRY_ZERO, 10)
    assert (letter.reason, letter.attempts) == ("command_not_acked", MAX_DELIVERIES)


async def test_an_inbox_ends_with_its_bus() -> None:
    world = World()
    async with world.bus:
        reading = asyncio.create_task(_all(world.bus.commands(user="ada")))
        await world.settle()
    assert await reading == []


async def test_two_tasks_do_not_share_an_iterator(world: World) -> None:
    commands = world.bus.commands(user="ada")
    reading = asyncio.create_task(anext(commands))
    await world.settle()
    with pytest.raises(EventBusError, match="one task at a time"):
        await anext(commands)
    reading.cancel()


@pytest.mark.parametrize("about", [{"user": "run_1"}, {"user": ""}, {"user": "ada", "group": "a b"}])
async def test_an_inbox_of_a_wrong_name_is_refused(world: World, about: dict[str, str]) -> None:
    with pytest.raises(InvalidField):
        world.bus.commands(**about)


# --- questions --------------------------------------------------------------------------------------------------------


async def test_an_answer_is_what_the_question_returns(world: World) -> None:
    async with world.run(thread="t1") as run:
        asking = asyncio.create_task(run.ask("Which one?", options=["a", "b"], default="a", question="q1"))
        await until(lambda: _asked(world))
        assert _asked(world) == [
            {
                "question": "q1",
                "text": "Which one?",
                "options": ["a", "b"],
                "deadline_ms": world.clock.now_ms() + 60_000,
                "default": "a",
            }
        ]
        await world.settle()
        assert await world.answer("q1", "c") is Answered.BAD_ANSWER
        assert await world.answer("q1", "b") is Answered.ACCEPTED
        assert await asking == "b"


def _asked(world: World) -> list[dict[str, Any]]:
    return [data for kind, data in _known(world) if kind == "agent_question"]


def _known(world: World) -> list[tuple[str, dict[str, Any]]]:
    try:
        return world.told
    except EventBusError:  # the event of `World.answer` has no fields
        return []


async def test_an_answer_may_be_any_value(world: World) -> None:
    async with world.run() as run:
        asking = asyncio.create_task(run.ask("How many?", question="q1"))
        await world.settle()
        await world.answer("q1", {"count": [1, 2.5, None]})
        assert await asking == {"count": [1, 2.5, None]}


async def test_the_deadline_answers_with_the_default_and_tells_every_device(world: World) -> None:
    async with world.run() as run:
        asking = asyncio.create_task(run.ask("Which one?", default="a", timeout_ms=2_000, question="q1"))
        await world.settle()
        await world.clock.pass_time(1_999)
        assert not asking.done()
        await world.clock.pass_time(2)
        await world.settle()
        assert await asking == "a"
    assert ("agent_answered", {"question": "q1", "answer": "a", "by": "deadline"}) in world.told
    (event,) = [event for event in world.store.published("ada") if event.type == "agent_answered"]
    assert (event.run, event.seq) == (RUN, None)


async def test_a_question_without_a_default_raises_at_its_deadline(world: World) -> None:
    async with world.run() as run:
        asking = asyncio.create_task(run.ask("Which one?", timeout_ms=2_000, question="q1"))
        await world.settle()
        await world.clock.pass_time(2_001)
        await world.settle()
        with pytest.raises(AnswerTimeout):
            await asking
        with pytest.raises(AnswerTimeout):
            await run.ask("Which one?", question="q1")
    assert ("agent_answered", {"question": "q1", "answer": None, "by": "deadline"}) in world.told


async def test_a_default_of_null_is_one(world: World) -> None:
    async with world.run() as run:
        asking = asyncio.create_task(run.ask("Which one?", timeout_ms=2_000, default=None))
        await world.settle()
        await world.clock.pass_time(2_001)
        assert await asking is None


async def test_a_question_that_is_asked_again_is_the_same_and_published_once(world: World) -> None:
    async with world.run() as run:
        asking = asyncio.create_task(run.ask("Which one?", question="q1"))
        await world.settle()
        asking.cancel()
        again = asyncio.create_task(run.ask("Which one?", question="q1"))
        await world.settle()
        assert len(_asked(world)) == 1
        await world.answer("q1", "a")
        assert await again == "a"
        assert await run.ask("Which one?", question="q1") == "a"


async def test_a_process_that_resumes_a_run_finds_its_question_and_its_answer(world: World) -> None:
    first = world.run()
    await first.__aenter__()
    asking = asyncio.create_task(first.ask("Which one?", question="q1"))
    await world.settle()
    asking.cancel()
    assert await world.answer("q1", "a") is Answered.ACCEPTED
    async with (
        Bus(store=world.store, clock=world.clock) as other,
        other.run(user="ada", agent="a", run=RUN, resume=True) as run,
    ):
        assert await run.ask("Which one?", question="q1") == "a"


async def test_a_process_that_resumes_a_run_asks_its_open_question_no_second_time(world: World) -> None:
    first = world.run()
    await first.__aenter__()
    asking = asyncio.create_task(first.ask("Which one?", question="q1"))
    await world.settle()
    asking.cancel()
    async with (
        Bus(store=world.store, clock=world.clock) as other,
        other.run(user="ada", agent="a", run=RUN, resume=True) as run,
    ):
        again = asyncio.create_task(run.ask("Which one?", question="q1"))
        await world.settle()
        assert len(_asked(world)) == 1
        await world.answer("q1", "a")
        assert await again == "a"


async def test_the_end_of_a_run_closes_its_questions(world: World) -> None:
    async with world.run() as run:
        asking = asyncio.create_task(run.ask("Which one?", question="q1"))
        await world.settle()
    await world.clock.pass_time(5_000)
    await world.settle()
    with pytest.raises(QuestionClosed):
        await asking
    assert await world.answer("q1", "a") is Answered.QUESTION_CLOSED


async def test_a_question_waits_for_a_store_that_comes_back(world: World) -> None:
    async with world.run() as run:
        await world.settle()
        world.store.fail(calls=3)
        asking = asyncio.create_task(run.ask("Which one?", question="q1"))
        for _ in range(40):
            await world.clock.pass_time(100)
        await world.answer("q1", "a")
        assert await asking == "a"


@pytest.mark.parametrize(
    "about, field",
    [
        ({"text": " "}, "text"),
        ({"text": 7}, "text"),
        ({"options": "ab"}, "options"),
        ({"options": ["a", ""]}, "options[1]"),
        ({"options": ["a", "a"]}, "options[1]"),
        ({"options": ["a"] * 65}, "options"),
        ({"options": ["a"], "default": "b"}, "default"),
        ({"default": object()}, "default"),
        ({"timeout_ms": 0}, "timeout_ms"),
        ({"timeout_ms": 1.5}, "timeout_ms"),
        ({"timeout_ms": 10**9}, "timeout_ms"),
        ({"question": "q 1"}, "question"),
        ({"question": "x" * 65}, "question"),
    ],
)
async def test_a_question_of_a_wrong_form_is_refused_where_it_is_asked(
    world: World, about: dict[str, Any], field: str
) -> None:
    async with world.run() as run:
        with pytest.raises(InvalidEvent) as refused:
            await run.ask(**{"text": "Which one?", **about})
        assert refused.value.field == field
    assert _asked(world) == []
    assert NO_DEFAULT is not None


async def test_a_question_needs_an_open_run(world: World) -> None:
    run = world.run()
    with pytest.raises(RunMisused):
        await run.ask("Which one?")
