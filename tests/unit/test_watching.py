"""The watch of a node over a store in memory; time is a manual clock's."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from eventbus import Bus
from eventbus.breach import AGAIN_MS, OperatorKind
from eventbus.config import ConfirmationRecords, Settings, StoreSettings
from eventbus.errors import StoreError, StoreUnavailable
from eventbus.event import Require
from eventbus.fields import Level
from eventbus.ids import ENTRY_ZERO, ConnectionId, EntryId, EventId, NodeName, RunId, SessionId, UserId
from eventbus.store import (
    Append,
    Attach,
    AttachMode,
    ConfirmRequest,
    Fence,
    NodeRecord,
    ReadRequest,
    ReleaseReason,
    Start,
)
from eventbus.store.running import Demand, DueRecord, RunRecord, RunRequest, Settlement
from eventbus.store.topology import LANES, lane_of, slot_of
from eventbus.testing import ManualClock, MemoryStore
from gateway.counters import Counters
from gateway.deadlines.watching import IDLE_FACTOR, LATE_FACTOR, PAGE, UNKNOWN_MS, Watcher

ANN = UserId("ann")
WATCH_MS = 1_000


class Posts:
    """The webhook, as far as the watch knows it."""

    def __init__(self) -> None:
        self.kinds: set[OperatorKind] = set()
        self.taken: list[tuple[EntryId, int]] = []

    def posts(self, kind: OperatorKind) -> bool:
        return kind in self.kinds

    def take(self, due: DueRecord, event: EntryId, attempt: int) -> None:
        self.taken.append((event, attempt))


class Bench:
    """A store, a clock by hand, and the watchers of some nodes."""

    def __init__(self, **settings: Any) -> None:
        self.clock = ManualClock()
        self.settings = StoreSettings(**{"partitions": 16, **settings})
        self.store = MemoryStore(self.settings, self.clock)
        self.posts = Posts()
        self.counters = Counters()
        self.closed: list[RunRecord] = []
        self.close_error: Exception | None = None

    def watcher(self, name: str = "n1", store: MemoryStore | None = None) -> Watcher:
        return Watcher(
            store or self.store,
            NodeName(name),
            settings=self.settings,
            clock=self.clock,
            counters=self.counters,
            close=self._close,
            posting=self.posts,
            watch_ms=WATCH_MS,
            nodes_ms=5_000,
        )

    async def _close(self, record: RunRecord) -> bool:
        if self.close_error is not None:
            raise self.close_error
        self.closed.append(record)
        return True

    def bus(self) -> Bus:
        return Bus(settings=Settings(store=self.settings), store=self.store, clock=self.clock)

    async def request(self, *runs: str, user: UserId = ANN, **watch: int) -> None:
        for run in runs:
            fields = {"agent": "planner"}
            assert await self.store.request_run(
                RunRequest(user=user, run=RunId(run), fields=fields, watch=watch or {"started": 1_000})
            )

    async def beats(self, name: str, state: str = "ready") -> None:
        record = NodeRecord(
            node=NodeName(name), address="", version="", state=state, started_ms=0, figures={"connections": 0}
        )
        await self.store.beat_node(record)

    async def told(self) -> list[dict[str, str]]:
        found: list[dict[str, str]] = []
        for number in await self.store.operator_partitions():
            found += [dict(one.fields) for one in await self.store.operator_events(number, ENTRY_ZERO, 10_000)]
        return found

    async def due(self) -> list[DueRecord]:
        pages = await self.store.due(range(self.settings.partitions), 10_000)
        return [due for page in pages if not isinstance(page, StoreError) for due in page]

    async def fields(self, run: str = "run_1") -> dict[str, str]:
        record = await self.store.run(ANN, RunId(run))
        assert record is not None
        return dict(record.fields)


# --- runs -----------------------------------------------------------------------------------------------------------


@pytest.mark.requirement("R17")
async def test_a_run_that_nobody_starts_is_a_breach_after_its_second_and_stays_visible() -> None:
    bench = Bench()
    watcher = bench.watcher()
    await bench.request("run_1")
    bench.clock.advance(999)
    await watcher.look()
    assert await bench.told() == []
    bench.clock.advance(4_001)
    await watcher.look()
    (told,) = await bench.told()
    assert (told["kind"], told["deadline"], told["run"], told["late_ms"]) == (
        "missed_deadline",
        "started",
        "run_1",
        "4000",
    )
    fields = await bench.fields()
    assert (fields["state"], fields["breaches"]) == ("requested", "1")
    assert bench.counters.run_breaches == {"started": 1}
    assert await bench.due() == []


@pytest.mark.requirement("R17")
async def test_each_late_step_of_a_run_is_a_breach_and_a_step_in_time_is_none() -> None:
    bench = Bench()
    watcher = bench.watcher()
    async with bench.bus() as bus, bus.run(user="ann", agent="planner") as run:
        await run.flush()
        bench.clock.advance(2_001)
        await run.thinking("late")
        async with run.tool("search") as tool:
            await run.flush()
            bench.clock.advance(4_999)
            tool.result = "in time"
        async with run.tool("search") as tool:
            await run.flush()
            bench.clock.advance(5_001)
            tool.result = "late"
        await run.flush()
        await watcher.look()
        assert sorted(one["deadline"] for one in await bench.told()) == ["completed", "thinking"]
        bench.clock.advance(20_000)
    await watcher.look()
    assert sorted(one["deadline"] for one in await bench.told()) == ["agent", "completed", "thinking"]
    assert bench.counters.run_breaches == {"thinking": 1, "completed": 1, "agent": 1}
    fields = await bench.fields(run.id)
    assert (fields["state"], fields["breaches"]) == ("completed", "3")
    assert "breach:thinking" in fields
    assert bench.closed == []


@pytest.mark.requirement("R16")
async def test_a_run_whose_lease_is_over_is_told_once_and_closed_until_it_is() -> None:
    bench = Bench()
    bench.close_error = StoreUnavailable("away")
    watcher = bench.watcher()
    await bench.request("run_1", lease=30_000)
    bench.clock.advance(30_000)
    await watcher.look()
    assert bench.counters.runs_abandoned == 1
    bench.close_error = None
    bench.clock.advance(AGAIN_MS - 1)
    await watcher.look()
    assert bench.closed == []
    bench.clock.advance(IDLE_FACTOR * WATCH_MS)
    await watcher.look()
    assert [record.run for record in bench.closed] == ["run_1"]
    assert [one["kind"] for one in await bench.told()] == ["run_abandoned"]
    assert (bench.counters.runs_abandoned, bench.counters.runs_closed) == (1, 1)


@pytest.mark.requirement("R16")
async def test_a_defect_in_closing_one_run_does_not_end_the_watch(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench()
    bench.close_error = RuntimeError("a defect")
    await bench.request("run_1", lease=0)
    await bench.watcher().look()
    assert "run_1 could not be closed" in caplog.text
    caplog.clear()


# --- demands --------------------------------------------------------------------------------------------------------

FENCE = Fence(user=ANN, session=SessionId("phone"), connection=ConnectionId("c1"))


async def _demand(bench: Bench, level: Level = Level.DISPLAYED, within_ms: int = 4_000) -> EntryId:
    """Publishes an event that demands a confirmation, and delivers it to a session."""
    attach = Attach(
        fence=FENCE,
        node=NodeName("n1"),
        mode=AttachMode.OPEN,
        start=Start.NEW,
        cursor=None,
        epoch=None,
        live_limit=10,
        known_limit=10,
    )
    await bench.store.attach(attach)
    async with bench.bus() as bus:
        require = Require(level=level, within_ms=within_ms)
        receipt = await bus.publish(user="ann", type="note", data={}, id="e1", require=require)
    await bench.store.read_new([ReadRequest(fence=FENCE, count=10)])
    return receipt.entry


async def _confirm(bench: Bench, level: Level, entry: EntryId) -> None:
    if level is Level.RECEIVED:
        await bench.store.ack(ANN, FENCE.session, [entry])
    else:
        request = ConfirmRequest(user=ANN, session=FENCE.session, level=level, entries=[entry])
        await bench.store.confirm_many([request])


@pytest.mark.requirement("R13")
@pytest.mark.parametrize("level, missed", [(None, True), (Level.RECEIVED, True), (Level.DISPLAYED, False)], ids=str)
async def test_a_demand_is_escalated_unless_it_was_met_in_time(level: Level | None, missed: bool) -> None:
    bench = Bench()
    bench.posts.kinds = {OperatorKind.MISSED_CONFIRMATION}
    watcher = bench.watcher()
    entry = await _demand(bench)
    bench.clock.advance(4_000)
    if level is not None:
        await _confirm(bench, level, entry)
    bench.clock.advance(1)
    await watcher.look()
    told = await bench.told()
    assert len(told) == missed
    if missed:
        reached = "" if level is None else level.value
        assert (told[0]["event"], told[0]["entry"], told[0]["reached"]) == ("e1", entry, reached)
        assert told[0]["within_ms"] == "4000"
    assert bench.counters.demands_missed == ({"displayed": 1} if missed else {})
    assert len(await bench.due()) == missed, "a turn of the webhook, or nothing"


@pytest.mark.requirement("R13")
async def test_a_confirmation_after_the_deadline_does_not_undo_a_miss_that_was_found_late() -> None:
    bench = Bench()
    entry = await _demand(bench)
    bench.clock.advance(4_001)
    await _confirm(bench, Level.CONFIRMED, entry)
    bench.clock.advance(60_000)
    await bench.watcher().look()
    (told,) = await bench.told()
    assert (told["reached"], told["late_ms"]) == ("", "60001")


@pytest.mark.requirement("R13")
async def test_a_nodes_own_release_does_not_meet_a_demand() -> None:
    """D19."""
    bench = Bench()
    entry = await _demand(bench, Level.RECEIVED)
    await bench.store.release(FENCE, [entry], ReleaseReason.FILTERED)
    bench.clock.advance(4_000)
    await bench.watcher().look()
    assert len(await bench.told()) == 1


@pytest.mark.requirement("R13")
async def test_where_nothing_is_recorded_no_demand_is_called_missed() -> None:
    """A publisher with these settings refuses a demand; one with others may have stored it."""
    bench = Bench(confirmation_records=ConfirmationRecords.OFF)
    demand = Demand(level=Level.RECEIVED, within_ms=1)
    await bench.store.append([Append(user=ANN, event=EventId("e1"), body=b"", demand=demand)])
    bench.clock.advance(100)
    assert len(await bench.due()) == 1
    await bench.watcher().look()
    assert await bench.told() == []
    assert await bench.due() == []


@pytest.mark.requirement("R13")
async def test_many_records_of_a_user_are_all_looked_at() -> None:
    bench = Bench()
    entry = await _demand(bench)
    async with bench.bus() as bus:
        for _ in range(1_200):
            other = await bus.publish(user="ann", type="note", data={})
            await bench.store.read_new([ReadRequest(fence=FENCE, count=10)])
            await _confirm(bench, Level.RECEIVED, other.entry)
    await _confirm(bench, Level.DISPLAYED, entry)
    bench.clock.advance(4_000)
    await bench.watcher().look()
    assert await bench.told() == []


# --- paging, faults -------------------------------------------------------------------------------------------------


@pytest.mark.requirement("R17")
async def test_more_than_a_page_of_deadlines_is_settled_in_one_look() -> None:
    bench = Bench()
    await bench.request(*(f"run_{number}" for number in range(3 * PAGE + 1)))
    bench.clock.advance(1_000)
    await bench.watcher().look()
    assert len(await bench.told()) == 3 * PAGE + 1
    assert await bench.due() == []


@pytest.mark.requirement("R17")
async def test_a_store_that_was_away_is_caught_up_with_and_the_log_says_how_late(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bench = Bench()
    watcher = bench.watcher()
    await bench.request("run_1")
    bench.store.fail()
    for _ in range(12):
        bench.clock.advance(WATCH_MS)
        await watcher.look()
    bench.store.heal()
    assert bench.counters.store_errors.total() > 0
    bench.clock.advance(IDLE_FACTOR * WATCH_MS)
    await watcher.look()
    (told,) = await bench.told()
    assert int(told["late_ms"]) == watcher.late_ms >= 11_000
    assert "late" in caplog.text
    caplog.clear()


class Away(MemoryStore):
    """A store with two primaries, of which the second, and the list of nodes with it, does not answer while `away`."""

    def __init__(self, settings: StoreSettings, clock: ManualClock) -> None:
        super().__init__(settings, clock)
        self.away = False
        self.asked: set[int] = set()

    def lane_of(self, user: UserId) -> int:
        raise AssertionError("the watch knows of partitions, not of users")

    async def _stand(self) -> None:
        if self.away:
            await asyncio.Event().wait()

    async def due(self, partitions: Sequence[int], count: int) -> Sequence[Sequence[DueRecord] | StoreError]:
        lanes = {lane_of(slot_of(f"{{{number}}}")) for number in partitions}
        assert len(lanes) == 1, "no read is of two lanes"
        self.asked |= lanes
        if min(lanes) >= LANES // 2:
            await self._stand()
        return await super().due(partitions, count)

    async def nodes(self) -> Sequence[NodeRecord]:
        await self._stand()
        return await super().nodes()


@pytest.mark.requirement("R17")
@pytest.mark.requirement("R2")
async def test_deadlines_do_not_wait_for_a_primary_that_is_away() -> None:
    """They are found within seconds of real time; those of the others when it is back."""
    bench = Bench(partitions=64)
    bench.store = Away(bench.settings, bench.clock)
    watcher = bench.watcher()
    await watcher.look()
    assert len(bench.store.asked) == LANES
    users = [UserId(f"user{number}") for number in range(40)]
    for user in users:
        await bench.request("run_1", user=user)
    bench.store.away = True
    bench.clock.advance(IDLE_FACTOR * WATCH_MS)
    async with asyncio.timeout(10):
        await watcher.look()
    told = {told["user"] for told in await bench.told()}
    assert 10 < len(told) < 30
    bench.store.away = False
    bench.clock.advance(IDLE_FACTOR * WATCH_MS)
    await watcher.look()
    assert {told["user"] for told in await bench.told()} == set(users)


async def test_a_deadline_of_a_later_version_is_put_off_and_not_lost(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench()
    await bench.request("run_1")
    bench.clock.advance(1_000)
    (due,) = await bench.due()
    await bench.store.settle([Settlement(due=due, watch={"tomorrow's kind": 0})])
    watcher = bench.watcher()
    await watcher.look()
    assert await bench.due() == []
    bench.clock.advance(UNKNOWN_MS)
    assert [one.member for one in await bench.due()] == ["tomorrow's kind"]
    caplog.clear()


class Poisoned(MemoryStore):
    """Raises what no store may when one run is read."""

    async def run(self, user: UserId, run: RunId) -> RunRecord | None:
        if run == "run_bad":
            raise RuntimeError("a defect")
        return await super().run(user, run)


async def test_one_deadline_that_can_not_be_judged_does_not_hold_up_the_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bench = Bench()
    bench.store = Poisoned(bench.settings, bench.clock)
    await bench.request("run_bad", "run_1")
    bench.clock.advance(1_000)
    await bench.watcher().look()
    assert [one["run"] for one in await bench.told()] == ["run_1"]
    assert "could not be judged" in caplog.text
    caplog.clear()


async def test_turns_of_the_webhook_are_handed_over() -> None:
    bench = Bench()
    bench.posts.kinds = {OperatorKind.MISSED_DEADLINE}
    watcher = bench.watcher()
    await bench.request("run_1")
    bench.clock.advance(1_000)
    await watcher.look()
    bench.clock.advance(IDLE_FACTOR * WATCH_MS)
    await watcher.look()
    assert [attempt for _, attempt in bench.posts.taken] == [1]


# --- many nodes -----------------------------------------------------------------------------------------------------


@pytest.mark.requirement("R17")
async def test_two_nodes_that_both_see_everything_tell_of_each_deadline_once() -> None:
    """D22: neither is in the list, so each believes that it is alone."""
    bench = Bench()
    await bench.request(*(f"run_{number}" for number in range(200)))
    bench.clock.advance(1_000)
    await asyncio.gather(*(bench.watcher(name).look() for name in ("n1", "n2", "n3")))
    assert len(await bench.told()) == 200
    assert bench.counters.run_breaches == {"started": 200}


@pytest.mark.requirement("R17")
@pytest.mark.parametrize("state, alone", [("ready", False), ("not_ready", False), ("draining", True)])
async def test_nodes_that_live_share_the_partitions_and_one_that_drains_has_none(state: str, alone: bool) -> None:
    bench = Bench()
    await bench.beats("n1")
    await bench.beats("n2", state)
    watcher = bench.watcher("n1")
    users = [UserId(f"user{number}") for number in range(40)]
    for user in users:
        await bench.request("run_1", user=user)
    bench.clock.advance(1_000)
    await watcher.look()
    assert (len(await bench.told()) == 40) is alone
    await bench.watcher("n2").look()
    assert len(await bench.told()) == 40


@pytest.mark.requirement("R17")
async def test_who_stands_by_takes_what_is_late_long_before_a_dead_node_leaves_the_list() -> None:
    bench = Bench()
    await bench.beats("n1")
    await bench.beats("n2")
    watcher = bench.watcher("n1")
    users = [UserId(f"user{number}") for number in range(40)]
    for user in users:
        await bench.request("run_1", user=user)
    for _ in range(1 + LATE_FACTOR + IDLE_FACTOR):
        bench.clock.advance(WATCH_MS)
        await watcher.look()
    assert len(await bench.told()) == 40


@pytest.mark.requirement("R17")
async def test_an_idle_installation_is_looked_at_a_quarter_as_often_and_in_even_parts() -> None:
    bench = Bench(partitions=1_024)
    watcher = bench.watcher()
    await watcher.look()
    assert watcher.calls == 1_024, "the first look is at everything: there may be something to catch up with"
    parts: list[int] = []
    for _ in range(40):
        before = watcher.calls
        bench.clock.advance(WATCH_MS + 3)
        await watcher.look()
        parts.append(watcher.calls - before)
    assert set(parts[4:]) == {256}


@pytest.mark.requirement("R17")
async def test_a_partition_with_something_due_is_looked_at_every_time() -> None:
    bench = Bench(partitions=1)
    watcher = bench.watcher()
    for _ in range(8):
        await watcher.look()
        bench.clock.advance(WATCH_MS)
    for number in range(4):
        await bench.request(f"run_{number}")
        bench.clock.advance(WATCH_MS)
        await watcher.look()
    late = [int(one["late_ms"]) for one in await bench.told()]
    assert len(late) >= 1
    for number in range(10, 20):
        await bench.request(f"run_{number}")
        bench.clock.advance(WATCH_MS)
        await watcher.look()
    assert [int(one["late_ms"]) for one in await bench.told()][-9:] == [0] * 9


class Counting(MemoryStore):
    """Counts the writes of a look."""

    writes = 0

    async def due(self, partitions: Sequence[int], count: int) -> Sequence[Sequence[DueRecord] | StoreError]:
        self.writes += 1
        return await super().due(partitions, count)


async def test_a_look_at_idle_partitions_is_one_call() -> None:
    bench = Bench(partitions=1_024)
    store = Counting(bench.settings, bench.clock)
    watcher = bench.watcher(store=store)
    await watcher.look()
    assert store.writes == 1
