"""A node's way for commands, over a store in memory whose faults a test chooses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from eventbus import wire
from eventbus.commands.command import Question
from eventbus.errors import StoreFull, StoreMisconfigured
from eventbus.ids import ENTRY_ZERO, EntryId, EventId, RunId, UserId
from eventbus.store import Append, Appended
from eventbus.store.inbound import COMMANDS_MAX, Ask, TakeCommands, inbox_group
from gateway.delivery.sending import BATCH_MAX, FULL_MS, PAUSE_MAX_MS, WAITING_MAX
from tests.support.bench import Bench, BenchClient
from tests.support.waiting import until

pytestmark = pytest.mark.requirement("R20")

ALICE, RUN = UserId("alice"), RunId("run_1")


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    async with Bench(store_wait_ms=5_000) as made:
        task = asyncio.create_task(made.node.sending.run())
        yield made
        made.store.heal()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def say(client: BenchClient, ref: Any, text: str = "a", **more: Any) -> None:
    client.say("send", type="message", data={"text": text}, ref=ref, **more)


async def told(client: BenchClient, op: str, count: int = 1) -> list[dict[str, Any]]:
    """The frames of that op, once there are so many. The node pauses in real time after the store has failed."""
    await until(lambda: len(client.of(op)) >= count, 5_000 + 2 * PAUSE_MAX_MS)
    return client.of(op)


async def stored(bench: Bench) -> int:
    return len(await bench.store.sent_commands(ALICE, ENTRY_ZERO, 1_000))


async def ask(bench: Bench) -> EntryId:
    body = Question(text="Which?").packed()
    await bench.store.ask(Ask(user=ALICE, run=RUN, question="q1", body=body, timeout_ms=60_000))
    (entry,) = await bench.publish(type="agent_question", data={"question": "q1", "text": "Which?"}, run=RUN)
    await bench.store.question_published(ALICE, RUN, "q1", entry)
    return entry


async def test_a_command_that_the_store_missed_is_tried_again_and_keeps_its_place(bench: Bench) -> None:
    client = await bench.open()
    bench.store.fail(calls=1)
    for ref in range(3):
        say(client, ref)
    sent = await told(client, "sent", 3)
    assert [frame["ref"] for frame in sent] == [0, 1, 2]
    assert bench.node.counters.commands_stored == {"message": 3}
    assert bench.node.counters.store_errors == {"store_unavailable": 1}


async def test_a_command_whose_reply_was_lost_is_stored_once(bench: Bench) -> None:
    client = await bench.open()
    bench.store.lose_replies(calls=1)
    say(client, 1)
    await told(client, "sent")
    assert await stored(bench) == 1


@pytest.mark.parametrize("error, code", [(None, "store_unavailable"), (StoreFull("full"), "store_full")])
async def test_a_client_is_told_when_its_command_has_waited_too_long(bench: Bench, error: Any, code: str) -> None:
    client = await bench.open()
    bench.store.fail(error)
    say(client, 1)
    await bench.settle()
    assert client.of("error") == []
    bench.clock.advance(5_000)
    (frame,) = await told(client, "error")
    assert (frame["code"], frame["ref"]) == (code, 1)
    bench.store.heal()
    say(client, 2)
    assert [frame["ref"] for frame in await told(client, "sent")] == [2]


async def test_an_error_that_no_time_heals_is_told_at_once(bench: Bench) -> None:
    client = await bench.open()
    bench.store.fail(StoreMisconfigured("no rights"))
    say(client, 1)
    (frame,) = await told(client, "error")
    assert (frame["code"], frame["ref"]) == ("store_misconfigured", 1)


async def test_a_defect_costs_one_command_and_no_other(bench: Bench) -> None:
    client = await bench.open()
    bench.store.fail(KeyError("a defect"), calls=1)  # type: ignore[arg-type]
    say(client, 1)
    (frame,) = await told(client, "error")
    assert (frame["code"], frame["ref"]) == ("internal", 1)
    assert "defect" not in frame["message"]
    say(client, 2)
    await told(client, "sent")


async def test_more_commands_than_may_wait_are_refused_and_cost_nothing(bench: Bench) -> None:
    client, other = await bench.open(), await bench.open("bob")
    bench.store.hang()
    for ref in range(WAITING_MAX + 2):
        say(client, ref)
    say(other, 1)
    frames = client.of("error")
    assert [(frame["code"], frame["ref"]) for frame in frames] == [
        ("rate_limited", WAITING_MAX),
        ("rate_limited", WAITING_MAX + 1),
    ]
    assert bench.node.sending.waiting == WAITING_MAX + 1
    bench.store.resume()
    assert len(await told(client, "sent", WAITING_MAX)) == WAITING_MAX
    await told(other, "sent")


async def test_a_client_that_floods_at_the_cap_costs_the_store_one_look_a_second(bench: Bench) -> None:
    for number in range(COMMANDS_MAX):
        await bench.store.user_sends("alice", "message", {"text": f"{number}"})
    client, other = await bench.open(), await bench.open("bob")
    await until(lambda: not bench.node.sending.is_busy)
    before = bench.store.calls
    for ref in range(20):
        say(client, ref)
        await told(client, "error", ref + 1)
    assert bench.store.calls == before + 1
    assert {frame["code"] for frame in client.of("error")} == {"rate_limited"}
    say(other, 1)
    await told(other, "sent")

    group = inbox_group("inbox")
    taking = TakeCommands(user=ALICE, group=group, run=None, count=1, idle_ms=1_000, max_deliveries=5)
    (taken,) = await bench.store.take_commands(taking)
    await bench.store.ack_commands(ALICE, group, [taken.id])
    bench.clock.advance(FULL_MS)
    say(client, 99)
    assert [frame["ref"] for frame in await told(client, "sent")] == [99]


async def test_a_command_of_a_client_that_has_gone_is_stored_all_the_same(bench: Bench) -> None:
    client = await bench.open()
    bench.store.hang()
    say(client, 1)
    await bench.settle()
    client.hang_up()
    bench.store.resume()
    assert await bench.node.sending.flush(5_000)
    assert await stored(bench) == 1
    assert client.of("sent") == []


async def test_a_drain_waits_for_commands_and_not_for_ever(bench: Bench) -> None:
    client = await bench.open()
    assert await bench.node.sending.flush(1_000)
    bench.store.hang()
    say(client, 1)
    assert not await bench.node.sending.flush(10)
    bench.store.resume()
    assert await bench.node.sending.flush(5_000)


async def test_an_open_question_is_sent_again_when_the_store_answers(bench: Bench) -> None:
    entry = await ask(bench)
    client = await bench.open(start="earliest")
    await until(lambda: not bench.node.sending.is_busy)
    assert client.events() == [(entry, 1)], "it has it already"
    client.say("ack", ids=[entry])
    await bench.settle()
    client.hang_up()
    await bench.settle()

    again = bench.connect()
    again.say("hello", session="tab")
    await until(lambda: "caught_up" in again.ops())
    await until(lambda: bool(again.events()), 10_000)
    assert again.events() == [(entry, 2)]


async def test_questions_are_looked_for_again_after_the_store_has_failed(bench: Bench) -> None:
    entry = await ask(bench)
    client = await bench.open(start="new")
    await until(lambda: client.events() == [(entry, 2)])
    bench.store.fail(calls=2)
    bench.node.sending.ask_again(next(iter(bench.node.hub)))
    await until(lambda: len(client.events()) == 2, 10_000)


async def test_a_client_that_has_gone_is_not_asked(bench: Bench) -> None:
    await ask(bench)
    client = await bench.open(start="new")
    session = next(iter(bench.node.hub))
    await until(lambda: not bench.node.sending.is_busy)
    before = len(client.socket.frames)
    client.hang_up()
    bench.node.sending.ask_again(session)
    await until(lambda: not bench.node.sending.is_busy)
    assert len(client.socket.frames) == before


@pytest.mark.requirement("R9")
async def test_those_who_never_fall_silent_do_not_keep_others_waiting(bench: Bench) -> None:
    """More connections than are looked after at once have more to say all the time."""
    loud = [await bench.open(f"loud{number}") for number in range(BATCH_MAX)]
    quiet = await bench.open("quiet")
    bench.store.hang()
    for client in loud:
        for _ in range(WAITING_MAX // 2):
            bench.node.sending.take(client.session, wire.Send(type="message", data={"text": "a"}, ref=0))
    say(quiet, 1)
    bench.store.resume()
    await until(lambda: quiet.of("sent"))
    assert bench.node.sending.waiting > BATCH_MAX * (WAITING_MAX // 2 - 8), "it had its turn long before they were done"


@pytest.mark.requirement("R1")
async def test_a_question_that_somebody_else_wrote_into_the_stream_ends_nothing(bench: Bench) -> None:
    """It is passed over, and what is a question is asked; the next command is stored."""
    await bench.store.ask(
        Ask(user=ALICE, run=RUN, question="q0", body=Question(text="Bad?").packed(), timeout_ms=60_000)
    )
    (stored_bad,) = await bench.store.append([Append(user=ALICE, event=EventId("bad"), body=b"no envelope")])
    assert isinstance(stored_bad, Appended)
    await bench.store.question_published(ALICE, RUN, "q0", stored_bad.entry)
    entry = await ask(bench)
    client = await bench.open(start="new")
    await until(lambda: client.events() == [(entry, 2)])
    say(client, 1)
    await told(client, "sent")
