"""docs/protocol.md, section 6: tickets, health, the client's file."""

from __future__ import annotations

import httpx
import pytest
import redis

from gateway.node import Node
from tests.support.waiting import until
from tests.support.wire_client import bearer, publish, texts, token_of, wired


@pytest.mark.requirement("R23")
async def test_a_ticket_lives_for_a_minute_or_as_long_as_its_token_where_that_is_less(
    node: Node, http: httpx.AsyncClient, server_url: str
) -> None:
    now_ms = node.clock.now_ms()
    long = (await http.post("/v1/tickets", headers={"Authorization": bearer(token_of())})).json()
    short = (await http.post("/v1/tickets", headers={"Authorization": bearer(token_of(ttl_ms=5_000))})).json()
    assert 59_000 <= long["expires_ms"] - now_ms <= 61_000
    assert 4_000 <= short["expires_ms"] - now_ms <= 6_500
    with redis.Redis.from_url(server_url) as server:
        for made, life_ms in ((long, 60_000), (short, 6_000)):
            (key,) = [key for key in server.scan_iter(match="eb:*") if made["ticket"].encode() in key]
            assert 0 < server.pttl(key) <= life_ms


@pytest.mark.requirement("R23")
async def test_a_ticket_that_is_too_old_is_a_401(node: Node, http: httpx.AsyncClient, server_url: str) -> None:
    ticket = (await http.post("/v1/tickets", headers={"Authorization": bearer(token_of())})).json()["ticket"]
    with redis.Redis.from_url(server_url) as server:
        (key,) = [key for key in server.scan_iter(match="eb:*") if ticket.encode() in key]
        server.pexpire(key, 1)
        await until(lambda: not server.exists(key))
    assert (await http.get(f"/v1/events?ticket={ticket}")).status_code == 401


async def test_tickets_are_not_guessable(http: httpx.AsyncClient) -> None:
    made = [
        (await http.post("/v1/tickets", headers={"Authorization": bearer(token_of())})).json()["ticket"]
        for _ in range(20)
    ]
    assert len(set(made)) == 20
    assert min(len(ticket) for ticket in made) >= 32


@pytest.mark.requirement("R22")
async def test_a_ticket_in_the_store_holds_no_token(node: Node, http: httpx.AsyncClient, server_url: str) -> None:
    token = token_of()
    ticket = (await http.post("/v1/tickets", headers={"Authorization": bearer(token)})).json()["ticket"]
    with redis.Redis.from_url(server_url) as server:
        (key,) = [key for key in server.scan_iter(match="eb:*") if ticket.encode() in key]
        value = server.get(key)
    assert isinstance(value, bytes)
    assert token.encode() not in value
    assert token.split(".")[2].encode() not in value


@pytest.mark.requirement("R7")
async def test_the_cursor_of_a_ticket_is_the_tail_and_good_to_start_from(node: Node, http: httpx.AsyncClient) -> None:
    await publish(node, "before the page")
    (last,) = await publish(node, "also before")
    made = (await http.post("/v1/tickets", headers={"Authorization": bearer(token_of())})).json()
    assert made["cursor"] == last
    await publish(node, "while it loads")
    async with wired(node, query=f"?ticket={made['ticket']}") as client:
        await client.hello(session="tab", cursor=made["cursor"])
        assert texts(await client.events(1)) == ["while it loads"]
        await client.expect("caught_up")


async def test_tickets_need_the_scope_subscribe(http: httpx.AsyncClient) -> None:
    token = bearer(token_of(scopes=("publish",)))
    assert (await http.post("/v1/tickets", headers={"Authorization": token})).status_code == 403


async def test_a_node_is_alive_and_ready(http: httpx.AsyncClient) -> None:
    assert (await http.get("/healthz")).status_code == 200
    assert (await http.get("/readyz")).status_code == 200
    assert (await http.head("/readyz")).status_code == 200


async def test_health_needs_no_token_and_tells_nothing_but_that(http: httpx.AsyncClient) -> None:
    assert (await http.get("/healthz")).json() == {"status": "alive"}
    assert (await http.get("/readyz")).json() == {"status": "ready"}


async def test_the_javascript_client_is_served_to_every_page(http: httpx.AsyncClient) -> None:
    script = await http.get("/client.js")
    assert script.status_code == 200
    assert script.headers["content-type"].startswith("text/javascript")
    assert script.headers["access-control-allow-origin"] == "*"
    assert "EventBusClient" in script.text
