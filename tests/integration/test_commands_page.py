"""The examples of docs/commands.md are complete programs, and print what the page says."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from pathlib import Path

import pytest

from tests.support.subscribing import running_node, token

pytestmark = pytest.mark.requirement("R20")

PAGE = Path(__file__).parents[2] / "docs" / "commands.md"
EXAMPLES = re.findall(r"^```python\n(.*?)^```\n\n```text\n(.*?)^```\n", PAGE.read_text(), re.MULTILINE | re.DOTALL)


def test_each_example_of_the_page_says_what_it_prints() -> None:
    assert len(EXAMPLES) == PAGE.read_text().count("```python") >= 4


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
async def test_an_example_of_the_page_does_what_it_says(number: int, server_url: str, tmp_path: Path) -> None:
    program, output = EXAMPLES[number]
    script = tmp_path / "example.py"
    script.write_text(program)
    async with running_node(server_url) as node:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-W", "error", str(script)),
            env={
                **os.environ,
                "EVENTBUS_REDIS_URL": server_url,
                "NODE_URL": f"http://127.0.0.1:{node.port}",
                "ADA_TOKEN": token("ada"),
                "PYTHONPATH": str(PAGE.parents[1]),
            },
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(30):
                told, errors = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    assert (errors.decode(), told.decode(), process.returncode) == ("", output, 0)
