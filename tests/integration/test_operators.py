"""What operators see and do on the admin port, on real nodes and a real server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from eventbus.errors import TypePaused
from gateway.admin.port import make_admin_app
from gateway.admin.revocations import AdminAccess
from gateway.node import Node
from gateway.processes.serving import NodeFigures
from tests.support.waiting import until
from tests.support.wire_client import Nodes, WireClient, bearer, ids, opened, publish, refused, texts, token_of

pytestmark = pytest.mark.requirement("R27", "R28")

PATHS = (
    "overview",
    "partitions",
    "pending",
    "entries",
    "users/alice",
    "events/e-1",
    "sessions",
    "nodes",
    "runs",
    "runs/run_1",
    "dead-letters",
    "dead-letters/1:1-1",
    "audit",
    "paused",
)


class Desk:
    """An operator at the admin port of a node."""

    def __init__(self, node: Node, http: httpx.AsyncClient) -> None:
        self.node = node
        self.http = http

    async def see(self, path: str, status: int = 200, **query: object) -> dict[str, Any]:
        answer = await self.http.get(f"/admin/v1/{path}", params={k: str(v) for k, v in query.items()})
        assert answer.status_code == status, answer.text
        found: dict[str, Any] = answer.json()
        return found

    async def ask(self, action: str, status: int = 200, **fields: Any) -> dict[str, Any]:
        answer = await self.http.post("/admin/v1/actions", json={"action": action, **fields})
        assert answer.status_code == status, answer.text
        found: dict[str, Any] = answer.json()
        return found

    async def do(self, action: str, **fields: Any) -> dict[str, int]:
        """Plans an action, confirms what the plan says, and returns what came of it."""
        planned = (await self.ask(action, **fields))["planned"]
        done = await self.ask(action, **fields, confirm=planned["count"], reason="because")
        results: dict[str, int] = done["results"]
        return results


@pytest.fixture
async def desk(nodes: Nodes) -> AsyncIterator[Desk]:
    node = await nodes.start(node_heartbeat_ms=50, ack_timeout_ms=30_000)
    access = AdminAccess(node.store, node.revocations, node.authenticator, node.clock)
    app = make_admin_app(NodeFigures(node), authenticator=None, access=access, settings=node.node_settings)
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app=app),
        base_url="http://127.0.0.1",
        headers={"Authorization": bearer(token_of("olga", scopes=["admin"]))},
    ) as http:
        yield Desk(node, http)


async def pending(client: WireClient, node: Node, *names: str) -> list[str]:
    """Events that the client was sent and has not acked."""
    await client.until_op("caught_up")
    await publish(node, *names)
    return ids(await client.events(len(names)))


@pytest.mark.parametrize("path", PATHS)
async def test_nothing_is_shown_without_a_token_of_scope_admin(desk: Desk, path: str) -> None:
    for token, status in ((None, 401), (token_of("alice"), 403)):
        headers = {} if token is None else {"Authorization": bearer(token)}
        async with httpx.AsyncClient(transport=desk.http._transport, base_url="http://127.0.0.1") as http:
            assert (await http.get(f"/admin/v1/{path}", headers=headers)).status_code == status
            assert (await http.post("/admin/v1/actions", headers=headers, json={})).status_code == status


async def test_what_waits_is_shown_by_user_and_session_and_entry(desk: Desk) -> None:
    async with opened(desk.node) as client:
        entries = await pending(client, desk.node, "a", "b")
        (row,) = (await desk.see("pending"))["pending"]
        assert (row["user"], row["session"], row["pending"], row["verdict"]) == ("alice", "tab", 2, "in_flight")
        page = await desk.see("entries", user="alice", session="tab", limit=1)
        assert ([one["id"] for one in page["entries"]], page["cursor"]) == (entries[:1], entries[0])
        page = await desk.see("entries", user="alice", session="tab", limit=1, cursor=page["cursor"])
        assert [one["id"] for one in page["entries"]] == entries[1:]
        found = await desk.see("users/alice")
        assert (found["stored"], found["newest"], len(found["sessions"])) == (2, entries[1], 1)
        assert found["pending"][0]["verdict"] == "in_flight"
        seen = await desk.see("overview")
        assert seen["rates"]["stored"] == 2


async def test_the_way_of_an_event_tells_what_happened_and_when(desk: Desk) -> None:
    async with opened(desk.node) as client:
        (entry,) = await pending(client, desk.node, "a")
        client.send("ack", ids=[entry], ref=1)
        await client.until_op("acked")
        way = await desk.see(f"events/{entry}", user="alice")
        assert [step["what"] for step in way["steps"]] == ["made", "stored", "received"]
        (session,) = way["sessions"]
        assert (session["fate"]["state"], session["why"][:9]) == ("acked", "delivered")
        assert way["event"]["data"] == {"text": "a"}
    missing = await desk.see("events/e-none", status=404, user="alice")
    assert "never stored" in missing["error"]["message"]


async def test_a_plan_changes_nothing_and_another_count_than_planned_is_refused(desk: Desk) -> None:
    async with opened(desk.node) as client:
        entries = await pending(client, desk.node, "a", "b")
        given: dict[str, Any] = {"user": "alice", "session": "tab"}
        planned = (await desk.ask("skip", **given))["planned"]
        assert (planned["count"], planned["items"]) == (2, entries)
        refusal = await desk.ask("skip", 409, **given, confirm=1)
        assert refusal["error"]["code"] == "not_confirmed"
        assert (await desk.see("pending"))["pending"][0]["pending"] == 2
        assert (await desk.see("audit"))["audit"] == []
        assert await desk.do("skip", **given) == {"skipped": 2}
        assert await desk.do("skip", **given) == {}
        records = (await desk.see("audit"))["audit"]
        assert [one["state"] for one in records] == ["done", "begun"] * 2
        assert (records[3]["by"], records[3]["reason"], records[3]["about"]) == ("api:olga", "because", given)
        assert (await desk.see("pending"))["pending"] == []
        why = (await desk.see(f"events/{entries[0]}", user="alice"))["sessions"][0]
        assert why["fate"]["state"] == "skipped"


async def test_a_redelivery_comes_at_once_and_counts_no_attempt(desk: Desk) -> None:
    async with opened(desk.node) as client:
        (entry,) = await pending(client, desk.node, "a")
        assert await desk.do("redeliver", user="alice", session="tab", entries=[entry]) == {"sent_again": 1}
        (again,) = await client.events(1)
        assert (again["id"], again["delivery"]) == (entry, 2)
        (row,) = (await desk.see("entries", user="alice", session="tab"))["entries"]
        assert row["attempts"] == 1


async def test_what_was_given_up_is_replayed_to_its_session_on_the_open_socket(desk: Desk) -> None:
    async with opened(desk.node) as client, opened(desk.node, session="other") as other:
        (entry,) = await pending(client, desk.node, "a")
        await other.until_op("caught_up")
        assert await desk.do("dead_letter", user="alice", session="tab") == {"dead_lettered": 1}
        assert await client.until_op("dropped") == {"op": "dropped", "ids": [entry], "reason": "dead_lettered"}
        (letter,) = (await desk.see("dead-letters"))["dead_letters"]
        assert (letter["entry"], letter["reason"]) == (entry, "operator")
        assert await desk.do("replay", letters=[letter["id"]]) == {"put_back": 1}
        assert await desk.do("replay", letters=[letter["id"]]) == {}
        (again,) = await client.events(1)
        assert again["id"] == entry
        client.send("ack", ids=[entry], ref=1)
        await client.until_op("acked")
        assert (await desk.see("dead-letters"))["dead_letters"] == []


async def test_a_dead_letter_whose_session_is_over_is_published_again_for_everyone(desk: Desk) -> None:
    async with opened(desk.node) as client:
        await pending(client, desk.node, "a")
        await desk.do("dead_letter", user="alice", session="tab")
        await desk.do("end_session", user="alice", session="tab")
    async with opened(desk.node, session="other", start="new") as other:
        await other.until_op("caught_up")
        done = await desk.ask("replay", where={"user": "alice"}, confirm=1)
        assert (done["results"], list(done["left"].values())) == ({"no_session": 1}, ["no_session"])
        assert await desk.do("replay", where={"user": "alice"}, to="everyone") == {"published": 1}
        assert texts(await other.events(1)) == ["a"]
    assert (await desk.see("dead-letters"))["dead_letters"] == []


async def test_dead_letters_are_dropped_by_filter(desk: Desk) -> None:
    async with opened(desk.node) as client:
        entries = await pending(client, desk.node, "a", "b")
        await desk.do("dead_letter", user="alice", session="tab", entries=entries)
        assert await desk.do("drop", where={"type": "memo"}) == {}
        assert await desk.do("drop", where={"user": "alice", "reason": "operator"}) == {"dropped": 2}
    assert (await desk.see("dead-letters"))["dead_letters"] == []


async def test_a_session_that_is_ended_is_closed_and_not_opened_again_by_its_node(desk: Desk) -> None:
    async with opened(desk.node) as client:
        await pending(client, desk.node, "a")
        assert await desk.do("end_session", user="alice", session="tab") == {"ended": 1}
        assert (await client.until_closed()).code == 4506
    assert (await desk.see("sessions", user="alice"))["sessions"] == []
    assert (await desk.ask("end_session", user="alice", session="tab"))["planned"]["count"] == 0


async def test_a_drained_node_sends_its_clients_elsewhere_until_it_is_let_go(desk: Desk) -> None:
    async with opened(desk.node) as client:
        await client.until_op("caught_up")
        assert await desk.do("drain", node="n1") == {"drained": 1}
        assert (await client.until_op("goaway"))["reason"] == "draining"
        assert (await client.until_closed()).code == 4001
    status, _, error = await refused(desk.node, authorization=bearer(token_of()))
    assert (status, error["code"]) == (503, "draining")

    async def held() -> bool:
        return [(one["state"], one["held_by"]) for one in (await desk.see("nodes"))["nodes"]] == [("held", "api:olga")]

    await until(held)
    assert await desk.do("undrain", node="n1") == {"undrained": 1}
    await until(lambda: not desk.node.draining)
    async with opened(desk.node) as client:
        await client.until_op("caught_up")


async def test_a_paused_type_is_refused_where_it_is_published(desk: Desk) -> None:
    assert await desk.do("pause", type="chatter") == {"paused": 1}
    with pytest.raises(TypePaused):
        await publish(desk.node, "a", type="chatter")
    await publish(desk.node, "b")
    (row,) = (await desk.see("paused"))["paused"]
    assert (row["type"], row["by"], row["reason"]) == ("chatter", "api:olga", "because")
    assert await desk.do("resume", type="chatter") == {"resumed": 1}
    await publish(desk.node, "c", type="chatter")


async def test_the_librarys_own_types_can_not_be_paused(desk: Desk) -> None:
    refusal = await desk.ask("pause", 400, type="agent_completed")
    assert refusal["error"]["field"] == "type"


@pytest.mark.requirement("R17")
async def test_a_run_is_shown_with_its_deadlines_and_what_became_of_each(desk: Desk) -> None:
    async with desk.node.bus.run(user="alice", agent="planner") as run:
        await run.thinking("hm")
        await run.flush()
        seen = await desk.see(f"runs/{run.id}", user="alice")
        assert {one["deadline"]: one["state"] for one in seen["deadlines"]} == {"thinking": "met", "agent": "open"}
    seen = await desk.see(f"runs/{run.id}", user="alice")
    assert [(one["deadline"], one["state"], one["late_ms"]) for one in seen["deadlines"]] == [
        ("thinking", "met", None),
        ("agent", "met", None),
    ]
    assert seen["limits"]["thinking_ms"] == seen["deadlines"][0]["due_ms"] - seen["events"][0]["stored_ms"]


async def test_a_purged_user_has_nothing_left(desk: Desk) -> None:
    async with opened(desk.node) as client:
        await pending(client, desk.node, "a", "b")
        async with desk.node.bus.run(user="alice", agent="planner") as run:
            await run.thinking("hm")
        done = await desk.do("purge", user="alice")
        assert done["erased"] >= 4
        assert (await client.until_closed()).code == 4506
    # The node's last word of the session, and what it was about to write down.
    await until(lambda: not desk.node.reader.is_busy)
    assert (await desk.ask("purge", user="alice"))["planned"]["items"] == []
    page = await desk.see("users/alice")
    assert (page["stored"], page["sessions"], page["runs"]) == (0, [], [])


@pytest.mark.parametrize(
    "path, field",
    [
        ("operator-events?kind=missed", "kind"),
        ("rates?run=run_1", "user"),
        ("rates?event=e-1", "user"),
        ("runs?state=over", "state"),
    ],
)
async def test_a_question_that_makes_no_sense_is_refused_by_name(desk: Desk, path: str, field: str) -> None:
    refused = await desk.http.get(f"/admin/v1/{path}")
    assert (refused.status_code, refused.json()["error"]["field"]) == (400, field)


@pytest.mark.parametrize(
    "given",
    [
        {"action": "explode"},
        {"action": "skip", "user": "alice"},
        {"action": "skip", "user": "alice", "session": "tab", "node": "n1"},
        {"action": "replay"},
        {"action": "replay", "letters": ["nonsense"]},
        {"action": "replay", "letters": ["1:1-1"], "where": {}},
        {"action": "drop", "where": {"colour": "red"}},
        {"action": "drop", "where": {"since_ms": "today"}},
        {"action": "skip", "user": "run_1", "session": "tab"},
        {"action": "skip", "user": "alice", "session": "tab", "confirm": True},
        {"action": "pause", "type": "a type", "reason": ""},
        {"action": "drain", "node": "n1", "reason": 5},
    ],
)
async def test_an_action_that_makes_no_sense_is_refused_by_name(desk: Desk, given: dict[str, Any]) -> None:
    answer = await desk.http.post("/admin/v1/actions", json=given)
    assert answer.status_code == 400
    assert answer.json()["error"]["field"]
    assert (await desk.see("audit"))["audit"] == []
