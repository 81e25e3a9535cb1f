"""Runs for threads: the same events, with `with`."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from eventbus import blocking
from eventbus.blocking import Bus
from eventbus.errors import InvalidEvent, RunMisused
from eventbus.event import Event, decode_envelope
from eventbus.ids import EntryId, UserId
from eventbus.testing import MemoryStore

pytestmark = pytest.mark.requirement("R16")


@pytest.fixture(autouse=True)
def stop_the_thread() -> Iterator[None]:
    yield
    blocking.shutdown()
    assert not [thread for thread in threading.enumerate() if thread.name == "eventbus"]


def events(store: MemoryStore) -> list[Event]:
    page = asyncio.run(store.history(UserId("ada"), EntryId("0-0"), 10_000))
    return [decode_envelope(entry.body) for entry in page.entries]


def test_a_run_of_a_thread_sends_its_events_in_order_and_is_stored_when_it_is_left() -> None:
    store = MemoryStore()
    with Bus(store=store) as bus:
        with bus.run(user="ada", agent="planner", thread="t1", run="run_x") as run:
            run.thinking("Hm")
            with run.tool("search", {"query": "x"}, call_id="mine") as tool:
                tool.result = 7
            with run.child(agent="searcher") as child:
                child.error = "found nothing"
            run.publish("progress", {"percent": 100})
            run.flush()
            assert [receipt.attempts for receipt in run.receipts] == [1] * 5
            run.result = tool.result
        assert [receipt.event for receipt in run.receipts] == [
            event.id for event in events(store) if event.run == run.id
        ]
        assert {type(receipt) for receipt in run.receipts} == {blocking.Receipt}
        told = [(event.run == "run_x", event.seq, event.type) for event in events(store)]
    assert told == [
        (True, 1, "agent_started"),
        (True, 2, "agent_thinking"),
        (True, 3, "tool_executing"),
        (True, 4, "tool_completed"),
        (False, 1, "agent_started"),
        (False, 2, "agent_completed"),
        (True, 5, "progress"),
        (True, 6, "agent_completed"),
    ]
    assert (run.id, run.user, run.thread, run.agent, run.parent) == ("run_x", "ada", "t1", "planner", None)
    assert (child.parent, tool.call_id, tool.name) == ("run_x", "mine", "search")
    assert (run.result, run.error, child.error, tool.error) == (7, None, "found nothing", None)


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()])
def test_whatever_ends_it_a_run_of_a_thread_ends_as_failed_and_the_exception_passes_on(error: BaseException) -> None:
    store = MemoryStore()

    def agent() -> None:
        with bus.run(user="ada", agent="planner") as run, run.tool("search") as tool:
            tool.error = "Nothing found"
            raise error

    with Bus(store=store) as bus:
        with pytest.raises(type(error)):
            agent()
        assert [event.data.get("error") for event in events(store)[-2:]] == ["Nothing found", "the agent failed"]


def test_threads_share_a_run_and_its_seq_has_no_hole() -> None:
    store = MemoryStore()

    def call(number: int) -> None:
        with run.tool("search", {"number": number}) as tool:
            tool.result = number

    with Bus(store=store) as bus:
        with bus.run(user="ada", agent="planner") as run, ThreadPoolExecutor(8) as pool:
            list(pool.map(call, range(50)))
        told = events(store)
    assert [event.seq for event in told] == list(range(1, 103))
    assert (told[0].type, told[-1].type) == ("agent_started", "agent_completed")
    calls = [event.data["call_id"] for event in told if event.type == "tool_executing"]
    assert len(set(calls)) == 50
    assert sorted(calls) == sorted(event.data["call_id"] for event in told if event.type == "tool_completed")


@pytest.mark.requirement("R19")
def test_a_thread_streams_text_and_its_event_has_all_of_it() -> None:
    store = MemoryStore()
    with Bus(store=store) as bus, bus.run(user="ada", agent="planner") as run:
        with run.stream("answer") as stream:
            for word in ("Grüße ", "an ", "alle"):
                stream.write(word)
        assert (stream.name, stream.text) == ("answer", "Grüße an alle")
    told = [event.data for event in events(store) if event.type == "agent_text"]
    assert told == [{"stream": "answer", "text": "Grüße an alle"}]


def test_misuse_and_bad_events_come_out_as_they_are() -> None:
    with Bus(store=MemoryStore()) as bus:
        with pytest.raises(InvalidEvent, match="user"):
            bus.run(user="run_1", agent="planner")
        run = bus.run(user="ada", agent="planner")
        with pytest.raises(RunMisused):
            run.thinking("too early")
        assert "planner" in repr(run)
        assert "search" in repr(run.tool("search"))
