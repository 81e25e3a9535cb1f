"""The parent of several workers: what it does about their ends, told with processes that a test holds in its hand."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from eventbus.errors import ConfigError
from eventbus.testing import ManualClock
from gateway.config import ListenSettings, NodeSettings
from gateway.metrics import Snapshot
from gateway.processes.channel import Channel
from gateway.processes.process import Stop
from gateway.processes.supervisor import FAILED_STARTS_MAX, STABLE_MS, Supervisor, restart_wait_ms, worker_settings
from gateway.processes.worker_process import WorkerState
from tests.support.waiting import until

ACKED = ("eventbus_events_acked_total", ())
CONNECTIONS = ("eventbus_connections", ())


class FakeProcess:
    """A worker's process that does what the test says."""

    def __init__(self, pid: int, *, drains: bool = True) -> None:
        self.pid = pid
        self.drains = drains
        self.terminated = False
        self.told: Snapshot | None = {ACKED: 1.0, CONNECTIONS: 1.0}
        self._states: asyncio.Queue[WorkerState | None] = asyncio.Queue()
        self._code: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def says(self, state: WorkerState) -> None:
        self._states.put_nowait(state)

    def ends(self, code: int) -> None:
        if not self._code.done():
            self._code.set_result(code)
            self._states.put_nowait(None)

    async def next_state(self) -> WorkerState | None:
        return await self._states.get()

    async def figures(self, timeout_ms: int) -> Snapshot | None:
        return self.told

    async def wait(self) -> int:
        return await asyncio.shield(self._code)

    def terminate(self) -> None:
        self.terminated = True
        if self.drains:
            self.ends(0)

    def kill(self) -> None:
        self.ends(-signal.SIGKILL)


@dataclass
class Bench:
    """A supervisor over fake processes."""

    names: list[str] = field(default_factory=lambda: ["n-1", "n-2"])
    drains: bool = True
    fails_with: int | None = None
    refused: int = 0
    held: asyncio.Event | None = None
    clock: ManualClock = field(default_factory=ManualClock)
    stop: Stop = field(default_factory=Stop)
    started: dict[str, list[FakeProcess]] = field(default_factory=dict)
    ready: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.supervisor = Supervisor(
            [NodeSettings(listen=ListenSettings(node=name)) for name in self.names],
            self.start,
            on_ready=lambda: self.ready.append("ready"),
            clock=self.clock,
            wait_base_ms=1,
            patience_ms=200,
        )

    async def start(self, settings: NodeSettings) -> FakeProcess:
        if self.held is not None:
            await self.held.wait()
        if self.refused:
            self.refused -= 1
            raise OSError("no room")
        of_name = self.started.setdefault(settings.listen.node, [])
        process = FakeProcess(100 * len(self.started) + len(of_name), drains=self.drains)
        of_name.append(process)
        if self.fails_with is not None:
            process.ends(self.fails_with)
        return process

    @asynccontextmanager
    async def running(self) -> AsyncIterator[asyncio.Task[int]]:
        task = asyncio.create_task(self.supervisor.run(self.stop))
        try:
            yield task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def newest(self, name: str, number: int = 1) -> FakeProcess:
        """The process that was started as the `number`th for a worker."""
        await until(lambda: len(self.started.get(name, [])) >= number)
        return self.started[name][number - 1]

    async def all_ready(self) -> None:
        for name in self.names:
            (await self.newest(name)).says(WorkerState.READY)
        await until(lambda: self.ready)

    def state(self, name: str) -> object:
        return next(one["state"] for one in self.supervisor.processes() if one["node"] == name)


def test_waits_before_a_replacement_grow_and_stay_bounded() -> None:
    waits = [restart_wait_ms(ends) for ends in range(1, 40)]
    assert waits[:4] == [200, 400, 800, 1600]
    assert waits == sorted(waits)
    assert waits[-1] == 30_000


