"""What a blocking bus answers: the same as the other, in a thread that waits."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from eventbus import blocking
from eventbus.blocking import Bus
from eventbus.errors import ConfirmationTimeout, InvalidField
from eventbus.ids import EntryId
from eventbus.testing import MemoryStore
from tests.support.sessions import ADA, fence_of, opening, reading


@pytest.fixture(autouse=True)
def stop_the_thread() -> Iterator[None]:
    """A leak check follows each test."""
    yield
    blocking.shutdown()


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def bus(store: MemoryStore) -> Iterator[Bus]:
    with Bus(store=store) as made:
        yield made


@pytest.mark.requirement("R12")
@pytest.mark.requirement("R14")
def test_confirmations_of_a_run_come_one_by_one_and_count(bus: Bus, store: MemoryStore) -> None:
    asyncio.run(opening(store, "tab"))
    with bus.run(user=ADA, agent="planner") as run:
        run.thinking("hm")
    entries = asyncio.run(reading(store, "tab"))
    asyncio.run(_ack(store, entries))
    found = list(bus.run_confirmations(run))
    assert [one.type for one in found] == ["agent_started", "agent_thinking", "agent_completed"]
    assert [one.entry for one in bus.run_confirmations(run.id, user=ADA)] == entries
    assert [one.entry for one in run.confirmations()] == entries
    with pytest.raises(ConfirmationTimeout):
        list(run.confirmations(level="displayed", timeout_ms=50))
    assert (bus.rates(user=ADA).success, bus.rates().received) == (1.0, 3)
    with pytest.raises(ConfirmationTimeout):
        list(bus.run_confirmations(run, level="displayed", timeout_ms=50))
    with pytest.raises(InvalidField):
        bus.run_confirmations("run_1")


async def _ack(store: MemoryStore, entries: list[EntryId]) -> None:
    await store.ack(fence_of("tab").user, fence_of("tab").session, entries)


@pytest.mark.requirement("R35")
def test_presence_comes_change_by_change_and_may_be_left(bus: Bus, store: MemoryStore) -> None:
    asyncio.run(opening(store, "tab"))
    assert [one.session for one in bus.online(ADA)] == ["tab"]
    changes = bus.presence(ADA)
    assert next(changes).online
    changes.close()
    asyncio.run(opening(store, "phone"))
    for change in bus.presence(ADA):
        if change.session == "tab":
            break
    assert [one.session for one in bus.online(ADA)] == ["phone", "tab"]


@pytest.mark.requirement("R26")
def test_threads_and_history_are_read_back(bus: Bus) -> None:
    for thread in ("a", "b"):
        bus.publish(user=ADA, type="note", data={"in": thread}, thread=thread)
    assert {record.thread for record in bus.threads(ADA).threads} == {"a", "b"}
    (past,) = bus.history(ADA, thread="b").events
    assert past.event.data == {"in": "b"}
