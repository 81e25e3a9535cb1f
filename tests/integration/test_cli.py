"""The command `eventbus` as a real process, against a real server and a real node."""

from __future__ import annotations

import json
import os
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from eventbus import inspection
from eventbus.cli import cli
from eventbus.config import StoreSettings
from eventbus.doctor import DOCTOR_USER
from eventbus.ids import NodeName, UserId
from eventbus.inspection import Fate, Timing, Verdict
from eventbus.store.redis_store import RedisStore
from gateway.node import Node
from tests.support.processes import ROOT, Child, Processes
from tests.support.rights import LEAST_RIGHTS, PASSWORD, USER
from tests.support.servers import NewServer, request
from tests.support.waiting import until
from tests.support.wire_client import SECRET, Nodes, WireClient, ids, opened, publish

ALICE = UserId("alice")


@pytest.fixture
def secret_file(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_text(SECRET)
    return path


class Command:
    """Runs `eventbus` against one server."""

    def __init__(self, processes: Processes, url: str) -> None:
        self._processes = processes
        self._env = {"EVENTBUS_REDIS_URL": url}

    def start(self, *words: str | Path, env: Mapping[str, str] | None = None) -> Child:
        return self._processes.eventbus(*words, env={**self._env, **(env or {})})

    async def run(self, *words: str | Path, status: int = 0, env: Mapping[str, str] | None = None) -> Child:
        child = self.start(*words, env=env)
        assert await child.wait() == status, f"{words}: {child.stdout}{child.stderr}"
        assert "Traceback" not in child.stderr
        return child

    async def json(
        self, *words: str | Path, status: int = 0, env: Mapping[str, str] | None = None
    ) -> list[dict[str, Any]]:
        found = json.loads((await self.run(*words, "--json", status=status, env=env)).stdout)
        assert isinstance(found, list)
        return found


@pytest.fixture
def command(processes: Processes, server_url: str) -> Command:
    return Command(processes, server_url)


@asynccontextmanager
async def looked_at(url: str, **settings: Any) -> AsyncIterator[RedisStore]:
    store = RedisStore(url, StoreSettings(**settings))
    try:
        yield store
    finally:
        await store.aclose()


async def delivered(client: WireClient, count: int) -> list[str]:
    await client.until_op("caught_up")
    return ids(await client.events(count))


def one(rows: list[dict[str, Any]], **wanted: object) -> dict[str, Any]:
    (row,) = [row for row in rows if wanted.items() <= row.items()]
    return row


# --- publish and tail -------------------------------------------------------------------------------------------------


async def test_publish_prints_the_receipt_and_a_repeated_id_is_stored_once(command: Command) -> None:
    words = ("publish", "--user", "alice", "--type", "note", "--data", '{"text": "hm"}', "--id", "order-17")
    (first,) = await command.json(*words)
    (second,) = await command.json(*words)
    assert first == {"id": "order-17", "user": "alice", "entry": first["entry"], "duplicate": False, "attempts": 1}
    assert (second["entry"], second["duplicate"]) == (first["entry"], True)
    shown = await command.run(*words)
    assert first["entry"] in shown.stdout


@pytest.mark.requirement("R36")
async def test_publish_for_several_users_prints_a_receipt_each_under_one_id(command: Command, server_url: str) -> None:
    words = ("publish", "--user", "alice", "--user", "bob", "--type", "note", "--data", "{}")
    rows = await command.json(*words)
    assert [row["user"] for row in rows] == ["alice", "bob"]
    assert len({row["id"] for row in rows}) == 1
    again = await command.run(*words, "--user", "cyd", "--id", rows[0]["id"])
    assert [line.endswith("duplicate") for line in again.stdout.splitlines()] == [True, True, False]


@pytest.mark.slow
@pytest.mark.requirement("R14")
async def test_rates_are_shown_by_type_for_all_and_for_a_user(command: Command, node: Node) -> None:
    async with opened(node) as client:
        await publish(node, "a", "b")
        await publish(node, "c", type="memo")
        client.send("ack", ids=await delivered(client, 3), ref="r")
        await client.expect("acked", ref="r")
    rows = await command.json("rates")
    assert [row["type"] for row in rows] == ["memo", "note", "all"]
    wanted = {"stored": 3, "received": 3, "displayed": 0, "dead_lettered": 0, "success": 1.0}
    assert wanted.items() <= rows[-1].items()
    assert await command.json("rates", "--user", "alice") == rows
    (memo, _) = await command.json("rates", "--user", "alice", "--type", "memo")
    assert (memo["type"], memo["received"]) == ("memo", 1)
    assert (await command.json("rates", "--user", "bob")) == [
        {**dict.fromkeys(rows[0], 0), "type": "all", "success": None}
    ]
    table = (await command.run("rates")).stdout
    assert re.search(r"^all +3 +3 +100 %", table, re.MULTILINE)
    refused = await command.run("rates", "--run", "run_1", status=2)
    assert refused.stderr.startswith("eventbus: user: ")


async def test_publish_takes_its_data_from_a_file(command: Command, server_url: str, tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    path.write_text('{"text": "Zoë"}')
    words = ("--user", "alice", "--type", "note", "--thread", "th", "--run", "run_1", "--data", f"@{path}")
    (row,) = await command.json("publish", *words)
    async with looked_at(server_url) as store:
        report = await inspection.fate(store, ALICE, row["id"], partitions=1024)
    assert report is not None
    assert "Zoë".encode() in report.body


async def test_publish_to_a_store_that_is_away_ends_with_status_3(processes: Processes) -> None:
    away = Command(processes, "redis://127.0.0.1:1/0")
    words = ("publish", "--user", "alice", "--type", "note", "--data", "{}")
    child = await away.run(*words, status=3, env={"EVENTBUS_PUBLISH_DEADLINE_MS": "300"})
    assert len(child.stderr.splitlines()) == 1


@pytest.mark.parametrize("way", ["secret", "token-file"])
async def test_tail_shows_events_as_they_come_and_acks_them(
    command: Command, node: Node, secret_file: Path, tmp_path: Path, way: str
) -> None:
    if way == "secret":
        access: tuple[str | Path, ...] = ("--user", "alice", "--jwt-secret-file", secret_file)
    else:
        made = await command.run("token", "--user", "alice", "--jwt-secret-file", secret_file)
        (tmp_path / "token").write_text(made.stdout)
        access = ("--token-file", tmp_path / "token")
    url = f"ws://127.0.0.1:{node.port}/v1/connect"
    tail = command.start("tail", "--url", url, *access, "--session", "mine", "--json", "--count", "3")
    await tail.line("connected")
    entries = await publish(node, "a", "b", "c")
    assert await tail.wait() == 0
    lines = [json.loads(line) for line in tail.stdout.splitlines()]
    assert [line["id"] for line in lines] == entries
    assert [line["event"]["data"]["text"] for line in lines] == ["a", "b", "c"]
    assert {line["delivery"] for line in lines} == {1}

    async def acked() -> bool:
        return [row["pending"] for row in await command.json("sessions", "--user", "alice")] == [0]

    await until(acked)


async def test_tail_shows_lines_for_people_and_leaves_on_ctrl_c_without_a_trace(
    command: Command, node: Node, secret_file: Path
) -> None:
    await publish(node, "\x1b[2J", thread="th", run="run_1")
    url = f"http://127.0.0.1:{node.port}"
    tail = command.start("tail", "--url", url, "--user", "alice", "--jwt-secret-file", secret_file, "--earliest")
    line = await tail.line("note")
    assert "th/run_1" in line
    assert "\x1b" not in tail.stdout + tail.stderr
    tail.interrupt()
    assert await tail.wait() == 0
    assert "Traceback" not in tail.stderr
    # The session was its own, and the store was at hand to end it.
    assert await command.json("sessions", "--user", "alice") == []


async def test_tail_with_a_token_that_the_node_refuses_ends_with_status_2(command: Command, node: Node) -> None:
    child = await command.run("tail", "--url", f"http://127.0.0.1:{node.port}", "--token", "nonsense", status=2)
    assert child.stderr.splitlines()[-1].startswith("eventbus: ")


# --- what waits -------------------------------------------------------------------------------------------------------

PENDING_KEYS = ["user", "session", "pending", "oldest_ms", "deliveries", "node", "verdict"]
SESSION_KEYS = ["user", "session", "state", "node", "cursor", "pending", "last_seen_ms"]
DEAD_KEYS = ["id", "user", "session", "entry", "type", "reason", "deliveries", "node", "time_ms"]
NODE_KEYS = ["node", "address", "version", "state", "connections", "sessions", "started_ms"]


@pytest.mark.slow
async def test_where_nothing_is_the_commands_say_so_and_what_to_do_next(command: Command) -> None:
    for words in (["pending"], ["pending", "--user", "alice"], ["sessions"], ["dead"], ["nodes"]):
        shown = await command.run(*words)
        assert shown.stdout == ""
        assert "eventbus" in shown.stderr
        assert await command.json(*words) == []


@pytest.mark.slow
@pytest.mark.requirement("R27")
async def test_pending_tells_how_many_wait_how_old_and_why(
    nodes_on_each: Nodes, processes: Processes, secret_file: Path
) -> None:
    """R27: from sent to not acked to offline, as an operator sees it."""
    node = await nodes_on_each.start(ack_timeout_ms=300, jitter=0, max_deliveries=20)
    command = Command(processes, nodes_on_each.url)
    async with opened(node) as client:
        await publish(node, "a", "b")
        await delivered(client, 2)
        await client.events(2)  # again: the first time-out is over
        row = one(await command.json("pending"))
        assert list(row) == PENDING_KEYS
        assert row["verdict"] == "not_acking"
        assert (row["user"], row["session"], row["node"]) == ("alice", "tab", "n1")
        assert (row["pending"], row["deliveries"] >= 2, row["oldest_ms"] > 300) == (2, True, True)
        shown = await command.run("pending")
        assert "not_acking" in shown.stdout
        assert "not_acking: " in shown.stderr

    async def away() -> bool:
        return bool(one(await command.json("pending", "--user", "alice"))["verdict"] == "offline")

    await until(away)
    await publish(node, "c")
    row = one(await command.json("pending", "--user", "alice"))
    assert (row["pending"], row["node"], row["verdict"]) == (3, None, "offline")


@pytest.mark.requirement("R27")
async def test_a_client_that_nacks_is_told_from_one_that_is_silent(nodes: Nodes, command: Command) -> None:
    node = await nodes.start()
    async with opened(node) as client:
        await publish(node, "a")
        (entry,) = await delivered(client, 1)
        client.send("nack", id=entry, delay_ms=0)
        await client.events(1)
        assert one(await command.json("pending"))["verdict"] == "nacking"


@pytest.mark.slow
@pytest.mark.requirement("R27")
async def test_the_sessions_of_a_killed_node_are_told_as_such(
    processes: Processes, server_url: str, secret_file: Path
) -> None:
    command = Command(processes, server_url)
    words = ("--redis-url", server_url, "--port", "0", "--admin-port", "0", "--jwt-secret-file", secret_file)
    gateway = processes.gateway("serve", *words, "--node", "doomed")
    url = (await gateway.line("^ready ")).split("url=")[1].split()[0]
    tail = command.start("tail", "--url", url, "--user", "alice", "--jwt-secret-file", secret_file)
    await tail.line("connected")
    assert one(await command.json("sessions", "--user", "alice"))["state"] == "live"
    tail.freeze()  # else it would come back, or its session be detached
    gateway.kill()
    async with looked_at(server_url) as store:
        await store.leave_node(NodeName("doomed"))  # else its last sign of life counts for 15 s
    await command.run("publish", "--user", "alice", "--type", "note", "--data", "{}")
    assert one(await command.json("sessions"))["state"] == "node_gone"
    row = one(await command.json("pending"))
    assert (row["verdict"], row["node"], row["pending"]) == ("node_gone", "doomed", 1)


async def test_sessions_and_nodes_have_the_names_of_the_contract(nodes: Nodes, command: Command) -> None:
    node = await nodes.start(node_heartbeat_ms=50)
    async with opened(node):
        (session,) = await command.json("sessions")
        assert list(session) == SESSION_KEYS
        assert (session["user"], session["session"], session["state"], session["node"]) == (
            "alice",
            "tab",
            "live",
            "n1",
        )

        async def figures() -> dict[str, Any] | None:
            row = one(await command.json("nodes"))
            return row if row["sessions"] == 1 else None

        row = await until(figures, 8_000)
        assert row is not None
        assert list(row) == NODE_KEYS
        assert (row["node"], row["state"], row["connections"]) == ("n1", "ready", 1)
        assert "n1" in (await command.run("nodes")).stdout
        assert "tab" in (await command.run("sessions")).stdout


async def test_all_users_are_found_over_pages_of_a_real_server(redis_url: str) -> None:
    timing = Timing()
    async with looked_at(redis_url) as store:
        nodes = Nodes(redis_url)
        async with nodes:
            node = await nodes.start()
            users = [f"user-{number:03}" for number in range(60)]
            for user in users:
                async with opened(node, user):
                    pass
                await publish(node, "a", user=user)

            async def all_offline() -> bool:
                found: dict[str, Verdict] = {}
                cursor = ""
                while True:
                    page = await inspection.pending_of_users(store, timing, partitions=1024, cursor=cursor, count=10)
                    found.update({row.user: row.verdict for row in page.rows})
                    if not page.cursor:
                        return sorted(found) == users and set(found.values()) == {Verdict.OFFLINE}
                    cursor = page.cursor

            await until(all_offline)


# --- dead letters and fates -------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.requirement("R1", "R3")
async def test_what_became_of_an_event_is_told_to_its_end(nodes: Nodes, processes: Processes) -> None:
    """R1: acked by one session, given up for another after the attempts of R3, and both can be looked up."""
    node = await nodes.start(ack_timeout_ms=100, max_deliveries=3, jitter=0, max_wait_ms=100)
    command = Command(processes, nodes.url)
    async with opened(node, session="good") as good, opened(node, session="bad") as bad:
        receipt = await node.bus.publish(user="alice", type="note", data={"text": "hm"}, id="order-17")
        (entry,) = await delivered(good, 1)
        good.send("ack", ids=[entry], ref=1)
        await good.until_op("acked")
        await bad.until_op("dropped")
        (letter,) = await command.json("dead")
        assert list(letter) == DEAD_KEYS
        wanted = {"user": "alice", "session": "bad", "entry": receipt.entry, "type": "note", "reason": "ack_timeout"}
        assert letter.items() >= {**wanted, "deliveries": 3, "node": "n1"}.items()
        for wanted_id in ("order-17", receipt.entry):
            fates = await command.json("event", "--user", "alice", wanted_id)
            assert one(fates, session="good")["state"] == "acked"
            assert one(fates, session="good")["time_ms"] > 0
            assert one(fates, session="bad").items() >= {"state": "dead_lettered", "deliveries": 3}.items()
        shown = await command.run("event", "--user", "alice", "order-17")
        assert "dead_lettered" in shown.stdout
        (full,) = await command.json("dead", "show", letter["id"])
        assert full["event"]["data"] == {"text": "hm"}
        assert "order-17" in (await command.run("dead", "show", letter["id"])).stdout
        assert letter["id"] in (await command.run("dead", "list", "--user", "alice", "--since", "1h")).stdout
    assert await command.json("dead", "list", "--user", "bob") == []
    assert await command.json("dead", "show", "1:1-1", status=1) == []


async def test_an_event_that_nobody_knows_ends_with_status_1(command: Command) -> None:
    child = await command.run("event", "--user", "alice", "nobody-knows", status=1)
    assert "retention" in child.stderr
    assert await command.json("event", "--user", "alice", "nobody-knows", status=1) == []


# --- the doctor -------------------------------------------------------------------------------------------------------


def states(checks: list[dict[str, Any]]) -> Mapping[str, str]:
    return {check["check"]: check["state"] for check in checks}


@pytest.mark.slow
async def test_the_doctor_finds_a_well_run_installation_well(
    nodes: Nodes, processes: Processes, new_server: NewServer, secret_file: Path
) -> None:
    server = new_server(appendonly=True)
    node = await nodes.start(url=server.url)
    command = Command(processes, server.url)
    words = ("doctor", "--url", f"http://127.0.0.1:{node.port}", "--jwt-secret-file", secret_file)

    async def listed() -> bool:
        return [row["state"] for row in await command.json("nodes")] == ["ready"]

    await until(listed)
    found = states(await command.json(*words))
    assert [check for check, state in found.items() if state != "ok"] == ["replicas"]
    assert {"store path", "nodes", "readyz", "delivery path"} <= set(found)
    shown = await command.run(*words)
    assert "published, delivered" in shown.stdout
    # It leaves no session behind.
    assert await command.json("sessions", "--user", DOCTOR_USER) == []
    assert await command.json("pending") == []


async def test_the_doctor_works_on_every_kind_of_server_and_leaves_no_key_without_an_end(
    processes: Processes, redis_url: str
) -> None:
    """The fixture's servers have no append-only file: that is the problem it must find, and status 1."""
    found = states(await Command(processes, redis_url).json("doctor", status=1))
    assert [check for check, state in found.items() if state == "problem"] == ["appendonly"]
    assert found["store path"] == "ok"


async def test_the_doctor_tells_settings_that_lose_events(processes: Processes, new_server: NewServer) -> None:
    server = new_server(appendonly=True)
    for name, value in (("maxmemory-policy", "allkeys-lru"), ("stream-node-max-bytes", "4096"), ("appendfsync", "no")):
        assert request(server.url, "CONFIG", "SET", name, value) == b"+OK"
    checks = await Command(processes, server.url).json("doctor", status=1)
    found = states(checks)
    assert found["maxmemory-policy"] == "problem"
    assert (found["stream-node-max-bytes"], found["appendfsync"]) == ("warning", "warning")
    assert all(check["advice"] for check in checks if check["state"] != "ok")


async def test_the_doctor_tells_the_step_for_which_the_user_lacks_the_right(
    processes: Processes, new_server: NewServer
) -> None:
    server = new_server(appendonly=True)
    rights = ("on", ">secret", "~eb:*", "&eb:*", "+@all", "-xack", "-config")
    assert request(server.url, "ACL", "SETUSER", "bus", *rights) == b"+OK"
    command = Command(processes, server.url.replace("redis://", "redis://bus:secret@"))
    checks = await command.json("doctor", status=1)
    assert states(checks)["settings"] == "warning"
    path = one(checks, check="store path")
    assert path["state"] == "problem"
    assert path["found"].startswith("ack it: ")


async def test_the_rights_of_the_page_are_enough(processes: Processes, new_server: NewServer) -> None:
    server = new_server(appendonly=True)
    assert request(server.url, "ACL", "SETUSER", USER, *LEAST_RIGHTS) == b"+OK"
    command = Command(processes, server.url.replace("redis://", f"redis://{USER}:{PASSWORD}@"))
    found = states(await command.json("doctor"))
    assert [check for check, state in found.items() if state != "ok"] == ["replicas", "nodes"]


async def test_the_doctor_tells_a_secret_that_the_nodes_do_not_have(
    node: Node, command: Command, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.write_text("another-secret-of-at-least-32-bytes!")
    url = f"http://127.0.0.1:{node.port}"
    path = one(await command.json("doctor", "--url", url, "--jwt-secret-file", other, status=1), check="delivery path")
    assert path["state"] == "problem"
    assert "secret" in path["advice"]


def test_the_command_is_installed() -> None:
    """The name in pyproject.toml is the one that the documents use."""
    from importlib.metadata import entry_points

    found = {entry.name: entry.value for entry in entry_points(group="console_scripts")}
    if "eventbus" not in found and os.environ.get("EVENTBUS_TEST_NO_SKIP", "") in ("", "0"):
        pytest.skip("needs the package eventbus (installed, not run from its checkout)")
    assert found["eventbus"] == "eventbus.cli:main"


def test_the_page_knows_every_command_verdict_and_fate() -> None:
    page = (ROOT / "docs" / "cli.md").read_text()
    words = [*cli.commands, *Verdict, *Fate]
    assert [word for word in words if f"`{word}`" not in page] == []
