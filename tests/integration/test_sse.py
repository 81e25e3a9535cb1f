"""docs/protocol.md, section 8: a session over Server-Sent Events, on real nodes and a real server."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx
import orjson
import pytest

from eventbus import Bus
from eventbus.clock import SystemClock
from eventbus.ids import ENTRY_ZERO, SessionId, UserId
from eventbus.testing import ManualClock
from gateway.node import Node
from tests.support.proxy import Proxy
from tests.support.sse_client import SseClient, sse
from tests.support.stalls import within
from tests.support.waiting import until
from tests.support.wire_client import Nodes, bearer, ids, opened, pass_time, publish, settled, texts, token_of

ALICE, TAB = UserId("alice"), SessionId("tab")


@asynccontextmanager
async def listening(node: Node, user: str = "alice", session: str = "tab", **more: Any) -> AsyncIterator[SseClient]:
    """A response that has caught up with nothing."""
    async with sse(node.port, token_of(user), query=f"?session={session}", **more) as client:
        await client.expect("welcome", session=session, node=node.name)
        await client.expect("caught_up")
        yield client


async def ack(node: Node, token: str | None = None, **fields: Any) -> httpx.Response:
    """Posts an `ack`."""
    headers = {"Authorization": bearer(token or token_of())}
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{node.port}", headers=headers) as client:
        return await client.post("/v1/acks", json={"op": "ack", **fields})


async def acked(node: Node, token: str | None = None, **fields: Any) -> int:
    """Posts an `ack` that is taken. Returns what it released."""
    response = await ack(node, token, **{"session": "tab", **fields})
    assert response.status_code == 200, response.text
    count: int = response.json()["count"]
    return count


async def pending(node: Node, session: str = "tab") -> list[str]:
    """The entries that wait for an ack."""
    return [record.id for record in await node.store.pending(ALICE, SessionId(session), ENTRY_ZERO, 1_000)]


def manual_clock() -> ManualClock:
    return ManualClock(SystemClock().now_ms())


# --- delivering -------------------------------------------------------------------------------------------------------


@pytest.mark.requirement("R6")
async def test_events_come_in_order_each_with_its_entry_id(nodes_on_each: Nodes) -> None:
    node = await nodes_on_each.start()
    before = await publish(node, "one", "two")
    async with sse(node.port, token_of(), query="?session=tab&start=earliest") as client:
        assert (client.status, client.headers["content-type"]) == (200, "text/event-stream")
        assert (client.headers["cache-control"], client.headers["x-accel-buffering"]) == (
            "no-store, no-transform",
            "no",
        )
        welcome = await client.expect("welcome", session="tab", resumed=False, protocol=1)
        assert welcome.retry_ms is not None
        stored = await client.deliveries(2)
        assert (await client.expect("caught_up")).data["cursor"] == before[-1]
        after = await publish(node, "three", "four\nfive")
        live = await client.deliveries(2)
    assert ids(stored + live) == before + after
    assert texts(stored + live) == ["one", "two", "three", "four\nfive"]
    assert client.last_event_id == after[-1]
    await settled(node)


async def test_without_a_session_in_the_url_the_node_makes_one_and_says_so(node: Node) -> None:
    async with sse(node.port, token_of(), query="") as client:
        made = (await client.expect("welcome")).data["session"]
        await client.expect("caught_up")
        await publish(node, "one")
        (event,) = await client.deliveries(1)
        assert await acked(node, session=made, ids=[event["id"]]) == 1


async def test_the_query_says_what_a_hello_says(node: Node) -> None:
    (first, second, *_) = await publish(node, "one", "two", "three")
    await publish(node, "four", type="other")
    query = f'?session=tab&cursor={first}&window=1&filter={{"types":["note"]}}'
    async with sse(node.port, token_of(), query=query) as client:
        await client.expect("welcome", window=1)
        assert ids(await client.deliveries(1)) == [second]
        await acked(node, upto=second)
        assert texts(await client.deliveries(1)) == ["three"]
        await acked(node, upto=client.last_event_id)
        await client.expect("caught_up")


@pytest.mark.requirement("R19")
async def test_a_token_stream_comes_as_it_is_written_and_its_event_at_the_end(nodes: Nodes) -> None:
    node = await nodes.start()
    async with Bus(nodes.url) as bus, listening(node) as client, bus.run(user="alice", agent="writer") as run:
        async with run.stream() as stream:
            await stream.write("Hello, ")
            first = await client.until_event("text")
            assert (first.data["text"], first.data["offset"], first.id) == ("Hello, ", 0, None)
            await stream.write("you")
        parts, whole = [first.data], None
        while whole is None or not parts[-1].get("final"):
            message = await client.next()
            if message.event == "text":
                parts.append(message.data)
            elif (event := message.data["events"][0]["event"])["type"] == "agent_text":
                whole = event["data"]["text"]
        assert "".join(part["text"] for part in parts) == whole == "Hello, you"


@pytest.mark.requirement("R24")
async def test_a_quiet_response_gets_comments(nodes: Nodes) -> None:
    node = await nodes.start(heartbeat_ms=1_000)
    async with listening(node) as client:
        await client.until_comments(2)


@pytest.mark.requirement("R24")
async def test_a_quiet_minute_and_a_half_does_not_cost_the_connection(nodes: Nodes) -> None:
    clock = manual_clock()
    node = await nodes.start(clock=clock)
    async with sse(node.port, token_of(ttl_ms=3_600_000)) as client:
        await client.until_event("caught_up")
        await pass_time(node, clock, 90_000, step_ms=4_000)
        await publish(node, "after a while")
        assert texts(await client.deliveries(1)) == ["after a while"]


# --- acks -------------------------------------------------------------------------------------------------------------


@pytest.mark.requirement("R1")
async def test_acks_on_any_node_release_and_make_room_in_the_window(nodes_on_each: Nodes) -> None:
    """D11: the ack that came to the other node is told to the one that has the session."""
    node, other = await nodes_on_each.start("n1"), await nodes_on_each.start("n2")
    async with sse(node.port, token_of(), query="?session=tab&window=2") as client:
        await client.until_event("caught_up")
        entries = await publish(node, *"abcdef")
        for number in range(0, 6, 2):
            assert ids(await client.deliveries(2)) == entries[number : number + 2]
            assert await pending(node) == entries[number : number + 2]
            assert await acked((node, other)[number % 4 // 2], ids=entries[number : number + 2]) == 2
        assert await pending(node) == []
    await settled(node)


async def test_an_ack_up_to_an_entry_releases_all_before_it_and_nothing_behind_it(node: Node) -> None:
    async with sse(node.port, token_of(), query="?session=tab&window=1024") as client:
        await client.until_event("caught_up")
        entries = await publish(node, *map(str, range(620)))
        await client.deliveries(620)
        assert await acked(node, upto=entries[600]) == 601
        assert await pending(node) == entries[601:]
        assert await acked(node, upto=entries[600]) == 0
        response = await ack(node, session="tab", upto=entries[-1], ref="r1")
        assert response.json() == {"count": 19, "ref": "r1"}


@pytest.mark.requirement("R11")
async def test_levels_are_recorded_and_the_publisher_hears_of_them(nodes: Nodes) -> None:
    node = await nodes.start()
    async with Bus(nodes.url) as bus, listening(node) as client:
        receipt = await bus.publish(user="alice", type="note", data={"text": "x"})
        waiting = asyncio.create_task(receipt.wait("confirmed", timeout_ms=10_000))
        await client.deliveries(1)
        assert await acked(node, ids=[receipt.entry], level="displayed") == 1
        assert await acked(node, ids=[receipt.entry], level="confirmed", note="paid") == 0
        (found,) = await waiting
        assert (found.session, found.level, found.note) == ("tab", "confirmed", "paid")
    assert node.counters.events_confirmed == {"displayed": 1, "confirmed": 1}
    assert node.counters.events_acked == 1


@pytest.mark.requirement("R14", "R29")
async def test_how_long_an_ack_took_is_counted_where_the_session_is(nodes: Nodes) -> None:
    node, other = await nodes.start("n1"), await nodes.start("n2")
    await publish(node, "before its client came")
    async with sse(node.port, token_of(), query="?session=tab&start=earliest") as client:
        (early,) = ids((await client.until_event("events")).data["events"])
        await client.until_event("caught_up")
        first, second, third = await publish(node, *"abc")
        await client.deliveries(3)
        await acked(node, ids=[early])
        await acked(node, ids=[first, second])
        await acked(other, ids=[third])
    assert sum(node.counters.ack_seconds.counts) == 2
    assert sum(other.counters.ack_seconds.counts) == 0


@pytest.mark.requirement("R1")
@pytest.mark.requirement("R6")
async def test_an_event_that_is_not_acked_comes_again_and_says_so(nodes: Nodes) -> None:
    node = await nodes.start(ack_timeout_ms=200)
    async with listening(node) as client:
        (entry,) = await publish(node, "one")
        assert [(await client.delivery())["delivery"] for _ in range(3)] == [1, 2, 3]
        assert await acked(node, ids=[entry]) == 1
    await settled(node)


@pytest.mark.requirement("R22")
async def test_the_entries_of_another_user_or_session_can_not_be_acked(node: Node) -> None:
    async with listening(node) as client, listening(node, session="desk"):
        (entry,) = await publish(node, "one")
        await client.deliveries(1)
        mallory = token_of("mallory")
        for level in ("received", "displayed", "confirmed"):
            assert await acked(node, mallory, ids=[entry], level=level) == 0
            assert await acked(node, mallory, upto=entry, level=level) == 0
            # Neither can one that never was, nor is there a difference to be seen.
            assert await acked(node, session="nobody", ids=[entry], level=level) == 0
        assert await acked(node, session="tab", ids=[entry]) == 1
        assert await pending(node, "desk") == [entry]
    assert sum(node.counters.events_confirmed.values()) == 0
    assert list(await node.store.sessions(UserId("mallory"))) == []


@pytest.mark.requirement("R22")
async def test_a_token_that_is_pinned_to_a_session_acks_and_opens_no_other(node: Node) -> None:
    pinned = token_of(session="tab")
    async with sse(node.port, pinned, query="") as client:
        await client.expect("welcome", session="tab")
        await client.expect("caught_up")
        await publish(node, "one")
        (event,) = await client.deliveries(1)
        response = await ack(node, pinned, session="desk", ids=[event["id"]])
        assert (response.status_code, response.json()["error"]["code"]) == (403, "forbidden")
        assert await acked(node, pinned, session="tab", ids=[event["id"]]) == 1
    async with sse(node.port, pinned, query="?session=desk") as client:
        assert (client.status, client.body["error"]["code"]) == (403, "forbidden")
    await settled(node)


@pytest.mark.requirement("R23")
async def test_bad_acks_are_refused_with_the_name_of_the_field(node: Node, http: httpx.AsyncClient) -> None:
    headers = {"Authorization": bearer(token_of())}
    for body, field in (
        (b"{", "frame"),
        (b'{"op":"nack","id":"1-0","session":"tab"}', "op"),
        (b'{"op":"ack","session":"tab","ids":["one"]}', "ids[0]"),
        (b'{"op":"ack","session":"tab"}', "ids"),
        (b'{"op":"ack","ids":["1-0"]}', "session"),
    ):
        response = await http.post("/v1/acks", content=body, headers=headers)
        assert (response.status_code, response.json()["error"]["field"]) == (400, field)
    huge = orjson.dumps({"op": "ack", "session": "tab", "ids": ["1-0"], "x": "x" * 70_000})
    assert (await http.post("/v1/acks", content=huge, headers=headers)).status_code == 413
    assert (await http.post("/v1/acks", content=b'{"op":"ack"}')).status_code == 401
    publisher = {"Authorization": bearer(token_of(scopes=("publish",)))}
    assert (await http.post("/v1/acks", content=b'{"op":"ack"}', headers=publisher)).status_code == 403
    assert (await http.get("/v1/acks", headers=headers)).status_code == 405


@pytest.mark.requirement("R23")
async def test_acks_above_the_rate_of_the_tier_get_a_429(nodes: Nodes) -> None:
    node = await nodes.start(clock=manual_clock())
    headers = {"Authorization": bearer(token_of())}
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{node.port}", headers=headers) as client:
        answers = [await client.post("/v1/acks", json={"op": "ack", "session": "tab", "ids": []}) for _ in range(201)]
    assert {answer.status_code for answer in answers[:200]} == {200}
    assert (answers[200].status_code, answers[200].headers["retry-after"]) == (429, "1")


# --- coming back ------------------------------------------------------------------------------------------------------


@pytest.mark.requirement("R7")
async def test_who_comes_back_goes_on_where_the_session_stood_on_any_node(nodes_on_each: Nodes) -> None:
    node, other = await nodes_on_each.start("n1"), await nodes_on_each.start("n2")
    async with listening(node) as client:
        first, second = await publish(node, "one", "two")
        await client.deliveries(2)
        await acked(node, ids=[first])
    await settled(node)
    (third,) = await publish(node, "three")
    async with sse(other.port, token_of(), last_event_id=str(client.last_event_id)) as client:
        await client.expect("welcome", resumed=True, pending=1)
        again, new = await client.deliveries(2)
        assert (again["id"], again["delivery"] > 1) == (second, True)
        assert (new["id"], new["delivery"]) == (third, 1)


@pytest.mark.requirement("R7")
async def test_the_last_event_id_is_where_a_session_that_is_not_known_any_more_goes_on(node: Node) -> None:
    async with listening(node) as client:
        await publish(node, "one", "two")
        (await client.delivery())
        last = client.last_event_id
    await settled(node)
    await node.store.end_session(ALICE, TAB)
    async with sse(node.port, token_of(), query="?session=tab&start=new", last_event_id=str(last)) as client:
        await client.expect("welcome", resumed=False)
        assert texts(await client.deliveries(1)) == ["two"]
        await client.expect("caught_up")


@pytest.mark.requirement("R7")
async def test_a_last_event_id_that_the_store_never_had_is_a_gap(node: Node) -> None:
    await publish(node, "one")
    async with sse(node.port, token_of(), last_event_id="99999999999999-0") as client:
        await client.expect("welcome")
        assert (await client.next()).event == "gap"


@pytest.mark.requirement("R10")
async def test_a_client_that_hangs_up_leaves_nothing_behind(node: Node) -> None:
    async with listening(node) as client:
        (entry,) = await publish(node, "one")
        await client.deliveries(1)
        assert node.connections == 1
    await settled(node)
    (record,) = await node.store.sessions(ALICE)
    assert record.live is None
    assert await pending(node) == [entry]


# --- the end ----------------------------------------------------------------------------------------------------------


@pytest.mark.requirement("R25")
async def test_a_takeover_by_another_connection_ends_it_and_the_browser_stays_away(node: Node) -> None:
    async with listening(node) as client, opened(node, session="tab"):
        last = await client.until_closed()
        assert (last.data["code"], last.id) == (4504, "close-4504")
        async with sse(node.port, token_of(), last_event_id=str(client.last_event_id)) as again:
            assert again.status == 204
        # Nobody was disturbed by that.
        assert len(node.hub) == 1
    await settled(node)


async def test_it_takes_a_session_over_from_a_socket(node: Node) -> None:
    async with opened(node, session="tab") as other, sse(node.port, token_of()) as client:
        assert (await other.until_closed()).code == 4504
        await client.expect("welcome", resumed=True)


@pytest.mark.requirement("R10")
async def test_a_drain_says_when_to_come_back_and_closes(nodes: Nodes) -> None:
    node, other = await nodes.start("n1"), await nodes.start("n2")
    # A socket that does not answer its close keeps the listener answering.
    async with listening(node) as client, opened(node, "bob"):
        (entry,) = await publish(node, "one")
        await client.deliveries(1)
        draining = asyncio.create_task(node.drain())
        away = await client.expect("goaway", reason="draining")
        assert away.retry_ms == away.data["reconnect_after_ms"]
        async with sse(node.port, token_of()) as late:
            assert (late.status, late.body["error"]["code"]) == (503, "draining")
            assert "retry-after" in late.headers
        async with sse(node.port, token_of(), sec_fetch_mode="cors") as browser:
            assert browser.status == 200
            last = await browser.until_closed()
            assert (last.data["code"], last.retry_ms) == (4001, 2_000)
        assert await acked(other, ids=[entry]) == 1
        last = await client.until_closed()
        assert (last.data["code"], last.id) == (4001, None)
    await draining


@pytest.mark.requirement("R23")
async def test_a_token_that_expires_ends_the_response_with_4004_within_two_seconds(nodes: Nodes) -> None:
    clock = manual_clock()
    node = await nodes.start(clock=clock)
    async with sse(node.port, token_of(ttl_ms=10_000)) as client:
        ends_ms = (await client.expect("welcome")).data["token_expires_ms"]
        await client.until_event("caught_up")
        await pass_time(node, clock, ends_ms - clock.now_ms() - 1)
        await publish(node, "still here")
        assert texts(await client.deliveries(1)) == ["still here"]
        await pass_time(node, clock, 2_000)
        assert (await client.until_closed()).data["code"] == 4004
    await settled(node)


async def test_a_node_that_ends_at_once_does_not_wait_for_its_responses(nodes: Nodes) -> None:
    node = await nodes.start()
    async with listening(node) as client:
        async with within(2.5):
            await node.aclose()
        await client.gone()


# --- who gets one -----------------------------------------------------------------------------------------------------


@pytest.mark.requirement("R23")
async def test_who_may_not_have_one_is_told_by_the_status(nodes: Nodes) -> None:
    node = await nodes.start(allowed_origins="https://app.example")
    async with sse(node.port) as client:
        assert (client.status, client.body["error"]["code"]) == (401, "no_token")
    async with sse(node.port, "x.y.z") as client:
        assert client.status == 401
        assert client.headers["www-authenticate"] == "Bearer"
    async with sse(node.port, token_of(scopes=("publish",))) as client:
        assert client.status == 403
    async with sse(node.port, token_of(), origin="https://evil.example") as client:
        assert (client.status, client.body["error"]["code"]) == (403, "forbidden_origin")
    async with sse(node.port, token_of(), query="?session=a%20b") as client:
        assert (client.status, client.body["error"]["field"]) == (400, "session")
    async with sse(node.port, token_of(), method="HEAD") as client:
        assert client.status == 405
    async with sse(node.port, token_of(), origin="https://app.example") as client:
        assert client.headers["access-control-allow-origin"] == "https://app.example"
        await client.expect("welcome")
    await settled(node)


@pytest.mark.requirement("R23")
async def test_a_ticket_opens_one_response_and_no_second(node: Node, http: httpx.AsyncClient) -> None:
    made = (await http.post("/v1/tickets", headers={"Authorization": bearer(token_of())})).json()
    async with sse(node.port, query=f"?session=tab&ticket={made['ticket']}") as client:
        await client.expect("welcome")
    async with sse(node.port, query=f"?session=tab&ticket={made['ticket']}") as client:
        assert (client.status, client.body["error"]["code"]) == (401, "bad_ticket")


@pytest.mark.requirement("R23")
async def test_one_session_more_than_the_tier_allows_is_refused(nodes: Nodes) -> None:
    node = await nodes.start()
    async with opened(node, session="s0"):
        others = [opened(node, session=f"s{number}") for number in range(1, 10)]
        for other in others:
            await other.__aenter__()
        try:
            async with sse(node.port, token_of()) as client:
                assert (client.status, client.body["error"]["code"]) == (429, "too_many_sessions")
                assert int(client.headers["retry-after"]) >= 1
            async with sse(node.port, token_of(), sec_fetch_mode="cors") as browser:
                last = await browser.until_closed()
                assert (last.data, last.id) == ({"code": 4006, "reason": "too_many_sessions"}, None)
        finally:
            for other in others:
                await other.__aexit__(None, None, None)
    await settled(node)


@pytest.mark.requirement("R23")
async def test_connections_of_an_address_are_limited_with_those_of_sockets(nodes: Nodes) -> None:
    node = await nodes.start(connections_per_address=2)
    async with (
        opened(node, session="a"),
        listening(node, session="b"),
        sse(node.port, token_of(), query="?session=c") as refused,
    ):
        assert (refused.status, refused.body["error"]["code"]) == (429, "rate_limited")
    await settled(node)
    for _ in range(3):
        async with sse(node.port) as nobody:
            assert nobody.status == 401
    async with listening(node, session="c"):
        pass


# --- slow clients -----------------------------------------------------------------------------------------------------


@pytest.mark.requirement("R9")
async def test_a_client_that_owes_nothing_and_does_not_read_is_closed_with_4002(nodes: Nodes) -> None:
    node = await nodes.start(slow_consumer_ms=200, slow_consumer_bytes=16_384)
    async with listening(node, deaf=True) as client:
        session = next(iter(node.hub))
        entries: list[str] = []

        def all_in_flight() -> bool:
            return session.delivery.in_flight == len(entries)

        while session.connection.writable:
            entries += await publish(node, "x" * 200_000)
            await until(all_in_flight)
        assert await acked(node, ids=entries) == len(entries)
        await until(lambda: len(node.hub) == 0)
        await client.gone()
    await settled(node)
    assert node.counters.connections_closed[4002] == 1


@pytest.mark.requirement("R9")
async def test_a_stuck_client_costs_bounded_memory_is_sent_no_copies_and_delays_nobody(nodes: Nodes) -> None:
    clock = manual_clock()
    node = await nodes.start(clock=clock, ack_timeout_ms=50, max_wait_ms=100)
    async with listening(node, deaf=True), listening(node, "bob") as other:
        for _ in range(150):
            await publish(node, "x" * 200_000)
        (session,) = [session for session in node.hub if session.user == "alice"]
        await until(lambda: not session.connection.writable)
        await pass_time(node, clock, 5_000)  # many ack time-outs
        (entry,) = await publish(node, "hello", user="bob")
        assert ids(await other.deliveries(1)) == [entry]
        assert session.delivery.held_bytes <= 8 * 1024 * 1024 + 1_000_000
        assert session.connection.buffered_bytes <= 16 * 1024 * 1024
        assert node.counters.events_redelivered == 0
        assert not node.counters.events_dead_lettered


@pytest.mark.requirement("R9")
async def test_a_client_that_reads_again_gets_all_that_waited(nodes: Nodes) -> None:
    node = await nodes.start()
    async with listening(node, deaf=True) as client:
        entries = await publish(node, *(["x" * 200_000] * 8))
        session = next(iter(node.hub))
        await until(lambda: not session.connection.writable)
        assert ids(await client.deliveries(8)) == entries
        await until(lambda: session.connection.buffered_bytes == 0)


@pytest.mark.requirement("R25")
async def test_a_peer_that_acknowledges_nothing_is_dropped_by_the_kernel_after_the_time_of_a_socket(
    nodes: Nodes,
) -> None:
    """In place of pongs, which there are none of: 2.5 heartbeats, and the tier's connection timeout at the least."""
    node = await nodes.start()
    for tier, silence_ms in (("free", 50_000), ("enterprise", 180_000)):
        async with sse(node.port, token_of(tier=tier)) as client:
            await client.expect("welcome")
            assert node.listener is not None
            (carrier,) = node.listener.state.connections
            below = carrier.transport.get_extra_info("socket")
            assert below.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == silence_ms
        await settled(node)


