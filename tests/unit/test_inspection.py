"""What operators are told: verdicts, fates and dead letters, over the store in memory."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import pytest

from eventbus import inspection
from eventbus.clock import new_event_id
from eventbus.errors import InvalidField
from eventbus.event import encode_envelope, make_event
from eventbus.ids import ENTRY_ZERO, ConnectionId, EntryId, EventId, NodeName, SessionId, UserId
from eventbus.inspection import Fate, SessionState, Timing, Verdict
from eventbus.inspection.verdicts import (
    EXPLANATIONS,
    FATE_EXPLANATIONS,
    SessionFate,
    Waiting,
    WaitingState,
    fate_of,
    verdict_of,
    why_of,
)
from eventbus.store import (
    LOST,
    Append,
    Appended,
    Attach,
    Attached,
    AttachMode,
    ConfirmationRecord,
    DeadLetter,
    DeadOutcome,
    Fence,
    LiveRecord,
    NewRead,
    NodeRecord,
    PendingRecord,
    ReadRequest,
    Redelivery,
    ReleaseReason,
    SessionRecord,
    Start,
)
from eventbus.testing import ManualClock, MemoryStore

ALICE = UserId("alice")
BOB = UserId("bob")
PHONE = SessionId("phone")
NODE = NodeName("node-1")
TIMING = Timing(ack_timeout_ms=30_000)
PARTITIONS = 1024
NOW_MS = 1_750_000_000_000


class Desk:
    """A store with what nodes do to it in short words."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.store = MemoryStore(clock=self.clock)

    async def publish(self, count: int = 1, user: UserId = ALICE, **fields: object) -> list[tuple[EventId, EntryId]]:
        made = []
        for _ in range(count):
            event = make_event(
                id=fields.get("id") or new_event_id(self.clock),  # type: ignore[arg-type]
                type="note",
                user=user,
                time_ms=self.clock.now_ms(),
                data={"text": fields.get("text", "hm")},
                expires_ms=fields.get("expires_ms"),  # type: ignore[arg-type]
            )
            (result,) = await self.store.append([Append(user=user, event=event.id, body=encode_envelope(event))])
            assert isinstance(result, Appended)
            made.append((event.id, result.entry))
        return made

    async def node(self, name: NodeName = NODE, state: str = "ready", **figures: int) -> None:
        told = {"connections": 3, "sessions": 2, **figures}
        record = NodeRecord(node=name, address="h:1", version="1", state=state, started_ms=7, figures=told)
        await self.store.beat_node(record)

    async def attach(self, session: str = "phone", user: UserId = ALICE, start: Start = Start.EARLIEST) -> Fence:
        fence = Fence(user=user, session=SessionId(session), connection=ConnectionId(f"c-{session}"))
        attached = await self.store.attach(
            Attach(
                fence=fence,
                node=NODE,
                mode=AttachMode.OPEN,
                start=start,
                cursor=None,
                epoch=None,
                live_limit=100,
                known_limit=400,
            )
        )
        assert isinstance(attached, Attached)
        return fence

    async def read(self, fence: Fence, count: int = 100) -> list[EntryId]:
        (read,) = await self.store.read_new([ReadRequest(fence=fence, count=count)])
        assert isinstance(read, NewRead)
        return [entry.id for entry in read.entries]

    async def again(self, fence: Fence, entry: EntryId, attempts: int) -> None:
        assert await self.store.redeliver(fence, [Redelivery(id=entry, attempts=attempts)]) is not LOST

    async def give_up(self, fence: Fence, event: EventId, entry: EntryId, body: bytes = b"") -> None:
        letter = DeadLetter(id=entry, event=event, type="note", reason="ack_timeout", attempts=5, body=body)
        assert await self.store.dead_letter(fence, letter) is DeadOutcome.DEAD

    async def detach(self, fence: Fence) -> None:
        assert await self.store.detach(fence, ENTRY_ZERO) is True

    async def pending(self, user: UserId = ALICE) -> list[inspection.PendingRow]:
        return await inspection.pending_of_user(self.store, user, TIMING)

    async def verdict(self) -> Verdict:
        (row,) = await self.pending()
        return row.verdict

    async def fate(self, wanted: str, session: str = "phone", user: UserId = ALICE) -> inspection.SessionFate:
        report = await inspection.fate(self.store, user, wanted, partitions=PARTITIONS)
        assert report is not None
        return next(fate for fate in report.fates if fate.session == session)


