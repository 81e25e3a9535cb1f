"""The cycles of a node: what goes to the store when, what is kept until it answered, what becomes of bad entries."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgpack
import pytest

from eventbus.errors import StoreUnavailable
from eventbus.ids import ENTRY_ZERO, EntryId, EventId, UserId
from eventbus.store import AckRequest, Append, Appended, EntryFacts, Fence, Lost, NewRead, ReadRequest, ReleaseReason
from eventbus.testing import ManualClock, MemoryStore
from tests.support.bench import Bench
from tests.support.waiting import until

ALICE = UserId("alice")


class LoggedStore(MemoryStore):
    """Writes down what it was asked, in order; its next `bad_releases` releases fail."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(clock=clock)
        self.bad_releases = 0
        self.log: list[tuple[str, Any]] = []

    async def ack_many(self, requests: Sequence[AckRequest]) -> Any:
        self.log.append(("ack", [list(request.entries) for request in requests]))
        return await super().ack_many(requests)

    async def read_new(self, requests: Sequence[ReadRequest]) -> Sequence[NewRead | Any]:
        self.log.append(("read", len(requests)))
        return await super().read_new(requests)

    async def detach(self, fence: Fence, cursor: EntryId) -> bool | Lost:
        self.log.append(("detach", fence.session))
        return await super().detach(fence, cursor)

    async def release(
        self,
        fence: Fence,
        entries: Sequence[EntryId],
        reason: ReleaseReason,
        facts: Sequence[EntryFacts | None] = (),
    ) -> int | Lost:
        self.log.append(("release", list(entries)))
        if self.bad_releases:
            self.bad_releases -= 1
            raise StoreUnavailable("down")
        return await super().release(fence, entries, reason, facts)

    def of(self, kind: str) -> list[Any]:
        return [what for name, what in self.log if name == kind]


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    clock = ManualClock()
    async with Bench(LoggedStore(clock), clock) as made:
        yield made


def log(bench: Bench) -> LoggedStore:
    assert isinstance(bench.store, LoggedStore)
    return bench.store


async def store_bad(bench: Bench, body: bytes) -> EntryId:
    """Somebody else writes into the stream."""
    (stored,) = await bench.store.append([Append(user=ALICE, event=EventId(f"bad-{len(body)}"), body=body)])
    await bench.settle()
    assert isinstance(stored, Appended)
    return stored.entry


# --- batches --------------------------------------------------------------------------------------------------------


async def test_the_reads_of_many_sessions_and_users_leave_together(bench: Bench) -> None:
    clients = [await bench.open(f"u{number}", f"s{session}") for number in range(10) for session in range(3)]
    log(bench).log.clear()
    bench.store.hang()
    publishing = [asyncio.create_task(bench.publish(user=f"u{number}", id=f"of-u{number}")) for number in range(10)]
    await bench.settle()
    bench.store.resume()
    await asyncio.gather(*publishing)
    await bench.settle()
    assert all(len(client.events()) == 1 for client in clients)
    assert len(log(bench).of("read")) <= 3
    assert sum(log(bench).of("read")) == 30


async def test_acks_of_a_turn_are_one_request_a_session(bench: Bench) -> None:
    client = await bench.open()
    entries = await bench.publish(5)
    log(bench).log.clear()
    for entry in entries:
        client.say("ack", ids=[entry])
    await bench.settle()
    assert log(bench).of("ack") == [[entries]]


async def test_a_session_has_one_read_under_way_however_often_it_is_woken(bench: Bench) -> None:
    client = await bench.open()
    log(bench).log.clear()
    bench.store.hang()
    for _ in range(5):
        bench.node.hearing.woken(ALICE)
        await bench.settle()
    bench.store.resume()
    await bench.settle()
    assert log(bench).of("read") == [1, 1]
    assert client.events() == []


# --- acks -----------------------------------------------------------------------------------------------------------


@pytest.mark.requirement("R1")
@pytest.mark.requirement("R2")
async def test_acks_are_kept_until_the_store_has_answered(bench: Bench) -> None:
    client = await bench.open()
    entries = await bench.publish(3)
    bench.store.fail(calls=4)
    client.say("ack", ids=entries[:1])
    client.say("ack", ids=entries[1:], ref="r")
    await until(lambda: client.of("acked"))
    assert client.of("acked") == [{"op": "acked", "ref": "r", "count": 2}]
    assert await bench.pending() == []


