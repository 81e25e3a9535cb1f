"""What operators do with the command, as a real process against a real server and a real node."""

from __future__ import annotations

import re
from typing import Any

import pytest

from gateway.node import Node
from tests.integration.test_cli import Command
from tests.support.processes import Processes
from tests.support.waiting import until
from tests.support.wire_client import Nodes, ids, opened, publish

pytestmark = [pytest.mark.requirement("R27", "R28"), pytest.mark.slow]

OF_TAB = ("--user", "alice", "--session", "tab")


@pytest.fixture
def command(processes: Processes, server_url: str) -> Command:
    return Command(processes, server_url)


async def with_dead_letters(node: Node, command: Command, count: int) -> list[dict[str, Any]]:
    """So many events of a session are given up by the command."""
    async with opened(node) as client:
        await client.until_op("caught_up")
        entries = await publish(node, *(str(number) for number in range(count)))
        assert ids(await client.events(count)) == entries
        (done,) = await command.json("dead-letter", *OF_TAB, "--yes")
        assert done["results"] == {"dead_lettered": count}
    return await command.json("dead")


async def test_a_dry_run_and_a_question_without_an_answer_change_nothing(nodes: Nodes, command: Command) -> None:
    node = await nodes.start()
    async with opened(node) as client:
        await client.until_op("caught_up")
        (entry,) = await publish(node, "a")
        await client.events(1)
        planned = await command.run("skip", *OF_TAB, "--dry-run")
        assert planned.stdout.startswith("skip: 1 item\n")
        assert entry in planned.stdout
        asked = await command.run("skip", *OF_TAB, status=1)
        assert "skip 1 (user alice, session tab)?" in asked.stderr
        assert await command.json("audit") == []
        skipped = await command.run("skip", *OF_TAB, "--yes", "--reason", "broken client")
        assert skipped.stdout.startswith("1 skipped")
        begun, done = await command.json("audit")
        assert (begun["state"], done["state"], done["results"]) == ("begun", "done", {"skipped": 1})
        assert (done["reason"], begun["operation"]) == ("broken client", done["operation"])
        assert "broken client" in (await command.run("audit")).stdout
        assert (await command.run("skip", *OF_TAB, "--yes")).stdout == "skip: 0 items, nothing to do\n"


async def test_dead_letters_are_replayed_and_dropped_one_many_or_by_filter(nodes: Nodes, command: Command) -> None:
    node = await nodes.start()
    first, *_ = await with_dead_letters(node, command, 3)
    (one,) = await command.json("replay", first["id"], "--yes")
    assert one["results"] == {"put_back": 1}
    left = await command.json("dead", "--because", "operator")
    assert [row["reason"] for row in left] == ["operator"] * 2
    assert await command.json("dead", "--because", "operator", "--limit", "1") == left[:1]
    assert await command.json("dead", "--cursor", left[0]["id"]) == left[1:]
    for narrowed in (("--because", "nacked"), ("--type", "memo"), ("--session", "phone")):
        assert await command.json("dead", *narrowed) == []
    (two,) = await command.json("dead", "drop", "--user", "alice", "--because", "operator", "--yes")
    assert two["results"] == {"dropped": 2}
    assert await command.json("dead") == []
    for words in (["replay"], ["replay", first["id"], "--all"], ["dead", "drop"]):
        assert "which" in (await command.run(*words, status=2)).stderr
    (row,) = await command.json("pending")
    assert (row["pending"], row["verdict"]) == (1, "offline")


async def test_what_could_not_be_done_is_named_and_the_status_says_so(nodes: Nodes, command: Command) -> None:
    node = await nodes.start()
    (letter,) = await with_dead_letters(node, command, 1)
    await command.run("end-session", *OF_TAB, "--yes")
    left = await command.run("replay", "--all", "--yes", status=1)
    assert f"left: {letter['id']}: no session" in left.stderr
    await command.run("replay", "--all", "--to", "everyone", "--yes")


async def test_a_user_is_shown_as_a_whole_and_purged(nodes: Nodes, command: Command) -> None:
    node = await nodes.start()
    await with_dead_letters(node, command, 1)
    await publish(node, "b", thread="trip")
    (page,) = await command.json("user", "alice")
    assert (page["stored"], len(page["dead"]), page["sessions"][0]["session"]) == (2, 1, "tab")
    assert [one["thread"] for one in page["threads"]] == ["trip"]
    shown = (await command.run("user", "alice")).stdout
    assert "user alice" in shown
    assert "offline" in shown
    planned = await command.json("purge", "alice", "--dry-run")
    assert planned[0]["count"] == len(planned[0]["items"]) >= 3
    await command.run("purge", "alice", "--yes")
    assert "Nothing is kept of alice" in (await command.run("user", "alice", status=1)).stderr
    assert await command.json("dead") == []


async def test_a_node_is_drained_and_let_go_and_a_type_paused_and_resumed(nodes: Nodes, command: Command) -> None:
    await nodes.start(node_heartbeat_ms=50)
    await command.run("drain", "n1", "--yes", "--reason", "disk")
    (row,) = await command.json("nodes")
    assert row["state"] == "held"
    assert "held" in (await command.run("nodes")).stdout
    await command.run("undrain", "n1", "--yes")
    assert [row["state"] for row in await command.json("nodes")] != ["held"]
    await command.run("pause", "chatter", "--yes")
    assert [row["type"] for row in await command.json("paused")] == ["chatter"]
    words = ("--user", "alice", "--type", "chatter", "--data", "{}")
    assert "paused" in (await command.run("publish", *words, status=3)).stderr
    await command.run("resume", "chatter", "--yes")
    await command.run("publish", *words)


async def test_the_whole_is_shown_at_a_glance_again_and_again(nodes: Nodes, command: Command) -> None:
    node = await nodes.start(node_heartbeat_ms=50)
    async with opened(node) as client:
        await client.until_op("caught_up")
        await publish(node, "a")
        await client.events(1)
        (seen,) = await command.json("top")
        assert (seen["stored"], seen["waiting_users"] <= 1, seen["nodes"][0]["node"]) == (1, True, "n1")
        assert [row["verdict"] for row in seen["pending"]] == ["in_flight"]
        watching = command.start("top", "--watch=50ms")
        await watching.line("stored 1")
        await until(lambda: watching.stdout.count("users waiting") > 1, 15_000)
        watching.interrupt()
        assert await watching.wait() == 0


async def test_shells_can_complete_the_command(command: Command) -> None:
    for shell in ("bash", "zsh", "fish"):
        assert "_EVENTBUS_COMPLETE" in (await command.run("completion", shell)).stdout
    words = {"_EVENTBUS_COMPLETE": "bash_complete", "COMP_WORDS": "eventbus dea", "COMP_CWORD": "1"}
    found = (await command.run(env=words)).stdout
    assert re.findall(r"plain,(\S+)", found) == ["dead", "dead-letter"]


async def test_a_server_that_is_away_is_one_sentence_and_status_3(processes: Processes) -> None:
    away = Command(processes, "redis://127.0.0.1:1/0")
    for words in (["top"], ["user", "alice"], ["audit"], ["replay", "--all", "--yes"], ["purge", "alice", "--yes"]):
        child = await away.run(*words, status=3, env={"EVENTBUS_REDIS_TIMEOUT_MS": "500"})
        assert len(child.stderr.splitlines()) == 1
