"""A server that stands still for as long as it likes: every wait of an agent ends, with an error that says why."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest

from eventbus import Bus
from eventbus.config import PublishSettings, Settings
from eventbus.errors import EventBusError, StoreError
from tests.support.servers import NewServer, freeze
from tests.support.stalls import Stalls, waited_for_a_processor_s

pytestmark = pytest.mark.requirement("R25")

DEADLINE_MS = 1_000
# The deadline, and the time that a call which began within it may take; twice, where a run says its last words.
MOST_S = 2 * (DEADLINE_MS / 1000 + 5) + 3
STALL_MOST_S = 1.0

Wait = Callable[[Bus, asyncio.Event, asyncio.Event], Awaitable[object]]


async def _leave_a_run(bus: Bus, ready: asyncio.Event, frozen: asyncio.Event) -> None:
    async with bus.run(user="leaving", agent="a") as run:
        await run.flush()
        ready.set()
        await frozen.wait()
        await run.thinking("the last word")


async def _cancel_a_run(bus: Bus, ready: asyncio.Event, frozen: asyncio.Event) -> None:
    async def work() -> None:
        async with bus.run(user="cancelled", agent="a") as run:
            await run.flush()
            ready.set()
            await asyncio.Event().wait()

    task = asyncio.ensure_future(work())
    await frozen.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    raise EventBusError("as it should be")


async def _leave_a_stream(bus: Bus, ready: asyncio.Event, frozen: asyncio.Event) -> None:
    async with bus.run(user="streaming", agent="a") as run, run.stream() as stream:
        await stream.write("first")
        await run.flush()
        ready.set()
        await frozen.wait()
        await stream.write("second")


async def _ask(bus: Bus, ready: asyncio.Event, frozen: asyncio.Event) -> None:
    async with bus.run(user="asking", agent="a") as run:
        await run.flush()
        ready.set()
        await frozen.wait()
        await run.ask("May I?", default="no", timeout_ms=100)


async def _read_commands(bus: Bus, ready: asyncio.Event, frozen: asyncio.Event) -> None:
    async with bus.run(user="reading", agent="a") as run:
        await run.flush()
        ready.set()
        await frozen.wait()
        async for _ in run.commands():
            pass


async def _wait_for_a_confirmation(bus: Bus, ready: asyncio.Event, frozen: asyncio.Event) -> None:
    receipt = await bus.publish(user="confirming", type="note", data={})
    ready.set()
    await frozen.wait()
    await receipt.wait("received", timeout_ms=DEADLINE_MS)


async def _follow_a_runs_confirmations(bus: Bus, ready: asyncio.Event, frozen: asyncio.Event) -> None:
    receipt = await bus.publish(user="following", type="note", data={})
    ready.set()
    await frozen.wait()
    async for _ in bus.run_confirmations([receipt], timeout_ms=DEADLINE_MS):
        pass


async def _resume_a_run(bus: Bus, ready: asyncio.Event, frozen: asyncio.Event) -> None:
    ready.set()
    await frozen.wait()
    async with bus.run(user="resuming", agent="a", run="run_1", resume=True):
        pass


async def _request_a_run(bus: Bus, ready: asyncio.Event, frozen: asyncio.Event) -> None:
    ready.set()
    await frozen.wait()
    await bus.request_run(user="requesting", agent="a")


async def _look(bus: Bus, ready: asyncio.Event, frozen: asyncio.Event) -> None:
    ready.set()
    await frozen.wait()
    calls = bus.online("ada"), bus.threads("ada"), bus.history("ada"), bus.rates(), bus.rates(user="ada")
    for result in await asyncio.gather(*calls, return_exceptions=True):
        assert isinstance(result, StoreError), result
    raise EventBusError("as it should be")


WAITS: tuple[Wait, ...] = (
    _leave_a_run,
    _cancel_a_run,
    _leave_a_stream,
    _ask,
    _read_commands,
    _wait_for_a_confirmation,
    _follow_a_runs_confirmations,
    _resume_a_run,
    _request_a_run,
    _look,
)


async def _stall() -> float:
    """The longest that the loop did not turn, though it might have, until it is cancelled."""
    longest, last = 0.0, _turning_s()
    try:
        while True:
            await asyncio.sleep(0.02)  # real time: how long the loop stands still is measured
            now = _turning_s()
            longest, last = max(longest, now - last), now
    except asyncio.CancelledError:
        return longest


def _turning_s() -> float:
    """A clock that stands still while the loop's thread waits for a processor."""
    return time.monotonic() - waited_for_a_processor_s()


@pytest.mark.slow
async def test_every_wait_on_a_server_that_stands_still_ends_and_the_loop_stays_free(new_server: NewServer) -> None:
    server = new_server(appendonly=False)
    settings = Settings(publish=PublishSettings(publish_deadline_ms=DEADLINE_MS))
    buses = [await Bus(server.url, settings=settings).__aenter__() for _ in WAITS]
    presence = buses[0].presence("ada")
    frozen = asyncio.Event()
    ready = [asyncio.Event() for _ in WAITS]
    took: dict[str, float] = {}

    async def timed(wait: Wait, bus: Bus, is_ready: asyncio.Event) -> None:
        with pytest.raises(EventBusError):
            await wait(bus, is_ready, frozen)
        took[wait.__name__] = time.monotonic() - began

    watching = asyncio.ensure_future(_stall())
    with Stalls() as machine:
        async with asyncio.TaskGroup() as group:
            for wait, bus, is_ready in zip(WAITS, buses, ready, strict=True):
                group.create_task(timed(wait, bus, is_ready))
            for is_ready in ready:
                await is_ready.wait()
            assert server.pid is not None
            freeze(server.pid)
            began = time.monotonic()
            frozen.set()
        watching.cancel()
        stalled_s, machine_s = await watching, machine.standing_s
    assert max(took.values()) < MOST_S, took
    told = f"the loop stood still for {stalled_s:.2f} s, the machine for {machine_s:.2f}"
    assert stalled_s < STALL_MOST_S + machine_s, told

    following = asyncio.ensure_future(anext(presence))
    await asyncio.sleep(0)
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    await presence.aclose()
    began = time.monotonic()
    await asyncio.gather(*(bus.aclose(DEADLINE_MS) for bus in buses))
    assert time.monotonic() - began < MOST_S