@pytest.mark.requirement("R2")
async def test_an_ack_whose_reply_was_lost_is_said_again_and_harms_nothing(bench: Bench) -> None:
    client = await bench.open()
    entries = await bench.publish(2)
    bench.store.lose_replies(calls=1)
    client.say("ack", ids=entries)
    await until(lambda: len(log(bench).of("ack")) == 2)
    await bench.settle()
    assert await bench.pending() == []
    assert not bench.node.counters.reattaches


@pytest.mark.requirement("R1")
async def test_acks_of_a_session_that_is_gone_are_stored_before_its_hold_is_given_up(bench: Bench) -> None:
    client = await bench.open()
    entries = await bench.publish(2)
    log(bench).log.clear()
    bench.store.fail(calls=3)
    client.say("ack", ids=entries[:1])
    client.hang_up()
    await until(lambda: not bench.node.reader.is_busy)
    assert [kind for kind, _ in log(bench).log if kind in ("ack", "detach")][-2:] == ["ack", "detach"]
    assert "detach" not in [kind for kind, _ in log(bench).log][:-1]
    assert await bench.pending() == entries[1:]
    assert await bench.live() is None
    assert bench.node.counters.events_acked == 1


async def test_a_hold_that_can_not_be_given_up_is_left_to_age_out(bench: Bench) -> None:
    client = await bench.open()
    bench.store.fail(calls=1)
    client.hang_up()
    await until(lambda: not bench.node.reader.is_busy)
    assert bench.node.reader.backlog == {"reads": 0, "acks": 0, "steps": 0}
    assert await bench.live() is not None


async def test_an_answer_for_an_ack_waits_for_the_same_entries_that_were_acked_before(bench: Bench) -> None:
    client = await bench.open()
    (entry,) = await bench.publish()
    bench.store.hang()
    client.say("ack", ids=[entry])
    client.say("ack", ids=[entry], ref="r")
    await bench.settle()
    assert client.of("acked") == []
    bench.store.resume()
    await bench.settle()
    assert client.of("acked") == [{"op": "acked", "ref": "r", "count": 0}]


# --- reads ----------------------------------------------------------------------------------------------------------


@pytest.mark.requirement("R2")
async def test_what_a_read_took_whose_reply_was_lost_is_delivered(bench: Bench) -> None:
    """D1."""
    client = await bench.open()
    bench.store.hang()
    publishing = asyncio.create_task(bench.publish())
    await bench.settle()
    bench.store.resume()
    bench.store.lose_replies(calls=2)
    await asyncio.gather(publishing, return_exceptions=True)
    await until(lambda: client.events())
    assert [delivery for _, delivery in client.events()] == [1]
    assert bench.node.counters.reattaches["read_failed"] >= 1


@pytest.mark.requirement("R2")
async def test_a_group_that_is_gone_is_made_anew_and_nothing_is_skipped(bench: Bench) -> None:
    """D10."""
    client = await bench.open()
    first = await bench.publish(2)
    client.say("ack", ids=first)
    await bench.settle()
    bench.store.lose_group(ALICE, client.session.session_id)
    (entry,) = await bench.publish()
    await until(lambda: entry in [seen for seen, _ in client.events()])
    assert client.close_code() is None


@pytest.mark.requirement("R22")
async def test_an_entry_that_is_no_event_or_of_another_user_is_a_dead_letter_and_is_never_sent(bench: Bench) -> None:
    client = await bench.open()
    undecodable = await store_bad(bench, b"\xc1")
    foreign = {"v": 1, "id": "x", "type": "note", "user": "bob", "time_ms": 1, "data": {"secret": 1}}
    misplaced = await store_bad(bench, msgpack.packb(foreign))
    (entry,) = await bench.publish()
    assert client.events() == [(entry, 1)]
    assert {tuple(frame["ids"]) for frame in client.of("dropped")} == {(undecodable,), (misplaced,)}
    (partition,) = await bench.store.dead_letter_partitions()
    letters = await bench.store.dead_letters(partition, ENTRY_ZERO, 10)
    assert [letter.reason.partition(":")[0] for letter in letters] == ["undecodable", "misplaced"]


async def test_an_event_is_encoded_once_for_all_sessions_of_its_user(bench: Bench) -> None:
    clients = [await bench.open("alice", f"s{number}") for number in range(3)]
    await bench.publish()
    frames = [client.socket.raw[-1] for client in clients]
    assert frames[0] is frames[1] is frames[2]


