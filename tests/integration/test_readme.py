"""The agent of README.md, run against a node with a user who answers."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from pathlib import Path

import pytest

from eventbus import Subscriber
from tests.support.subscribing import running_node, token

ROOT = Path(__file__).parents[2]
EXAMPLE = re.findall(r"^```python\n(.*?)^```\n", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)[0]


@pytest.mark.requirement("R15")
@pytest.mark.requirement("R19")
@pytest.mark.requirement("R20")
async def test_the_agent_of_the_readme_is_seen_by_its_user(server_url: str, tmp_path: Path) -> None:
    script = tmp_path / "agent.py"
    script.write_text(EXAMPLE.replace("redis://localhost:6379", server_url))
    events, words = [], []
    async with running_node(server_url) as node:
        url = f"http://127.0.0.1:{node.port}"
        async with Subscriber(url, token("alice"), on_text=lambda chunk: words.append(chunk.text)) as alice:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-W", "error", str(script)),
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stderr=asyncio.subprocess.PIPE,
            )
            async with asyncio.timeout(20):
                async for delivery in alice:
                    events.append(delivery.event)
                    if delivery.event.type == "agent_question":
                        await alice.answer(delivery.event.data["question"], "yes", run=delivery.event.run)
                    if delivery.event.type == "agent_completed":
                        break
                _, errors = await process.communicate()
    assert (errors.decode(), process.returncode) == ("", 0)
    assert [event.type for event in events] == [
        "agent_started", "agent_thinking", "tool_executing", "tool_completed", "agent_text", "agent_question",
        "agent_answered", "reminder", "agent_completed",
    ]  # fmt: skip
    assert {event.thread for event in events} == {"thread_42"}
    assert "".join(words) == events[4].data["text"] == "High water is at five past two. "
    assert events[-1].data == {"outcome": "success", "result": "14:05"}