@pytest.fixture
def desk() -> Desk:
    return Desk()


# --- the verdict, as a pure function ----------------------------------------------------------------------------------


def sent(attempts: int = 1, idle_ms: int = 0, age_ms: int = 0) -> PendingRecord:
    return PendingRecord(id=EntryId(f"{NOW_MS - age_ms}-0"), attempts=attempts, idle_ms=idle_ms)


def waiting(
    *records: PendingRecord,
    state: SessionState = SessionState.LIVE,
    unread: int = 0,
    oldest_unread_ms: int = 0,
    deliverable: WaitingState = WaitingState.DELIVERABLE,
) -> Waiting:
    return Waiting(state=state, sent=records, unread=unread, oldest_unread_ms=oldest_unread_ms, deliverable=deliverable)


@pytest.mark.parametrize(
    "what, verdict",
    [
        (waiting(sent(), state=SessionState.AWAY), Verdict.OFFLINE),
        (waiting(unread=3, oldest_unread_ms=1, state=SessionState.AWAY), Verdict.OFFLINE),
        (waiting(sent(3, 10, 10), state=SessionState.AWAY), Verdict.OFFLINE),
        (waiting(sent(), state=SessionState.NODE_GONE), Verdict.NODE_GONE),
        (waiting(sent(), state=SessionState.AWAY, deliverable=WaitingState.EXPIRED), Verdict.EXPIRED),
        (waiting(sent(), deliverable=WaitingState.TRIMMED), Verdict.TRIMMED),
        # sent at once, acked by nobody yet
        (waiting(sent(1, 100, 100)), Verdict.IN_FLIGHT),
        (waiting(sent(1, 100, 100), unread=2, oldest_unread_ms=10), Verdict.IN_FLIGHT),
        (waiting(sent(1, 29_000, 29_000)), Verdict.IN_FLIGHT),
        # one more is stored than it takes
        (waiting(sent(1, 9_000, 9_000), unread=2, oldest_unread_ms=8_000), Verdict.SLOW),
        # the first time-out is over, or redeliveries were counted
        (waiting(sent(1, 60_000, 60_000)), Verdict.NOT_ACKING),
        (waiting(sent(2, 1_000, 31_000)), Verdict.NOT_ACKING),
        (waiting(sent(3, 1_000, 91_000)), Verdict.NOT_ACKING),
        (waiting(sent(1, 60_000, 60_000), unread=2, oldest_unread_ms=8_000), Verdict.NOT_ACKING),
        # three deliveries in five seconds can not be time-outs
        (waiting(sent(3, 1_000, 6_000)), Verdict.NACKING),
        (waiting(sent(1, 60_000, 60_000), sent(2, 500, 1_500)), Verdict.NACKING),
        # nobody has read it
        (waiting(unread=1, oldest_unread_ms=5), Verdict.ARRIVING),
        (waiting(unread=1, oldest_unread_ms=60_000), Verdict.NOT_READ),
    ],
)
@pytest.mark.requirement("R27")
def test_the_verdict_says_why_entries_wait(what: Waiting, verdict: Verdict) -> None:
    assert verdict_of(what, NOW_MS, TIMING) is verdict


def test_waits_that_have_reached_their_longest_are_not_taken_for_nacks() -> None:
    timing = Timing(ack_timeout_ms=300, max_wait_ms=300)
    assert verdict_of(waiting(sent(3, 0, 600)), NOW_MS, timing) is Verdict.NOT_ACKING
    assert verdict_of(waiting(sent(3, 0, 599)), NOW_MS, timing) is Verdict.NACKING
    doubling = Timing(ack_timeout_ms=100, max_wait_ms=400)  # 100, 200, 400, 400
    assert verdict_of(waiting(sent(5, 0, 1_100)), NOW_MS, doubling) is Verdict.NOT_ACKING
    assert verdict_of(waiting(sent(5, 0, 1_099)), NOW_MS, doubling) is Verdict.NACKING


