"""What the HTTP side answers when something behind it fails; the rest is held against a node in tests/integration."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import httpx
import orjson
import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from eventbus.errors import (
    AuthError,
    BreakerOpen,
    EventBusError,
    Forbidden,
    InvalidEvent,
    PublishTimeout,
    RateLimited,
    StoreError,
    StoreFull,
    StoreMisconfigured,
    StoreUnavailable,
    StreamFull,
)
from eventbus.ids import EntryId, UserId
from eventbus.store import Append, Appended, Durability, HistoryPage
from eventbus.store.allowing import Spending
from eventbus.testing import ManualClock, MemoryStore
from eventbus.tokens import make_token
from gateway.web.routes import client_file, error_answer, make_app
from tests.support.bench import SECRET, Bench


class BrokenStore(MemoryStore):
    """A store with a defect: one call raises what no store may."""

    async def history(self, user: UserId, after: EntryId, count: int) -> HistoryPage:
        raise RuntimeError("secret-of-the-inside")


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    clock = ManualClock()
    async with Bench(BrokenStore(clock=clock), clock, max_body_bytes=1_000) as made:
        yield made


@pytest.fixture
async def http(bench: Bench) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(make_app(bench.node), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://bus") as client:
        yield client


def header(bench: Bench, *scopes: str) -> dict[str, str]:
    now_ms = bench.clock.now_ms()
    return {"Authorization": "Bearer " + make_token(user="alice", secret=SECRET.encode(), now_ms=now_ms, scopes=scopes)}


@pytest.mark.requirement("R25")
async def test_a_defect_is_a_500_that_tells_nothing_of_the_inside(bench: Bench, http: httpx.AsyncClient) -> None:
    answer = await http.get("/v1/events", headers=header(bench))
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "internal"
    for word in ("secret-of-the-inside", "Traceback", "RuntimeError", "routes.py"):
        assert word not in answer.text


@pytest.mark.requirement("R25")
async def test_a_store_that_is_away_is_a_503_on_every_route_that_needs_it(
    bench: Bench, http: httpx.AsyncClient
) -> None:
    bench.store.fail()
    for method, path in (("POST", "/v1/tickets"), ("GET", "/v1/events?ticket=" + "t" * 32)):
        answer = await http.request(method, path, headers=header(bench) if method == "POST" else {})
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "store_unavailable")
        assert answer.headers["retry-after"] == "1"
    assert (await http.get("/healthz")).status_code == 200
    assert (await http.get("/readyz")).status_code == 503
    bench.store.heal()


@pytest.mark.parametrize(
    "error, status, more",
    [
        (AuthError("no", reason="token_expired"), 401, {"code": "token_expired"}),
        (Forbidden("no"), 403, {"code": "forbidden"}),
        (InvalidEvent("data.text", "is missing"), 400, {"field": "data.text"}),
        (InvalidEvent("type", "is missing", index=3), 400, {"field": "type", "index": 3}),
        (RateLimited("slow down", retry_after_ms=1_500), 429, {"code": "rate_limited"}),
        (StreamFull("full"), 503, {"code": "stream_full"}),
        (StoreFull("oom"), 503, {"code": "store_full"}),
        (StoreUnavailable("away"), 503, {"code": "store_unavailable"}),
        (BreakerOpen("open"), 503, {"code": "breaker_open"}),
        (PublishTimeout("late"), 503, {"code": "publish_timeout"}),
        (StoreMisconfigured("wrong"), 503, {"code": "store_misconfigured"}),
    ],
)
def test_each_error_has_its_status_and_its_body(error: EventBusError, status: int, more: dict[str, Any]) -> None:
    answer = error_answer(error)
    content = orjson.loads(bytes(answer.body))["error"]
    assert answer.status_code == status
    assert content | more == content
    assert content["message"]
    wanted = {429: "2", 503: "1"}.get(status)
    assert answer.headers.get("retry-after") == wanted


async def test_a_client_that_leaves_in_the_middle_of_its_body_is_no_defect(bench: Bench) -> None:
    messages: list[Any] = [
        {"type": "http.request", "body": b"[", "more_body": True},
        {"type": "http.disconnect"},
    ]
    sent: list[Any] = []

    async def receive() -> Any:
        return messages.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(name.lower().encode(), value.encode()) for name, value in header(bench, "publish").items()]
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/events",
        "raw_path": b"/v1/events",
        "query_string": b"",
        "headers": headers,
        "http_version": "1.1",
        "scheme": "http",
        "server": ("bus", 80),
        "client": ("192.0.2.1", 1),
        "root_path": "",
    }
    await make_app(bench.node)(scope, receive, send)
    assert [message["status"] for message in sent if message["type"] == "http.response.start"] in ([], [400])


async def test_further_routes_can_be_added(bench: Bench) -> None:
    async def page(request: Request) -> Response:
        return PlainTextResponse("demo")

    transport = httpx.ASGITransport(make_app(bench.node, routes=[Route("/demo", page)]))
    async with httpx.AsyncClient(transport=transport, base_url="http://bus") as client:
        assert (await client.get("/demo")).text == "demo"


def test_the_file_of_the_javascript_client_is_found_in_a_checkout() -> None:
    assert client_file("eventbus-client.js").is_file()


class SilentStore(MemoryStore):
    """A store that is slow to say what a user may still publish, and then takes nothing."""

    async def spend(self, user: UserId, spendings: Sequence[Spending]) -> int:
        assert isinstance(self.clock, ManualClock)
        self.clock.advance(600)
        return 0

    async def append(
        self, events: Sequence[Append], durability: Durability = Durability.MEMORY
    ) -> Sequence[Appended | StoreError]:
        raise StoreUnavailable("away")


@pytest.mark.requirement("R25")
async def test_the_deadline_of_a_publish_is_also_for_the_question_whether_it_is_allowed() -> None:
    clock = ManualClock()
    async with Bench(SilentStore(clock=clock), clock, publish_deadline_ms=1_000, breaker_failures=1_000) as bench:
        transport = httpx.ASGITransport(make_app(bench.node))
        begun_ms = clock.monotonic_ms()
        async with bench.node.bus, httpx.AsyncClient(transport=transport, base_url="http://bus") as client:
            event = {"user": "ada", "type": "note", "data": {}}
            asked = asyncio.create_task(client.post("/v1/events", headers=header(bench, "publish"), json=event))
            while not asked.done():
                await bench.pass_time(50, step_ms=50)
            assert clock.monotonic_ms() - begun_ms <= 1_100
            assert (asked.result().status_code, asked.result().json()["error"]["code"]) == (503, "publish_timeout")


async def test_the_address_of_sockets_says_what_is_missing_to_who_asks_it_without_an_upgrade(
    bench: Bench, http: httpx.AsyncClient
) -> None:
    answer = await http.get("/v1/connect", headers=header(bench))
    assert (answer.status_code, answer.json()["error"]["code"]) == (426, "upgrade_required")
    assert answer.headers["upgrade"] == "websocket"
    assert "proxy" in answer.json()["error"]["message"]
    assert (await http.post("/v1/connect")).status_code == 405
