"""R29: what alerts and panels ask for is what nodes have, one process or several."""

from __future__ import annotations

import httpx
import pytest

from tests.support.compose import assert_has
from tests.support.processes import Processes
from tests.support.servers import NewServer
from tests.support.waiting import until

SECRET = "a secret of the tests of metrics, of 32 bytes and more"


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
