"""Bounds that have no other test: what waits while nobody takes it stays within them, and the policy is kept to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from itertools import count
from types import SimpleNamespace
from typing import Any, cast

import pytest

from eventbus import wire
from eventbus.client.confirms import MAX_UNANSWERED as MAX_CONFIRMS
from eventbus.client.confirms import Confirms
from eventbus.client.sends import Sends, make_send
from eventbus.errors import CloseCode
from eventbus.fields import Level
from eventbus.ids import EntryId, EventId, UserId
from eventbus.publishing.kept import Kept
from eventbus.store import Append
from eventbus.testing import ManualClock, MemoryStore
from gateway.counters import Counters
from gateway.delivery.confirming import WAITING_ALL_MAX, WAITING_MAX, Confirming
from gateway.delivery.kept_acks import REFS_MAX
from gateway.delivery.sending import COMMAND_BYTES, WAITING_BYTES_MAX
from gateway.delivery.sending import WAITING_MAX as COMMANDS_MAX
from gateway.sessions.session import Session
from gateway.transport.shedding import LEFT_PERCENT, Shedding, heaviest
from tests.support.bench import Bench

pytestmark = pytest.mark.requirement("R9")


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    async with Bench() as made:
        yield made
        made.store.heal()


# --- a client without a connection ------------------------------------------------------------------------------------


def reachable(root: object) -> int:
    """How many things hang on an object of ours: what is forgotten must not be held by another of its containers."""
    seen: set[int] = set()
    left = [root]
    while left:
        one = left.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, dict):
            left += [*one, *one.values()]
        elif isinstance(one, (str, bytes, int, type(None))):
            continue
        elif hasattr(one, "__iter__"):
            left += list(cast(Any, one))
        else:
            left += [getattr(one, name) for name in getattr(type(one), "__slots__", ())]
    return len(seen)


def test_confirmations_that_wait_for_a_connection_are_bounded_and_the_oldest_go() -> None:
    confirms = Confirms()
    for number in range(MAX_CONFIRMS):
        confirms.add(EntryId(f"1-{number}"), Level.CONFIRMED, None)
    full = reachable(confirms)
    for number in range(MAX_CONFIRMS, 4 * MAX_CONFIRMS):
        confirms.add(EntryId(f"1-{number}"), Level.CONFIRMED, None)
    assert confirms.forgotten == 3 * MAX_CONFIRMS
    assert reachable(confirms) < full + 100
    left = []
    while (frame := confirms.next(1_000)) is not None:
        left.append(frame)
    assert [frame.ids for frame in left] == [(f"1-{number}",) for number in range(3 * MAX_CONFIRMS, 4 * MAX_CONFIRMS)]


def test_commands_given_up_without_a_connection_leave_nothing_behind() -> None:
    sends = Sends("s")

    def give_up() -> None:
        ref = sends.next_ref()
        sends.add(make_send("message", {"text": "a"}, ref=ref, run=None, thread=None))
        sends.forget(ref)

    give_up()
    before = reachable(sends)
    for _ in range(1_000):
        give_up()
    assert reachable(sends) <= before + 10


# --- a publisher ------------------------------------------------------------------------------------------------------


def test_a_publisher_remembers_a_bounded_number_of_servers() -> None:
    kept = Kept(kept_ms=1_000, max_bytes=1_000_000)
    sizes = []
    for number in range(10_000):
        append = Append(user=UserId("alice"), event=EventId(f"e{number}"), body=b"x", type="note")
        kept.stored(append, f"server {number}", number * 2_000)
        if number % 500 == 0:
            sizes.append(reachable(kept))
    assert max(sizes) < 10_000


# --- a node whose store is away ---------------------------------------------------------------------------------------


async def test_commands_that_wait_for_the_store_are_bounded_in_bytes_over_all_connections(bench: Bench) -> None:
    """Each client keeps to its own bound; one more is refused with a code that says try again."""
    bench.store.fail()
    data = {"text": "x" * 60_000}
    fit = WAITING_BYTES_MAX // (60_000 + COMMAND_BYTES)
    refused: list[dict[str, Any]] = []
    clients = []
    for number in range(fit // COMMANDS_MAX + 1):
        bench.store.heal()
        client = await bench.open(f"user{number}")
        bench.store.fail()
        for ref in range(COMMANDS_MAX):
            # Not by its socket, on which its tier's rate would hold it back.
            bench.node.sending.take(client.session, wire.Send(type="message", data=data, ref=ref))
        clients.append(client)
        refused += client.of("error")
    sent = COMMANDS_MAX * len(clients)
    assert sent - fit - 10 < len(refused) <= sent - fit + 10
    assert {frame["code"] for frame in refused} == {"rate_limited"}
    assert bench.node.sending.waiting == sent - len(refused)
    # What was taken is stored when the store is back, and there is room again.
    bench.store.heal()
    task = asyncio.create_task(bench.node.sending.run())
    assert await bench.node.sending.flush(10_000)
    bench.node.sending.take(clients[-1].session, wire.Send(type="message", data=data, ref="again"))
    assert await bench.node.sending.flush(10_000)
    assert clients[-1].of("sent")[-1]["ref"] == "again"
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_acks_that_want_an_answer_are_bounded_and_those_beyond_told_at_once(bench: Bench) -> None:
    # The tier with the most frames: its rate must not be what keeps the client within the bound.
    client = bench.connect(tier="enterprise")
    client.say("hello", session="tab")
    await bench.settle()
    for ref in range(REFS_MAX + 5):
        client.say("ack", ids=["1-1"], ref=ref)
    assert [(frame["code"], frame["ref"]) for frame in client.of("error")] == [
        ("store_unavailable", ref) for ref in range(REFS_MAX, REFS_MAX + 5)
    ]


def test_confirmations_that_wait_for_the_store_are_bounded_over_all_connections() -> None:
    clock = ManualClock()
    confirming = Confirming(MemoryStore(clock=clock), clock, Counters(), store_wait_ms=1_000)
    ids = tuple(EntryId(f"1-{number}") for number in range(WAITING_MAX))
    ack = wire.Ack(ids=ids, level=Level.DISPLAYED)
    taken = 0
    for number in count():
        session = cast(Session, SimpleNamespace(connection_id=f"{number}", user="alice", session_id="tab"))
        if not confirming.add(session, ids, [None] * len(ids), ack):
            break
        assert not confirming.add(session, ids[:1], [None], ack), "its own bound"
        taken += len(ids)
    assert WAITING_ALL_MAX - WAITING_MAX < taken <= WAITING_ALL_MAX


# --- what is held for all clients -------------------------------------------------------------------------------------


@dataclass
class Client:
    """A session as shedding knows it."""

    held_bytes: int
    closed: list[tuple[CloseCode, str]] = field(default_factory=list)

    def close(self, code: CloseCode, reason: str) -> None:
        self.closed.append((code, reason))
        self.held_bytes = 0


def test_nobody_has_to_go_while_the_sum_is_within_the_bound() -> None:
    assert heaviest([(60, Client(60)), (40, Client(40))], 100) == []


async def test_beyond_the_bound_those_that_weigh_most_are_closed_as_slow_consumers() -> None:
    light = [Client(1_000) for _ in range(500)]
    heavy = [Client(100_000) for _ in range(20)]
    shedding = Shedding(lambda: [*light, *heavy], most_bytes=1_500_000)
    await shedding.look()
    assert not any(client.closed for client in light)
    closed = [client for client in heavy if client.closed]
    assert {client.closed[0][0] for client in closed} == {CloseCode.SLOW_CONSUMER}
    left = sum(client.held_bytes for client in [*light, *heavy])
    assert left <= 1_500_000 * LEFT_PERCENT // 100 < left + 100_000
    assert shedding.shed == len(closed)
    await shedding.look()
    assert shedding.shed == len(closed)


async def test_a_session_weighs_what_is_in_its_window_and_what_waits_to_be_written(bench: Bench) -> None:
    client = await bench.open()
    assert client.session.held_bytes == 0
    await bench.publish(data={"text": "x" * 1_000})
    await bench.settle()
    held = client.session.held_bytes
    assert 1_000 < held < 5_000
    client.socket.buffered_bytes = 500
    assert client.session.held_bytes == held + 500
    client.say("ack", ids=[entry for entry, _ in client.events()])
    assert client.session.held_bytes == 500
    client.hang_up()
    assert client.session.held_bytes == 0
