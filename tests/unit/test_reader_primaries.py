"""A session takes nothing from a primary that it was not attached to: it may have lost what the session has seen."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

import pytest

from eventbus.errors import StoreError
from eventbus.ids import EntryId
from eventbus.store import (
    Attach,
    Attached,
    AttachRefused,
    Fence,
    Lost,
    NewRead,
    PendingPage,
    ReadRequest,
    ReadState,
)
from eventbus.testing import ManualClock, MemoryStore
from tests.support.bench import Bench
from tests.support.waiting import until

pytestmark = [pytest.mark.requirement("R2"), pytest.mark.requirement("R7")]


class MovingStore(MemoryStore):
    """Says which server answers; the test moves it to another, without a word to the node."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(clock=clock)
        self.server = "one"
        self.move_after_attach = ""
        self.attaches = 0

    async def attach(self, request: Attach) -> Attached | AttachRefused:
        self.attaches += 1
        server, self.server = self.server, self.move_after_attach or self.server
        answer = await super().attach(request)
        return replace(answer, primary=server) if isinstance(answer, Attached) else answer

    async def read_new(self, requests: Sequence[ReadRequest]) -> Sequence[NewRead | StoreError]:
        return [
            replace(answer, primary=self.server)
            if isinstance(answer, NewRead) and answer.state is ReadState.OK
            else answer
            for answer in await super().read_new(requests)
        ]

    async def read_pending(self, fence: Fence, after: EntryId, count: int) -> PendingPage | Lost:
        page = await super().read_pending(fence, after, count)
        return replace(page, primary=self.server) if isinstance(page, PendingPage) else page


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    clock = ManualClock()
    async with Bench(MovingStore(clock), clock) as made:
        yield made


def moving(bench: Bench) -> MovingStore:
    assert isinstance(bench.store, MovingStore)
    return bench.store


async def test_rollback_is_announced_before_what_the_new_primary_gives(bench: Bench) -> None:
    """D4. What was taken back is there again, under another id, by the first read: it would hide the loss."""
    client = await bench.open()
    (kept,) = await bench.publish(1, id="kept")
    (lost,) = await bench.publish(1, id="again")
    await until(lambda: len(client.events()) == 2)
    client.say("ack", ids=[kept, lost])
    await until(lambda: not bench.node.reader.is_busy)
    moving(bench).roll_back(client.session.user, kept)
    moving(bench).server = "two"
    bench.clock.advance(5)
    (restored,) = await bench.publish(1, id="again")

    await until(lambda: len(client.events()) == 3)
    assert [gap["reason"] for gap in client.of("gap")] == ["rollback"]
    assert client.events()[-1][0] == restored
    assert client.ops().index("gap") < len(client.ops()) - 1, "the gap comes before what was sent again"


async def test_rollback_of_what_was_sent_and_not_acked_is_announced_too(bench: Bench) -> None:
    """D4. It comes again under another id and unmarked: without a word it would look like another event."""
    client = await bench.open()
    (kept,) = await bench.publish(1, id="kept")
    (lost,) = await bench.publish(1, id="again")
    await until(lambda: len(client.events()) == 2)
    moving(bench).roll_back(client.session.user, kept)
    moving(bench).server = "two"
    bench.clock.advance(5)
    (restored,) = await bench.publish(1, id="again")

    await until(lambda: len(client.events()) == 3)
    assert [gap["reason"] for gap in client.of("gap")] == ["rollback"]
    assert client.events()[-1] == (restored, 1) != (lost, 1)
    assert client.ops().index("gap") < len(client.ops()) - 1, "the gap comes before what was sent again"
    client.say("ack", ids=[kept, restored])
    await until(lambda: not bench.node.reader.is_busy)
    assert client.session.delivery.in_flight == 0, "nobody waits for what is no more"


async def test_session_that_moves_without_a_loss_is_told_of_nothing(bench: Bench) -> None:
    client = await bench.open()
    entries = await bench.publish(2)
    moving(bench).server = "two"
    entries += await bench.publish(2)
    await until(lambda: len(client.events()) == 4)
    assert [entry for entry, _ in client.events()] == entries
    assert client.of("gap") == []
    assert client.session.primary == "two"


async def test_pages_of_another_primary_are_not_taken_either(bench: Bench) -> None:
    """A page that was asked of the old one and answered by the new."""
    client = await bench.open()
    await bench.publish(2)
    await until(lambda: len(client.events()) == 2)
    client.hang_up()
    await until(lambda: not bench.node.reader.is_busy)
    store = moving(bench)
    attaches = store.attaches
    store.move_after_attach = "two"
    again = await bench.open()
    await until(lambda: [delivery for _, delivery in again.events()] == [2, 2])
    assert store.attaches == attaches + 2
    assert again.session.primary == "two"