@pytest.mark.requirement("R27")
def test_every_verdict_and_fate_is_explained_with_what_to_do() -> None:
    assert set(EXPLANATIONS) == set(Verdict)
    assert set(FATE_EXPLANATIONS) == set(Fate)
    said = [EXPLANATIONS[verdict] for verdict in Verdict]
    for fate, verdict, is_known in product(Fate, (None, Verdict.OFFLINE), (True, False)):
        for level, reason in ((None, None), ("received", None), ("confirmed", None), (None, "nacked")):
            found = SessionFate(session=PHONE, state=fate, deliveries=3, level=level, reason=reason)
            said.append(why_of(found, verdict, is_known=is_known))
    assert [sentence for sentence in said if not sentence.partition("; ")[2]] == []


def test_a_count_of_deliveries_beyond_all_measure_makes_no_huge_number() -> None:
    assert verdict_of(waiting(sent(2**40, 0, 0)), NOW_MS, TIMING) is Verdict.NACKING


# --- the fate, as a pure function -------------------------------------------------------------------------------------

ENTRY = EntryId("1000-0")


def session_record(position: str = "2000-0", created_ms: int = 1, live: bool = False) -> SessionRecord:
    return SessionRecord(
        user=ALICE,
        session=PHONE,
        created_ms=created_ms,
        last_seen_ms=5,
        cursor=ENTRY_ZERO,
        position=EntryId(position),
        pending=0,
        unread=False,
        live=LiveRecord(node=NODE, connection=ConnectionId("c"), last_seen_ms=5) if live else None,
        oldest_pending=None,
        max_attempts=0,
    )


def recorded(*levels: str) -> list[ConfirmationRecord]:
    return [
        ConfirmationRecord(session=PHONE, level=level, time_ms=100 + number, entries=[ENTRY])
        for number, level in enumerate(levels)
    ]


@pytest.mark.requirement("R1")
@pytest.mark.parametrize(
    "known, records, state, fate",
    [
        (session_record("999-0"), [], WaitingState.DELIVERABLE, Fate.NOT_READ),
        (session_record("999-0"), [], WaitingState.EXPIRED, Fate.EXPIRED),
        (session_record("999-0"), [], WaitingState.TRIMMED, Fate.TRIMMED),
        (session_record("1000-0"), [], WaitingState.DELIVERABLE, Fate.ACKED),
        (session_record("1000-0"), [], WaitingState.TRIMMED, Fate.UNKNOWN),
        (session_record(created_ms=1_001), [], WaitingState.DELIVERABLE, Fate.BEFORE_SESSION),
        (session_record(), recorded("received"), WaitingState.TRIMMED, Fate.ACKED),
        (session_record(), recorded("filtered"), WaitingState.DELIVERABLE, Fate.FILTERED),
        (session_record(), recorded("expired"), WaitingState.DELIVERABLE, Fate.EXPIRED),
        (session_record(), recorded("trimmed"), WaitingState.TRIMMED, Fate.TRIMMED),
        (session_record(), recorded("released"), WaitingState.DELIVERABLE, Fate.RELEASED),
        (None, recorded("expired"), WaitingState.DELIVERABLE, Fate.EXPIRED),
    ],
)
def test_the_fate_follows_from_what_is_stored(
    known: SessionRecord | None, records: Sequence[ConfirmationRecord], state: WaitingState, fate: Fate
) -> None:
    found = fate_of(
        ENTRY, session=PHONE, known=known, pending=None, records=records, dead=None, waiting=state, records_kept=True
    )
    assert found.state is fate


def test_a_pending_entry_is_pending_whatever_was_recorded_of_it() -> None:
    found = fate_of(
        ENTRY,
        session=PHONE,
        known=session_record(live=True),
        pending=PendingRecord(id=ENTRY, attempts=3, idle_ms=1),
        records=recorded("received"),
        dead=None,
        waiting=WaitingState.DELIVERABLE,
        records_kept=True,
    )
    assert (found.state, found.deliveries, found.node) == (Fate.PENDING, 3, NODE)


def test_the_highest_confirmation_counts() -> None:
    found = fate_of(
        ENTRY,
        session=PHONE,
        known=session_record(),
        pending=None,
        records=recorded("received", "confirmed", "displayed"),
        dead=None,
        waiting=WaitingState.DELIVERABLE,
        records_kept=True,
    )
    assert (found.state, found.level, found.time_ms) == (Fate.ACKED, "confirmed", 101)


def test_without_records_an_entry_behind_the_session_counts_as_acked() -> None:
    found = fate_of(
        ENTRY,
        session=PHONE,
        known=session_record(created_ms=1_001),
        pending=None,
        records=[],
        dead=None,
        waiting=WaitingState.DELIVERABLE,
        records_kept=False,
    )
    assert (found.state, found.time_ms) == (Fate.ACKED, None)