# --- while the store is away ------------------------------------------------------------------------------------------


@pytest.mark.requirement("R25")
async def test_while_the_store_is_away_a_response_stays_and_new_ones_and_acks_get_a_503(nodes: Nodes) -> None:
    quick: dict[str, Any] = {
        "ready_probe_ms": 50,
        "redis_timeout_ms": 300,
        "session_heartbeat_ms": 100,
        "store_wait_ms": 300,
    }
    beside = await nodes.start("beside")
    async with Proxy(urlsplit(nodes.url).port or 0) as proxy:
        node = await nodes.start("n1", url=proxy.redis_url, heartbeat_ms=200, **quick)
        async with listening(node) as client:
            (entry,) = await publish(beside, "one")
            await client.deliveries(1)
            proxy.refuse()
            proxy.cut()
            await client.until_comments(client.comments + 2)
            response = await ack(node, session="tab", ids=[entry])
            assert (response.status_code, response.headers["retry-after"]) == (503, "1")
            async with sse(node.port, token_of(), query="?session=desk") as late:
                assert (late.status, late.body["error"]["code"]) == (503, "store_unavailable")
            async with sse(node.port, token_of(), query="?session=desk", sec_fetch_mode="cors") as browser:
                assert (await browser.until_closed()).data["code"] == 4005
            await publish(beside, "two")
            proxy.heal()
            assert texts(await client.deliveries(1)) == ["two"]
            assert await acked(node, ids=[entry]) == 1
        await settled(node)
        await node.aclose()
