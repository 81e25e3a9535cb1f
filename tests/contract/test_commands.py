"""Commands of users: stored once, read by those they are for, read again until they are acked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from eventbus.ids import ENTRY_ZERO, EntryId, EventId, RunId, SessionId, ThreadId, UserId
from eventbus.store import Append, RunStep
from eventbus.store.inbound import (
    COMMANDS_MAX,
    COMMANDS_MAX_BYTES,
    CommandRecord,
    CommandRefusal,
    CommandStored,
    NewCommand,
    TakeCommands,
    Told,
    inbox_group,
    run_group,
)
from tests.contract.conftest import MakeWorld
from tests.contract.timely import timely
from tests.contract.worlds import ALICE, World
from tests.support.waiting import until

RUN, OTHER_RUN = RunId("run_1"), RunId("run_2")
BOB = UserId("bob")
PHONE = SessionId("phone")

pytestmark = pytest.mark.requirement("R20")


class Heard:
    """A follower that writes down what it is told."""

    def __init__(self) -> None:
        self.told_of: list[tuple[UserId, Told]] = []

    def told(self, user: UserId, what: Told) -> None:
        self.told_of.append((user, what))

    async def until(self, *wanted: Told, user: UserId = ALICE) -> None:
        """Waits until these came, each once at the least."""
        await until(lambda: {(user, what) for what in wanted} <= set(self.told_of), message=lambda: f"{self.told_of}")


def command_of(ref: str, **fields: Any) -> NewCommand:
    made: dict[str, Any] = {"user": ALICE, "session": PHONE, "type": "message", "data": ref.encode(), "ref": ref}
    return NewCommand(**(made | fields))


async def send(world: World, ref: str, **fields: Any) -> EntryId:
    stored = await world.store.send_command(command_of(ref, **fields))
    assert isinstance(stored, CommandStored), stored
    return stored.id


async def take(
    world: World,
    run: RunId | None = None,
    *,
    group: str | None = None,
    user: UserId = ALICE,
    count: int = 10,
    idle_ms: int = 60_000,
    max_deliveries: int = 5,
) -> Sequence[CommandRecord]:
    return await world.store.take_commands(
        TakeCommands(
            user=user,
            group=group or (inbox_group("inbox") if run is None else run_group(run)),
            run=run,
            count=count,
            idle_ms=idle_ms,
            max_deliveries=max_deliveries,
        )
    )


def names(records: Sequence[CommandRecord]) -> list[tuple[str, int]]:
    return [(record.data.decode(), record.attempts) for record in records]


async def complete(world: World, run: RunId, user: UserId = ALICE) -> None:
    """The run has begun and ended, as the store has it."""
    step = RunStep(run=run, seq=1, owner="", lease_ms=0, fields={"state": "completed"})
    (result,) = await world.append(Append(user=user, event=EventId(f"done-{run}"), body=b"done", step=step))
    assert not isinstance(result, Exception), result


async def test_a_command_is_read_with_all_that_was_sent(world: World) -> None:
    entry = await send(world, "a", run=RUN, thread=ThreadId("trip"))

    (record,) = await take(world, RUN)

    assert record == CommandRecord(
        id=entry, session=PHONE, type="message", data=b"a", run=RUN, thread=ThreadId("trip"), attempts=1
    )


async def test_a_request_that_is_sent_again_is_stored_once(world: World) -> None:
    first = await world.store.send_command(command_of("a"))
    again = await world.store.send_command(command_of("a"))
    other = await world.store.send_command(command_of("a", session=SessionId("tablet")))

    assert isinstance(first, CommandStored)
    assert isinstance(again, CommandStored)
    assert isinstance(other, CommandStored)
    assert (again.id, again.duplicate, other.duplicate) == (first.id, True, False)
    assert len(await world.store.sent_commands(ALICE, ENTRY_ZERO, 10)) == 2


async def test_a_request_and_an_event_of_the_same_words_are_not_mixed_up(world: World) -> None:
    """D13: the fields of both lie in one hash."""
    await world.publish("a")
    await world.append(Append(user=ALICE, event=EventId("phone"), body=b"x"))
    stored = await world.store.send_command(command_of("a"))

    assert isinstance(stored, CommandStored)
    assert not stored.duplicate


async def test_a_run_reads_its_own_commands_and_an_inbox_those_of_no_run(world: World) -> None:
    await send(world, "a", run=RUN)
    await send(world, "b")
    await send(world, "c", run=OTHER_RUN)
    await send(world, "d", run=RUN)

    assert names(await take(world, RUN)) == [("a", 1), ("d", 1)]
    assert names(await take(world, OTHER_RUN)) == [("c", 1)]
    assert names(await take(world)) == [("b", 1)]
    assert names(await take(world, RUN)) == []


async def test_a_user_never_reaches_the_run_of_another(world: World) -> None:
    """R22: the command stands under the user's own key, whatever run it names."""
    await complete(world, OTHER_RUN)

    assert isinstance(await world.store.send_command(command_of("a", user=BOB, run=RUN)), CommandStored)
    # Nor does Bob learn that Alice's run is completed.
    assert isinstance(await world.store.send_command(command_of("b", user=BOB, run=OTHER_RUN)), CommandStored)

    assert names(await take(world, RUN)) == []
    assert names(await take(world, RUN, user=BOB)) == [("a", 1)]