# --- what waits -------------------------------------------------------------------------------------------------------


@pytest.mark.requirement("R27")
async def test_a_session_that_is_away_shows_what_waits_for_it(desk: Desk) -> None:
    await desk.node()
    fence = await desk.attach()
    await desk.publish(2)
    await desk.read(fence)
    await desk.detach(fence)
    await desk.clock.pass_time(5_000)
    await desk.publish(3)
    (row,) = await desk.pending()
    assert (row.user, row.session, row.verdict, row.node) == (ALICE, PHONE, Verdict.OFFLINE, None)
    assert (row.pending, row.unread, row.deliveries) == (5, 3, 1)
    assert 5_000 <= row.oldest_ms < 6_000


async def test_a_session_that_has_acked_all_does_not_wait(desk: Desk) -> None:
    fence = await desk.attach()
    await desk.publish(3)
    await desk.store.ack(ALICE, PHONE, await desk.read(fence))
    assert await desk.pending() == []


async def test_the_life_of_an_event_through_the_verdicts(desk: Desk) -> None:
    await desk.node()
    fence = await desk.attach()
    (_, entry), *_ = await desk.publish()
    assert await desk.verdict() is Verdict.ARRIVING
    await desk.read(fence)
    assert await desk.verdict() is Verdict.IN_FLIGHT
    await desk.clock.pass_time(10_000)
    await desk.node()
    await desk.again(fence, entry, 2)
    assert await desk.verdict() is Verdict.NACKING
    await desk.clock.pass_time(40_000)
    await desk.node()
    await desk.again(fence, entry, 2)
    assert await desk.verdict() is Verdict.NOT_ACKING
    await desk.clock.pass_time(15_000)
    assert await desk.verdict() is Verdict.NODE_GONE
    await desk.clock.pass_time(90_000)
    assert await desk.verdict() is Verdict.OFFLINE


async def test_the_times_of_the_node_count_and_not_those_of_who_looks(desk: Desk) -> None:
    fence = await desk.attach()
    ((_, entry),) = await desk.publish()
    await desk.read(fence)
    await desk.clock.pass_time(2_000)
    await desk.again(fence, entry, 2)
    await desk.node()
    assert await desk.verdict() is Verdict.NACKING
    await desk.node(ack_timeout_ms=1_000)
    assert await desk.verdict() is Verdict.NOT_ACKING


async def test_a_live_session_that_is_not_read_for_long_accuses_the_node(desk: Desk) -> None:
    fence = await desk.attach()
    await desk.publish()
    for _ in range(5):
        await desk.clock.pass_time(10_000)
        await desk.store.heartbeat([fence], NODE)
    await desk.node()
    assert await desk.verdict() is Verdict.NOT_READ


async def test_events_past_their_time_are_expired_only_when_all_are(desk: Desk) -> None:
    fence = await desk.attach()
    await desk.publish(expires_ms=desk.clock.now_ms() + 1_000)
    await desk.read(fence)
    await desk.detach(fence)
    await desk.publish(expires_ms=desk.clock.now_ms() + 1_000)
    assert await desk.verdict() is Verdict.OFFLINE
    await desk.clock.pass_time(2_000)
    assert await desk.verdict() is Verdict.EXPIRED
    await desk.publish()
    assert await desk.verdict() is Verdict.OFFLINE


async def test_pending_entries_that_are_gone_from_the_stream_are_trimmed(desk: Desk) -> None:
    fence = await desk.attach()
    await desk.publish(2)
    await desk.read(fence)
    desk.store.trim(ALICE, 0)
    assert await desk.verdict() is Verdict.TRIMMED


async def test_all_users_are_looked_at_page_by_page(desk: Desk) -> None:
    users = [UserId(f"user-{number:02}") for number in range(25)]
    for user in users:
        fence = await desk.attach(user=user)
        await desk.detach(fence)
        await desk.publish(user=user)
    seen, cursor, pages = [], "", 0
    while True:
        page = await inspection.pending_of_users(
            desk.store, TIMING, partitions=desk.store.settings.partitions, cursor=cursor, count=10
        )
        seen += [row.user for row in page.rows]
        pages += 1
        if not page.cursor:
            break
        cursor = page.cursor
    assert (sorted(seen), pages) == (users, 3)