# --- steps ----------------------------------------------------------------------------------------------------------


@pytest.mark.requirement("R1")
async def test_a_release_is_tried_until_the_store_takes_it(bench: Bench) -> None:
    client = await bench.open(filter={"types": ["alarm"]})
    bench.store.hang()
    publishing = asyncio.create_task(bench.publish())
    await bench.settle()
    bench.store.resume()
    await publishing
    assert await bench.pending() == []
    assert client.events() == []
    assert bench.node.counters.events_released == {"filtered": 1}


async def test_a_release_that_fails_is_repeated_and_not_forgotten(bench: Bench) -> None:
    await bench.open(filter={"types": ["alarm"]})
    log(bench).bad_releases = 2
    await bench.publish()
    await until(lambda: bench.node.counters.events_released["filtered"] == 1)
    assert await bench.pending() == []


async def test_the_steps_of_a_session_that_is_gone_are_not_tried_for_ever(bench: Bench) -> None:
    client = await bench.open(filter={"types": ["alarm"]})
    log(bench).bad_releases = 1_000_000
    await bench.publish()
    client.hang_up()
    await until(lambda: not bench.node.reader.is_busy)
    assert bench.node.reader.backlog == {"reads": 0, "acks": 0, "steps": 0}


@pytest.mark.requirement("R3")
async def test_a_redelivery_that_the_store_can_not_count_is_not_sent_and_tried_again(bench: Bench) -> None:
    client = await bench.open()
    (entry,) = await bench.publish()
    bench.store.fail()
    client.alive()
    await bench.pass_time(37_000)
    assert client.events() == [(entry, 1)]
    bench.store.heal()
    client.alive()
    await until(lambda: not bench.node.reader.is_busy)
    await bench.pass_time(2_000)
    assert client.events() == [(entry, 1), (entry, 2)]


@pytest.mark.requirement("R3")
async def test_a_dead_letter_that_the_store_can_not_take_is_tried_again_and_written_once(bench: Bench) -> None:
    client = await bench.open()
    (entry,) = await bench.publish()
    for _ in range(4):
        client.say("nack", id=entry, delay_ms=0)
        await bench.pass_time(100)
    bench.store.fail()
    client.say("nack", id=entry)
    await bench.settle()
    assert client.of("dropped") == []
    bench.store.heal()
    await until(lambda: not bench.node.reader.is_busy)
    await bench.pass_time(5_000)
    assert client.of("dropped") == [{"op": "dropped", "ids": [entry], "reason": "dead_lettered"}]
    (partition,) = await bench.store.dead_letter_partitions()
    assert len(await bench.store.dead_letters(partition, ENTRY_ZERO, 10)) == 1


# --- the end --------------------------------------------------------------------------------------------------------


@pytest.mark.requirement("R10")
async def test_flush_waits_for_acks_that_came_just_before_it(bench: Bench) -> None:
    client = await bench.open()
    entries = await bench.publish(2)
    client.say("ack", ids=entries)
    client.hang_up()
    assert await bench.node.reader.flush(5_000)
    assert await bench.pending() == []
    assert await bench.live() is None


@pytest.mark.requirement("R25")
async def test_flush_ends_in_its_time_and_says_that_it_did_not_suffice(bench: Bench) -> None:
    client = await bench.open()
    entries = await bench.publish(2)
    bench.store.fail()
    client.say("ack", ids=entries)
    assert not await bench.node.reader.flush(50)


@pytest.mark.requirement("R10")
async def test_a_reader_that_stopped_reading_still_takes_acks(bench: Bench) -> None:
    client = await bench.open()
    first = await bench.publish()
    bench.node.reader.stop_reading()
    await bench.publish()
    assert len(client.events()) == 1
    client.say("ack", ids=first, ref=1)
    await bench.settle()
    assert client.of("acked") == [{"op": "acked", "ref": 1, "count": 1}]
    assert not bench.node.reader.is_busy


async def test_since_when_the_store_fails_is_known_and_forgotten_when_it_answers(bench: Bench) -> None:
    client = await bench.open()
    (entry,) = await bench.publish()
    reader = bench.node.reader
    assert reader.failed_since_ms is None
    bench.store.fail()
    client.say("ack", ids=[entry])
    await until(lambda: reader.failed_since_ms is not None)
    bench.store.heal()
    await until(lambda: reader.failed_since_ms is None)
    assert "acks=0" in repr(reader)
