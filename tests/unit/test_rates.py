"""Rates: what is counted, out of what, and what the rate of success leaves out."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventbus import Bus
from eventbus.config import ConfirmationRecords, Settings, StoreSettings
from eventbus.errors import EventBusError, InvalidField
from eventbus.event import Level
from eventbus.ids import ENTRY_ZERO, EntryId, SessionId, UserId
from eventbus.rates import STATES, Rates, Tally, rates_of_counts
from eventbus.store import ConfirmationRecord, ReleaseReason
from eventbus.testing import MemoryStore
from tests.support.sessions import ADA, Bench


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    made = Bench()
    async with made.bus:
        yield made


def counts(rates: Rates) -> dict[str, int]:
    return {state: count for state in STATES if (count := getattr(rates, state))}


@pytest.mark.requirement("R14")
@pytest.mark.parametrize(
    "rates, success",
    [
        (Rates(), None),
        (Rates(stored=5), None),
        (Rates(received=3), 1.0),
        (Rates(received=3, expired=1), 0.75),
        (Rates(received=1, trimmed=1, dead_lettered=2), 0.25),
        (Rates(expired=4), 0.0),
        (Rates(received=2, filtered=5, released=7, displayed=1), 1.0),
    ],
)
def test_the_rate_of_success_is_what_was_received_among_what_has_ended(rates: Rates, success: float | None) -> None:
    """What a session did not want, and what another took, is neither a success nor a failure."""
    assert rates.success == success


@pytest.mark.requirement("R14")
async def test_the_rates_of_a_user_a_run_a_type_and_an_event(bench: Bench) -> None:
    for session in ("tab", "phone"):
        await bench.attach(session)
    async with bench.bus.run(user=ADA, agent="planner", run="run_1") as run:
        await run.thinking("hm")
    note = await bench.bus.publish(user=ADA, type="note", data={})
    other = await bench.bus.publish(user="bob", type="note", data={})
    started, thinking, completed = [receipt.entry for receipt in run.receipts]
    for session in ("tab", "phone"):
        await bench.read(session)
    await bench.confirm("tab", [started], Level.CONFIRMED)
    await bench.ack("tab", [thinking, completed])
    await bench.ack("phone", [started])
    await bench.release("phone", [thinking], ReleaseReason.EXPIRED)
    await bench.release("tab", [note.entry], ReleaseReason.FILTERED)
    await bench.give_up("phone", note.entry, note.event, "note")

    rates = bench.bus.rates
    everything = {"stored": 4, "received": 4, "displayed": 1, "confirmed": 1, "expired": 1, "filtered": 1}
    everything["dead_lettered"] = 1
    assert counts(await rates(user=ADA)) == everything
    assert (await rates(user=ADA)).success == 4 / 6
    assert (await rates(user=ADA)).exact
    of_run = {"stored": 3, "received": 4, "displayed": 1, "confirmed": 1, "expired": 1}
    assert counts(await rates(user=ADA, run="run_1")) == of_run
    assert counts(await rates(user=ADA, event=note.event)) == {"stored": 1, "filtered": 1, "dead_lettered": 1}
    assert counts(await rates(user=ADA, type="agent_thinking")) == {"stored": 1, "received": 1, "expired": 1}
    assert counts(await rates(user=ADA, run="run_1", type="note")) == {}
    assert counts(await rates(user="bob", event=other.event)) == {"stored": 1}
    assert counts(await rates(user=ADA, event=other.event)) == {}
    by_type = (await rates(user=ADA)).by_type
    assert {name: counts(some)["stored"] for name, some in by_type.items()} == {
        "agent_completed": 1,
        "agent_started": 1,
        "agent_thinking": 1,
        "note": 1,
    }


@pytest.mark.requirement("R14")
async def test_the_rates_of_all_are_what_was_counted_over_all_users(bench: Bench) -> None:
    for number in range(20):
        user = f"user-{number}"
        await bench.attach("tab", user=user)
        await bench.bus.publish(user=user, type="note" if number % 2 else "memo", data={})
        await bench.ack("tab", await bench.read("tab", user=user), user=user)
    everything = await bench.bus.rates()
    assert counts(everything) == {"stored": 20, "received": 20}
    assert {name: counts(some) for name, some in everything.by_type.items()} == {
        "memo": {"stored": 10, "received": 10},
        "note": {"stored": 10, "received": 10},
    }
    assert counts(await bench.bus.rates(type="memo")) == {"stored": 10, "received": 10}
    assert (await bench.bus.rates(type="nothing")).success is None


@pytest.mark.requirement("R21")
@pytest.mark.parametrize(
    "what, wrong",
    [
        ({"run": "run_1"}, "user"),
        ({"event": "e1"}, "user"),
        ({"user": "run_1"}, "user"),
        ({"user": "ada", "run": "thread_1"}, "run"),
        ({"user": "ada", "event": "a b"}, "event"),
        ({"type": "Note"}, "type"),
    ],
)
async def test_what_makes_no_sense_is_refused(bench: Bench, what: dict[str, Any], wrong: str) -> None:
    with pytest.raises(InvalidField) as caught:
        await bench.bus.rates(**what)
    assert caught.value.field == wrong


async def test_without_records_the_rates_of_a_user_are_refused_and_not_wrong() -> None:
    bench = Bench(settings=Settings(store=StoreSettings(confirmation_records=ConfirmationRecords.OFF)))
    async with bench.bus:
        with pytest.raises(EventBusError, match="EVENTBUS_CONFIRMATION_RECORDS"):
            await bench.bus.rates(user=ADA)
        assert (await bench.bus.rates()).stored == 0


class FullStore(MemoryStore):
    """As many records as one asks for, all of them of the user's first event."""

    async def confirmations(
        self, user: UserId, after: EntryId, count: int
    ) -> Sequence[tuple[EntryId, ConfirmationRecord]]:
        entry = (await self.history(user, ENTRY_ZERO, 1)).entries[0].id
        record = ConfirmationRecord(session=SessionId("tab"), level="received", time_ms=1, entries=(entry,))
        return [(entry, record)] * count


