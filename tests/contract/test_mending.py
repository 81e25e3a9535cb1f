"""What operators do in the store, over every store: each call is safe to repeat."""

from __future__ import annotations

from dataclasses import replace

import pytest

from eventbus.errors import TypePaused
from eventbus.ids import ENTRY_ZERO, EntryId, EventId, NodeName, SessionId, UserId
from eventbus.store import Append, DeadLetter, DeadOutcome
from eventbus.store.mending import (
    DeadLettered,
    EndSession,
    LookAgain,
    LookAtHeld,
    Order,
    PutBack,
    SendAgain,
    TakenHow,
    TakeOff,
)
from tests.contract.conftest import MakeWorld
from tests.contract.test_channels import Ear
from tests.contract.worlds import ALICE, NODE, World, fence_of
from tests.support.waiting import until

BOB, PHONE = UserId("bob"), SessionId("phone")
FENCE = fence_of("c1")
pytestmark = pytest.mark.requirement("R28")


class Told(Ear):
    """Writes down what operators want of a node."""

    def __init__(self) -> None:
        super().__init__()
        self.orders: list[Order] = []
        self.acked: list[EntryId] = []

    def ordered(self, order: Order) -> None:
        self.orders.append(order)

    def acked_elsewhere(self, user: UserId, session: SessionId, entries: object) -> None:
        self.acked += list(entries)  # type: ignore[call-overload]


async def listened(world: World) -> Told:
    ear = Told()
    await world.store.listen(NODE, ear)
    await until(lambda: ear.subscriptions == 1)
    return ear


async def sent(world: World, *names: str) -> list[EntryId]:
    """Events that are pending for the phone."""
    await world.open(FENCE)
    entries = await world.publish(*names)
    await world.received(FENCE)
    return entries


async def letter_of(world: World, entry: EntryId) -> EntryId:
    """The entry is given up by its node. Returns the id of the dead letter."""
    letter = DeadLetter(id=entry, event=EventId("e"), type="note", reason="ack_timeout", attempts=5, body=b"body")
    assert await world.store.dead_letter(FENCE, letter) is DeadOutcome.DEAD
    (partition,) = await world.store.dead_letter_partitions()
    return (await world.store.dead_letters(partition, ENTRY_ZERO, 10))[-1].id


# --- entries ----------------------------------------------------------------------------------------------------------


async def test_a_skipped_entry_is_pending_no_more_and_recorded_as_that_and_its_node_is_told(world: World) -> None:
    ear = await listened(world)
    first, second = await sent(world, "a", "b")
    request = TakeOff(user=ALICE, session=PHONE, entries=[first], how=TakenHow.SKIPPED)
    assert await world.store.take_off(request) == [first]
    assert await world.store.take_off(request) == []
    assert await world.waiting(FENCE) == [(second, 1)]
    ((_, record),) = await world.store.confirmations(ALICE, ENTRY_ZERO, 10)
    assert (record.level, record.session, list(record.entries)) == ("skipped", "phone", [first])
    assert await world.retained() == ["a", "b"]
    await until(lambda: ear.acked == [first])


async def test_an_entry_that_an_operator_gives_up_is_a_dead_letter_once_and_its_node_is_told(world: World) -> None:
    ear = await listened(world)
    (entry,) = await sent(world, "a")
    request = TakeOff(user=ALICE, session=PHONE, entries=[entry], how=TakenHow.DEAD, reason="broken")
    assert await world.store.take_off(request) == [entry]
    assert await world.store.take_off(request) == []
    (partition,) = await world.store.dead_letter_partitions()
    (letter,) = await world.store.dead_letters(partition, ENTRY_ZERO, 10)
    assert (letter.user, letter.session, letter.entry, letter.reason) == (ALICE, PHONE, entry, "broken")
    assert (letter.attempts, letter.node, letter.body) == (1, NODE, b"a")
    await until(lambda: ear.acked == [entry])  # what nodes of the release before go by
    assert ear.orders == [DeadLettered(ALICE, PHONE, [entry])]


async def test_entries_of_a_session_that_is_not_there_are_no_error(world: World) -> None:
    request = TakeOff(user=ALICE, session=PHONE, entries=[EntryId("1-1")], how=TakenHow.SKIPPED)
    assert await world.store.take_off(request) == []
    answer = await world.store.send_again(ALICE, PHONE, [EntryId("1-1")])
    assert (answer.node, list(answer.entries)) == (None, [])


async def test_the_node_of_a_session_is_told_to_send_again_and_no_attempt_is_counted(world: World) -> None:
    ear = await listened(world)
    first, second = await sent(world, "a", "b")
    await world.ack(FENCE, second)
    answer = await world.store.send_again(ALICE, PHONE, [first, second])
    assert (answer.node, list(answer.entries)) == (NODE, [first])
    await until(lambda: ear.orders == [SendAgain(ALICE, PHONE, [first])])
    assert await world.waiting(FENCE) == [(first, 1)]


# --- dead letters -----------------------------------------------------------------------------------------------------


