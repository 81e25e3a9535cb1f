"""The console's port: who gets the page, with which headers, and the feed that keeps it up to date. R27, R23."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from eventbus import Bus, revoking
from eventbus.ids import EntryId, SessionId
from eventbus.inspection import Actions, action_asked_for
from eventbus.store import ConfirmationRecord
from gateway.admin.port import make_admin_app, serve_admin
from gateway.admin.revocations import AdminAccess
from gateway.console.latency import latency_of
from gateway.node import Node
from gateway.processes.process import bind
from gateway.processes.serving import NodeFigures
from gateway.transport.listener import Listener
from tests.support.servers import NewServer
from tests.support.wire_client import Nodes, bearer, ids, opened, publish, token_of

pytestmark = pytest.mark.requirement("R27")

PAGE = Path(__file__).resolve().parents[2] / "gateway" / "console" / "page"
TIME_OUT_S = 20


class Port:
    """The admin port of a node."""

    def __init__(self, node: Node, listener: Listener, http: httpx.AsyncClient) -> None:
        self.node = node
        self.listener = listener
        self.http = http

    @asynccontextmanager
    async def feed(self, **claims: Any) -> AsyncIterator[AsyncIterator[tuple[str, Any]]]:
        """The messages of the feed, kind and data."""
        headers = {"Authorization": bearer(token_of("olga", scopes=["admin"], **claims))}
        async with asyncio.timeout(TIME_OUT_S), self.http.stream("GET", "/admin/v1/live", headers=headers) as answer:
            assert answer.status_code == 200
            yield _messages(answer.aiter_lines())

    async def see(self, path: str, **query: str) -> Any:
        return await self.answer(path, query)

    async def answer(self, path: str, query: dict[str, str], *, status: int = 200) -> Any:
        headers = {"Authorization": bearer(token_of("olga", scopes=["admin"]))}
        answer = await self.http.get(f"/admin/v1/{path}", headers=headers, params=query)
        assert answer.status_code == status, answer.text
        return answer.json()


async def _messages(lines: AsyncIterator[str]) -> AsyncIterator[tuple[str, Any]]:
    kind = ""
    async for line in lines:
        if line.startswith("event: "):
            kind = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield kind, orjson.loads(line.removeprefix("data: "))


async def until_kind(messages: AsyncIterator[tuple[str, Any]], wanted: str) -> Any:
    """The data of the next message of a kind."""
    async for kind, data in messages:
        if kind == wanted:
            return data
    raise AssertionError(f"the feed ended without {wanted!r}")


@asynccontextmanager
async def port_of(node: Node) -> AsyncIterator[Port]:
    access = AdminAccess(node.store, node.revocations, node.authenticator, node.clock)
    app = make_admin_app(NodeFigures(node), authenticator=None, access=access, settings=node.node_settings)
    listener = await serve_admin(app, bind("127.0.0.1", 0, setting="ADMIN_PORT"))
    url = f"http://127.0.0.1:{listener.port}"
    async with httpx.AsyncClient(base_url=url, timeout=TIME_OUT_S, trust_env=False) as http:
        yield Port(node, listener, http)
    await listener.stop()


@pytest.fixture
async def port(nodes: Nodes) -> AsyncIterator[Port]:
    node = await nodes.start(node_heartbeat_ms=100, watch_ms=100)
    async with port_of(node) as made:
        yield made


# --- the page ---------------------------------------------------------------------------------------------------------


async def test_the_page_takes_nothing_from_elsewhere_and_lets_no_text_become_markup(port: Port) -> None:
    answer = await port.http.get("/console/")
    policy = answer.headers["content-security-policy"]
    assert {"default-src 'none'", "script-src 'self'", "frame-ancestors 'none'"} <= set(policy.split("; "))
    assert "require-trusted-types-for 'script'" in policy
    assert "unsafe" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    for file in PAGE.iterdir():
        text = file.read_text()
        assert not re.search(r"innerHTML|outerHTML|HTML\(|document\.write|eval\(|\bstyle=|javascript:", text), file
        assert {*re.findall(r"https?://[\w.-]+", text)} <= {"http://www.w3.org"}, file
    script = (await port.http.get("/console/app.js")).headers
    assert script["content-type"].startswith("text/javascript")


async def test_every_file_of_the_page_is_served_and_no_other(port: Port) -> None:
    for file in PAGE.iterdir():
        path = "/console/" if file.name == "index.html" else f"/console/{file.name}"
        assert (await port.http.get(path)).content == file.read_bytes()
    for path in (
        "/console/..%2ffeed.py",
        "/console/files.py",
        "/console/none.js",
        "/console/page/app.js",
        "/console/%00.js",
    ):
        assert (await port.http.get(path)).status_code == 404
    for path in ("/", "/console"):
        answer = await port.http.get(path)
        assert (answer.status_code, answer.headers["location"]) == (307, "/console/")


async def test_a_page_of_the_web_that_leads_its_name_here_gets_nothing(port: Port) -> None:
    for path in ("/", "/console/", "/console/app.js", "/console/words.json"):
        answer = await port.http.get(path, headers={"Host": "evil.example"})
        assert answer.status_code == 403


# --- the feed ---------------------------------------------------------------------------------------------------------


@pytest.mark.requirement("R23")
async def test_the_feed_is_for_operators_alone_and_ends_when_their_token_is_revoked(port: Port) -> None:
    for headers, status in (({}, 401), ({"Authorization": bearer(token_of("alice"))}, 403)):
        assert (await port.http.get("/admin/v1/live", headers=headers)).status_code == status
    async with port.feed(jti="lost") as messages:
        await until_kind(messages, "figures")
        await revoking.revoke(port.node.store, revoking.revocation_asked_for({"jti": "lost"}, by="test"))
        end = await until_kind(messages, "end")
        assert "revoked" in end["message"]
        assert [one async for one in messages] == []


async def test_the_feed_tells_figures_latency_and_what_operators_are_told_as_it_happens(port: Port) -> None:
    node = port.node
    async with opened(node) as client:
        await client.until_op("caught_up")
        await publish(node, "a", "b")
        client.send("ack", ids=ids(await client.events(2)), ref=1)
        await client.until_op("acked")
        async with port.feed() as messages:
            first = await until_kind(messages, "figures")
            assert (first["rates"]["received"], first["by_type"]["note"]["stored"]) == (2, 2)
            assert (first["latency"]["sample"], first["latency"]["users"]) == (2, 1)
            assert [one["node"] for one in first["nodes"]] == ["n1"]
            assert await until_kind(messages, "told") == []
            asked_ms = node.clock.now_ms() - 2_500
            async with node.bus.run(user="dave", agent="planner", requested_ms=asked_ms) as run:
                await run.thinking("hm")
            (told,) = await until_kind(messages, "told")
            assert (told["kind"], told["deadline"], told["user"]) == ("missed_deadline", "started", "dave")
    assert [one["id"] for one in (await port.see("operator-events", user="dave"))["operator_events"]] == [told["id"]]
    assert (await port.see("operator-events", user="alice"))["operator_events"] == []
    assert (await port.see("rates", user="alice"))["received"] == 2
    found = await port.see(f"runs/{run.id}", user="dave")
    assert found["limits"]["thinking_ms"] == 2_000


async def test_the_feed_says_that_redis_is_away_and_goes_on_when_it_is_back(
    nodes: Nodes, new_server: NewServer
) -> None:
    server = new_server()
    node = await nodes.start("n2", url=server.url, redis_timeout_ms=500)
    async with port_of(node) as port, port.feed() as messages:
        await until_kind(messages, "figures")
        server.kill()
        assert "Redis" in (await until_kind(messages, "problem"))["message"]
        server.start()
        await until_kind(messages, "figures")


async def test_a_port_that_stops_ends_its_feeds_and_does_not_wait_for_them(port: Port) -> None:
    async with port.feed() as messages:
        await until_kind(messages, "figures")
        stopping = asyncio.create_task(port.listener.stop())
        assert (await until_kind(messages, "end"))["code"] == "stopping"
        await stopping


async def test_dead_letters_are_listed_by_what_an_action_on_them_would_be_narrowed_by(port: Port) -> None:
    node = port.node
    async with opened(node) as client:
        await client.until_op("caught_up")
        entries = [*await publish(node, "a", type="memo"), *await publish(node, "b", type="note")]
        await client.events(2)
        actions = Actions(node.store, by="test", partitions=1024)
        asked = {"action": "dead_letter", "user": "alice", "session": "tab", "entries": entries}
        await actions.carry_out(await actions.plan(action_asked_for(asked)))
        for query, found in (({}, entries), ({"type": "memo"}, entries[:1]), ({"reason": "nacked"}, [])):
            page = await port.see("dead-letters", **query)
            assert [one["entry"] for one in page["dead_letters"]] == found


async def test_ids_that_no_client_leaves_in_a_path_are_asked_for_as_a_query(port: Port) -> None:
    for odd in (".", ".."):
        receipt = await port.node.bus.publish(user=odd, type="note", data={}, id=odd)
        async with port.node.bus.run(user=odd, agent="planner", run=odd) as run:
            await run.thinking("hm")
        assert (await port.see("user", user=odd))["stored"] == 4
        assert (await port.see("event", user=odd, event=odd))["report"]["entry"] == receipt.entry
        assert [one["type"] for one in (await port.see("run", user=odd, run=odd))["events"]][-1] == "agent_completed"
    for name, query in (("user", {}), ("event", {"user": "alice"}), ("run", {"user": "alice"})):
        assert (await port.answer(name, query, status=400))["error"]["field"] == name


# --- latency ----------------------------------------------------------------------------------------------------------


def test_latency_counts_first_acks_from_the_moment_at_which_the_event_was_stored() -> None:
    def record(level: str, time_ms: int, *stored_ms: int) -> ConfirmationRecord:
        entries = [EntryId(f"{one}-0") for one in stored_ms]
        return ConfirmationRecord(session=SessionId("s"), level=level, time_ms=time_ms, entries=entries)

    assert latency_of([]) is None
    assert latency_of([[record("filtered", 5_000, 1_000)]]) is None
    found = latency_of([[record("received", 1_010, 1_000, 1_005), record("displayed", 9_000, 1_000)], []])
    assert found is not None
    assert (found.p50_ms, found.p99_ms, found.sample, found.users) == (5, 5, 2, 1)
    many = latency_of([[record("received", 1_000 + number, 1_000) for number in range(101)]])
    assert many is not None
    assert (many.p50_ms, many.p99_ms) == (50, 99)


# --- at scale ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_the_overview_and_a_users_page_are_quick_with_ten_thousand_users(nodes: Nodes) -> None:
    node = await nodes.start("n1")
    async with Bus(nodes.url) as bus, port_of(node) as port:
        for start in range(0, 10_000, 1_000):
            numbers = range(start, start + 1_000)
            await asyncio.gather(*(bus.publish(user=f"user-{one}", type="note", data={"n": one}) for one in numbers))
        for path in ("overview", "users/user-4711", "pending"):
            took_ms, cpu_ms = [], []
            for _ in range(7):
                begun, begun_cpu = time.perf_counter(), time.process_time()
                await port.see(path)
                took_ms.append(1_000 * (time.perf_counter() - begun))
                cpu_ms.append(1_000 * (time.process_time() - begun_cpu))
            best, cpu = min(took_ms), min(cpu_ms)
            told = f"{best:.1f} ms at best, {sorted(took_ms)[3]:.1f} ms in the middle, {cpu:.1f} ms of CPU"
            logging.getLogger(__name__).info("%s: %s", path, told)
            # CPU time is what a busy machine leaves alone: 100 ms is promised for the whole on one that is not.
            assert cpu < 100, f"{path}: {told}"