async def test_ready_is_said_once_and_not_before_every_worker_is_ready() -> None:
    bench = Bench()
    async with bench.running():
        first = await bench.newest("n-1")
        first.says(WorkerState.READY)
        await until(lambda: bench.state("n-1") == "ready")
        assert not bench.ready
        (await bench.newest("n-2")).says(WorkerState.READY)
        await until(lambda: bench.ready)
        first.says(WorkerState.NOT_READY)
        await until(lambda: bench.state("n-1") == "not_ready")
        first.says(WorkerState.READY)
        await until(lambda: bench.state("n-1") == "ready")
    assert bench.ready == ["ready"]


async def test_a_signal_has_every_worker_drain_and_the_status_is_0() -> None:
    bench = Bench()
    async with bench.running() as running:
        await bench.all_ready()
        bench.stop.ask()
        assert await running == 0
    assert all(process.terminated for processes in bench.started.values() for process in processes)


@pytest.mark.requirement("R2")
async def test_a_worker_that_ended_is_replaced_under_its_name_and_the_other_is_left_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bench = Bench()
    async with bench.running() as running:
        await bench.all_ready()
        (await bench.newest("n-1")).ends(-signal.SIGKILL)
        second = await bench.newest("n-1", 2)
        assert "worker n-1 was ended by SIGKILL; another starts in" in caplog.text
        second.says(WorkerState.READY)
        await until(lambda: bench.state("n-1") == "ready")
        assert len(bench.started["n-2"]) == 1
        bench.stop.ask()
        assert await running == 0


