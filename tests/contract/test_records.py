"""Tickets, nodes, and what operators look at."""

from __future__ import annotations

import pytest

from eventbus.errors import StoreUnavailable
from eventbus.ids import ENTRY_ZERO, EventId, NodeName, SessionId, UserId
from eventbus.store import Append, NodeRecord, PendingRecord, Ticket
from tests.contract.conftest import CLUSTER, MEMORY, SENTINEL, SERVERS
from tests.contract.worlds import ALICE, NODE, OTHER_NODE, PHONE, World, fence_of

FIRST = fence_of("c1")


def node(name: NodeName, **figures: int) -> NodeRecord:
    return NodeRecord(
        node=name,
        address="10.0.0.1:8080",
        version="0.1.0",
        state="ready",
        started_ms=1_750_000_000_000,
        figures=figures,
    )


async def nodes(world: World) -> list[NodeRecord]:
    return sorted(await world.store.nodes(), key=lambda record: record.node)


# --- tickets ----------------------------------------------------------------------------------------------------------


@pytest.mark.requirement("R23")
async def test_ticket_is_good_once(world: World) -> None:
    await world.store.put_ticket(Ticket(ticket="t1", claims='{"sub":"alice"}', life_ms=60_000))

    assert await world.store.take_ticket("t1") == '{"sub":"alice"}'
    assert await world.store.take_ticket("t1") is None


async def test_ticket_that_was_never_made_is_none(world: World) -> None:
    assert await world.store.take_ticket("t1") is None


@pytest.mark.requirement("R23")
async def test_ticket_is_good_for_its_life_only(world: World) -> None:
    await world.store.put_ticket(Ticket(ticket="short", claims="{}", life_ms=100))
    await world.store.put_ticket(Ticket(ticket="long", claims="{}", life_ms=60_000))
    await world.pass_time(101)

    assert await world.store.take_ticket("short") is None
    assert await world.store.take_ticket("long") == "{}"


# --- nodes ------------------------------------------------------------------------------------------------------------


async def test_nodes_are_listed_with_what_they_told_last(world: World) -> None:
    await world.store.beat_node(node(NODE, connections=1))
    await world.store.beat_node(node(OTHER_NODE, connections=7, sessions=3))
    await world.store.beat_node(node(NODE, connections=2))

    assert await nodes(world) == [node(NODE, connections=2), node(OTHER_NODE, connections=7, sessions=3)]


async def test_node_that_left_is_not_listed(world: World) -> None:
    await world.store.beat_node(node(NODE))
    await world.store.beat_node(node(OTHER_NODE))
    await world.store.leave_node(NODE)
    await world.store.leave_node(NodeName("never-there"))

    assert await nodes(world) == [node(OTHER_NODE)]


async def silent_node_ages_out(world: World) -> None:
    await world.store.beat_node(node(NODE))
    await world.pass_time(10_000)
    await world.store.beat_node(node(OTHER_NODE))
    assert await nodes(world) == [node(NODE), node(OTHER_NODE)]
    await world.pass_time(5_001)
    assert await nodes(world) == [node(OTHER_NODE)]


@pytest.mark.corner("D16")
@pytest.mark.parametrize("world_kind", [MEMORY], indirect=True)
async def test_node_that_fell_silent_is_not_listed(world: World) -> None:
    await silent_node_ages_out(world)


@pytest.mark.soak
@pytest.mark.corner("D16")
@pytest.mark.parametrize("world_kind", SERVERS, indirect=True)
async def test_node_that_fell_silent_is_not_listed_by_a_server(world: World) -> None:
    """The life is fixed at 15 s of the server's clock."""
    await silent_node_ages_out(world)


# --- operators --------------------------------------------------------------------------------------------------------


@pytest.mark.requirement("R27")
async def test_pending_entries_are_listed_in_pages_with_their_age(world: World) -> None:
    await world.open(FIRST)
    entries = await world.publish("e0", "e1", "e2")
    await world.read(FIRST, count=2)
    await world.pass_time(50)
    await world.read(FIRST)

    records = await world.store.pending(ALICE, PHONE, ENTRY_ZERO, 10)

    assert list(records) == [
        PendingRecord(id=entry, attempts=1, idle_ms=record.idle_ms)
        for entry, record in zip(entries, records, strict=True)
    ]
    assert records[0].idle_ms - records[2].idle_ms >= 50
    page = await world.store.pending(ALICE, PHONE, entries[0], 1)
    assert [record.id for record in page] == [entries[1]]
    assert list(await world.store.pending(ALICE, PHONE, entries[2], 1)) == []


@pytest.mark.requirement("R27")
async def test_unknown_session_has_nothing_pending(world: World) -> None:
    assert list(await world.store.pending(ALICE, PHONE, ENTRY_ZERO, 10)) == []
    await world.publish("e0")
    assert list(await world.store.pending(ALICE, SessionId("nobody"), ENTRY_ZERO, 10)) == []


@pytest.mark.requirement("R27")
async def test_every_user_with_a_stream_is_found(world: World) -> None:
    expected = {UserId(f"user:{number}|x") for number in range(25)}
    for user in expected:
        await world.publish("e0", user=user)
    await world.open(fence_of("c1", user=UserId("quiet")))

    found: set[UserId] = set()
    cursor = ""
    for _ in range(1_000):
        users, cursor = await world.store.users(cursor, 10)
        found.update(users)
        if not cursor:
            break

    assert cursor == ""
    assert found == expected | {UserId("quiet")}


async def test_store_tells_about_its_server(world: World, world_kind: str) -> None:
    before_ms = await world.store.ping()
    info = await world.store.info()
    after_ms = await world.store.ping()

    assert before_ms <= info.time_ms <= after_ms
    assert info.kind in ("memory", "redis", "valkey")
    assert info.version != ""
    assert info.memory_bytes >= 0
    assert info.replicas == (1 if world_kind in (CLUSTER, SENTINEL) else 0)


async def test_closed_store_answers_nothing_more(world: World) -> None:
    await world.store.aclose()
    await world.store.aclose()

    with pytest.raises(StoreUnavailable):
        await world.store.ping()
    (result,) = await world.append(Append(user=ALICE, event=EventId("e1"), body=b""))
    assert isinstance(result, StoreUnavailable)
