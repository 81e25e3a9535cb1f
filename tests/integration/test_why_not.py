"""Why has user U not got event E? One command and one page answer, for each of ten staged causes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from eventbus.clock import SystemClock, new_event_id
from eventbus.errors import TypePaused
from eventbus.ids import ENTRY_ZERO, SessionId, UserId, event_id_time_ms
from gateway.admin.port import make_admin_app
from gateway.admin.revocations import AdminAccess
from gateway.node import Node
from gateway.processes.serving import NodeFigures
from tests.integration.test_cli import Command
from tests.support.waiting import until
from tests.support.wire_client import Nodes, bearer, ids, opened, publish, token_of

pytestmark = [pytest.mark.requirement("R27", "R1"), pytest.mark.slow]

ALICE, TAB = UserId("alice"), SessionId("tab")


@pytest.fixture
def command(processes: Any, server_url: str) -> Command:
    return Command(processes, server_url)


@asynccontextmanager
async def page_of(node: Node) -> AsyncIterator[httpx.AsyncClient]:
    """Where the console asks."""
    access = AdminAccess(node.store, node.revocations, node.authenticator, node.clock)
    app = make_admin_app(NodeFigures(node), authenticator=None, access=access, settings=node.node_settings)
    headers = {"Authorization": bearer(token_of("olga", scopes=["admin"]))}
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", headers=headers) as http:
        yield http


async def why(node: Node, command: Command, event: str, session: str = "tab") -> dict[str, Any]:
    """What the command says of the event for the session; the page says the same, and what to do."""
    (row,) = await command.json("event", "--user", "alice", event, "--session", session)
    async with page_of(node) as http:
        way = (await http.get(f"/admin/v1/events/{event}", params={"user": "alice"})).json()
    (shown,) = [one for one in way["sessions"] if one["fate"]["session"] == session]
    assert (shown["fate"]["state"], shown["verdict"], shown["why"]) == (row["state"], row["verdict"], row["why"])
    assert "; " in row["why"]
    return row


async def why_absent(node: Node, command: Command, event: str) -> str:
    """The same where nothing is known of it."""
    env = {"EVENTBUS_MAX_STREAM_ENTRIES": str(node.node_settings.store.max_stream_entries)}
    said = (await command.run("event", "--user", "alice", event, status=1, env=env)).stderr
    async with page_of(node) as http:
        answer = await http.get(f"/admin/v1/events/{event}", params={"user": "alice"})
    assert answer.status_code == 404
    assert answer.json()["error"]["message"].partition(": ")[2] in said
    return said


async def away(node: Node) -> None:
    """The session was there, and is away."""
    async with opened(node) as client:
        await client.until_op("caught_up")

    async def gone() -> bool:
        return [one.live for one in await node.store.sessions(ALICE)] == [None]

    await until(gone)


async def test_nobody_is_connected(nodes: Nodes, command: Command) -> None:
    node = await nodes.start()
    await away(node)
    (entry,) = await publish(node, "a")
    row = await why(node, command, entry)
    assert (row["state"], row["verdict"]) == ("not_read", "offline")
    assert "nobody is connected" in row["why"]


async def test_its_session_is_over(nodes: Nodes, command: Command) -> None:
    node = await nodes.start()
    async with opened(node) as client:
        await client.until_op("caught_up")
        (entry,) = await publish(node, "a")
        await client.events(1)
        await node.store.end_session(ALICE, TAB)
        await client.until_closed()
    row = await why(node, command, entry)
    assert row["state"] == "expired"
    assert "its session was over" in row["why"]


async def test_the_sessions_filter_does_not_want_it(nodes: Nodes, command: Command) -> None:
    node = await nodes.start()
    async with opened(node, filter={"types": ["memo"]}) as client:
        await client.until_op("caught_up")
        (entry,) = await publish(node, "a")

        async def is_released() -> bool:
            return bool(await node.store.confirmations(ALICE, ENTRY_ZERO, 10))

        await until(is_released)
        row = await why(node, command, entry)
    assert row["state"] == "filtered"
    assert "filter" in row["why"]


async def test_it_was_past_its_time(nodes: Nodes, command: Command) -> None:
    node = await nodes.start()
    await away(node)
    soon_ms = await node.store.ping() + 50
    (entry,) = await publish(node, "a", expires_ms=soon_ms)

    async def over() -> bool:
        return await node.store.ping() > soon_ms

    await until(over)
    row = await why(node, command, entry)
    assert row["state"] == "expired"
    assert "expires_ms" in row["why"]


async def test_its_client_refused_it_until_it_was_given_up(nodes: Nodes, command: Command) -> None:
    node = await nodes.start(max_deliveries=3, jitter=0)
    async with opened(node) as client:
        await client.until_op("caught_up")
        (entry,) = await publish(node, "a")
        for _ in range(3):
            await client.events(1)
            client.send("nack", id=entry, delay_ms=0)
        await client.until_op("dropped")
        row = await why(node, command, entry)
    assert (row["state"], row["reason"], row["deliveries"]) == ("dead_lettered", "nacked", 3)
    assert "eventbus replay" in row["why"]


async def test_its_client_does_not_ack(nodes: Nodes, command: Command) -> None:
    node = await nodes.start(ack_timeout_ms=200, jitter=0)
    async with opened(node) as client:
        await client.until_op("caught_up")
        (entry,) = await publish(node, "a")
        await client.events(2)
        row = await why(node, command, entry)
    assert (row["state"], row["verdict"]) == ("pending", "not_acking")
    assert "does not ack" in row["why"]


async def test_its_node_is_gone(nodes: Nodes, command: Command) -> None:
    node = await nodes.start(node_heartbeat_ms=60_000)
    async with opened(node) as client:
        await client.until_op("caught_up")
        (entry,) = await publish(node, "a")
        await client.events(1)

        async def silent() -> bool:
            await node.store.leave_node(node.name)
            return not await node.store.nodes()

        await until(silent)
        row = await why(node, command, entry)
    assert (row["state"], row["verdict"], row["node"]) == ("pending", "node_gone", "n1")
    assert "silent" in row["why"]


async def test_its_type_is_paused(nodes: Nodes, command: Command) -> None:
    node = await nodes.start()
    await command.run("pause", "chatter", "--yes", "--reason", "too many")
    event = new_event_id(SystemClock())
    with pytest.raises(TypePaused):
        await node.bus.publish(user="alice", type="chatter", data={}, id=event)
    said = await why_absent(node, command, event)
    assert "paused" in said
    assert "chatter" in said


async def test_the_stream_was_full(nodes: Nodes, command: Command) -> None:
    node = await nodes.start(max_stream_entries=4)
    await away(node)
    receipt = await node.bus.publish(user="alice", type="note", data={})
    made_ms = event_id_time_ms(receipt.event) or 0

    async def later() -> bool:
        return await node.store.ping() > made_ms + 5

    await until(later)
    await publish(node, *(str(number) for number in range(8)))
    assert "left the stream" in await why_absent(node, command, receipt.event)


async def test_it_was_delivered_and_acked_and_never_displayed(nodes: Nodes, command: Command) -> None:
    node = await nodes.start()
    async with opened(node) as client:
        await client.until_op("caught_up")
        (entry,) = await publish(node, "a")
        client.send("ack", ids=ids(await client.events(1)), ref=1)
        await client.until_op("acked")
        row = await why(node, command, entry)
    assert (row["state"], row["level"]) == ("acked", "received")
    assert "never said that it was displayed" in row["why"]
