"""The confirmations of a run as they come: each once, none missed, and an end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eventbus import ConfirmationTimeout
from eventbus.config import ConfirmationRecords, Settings, StoreSettings
from eventbus.errors import EventBusError, InvalidField
from eventbus.event import Level
from eventbus.ids import EntryId, UserId
from eventbus.runs.confirmations import RunConfirmation, RunConfirmations
from eventbus.store import HistoryPage
from eventbus.testing import MemoryStore
from tests.support.sessions import ADA, Bench


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    made = Bench()
    async with made.bus:
        await made.attach("tab")
        yield made


async def gathered(confirmations: RunConfirmations) -> list[RunConfirmation]:
    return [one async for one in confirmations]


async def short_run(bench: Bench, name: str = "run_1", user: str = ADA) -> list[EntryId]:
    """A run of three events. Returns their entry ids."""
    async with bench.bus.run(user=user, agent="planner", run=name) as run:
        await run.thinking("hm")
    return [receipt.entry for receipt in run.receipts]


def brief(found: list[RunConfirmation]) -> list[tuple[str, str, str]]:
    return [(one.type, one.session, one.level.value) for one in found]


async def passed(bench: Bench, work: asyncio.Future[Any], limit_ms: int = 70_000) -> Any:
    """Lets time pass until the work is done."""
    for _ in range(limit_ms // 50):
        await bench.clock.pass_time(50)
        if work.done():
            break
    assert work.done()
    return await work


@pytest.mark.requirement("R12")
async def test_each_confirmation_of_a_run_comes_once_and_the_end_is_when_all_events_have_the_level(
    bench: Bench,
) -> None:
    work = asyncio.ensure_future(gathered(bench.bus.run_confirmations("run_1", user=ADA, level="displayed")))
    await bench.clock.pass_time(100)
    await bench.attach("phone")
    async with bench.bus.run(user=ADA, agent="planner", run="run_1"):
        await bench.clock.pass_time(100)
    entries = await bench.read("tab")
    await bench.ack("tab", entries)
    await bench.clock.pass_time(300)
    await bench.confirm("tab", entries[:1])
    await bench.read("phone")
    await bench.confirm("phone", entries[1:], Level.CONFIRMED, note="seen")
    found = await passed(bench, work)
    assert sorted(brief(found)) == sorted(
        [("agent_started", "tab", "received"), ("agent_completed", "tab", "received")]
        + [("agent_started", "tab", "displayed")]
        + [("agent_completed", "phone", level) for level in ("received", "displayed", "confirmed")]
    )
    assert [one.note for one in found if one.level is Level.CONFIRMED] == ["seen"]
    assert {one.entry for one in found} == set(entries)
    assert all(one.time_ms <= bench.clock.now_ms() for one in found)


@pytest.mark.requirement("R12")
async def test_confirmations_before_the_call_come_too_and_those_of_other_runs_do_not(bench: Bench) -> None:
    entries = await short_run(bench)
    other = await short_run(bench, "run_10")
    await bench.bus.publish(user=ADA, type="note", data={"about": "run_1"})
    await bench.read("tab")
    await bench.ack("tab", [*other, *entries])
    found = await gathered(bench.bus.run_confirmations("run_1", user=ADA))
    assert [one.entry for one in found] == entries


@pytest.mark.requirement("R12")
async def test_a_run_tells_of_its_own_confirmations_and_receipts_stand_for_their_events(bench: Bench) -> None:
    async with bench.bus.run(user=ADA, agent="planner") as run:
        await run.thinking("hm")
        await run.flush()
        receipts = run.receipts
        await bench.ack("tab", await bench.read("tab"))
        early = await gathered(bench.bus.run_confirmations(receipts))
        (one,) = await gathered(bench.bus.run_confirmations(receipts[0]))
    assert [found.event for found in early] == [receipt.event for receipt in receipts]
    assert one.event == receipts[0].event
    await bench.ack("tab", await bench.read("tab"))
    assert [found.type for found in await gathered(run.confirmations())] == [
        "agent_started",
        "agent_thinking",
        "agent_completed",
    ]


@pytest.mark.requirement("R12")
@pytest.mark.requirement("R25")
async def test_at_its_time_it_raises_with_all_that_came(bench: Bench) -> None:
    async with bench.bus.run(user=ADA, agent="planner", run="run_1") as run:
        await run.flush()
        await bench.ack("tab", await bench.read("tab"))
        work = asyncio.ensure_future(gathered(run.confirmations(timeout_ms=1_000)))
        await bench.clock.pass_time(0)
        await bench.clock.pass_time(999)
        assert not work.done()
        with pytest.raises(ConfirmationTimeout, match="not completed, and 0 of 1 events are not received") as caught:
            await passed(bench, work)
    (one,) = caught.value.confirmations
    assert isinstance(one, RunConfirmation)


@pytest.mark.requirement("R12")
async def test_several_sessions_may_be_asked_for(bench: Bench) -> None:
    entries = await short_run(bench)
    await bench.attach("phone")
    await bench.read("tab")
    await bench.ack("tab", entries)
    work = asyncio.ensure_future(gathered(bench.bus.run_confirmations("run_1", user=ADA, sessions=2)))
    await bench.clock.pass_time(1_000)
    assert not work.done()
    await bench.ack("phone", await bench.read("phone"))
    assert len(await passed(bench, work)) == 6


@pytest.mark.requirement("R12")
async def test_a_store_that_is_away_is_waited_for_and_nothing_is_told_twice(bench: Bench) -> None:
    entries = await short_run(bench)
    await bench.read("tab")
    await bench.ack("tab", entries[:1])
    confirmations = bench.bus.run_confirmations("run_1", user=ADA)
    assert (await anext(confirmations)).entry == entries[0]
    bench.store.fail()
    work = asyncio.ensure_future(gathered(confirmations))
    await bench.clock.pass_time(1_000)
    bench.store.heal()
    await bench.ack("tab", entries[1:])
    assert [one.entry for one in await passed(bench, work)] == entries[1:]


async def test_a_closed_bus_ends_it_with_an_error(bench: Bench) -> None:
    work = asyncio.ensure_future(gathered(bench.bus.run_confirmations("run_1", user=ADA)))
    await bench.clock.pass_time(100)
    await bench.bus.aclose()
    with pytest.raises(EventBusError, match="closed"):
        await work
    assert bench.clock.waiting == 0


@pytest.mark.requirement("R21")
@pytest.mark.parametrize(
    "run, how, wrong",
    [
        ("run_1", {}, "user"),
        ("run_1", {"user": "run_1"}, "user"),
        ("thread_1", {"user": "ada"}, "run"),
        ([], {}, "run"),
        ("run_1", {"user": "ada", "level": "read"}, "level"),
        ("run_1", {"user": "ada", "sessions": "all_live"}, "sessions"),
        ("run_1", {"user": "ada", "sessions": 0}, "sessions"),
        ("run_1", {"user": "ada", "timeout_ms": 0}, "timeout_ms"),
    ],
)
async def test_what_makes_no_sense_is_refused_at_the_call(
    bench: Bench, run: Any, how: dict[str, Any], wrong: str
) -> None:
    with pytest.raises(InvalidField) as caught:
        bench.bus.run_confirmations(run, **how)
    assert caught.value.field == wrong


async def test_without_records_it_says_so_at_once() -> None:
    bench = Bench(settings=Settings(store=StoreSettings(confirmation_records=ConfirmationRecords.OFF)))
    async with bench.bus:
        with pytest.raises(EventBusError, match="EVENTBUS_CONFIRMATION_RECORDS"):
            bench.bus.run_confirmations("run_1", user=ADA)


class HookedStore(MemoryStore):
    """Something happens right after a page of events was read, once."""

    after_history: Callable[[], Awaitable[object]] | None = None

    async def history(self, user: UserId, after: EntryId, count: int) -> HistoryPage:
        page = await super().history(user, after, count)
        hook, self.after_history = self.after_history, None
        if hook is not None:
            await hook()
        return page


@pytest.mark.requirement("R12")
async def test_an_event_stored_and_confirmed_between_two_reads_is_not_missed() -> None:
    bench = Bench(HookedStore)
    async with bench.bus:
        await bench.attach("tab")
        async with bench.bus.run(user=ADA, agent="planner", run="run_1") as run:
            await run.flush()

            async def think() -> None:
                await run.thinking("hm")
                await run.flush()
                await bench.ack("tab", await bench.read("tab"))

            assert isinstance(bench.store, HookedStore)
            bench.store.after_history = think
            work = asyncio.ensure_future(gathered(run.confirmations()))
            await bench.clock.pass_time(500)
        await bench.ack("tab", await bench.read("tab"))
        types = [one.type for one in await passed(bench, work)]
    assert types == ["agent_started", "agent_thinking", "agent_completed"]


@pytest.mark.requirement("R12")
@settings(max_examples=40)
@given(data=st.data())
async def test_however_it_falls_every_session_event_and_level_comes_once(data: st.DataObject) -> None:
    """Cancelled and gone on with at any await, with the store away now and then."""
    bench = Bench()
    async with bench.bus:
        for session in ("tab", "phone"):
            await bench.attach(session)
        async with bench.bus.run(user=ADA, agent="planner", run="run_1") as run:
            await run.thinking("hm")
        entries = [receipt.entry for receipt in run.receipts]
        for session in ("tab", "phone"):
            await bench.read(session)
        confirmations = bench.bus.run_confirmations("run_1", user=ADA, level="displayed", sessions=2)
        found: list[tuple[str, str, str]] = []
        left = [(session, entry) for session in ("tab", "phone") for entry in entries]
        ended = False
        for _ in range(60):
            match data.draw(st.sampled_from(["ack", "display", "ask", "away"])):
                case "ack":
                    bench.store.heal()
                    await bench.ack(data.draw(st.sampled_from(["tab", "phone"])), [data.draw(st.sampled_from(entries))])
                case "display" if left:
                    bench.store.heal()
                    session, entry = left.pop(data.draw(st.integers(0, len(left) - 1)))
                    await bench.confirm(session, [entry])
                case "away":
                    bench.store.fail()
                case _:
                    task = asyncio.ensure_future(anext(confirmations, None))
                    await bench.clock.pass_time(data.draw(st.sampled_from([0, 10, 300])))
                    bench.store.heal()
                    if not task.done():
                        task.cancel()
                    try:
                        one = await task
                    except asyncio.CancelledError:
                        continue
                    if one is None:
                        ended = True
                        break
                    found.append((one.event, one.session, one.level))
        bench.store.heal()
        for session, entry in left:
            await bench.confirm(session, [entry])
        if not ended:
            rest = await passed(bench, asyncio.ensure_future(gathered(confirmations)))
            found += [(one.event, one.session, one.level) for one in rest]
        assert len(found) == len(set(found)) == 2 * len(entries) * 2