async def test_a_worker_that_can_not_start_ends_the_whole_with_status_1(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench(names=["n-1"], fails_with=2)
    async with bench.running() as running:
        assert await running == 1
    assert len(bench.started["n-1"]) == FAILED_STARTS_MAX
    assert f"{FAILED_STARTS_MAX} times before it was ready" in caplog.text


async def test_a_worker_that_can_not_start_again_does_not_end_those_that_serve() -> None:
    bench = Bench()
    async with bench.running() as running:
        await bench.all_ready()
        bench.fails_with = 1
        (await bench.newest("n-1")).ends(1)
        await bench.newest("n-1", FAILED_STARTS_MAX + 2)
        assert not running.done()
        assert bench.state("n-2") == "ready"
        bench.stop.ask()
        assert await running == 0


async def test_a_worker_that_was_ready_for_long_starts_with_the_shortest_wait_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bench = Bench(names=["n-1"])
    async with bench.running():
        for number in range(1, 5):
            process = await bench.newest("n-1", number)
            process.says(WorkerState.READY)
            await until(lambda: bench.state("n-1") == "ready")
            if number == 4:
                bench.clock.advance(STABLE_MS)
            process.ends(1)
        await bench.newest("n-1", 5)
    waits = [record.args[-1] for record in caplog.records if isinstance(record.args, tuple) and "another" in record.msg]
    assert waits == [1, 2, 4, 1]


async def test_a_process_that_can_not_be_started_is_tried_again() -> None:
    bench = Bench(names=["n-1"], refused=2)
    async with bench.running() as running:
        await bench.all_ready()
        bench.stop.ask()
        assert await running == 0


async def test_a_worker_that_is_late_with_its_drain_is_killed_and_the_status_is_1(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bench = Bench(drains=False)
    async with bench.running() as running:
        await bench.all_ready()
        (await bench.newest("n-1")).drains = True
        bench.stop.ask()
        assert await running == 1
    assert "worker n-2 (pid" in caplog.text
    assert "is killed" in caplog.text


async def test_a_second_signal_kills_at_once() -> None:
    bench = Bench(drains=False)
    async with bench.running() as running:
        await bench.all_ready()
        bench.stop.ask()
        await until(lambda: bench.state("n-2") == "draining")
        bench.stop.ask()
        assert await running == 1


async def test_a_worker_ended_by_the_signal_before_it_listened_to_any_counts_as_drained() -> None:
    bench = Bench(names=["n-1"], drains=False)
    async with bench.running() as running:
        process = await bench.newest("n-1")
        await until(lambda: bench.state("n-1") == "starting")
        bench.stop.ask()
        await until(lambda: process.terminated)
        process.ends(-signal.SIGTERM)
        assert await running == 0


async def test_a_worker_whose_process_comes_up_after_the_signal_is_told_too() -> None:
    bench = Bench(names=["n-1"], held=asyncio.Event())
    async with bench.running() as running:
        await asyncio.sleep(0)
        bench.stop.ask()
        for _ in range(20):  # the signal has been dealt with by now
            await asyncio.sleep(0)
        assert bench.held is not None
        bench.held.set()
        assert await running == 0
    assert [process.terminated for process in bench.started["n-1"]] == [True]


async def test_no_worker_is_started_after_the_signal() -> None:
    bench = Bench(names=["n-1"])
    async with bench.running() as running:
        await bench.all_ready()
        bench.stop.ask()
        (await bench.newest("n-1")).ends(1)
        await running
    assert len(bench.started["n-1"]) == 1


@pytest.mark.requirement("R29")
async def test_figures_of_workers_are_added_and_do_not_fall_when_one_is_replaced() -> None:
    bench = Bench()
    async with bench.running():
        await bench.all_ready()
        (await bench.newest("n-1")).told = {ACKED: 10.0, CONNECTIONS: 3.0}
        (await bench.newest("n-2")).told = {ACKED: 5.0, CONNECTIONS: 4.0}
        figures = await bench.supervisor.figures()
        assert (figures[ACKED], figures[CONNECTIONS]) == (15.0, 7.0)
        (await bench.newest("n-1")).ends(1)
        (await bench.newest("n-1", 2)).told = {ACKED: 1.0, CONNECTIONS: 0.0}
        figures = await bench.supervisor.figures()
        assert (figures[ACKED], figures[CONNECTIONS]) == (16.0, 4.0)
        assert figures["eventbus_worker_starts_total", ("n-1",)] == 2


@pytest.mark.requirement("R29")
async def test_a_worker_that_does_not_answer_is_down_and_counts_with_its_last_counters() -> None:
    bench = Bench()
    async with bench.running():
        await bench.all_ready()
        await bench.supervisor.figures()
        (await bench.newest("n-2")).told = None
        figures = await bench.supervisor.figures()
    assert (figures[ACKED], figures[CONNECTIONS]) == (2.0, 1.0)
    assert figures["eventbus_worker_up", ("n-1",)] == 1
    assert figures["eventbus_worker_up", ("n-2",)] == 0


def test_workers_are_called_after_the_node_and_share_its_port() -> None:
    made = worker_settings(NodeSettings(listen=ListenSettings(node="a", port=0, workers=3)), 4711)
    assert [one.listen.node for one in made] == ["a-1", "a-2", "a-3"]
    assert {(one.listen.port, one.listen.workers) for one in made} == {(4711, 1)}


def test_a_name_without_room_for_the_number_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"EVENTBUS_NODE is 'x+': with 2 workers the name 'x+-2' is too long"):
        worker_settings(NodeSettings(listen=ListenSettings(node="x" * 55, workers=2)), 1)


async def test_a_channel_carries_objects_both_ways_and_tells_that_the_other_end_has_gone() -> None:
    ours, theirs = socket.socketpair()
    one, two = await Channel.over(ours), await Channel.over(theirs)
    try:
        one.send({"a": 1})
        one.send({"b": ["x"]})
        two.send({"c": None})
        assert [await two.receive(), await two.receive()] == [{"a": 1}, {"b": ["x"]}]
        assert await one.receive() == {"c": None}
        await one.aclose()
        assert await two.receive() is None
        one.send({"into": "nothing"})
    finally:
        await one.aclose()
        await two.aclose()
