"""R23: what is revoked is closed on every node within two seconds, and nobody else is disturbed."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from eventbus import revoking
from eventbus.ids import SessionId, UserId
from eventbus.store.revoking import Revoke, Subject
from gateway.node import Node
from tests.integration.test_serve_command import SECRET as SERVED_SECRET
from tests.integration.test_serve_command import client as served_client
from tests.integration.test_serve_command import closed_with, serve
from tests.support.processes import Child, Processes
from tests.support.servers import request
from tests.support.stalls import within
from tests.support.subscribing import token as served_token
from tests.support.waiting import until
from tests.support.wire_client import SECRET, Nodes, WireClient, bearer, publish, refused, texts, token_of, wired

WITHIN_MS = 2_000
ADA = UserId("ada")

pytestmark = pytest.mark.requirement("R23")


async def is_accepted(node: Node, token: str) -> bool:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{node.port}") as http:
        return (await http.get("/v1/events", headers={"Authorization": bearer(token)})).status_code == 200


async def issued_later(node: Node, user: str = "ada", **claims: Any) -> str:
    """A token that is good again. `iat` is in whole seconds, so it takes up to one."""
    token = ""

    async def good() -> bool:
        nonlocal token
        token = token_of(user, **claims)
        return await is_accepted(node, token)

    await until(good, message="a token that is issued later is taken")
    return token


class Two:
    """Two nodes, and on each a session of each device of Ada and Bob."""

    def __init__(self, nodes: list[Node]) -> None:
        self.nodes = nodes
        self.clients: dict[tuple[str, str, str], WireClient] = {}
        self.tokens: dict[tuple[str, str], str] = {}

    def on_each_node(self, user: str, device: str) -> list[WireClient]:
        return [self.clients[node.name, user, device] for node in self.nodes]


@pytest.fixture
async def two(nodes_on_each: Nodes) -> AsyncIterator[Two]:
    made = Two([await nodes_on_each.start(name, node_heartbeat_ms=5_000) for name in ("n1", "n2")])
    async with AsyncExitStack() as stack:
        for user in ("ada", "bob"):
            for device in ("phone", "tablet"):
                made.tokens[user, device] = token_of(user, jti=f"{user}-{device}")
                for node in made.nodes:
                    client = await stack.enter_async_context(wired(node, made.tokens[user, device]))
                    await client.hello(session=f"{device}-{node.name}")
                    await client.expect("caught_up")
                    made.clients[node.name, user, device] = client
        yield made


CASES: list[tuple[dict[str, Any], Callable[[Two], list[WireClient]], int]] = [
    ({"jti": "ada-phone"}, lambda two: two.on_each_node("ada", "phone"), 4501),
    ({"user": ADA}, lambda two: two.on_each_node("ada", "phone") + two.on_each_node("ada", "tablet"), 4501),
    ({"user": ADA, "session": SessionId("phone-n2")}, lambda two: two.on_each_node("ada", "phone")[1:], 4506),
]


@pytest.mark.parametrize("way", ["message", "poll"])
@pytest.mark.parametrize("subject, whose, code", CASES, ids=["jti", "user", "session"])
async def test_connections_on_every_node_are_closed_in_time_and_others_go_on(
    two: Two, way: str, subject: dict[str, Any], whose: Callable[[Two], list[WireClient]], code: int
) -> None:
    store = two.nodes[0].store
    if way == "poll":
        # A node that is not listed is not told.
        for node in two.nodes:
            await store.leave_node(node.name)
        assert await store.nodes() == []
    async with within(WITHIN_MS / 1000):
        await revoking.revoke(store, Revoke(subject=Subject(**subject)))
        closed = [await client.until_closed() for client in whose(two)]

    assert [one.code for one in closed] == [code] * len(closed)
    await publish(two.nodes[0], "still here", user="bob")
    await publish(two.nodes[0], "still here", user="ada")
    for client in two.clients.values():
        if client not in whose(two):
            assert texts(await client.events(1)) == ["still here"]


@pytest.mark.parametrize(
    "subject, device", [({"jti": "ada-phone"}, "phone"), ({"user": ADA}, "phone"), ({"user": ADA}, "tablet")]
)
async def test_a_revoked_token_is_taken_by_no_node_and_a_later_one_by_each(
    two: Two, subject: dict[str, Any], device: str
) -> None:
    old = two.tokens["ada", device]
    await revoking.revoke(two.nodes[0].store, Revoke(subject=Subject(**subject)))
    for node in two.nodes:
        async with within(WITHIN_MS / 1000):
            await until(lambda node=node: _is_refused(node, old))  # type: ignore[misc]
        status, _, error = await refused(node, authorization=bearer(old))
        assert (status, error["code"]) == (401, "token_revoked")
        async with wired(node) as client:
            client.send("hello", token=old)
            assert (await client.until_closed()).code == 4501
    for node in two.nodes:
        later = await issued_later(node)
        async with wired(node, later) as client:
            await client.hello(session="phone-n1")
        assert await is_accepted(node, two.tokens["bob", "phone"])


async def _is_refused(node: Node, token: str) -> bool:
    return not await is_accepted(node, token)


async def test_a_revoked_session_has_ended_and_its_token_opens_only_another(two: Two) -> None:
    node = two.nodes[0]
    await publish(node, "one", user="ada")
    client = two.clients["n1", "ada", "phone"]
    await client.events(1)
    await revoking.revoke(node.store, Revoke(subject=Subject(user=ADA, session=SessionId("phone-n1"))))
    assert (await client.until_closed()).code == 4506
    assert "phone-n1" not in [record.session for record in await node.store.sessions(ADA)]
    async with wired(node, two.tokens["ada", "phone"]) as again:
        again.send("hello", session="phone-n1")
        await again.expect("error", code="session_revoked")
        assert (await again.until_closed()).code == 4506
    async with wired(node, two.tokens["ada", "phone"]) as again:
        await again.hello(session="another")


async def test_a_node_that_starts_later_knows_what_was_revoked_before(two: Two, nodes_on_each: Nodes) -> None:
    await revoking.revoke(two.nodes[0].store, Revoke(subject=Subject(user=ADA)))
    late = await nodes_on_each.start("n3")
    status, _, error = await refused(late, authorization=bearer(two.tokens["ada", "phone"]))
    assert (status, error["code"]) == (401, "token_revoked")
    assert await is_accepted(late, two.tokens["bob", "phone"])


async def test_a_list_that_can_not_be_read_keeps_new_connections_out(nodes: Nodes) -> None:
    """As with a store that is away: 503, and not ready."""
    node = await nodes.start()
    token = token_of("ada")
    assert request(nodes.url, "SET", node.store.keys.revoked.records, "wrong") == b"+OK"  # type: ignore[attr-defined]
    late = await nodes.start("late", proof_wait_ms=300)
    status, head, error = await refused(late, authorization=bearer(token))
    assert (status, error["code"]) == (503, "store_unavailable")
    assert "retry-after" in head
    await until(lambda: "revocations" in (late.not_ready() or ""), message=lambda: repr(late.not_ready()))
    assert request(nodes.url, "DEL", node.store.keys.revoked.records) == b":1"  # type: ignore[attr-defined]
    await until(lambda: late.not_ready() is None)
    assert await is_accepted(late, token)


# --- by the command line and by HTTP ----------------------------------------------------------------------------------


async def run(
    processes: Processes, url: str, *words: str | Path, status: int = 0, env: dict[str, str] | None = None
) -> Child:
    child = processes.eventbus(*words, env={"EVENTBUS_REDIS_URL": url, **(env or {})})
    assert await child.wait() == status, f"{words}: {child.stdout}{child.stderr}"
    assert "Traceback" not in child.stderr
    return child


async def test_the_command_revokes_and_lists(processes: Processes, nodes: Nodes, tmp_path: Path) -> None:
    node = await nodes.start()
    words = ("token", "--user", "ada", "--jti", "t1")
    made = (await run(processes, nodes.url, *words, env={"EVENTBUS_JWT_SECRET": SECRET})).stdout.strip()
    (tmp_path / "leaked").write_text(made)
    async with wired(node, made) as client, wired(node, token_of("bob")) as other:
        await client.hello()
        await other.hello()
        child = await run(
            processes, nodes.url, "revoke", "--token", tmp_path / "leaked", "--reason", "leaked", "--yes", "--json"
        )
        [found] = json.loads(child.stdout)
        assert (await client.until_closed()).code == 4501
        await other.expect("caught_up")
        await other.nothing_more()
    assert (found["kind"], found["jti"], found["reason"]) == ("jti", "t1", "leaked")
    # Until the token expires by itself: `exp` is in whole seconds.
    assert found["until_ms"] % 1_000 == 0
    assert found["until_ms"] - found["revoked_ms"] <= 3_601_000
    listed = json.loads((await run(processes, nodes.url, "revocations", "--json")).stdout)
    assert listed == [found]
    table = (await run(processes, nodes.url, "revocations")).stdout
    assert "t1" in table
    assert "leaked" in table


async def test_nothing_is_revoked_when_nobody_says_yes(processes: Processes, nodes: Nodes) -> None:
    await run(processes, nodes.url, "revoke", "--user", "ada", status=1)
    assert json.loads((await run(processes, nodes.url, "revocations", "--json")).stdout) == []


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("--session", "tab"),
        ("--jti", "t1", "--user", "ada"),
        ("--user", "run_1"),
    ],
)
async def test_what_makes_no_sense_is_a_wrong_usage(processes: Processes, nodes: Nodes, words: tuple[str, ...]) -> None:
    await run(processes, nodes.url, "revoke", *words, "--yes", status=2)


@pytest.mark.parametrize("workers", [1, 2])
async def test_an_operator_revokes_through_the_admin_port(
    processes: Processes, server_url: str, tmp_path: Path, workers: int
) -> None:
    secret = tmp_path / "secret"
    secret.write_text(SERVED_SECRET)
    served = await serve(processes, server_url, secret, "--workers", str(workers))
    asked = {"user": "ada", "reason": "gone"}
    async with (
        served_client(served, "ada") as (ada, _),
        served_client(served, "bob") as (bob, _),
        httpx.AsyncClient(base_url=served.admin) as http,
    ):
        assert (await http.post("/admin/v1/revocations", json=asked)).status_code == 401
        headers = {"Authorization": f"Bearer {served_token('boss', scopes=['admin'])}"}

        async def is_taken() -> bool:
            return (await http.post("/admin/v1/revocations", json=asked, headers=headers)).status_code == 201

        # A parent of workers begins to read when its workers do.
        await until(is_taken)
        _, code = await closed_with(ada)
        assert code == 4501
        [found] = (await http.get("/admin/v1/revocations", headers=headers)).json()["revocations"]
        assert (found["user"], found["by"], found["reason"]) == ("ada", "boss", "gone")
        await bob.send('{"op":"ping","ref":"r"}')
        assert json.loads(await bob.recv())["op"] in ("caught_up", "pong")
    served.child.terminate()
    assert await served.child.wait() == 0
