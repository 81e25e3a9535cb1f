"""docs/protocol.md, sections 2 and 6: threads, what a filter leaves out, presence; over real servers and sockets."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from eventbus.presence import Presence
from gateway.node import Node
from tests.support.waiting import until
from tests.support.wire_client import Nodes, bearer, opened, publish, texts, token_of

ALICE = {"Authorization": bearer(token_of())}
BOB = {"Authorization": bearer(token_of("bob"))}
SERVICE = {"Authorization": bearer(token_of("service", scopes=("publish",)))}
OPERATOR = {"Authorization": bearer(token_of("op", scopes=("admin",)))}


# --- threads and history ----------------------------------------------------------------------------------------------


@pytest.mark.requirement("R26")
async def test_threads_come_in_pages_the_one_with_the_newest_event_first(node: Node, http: httpx.AsyncClient) -> None:
    for thread in ("a", "b", "c", "a"):
        await publish(node, "x", thread=thread)
    await publish(node, "y")
    first = (await http.get("/v1/threads?limit=2", headers=ALICE)).json()
    assert [one["thread"] for one in first["threads"]] == ["a", "c"]
    assert all(set(one) == {"thread", "last_ms"} and one["last_ms"] > 1e12 for one in first["threads"])
    rest = (await http.get("/v1/threads", params={"before": first["next"]}, headers=ALICE)).json()
    assert [one["thread"] for one in rest["threads"]] == ["b"]
    assert "next" not in rest


@pytest.mark.requirement("R22")
@pytest.mark.requirement("R26")
async def test_nobody_sees_the_threads_of_another(node: Node, http: httpx.AsyncClient) -> None:
    await publish(node, "x", thread="secret")
    assert (await http.get("/v1/threads", params={"user": "alice"}, headers=BOB)).json() == {"threads": []}
    for headers in (SERVICE, OPERATOR):
        assert (await http.get("/v1/threads?user=alice", headers=headers)).status_code == 403
    assert (await http.get("/v1/threads")).status_code == 401


@pytest.mark.parametrize("query", ["limit=0", "limit=501", "limit=x", "before=1", "before=x:a", "before=1:run_1"])
async def test_a_page_of_threads_that_makes_no_sense_is_a_400(http: httpx.AsyncClient, query: str) -> None:
    answer = await http.get(f"/v1/threads?{query}", headers=ALICE)
    assert (answer.status_code, answer.json()["error"]["field"]) == (400, query.partition("=")[0])


@pytest.mark.slow
@pytest.mark.requirement("R26")
async def test_a_filtered_read_of_ten_thousand_entries_is_bounded_and_goes_on_to_the_one_that_matches(
    node: Node, http: httpx.AsyncClient
) -> None:
    notes = [{"user": "alice", "type": "note", "data": {}, "thread": "loud"} for _ in range(9_990)]
    for start in range(0, len(notes), 3_330):
        await node.bus.publish_many(notes[start : start + 3_330])
    await publish(node, "wanted", thread="quiet")
    found: list[dict[str, Any]] = []
    query: dict[str, Any] = {"thread": "quiet", "limit": 1}
    requests = 0
    while True:
        page = (await http.get("/v1/events", params=query, headers=ALICE)).json()
        requests += 1
        found += page["events"]
        if "next" not in page:
            break
        query["cursor"] = page["next"]
    assert texts(found) == ["wanted"]
    assert requests <= 7, "2,000 entries a request, and perhaps an empty one at the end"


@pytest.mark.requirement("R26")
async def test_after_a_switch_of_threads_only_the_new_one_comes_and_history_has_the_rest(
    node: Node, http: httpx.AsyncClient
) -> None:
    async with opened(node, filter={"threads": ["a"]}) as client:
        await client.expect("caught_up")
        await publish(node, "a1", thread="a")
        await publish(node, "b1", thread="b")
        await publish(node, "a2", thread="a")
        events = await client.events(2)
        assert texts(events) == ["a1", "a2"]
        client.send("ack", ids=[event["id"] for event in events])

        client.send("filter", filter={"threads": ["b"]}, ref="switch")
        await client.expect("filtered", ref="switch")
        await publish(node, "a3", thread="a")
        await publish(node, "b2", thread="b")
        events = await client.events(1)
        assert texts(events) == ["b2"]
        client.send("ack", ids=[events[0]["id"]])

        async def settled() -> bool:
            (session,) = await node.store.sessions("alice")  # type: ignore[arg-type]
            return not session.pending and not session.unread

        await until(settled, message="what is not wanted is released")
        await client.nothing_more()

    for thread, wanted in (("a", ["a1", "a2", "a3"]), ("b", ["b1", "b2"])):
        page = (await http.get("/v1/events", params={"thread": thread}, headers=ALICE)).json()
        assert texts(page["events"]) == wanted
    rates = await node.bus.rates(user="alice")
    assert (rates.stored, rates.received, rates.filtered, rates.success) == (5, 3, 2, 1.0)
    assert await node.bus.rates() == rates, "what was counted when it happened says the same"


@pytest.mark.requirement("R26")
async def test_a_bus_reads_threads_and_history_back(node: Node) -> None:
    await publish(node, "a1", "a2", thread="a")
    await publish(node, "b1", thread="b", type="memo")
    bus = node.bus
    threads = await bus.threads("alice", limit=1)
    assert ([record.thread for record in threads.threads], threads.next is not None) == (["b"], True)
    assert [one.thread for one in (await bus.threads("alice", before=threads.next)).threads] == ["a"]
    page = await bus.history("alice", thread="a", limit=1)
    assert ([past.event.data["text"] for past in page.events], page.more) == (["a1"], True)
    page = await bus.history("alice", thread="a", after=page.cursor)
    assert ([past.event.data["text"] for past in page.events], page.more) == (["a2"], False)
    (past,) = (await bus.history("alice", type="memo")).events
    assert (past.event.thread, past.event.user) == ("b", "alice")


# --- presence ---------------------------------------------------------------------------------------------------------


async def asked(http: httpx.AsyncClient, headers: dict[str, str], user: str | None = None) -> Any:
    params = {} if user is None else {"user": user}
    return (await http.get("/v1/presence", params=params, headers=headers)).json()


@pytest.mark.requirement("R35")
async def test_a_user_sees_own_sessions_and_a_publisher_those_of_anyone(node: Node, http: httpx.AsyncClient) -> None:
    assert await asked(http, ALICE) == {"online": False, "sessions": []}
    async with opened(node, session="phone") as client:
        await client.expect("caught_up")
        told = await asked(http, ALICE)
        (session,) = told["sessions"]
        assert told["online"] is True
        assert (session["session"], session["node"]) == ("phone", node.name)
        assert session["last_seen_ms"] > 1e12
        assert await asked(http, SERVICE, "alice") == await asked(http, OPERATOR, "alice") == told
        assert await asked(http, BOB) == {"online": False, "sessions": []}

    async def offline() -> bool:
        return not (await asked(http, ALICE))["online"]

    await until(offline, message="the session is left")


@pytest.mark.requirement("R22")
@pytest.mark.requirement("R35")
async def test_nobody_else_learns_who_is_online(node: Node, http: httpx.AsyncClient) -> None:
    async with opened(node, session="phone") as client:
        await client.expect("caught_up")
        for headers, status in ((BOB, 403), (SERVICE, 200), ({}, 401)):
            answer = await http.get("/v1/presence?user=alice", headers=headers)
            assert answer.status_code == status
        assert (await http.get("/v1/presence", headers=SERVICE)).status_code == 403
        assert (await http.get("/v1/presence?user=run_1", headers=SERVICE)).status_code == 400


@pytest.mark.requirement("R35")
async def test_sessions_that_come_and_go_over_two_nodes_are_told_at_once(nodes: Nodes) -> None:
    one, two = await nodes.start(), await nodes.start()
    found: list[Presence] = []
    changes = one.bus.presence("alice")

    async def watch() -> None:
        async for change in changes:
            found.append(change)

    task = asyncio.ensure_future(watch())
    try:
        async with opened(two, session="phone") as client:
            await client.expect("caught_up")
            await until(lambda: [(c.session, c.online, c.node) for c in found] == [("phone", True, two.name)])
            async with opened(one, session="phone") as taken:  # taken over by the other node: no change
                await taken.expect("caught_up")
                async with opened(two, session="tab"):
                    await until(lambda: [(c.session, c.online) for c in found[1:]] == [("tab", True)])
            await until(lambda: len(found) == 4)
        assert {(c.session, c.online) for c in found[2:]} == {("tab", False), ("phone", False)}
        assert [session.session for session in await two.bus.online("alice")] == []
    finally:
        task.cancel()
        await asyncio.wait([task])
        await changes.aclose()