async def test_a_completed_run_takes_no_command(world: World) -> None:
    await complete(world, RUN)

    assert await world.store.send_command(command_of("a", run=RUN)) is CommandRefusal.RUN_CLOSED
    assert await world.store.sent_commands(ALICE, ENTRY_ZERO, 10) == []


async def test_workers_of_one_inbox_share_commands_and_inboxes_do_not(world: World) -> None:
    for ref in ("a", "b"):
        await send(world, ref)

    assert names(await take(world, count=1)) == [("a", 1)]
    assert names(await take(world, count=1)) == [("b", 1)]
    assert names(await take(world, group=inbox_group("audit"))) == [("a", 1), ("b", 1)]


@timely
async def test_a_command_that_is_not_acked_in_time_is_read_again(make_world: MakeWorld) -> None:
    world = await make_world()
    entries = [await send(world, ref) for ref in ("a", "b")]
    await take(world)
    await world.store.ack_commands(ALICE, inbox_group("inbox"), [entries[1]])

    assert names(await take(world, idle_ms=50)) == []
    await world.pass_time(60)
    assert names(await take(world, idle_ms=50)) == [("a", 2)]
    assert names(await take(world, idle_ms=50)) == []


@timely
async def test_a_command_that_is_held_is_not_read_again(make_world: MakeWorld) -> None:
    world = await make_world()
    entry = await send(world, "a")
    await take(world)
    await world.pass_time(60)
    await world.store.hold_commands(ALICE, inbox_group("inbox"), [entry], 0)
    assert names(await take(world, idle_ms=50)) == []

    await world.store.hold_commands(ALICE, inbox_group("inbox"), [entry], 50)
    assert names(await take(world, idle_ms=50)) == [("a", 2)]


async def test_holding_what_is_acked_brings_nothing_back(world: World) -> None:
    entry = await send(world, "a")
    await take(world)
    assert await world.store.ack_commands(ALICE, inbox_group("inbox"), [entry]) == 1
    await world.store.hold_commands(ALICE, inbox_group("inbox"), [entry], 1_000)

    assert names(await take(world, idle_ms=0)) == []
    assert await world.store.ack_commands(ALICE, inbox_group("inbox"), [entry]) == 0


async def test_a_command_that_was_read_too_often_becomes_a_dead_letter(world: World) -> None:
    entry = await send(world, "a", run=RUN)
    for attempt in (1, 2, 3):
        assert names(await take(world, RUN, idle_ms=0, max_deliveries=3)) == [("a", attempt)]

    assert names(await take(world, RUN, idle_ms=0, max_deliveries=3)) == []
    assert names(await take(world, RUN, idle_ms=0, max_deliveries=3)) == []

    (partition,) = await world.store.dead_letter_partitions()
    (letter,) = await world.store.dead_letters(partition, ENTRY_ZERO, 10)
    assert (letter.user, letter.session, letter.entry, letter.type) == (ALICE, PHONE, entry, "message")
    assert (letter.reason, letter.attempts, letter.body) == ("command_not_acked", 3, b"a")


