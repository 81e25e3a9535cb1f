"""R29: what alerts and panels ask for is what nodes have, one process or several."""

from __future__ import annotations

import httpx
import pytest

from tests.support.compose import assert_has
from tests.support.processes import Processes
from tests.support.servers import NewServer
from tests.support.waiting import until
from tests.support.wire_client import Nodes, opened, publish

SECRET = "a secret of the tests of metrics, of 32 bytes and more"


@pytest.mark.slow
@pytest.mark.requirement("R29")
async def test_with_several_workers_the_parent_has_every_metric_of_alerts_and_panels(
    processes: Processes, new_server: NewServer
) -> None:
    settings = {"REDIS_URL": new_server().url, "HOST": "127.0.0.1", "PORT": "0", "ADMIN_PORT": "0"}
    settings |= {"JWT_SECRET": SECRET, "TALLY_MS": "200", "NODE_HEARTBEAT_MS": "500", "NODE": "n"}
    parent = processes.gateway(
        "serve", "--workers", "2", env={f"EVENTBUS_{name}": value for name, value in settings.items()}
    )
    line = await parent.line("^ready ", 20_000)
    admin = dict(word.split("=", 1) for word in line.split()[1:])["admin"]
    async with httpx.AsyncClient(timeout=5, trust_env=False) as client:

        async def scraped() -> str:
            text = (await client.get(f"{admin}/metrics")).text
            # As soon as the workers know of each other one of them tells of the server, for all.
            return text if text.count("\neventbus_store_memory_bytes{") == 1 else ""

        text = await until(scraped, 15_000, "each partition is counted by one worker")
        assert text is not None
        assert_has(text, {"eventbus_store_memory_used_ratio"})  # the server has no limit


@pytest.mark.requirement("R29", "R14")
async def test_how_long_delivery_took_says_nothing_of_what_waited_for_its_client(nodes: Nodes) -> None:
    node = await nodes.start(tally_ms=100)
    delivered, acked = node.counters.delivery_seconds, node.counters.ack_seconds
    async with opened(node) as client:
        await client.until_op("caught_up")
        await publish(node, "a", "b", "c")
        for event in await client.events(3):
            client.send("ack", ids=[event["id"]])
        await until(lambda: sum(acked.counts) == 3)
        assert sum(delivered.counts) == 3
    entries = await publish(node, "while nobody is there")
    # So long that it would show.
    await until(lambda: node.clock.now_ms() > int(entries[0].partition("-")[0]) + 200)
    async with opened(node) as client:
        assert [event["id"] for event in await client.events(1)] == entries
        tallied = await until(lambda: (found := node.tally.found) is not None and found.pending == 1 and found)
        assert tallied
        age_ms = node.clock.now_ms() - int(entries[0].partition("-")[0])
        assert tallied.pending_oldest_ms <= age_ms - 200, "it was not late: its client was"
    assert sum(delivered.counts) == 3


@pytest.mark.requirement("R29", "R27")
async def test_what_waits_for_users_who_are_away_is_counted(nodes: Nodes) -> None:
    node = await nodes.start(tally_ms=100, session_heartbeat_ms=500)
    async with opened(node, "ada"):
        pass
    await until(lambda: not len(node.hub))
    await publish(node, "x", user="ada")
    await until(lambda: (found := node.tally.found) is not None and found.waiting_users == 1, 10_000)
    async with opened(node, "ada") as client:
        [event] = await client.events(1)
        client.send("ack", ids=[event["id"]])
        await until(lambda: (found := node.tally.found) is not None and found.waiting_users == 0, 15_000)