@pytest.mark.requirement("R14")
async def test_more_records_than_are_kept_are_told_of() -> None:
    async with Bus(store=FullStore()) as bus:
        await bus.publish(user=ADA, type="note", data={})
        found = await bus.rates(user=ADA)
    assert (found.received, found.exact) == (1, False)


sessions, entries = st.sampled_from(["tab", "phone"]), st.sampled_from([EntryId(f"{n}-0") for n in range(4)])
states = st.sampled_from([level.value for level in Level] + [reason.value for reason in ReleaseReason])


@pytest.mark.requirement("R14")
@given(records=st.lists(st.tuples(sessions, st.lists(entries, max_size=3), states), max_size=20))
def test_whatever_comes_twice_counts_once_for_a_session_an_event_and_a_state(
    records: list[tuple[str, list[EntryId], str]],
) -> None:
    tally = Tally()
    for number in range(3):  # the fourth is not one of those that count
        tally.event(EntryId(f"{number}-0"), "note")
    for session, named, state in records * 2:
        tally.record(ConfirmationRecord(session=SessionId(session), level=state, time_ms=1, entries=named))
    wanted: set[tuple[str, EntryId, str]] = set()
    for session, named, state in records:
        implied = (
            [level.value for level in Level if level.rank <= Level(state).rank] if state in list(Level) else [state]
        )
        wanted |= {(session, entry, one) for entry in named if entry != "3-0" for one in implied}
    found = tally.rates()
    assert {state: getattr(found, state) for state in STATES if state not in ("stored", "dead_lettered")} == {
        state: sum(one == state for _, _, one in wanted) for state in STATES if state not in ("stored", "dead_lettered")
    }
    assert found.stored == 3


def test_states_that_this_version_does_not_know_are_passed_over() -> None:
    found = rates_of_counts([{("stored", "note"): 2, ("teleported", "note"): 7}, {("stored", "note"): 1}])
    assert counts(found) == {"stored": 3}