async def test_commands_beyond_the_cap_are_refused_while_nobody_has_handled_one(world: World) -> None:
    for number in range(COMMANDS_MAX):
        await send(world, f"c{number}", run=RUN if number % 2 else None)

    assert await world.store.send_command(command_of("more")) is CommandRefusal.FULL
    assert len(await world.store.sent_commands(ALICE, ENTRY_ZERO, 2_000)) == COMMANDS_MAX

    (first,) = await take(world, RUN, count=1)
    assert await world.store.send_command(command_of("more")) is CommandRefusal.FULL
    await world.store.ack_commands(ALICE, run_group(RUN), [first.id])
    await send(world, "more")
    kept = await world.store.sent_commands(ALICE, ENTRY_ZERO, 2_000)
    assert len(kept) == COMMANDS_MAX
    assert first.id not in [record.id for record in kept]


async def test_commands_that_take_too_much_memory_are_refused_while_nobody_has_handled_one(world: World) -> None:
    big = b"x" * 60_000
    results = [await world.store.send_command(command_of(f"c{n}", data=big, run=RUN)) for n in range(160)]

    stored = results.index(CommandRefusal.FULL)
    assert COMMANDS_MAX_BYTES * 0.8 < stored * len(big) < COMMANDS_MAX_BYTES
    assert set(results[stored:]) == {CommandRefusal.FULL}
    first, second = await take(world, RUN, count=2)
    await world.store.ack_commands(ALICE, run_group(RUN), [first.id, second.id])
    assert isinstance(await world.store.send_command(command_of("more", data=big, run=RUN)), CommandStored)


async def test_commands_are_read_after_an_id_without_taking_them(world: World) -> None:
    entries = [await send(world, ref) for ref in ("a", "b", "c")]

    found = await world.store.sent_commands(ALICE, entries[0], 1)

    assert [(record.id, record.attempts) for record in found] == [(entries[1], 0)]
    assert len(await take(world)) == 3


async def test_a_run_that_is_over_leaves_nothing_behind(world: World) -> None:
    await send(world, "a", run=RUN)
    await send(world, "b", run=RUN)
    await send(world, "c")
    await take(world, RUN, count=1)

    await world.store.close_inbound(ALICE, RUN)
    await world.store.close_inbound(ALICE, OTHER_RUN)

    assert names(await world.store.sent_commands(ALICE, ENTRY_ZERO, 10)) == [("c", 0)]


async def test_commands_are_gone_after_the_retention(make_world: Any) -> None:
    world: World = await make_world(retention_ms=1_000)
    await send(world, "a")
    await world.pass_time(1_100)

    assert await world.store.sent_commands(ALICE, ENTRY_ZERO, 10) == []


async def test_a_follower_is_told_of_its_users_commands_and_of_no_other(world: World) -> None:
    heard, other = Heard(), Heard()
    following = world.store.follow(ALICE, heard)
    elsewhere = world.store.follow(BOB, other)
    await heard.until(Told.ANYTHING)
    await other.until(Told.ANYTHING, user=BOB)

    await send(world, "a", run=RUN)

    await heard.until(Told.COMMAND)
    assert {user for user, _ in heard.told_of} == {ALICE}
    following.close()
    await send(world, "b")
    await send(world, "b", user=BOB)
    await other.until(Told.COMMAND, user=BOB)
    assert {user for user, _ in other.told_of} == {BOB}
    assert [what for _, what in heard.told_of].count(Told.COMMAND) == 1
    await elsewhere.aclose()


async def test_a_follower_that_joins_later_is_told_to_look_too(world: World) -> None:
    first, second = Heard(), Heard()
    following = [world.store.follow(ALICE, first)]
    await first.until(Told.ANYTHING)
    following.append(world.store.follow(ALICE, second))
    await second.until(Told.ANYTHING)
    await send(world, "a")
    await second.until(Told.COMMAND)
    following[0].close()
    await send(world, "b")
    await until(lambda: second.told_of.count((ALICE, Told.COMMAND)) == 2)
    following[1].close()
    following[1].close()


async def test_a_follower_that_comes_back_is_told_again(world: World) -> None:
    """The channel is left and subscribed again on one connection, in whatever order the answers come."""
    for number in range(20):
        heard = Heard()
        following = world.store.follow(ALICE, heard)
        await heard.until(Told.ANYTHING)
        await send(world, f"c{number}")
        await heard.until(Told.COMMAND)
        following.close()
