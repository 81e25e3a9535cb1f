"""Received, displayed, confirmed: from a client over real sockets, nodes and servers to the agent that waits."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from eventbus import Bus, Confirmation, ConfirmationTimeout, Subscriber
from eventbus.confirmation import Sessions
from eventbus.publishing.receipt import Receipt
from gateway.node import Node
from tests.support.wire_client import MSGPACK, Nodes, WireClient, ids, opened, token_of, wired


@pytest.fixture
async def bus(server_url: str) -> AsyncIterator[Bus]:
    async with Bus(server_url) as made:
        yield made


async def note(bus: Bus, user: str = "alice") -> Receipt:
    return await bus.publish(user=user, type="note", data={})


async def said(client: WireClient, ref: str, **ack: object) -> int:
    """Sends an ack with an answer. Returns what it released."""
    client.send("ack", ref=ref, **ack)
    count: int = (await client.expect("acked", ref=ref))["count"]
    return count


def counted(confirmations: list[Confirmation]) -> Counter[tuple[str, str]]:
    """How many of each session and level."""
    return Counter((one.session, one.level.value) for one in confirmations)


def all_three(*sessions: str) -> Counter[tuple[str, str]]:
    return Counter((session, level) for session in sessions for level in ("received", "displayed", "confirmed"))


@pytest.mark.requirement("R11")
async def test_five_events_show_five_of_each_for_two_sessions_and_over_a_reconnect(nodes_on_each: Nodes) -> None:
    """The phone receives on one node and confirms on another."""
    first, second = await nodes_on_each.start("n1"), await nodes_on_each.start("n2")
    async with Bus(nodes_on_each.url) as bus:
        async with opened(first, session="phone") as phone, opened(second, session="laptop") as laptop:
            await phone.expect("caught_up")
            await laptop.expect("caught_up")
            receipts = [await note(bus) for _ in range(5)]
            entries = [receipt.entry for receipt in receipts]
            for client in (phone, laptop):
                assert ids(await client.events(5)) == entries
                assert await said(client, "r", ids=entries) == 5
            assert await said(laptop, "d", ids=entries, level="displayed") == 0
            assert await said(laptop, "c", ids=entries, level="confirmed", note="seen") == 0
            assert await said(phone, "d", ids=entries[:2], level="displayed") == 0
        async with opened(second, session="phone") as phone:
            await phone.expect("caught_up")
            assert await said(phone, "d", ids=entries[2:], level="displayed") == 0
            assert await said(phone, "c", ids=entries, level="confirmed") == 0

        totals: Counter[str] = Counter()
        for receipt in receipts:
            found = await bus.confirmations(receipt)
            assert counted(found) == all_three("phone", "laptop")
            assert [one.note for one in found if one.level == "confirmed"] == ["seen", None]
            assert all(one.time_ms >= receipt.stored_ms for one in found)
            totals.update(one.level.value for one in found if one.session == "phone")
        assert totals == {"received": 5, "displayed": 5, "confirmed": 5}
        counts = [node.counters.events_confirmed for node in (first, second)]
        assert sum(counts, Counter()) == {"displayed": 10, "confirmed": 10}


@pytest.mark.requirement("R11")
async def test_confirmed_alone_releases_and_implies_the_levels_before_it(node: Node, bus: Bus) -> None:
    async with wired(node, token_of(), subprotocol=MSGPACK) as client:
        await client.hello(session="tab")
        await client.expect("caught_up")
        receipt = await note(bus)
        await client.events(1)
        assert await said(client, "c", upto=receipt.entry, level="confirmed", note="ok") == 1
    found = await bus.confirmations(receipt)
    assert counted(found) == all_three("tab")
    assert [one.note for one in found] == [None, None, "ok"]


@pytest.mark.requirement("R11")
async def test_confirmations_may_be_repeated(node: Node, bus: Bus) -> None:
    async with opened(node) as client:
        await client.expect("caught_up")
        receipt = await note(bus)
        await client.events(1)
        for number in range(3):
            await said(client, f"c{number}", ids=[receipt.entry] * 2, level="confirmed")
        client.send("ack", ids=[receipt.entry], level="displayed")
        assert await said(client, "empty", ids=[], level="displayed") == 0
    assert counted(await bus.confirmations(receipt)) == all_three("tab")
    assert +node.counters.events_confirmed == {"confirmed": 1}


@pytest.mark.requirement("R11", "R22")
async def test_neither_undelivered_nor_foreign_entries_can_be_confirmed(node: Node, bus: Bus) -> None:
    before, foreign = await note(bus), await note(bus, "mallory")
    async with opened(node, start="new") as client, opened(node, "mallory", start="earliest") as other:
        await client.expect("caught_up")
        mine = await note(bus)
        await client.events(1)
        await other.events(1)
        entries = [before.entry, foreign.entry, mine.entry, "1-1", "99999999999999-0"]
        assert await said(client, "c", ids=entries, level="confirmed") == 1
    assert await bus.confirmations(before) == []
    assert await bus.confirmations(foreign) == []
    assert counted(await bus.confirmations(mine)) == all_three("tab")


@pytest.mark.requirement("R11", "R12")
async def test_the_python_client_confirms_and_the_publisher_is_told(node: Node, bus: Bus) -> None:
    url = f"http://127.0.0.1:{node.port}"
    async with Subscriber(url, token=token_of(), session="desk") as subscriber:
        receipt = await note(bus)
        delivery = await anext(subscriber)
        await delivery.confirm("read")
        wait = waiting(receipt, "confirmed", "any")
        await delivery.ack()
        (one,) = await wait
    assert (one.session, one.note) == ("desk", "read")
    assert counted(await bus.confirmations(receipt)) == all_three("desk")


# --- waiting ----------------------------------------------------------------------------------------------------------


async def sessions_of(found: asyncio.Task[list[Confirmation]]) -> list[str]:
    return [one.session for one in await found]


def waiting(
    receipt: Receipt, level: str, sessions: Sessions, timeout_ms: int = 20_000
) -> asyncio.Task[list[Confirmation]]:
    return asyncio.create_task(receipt.wait(level, sessions=sessions, timeout_ms=timeout_ms))


@pytest.mark.requirement("R12")
async def test_the_publisher_waits_for_any_for_so_many_and_for_all_live_sessions(node: Node, bus: Bus) -> None:
    async with opened(node, session="phone") as phone, opened(node, session="laptop") as laptop:
        await phone.expect("caught_up")
        await laptop.expect("caught_up")
        receipt = await note(bus)
        waits = {sessions: waiting(receipt, "displayed", sessions) for sessions in ("any", 2, "all_live")}
        await phone.events(1)
        await laptop.events(1)
        await said(phone, "r", ids=[receipt.entry])
        await said(phone, "d", ids=[receipt.entry], level="displayed")
        (one,) = await waits["any"]
        assert (one.session, one.level, one.note) == ("phone", "displayed", None)
        assert receipt.stored_ms <= one.time_ms
        assert not waits[2].done()
        assert not waits["all_live"].done()

        await said(laptop, "c", ids=[receipt.entry], level="confirmed", note="ok")

        assert await sessions_of(waits[2]) == ["phone", "laptop"]
        assert await sessions_of(waits["all_live"]) == ["phone", "laptop"]
        (done,) = await receipt.wait("confirmed")
        assert (done.session, done.level, done.note) == ("laptop", "confirmed", "ok")


@pytest.mark.requirement("R12")
async def test_all_live_does_not_wait_for_a_session_that_leaves(node: Node, bus: Bus) -> None:
    async with opened(node, session="phone") as phone:
        await phone.expect("caught_up")
        async with opened(node, session="laptop") as laptop:
            await laptop.expect("caught_up")
            receipt = await note(bus)
            wait = waiting(receipt, "received", "all_live")
            await phone.events(1)
            await said(phone, "r", ids=[receipt.entry])
            with pytest.raises(ConfirmationTimeout):
                await receipt.wait("received", sessions="all_live", timeout_ms=300)
            assert not wait.done()
        assert await sessions_of(wait) == ["phone"]


@pytest.mark.requirement("R12")
async def test_all_live_does_not_wait_for_a_session_that_filters_the_event_out(node: Node, bus: Bus) -> None:
    async with (
        opened(node, session="phone") as phone,
        opened(node, session="laptop", filter={"types": ["other"]}) as laptop,
    ):
        await phone.expect("caught_up")
        await laptop.expect("caught_up")
        receipt = await note(bus)
        await phone.events(1)
        await said(phone, "r", ids=[receipt.entry])
        assert await sessions_of(waiting(receipt, "received", "all_live")) == ["phone"]


@pytest.mark.requirement("R12")
async def test_a_wait_that_times_out_says_what_there_is_and_may_be_repeated(node: Node, bus: Bus) -> None:
    async with opened(node, session="phone") as phone:
        await phone.expect("caught_up")
        receipt = await note(bus)
        await phone.events(1)
        await said(phone, "r", ids=[receipt.entry])
        with pytest.raises(ConfirmationTimeout) as caught:
            await receipt.wait("confirmed", timeout_ms=1_500)
        assert caught.value.retryable
        assert [(one.session, one.level) for one in caught.value.confirmations] == [("phone", "received")]  # type: ignore[attr-defined]
        again = waiting(receipt, "confirmed", "any")
        await said(phone, "c", ids=[receipt.entry], level="confirmed")
        assert await sessions_of(again) == ["phone"]


@pytest.mark.requirement("R12")
async def test_a_wait_survives_the_node_through_which_the_confirmation_comes(nodes: Nodes, bus: Bus) -> None:
    first, second = await nodes.start("n1"), await nodes.start("n2")
    async with opened(first, session="phone") as phone:
        await phone.expect("caught_up")
        receipt = await note(bus)
        wait = waiting(receipt, "confirmed", "any")
        await phone.events(1)
        await said(phone, "r", ids=[receipt.entry])
    await first.aclose()
    async with opened(second, session="phone") as phone:
        await said_after_catching_up(phone, receipt)
    assert await sessions_of(wait) == ["phone"]


async def said_after_catching_up(client: WireClient, receipt: Receipt) -> None:
    await client.expect("caught_up")
    await said(client, "c", ids=[receipt.entry], level="confirmed")


# --- over HTTP --------------------------------------------------------------------------------------------------------


async def got(
    http: httpx.AsyncClient, event: str, user: str = "alice", query: str = "", **claims: Any
) -> httpx.Response:
    headers = {"Authorization": f"Bearer {token_of(user, **claims)}"}
    return await http.get(f"/v1/events/{event}/confirmations{query}", headers=headers)


@pytest.mark.requirement("R12")
async def test_the_confirmations_of_an_event_are_had_over_http(node: Node, bus: Bus, http: httpx.AsyncClient) -> None:
    async with opened(node) as client:
        await client.expect("caught_up")
        receipt = await note(bus)
        assert (await got(http, receipt.event)).json() == {"confirmations": []}
        await client.events(1)
        await said(client, "r", ids=[receipt.entry])
        await said(client, "c", ids=[receipt.entry], level="confirmed", note="ok")
    answer = await got(http, receipt.event)
    rows = answer.json()["confirmations"]
    assert [(row["session"], row["level"], row.get("note", "none")) for row in rows] == [
        ("tab", "received", "none"),
        ("tab", "displayed", "none"),
        ("tab", "confirmed", "ok"),
    ]
    assert all(type(row["time_ms"]) is int for row in rows)
    for scopes in (("publish",), ("admin",)):
        assert (await got(http, receipt.event, "worker", "?user=alice", scopes=scopes)).json()["confirmations"] == rows


@pytest.mark.requirement("R22")
async def test_another_users_event_is_as_unknown_over_http_as_none(bus: Bus, http: httpx.AsyncClient) -> None:
    receipt = await note(bus)
    foreign, none = await got(http, receipt.event, "mallory"), await got(http, "never-was", "mallory")
    assert (foreign.status_code, none.status_code) == (404, 404)
    assert foreign.json()["error"]["code"] == none.json()["error"]["code"] == "not_found"
    assert (await got(http, receipt.event, "mallory", "?user=alice")).status_code == 403
    assert (await got(http, receipt.event, "worker", scopes=("publish",))).status_code == 403
    assert (await got(http, "a b", "mallory")).status_code == 400
    assert (await http.get(f"/v1/events/{receipt.event}/confirmations")).status_code == 401