async def test_sessions_tell_where_they_are_and_how_far_they_have_read(desk: Desk) -> None:
    await desk.node()
    phone, laptop = await desk.attach("phone"), await desk.attach("laptop")
    (_, entry), *_ = await desk.publish()
    await desk.read(phone)
    await desk.detach(laptop)
    laptop_row, phone_row = await inspection.sessions(desk.store, ALICE)
    assert (laptop_row.session, laptop_row.state, laptop_row.node) == ("laptop", SessionState.AWAY, None)
    assert (laptop_row.cursor, laptop_row.pending, laptop_row.unread) == ("0-0", 1, 1)
    assert (phone_row.session, phone_row.state, phone_row.node) == ("phone", SessionState.LIVE, NODE)
    assert (phone_row.cursor, phone_row.pending, phone_row.unread) == (entry, 1, 0)


async def test_nodes_are_listed_by_name_with_their_figures(desk: Desk) -> None:
    await desk.node(NodeName("b"))
    await desk.node(NodeName("a"), state="draining")
    first, second = await inspection.nodes(desk.store)
    assert (first.node, first.state, second.node) == ("a", "draining", "b")
    assert (first.address, first.version, first.connections, first.sessions, first.started_ms) == ("h:1", "1", 3, 2, 7)


# --- the fate of an event ---------------------------------------------------------------------------------------------


@pytest.mark.requirement("R1")
async def test_the_fate_of_an_event_is_told_for_each_session(desk: Desk) -> None:
    await desk.node()
    acked, sent_, _ = [await desk.attach(name) for name in ("acked", "sent", "unread")]
    filtered, dead = await desk.attach("filtered"), await desk.attach("dead")
    ((event, entry),) = await desk.publish()
    for fence in (acked, sent_, filtered, dead):
        await desk.read(fence)
    await desk.store.ack(ALICE, acked.session, [entry])
    await desk.store.release(filtered, [entry], ReleaseReason.FILTERED)
    await desk.give_up(dead, event, entry)
    await desk.clock.pass_time(10)
    await desk.attach("late", start=Start.NEW)
    report = await inspection.fate(desk.store, ALICE, event, partitions=PARTITIONS)
    assert report is not None
    assert (report.event, report.entry, report.type, report.stored) == (event, entry, "note", True)
    assert {fate.session: fate.state for fate in report.fates} == {
        "acked": Fate.ACKED,
        "sent": Fate.PENDING,
        "unread": Fate.NOT_READ,
        "filtered": Fate.FILTERED,
        "dead": Fate.DEAD_LETTERED,
        "late": Fate.BEFORE_SESSION,
    }
    assert (await desk.fate(event, "acked")).time_ms is not None
    given_up = await desk.fate(event, "dead")
    assert (given_up.deliveries, given_up.reason, given_up.node) == (5, "ack_timeout", NODE)
    assert (await desk.fate(event, "sent")).node == NODE


async def test_an_event_is_found_by_its_entry_id_too(desk: Desk) -> None:
    await desk.attach()
    ((event, entry),) = await desk.publish()
    assert await desk.fate(entry) == await desk.fate(event)


async def test_an_event_of_the_publishers_own_naming_is_found_far_back(desk: Desk) -> None:
    await desk.attach()
    await desk.publish(id="order-17")
    await desk.publish(1_200, text="order-17")
    report = await inspection.fate(desk.store, ALICE, "order-17", partitions=PARTITIONS)
    assert report is not None
    assert report.event == "order-17"


async def test_an_event_whose_id_tells_another_time_than_its_entry_is_found(desk: Desk) -> None:
    """A publisher whose clock is a day ahead, or an id that was made long before it was used."""
    await desk.attach()
    ahead = ManualClock()
    await ahead.pass_time(86_400_000)
    event = new_event_id(ahead)
    await desk.publish(id=event)
    assert (await desk.fate(event)).state is Fate.NOT_READ


async def test_what_nobody_knows_of_has_no_fate(desk: Desk) -> None:
    await desk.attach()
    await desk.publish()
    for wanted in ("nobody-knows", "1-1", str(new_event_id(desk.clock))):
        assert await inspection.fate(desk.store, ALICE, wanted, partitions=PARTITIONS) is None


