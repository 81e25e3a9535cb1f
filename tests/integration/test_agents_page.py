"""The examples of docs/agents.md are complete programs, and print what the page says."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from pathlib import Path

import pytest

from gateway.node import Node
from tests.support.subscribing import running_node, token

PAGE = Path(__file__).parents[2] / "docs" / "agents.md"
EXAMPLES = re.findall(r"^```python\n(.*?)^```\n\n```text\n(.*?)^```\n", PAGE.read_text(), re.MULTILINE | re.DOTALL)
[TIERS] = re.findall(r"^```json\n(.*?)^```\n", PAGE.read_text(), re.MULTILINE | re.DOTALL)


def test_each_example_of_the_page_says_what_it_prints() -> None:
    assert len(EXAMPLES) == PAGE.read_text().count("```python") >= 10


async def run(program: str, server_url: str, node: Node, directory: Path) -> tuple[str, str, int | None]:
    """What the program says on stderr and stdout, and how it ends."""
    script, tiers = directory / "example.py", directory / "tiers.json"
    script.write_text(program)
    tiers.write_text(TIERS)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-W", "error", str(script)),
        env={
            **os.environ,
            "EVENTBUS_REDIS_URL": server_url,
            "EVENTBUS_TIERS_FILE": str(tiers),
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
    return errors.decode(), told.decode(), process.returncode


@pytest.mark.requirement("R15")
@pytest.mark.requirement("R16")
@pytest.mark.parametrize("number", range(len(EXAMPLES)))
async def test_an_example_of_the_page_does_what_it_says(number: int, server_url: str, tmp_path: Path) -> None:
    program, output = EXAMPLES[number]
    async with running_node(server_url) as node:
        assert await run(program, server_url, node, tmp_path) == ("", output, 0)


@pytest.mark.slow
async def test_the_examples_can_be_tried_one_after_the_other_and_again(server_url: str, tmp_path: Path) -> None:
    """As a reader does it, with one server and one node."""
    async with running_node(server_url) as node:
        for program, output in [*EXAMPLES, *EXAMPLES[:2]]:
            assert await run(program, server_url, node, tmp_path) == ("", output, 0)
