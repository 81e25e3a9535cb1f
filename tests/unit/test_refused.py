"""A user whose data somebody broke, and a session that fails, harm nobody else."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any, cast

import pytest

from eventbus.errors import StoreError, StoreMisconfigured
from eventbus.ids import EntryId, UserId
from eventbus.store import (
    AckRequest,
    Confirmed,
    ConfirmRequest,
    EntryFacts,
    Fence,
    Lost,
    NewRead,
    ReadRequest,
    ReleaseReason,
)
from eventbus.testing import ManualClock, MemoryStore
from tests.support.bench import Bench
from tests.support.waiting import until

pytestmark = [pytest.mark.requirement("R9"), pytest.mark.requirement("R25")]

BROKEN = UserId("broken")


class BrokenStore(MemoryStore):
    """Refuses what is asked of one user while `broken`.

    Attributes:
        breaks_at_release: it is broken from the next release on.
        refused: how often it did.
    """

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(clock=clock)
        self.broken = False
        self.breaks_at_release = False
        self.refused = 0

    def _refuses(self, user: UserId) -> StoreError | None:
        if not self.broken or user != BROKEN:
            return None
        self.refused += 1
        return StoreMisconfigured("WRONGTYPE")

    async def ack_many(self, requests: Sequence[AckRequest]) -> Sequence[int | StoreError]:
        refused = [self._refuses(request.user) for request in requests]
        answers = await super().ack_many([one for one, no in zip(requests, refused, strict=True) if no is None])
        return _merged(refused, answers)

    async def confirm_many(self, requests: Sequence[ConfirmRequest]) -> Sequence[Confirmed | StoreError]:
        refused = [self._refuses(request.user) for request in requests]
        answers = await super().confirm_many([one for one, no in zip(requests, refused, strict=True) if no is None])
        return _merged(refused, answers)

    async def read_new(self, requests: Sequence[ReadRequest]) -> Sequence[NewRead | StoreError]:
        refused = [self._refuses(request.fence.user) for request in requests]
        answers = await super().read_new([one for one, no in zip(requests, refused, strict=True) if no is None])
        return _merged(refused, answers)

    async def release(
        self,
        fence: Fence,
        entries: Sequence[EntryId],
        reason: ReleaseReason,
        facts: Sequence[EntryFacts | None] = (),
    ) -> int | Lost:
        self.broken = self.broken or self.breaks_at_release
        if (refused := self._refuses(fence.user)) is not None:
            raise refused
        return await super().release(fence, entries, reason, facts)


def _merged(refused: Sequence[StoreError | None], answers: Sequence[Any]) -> list[Any]:
    given = iter(answers)
    return [next(given) if no is None else no for no in refused]


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    clock = ManualClock()
    async with Bench(BrokenStore(clock), clock) as made:
        yield made


def store_of(bench: Bench) -> BrokenStore:
    return cast(BrokenStore, bench.store)


async def flows(bench: Bench) -> None:
    """Events of another user come at once, and are acked; nobody waits for a pause, which takes real time."""
    here = await bench.open("here", f"s{bench.node.counters.connections_opened}")
    for number in range(1, 4):
        (entry,) = await bench.publish(user="here")
        assert len(here.events()) == number
        here.say("ack", ids=[entry], ref=number)
        await bench.settle()
        assert len(here.of("acked")) == number


@pytest.mark.parametrize("how", ["ack", "answered", "confirm"])
async def test_acks_that_are_refused_hold_nobody_up_and_are_stored_when_they_can_be(bench: Bench, how: str) -> None:
    client = await bench.open(BROKEN)
    (entry,) = await bench.publish(user=BROKEN)
    store_of(bench).broken = True
    fields = {"ack": {}, "answered": {"ref": 1}, "confirm": {"level": "displayed", "ref": 1}}[how]
    client.say("ack", ids=[entry], **cast(dict[str, Any], fields))
    await bench.settle()
    assert store_of(bench).refused == 1
    await flows(bench)
    assert store_of(bench).refused == 1, "it is put off"
    store_of(bench).broken = False

    async def stored() -> bool:
        return not await bench.pending(BROKEN)

    await until(stored)
    assert len(client.of("acked")) == (how != "ack")


async def test_reads_that_are_refused_hold_nobody_up_and_are_made_when_they_can_be(bench: Bench) -> None:
    client = await bench.open(BROKEN)
    store_of(bench).broken = True
    await bench.publish(user=BROKEN)
    assert store_of(bench).refused == 1
    await flows(bench)
    assert store_of(bench).refused == 1, "it is put off"
    store_of(bench).broken = False
    await until(lambda: len(client.events()) == 1)


async def test_releases_that_are_refused_hold_nobody_up_and_are_made_when_they_can_be(bench: Bench) -> None:
    store_of(bench).breaks_at_release = True
    await bench.open(BROKEN, filter={"types": ["other"]})
    await bench.publish(user=BROKEN)
    assert store_of(bench).refused == 1
    store_of(bench).breaks_at_release = False
    await flows(bench)
    assert store_of(bench).refused == 1, "it is put off"
    store_of(bench).broken = False

    async def released() -> bool:
        return not await bench.pending(BROKEN)

    await until(released)


async def test_acks_of_a_session_that_is_gone_are_not_tried_for_ever(bench: Bench) -> None:
    client = await bench.open(BROKEN)
    (entry,) = await bench.publish(user=BROKEN)
    store_of(bench).broken = True
    client.say("ack", ids=[entry])
    await bench.settle()
    client.hang_up()
    await bench.settle()
    await until(lambda: not bench.node.reader.is_busy)
    assert await bench.node.reader.flush(1_000)
    store_of(bench).broken = False
    again = await bench.open(BROKEN)
    assert again.events() == [(entry, 2)], "what it was for comes again"


# --- a session that fails ---------------------------------------------------------------------------------------------


def fail(*_: object) -> None:
    raise KeyError("a defect")


async def test_a_session_that_can_not_be_sent_an_event_ends_alone_and_loses_nothing(bench: Bench) -> None:
    bad = await bench.open("bad")
    bad.socket.send = fail  # type: ignore[assignment]
    (entry,) = await bench.publish(user="bad")
    assert bad.close_code() == 4007
    await flows(bench)
    again = await bench.open("bad")
    assert [known for known, _ in again.events()] == [entry]


async def test_a_session_that_fails_at_its_time_ends_alone(bench: Bench) -> None:
    bad, good = await bench.open("bad"), await bench.open("good")
    bad.socket.ping = fail  # type: ignore[method-assign]
    for _ in range(30):
        bad.alive()
        good.alive()
        await bench.pass_time(1_000)
    assert (bad.close_code(), good.close_code()) == (4007, None)
    assert good.socket.pings > 0


async def test_a_session_that_fails_as_it_opens_ends_alone(bench: Bench) -> None:
    bad = bench.connect("bad")
    bad.socket.resume_reading = fail  # type: ignore[method-assign]
    bad.say("hello", session="tab")
    await bench.settle()
    assert bad.close_code() == 4007
    await flows(bench)
