"""docs/protocol.md, sections 6 and 7: publishing and reading back over HTTP."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

import httpx
import orjson
import pytest
import redis

from eventbus.ids import UserId
from gateway.node import Node
from tests.support.proxy import Proxy
from tests.support.raw_websocket import connected
from tests.support.stalls import within
from tests.support.wire_client import Nodes, bearer, opened, publish, texts, token_of

PUBLISHER = {"Authorization": bearer(token_of("service", scopes=("publish",)))}
ALICE = {"Authorization": bearer(token_of())}


def event(**fields: Any) -> dict[str, Any]:
    return {"type": "note", "user": "alice", "data": {"text": "hi"}, **fields}


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in event().items() if key != name}


# --- publishing -----------------------------------------------------------------------------------------------------


async def test_one_event_is_taken_with_202_and_delivered(node: Node, http: httpx.AsyncClient) -> None:
    async with opened(node) as client:
        await client.expect("caught_up")
        before_ms = node.clock.now_ms()
        answer = await http.post("/v1/events", json=event(thread="t", run="r"), headers=PUBLISHER)
        assert answer.status_code == 202
        (result,) = answer.json()["results"]
        (delivered,) = await client.events(1)
    assert set(result) == {"id", "entry", "duplicate"}
    assert (delivered["id"], delivered["event"]["id"]) == (result["entry"], result["id"])
    assert result["duplicate"] is False
    # What may be left out is filled in.
    assert before_ms <= delivered["event"]["time_ms"] <= node.clock.now_ms()
    assert (delivered["event"]["thread"], delivered["event"]["run"]) == ("t", "r")


@pytest.mark.requirement("R28")
async def test_a_type_that_an_operator_has_paused_is_refused_for_good_and_not_to_be_tried_again(
    node: Node, http: httpx.AsyncClient
) -> None:
    await node.store.pause_type("chatter", "an operator", "too much of it")
    answer = await http.post("/v1/events", json=event(type="chatter"), headers=PUBLISHER)
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "type_paused")
    assert "Retry-After" not in answer.headers


@pytest.mark.requirement("R6")
async def test_a_list_is_answered_in_its_order_and_may_be_for_any_user(node: Node, http: httpx.AsyncClient) -> None:
    async with opened(node) as client, opened(node, "bob") as other:
        await client.expect("caught_up")
        await other.expect("caught_up")
        batch = [event(id=f"e{n}", user="alice" if n % 2 else "bob", data={"text": f"n{n}"}) for n in range(500)]
        answer = await http.post("/v1/events", json=batch, headers=PUBLISHER)
        assert answer.status_code == 202
        assert [result["id"] for result in answer.json()["results"]] == [item["id"] for item in batch]
        assert texts(await client.events(250)) == [f"n{n}" for n in range(500) if n % 2]
        assert texts(await other.events(250)) == [f"n{n}" for n in range(500) if not n % 2]


@pytest.mark.requirement("R4")
async def test_a_repeated_event_id_is_stored_once_and_told_as_a_duplicate(node: Node, http: httpx.AsyncClient) -> None:
    first = (await http.post("/v1/events", json=event(id="same"), headers=PUBLISHER)).json()["results"][0]
    again = (await http.post("/v1/events", json=event(id="same"), headers=PUBLISHER)).json()["results"][0]
    assert again == {"id": "same", "entry": first["entry"], "duplicate": True}


@pytest.mark.requirement("R4")
async def test_an_idempotency_key_gives_ids_to_events_that_have_none(http: httpx.AsyncClient) -> None:
    batch = [event(), event(id="own"), event()]
    headers = PUBLISHER | {"Idempotency-Key": "a key, with blanks"}
    first = (await http.post("/v1/events", json=batch, headers=headers)).json()["results"]
    again = (await http.post("/v1/events", json=batch, headers=headers)).json()["results"]
    other = (await http.post("/v1/events", json=batch, headers=headers | {"Idempotency-Key": "b"})).json()["results"]
    assert len({result["id"] for result in first}) == 3
    assert first[1]["id"] == "own"
    assert [(r["id"], r["entry"]) for r in again] == [(r["id"], r["entry"]) for r in first]
    assert [r["duplicate"] for r in again] == [True] * 3
    assert [r["duplicate"] for r in other] == [False, True, False]


@pytest.mark.requirement("R22")
async def test_the_same_idempotency_key_of_two_callers_is_not_the_same(http: httpx.AsyncClient) -> None:
    ids = set()
    for caller in ("one", "two"):
        token = bearer(token_of(caller, scopes=("publish",)))
        answer = await http.post("/v1/events", json=event(), headers={"Authorization": token, "Idempotency-Key": "1"})
        ids.add(answer.json()["results"][0]["id"])
    assert len(ids) == 2


@pytest.mark.parametrize("key", ["", "k" * 256])
async def test_an_idempotency_key_of_no_or_too_many_characters_is_a_400(http: httpx.AsyncClient, key: str) -> None:
    answer = await http.post("/v1/events", json=event(), headers=PUBLISHER | {"Idempotency-Key": key})
    assert (answer.status_code, answer.json()["error"]["field"]) == (400, "Idempotency-Key")


BAD_EVENTS: list[tuple[Any, str]] = [
    ([], "event"),
    ("event", "event"),
    (7, "event"),
    (None, "event"),
    (without("type"), "type"),
    (without("user"), "user"),
    (without("data"), "data"),
    (event(type=1), "type"),
    (event(type="Note"), "type"),
    (event(type="a" * 65), "type"),
    (event(user=""), "user"),
    (event(user="run_1"), "user"),
    (event(user="thread_1"), "user"),
    (event(user="a b"), "user"),
    (event(user="u" * 129), "user"),
    (event(user=None), "user"),
    (event(id=""), "id"),
    (event(id="a b"), "id"),
    (event(id="i" * 65), "id"),
    (event(id=7), "id"),
    (event(thread=""), "thread"),
    (event(run="r" * 129), "run"),
    (event(time_ms=-1), "time_ms"),
    (event(time_ms="now"), "time_ms"),
    (event(time_ms=1.5), "time_ms"),
    (event(time_ms=9_000_000_000_000), "time_ms"),
    (event(data=[]), "data"),
    (event(data="x"), "data"),
    (event(data=None), "data"),
    (event(data={"n": 2**60}), "data.n"),
    (event(data={"text": "x" * 300_000}), "data"),
    (event(require={"level": "seen", "within_ms": 5}), "require.level"),
    (event(require=5), "require"),
    (event(deliver="some"), "deliver"),
    (event(expires_ms="soon"), "expires_ms"),
    (event(trace="x"), "trace"),
    (event(colour="red"), "colour"),
    (event(seq=1), "seq"),
    (event(type="agent_thinking", data={"text": "  "}), "data.text"),
    (event(type="agent_started", data={}), "data.agent"),
    (event(type="tool_completed", data={"tool": "t"}), "data"),
    (event(type="agent_completed", data={"outcome": "great"}), "data.outcome"),
]


@pytest.mark.requirement("R23")
@pytest.mark.parametrize("bad, field", BAD_EVENTS)
async def test_a_bad_event_refuses_the_whole_batch_with_its_index_and_field(
    node: Node, http: httpx.AsyncClient, bad: Any, field: str
) -> None:
    answer = await http.post("/v1/events", content=orjson.dumps([event(), event(), bad]), headers=PUBLISHER)
    error = answer.json()["error"]
    assert answer.status_code == 400, answer.text
    assert error["index"] == 2
    assert error["field"] == field or error["field"].startswith(f"{field}."), error
    assert set(error) == {"code", "message", "field", "index"}
    assert (await node.store.tail(UserId("alice")))[0] == "0-0"


async def test_a_bad_event_alone_is_told_without_an_index(http: httpx.AsyncClient) -> None:
    answer = await http.post("/v1/events", json=event(type=""), headers=PUBLISHER)
    error = answer.json()["error"]
    assert (answer.status_code, error["field"]) == (400, "type")
    assert "index" not in error


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"\xff\xfe", b"[]", b"[" * 3_000, b'{"type":NaN}', b'{"a":1}{"b":2}'],
    ids=["nothing", "half", "no utf-8", "no event", "too deep", "nan", "two"],
)
async def test_a_body_that_is_no_event_or_list_of_them_is_a_400(http: httpx.AsyncClient, body: bytes) -> None:
    answer = await http.post("/v1/events", content=body, headers=PUBLISHER)
    assert (answer.status_code, answer.json()["error"]["field"]) == (400, "body")


async def test_more_than_500_events_are_a_400(http: httpx.AsyncClient) -> None:
    answer = await http.post("/v1/events", json=[event()] * 501, headers=PUBLISHER)
    assert (answer.status_code, answer.json()["error"]["field"]) == (400, "body")


@pytest.mark.requirement("R23")
async def test_a_body_above_the_limit_is_a_413_with_and_without_a_declared_length(nodes: Nodes) -> None:
    node = await nodes.start(max_body_bytes=1_000)
    body = orjson.dumps(event(data={"text": "x" * 2_000}))
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{node.port}") as client:
        declared = await client.post("/v1/events", content=body, headers=PUBLISHER)

        async def pieces() -> Any:
            for start in range(0, len(body), 100):
                yield body[start : start + 100]

        chunked = await client.post("/v1/events", content=pieces(), headers=PUBLISHER)
    for answer in (declared, chunked):
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")


@pytest.mark.requirement("R23")
async def test_publishing_needs_the_scope(http: httpx.AsyncClient) -> None:
    for scopes in ((), ("subscribe",), ("admin",), ("subscribe", "admin")):
        token = bearer(token_of("service", scopes=scopes))
        answer = await http.post("/v1/events", json=event(), headers={"Authorization": token})
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "forbidden")


@pytest.mark.requirement("R23")
@pytest.mark.parametrize("path, method", [("/v1/events", "POST"), ("/v1/events", "GET"), ("/v1/tickets", "POST")])
async def test_without_a_good_token_every_route_is_a_401(http: httpx.AsyncClient, path: str, method: str) -> None:
    for headers in ({}, {"Authorization": "Bearer nonsense"}, {"Authorization": "Basic YTpi"}):
        answer = await http.request(method, path, headers=headers)
        assert answer.status_code == 401
        assert set(answer.json()["error"]) == {"code", "message"}
        assert answer.headers["www-authenticate"] == "Bearer"
    doubled = [("Authorization", bearer(token_of("ann"))), ("Authorization", bearer(token_of("bob")))]
    assert (await http.request(method, path, headers=doubled)).status_code == 401


async def test_a_ticket_in_the_query_is_a_token_on_every_route_and_good_once(http: httpx.AsyncClient) -> None:
    both = {"Authorization": bearer(token_of("alice", scopes=("publish", "subscribe")))}
    ticket = (await http.post("/v1/tickets", headers=both)).json()["ticket"]
    assert (await http.post(f"/v1/events?ticket={ticket}", json=event())).status_code == 202
    assert (await http.post(f"/v1/events?ticket={ticket}", json=event())).status_code == 401
    ticket = (await http.post("/v1/tickets", headers=both)).json()["ticket"]
    assert len((await http.get(f"/v1/events?ticket={ticket}")).json()["events"]) == 1


@pytest.mark.requirement("R4")
@pytest.mark.requirement("R25")
async def test_a_publish_that_the_store_can_not_take_is_a_503_within_the_deadline(nodes: Nodes) -> None:
    async with Proxy(urlsplit(nodes.url).port or 0) as proxy:
        node = await nodes.start(url=proxy.redis_url, redis_timeout_ms=200, publish_deadline_ms=300)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{node.port}") as client:
            proxy.refuse()
            async with within(3):
                answer = await client.post("/v1/events", json=[event(id="a"), event(id="b")], headers=PUBLISHER)
            assert answer.status_code == 503
            assert int(answer.headers["retry-after"]) >= 1
            assert set(answer.json()["error"]) == {"code", "message"}
        await node.aclose()


async def test_a_stream_that_is_full_of_what_somebody_needs_is_a_503_that_lists_what_is_known(nodes: Nodes) -> None:
    node = await nodes.start(max_stream_entries=3, stream_full_policy="reject", publish_deadline_ms=200)
    async with opened(node) as client, httpx.AsyncClient(base_url=f"http://127.0.0.1:{node.port}") as http:
        await client.expect("caught_up")
        batch = [event(id=f"e{n}") for n in range(5)]
        answer = await http.post("/v1/events", json=batch, headers=PUBLISHER)
    assert answer.status_code == 503
    assert "retry-after" in answer.headers
    results = answer.json()["results"]
    assert [result.get("id") for result in results[:3]] == ["e0", "e1", "e2"]
    assert {result["error"]["code"] for result in results[3:]} <= {"stream_full", "publish_timeout"}
    assert len(results) == 5


# --- reading back ---------------------------------------------------------------------------------------------------


@pytest.mark.requirement("R7")
async def test_the_retained_events_of_the_caller_come_oldest_first_in_pages(
    node: Node, http: httpx.AsyncClient
) -> None:
    entries = await publish(node, *(f"n{number}" for number in range(7)))
    await publish(node, "of bob", user="bob")
    pages = []
    query: dict[str, Any] = {"limit": 3}
    while True:
        answer = (await http.get("/v1/events", params=query, headers=ALICE)).json()
        pages.append(answer["events"])
        assert answer["cursor"] == answer["events"][-1]["id"]
        if "next" not in answer:
            break
        assert answer["next"] == answer["events"][-1]["id"]
        query["cursor"] = answer["next"]
    assert [len(page) for page in pages] == [3, 3, 1]
    events = [item for page in pages for item in page]
    assert [item["id"] for item in events] == entries
    assert texts(events) == [f"n{number}" for number in range(7)]
    assert set(events[0]) == {"id", "event"}


async def test_a_page_that_ends_with_the_last_event_has_no_next(node: Node, http: httpx.AsyncClient) -> None:
    entries = await publish(node, "one", "two")
    answer = (await http.get("/v1/events", params={"limit": 2}, headers=ALICE)).json()
    assert "next" not in answer
    assert answer["cursor"] == entries[-1]
    rest = (await http.get("/v1/events", params={"cursor": entries[-1]}, headers=ALICE)).json()
    assert rest["events"] == []
    assert "next" not in rest
    assert rest["cursor"] == entries[-1]


async def test_a_page_without_a_limit_has_a_hundred(node: Node, http: httpx.AsyncClient) -> None:
    await node.bus.publish_many([event(data={"text": str(n)}) for n in range(101)])
    answer = (await http.get("/v1/events", headers=ALICE)).json()
    assert len(answer["events"]) == 100
    assert "next" in answer


async def test_the_history_can_be_asked_for_by_thread_run_and_type(node: Node, http: httpx.AsyncClient) -> None:
    await publish(node, "a", thread="t1", run="r1")
    await publish(node, "b", thread="t1", run="r2")
    await publish(node, "c", thread="t2", run="r1", type="memo")
    last = (await publish(node, "d"))[0]
    for query, wanted in (
        ({"thread": "t1"}, ["a", "b"]),
        ({"run": "r1"}, ["a", "c"]),
        ({"type": "memo"}, ["c"]),
        ({"thread": "t1", "run": "r1"}, ["a"]),
        ({"thread": "t3"}, []),
    ):
        answer = (await http.get("/v1/events", params=query, headers=ALICE)).json()
        assert texts(answer["events"]) == wanted
        assert answer["cursor"] == last
        assert "next" not in answer


@pytest.mark.requirement("R7")
async def test_the_cursor_of_the_history_is_good_for_hello(node: Node, http: httpx.AsyncClient) -> None:
    """Nothing is missing and nothing comes twice between a page that was loaded and its socket."""
    empty = (await http.get("/v1/events", headers=ALICE)).json()
    assert (empty["events"], empty["cursor"]) == ([], "0-0")
    await publish(node, "one", "two")
    answer = (await http.get("/v1/events", headers=ALICE)).json()
    await publish(node, "three")
    async with opened(node, cursor=answer["cursor"], epoch=answer["epoch"]) as client:
        assert texts(await client.events(1)) == ["three"]
        await client.expect("caught_up")


@pytest.mark.requirement("R22")
async def test_the_history_shows_nobody_elses_events_whatever_is_asked(
    node: Node, http: httpx.AsyncClient, server_url: str
) -> None:
    await publish(node, "secret", user="bob", thread="t")
    (entry,) = await publish(node, "mine")
    # Also not one that somebody wrote into the wrong stream.
    with redis.Redis.from_url(server_url) as server:
        (stream,) = server.scan_iter(match="eb:*:s:bob")
        (own,) = server.scan_iter(match="eb:*:s:alice")
        found: Any = server.xrange(stream)
        server.xadd(own, found[0][1])
        server.xadd(own, {"d": b"\xc1"})
    for query in ({}, {"user": "bob"}, {"sub": "bob"}, {"thread": "t"}):
        answer = (await http.get("/v1/events", params=query, headers=ALICE)).json()
        assert [item["id"] for item in answer["events"]] in ([entry], [])
        assert "secret" not in str(answer)


@pytest.mark.requirement("R23")
@pytest.mark.parametrize(
    "query, field",
    [
        ({"limit": "0"}, "limit"),
        ({"limit": "501"}, "limit"),
        ({"limit": "000000001234"}, "limit"),
        ({"limit": "-1"}, "limit"),
        ({"limit": "ten"}, "limit"),
        ({"limit": ""}, "limit"),
        ({"limit": "\u0661"}, "limit"),
        ({"cursor": "x"}, "cursor"),
        ({"cursor": "1-"}, "cursor"),
        ({"cursor": ""}, "cursor"),
        ({"type": "Note"}, "type"),
        ({"thread": "a b"}, "thread"),
        ({"run": ""}, "run"),
    ],
)
async def test_a_bad_parameter_is_a_400_that_names_it(
    http: httpx.AsyncClient, query: dict[str, str], field: str
) -> None:
    answer = await http.get("/v1/events", params=query, headers=ALICE)
    assert (answer.status_code, answer.json()["error"]["field"]) == (400, field)


async def test_reading_back_needs_the_scope_subscribe(http: httpx.AsyncClient) -> None:
    assert (await http.get("/v1/events", headers=PUBLISHER)).status_code == 403


# --- every route ----------------------------------------------------------------------------------------------------


async def test_what_is_not_there_is_a_404_and_what_is_not_for_the_method_a_405_in_json(http: httpx.AsyncClient) -> None:
    nowhere = await http.get("/v1/nothing")
    assert (nowhere.status_code, nowhere.json()["error"]["code"]) == (404, "not_found")
    wrong = await http.delete("/v1/events")
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (405, "method_not_allowed")
    assert wrong.headers["allow"]


async def test_answers_are_kept_by_no_cache(http: httpx.AsyncClient) -> None:
    for answer in (
        await http.get("/v1/events", headers=ALICE),
        await http.post("/v1/tickets", headers=ALICE),
        await http.get("/v1/events"),
    ):
        assert answer.headers["cache-control"] == "no-store"


@pytest.mark.requirement("R23")
async def test_pages_of_the_allowed_origins_may_read_every_route_and_others_none(nodes: Nodes) -> None:
    node = await nodes.start(allowed_origins="https://app.example")
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{node.port}") as client:
        for path in ("/v1/events", "/v1/tickets", "/healthz", "/readyz"):
            asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
            preflight = await client.options(path, headers={"Origin": "https://app.example", **asked})
            assert preflight.status_code == 200
            assert preflight.headers["access-control-allow-origin"] == "https://app.example"
            assert "authorization" in preflight.headers["access-control-allow-headers"].lower()
            refused = await client.options(path, headers={"Origin": "https://evil.example", **asked})
            assert "access-control-allow-origin" not in refused.headers
        answer = await client.get("/v1/events", headers={**ALICE, "Origin": "https://app.example"})
        assert answer.headers["access-control-allow-origin"] == "https://app.example"
        unauthorized = await client.get("/v1/events", headers={"Origin": "https://app.example"})
        assert unauthorized.status_code == 401
        assert unauthorized.headers["access-control-allow-origin"] == "https://app.example"
        other = await client.get("/v1/events", headers={**ALICE, "Origin": "https://evil.example"})
        assert "access-control-allow-origin" not in other.headers


async def test_one_port_serves_http_and_sockets_on_one_connection_after_another(node: Node) -> None:
    async with connected(node.port) as raw:
        raw.write(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
        assert (await raw.response())[0] == 200
        await raw.upgrade(authorization=ALICE["Authorization"])
