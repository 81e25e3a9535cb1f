"""The demo agent publishes what it owes, whatever becomes of its run, and writes down what it has published."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from eventbus import Bus
from eventbus.event import Event, decode_envelope
from eventbus.ids import ENTRY_ZERO, parse_user_id
from eventbus.testing import MemoryStore
from gateway.demo.agent import Run
from gateway.demo.jobs import USER, Job
from gateway.demo.published import Published
from tests.support.waiting import until

MINUTE_MS = 60_000


@pytest.fixture
async def store() -> AsyncIterator[MemoryStore]:
    made = MemoryStore()
    yield made
    await made.aclose()


def job(path: Path, question: str = "Where is the lamp?", pace_ms: int = 0) -> Job:
    return Job(run="run_1", question=question, path=str(path), name="poem.txt", pace_ms=pace_ms)


async def stored(store: MemoryStore) -> list[tuple[str, Event]]:
    page = await store.history(parse_user_id(USER), ENTRY_ZERO, 500)
    return [(entry.id, decode_envelope(entry.body)) for entry in page.entries]


@pytest.fixture
def poem(tmp_path: Path) -> Path:
    path = tmp_path / "poem.txt"
    path.write_text("The lamp burns.\n")
    return path


async def test_a_run_publishes_its_steps_in_order_and_its_log_names_every_one(store: MemoryStore, poem: Path) -> None:
    log = io.BytesIO()
    async with Bus(store=store) as bus:
        await Run(job(poem), bus, log).work()
    events = await stored(store)
    types = [event.type for _, event in events]
    assert types[0] == "agent_started"
    assert types[-1] == "agent_completed"
    assert {*types} == {"agent_started", "agent_thinking", "tool_executing", "tool_completed", "agent_completed"}
    assert types.count("tool_executing") == types.count("tool_completed")
    logged = [json.loads(line) for line in log.getvalue().splitlines()]
    assert [(line["entry"], line["id"], line["run"]) for line in logged] == [(i, e.id, "run_1") for i, e in events]
    last: dict[str, Any] = dict(events[-1][1].data)
    assert last["outcome"] == "success"
    assert "\u201clamp\u201d once" in last["result"]


async def test_a_file_that_is_gone_ends_the_run_as_failed(store: MemoryStore, tmp_path: Path) -> None:
    async with Bus(store=store) as bus:
        await Run(job(tmp_path / "gone.txt"), bus, io.BytesIO()).work()
    completed = [dict(event.data) for _, event in await stored(store)][-2:]
    assert "can not be read" in completed[0]["error"]
    assert completed[1] == {"error": completed[0]["error"], "outcome": "failed"}


async def test_a_cancelled_run_says_that_it_was(store: MemoryStore, poem: Path) -> None:
    async with Bus(store=store) as bus:
        working = asyncio.ensure_future(Run(job(poem, pace_ms=MINUTE_MS), bus, io.BytesIO()).work())
        await until(lambda: store.history(parse_user_id(USER), ENTRY_ZERO, 1))
        working.cancel()
        with pytest.raises(asyncio.CancelledError):
            await working
    last = (await stored(store))[-1][1]
    assert (last.type, last.data["outcome"]) == ("agent_completed", "cancelled")


def test_the_log_is_read_as_it_grows_and_half_a_line_waits_for_its_end(tmp_path: Path) -> None:
    path = tmp_path / "published.jsonl"
    published = Published(path)
    published.read()
    assert published.counts() == []
    line = b'{"run":"run_1","id":"e1","entry":"5-0","type":"agent_started"}\n'
    path.write_bytes(line + line[:20].replace(b"e1", b"e2"))
    published.read()
    assert published.of_run("run_1") == [{"id": "e1", "entry": "5-0"}]
    assert published.open_runs() == ["run_1"]
    path.write_bytes(line + line.replace(b"e1", b"e2").replace(b"agent_started", b"agent_completed"))
    published.read()
    assert published.counts() == [{"run": "run_1", "published": 2}]
    assert published.open_runs() == []


def test_old_runs_are_forgotten_when_the_log_is_pruned(tmp_path: Path) -> None:
    path = tmp_path / "published.jsonl"
    path.write_bytes(b'{"run":"run_old","id":"e1","entry":"5-0","type":"agent_started"}\n')
    published = Published(path)
    published.prune()
    assert published.counts() == []
    assert path.read_bytes() == b""
