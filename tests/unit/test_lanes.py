"""Users whose primary is away hold up nobody else: publishes, reads, attaches, commands and texts go in lanes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from itertools import count
from types import SimpleNamespace
from typing import cast

import pytest

from eventbus import Bus, moves, wire
from eventbus.config import PublishSettings, Settings
from eventbus.errors import StoreError, StoreUnavailable
from eventbus.fields import Level
from eventbus.ids import ConnectionId, EntryId, NodeName, RunId, SessionId, UserId
from eventbus.store import (
    Append,
    Appended,
    Attach,
    Attached,
    AttachRefused,
    Durability,
    NewRead,
    ReadRequest,
)
from eventbus.store.inbound import CommandRefusal, CommandStored, NewCommand
from eventbus.store.texts import OpenText, TextPage, TextPiece, TextRead
from eventbus.store.topology import LANES
from eventbus.testing import ManualClock, MemoryStore
from gateway.counters import Counters
from gateway.delivery.confirming import WAITING_ALL_MAX, WAITING_MAX
from gateway.delivery.lanes import Keepers, Readers
from gateway.delivery.reader import CYCLE_MAX_MS
from gateway.delivery.sending import COMMAND_BYTES, WAITING_BYTES_MAX
from gateway.delivery.sending import WAITING_MAX as COMMANDS_MAX
from gateway.sessions.session import Session
from tests.support.bench import Bench, BenchClient
from tests.support.waiting import until

pytestmark = [pytest.mark.requirement("R2"), pytest.mark.requirement("R32")]

AWAY = "away"


class LanedStore(MemoryStore):
    """Two lanes: in that of `AWAY` calls stand still while `stands` is not set, and fail while `fails`."""

    def __init__(self) -> None:
        super().__init__()
        self.stands = asyncio.Event()
        self.stands.set()
        self.fails = False
        self.appends: list[list[UserId]] = []

    def lane_of(self, user: UserId) -> int:
        return LANES - 1 if user.startswith(AWAY) else 0

    async def _pass(self, *users: UserId) -> None:
        assert len({self.lane_of(user) for user in users}) == 1, "no call is of two lanes"
        if users[0].startswith(AWAY):
            await self.stands.wait()
            if self.fails:
                raise StoreUnavailable("the primary is away")

    async def append(
        self, events: Sequence[Append], durability: Durability = Durability.MEMORY
    ) -> Sequence[Appended | StoreError]:
        users = [event.user for event in events]
        self.appends.append(users)
        await self._pass(*users)
        return await super().append(events, durability)

    async def read_new(self, requests: Sequence[ReadRequest]) -> Sequence[NewRead | StoreError]:
        await self._pass(*(request.fence.user for request in requests))
        return await super().read_new(requests)

    async def attach(self, request: Attach) -> Attached | AttachRefused:
        await self._pass(request.fence.user)
        return await super().attach(request)

    async def send_command(self, command: NewCommand) -> CommandStored | CommandRefusal:
        await self._pass(command.user)
        return await super().send_command(command)

    async def have_questions(self, users: Sequence[UserId]) -> Sequence[bool | StoreError]:
        await self._pass(*users)
        return await super().have_questions(users)

    async def read_texts(self, reads: Sequence[TextRead]) -> Sequence[TextPage | StoreError]:
        await self._pass(*(read.user for read in reads))
        return await super().read_texts(reads)

    async def open_texts(self, users: Sequence[UserId]) -> Sequence[Sequence[OpenText] | StoreError]:
        await self._pass(*users)
        return await super().open_texts(users)


@pytest.fixture
async def store() -> AsyncIterator[LanedStore]:
    made = LanedStore()
    yield made
    made.stands.set()


async def test_publishes_of_others_go_on_while_a_lane_stands_still(store: LanedStore) -> None:
    """Also when as many calls of that lane are under way as may be, and more publishes wait behind them."""
    async with Bus(store=store) as bus:
        store.stands.clear()
        late = []
        for number in range(100):
            late.append(asyncio.create_task(bus.publish(user=f"{AWAY}{number}", type="note", data={})))
            await asyncio.sleep(0)
            await bus.publish(user="here", type="note", data={})
        assert not any(task.done() for task in late)
        store.stands.set()
        assert len(await asyncio.gather(*late)) == 100


async def test_publishes_of_one_moment_leave_in_one_call_for_each_lane(store: LanedStore) -> None:
    async with Bus(store=store) as bus:
        users = [f"{place}{number}" for number in range(20) for place in (AWAY, "here")]
        await asyncio.gather(*(bus.publish(user=user, type="note", data={}) for user in users))
    assert [len(users) for users in store.appends] == [20, 20]


async def test_calls_of_a_lane_that_fail_do_not_stop_all_when_another_was_answered_since(store: LanedStore) -> None:
    settings = Settings(publish=PublishSettings(breaker_failures=3))
    async with Bus(store=store, settings=settings) as bus:
        store.stands.clear()
        store.fails = True
        late = []
        for number in range(6):
            late.append(asyncio.create_task(bus.publish(user=f"{AWAY}{number}", type="note", data={})))
            await until(lambda: len(store.appends) == len(late))
        await bus.publish(user="here", type="note", data={})
        store.stands.set()
        await until(lambda: bus.statistics().retries >= 6)
        assert bus.statistics().breaker_opened == 0
        store.fails = False
        await asyncio.gather(*late)


async def test_breaker_opens_when_no_lane_is_answered(store: LanedStore) -> None:
    settings = Settings(publish=PublishSettings(breaker_failures=3))
    async with Bus(store=store, settings=settings) as bus:
        await bus.publish(user="here", type="note", data={})
        store.fails = True
        late = asyncio.create_task(bus.publish(user=AWAY, type="note", data={}))
        await until(lambda: bus.statistics().breaker_opened == 1)
        store.fails = False
        await late


@pytest.fixture
async def bench(store: LanedStore) -> AsyncIterator[Bench]:
    async with Bench(store) as made:
        yield made
        store.stands.set()


async def test_sessions_of_others_read_and_attach_while_a_lane_stands_still(bench: Bench, store: LanedStore) -> None:
    away, here = await bench.open(AWAY), await bench.open("here")
    store.stands.clear()
    bench.node.hearing.woken(UserId(AWAY))
    late = bench.connect(f"{AWAY}2")
    late.say("hello", session="tab")
    await bench.settle()

    await bench.publish(3, user="here")
    await until(lambda: len(here.events()) == 3)
    assert (await bench.open("new")).session.is_open

    assert away.session.is_open
    assert not late.session.is_open
    assert bench.node.keeper.waiting == 0
    assert bench.node.reader.is_busy
    store.stands.set()
    await until(lambda: late.session.is_open)
    await until(lambda: not bench.node.reader.is_busy)


# --- commands ---------------------------------------------------------------------------------------------------------


@pytest.fixture
async def sending(bench: Bench) -> AsyncIterator[Bench]:
    task = asyncio.create_task(bench.node.sending.run())
    yield bench
    cast(LanedStore, bench.store).stands.set()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def say(client: BenchClient, ref: int) -> None:
    client.say("send", type="message", data={"text": "a"}, ref=ref)


@pytest.mark.requirement("R20")
async def test_commands_and_questions_of_others_go_on_while_a_lane_stands_still(
    sending: Bench, store: LanedStore
) -> None:
    away, here = await sending.open(AWAY), await sending.open("here")
    store.stands.clear()
    say(away, 1)
    sending.node.sending.ask_again(away.session)
    await sending.settle()
    for ref in range(3):
        say(here, ref)
    await until(lambda: len(here.of("sent")) == 3)
    sending.node.sending.ask_again(here.session)
    await sending.settle()
    assert (sending.node.sending.waiting, away.of("sent")) == (1, [])
    assert not await sending.node.sending.flush(1)
    store.stands.set()
    await until(lambda: away.of("sent"))
    await until(lambda: not sending.node.sending.is_busy)
    assert await sending.node.sending.flush(1_000)


@pytest.mark.requirement("R9")
async def test_a_lane_whose_commands_fill_the_room_leaves_some_to_the_others(sending: Bench, store: LanedStore) -> None:
    data = {"text": "x" * 60_000}
    fit = WAITING_BYTES_MAX // (60_000 + COMMAND_BYTES)
    away = [await sending.open(f"{AWAY}{number}") for number in range(fit // COMMANDS_MAX + 1)]
    here = await sending.open("here")
    store.stands.clear()
    for client in away:
        for ref in range(COMMANDS_MAX):
            # Not by its socket, on which its tier's rate would hold it back.
            sending.node.sending.take(client.session, wire.Send(type="message", data=data, ref=ref))
    assert [frame["code"] for frame in away[-1].of("error")][:1] == ["rate_limited"]
    for ref in range(3):
        say(here, ref)
    await until(lambda: len(here.of("sent")) == 3)


@pytest.mark.requirement("R9")
def test_confirmations_that_wait_are_bounded_over_all_lanes_together() -> None:
    store = LanedStore()
    readers = Readers(store, ManualClock(), Counters(), store_wait_ms=1_000)
    ids = tuple(EntryId(f"1-{number}") for number in range(WAITING_MAX))
    ack = wire.Ack(ids=ids, level=Level.DISPLAYED)
    taken = dict.fromkeys((AWAY, "here"), 0)
    for user in taken:
        for number in count():
            connection = ConnectionId(f"{user}{number}")
            known = SimpleNamespace(
                user=UserId(user), session_id=SessionId("tab"), connection_id=connection, opened_ms=0
            )
            if not readers.confirm(cast(Session, known), moves.Acknowledge(ids, (None,) * len(ids)), ack):
                break
            taken[user] += len(ids)
    assert WAITING_ALL_MAX - WAITING_MAX < taken[AWAY] <= WAITING_ALL_MAX
    assert taken["here"] == WAITING_MAX, "that much is its own"


# --- token texts ------------------------------------------------------------------------------------------------------


def piece(user: str, offset: int, text: str) -> TextPiece:
    return TextPiece(
        user=UserId(user), run=RunId("run_1"), stream="text", thread=None, offset=offset, text=text, last=False
    )


@pytest.mark.requirement("R19")
async def test_texts_of_others_flow_while_a_lane_stands_still(bench: Bench, store: LanedStore) -> None:
    task = asyncio.create_task(bench.node.texting.run())
    away, here = await bench.open(AWAY), await bench.open("here")
    for user in (AWAY, "here"):
        await store.append_text(piece(user, 0, "ab"))
    await until(lambda: away.of("text") and here.of("text"))
    store.stands.clear()
    await store.append_text(piece(AWAY, 2, "cd"))
    await bench.settle()
    for number in range(1, 4):
        await store.append_text(piece("here", 2 * number, "cd"))
        await until(lambda number=number: len(here.of("text")) > number)  # type: ignore[misc]
    assert len(away.of("text")) == 1
    store.stands.set()
    await until(lambda: len(away.of("text")) == 2)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


# --- how the node stands ----------------------------------------------------------------------------------------------


@pytest.mark.requirement("R30")
async def test_a_lane_that_is_away_is_no_reason_to_say_that_nothing_is_read(bench: Bench, store: LanedStore) -> None:
    """Also when nobody else wants anything to be read."""
    away = await bench.open(AWAY)
    store.stands.clear()
    bench.node.hearing.woken(UserId(AWAY))
    await bench.settle()
    bench.clock.advance(CYCLE_MAX_MS + 1)
    reader = bench.node.reader
    assert reader.problem([0]) is None
    assert reader.problem([0, LANES - 1]) is None
    assert "stood for 3001 ms" in (reader.problem([LANES - 1]) or ""), "where it is all that answers"
    assert away.session.is_open


class Waiter:
    """A session as a keeper sees it."""

    def __init__(self, user: str) -> None:
        self.user = UserId(user)


@pytest.mark.requirement("R2")
async def test_clients_whose_lane_is_away_do_not_count_when_others_want_to_come_in(store: LanedStore) -> None:
    """They wait for long and may be many, and nobody is let in while too many wait."""
    keepers = Keepers(store, NodeName("n1"), Counters())
    for number in range(1_500):
        keepers.attach(cast(Session, Waiter(f"{AWAY}{number}")))
    assert keepers.waiting == 1_500
    assert keepers.waiting_in([0]) == 0
    assert keepers.waiting_in([LANES - 1]) == keepers.waiting_in([]) == 1_500
