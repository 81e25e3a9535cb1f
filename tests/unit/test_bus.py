"""The bus and its publisher: what a publish promises, whatever the store does."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eventbus import Bus
from eventbus.breaker import BreakerState
from eventbus.config import PublishSettings, Settings
from eventbus.errors import (
    BreakerOpen,
    EventBusError,
    InvalidEvent,
    InvalidField,
    NotReplicated,
    PartialPublish,
    PublishTimeout,
    StoreBusy,
    StoreError,
    StoreMisconfigured,
    StreamFull,
)
from eventbus.event import Deliver, Level, Require, decode_envelope, make_event
from eventbus.publishing.receipt import Receipt
from eventbus.schemas import Schema
from eventbus.store import Durability
from eventbus.testing import ManualClock, MemoryStore
from tests.support.scripted_store import Outcome, ScriptedStore
from tests.support.waiting import until

STORED, UNREACHED, LOST_REPLY = Outcome.STORED, Outcome.UNREACHED, Outcome.LOST_REPLY
DEADLINE_MS = 10_000
NO_BREAKER: dict[str, Any] = {"breaker_failures": 10_000}


def publish_settings(**values: Any) -> Settings:
    return Settings(publish=replace(PublishSettings(), **values))


class World:
    """A bus over a scripted store, on a clock that stands still."""

    def __init__(self, store: ScriptedStore, clock: ManualClock, bus: Bus) -> None:
        self.store, self.clock, self.bus = store, clock, bus
        self.names = itertools.count(1)

    def publish(self, user: str = "ada", name: str | None = None, **fields: Any) -> asyncio.Task[Receipt]:
        """Begins a publish, in a task that the test awaits; its event is e1, e2, ..."""
        name = name or f"e{next(self.names)}"
        return asyncio.ensure_future(self.bus.publish(user=user, type="note", data={}, id=name, **fields))

    async def pass_until_done(self, work: Awaitable[Any], limit_ms: int = 60_000, step_ms: int = 50) -> Any:
        """Lets time pass until `work` is done, and returns what it returns."""
        future = asyncio.ensure_future(work)
        for _ in range(limit_ms // step_ms):
            await self.clock.pass_time(0)
            if future.done():
                break
            await self.clock.pass_time(step_ms)
        assert future.done(), f"not done within {limit_ms} ms of the manual clock"
        return await future


@asynccontextmanager
async def world(
    script: list[Outcome] | None = None,
    on_breaker: Callable[[BreakerState], object] | None = None,
    **values: Any,
) -> AsyncIterator[World]:
    store, clock = ScriptedStore(script or ()), ManualClock()
    bus = Bus(settings=publish_settings(**values), store=store, clock=clock, on_breaker=on_breaker)
    async with bus:
        made = World(store, clock, bus)
        yield made
        store.gate.set()
        await made.pass_until_done(bus.aclose())


# --- the happy path ---------------------------------------------------------------------------------------------------


@pytest.mark.requirement("R1")
async def test_a_publish_returns_where_the_event_is_stored() -> None:
    clock = ManualClock()
    store = MemoryStore(clock=clock)
    async with Bus(store=store, clock=clock) as bus:
        receipt = await bus.publish(user="ada", type="note", data={"text": "hi"})
        page = await store.history(receipt.user, receipt.entry.__class__("0-0"), 10)
    assert [entry.id for entry in page.entries] == [receipt.entry]
    event = decode_envelope(page.entries[0].body)
    assert (event.id, event.user, event.type, event.data) == (receipt.event, "ada", "note", {"text": "hi"})
    assert (event.time_ms, receipt.stored_ms) == (clock.now_ms(), clock.now_ms())
    assert (receipt.duplicate, receipt.attempts) == (False, 1)


async def test_every_field_of_a_publish_is_in_the_event() -> None:
    store = MemoryStore()
    async with Bus(store=store) as bus:
        receipt = await bus.publish(
            user="ada",
            type="note",
            data={"n": 1},
            id="my-id",
            thread="thread_1",
            run="run_1",
            deliver="any",
            require={"level": "displayed", "within_ms": 5_000},
            expires_ms=2_000_000_000_000,
            trace="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            time_ms=1_750_000_000_000,
        )
        entry = await store.entry(receipt.user, receipt.entry)
    assert entry is not None
    event = decode_envelope(entry.body)
    assert (event.id, event.thread, event.run, event.deliver) == ("my-id", "thread_1", "run_1", Deliver.ANY)
    assert event.require == Require(level=Level.DISPLAYED, within_ms=5_000)
    assert (event.expires_ms, event.time_ms) == (2_000_000_000_000, 1_750_000_000_000)
    assert event.trace == "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.mark.requirement("R4")
async def test_a_repeated_event_id_is_answered_with_the_first_entry() -> None:
    async with Bus(store=MemoryStore()) as bus:
        first = await bus.publish(user="ada", type="note", data={}, id="same")
        again = await bus.publish(user="ada", type="note", data={}, id="same")
        assert (again.entry, again.duplicate) == (first.entry, True)
        assert bus.statistics().duplicates == 1


async def test_all_publishes_of_a_loop_turn_leave_in_one_call() -> None:
    async with world() as w:
        await asyncio.gather(*[w.publish(f"user-{number}") for number in range(50)])
        assert [len(batch) for batch in w.store.batches] == [50]


async def test_no_task_is_made_for_a_publish_on_its_happy_path() -> None:
    async with world() as w:
        w.store.gate.clear()
        before = len(asyncio.all_tasks())
        batch = asyncio.ensure_future(w.bus.publish_many([note(f"user-{n}") for n in range(100)]))
        await w.clock.pass_time(0)
        assert len(asyncio.all_tasks()) == before + 2  # the caller's, and one call to the store
        w.store.gate.set()
        await batch


async def test_the_durability_of_the_call_goes_before_that_of_the_settings() -> None:
    async with world() as w:
        await w.publish()
        await w.publish(durability="replicated")
        await w.publish(durability=Durability.FSYNC)
        assert w.store.durabilities == [Durability.MEMORY, Durability.REPLICATED, Durability.FSYNC]
    async with world(durability=Durability.REPLICATED) as w:
        await w.publish()
        assert w.store.durabilities == [Durability.REPLICATED]


# --- validation where the event is made -------------------------------------------------------------------------------


def note(user: str = "ada", **fields: Any) -> dict[str, Any]:
    return {"user": user, "type": "note", "data": {}, **fields}


@pytest.mark.requirement("R21")
@pytest.mark.parametrize("user", ["run_1", "thread_1"])
async def test_a_run_or_thread_id_given_as_user_is_refused_at_the_call(user: str) -> None:
    async with world() as w:
        with pytest.raises(InvalidEvent) as caught:
            await w.bus.publish(user=user, type="note", data={})
        assert (caught.value.field, caught.value.retryable, w.store.batches) == ("user", False, [])


@pytest.mark.parametrize(
    "fields,wrong",
    [
        ({"type": "Note"}, "type"),
        ({"data": []}, "data"),
        ({"type": "agent_thinking", "data": {"text": " "}}, "data.text"),
        ({"id": "no spaces"}, "id"),
        ({"thread": "run_1"}, "thread"),
        ({"run": "thread_1"}, "run"),
        ({"deliver": "some"}, "deliver"),
        ({"require": {"level": "displayed"}}, "require.within_ms"),
        ({"require": {"within_ms": 1}}, "require.level"),
        ({"require": {"level": "seen", "within_ms": 1}}, "require.level"),
        ({"require": {"level": "displayed", "within_ms": 1, "by": "x"}}, "require.by"),
        ({"require": "displayed"}, "require"),
        ({"expires_ms": "tomorrow"}, "expires_ms"),
        ({"trace": "00"}, "trace"),
        ({"time_ms": 1.5}, "time_ms"),
        ({"data": {"big": "x" * 2_000}}, "data"),
    ],
)
async def test_a_bad_field_is_named_and_nothing_is_sent(fields: dict[str, Any], wrong: str) -> None:
    async with world(max_event_bytes=1_024) as w:
        with pytest.raises(InvalidEvent) as caught:
            await w.bus.publish(**note(**fields))
        assert caught.value.field == wrong
        with pytest.raises(InvalidEvent) as caught:
            await w.bus.publish_many([note(), note(**fields)])
        assert (caught.value.field, caught.value.index) == (wrong, 1)
        assert w.store.batches == []


@pytest.mark.parametrize(
    "event,wrong", [({"user": "ada", "type": "note"}, "data"), (note(seq=1), "seq"), ("no event", "event")]
)
async def test_a_batch_with_a_missing_or_unknown_field_is_refused_as_a_whole(event: Any, wrong: str) -> None:
    async with world() as w:
        with pytest.raises(InvalidEvent) as caught:
            await w.bus.publish_many([note(), note(), event])
        assert (caught.value.index, caught.value.field, w.store.batches) == (2, wrong, [])


@pytest.mark.parametrize("deadline_ms", [0, -1, 1.5, True, "1"])
async def test_a_deadline_that_is_no_time_is_refused(deadline_ms: Any) -> None:
    async with world() as w:
        with pytest.raises(InvalidField, match="deadline_ms"):
            await w.publish(deadline_ms=deadline_ms)
        with pytest.raises(InvalidField, match="durability"):
            await w.publish(durability="forever")


async def test_the_applications_own_schemas_hold() -> None:
    async with world() as w:
        w.bus.schemas.register("note", Schema(strings=("text",)))
        with pytest.raises(InvalidEvent, match=r"data\.text"):
            await w.publish()


# --- batches ----------------------------------------------------------------------------------------------------------


async def test_a_batch_is_answered_in_the_order_given_and_takes_made_events_too() -> None:
    async with world() as w:
        made = make_event(id="made", type="note", user="bob", time_ms=1, data={})
        receipts = await w.bus.publish_many([note(id="one"), made, note(id="two")])
        assert [receipt.event for receipt in receipts] == ["one", "made", "two"]
        assert [receipt.user for receipt in receipts] == ["ada", "bob", "ada"]
        assert w.store.streams == {"ada": ["one", "two"], "bob": ["made"]}
        assert await w.bus.publish_many([]) == []


async def test_a_batch_of_which_a_part_fails_tells_the_result_of_each() -> None:
    async with world([STORED, Outcome.REFUSED, STORED]) as w:
        with pytest.raises(PartialPublish) as caught:
            await w.bus.publish_many([note("ada"), note("bob"), note("cyd")])
        kinds = [type(result) for result in caught.value.results]
        assert kinds == [Receipt, StoreMisconfigured, Receipt]


async def test_a_batch_that_fails_as_a_whole_for_one_reason_raises_that_reason() -> None:
    async with world([Outcome.REFUSED] * 2) as w:
        with pytest.raises(StoreMisconfigured):
            await w.bus.publish_many([note("ada"), note("bob")])


async def test_a_batch_that_does_not_fit_is_refused_before_anything_is_sent() -> None:
    async with world(queue_events=10) as w:
        with pytest.raises(StoreBusy, match="at most 10 events") as caught:
            await w.bus.publish_many([note(f"user-{number}") for number in range(11)])
        assert caught.value.retryable
        assert w.store.batches == []
        await w.bus.publish_many([note(f"user-{number}") for number in range(10)])


async def test_a_cancelled_batch_abandons_all_that_was_not_sent() -> None:
    async with world() as w:
        w.store.gate.clear()
        batch = asyncio.ensure_future(w.bus.publish_many([note(id="one"), note(id="two"), note(id="three")]))
        await w.clock.pass_time(0)
        batch.cancel()
        await asyncio.wait([batch])
        w.store.gate.set()
        await w.publish(name="next")
        assert w.store.streams["ada"] == ["one", "next"]
        assert w.bus.statistics().queued_events == 0


# --- retries ----------------------------------------------------------------------------------------------------------


@pytest.mark.requirement("R4")
async def test_a_retried_publish_is_stored_once_when_its_reply_was_lost() -> None:
    async with world([LOST_REPLY]) as w:
        receipt = await w.pass_until_done(w.publish())
        assert (receipt.duplicate, receipt.attempts) == (True, 2)
        assert w.store.streams["ada"] == ["e1"]
        assert w.bus.statistics().retries == 1


@pytest.mark.requirement("R4")
async def test_the_waits_between_tries_grow_are_jittered_and_have_a_limit() -> None:
    waits = []
    for _ in range(5):
        async with world([UNREACHED] * 7, retry_base_ms=100, retry_max_ms=1_000, **NO_BREAKER) as w:
            work = w.publish()
            times = []
            while not work.done():
                before = len(w.store.batches)
                await w.clock.pass_time(1)
                if len(w.store.batches) > before:
                    times.append(w.clock.monotonic_ms())
            waits.append([later - earlier for earlier, later in itertools.pairwise(times)])
            await work
    for row in waits:
        for number, wait_ms in enumerate(row):
            full_ms = min(100 * 2**number, 1_000)
            assert full_ms / 2 - 2 <= wait_ms <= full_ms + 2, row
    assert len({tuple(row) for row in waits}) > 1, "no two publishers should keep step"


@pytest.mark.requirement("R4")
async def test_a_publish_that_never_succeeds_raises_within_its_deadline_and_says_that_it_may_be_repeated() -> None:
    async with world([UNREACHED] * 1_000, **NO_BREAKER) as w:
        with pytest.raises(PublishTimeout) as caught:
            await w.pass_until_done(w.publish())
        assert w.clock.monotonic_ms() <= DEADLINE_MS
        text = str(caught.value)
        assert caught.value.retryable
        assert "'e1'" in text
        assert "connection refused" in text
        assert "tried" in text
        assert "same id" in text
        assert w.bus.statistics().failed == 1


async def test_a_deadline_of_the_call_goes_before_that_of_the_settings() -> None:
    async with world([UNREACHED] * 1_000, **NO_BREAKER) as w:
        with pytest.raises(PublishTimeout):
            await w.pass_until_done(w.publish(deadline_ms=300), limit_ms=400)


@pytest.mark.requirement("R25")
async def test_a_store_that_never_answers_ends_in_a_timeout_and_the_line_goes_on_afterwards() -> None:
    async with world() as w:
        w.store.gate.clear()
        first = w.publish()
        await w.clock.pass_time(0)
        await w.clock.pass_time(DEADLINE_MS - 1)
        assert not first.done()
        await w.clock.pass_time(1)
        with pytest.raises(PublishTimeout, match="no answer"):
            await first
        w.store.gate.set()
        await w.pass_until_done(w.publish(name="next"))
        assert w.store.streams["ada"][-1] == "next"
        assert w.bus.statistics().queued_events == 0


@pytest.mark.requirement("R4")
async def test_an_error_that_retrying_cannot_help_is_raised_at_once() -> None:
    async with world([Outcome.REFUSED]) as w:
        with pytest.raises(StoreMisconfigured, match="wrong type") as caught:
            await w.publish()
        assert not caught.value.retryable
        assert len(w.store.batches) == 1
        await w.publish()


async def test_a_full_stream_is_retried_and_raised_as_what_it_is() -> None:
    async with world([Outcome.FULL]) as w:
        assert (await w.pass_until_done(w.publish())).attempts == 2
    async with world([Outcome.FULL] * 1_000) as w:
        with pytest.raises(StreamFull, match="same id") as caught:
            await w.pass_until_done(w.publish())
        assert caught.value.retryable
        assert w.bus.statistics().breaker is BreakerState.CLOSED, "a refusal of one event is an answer of the store"


async def test_an_event_that_is_not_replicated_is_asked_for_again_and_told_when_time_is_up() -> None:
    async with world([Outcome.NOT_REPLICATED]) as w:
        receipt = await w.pass_until_done(w.publish(durability="replicated"))
        assert (receipt.duplicate, receipt.attempts) == (True, 2)
    async with world([Outcome.NOT_REPLICATED] * 1_000) as w:
        with pytest.raises(NotReplicated) as caught:
            await w.pass_until_done(w.publish(durability="replicated"))
        assert caught.value.retryable
        assert w.store.streams["ada"] == ["e1"]


async def test_a_defect_of_the_store_fails_its_publishes_and_leaves_no_line_standing() -> None:
    async with world() as w:
        w.store.defect = ZeroDivisionError("a defect")
        with pytest.raises(StoreError, match="a defect") as caught:
            await w.publish()
        assert not caught.value.retryable
        assert isinstance(caught.value.__cause__, ZeroDivisionError)
        await w.publish()


# --- order (D6) -------------------------------------------------------------------------------------------------------


@pytest.mark.requirement("R6")
async def test_a_retry_keeps_its_place() -> None:
    async with world([UNREACHED]) as w:
        work = [w.publish() for _ in range(5)]
        await w.pass_until_done(asyncio.gather(*work))
        assert w.store.streams["ada"] == ["e1", "e2", "e3", "e4", "e5"]


async def test_while_a_users_head_is_retried_other_users_flow() -> None:
    async with world([UNREACHED]) as w:
        slow = w.publish("ada")
        await w.clock.pass_time(0)
        for _ in range(10):
            await w.publish("bob")
        assert not slow.done()
        await w.pass_until_done(slow)


async def test_a_call_that_hangs_does_not_hold_up_other_users() -> None:
    async with world() as w:
        w.store.gate.clear()
        slow = w.publish("ada")
        await w.clock.pass_time(0)
        other = w.publish("bob")
        await w.clock.pass_time(0)
        assert w.store.batches == [["e1"], ["e2"]], "the second call is made while the first is under way"
        w.store.gate.set()
        await asyncio.gather(slow, other)


OUTCOMES = st.sampled_from([*[STORED] * 3, UNREACHED, LOST_REPLY, Outcome.NOT_REPLICATED, Outcome.FULL])


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(
    script=st.lists(OUTCOMES, max_size=60),
    calls=st.lists(
        st.tuples(st.sampled_from(["ada", "bob", "cyd"]), st.integers(0, 300), st.booleans()), min_size=1, max_size=25
    ),
)
@pytest.mark.requirement("R4")
@pytest.mark.requirement("R6")
def test_whatever_fails_each_users_events_are_stored_once_and_in_the_order_of_the_calls(
    script: list[Outcome], calls: list[tuple[str, int, bool]]
) -> None:
    async def scenario() -> None:
        async with world(script, publish_deadline_ms=600_000, breaker_failures=3, retry_max_ms=100) as w:
            work: list[asyncio.Task[Receipt]] = []
            wanted: dict[str, list[str]] = {}
            for number, (user, wait_ms, _) in enumerate(calls):
                work.append(w.publish(user, f"e{number}"))
                wanted.setdefault(user, []).append(f"e{number}")
                await w.clock.pass_time(wait_ms)
            await w.pass_until_done(asyncio.gather(*work), limit_ms=3_600_000, step_ms=1_000)
            assert w.store.streams == wanted

    asyncio.run(scenario())


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(
    script=st.lists(OUTCOMES, max_size=40),
    calls=st.lists(st.tuples(st.integers(0, 200), st.booleans()), min_size=1, max_size=20),
)
def test_whoever_is_cancelled_the_order_holds_and_nothing_is_stuck(
    script: list[Outcome], calls: list[tuple[int, bool]]
) -> None:
    async def scenario() -> None:
        async with world(script, publish_deadline_ms=600_000, retry_max_ms=100) as w:
            work: list[asyncio.Task[Receipt]] = []
            for number, (wait_ms, cancelled) in enumerate(calls):
                work.append(w.publish("ada", f"{number:03}"))
                await w.clock.pass_time(wait_ms)
                if cancelled:
                    work[number // 2].cancel()
            await w.pass_until_done(asyncio.wait(work), limit_ms=3_600_000, step_ms=1_000)
            stored = w.store.streams["ada"]
            assert stored == sorted(stored)
            finished = [f"{number:03}" for number, task in enumerate(work) if not task.cancelled()]
            assert set(finished) <= set(stored)
            await w.pass_until_done(w.publish("ada", "last"))
            assert w.bus.statistics().queued_events == 0

    asyncio.run(scenario())


# --- cancellation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("turns", range(8))
async def test_a_publish_cancelled_at_any_await_leaves_nothing_behind(turns: int) -> None:
    async with world([LOST_REPLY]) as w:
        work = w.publish()
        for _ in range(turns):
            await asyncio.sleep(0)
        work.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await work
        later = await w.pass_until_done(w.publish(name="later"))
        assert later.entry
        assert w.store.streams["ada"] in (["later"], ["e1", "later"])
        assert w.bus.statistics().queued_events == 0


async def test_cancelling_one_publish_does_not_disturb_another_of_the_same_call() -> None:
    async with world() as w:
        w.store.gate.clear()
        one, two = w.publish("ada"), w.publish("bob")
        await w.clock.pass_time(0)
        one.cancel()
        await asyncio.wait([one])
        w.store.gate.set()
        assert (await two).event == "e2"


async def test_room_taken_by_abandoned_publishes_is_given_back() -> None:
    async with world(queue_events=5) as w:
        w.store.gate.clear()
        work = [w.publish() for _ in range(5)]
        await w.clock.pass_time(0)
        with pytest.raises(StoreBusy):
            await w.publish()
        for one in work[1:]:
            one.cancel()
        await asyncio.wait(work[1:])
        # A full queue is looked through now and then only: those who publish too fast would leave no time for the rest.
        with pytest.raises(StoreBusy):
            await w.publish("bob", "early")
        await w.clock.pass_time(25)
        late = w.publish("bob", "late")
        await w.clock.pass_time(0)
        w.store.gate.set()
        await late
        await work[0]


# --- bounds -----------------------------------------------------------------------------------------------------------


@pytest.mark.requirement("R25")
async def test_more_than_the_queue_holds_is_refused_at_once_as_busy() -> None:
    async with world(queue_events=3) as w:
        w.store.gate.clear()
        work = [w.publish() for _ in range(3)]
        await w.clock.pass_time(0)
        with pytest.raises(StoreBusy, match=r"3 events .* already wait") as caught:
            await w.publish("bob")
        assert caught.value.retryable
        w.store.gate.set()
        await asyncio.gather(*work)
        await w.publish("bob")


async def test_a_call_carries_at_most_five_hundred_events() -> None:
    async with world() as w:
        await w.bus.publish_many([note(f"user-{number}") for number in range(1_200)])
        assert sum(len(batch) for batch in w.store.batches) == 1_200
        assert max(len(batch) for batch in w.store.batches) == 500


# --- the circuit breaker ----------------------------------------------------------------------------------------------


@pytest.mark.requirement("R5")
async def test_the_breaker_opens_leaves_the_store_alone_probes_once_and_closes_by_itself() -> None:
    states: list[BreakerState] = []
    async with world(
        [UNREACHED] * 1_000, states.append, breaker_failures=3, breaker_open_ms=5_000, retry_max_ms=100
    ) as w:
        work = [w.publish(f"user-{number}") for number in range(3)]
        await w.clock.pass_time(0)
        assert w.bus.statistics().breaker_failures == 1, "three events of one call are one failure"
        for _ in range(40):
            await w.clock.pass_time(10)
        assert w.bus.statistics().breaker is BreakerState.OPEN
        calls = len(w.store.batches)
        work.append(w.publish("late"))
        await w.clock.pass_time(3_000)
        assert len(w.store.batches) == calls, "an open breaker leaves the store alone"
        w.store.script.clear()
        receipts = await w.pass_until_done(asyncio.gather(*work))
        assert len(w.store.batches[calls]) == 1, "the probe is one event"
        assert len(receipts) == 4
        assert states == [BreakerState.OPEN, BreakerState.HALF_OPEN, BreakerState.CLOSED]
        assert w.bus.statistics().breaker_opened == 1


@pytest.mark.requirement("R5")
class _Watched(ScriptedStore):
    """Tells of its primary, as a store over a network does."""

    def watch_primaries(self, lost: Callable[[], object], stands: Callable[[], object]) -> Callable[[], None]:
        self.stands = stands
        return lambda: None


@pytest.mark.requirement("R5")
async def test_a_primary_that_stands_ends_the_wait_of_an_open_breaker() -> None:
    """After a failover it has opened, and its next probe would be seconds away."""
    store, clock = _Watched([UNREACHED]), ManualClock()
    settings = publish_settings(breaker_failures=1, breaker_open_ms=5_000, breaker_open_max_ms=5_000)
    async with Bus(settings=settings, store=store, clock=clock) as bus:
        w = World(store, clock, bus)
        work = w.publish()
        await clock.pass_time(0)
        assert bus.statistics().breaker is BreakerState.OPEN
        store.stands()
        await w.pass_until_done(work, limit_ms=200)
        assert bus.statistics().breaker is BreakerState.CLOSED
        await w.pass_until_done(bus.aclose())


async def test_an_open_breaker_without_work_closes_by_itself() -> None:
    async with world([UNREACHED], breaker_failures=1, breaker_open_ms=1_000) as w:
        with pytest.raises(BreakerOpen):
            await w.publish(deadline_ms=500)
        assert w.bus.statistics().breaker is BreakerState.OPEN
        await w.clock.pass_time(1_000)
        assert w.store.pings == 1
        assert w.bus.statistics().breaker is BreakerState.CLOSED


async def test_probes_that_fail_come_at_growing_distances() -> None:
    async with world([UNREACHED], breaker_failures=1, breaker_open_ms=1_000, breaker_open_max_ms=4_000) as w:
        w.store.ping_error = StoreBusy("loading")
        with pytest.raises(BreakerOpen):
            await w.publish(deadline_ms=500)
        times: list[int] = []
        for _ in range(1_200):
            before = w.store.pings
            await w.clock.pass_time(10)
            if w.store.pings > before:
                times.append(w.clock.monotonic_ms())
        assert [later - earlier for earlier, later in itertools.pairwise([0, *times])] == [1_000, 2_000, 4_000, 4_000]
        w.store.ping_error = None
        await w.clock.pass_time(4_000)
        assert w.bus.statistics().breaker is BreakerState.CLOSED


@pytest.mark.requirement("R5")
async def test_a_publish_whose_deadline_is_before_the_next_probe_fails_at_once() -> None:
    async with world([UNREACHED], breaker_failures=1, breaker_open_ms=5_000) as w:
        waiting = w.publish("ada")
        await w.clock.pass_time(0)
        with pytest.raises(BreakerOpen, match="next probe") as caught:
            await w.publish("bob", deadline_ms=4_000)
        assert caught.value.retryable
        assert not waiting.done()
        await w.pass_until_done(waiting)


async def test_a_batch_whose_deadline_is_before_the_next_probe_fails_at_once() -> None:
    async with world([UNREACHED], breaker_failures=1, breaker_open_ms=5_000) as w:
        with pytest.raises(BreakerOpen):
            await w.publish(deadline_ms=100)
        with pytest.raises(BreakerOpen):
            await w.bus.publish_many([note("ada"), note("bob")], deadline_ms=100)
        assert len(w.store.batches) == 1


async def test_when_the_breaker_opens_those_who_cannot_wait_for_its_probe_are_told() -> None:
    async with world([UNREACHED] * 10, breaker_failures=2, breaker_open_ms=5_000, retry_base_ms=100) as w:
        short, behind, patient = w.publish(deadline_ms=3_000), w.publish(deadline_ms=3_000), w.publish("bob")
        for _ in range(30):
            await w.clock.pass_time(10)
        assert w.bus.statistics().breaker is BreakerState.OPEN
        for work in (short, behind):
            with pytest.raises(BreakerOpen):
                await work
        assert not patient.done()
        w.store.script.clear()
        await w.pass_until_done(patient)


async def test_a_callback_that_raises_does_no_harm(caplog: pytest.LogCaptureFixture) -> None:
    def broken(state: BreakerState) -> None:
        raise ZeroDivisionError

    async with world([UNREACHED], broken, breaker_failures=1) as w:
        await w.pass_until_done(w.publish())
    assert "on_breaker raised" in caplog.text


# --- when a primary changes (D5, D6) ----------------------------------------------------------------------------------


@pytest.mark.requirement("R2")
async def test_events_lost_in_a_failover_are_stored_again_in_their_order_before_new_ones() -> None:
    async with world([*[STORED] * 3, UNREACHED]) as w:
        for _ in range(3):
            await w.publish()
        work = [w.publish(), w.publish()]
        await w.clock.pass_time(0)
        w.store.fail_over(losing=["e2", "e3"])
        await w.pass_until_done(asyncio.gather(*work))
        assert w.store.streams["ada"] == ["e1", "e2", "e3", "e4", "e5"]
        assert w.bus.statistics().recovered == 2


@pytest.mark.requirement("R2")
async def test_a_user_who_is_elsewhere_now_has_the_kept_events_there_before_a_new_one() -> None:
    """The old primary says so (MOVED), and nothing else tells of the failover."""
    async with world([*[STORED] * 3, Outcome.MOVED]) as w:
        for _ in range(3):
            await w.publish()
        work = w.publish()
        await w.clock.pass_time(0)
        w.store.fail_over(losing=["e2", "e3"])
        await w.pass_until_done(work)
        assert w.store.streams["ada"] == ["e1", "e2", "e3", "e4"]


async def test_a_probe_that_is_answered_with_moved_leaves_the_breaker_as_it_is() -> None:
    async with world([UNREACHED, Outcome.MOVED], breaker_failures=1, retry_max_ms=50) as w:
        work = w.publish()
        await w.clock.pass_time(0)
        await w.pass_until_done(work)
        assert w.bus.statistics().breaker is BreakerState.CLOSED
        assert w.bus.statistics().breaker_opened == 1


@pytest.mark.requirement("R2")
async def test_a_failover_between_two_publishes_is_noticed_before_the_next_event_is_stored() -> None:
    async with world() as w:
        for _ in range(3):
            await w.publish()
        w.store.fail_over(losing=["e2", "e3"])
        w.store.connected = False  # the old server's connection ended while nothing was under way
        await w.publish()
        assert w.store.streams["ada"] == ["e1", "e2", "e3", "e4"]


async def test_users_who_publish_nothing_have_their_lost_events_back_too() -> None:
    async with world() as w:
        await w.publish("ada")
        await w.publish("bob")
        w.store.fail_over(losing=["e1", "e2"])
        await w.publish("cyd")
        await until(lambda: w.store.streams["ada"] == ["e1"] and w.store.streams["bob"] == ["e2"])


async def test_after_a_failure_without_a_failover_one_check_a_user_is_enough() -> None:
    async with world([*[STORED] * 20, UNREACHED]) as w:
        for _ in range(20):
            await w.publish()
        await w.pass_until_done(w.publish())
        now = w.bus.statistics()
        assert (now.resent, now.recovered) == (1, 0)


async def test_a_resend_is_retried_before_new_events_of_its_user() -> None:
    async with world([STORED, STORED, UNREACHED, STORED, UNREACHED, LOST_REPLY]) as w:
        await w.publish()
        await w.publish()
        work = w.publish()
        await w.clock.pass_time(0)
        w.store.fail_over(losing=["e1", "e2"])
        await w.pass_until_done(work)
        assert w.store.streams["ada"] == ["e1", "e2", "e3"]


async def test_a_lost_event_that_is_refused_when_it_is_sent_again_is_counted_and_holds_nobody_up() -> None:
    async with world([STORED, STORED, Outcome.REFUSED]) as w:
        await w.publish("ada")
        w.store.fail_over(losing=["e1"])
        await w.publish("bob")
        await w.publish("ada")
        assert w.store.streams["ada"] == ["e3"]
        assert w.bus.statistics().resend_failed == 1


async def test_a_second_failover_while_the_first_is_made_good_loses_nothing() -> None:
    async with world([*[STORED] * 5, UNREACHED]) as w:
        for _ in range(5):
            await w.publish()
        work = w.publish()
        await w.clock.pass_time(0)
        w.store.fail_over(losing=["e3", "e4", "e5"])
        while w.store.streams["ada"] != ["e1", "e2", "e3"]:
            await w.clock.pass_time(1)
            await asyncio.sleep(0)
        w.store.fail_over(losing=["e2", "e3"], to="primary-3")
        await w.pass_until_done(work)
        assert w.store.streams["ada"][0] == "e1"
        assert sorted(w.store.streams["ada"]) == ["e1", "e2", "e3", "e4", "e5", "e6"]


async def test_events_older_than_the_kept_time_are_not_sent_again() -> None:
    async with world(kept_ms=1_000) as w:
        await w.publish()
        await w.clock.pass_time(1_001)
        await w.publish()
        w.store.fail_over(losing=["e1", "e2"])
        await w.publish()
        await until(lambda: "e2" in w.store.streams["ada"])
        assert "e1" not in w.store.streams["ada"]
        assert w.bus.statistics().kept_events == 2


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
@pytest.mark.requirement("R2")
def test_whatever_suffix_a_failover_takes_back_all_events_are_there_in_order_afterwards(data: st.DataObject) -> None:
    before = data.draw(st.lists(st.sampled_from(["ada", "bob"]), min_size=1, max_size=12), label="before")
    after = data.draw(st.lists(st.sampled_from(["ada", "bob"]), max_size=8), label="after")
    surviving = data.draw(st.integers(0, len(before)), label="surviving")
    script = data.draw(st.lists(OUTCOMES, max_size=10), label="script")

    async def scenario() -> None:
        async with world(retry_max_ms=100, publish_deadline_ms=600_000) as w:
            wanted: dict[str, list[str]] = {}
            for number, user in enumerate(before):
                await w.publish(user, f"e{number:02}")
                wanted.setdefault(user, []).append(f"e{number:02}")
            # The connection dies with the primary, as it does in every failover that a client notices.
            w.store.script.extend([UNREACHED, *script])
            work = [w.publish(before[0], "f00")]
            wanted.setdefault(before[0], []).append("f00")
            await w.clock.pass_time(0)
            w.store.fail_over(losing=[f"e{number:02}" for number in range(surviving, len(before))])
            for number, user in enumerate(after):
                work.append(w.publish(user, f"g{number:02}"))
                wanted.setdefault(user, []).append(f"g{number:02}")
                await w.clock.pass_time(0)
            await w.pass_until_done(asyncio.gather(*work), limit_ms=3_600_000, step_ms=1_000)
            await w.pass_until_done(w.bus.aclose(), step_ms=1_000)
            assert {user: stream for user, stream in w.store.streams.items() if stream} == wanted

    asyncio.run(scenario())


# --- opening and closing ----------------------------------------------------------------------------------------------


async def test_closing_stores_what_waits() -> None:
    store = ScriptedStore()
    bus = Bus(store=store)
    async with bus:
        store.gate.clear()
        work = [asyncio.ensure_future(bus.publish(**note(id=f"e{number}"))) for number in range(3)]
        await asyncio.sleep(0)
        closing = asyncio.ensure_future(bus.aclose())
        await asyncio.sleep(0)
        store.gate.set()
        await closing
    assert [(await one).event for one in work] == ["e0", "e1", "e2"]


@pytest.mark.requirement("R25")
async def test_closing_fails_what_is_not_stored_in_time_and_says_so() -> None:
    async with world([UNREACHED] * 1_000, **NO_BREAKER) as w:
        head, behind = w.publish(), w.publish()
        await w.clock.pass_time(0)
        await w.pass_until_done(w.bus.aclose(timeout_ms=1_000), limit_ms=1_100)
        for work in (head, behind):
            with pytest.raises(PublishTimeout) as caught:
                await work
            assert caught.value.retryable
        assert w.bus.statistics().queued_events == 0


async def test_closing_ends_calls_that_hang() -> None:
    async with world() as w:
        w.store.gate.clear()
        work = [w.publish("ada"), w.publish("ada"), w.publish("bob")]
        await w.clock.pass_time(0)
        await w.pass_until_done(w.bus.aclose(timeout_ms=100), limit_ms=200)
        results = await asyncio.gather(*work, return_exceptions=True)
        assert [type(result) for result in results] == [PublishTimeout] * 3


async def test_a_cancelled_close_fails_what_waits_at_once() -> None:
    async with world() as w:
        w.store.gate.clear()
        work = w.publish()
        await w.clock.pass_time(0)
        closing = asyncio.ensure_future(w.bus.aclose())
        await w.clock.pass_time(0)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        with pytest.raises(PublishTimeout):
            await work


async def test_a_bus_that_is_closed_or_not_open_refuses_with_a_sentence() -> None:
    bus = Bus(store=MemoryStore())
    with pytest.raises(EventBusError, match="not open"):
        await bus.publish(**note())
    with pytest.raises(EventBusError, match="not open"):
        bus.statistics()
    await bus.aclose()
    async with bus:
        await bus.publish(**note())
    with pytest.raises(EventBusError, match="closed"):
        await bus.publish(**note())
    with pytest.raises(EventBusError, match="make a new one"):
        async with bus:
            pass
    await bus.aclose()


def test_a_bus_used_in_another_event_loop_refuses_with_a_sentence() -> None:
    async def opened() -> Bus:
        return await Bus(store=MemoryStore()).__aenter__()

    bus = asyncio.run(opened())

    async def use() -> None:
        await bus.publish(**note())

    with pytest.raises(EventBusError, match="another event loop"):
        asyncio.run(use())


async def test_the_settings_of_the_environment_are_those_of_from_env(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVENTBUS_REDIS_URL", "redis://somewhere:1234/5")
    monkeypatch.setenv("EVENTBUS_PUBLISH_DEADLINE_MS", "1234")
    bus = Bus.from_env(retry_base_ms=77)
    assert bus.settings.redis_url == "redis://somewhere:1234/5"
    assert (bus.settings.publish.publish_deadline_ms, bus.settings.publish.retry_base_ms) == (1234, 77)


async def test_the_figures_of_an_open_bus_show_in_its_repr() -> None:
    bus = Bus(store=MemoryStore())
    assert "not open" in repr(bus)
    async with bus:
        await bus.publish(**note())
        assert "published=1" in repr(bus)
