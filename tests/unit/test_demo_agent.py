"""The demo agent publishes what it owes, whatever becomes of its run, and writes down what it has published."""

from __future__ import annotations

import asyncio
import io
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from eventbus import Bus
from eventbus.event import Event, decode_envelope
from eventbus.ids import ENTRY_ZERO, parse_user_id
from eventbus.testing import MemoryStore
from gateway.demo.agent import Answering
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
    return Job(run="run_1", thread="talk-1", question=question, path=str(path), name="poem.txt", pace_ms=pace_ms)


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
        await Answering(job(poem), bus, log).work()
    events = await stored(store)
    types = [event.type for _, event in events]
    assert types[:2] == ["agent_started", "visitor_asked"]
    assert types[-2:] == ["agent_text", "agent_completed"]
    assert types.count("tool_executing") == types.count("tool_completed") > 3
    assert {event.thread for _, event in events} == {"talk-1"}
    logged = [json.loads(line) for line in log.getvalue().splitlines()]
    assert [(line["entry"], line["id"], line["run"]) for line in logged[:-1]] == [(i, e.id, "run_1") for i, e in events]
    assert logged[-1] == {"run": "run_1", "ended": "success"}
    answer, completed = (dict(event.data) for _, event in events[-2:])
    assert "\u201clamp\u201d once" in answer["text"]
    assert completed == {"outcome": "success", "result": {"found": {"lamp": 1}, "line": 1}}


async def test_a_file_that_is_gone_ends_the_run_as_failed(store: MemoryStore, tmp_path: Path) -> None:
    async with Bus(store=store) as bus:
        await Answering(job(tmp_path / "gone.txt"), bus, io.BytesIO()).work()
    completed = [dict(event.data) for _, event in await stored(store)][-2:]
    assert "can not be read" in completed[0]["error"]
    assert completed[1] == {"error": completed[0]["error"], "outcome": "failed"}


async def test_a_run_that_is_stopped_says_that_it_was(store: MemoryStore, poem: Path) -> None:
    log = io.BytesIO()
    async with Bus(store=store) as bus:
        working = asyncio.ensure_future(Answering(job(poem, pace_ms=MINUTE_MS), bus, log).work())
        await until(lambda: store.history(parse_user_id(USER), ENTRY_ZERO, 1))
        working.cancel()
        with pytest.raises(asyncio.CancelledError):
            await working
    last = (await stored(store))[-1][1]
    assert (last.type, dict(last.data)) == (
        "agent_completed",
        {"outcome": "cancelled", "error": "the agent was stopped"},
    )
    assert json.loads(log.getvalue().splitlines()[-1]) == {"run": "run_1", "ended": "cancelled"}


async def test_where_several_passages_fit_the_visitor_is_asked_and_without_an_answer_the_best_is_taken(
    store: MemoryStore, tmp_path: Path
) -> None:
    path = tmp_path / "poem.txt"
    path.write_text("No lamp here.\n\n\nThe lamp, the lamp!\n")
    async with Bus(store=store) as bus:
        await Answering(job(path), bus, io.BytesIO(), ask_ms=1).work()
    events = {event.type: dict(event.data) for _, event in await stored(store)}
    assert events["agent_question"]["options"] == ["line 4: The lamp, the lamp!", "line 1: No lamp here."]
    assert (events["agent_answered"]["by"], events["agent_answered"]["answer"]) == (
        "deadline",
        "line 4: The lamp, the lamp!",
    )
    assert "begins in line 4" in events["agent_text"]["text"]


async def test_a_question_is_written_down_while_it_is_open(store: MemoryStore, tmp_path: Path) -> None:
    path = tmp_path / "poem.txt"
    path.write_text("No lamp here.\n\n\nThe lamp, the lamp!\n")
    log = io.BytesIO()

    async def asked() -> str:
        return next((event.id for _, event in await stored(store) if event.type == "agent_question"), "")

    async with Bus(store=store) as bus:
        working = asyncio.ensure_future(Answering(job(path), bus, log, ask_ms=MINUTE_MS).work())
        question = await until(asked, message="it asks")
        await until(lambda: question.encode() in log.getvalue(), message="its question is in the log")
        assert "agent_answered" not in [event.type for _, event in await stored(store)]
        working.cancel()
        with pytest.raises(asyncio.CancelledError):
            await working


LINE = b'{"run":"run_1","id":"e1","entry":"5-0"}\n'


def test_the_log_is_read_as_it_grows_and_half_a_line_waits_for_its_end(tmp_path: Path) -> None:
    path = tmp_path / "published.jsonl"
    published = Published(path)
    published.read()
    assert published.counts() == []
    path.write_bytes(LINE + LINE[:20].replace(b"e1", b"e2"))
    published.read()
    assert published.of_run("run_1") == [{"id": "e1", "entry": "5-0"}]
    assert published.open_runs() == ["run_1"]
    path.write_bytes(LINE + LINE.replace(b"e1", b"e2") + b'{"run":"run_1","ended":"success"}\n')
    published.read()
    assert published.counts() == [{"run": "run_1", "published": 2}]
    assert published.open_runs() == []


def test_the_runs_of_an_agent_that_died_are_under_way_no_more(tmp_path: Path) -> None:
    path = tmp_path / "published.jsonl"
    path.write_bytes(LINE)
    published = Published(path)
    published.give_up()
    assert published.open_runs() == []
    path.write_bytes(LINE + LINE.replace(b"run_1", b"run_2"))
    published.read()
    assert published.open_runs() == ["run_2"]


def test_old_runs_are_forgotten_when_the_log_is_pruned_and_young_ones_keep_their_end(tmp_path: Path) -> None:
    path = tmp_path / "published.jsonl"
    young = LINE.replace(b"run_1", b"run_2").replace(b"5-0", b"%d-0" % (time.time_ns() // 1_000_000))
    ends = b'{"run":"run_1","ended":"success"}\n{"run":"run_2","ended":"failed"}\n'
    path.write_bytes(LINE + young + ends)
    published = Published(path)
    published.prune()
    assert published.counts() == [{"run": "run_2", "published": 1}]
    again = Published(path)
    again.read()
    assert again.open_runs() == []
    assert again.counts() == published.counts()
