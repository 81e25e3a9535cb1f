"""Presence: who is live, and who comes and goes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from eventbus.errors import EventBusError, InvalidField
from eventbus.presence import Presence
from tests.support.sessions import ADA, Bench


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    made = Bench()
    async with made.bus:
        yield made


class Watching:
    """Gathers the changes of a user in a task."""

    def __init__(self, bench: Bench, user: str = ADA) -> None:
        self.found: list[Presence] = []
        self.changes = bench.bus.presence(user)
        self.task = asyncio.ensure_future(self._gather())

    async def _gather(self) -> None:
        async for change in self.changes:
            self.found.append(change)

    def brief(self) -> list[tuple[str, bool]]:
        return [(change.session, change.online) for change in self.found]


@pytest.fixture
async def watching(bench: Bench) -> AsyncIterator[Watching]:
    await bench.attach("tab")
    made = Watching(bench)
    await bench.clock.pass_time(0)
    yield made
    made.task.cancel()
    await asyncio.wait([made.task])
    await made.changes.aclose()


@pytest.mark.requirement("R35")
async def test_online_lists_the_live_sessions_and_nobody_when_the_user_is_offline(bench: Bench) -> None:
    assert await bench.bus.online(ADA) == []
    await bench.attach("tab", node="n1")
    await bench.attach("phone", node="n2")
    await bench.attach("other", user="bob")
    assert [(one.session, one.node) for one in await bench.bus.online(ADA)] == [("phone", "n2"), ("tab", "n1")]
    await bench.detach("tab")
    assert [one.session for one in await bench.bus.online(ADA)] == ["phone"]


@pytest.mark.requirement("R35")
async def test_first_come_those_that_are_live_then_each_that_comes_or_goes(bench: Bench, watching: Watching) -> None:
    assert watching.brief() == [("tab", True)]
    await bench.attach("phone", node="n2")
    await bench.clock.pass_time(0)
    await bench.detach("tab")
    await bench.clock.pass_time(0)
    await bench.attach("other", user="bob")
    await bench.clock.pass_time(0)
    assert watching.brief() == [("tab", True), ("phone", True), ("tab", False)]
    phone = watching.found[1]
    assert phone == Presence(session=phone.session, online=True, node=phone.node, time_ms=bench.clock.now_ms())
    assert phone.node == "n2"


@pytest.mark.requirement("R35")
async def test_a_session_taken_over_or_attached_again_is_no_change(bench: Bench, watching: Watching) -> None:
    await bench.attach("tab", connection="d", node="n2")
    await bench.clock.pass_time(0)
    await bench.detach("tab", connection="c")
    for _ in range(3):
        await bench.clock.pass_time(bench.store.settings.live_ttl_ms // 4)
    assert watching.brief() == [("tab", True)]


@pytest.mark.requirement("R35")
async def test_sessions_of_a_node_that_is_silent_go_when_their_time_is_over(bench: Bench, watching: Watching) -> None:
    live_ms = bench.store.settings.live_ttl_ms
    for _ in range(3):
        await bench.clock.pass_time(live_ms // 4)
    assert watching.brief() == [("tab", True)]
    await bench.clock.pass_time(live_ms // 4)
    await bench.clock.pass_time(live_ms // 4)
    assert watching.brief() == [("tab", True), ("tab", False)]


@pytest.mark.requirement("R35")
async def test_a_store_that_is_away_is_waited_for(bench: Bench, watching: Watching) -> None:
    bench.store.fail()
    await bench.clock.pass_time(60_000)
    bench.store.heal()
    await bench.attach("phone")
    await bench.clock.pass_time(500)
    assert ("phone", True) in watching.brief()
    assert not watching.task.done()


async def test_whoever_stops_listening_leaves_nothing_behind(bench: Bench) -> None:
    await bench.attach("tab")
    timers = bench.clock.waiting
    changes = bench.bus.presence(ADA)
    assert (await anext(changes)).online
    later: asyncio.Task[Any] = asyncio.ensure_future(anext(changes))
    await bench.clock.pass_time(0)
    later.cancel()
    await asyncio.wait([later])
    await changes.aclose()
    assert bench.clock.waiting == timers
    calls = bench.store.calls
    await bench.attach("phone")
    await bench.clock.pass_time(100_000)
    assert bench.store.calls == calls + 1, "the attach alone"


async def test_a_closed_bus_ends_it_with_an_error(bench: Bench, watching: Watching) -> None:
    await bench.bus.aclose()
    with pytest.raises(EventBusError, match="closed"):
        await watching.task


@pytest.mark.requirement("R21")
async def test_only_a_user_is_asked_for(bench: Bench) -> None:
    with pytest.raises(InvalidField):
        await bench.bus.online("run_1")
    with pytest.raises(InvalidField):
        bench.bus.presence("thread_1")
