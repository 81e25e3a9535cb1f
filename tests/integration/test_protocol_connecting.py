"""docs/protocol.md, section 1, and what section 7 adds to it: getting a socket, and opening a session on it."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

import httpx
import orjson
import pytest
from joserfc import jwt
from joserfc.jwk import OctKey

from eventbus.clock import SystemClock
from eventbus.testing import ManualClock
from gateway.node import Node
from tests.support.raw_websocket import TEXT, connected, upgrade_head
from tests.support.waiting import until
from tests.support.wire_client import (
    JSON,
    MSGPACK,
    SECRET,
    Nodes,
    WireClient,
    bearer,
    publish,
    refused,
    settled,
    texts,
    token_of,
    wired,
)

WELCOME_FIELDS = (
    *("op", "protocol", "node", "connection", "session", "resumed", "cursor", "pending", "window"),
    *("heartbeat_ms", "ack_timeout_ms", "max_frame_bytes", "token_expires_ms", "epoch"),
)


def subprotocol_of(token: str) -> str:
    return "base64url.bearer.eventbus." + base64.urlsafe_b64encode(token.encode()).rstrip(b"=").decode()


def signed(claims: dict[str, Any], *, alg: str = "HS256", secret: str = SECRET) -> str:
    return jwt.encode({"alg": alg}, claims, OctKey.import_key(secret.encode()), algorithms=[alg])


async def ticket_of(http: httpx.AsyncClient, user: str = "alice", **claims: Any) -> str:
    made = await http.post("/v1/tickets", headers={"Authorization": bearer(token_of(user, **claims))})
    assert made.status_code == 200, made.text
    ticket: str = made.json()["ticket"]
    return ticket


# --- subprotocols ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("subprotocol", [JSON, MSGPACK])
async def test_both_subprotocols_carry_the_same_objects(node: Node, subprotocol: str) -> None:
    await publish(node, "first")
    async with wired(node, token_of(), subprotocol=subprotocol) as client:
        welcome = await client.hello(session="tab", start="earliest")
        (event,) = await client.events(1)
        await client.expect("caught_up", cursor=event["id"])
        client.send("ack", ids=[event["id"]], ref=7)
        await client.expect("acked", ref=7, count=1)
    assert tuple(welcome) == WELCOME_FIELDS
    assert list(event) == ["id", "delivery", "event"]
    assert event["event"]["data"] == {"text": "first"}


async def test_json_is_written_without_blanks_and_with_the_op_first(node: Node) -> None:
    await publish(node, "first")
    async with connected(node.port) as raw:
        await raw.upgrade(authorization=bearer(token_of()))
        raw.frame(TEXT, b'{"op":"hello","start":"earliest"}')
        payloads = [(await raw.read_frame())[1] for _ in range(3)]
    for payload in payloads:
        assert payload == json.dumps(orjson.loads(payload), separators=(",", ":"), ensure_ascii=False).encode()
        assert payload.startswith(b'{"op":"')


async def test_without_a_subprotocol_frames_are_json_and_none_is_echoed(node: Node) -> None:
    async with connected(node.port) as raw:
        head = await raw.upgrade(authorization=bearer(token_of()), sec_websocket_protocol=None)
        assert "sec-websocket-protocol" not in head.lower()
        await WireClient(raw).hello()


async def test_the_first_subprotocol_that_the_node_speaks_is_taken(node: Node) -> None:
    async with connected(node.port) as raw:
        head = await raw.upgrade(sec_websocket_protocol=f"mqtt, {MSGPACK}, {JSON}")
    assert f"sec-websocket-protocol: {MSGPACK}" in head.lower()


@pytest.mark.parametrize("offered", ["mqtt", "mqtt, wamp", "eventbus.v2.json"])
async def test_only_unknown_subprotocols_are_a_400(node: Node, offered: str) -> None:
    status, _, error = await refused(node, sec_websocket_protocol=offered, authorization=bearer(token_of()))
    assert (status, error["code"]) == (400, "unknown_subprotocol")


async def test_offering_only_the_bearer_subprotocol_is_a_400(node: Node) -> None:
    status, _, error = await refused(node, sec_websocket_protocol=subprotocol_of(token_of()))
    assert (status, error["code"]) == (400, "unknown_subprotocol")


# --- the four ways of the token -------------------------------------------------------------------------------------


@pytest.mark.requirement("R23")
async def test_the_token_may_come_in_the_authorization_header(node: Node) -> None:
    async with wired(node, token_of("ann")) as client:
        await client.hello()
        assert [session.user for session in node.hub] == ["ann"]


@pytest.mark.requirement("R23")
async def test_the_token_may_come_as_a_subprotocol_and_is_never_echoed(node: Node) -> None:
    offered = f"{JSON}, {subprotocol_of(token_of('ann'))}"
    async with connected(node.port) as raw:
        head = await raw.upgrade(sec_websocket_protocol=offered)
        assert f"sec-websocket-protocol: {JSON}\r\n" in head.lower()
        assert "bearer" not in head
        await WireClient(raw).hello()
        assert [session.user for session in node.hub] == ["ann"]


@pytest.mark.requirement("R23")
async def test_the_token_may_be_a_ticket_in_the_query(node: Node, http: httpx.AsyncClient) -> None:
    ticket = await ticket_of(http, "ann")
    async with wired(node, query=f"?ticket={ticket}") as client:
        await client.hello()
        assert [session.user for session in node.hub] == ["ann"]


@pytest.mark.requirement("R23")
async def test_the_token_may_come_in_hello(node: Node) -> None:
    async with wired(node) as client:
        await client.hello(token=token_of("ann"))
        assert [session.user for session in node.hub] == ["ann"]


@pytest.mark.requirement("R23")
async def test_the_first_way_found_counts_also_against_a_later_one(node: Node, http: httpx.AsyncClient) -> None:
    """Header, then subprotocol, then ticket, then hello."""
    tickets = [await ticket_of(http, "ticket-user") for _ in range(3)]
    by_name = f"{JSON}, {subprotocol_of(token_of('name-user'))}"
    ways: list[tuple[str, dict[str, Any]]] = [
        ("header-user", {"token": token_of("header-user"), "query": f"?ticket={tickets[0]}", "subprotocol": by_name}),
        ("name-user", {"query": f"?ticket={tickets[1]}", "subprotocol": by_name}),
        ("ticket-user", {"query": f"?ticket={tickets[2]}"}),
    ]
    for user, way in ways:
        async with wired(node, **way) as client:
            client.send("hello", token=token_of("hello-user"))
            await client.expect("welcome")
            assert [session.user for session in node.hub] == [user]
        await settled(node)


@pytest.mark.requirement("R23")
async def test_a_bad_token_is_not_made_good_by_a_later_way(node: Node, http: httpx.AsyncClient) -> None:
    ticket = await ticket_of(http)
    status, _, error = await refused(node, f"/v1/connect?ticket={ticket}", authorization="Bearer nonsense")
    assert (status, error["code"]) == (401, "malformed")


def _without_signature(token: str) -> str:
    header = base64.urlsafe_b64encode(b'{"alg":"none"}').rstrip(b"=").decode()
    return f"{header}.{token.split('.')[1]}."


BAD_TOKENS: dict[str, tuple[str, str]] = {
    "expired": (signed({"sub": "alice", "exp": 1_000_000}), "token_expired"),
    "another key": (signed({"sub": "alice", "exp": 4_000_000_000}, secret="x" * 40), "bad_signature"),
    "alg none": (_without_signature(token_of()), "bad_algorithm"),
    "another algorithm": (signed({"sub": "alice", "exp": 4_000_000_000}, alg="HS384"), "bad_algorithm"),
    "no exp": (signed({"sub": "alice"}), "bad_claim"),
    "no sub": (signed({"exp": 4_000_000_000}), "bad_claim"),
    "a run as user": (signed({"sub": "run_1", "exp": 4_000_000_000}), "bad_claim"),
    "an unknown tier": (signed({"sub": "alice", "exp": 4_000_000_000, "tier": "gold"}), "bad_claim"),
    "a bad session": (signed({"sub": "alice", "exp": 4_000_000_000, "sid": "a b"}), "bad_claim"),
    "no token at all": ("nonsense", "malformed"),
}


@pytest.mark.requirement("R23")
@pytest.mark.parametrize("name", BAD_TOKENS)
async def test_a_bad_token_is_a_401_with_a_json_body_in_header_and_subprotocol(node: Node, name: str) -> None:
    token, code = BAD_TOKENS[name]
    ways: list[dict[str, str | None]] = [
        {"authorization": bearer(token)},
        {"sec_websocket_protocol": f"{JSON}, {subprotocol_of(token)}"},
    ]
    for way in ways:
        status, head, error = await refused(node, "/v1/connect", **way)
        assert (status, error["code"]) == (401, code)
        assert "content-type: application/json" in head
        assert "www-authenticate: bearer" in head
        assert set(error) == {"code", "message"}
        assert token not in error["message"]


@pytest.mark.requirement("R23")
@pytest.mark.parametrize("name", BAD_TOKENS)
async def test_a_bad_token_in_hello_is_an_error_and_close_4501(node: Node, name: str) -> None:
    token, _ = BAD_TOKENS[name]
    async with wired(node) as client:
        client.send("hello", token=token)
        await client.expect("error", code="unauthenticated")
        assert (await client.until_closed()).code == 4501


async def test_no_token_anywhere_is_close_4501(node: Node) -> None:
    async with wired(node) as client:
        client.send("hello")
        await client.expect("error", code="unauthenticated")
        assert (await client.until_closed()).code == 4501


@pytest.mark.requirement("R23")
async def test_two_authorization_headers_are_a_401(node: Node) -> None:
    async with connected(node.port) as raw:
        head = upgrade_head(method="GET", authorization=bearer(token_of("ann")))
        raw.write(head.replace(b"\r\n\r\n", b"\r\nAuthorization: " + bearer(token_of("bob")).encode() + b"\r\n\r\n"))
        status, _, body = await raw.response()
    assert status == 401, body


@pytest.mark.requirement("R23")
async def test_a_token_without_the_scope_is_a_403_and_in_hello_close_4502(node: Node) -> None:
    token = token_of(scopes=("publish",))
    status, _, error = await refused(node, authorization=bearer(token))
    assert (status, error["code"]) == (403, "forbidden")
    async with wired(node) as client:
        client.send("hello", token=token)
        await client.expect("error", code="forbidden")
        assert (await client.until_closed()).code == 4502


# --- claims ---------------------------------------------------------------------------------------------------------


@pytest.mark.requirement("R21")
@pytest.mark.requirement("R22")
async def test_sub_alone_routes_whatever_else_a_client_says(node: Node) -> None:
    async with wired(node, token_of("ann")) as client:
        await client.hello(user="bob", sub="bob", session="bob")
        await publish(node, "for bob", user="bob")
        await publish(node, "for ann", user="ann")
        await client.expect("caught_up")
        assert texts(await client.events(1)) == ["for ann"]
        await client.nothing_more()


async def test_sid_pins_the_session(node: Node) -> None:
    token = token_of(session="pinned")
    async with wired(node, token) as client:
        assert (await client.hello())["session"] == "pinned"
    async with wired(node, token) as client:
        assert (await client.hello(session="pinned"))["session"] == "pinned"
    async with wired(node, token) as client:
        client.send("hello", session="another")
        await client.expect("error", code="forbidden")
        assert (await client.until_closed()).code == 4502


async def test_a_session_pinned_by_a_ticket_stays_pinned(node: Node, http: httpx.AsyncClient) -> None:
    ticket = await ticket_of(http, session="pinned")
    async with wired(node, query=f"?ticket={ticket}") as client:
        assert (await client.hello())["session"] == "pinned"


# --- tickets --------------------------------------------------------------------------------------------------------


@pytest.mark.requirement("R23")
async def test_a_ticket_is_good_once(node: Node, http: httpx.AsyncClient) -> None:
    ticket = await ticket_of(http)
    async with wired(node, query=f"?ticket={ticket}") as client:
        await client.hello()
    status, _, error = await refused(node, f"/v1/connect?ticket={ticket}")
    assert (status, error["code"]) == (401, "bad_ticket")


@pytest.mark.requirement("R23")
async def test_of_ten_uses_of_a_ticket_at_once_one_succeeds(node: Node, http: httpx.AsyncClient) -> None:
    ticket = await ticket_of(http)

    async def use() -> str:
        async with connected(node.port) as raw:
            raw.write(upgrade_head(f"/v1/connect?ticket={ticket}", method="GET"))
            return (await raw.head()).split(" ")[1]

    statuses = sorted(await asyncio.gather(*(use() for _ in range(10))))
    assert statuses == ["101"] + ["401"] * 9


@pytest.mark.requirement("R23")
@pytest.mark.parametrize("ticket", ["", "short", "a" * 32, "%00" * 20, "a" * 500])
async def test_a_ticket_that_was_never_made_is_a_401(node: Node, ticket: str) -> None:
    status, _, _ = await refused(node, f"/v1/connect?ticket={ticket}")
    assert status == 401


# --- origins --------------------------------------------------------------------------------------------------------


@pytest.mark.requirement("R23")
async def test_without_a_list_only_the_page_of_the_same_host_may_connect(node: Node) -> None:
    token = bearer(token_of())
    async with connected(node.port) as raw:
        await raw.upgrade(authorization=token, host="app.example:8080", origin="https://app.example:8080")
    for origin in ("https://evil.example", "https://app.example", "null", "https://app.example:8080.evil.example", ""):
        status, _, error = await refused(node, authorization=token, host="app.example:8080", origin=origin)
        assert (status, error["code"]) == (403, "forbidden_origin"), origin


@pytest.mark.requirement("R23")
async def test_with_a_list_exactly_its_origins_may_connect(nodes: Nodes) -> None:
    node = await nodes.start(allowed_origins="https://app.example,https://b.example:8443")
    token = bearer(token_of())
    for origin in ("https://app.example", "https://app.example:443", "https://b.example:8443"):
        async with connected(node.port) as raw:
            await raw.upgrade(authorization=token, origin=origin)
    for origin in ("http://app.example", "https://b.example", "https://x.app.example", "http://localhost"):
        status, _, _ = await refused(node, authorization=token, host="localhost", origin=origin)
        assert status == 403, origin


# --- hello and welcome ----------------------------------------------------------------------------------------------


async def test_welcome_tells_all_that_the_page_says_in_its_order(nodes: Nodes) -> None:
    node = await nodes.start("gate-7", heartbeat_ms=21_000, ack_timeout_ms=31_000, max_frame_bytes=70_000)
    token = token_of()
    async with wired(node, token) as client:
        welcome = await client.hello(session="tab")
        await client.expect("caught_up")
    assert tuple(welcome) == WELCOME_FIELDS
    assert welcome | {"connection": "", "epoch": "", "token_expires_ms": 0} == {
        "op": "welcome",
        "protocol": 1,
        "node": "gate-7",
        "connection": "",
        "session": "tab",
        "resumed": False,
        "cursor": "0-0",
        "pending": 0,
        "window": 256,
        "heartbeat_ms": 21_000,
        "ack_timeout_ms": 31_000,
        "max_frame_bytes": 70_000,
        "token_expires_ms": 0,
        "epoch": "",
    }
    assert welcome["connection"]
    assert welcome["epoch"]
    claims = orjson.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))
    assert welcome["token_expires_ms"] == claims["exp"] * 1000


async def test_a_client_that_names_no_session_gets_one_of_its_own(node: Node) -> None:
    names = []
    for _ in range(2):
        async with wired(node, token_of()) as client:
            names.append((await client.hello())["session"])
    assert len(set(names)) == 2


async def test_the_window_is_what_the_client_asks_for_up_to_the_nodes_most(nodes: Nodes) -> None:
    node = await nodes.start(window_default=20, window_max=50)
    for asked, given in ((None, 20), (7, 7), (50, 50), (1024, 50)):
        async with wired(node, token_of()) as client:
            fields = {} if asked is None else {"window": asked}
            assert (await client.hello(**fields))["window"] == given


@pytest.mark.requirement("R25")
async def test_a_client_that_says_no_hello_is_closed_with_4503(nodes: Nodes) -> None:
    node = await nodes.start(hello_timeout_ms=50)
    async with wired(node, token_of()) as client:
        assert (await client.until_closed()).code == 4503
    await settled(node)


@pytest.mark.requirement("R25")
async def test_pings_of_the_socket_are_no_hello(nodes: Nodes) -> None:
    node = await nodes.start(hello_timeout_ms=50)
    async with wired(node, token_of()) as client:
        client.raw.frame(9, b"here")
        assert (await client.until_closed()).code == 4503


async def test_a_first_frame_that_is_no_hello_is_an_error_and_close_4500(node: Node) -> None:
    for frame in ({"op": "ping"}, {"op": "ack", "ids": []}, {"op": "dance"}):
        async with wired(node, token_of()) as client:
            client.send_object(frame)
            await client.expect("error")
            assert (await client.until_closed()).code == 4500


async def test_a_second_hello_is_an_error_and_no_close(node: Node) -> None:
    async with wired(node, token_of()) as client:
        await client.hello(session="tab")
        await client.expect("caught_up")
        client.send("hello", session="tab")
        await client.expect("error", code="unexpected_hello")
        await client.nothing_more()


async def test_frames_sent_behind_hello_without_waiting_are_answered_after_the_welcome(node: Node) -> None:
    async with wired(node, token_of()) as client:
        client.send("hello", session="tab")
        client.send("ping", ref="early")
        await client.expect("welcome")
        await client.until_op("pong")


# --- sessions -------------------------------------------------------------------------------------------------------


async def test_a_new_session_starts_at_what_is_published_from_now_on(node: Node) -> None:
    await publish(node, "before")
    async with wired(node, token_of()) as client:
        await client.hello(session="tab")
        await client.expect("caught_up")
        await publish(node, "after")
        assert texts(await client.events(1)) == ["after"]


async def test_start_earliest_gives_all_that_is_retained(node: Node) -> None:
    await publish(node, "one", "two")
    async with wired(node, token_of()) as client:
        await client.hello(session="tab", start="earliest")
        assert texts(await client.events(2)) == ["one", "two"]


@pytest.mark.requirement("R7")
@pytest.mark.parametrize("fields", [{"start": "cursor"}, {}])
async def test_a_cursor_starts_after_it_with_and_without_the_word(node: Node, fields: dict[str, str]) -> None:
    first, _, _ = await publish(node, "one", "two", "three")
    async with wired(node, token_of()) as client:
        await client.hello(session="tab", cursor=first, **fields)
        assert texts(await client.events(2)) == ["two", "three"]


async def test_start_cursor_without_a_cursor_is_a_bad_frame(node: Node) -> None:
    async with wired(node, token_of()) as client:
        client.send("hello", start="cursor")
        error = await client.expect("error", code="bad_frame")
        assert "cursor" in error["message"]
        assert (await client.until_closed()).code == 4500


@pytest.mark.requirement("R7")
async def test_for_a_session_that_exists_start_and_cursor_are_ignored(node: Node) -> None:
    first, *_ = await publish(node, "one", "two", "three")
    async with wired(node, token_of()) as client:
        await client.hello(session="tab", cursor=first)
        events = await client.events(2)
        client.send("ack", ids=[event["id"] for event in events], ref=1)
        await client.until_op("acked")
    async with wired(node, token_of()) as client:
        welcome = await client.hello(session="tab", start="earliest")
        assert welcome["resumed"] is True
        assert welcome["cursor"] == events[-1]["id"]
        await client.expect("caught_up")
        await client.nothing_more()


# --- load and limits ------------------------------------------------------------------------------------------------


@pytest.mark.requirement("R23")
async def test_more_handshakes_a_second_than_an_address_may_are_a_429_with_retry_after(nodes: Nodes) -> None:
    node = await nodes.start(handshakes_per_address=3, clock=ManualClock(SystemClock().now_ms()))
    for _ in range(3):
        async with wired(node, token_of()):
            pass
    status, head, error = await refused(node, authorization=bearer(token_of()))
    assert (status, error["code"]) == (429, "rate_limited")
    assert "retry-after: 1" in head


@pytest.mark.requirement("R23")
async def test_more_connections_than_an_address_may_have_are_a_429_until_one_has_gone(nodes: Nodes) -> None:
    node = await nodes.start(connections_per_address=2)
    async with wired(node, token_of()), wired(node, token_of()):
        status, head, error = await refused(node, authorization=bearer(token_of()))
        assert (status, error["code"]) == (429, "rate_limited")
        assert "retry-after: 5" in head
    await settled(node)
    async with wired(node, token_of()) as client:
        await client.hello()


@pytest.mark.requirement("R23")
async def test_a_node_with_as_many_connections_as_it_takes_answers_503(nodes: Nodes) -> None:
    node = await nodes.start(max_connections=1)
    async with wired(node, token_of()):
        status, head, error = await refused(node, authorization=bearer(token_of()))
        assert (status, error["code"]) == (503, "overloaded")
        assert "retry-after: " in head


@pytest.mark.requirement("R23")
async def test_a_browser_that_is_refused_for_load_is_let_in_and_closed_for_it_can_not_read_a_status(
    nodes: Nodes,
) -> None:
    node = await nodes.start(handshakes_per_address=1, clock=ManualClock(SystemClock().now_ms()))
    async with wired(node, token_of()):
        pass
    async with wired(node, token_of(), host="localhost", origin="http://localhost") as client:
        assert (await client.until_closed()).code == 4006
    await until(lambda: node.connections == 0)


@pytest.mark.requirement("R23")
async def test_one_live_session_more_than_the_tier_allows_is_refused_and_one_that_goes_makes_room(
    nodes: Nodes, tmp_path: Any
) -> None:
    tiers = tmp_path / "tiers.json"
    tiers.write_text('{"free": {"live_sessions": 2}}')
    node = await nodes.start(tiers_file=tiers)
    async with wired(node, token_of()) as first, wired(node, token_of()) as second:
        await first.hello(session="one")
        await second.hello(session="two")
        async with wired(node, token_of()) as third:
            third.send("hello", session="three")
            await third.expect("error", code="too_many_sessions")
            assert (await third.until_closed()).code == 4006
        # The same session again is a takeover, and not one more.
        async with wired(node, token_of()) as again:
            await again.hello(session="two")
            assert (await second.until_closed()).code == 4504
    await settled(node)
    async with wired(node, token_of()) as third:
        await third.hello(session="three")
