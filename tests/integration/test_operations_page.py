"""Every command of docs/operations.md does what the page sends people to it for, on a real installation."""

from __future__ import annotations

import asyncio
import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from eventbus import Bus
from eventbus.cli import cli
from tests.support.processes import ROOT, Processes
from tests.support.servers import NewServer

SECRET = "a secret of the tests of the page, of 32 bytes and more"
PAGE = (ROOT / "docs" / "operations.md").read_text()


def commands() -> list[str]:
    """Every command line that begins with `eventbus`, in the page's order, each once."""
    found = re.findall(r"`(eventbus [^`]+)`|^(eventbus .*)$", PAGE, re.MULTILINE)
    return list(dict.fromkeys(inline or line for inline, line in found))


def _run(line: str, redis_url: str) -> Result:
    words = shlex.split(line)[1:]
    return CliRunner().invoke(cli, words, prog_name="eventbus", env={"EVENTBUS_REDIS_URL": redis_url})


@pytest.mark.slow
@pytest.mark.requirement("R27", "R28", "R29")
async def test_every_command_of_the_page_runs(processes: Processes, new_server: NewServer, tmp_path: Path) -> None:
    server, secret = new_server(), tmp_path / "secret"
    secret.write_text(SECRET)
    settings = {"REDIS_URL": server.url, "HOST": "127.0.0.1", "PORT": "0", "ADMIN_PORT": "0", "NODE": "gw-1"}
    settings |= {"JWT_SECRET_FILE": str(secret), "NODE_HEARTBEAT_MS": "500"}
    node = processes.gateway("serve", env={f"EVENTBUS_{name}": value for name, value in settings.items()})
    line = await node.line("^ready ", 20_000)
    address = dict(word.split("=", 1) for word in line.split()[1:])["url"]
    async with Bus(server.url) as bus:
        await bus.publish(user="bob", type="note", data={}, id="e-1")
        async with bus.run(user="bob", agent="planner") as run:
            await run.thinking("hm")
    given = {
        "USER": "bob",
        "SESSION": "phone",
        "EVENT": "e-1",
        "NODE": "gw-1",
        "RUN": run.id,
        "SECRET": str(secret),
        "ADDRESS": address,
    }
    known = re.compile(rf"\b({'|'.join(given)})\b")
    found = commands()
    assert len(found) > 35
    failed = []
    for one in found:
        result = await asyncio.to_thread(_run, known.sub(lambda name: given[name[1]], one), server.url)
        # The doctor may find something to say of a server of the tests.
        good = (0, 1) if one.startswith("eventbus doctor") else (0,)
        if result.exit_code not in good or not isinstance(result.exception, SystemExit | None):
            failed.append((one, result.exit_code, result.output))
    assert failed == []