async def test_a_dead_letter_that_is_put_back_is_pending_as_delivered_once_and_the_letter_goes(world: World) -> None:
    ear = await listened(world)
    (entry,) = await sent(world, "a")
    letter = await letter_of(world, entry)
    assert await world.waiting(FENCE) == []
    assert await world.store.put_back(ALICE, PHONE, letter, entry) is PutBack.PUT_BACK
    assert await world.store.put_back(ALICE, PHONE, letter, entry) is PutBack.NO_LETTER
    assert await world.waiting(FENCE) == [(entry, 1)]
    assert await world.store.dead_letter_partitions() == []
    await until(lambda: ear.orders == [LookAgain(ALICE, PHONE)])
    (again,) = (await world.page(FENCE)).entries
    assert (again.id, again.body) == (entry, b"a")


async def test_a_letter_stays_where_its_session_or_its_entry_is_gone(world: World) -> None:
    first, second = await sent(world, "a", "b")
    one, two = await letter_of(world, first), await letter_of(world, second)
    await world.power.trim(ALICE, 1)
    assert await world.store.put_back(ALICE, PHONE, one, first) is PutBack.NOT_STORED
    await world.store.end_session(ALICE, PHONE)
    assert await world.store.put_back(ALICE, PHONE, two, second) is PutBack.NO_SESSION
    (partition,) = await world.store.dead_letter_partitions()
    assert [letter.id for letter in await world.store.dead_letters(partition, ENTRY_ZERO, 10)] == [one, two]
    assert await world.store.drop_dead(partition, [one, two]) == 2
    assert await world.store.drop_dead(partition, [one, two]) == 0


# --- sessions, types, nodes -------------------------------------------------------------------------------------------


async def test_the_node_of_a_session_that_is_ended_is_told(world: World) -> None:
    ear = await listened(world)
    await world.open(FENCE)
    await world.store.end_session(ALICE, PHONE)
    await until(lambda: ear.orders == [EndSession(ALICE, PHONE)])


async def test_a_paused_type_is_refused_and_others_are_not(make_world: MakeWorld) -> None:
    world = await make_world(partitions=8)
    event = Append(user=ALICE, event=EventId("e1"), body=b"a", type="chatter")
    await world.store.pause_type("chatter", "ops", "too many")
    await world.store.pause_type("chatter", "another", "again")
    refused, _ = await world.append(event, replace(event, event=EventId("e2"), type="note"))
    assert isinstance(refused, TypePaused)
    assert await world.retained() == ["a"]
    (pause,) = await world.store.paused_types()
    assert (pause.type, pause.by, pause.reason, pause.partitions) == ("chatter", "ops", "too many", 8)
    assert await world.store.resume_type("chatter")
    assert not await world.store.resume_type("chatter")
    assert await world.store.paused_types() == []
    await world.append(event)
    assert await world.retained() == ["a", "a"]


async def test_a_held_node_is_told_and_listed_until_it_is_free(world: World) -> None:
    ear = await listened(world)
    await world.store.hold_node(NODE, "ops", "new disk")
    await world.store.hold_node(NODE, "another", "")
    (hold,) = await world.store.held_nodes()
    assert (hold.node, hold.by, hold.reason) == (NODE, "ops", "new disk")
    assert await world.store.free_node(NODE)
    assert not await world.store.free_node(NodeName("nobody"))
    assert await world.store.held_nodes() == []
    await until(lambda: ear.orders == [LookAtHeld()] * 3)


# --- a user's data ----------------------------------------------------------------------------------------------------


async def test_a_purged_user_is_gone_and_the_others_are_not(world: World) -> None:
    for user in (ALICE, BOB):
        fence = fence_of("c1", user)
        await world.open(fence)
        (first, _) = await world.publish("a", "b", user=user)
        await world.received(fence)
        await world.store.take_off(TakeOff(user=user, session=PHONE, entries=[first], how=TakenHow.DEAD))
    keys = [one.key for one in await world.store.keys_of_user(ALICE)]
    assert keys
    assert await world.store.erase_keys(ALICE, keys) == len(keys)
    assert await world.store.erase_keys(ALICE, keys) == 0
    assert await world.store.forget_user(ALICE) >= 1
    assert await world.store.forget_user(ALICE) == 0
    assert await world.store.keys_of_user(ALICE) == []
    assert (await world.retained(ALICE), await world.retained(BOB)) == ([], ["a", "b"])
    assert await world.store.sessions(ALICE) == []
    letters = [
        letter.user
        for partition in await world.store.dead_letter_partitions()
        for letter in await world.store.dead_letters(partition, ENTRY_ZERO, 10)
    ]
    assert letters == [BOB]


async def test_a_purge_takes_no_key_of_another(world: World) -> None:
    await world.publish("a", user=BOB)
    keys = [one.key for one in await world.store.keys_of_user(BOB)]
    with pytest.raises(ValueError, match="is no key of alice"):
        await world.store.erase_keys(ALICE, keys)


# --- audit ------------------------------------------------------------------------------------------------------------


async def test_what_operators_did_is_read_from_the_newest_on(world: World) -> None:
    ids = [await world.store.audit({"action": f"a{number}", "count": number}) for number in range(3)]
    newest, *_ = page = await world.store.audits(None, 2)
    assert [one.id for one in page] == ids[:0:-1]
    assert newest.what == {"action": "a2", "count": 2}
    (oldest,) = await world.store.audits(page[-1].id, 2)
    assert oldest.id == ids[0]
