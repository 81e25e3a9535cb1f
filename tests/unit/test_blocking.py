"""The bus for threads: same guarantees, from many threads, after a fork, at the end of a process."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from eventbus import blocking
from eventbus.blocking import Bus
from eventbus.breaker import BreakerState
from eventbus.config import PublishSettings, Settings
from eventbus.errors import BreakerOpen, EventBusError, InvalidEvent, PublishTimeout, StoreUnavailable
from eventbus.ids import EntryId, UserId
from eventbus.publishing.receipt import Receipt
from eventbus.store import StoredEntry
from eventbus.testing import MemoryStore
from tests.support.waiting import until_blocking


@pytest.fixture(autouse=True)
def stop_the_thread() -> Iterator[None]:
    yield
    blocking.shutdown()  # the leak checks see that nothing is left
    assert not [thread for thread in threading.enumerate() if thread.name == "eventbus"]


def entries(store: MemoryStore, user: str) -> list[StoredEntry]:
    return list(asyncio.run(store.history(UserId(user), EntryId("0-0"), 10_000)).entries)


def in_loop(change: Callable[[], object]) -> None:
    """Changes a store where it is used: in the bus's thread."""

    async def work() -> None:
        change()

    blocking._runner.run(work())


def note(bus: Bus, user: str = "ada", **fields: Any) -> Receipt:
    return bus.publish(user=user, type="note", data={}, **fields)


def test_a_blocking_publish_returns_where_the_event_is_stored() -> None:
    store = MemoryStore()
    with Bus(store=store) as bus:
        receipt = note(bus)
        assert bus.statistics().published == 1
        assert [one.event for one in bus.publish_many([{"user": "ada", "type": "note", "data": {}, "id": "two"}])] == [
            "two"
        ]
    assert entries(store, "ada")[0].id == receipt.entry


def test_errors_come_out_as_they_are() -> None:
    store = MemoryStore()
    with Bus(store=store) as bus:
        with pytest.raises(InvalidEvent) as caught:
            note(bus, "run_1")
        assert caught.value.field == "user"
        store.fail(StoreUnavailable("gone"))
        with pytest.raises(PublishTimeout, match="gone"):
            bus.publish(user="ada", type="note", data={}, deadline_ms=50)
    with pytest.raises(EventBusError, match="closed"):
        note(bus)


def test_eight_threads_publish_at_once_and_each_keeps_its_order() -> None:
    store = MemoryStore()
    count = 100

    def worker(number: int) -> list[EntryId]:
        return [note(bus, f"user-{number}").entry for _ in range(count)]

    with Bus(store=store) as bus, ThreadPoolExecutor(8) as pool:
        given = list(pool.map(worker, range(8)))
        assert bus.statistics().published == 8 * count
    for number in range(8):
        assert [entry.id for entry in entries(store, f"user-{number}")] == given[number]


def test_buses_share_one_thread() -> None:
    with Bus(store=MemoryStore()) as one, Bus(store=MemoryStore()) as two:
        note(one)
        note(two)
        assert len([thread for thread in threading.enumerate() if thread.name == "eventbus"]) == 1


def test_an_unused_bus_starts_no_thread() -> None:
    with Bus(store=MemoryStore()) as bus:
        assert "not used yet" in repr(bus)
        assert not [thread for thread in threading.enumerate() if thread.name == "eventbus"]


def test_a_publish_from_a_callback_in_the_bus_thread_is_refused_instead_of_waiting_for_ever() -> None:
    told: list[str] = []

    def on_breaker(state: BreakerState) -> None:
        try:
            note(bus)
        except EventBusError as error:
            told.append(str(error))

    store = MemoryStore()
    store.fail(StoreUnavailable("gone"))
    settings = Settings(publish=PublishSettings(breaker_failures=1))
    with Bus(store=store, settings=settings, on_breaker=on_breaker) as bus:
        with pytest.raises(BreakerOpen):
            bus.publish(user="ada", type="note", data={}, deadline_ms=100)
        assert "must not wait" in told[0]


def test_closing_while_another_thread_publishes_stores_its_event() -> None:
    store = MemoryStore()
    bus = Bus(store=store)
    in_loop(store.hang)
    got: list[Receipt] = []
    thread = threading.Thread(target=lambda: got.append(note(bus)))
    thread.start()
    until_blocking(lambda: bus._bus is not None and bus.statistics().queued_events == 1)
    closer = threading.Thread(target=bus.close)
    closer.start()
    until_blocking(lambda: bus._closed)
    in_loop(store.resume)
    closer.join()
    thread.join()
    assert [receipt.entry for receipt in got] == [entry.id for entry in entries(store, "ada")]


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT raises KeyboardInterrupt, whatever an event loop of an earlier test has left behind."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, signal.default_int_handler if before is None else before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupted_publish_raises_at_once_and_the_bus_goes_on() -> None:
    store = MemoryStore()
    with Bus(store=store) as bus:
        note(bus)
        in_loop(store.hang)
        interrupter = threading.Timer(0.1, lambda: os.kill(os.getpid(), signal.SIGINT))
        interrupter.start()
        with pytest.raises(KeyboardInterrupt):
            note(bus, id="interrupted")
        interrupter.join()
        in_loop(store.resume)
        note(bus, id="next")
        assert bus.statistics().queued_events == 0


def test_a_bus_that_is_dropped_closes_its_store_connections() -> None:
    store = MemoryStore()
    bus = Bus(store=store)
    note(bus)
    inner = bus._bus
    assert inner is not None
    del bus
    gc.collect()

    def refuses() -> bool:
        work = inner.publish(user="ada", type="note", data={})
        try:
            blocking._runner.run(work)
        except EventBusError:
            return True
        return False

    until_blocking(refuses)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_publishes_over_a_loop_of_its_own_and_the_parent_goes_on() -> None:
    store = MemoryStore()
    with Bus(store=store) as bus:
        note(bus)
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            status = 1
            try:
                # Its copy of the store is its own, so what it stores is told through the pipe.
                receipts = [note(bus, "child") for _ in range(3)]
                os.write(write, b"%d" % len({receipt.entry for receipt in receipts}))
                status = 0
            finally:
                os._exit(status)
        os.close(write)
        with os.fdopen(read, "rb") as told:
            assert told.read() == b"3"
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        note(bus)
        assert len(entries(store, "ada")) == 2


def test_the_end_of_the_process_does_not_hang_and_closes_what_was_left_open() -> None:
    code = (
        "from eventbus.blocking import Bus\n"
        "from eventbus.testing import MemoryStore\n"
        "bus = Bus(store=MemoryStore())\n"
        "print(bus.publish(user='ada', type='note', data={}).duplicate)\n"
    )
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "False\n", "")


def test_the_settings_of_the_environment_are_those_of_from_env(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVENTBUS_REDIS_URL", "redis://somewhere:1234/5")
    assert Bus.from_env().settings.redis_url == "redis://somewhere:1234/5"


def test_importing_the_package_is_cheap() -> None:
    heavy = ("redis", "asyncio", "tenacity", "msgpack", "websockets")
    code = f"import sys, eventbus; print([name for name in sys.modules if name.split('.')[0] in {heavy}])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout == "[]\n"


def test_every_public_name_can_be_imported() -> None:
    import eventbus

    for name in eventbus.__all__:
        assert getattr(eventbus, name) is not None
    assert set(eventbus.__all__) <= set(dir(eventbus))
    with pytest.raises(AttributeError):
        _ = eventbus.nothing_of_the_kind