async def test_the_event_of_another_user_is_not_found(desk: Desk) -> None:
    ((event, _),) = await desk.publish(user=BOB)
    assert await inspection.fate(desk.store, ALICE, event, partitions=PARTITIONS) is None


async def test_a_trimmed_event_is_still_told_by_its_dead_letter(desk: Desk) -> None:
    fence = await desk.attach()
    ((event, entry),) = await desk.publish()
    await desk.read(fence)
    await desk.give_up(fence, event, entry)
    desk.store.trim(ALICE, 0)
    report = await inspection.fate(desk.store, ALICE, event, partitions=PARTITIONS)
    assert report is not None
    assert (report.stored, report.entry, report.type) == (False, entry, "note")
    assert [fate.state for fate in report.fates] == [Fate.DEAD_LETTERED]


async def test_an_event_trimmed_while_it_was_pending_is_told_as_trimmed(desk: Desk) -> None:
    fence = await desk.attach()
    ((_, entry),) = await desk.publish()
    await desk.read(fence)
    desk.store.trim(ALICE, 0)
    assert (await desk.fate(entry)).state is Fate.TRIMMED


async def test_what_was_pending_when_its_session_ended_is_expired(desk: Desk) -> None:
    fence = await desk.attach()
    ((event, _),) = await desk.publish()
    await desk.read(fence)
    await desk.store.end_session(ALICE, PHONE)
    assert (await desk.fate(event)).state is Fate.EXPIRED


async def test_an_event_without_sessions_has_a_report_without_fates(desk: Desk) -> None:
    ((event, _),) = await desk.publish()
    report = await inspection.fate(desk.store, ALICE, event, partitions=PARTITIONS)
    assert report is not None
    assert (report.stored, list(report.fates)) == (True, [])


# --- dead letters -----------------------------------------------------------------------------------------------------


async def bury(desk: Desk, user: UserId, count: int) -> None:
    fence = await desk.attach(user=user)
    made = await desk.publish(count, user=user)
    await desk.read(fence)
    for event, entry in made:
        await desk.give_up(fence, event, entry)


async def all_dead(desk: Desk, limit: int, **wanted: object) -> list[inspection.DeadRow]:
    rows: list[inspection.DeadRow] = []
    cursor = ""
    while True:
        page = await inspection.dead_letters(
            desk.store,
            partitions=PARTITIONS,
            cursor=cursor,
            limit=limit,
            **wanted,  # type: ignore[arg-type]
        )
        assert len(page.rows) <= limit
        rows += page.rows
        if not page.cursor:
            return rows
        cursor = page.cursor


@pytest.mark.parametrize("limit", [1, 7, 1_000])
async def test_dead_letters_of_all_partitions_come_in_order_page_by_page(desk: Desk, limit: int) -> None:
    # All in one millisecond, so that ids of different partitions are equal.
    for number in range(6):
        await bury(desk, UserId(f"user-{number}"), 12)
    await desk.clock.pass_time(1_000)
    await bury(desk, UserId("user-0"), 3)
    rows = await all_dead(desk, limit)
    assert len(rows) == 75
    assert len({row.id for row in rows}) == 75
    times = [row.time_ms for row in rows]
    assert times == sorted(times)


async def test_dead_letters_are_those_of_a_user_or_of_late_when_asked(desk: Desk) -> None:
    await bury(desk, ALICE, 2)
    await desk.clock.pass_time(60_000)
    since_ms = desk.clock.now_ms()
    await bury(desk, BOB, 1)
    assert {row.user for row in await all_dead(desk, 10, user=ALICE)} == {ALICE}
    assert [row.user for row in await all_dead(desk, 10, since_ms=since_ms)] == [BOB]


async def test_a_dead_letter_is_found_by_its_id(desk: Desk) -> None:
    await bury(desk, ALICE, 3)
    rows = await all_dead(desk, 10)
    assert await inspection.dead_letter(desk.store, rows[1].id) == rows[1]
    assert rows[1].body
    assert await inspection.dead_letter(desk.store, "7:1-1") is None


@pytest.mark.parametrize("text", ["", "17", "1-1", "x:1-1", "1:", "1:1", "-1:1-1", "99999999:1-1"])
def test_what_is_no_id_of_a_dead_letter_is_refused(text: str) -> None:
    with pytest.raises(InvalidField):
        inspection.parse_dead_id(text)
