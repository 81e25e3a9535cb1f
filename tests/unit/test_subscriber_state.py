"""What a subscriber decides, without a socket: waits, verdicts, cursor, memory, queue, and a connection's clock."""

from __future__ import annotations

import dataclasses
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventbus.client.confirms import Confirms
from eventbus.client.inbox import CaughtUpMark, Inbox, Item
from eventbus.client.link import PONG_TIMEOUT_MS, WELCOME_TIMEOUT_MS, Act, Link, Lost, make_hello
from eventbus.client.state import (
    SEEN_COUNT,
    SEEN_MAX_COUNT,
    SEEN_MS,
    WAIT_MAX_MS,
    Backoff,
    CursorTracker,
    Outbox,
    Pacer,
    SeenEvents,
    final_error,
    http_error,
    parse_filter,
    parse_url,
    refresh_delay_ms,
    refusal_text,
    retry_after_ms,
)
from eventbus.errors import (
    AuthError,
    CloseCode,
    ClosedForGood,
    EventBusError,
    Forbidden,
    InvalidField,
    SessionEnded,
    Superseded,
)
from eventbus.event import Level, make_event
from eventbus.frames import (
    Ack,
    ClientFrame,
    Delivered,
    Filter,
    Gap,
    GoAway,
    GoAwayReason,
    Hello,
    Nack,
    Ping,
    Refresh,
    Welcome,
    Working,
)
from eventbus.ids import ConnectionId, EntryId, Epoch, EventId, NodeName, SessionId, entry_order
from eventbus.store import GapReason, Start
from eventbus.testing import ManualClock
from eventbus.wire import Format, encode_client


def entry(number: int) -> EntryId:
    return EntryId(f"1000-{number}")


def delivered(number: int, *, event: str | None = None, delivery: int = 1) -> Delivered:
    made = make_event(id=event or f"e{number}", type="step", user="ann", time_ms=1, data={"number": number})
    return Delivered(id=entry(number), delivery=delivery, event=made)


WELCOME = Welcome(
    protocol=1,
    node=NodeName("n1"),
    connection=ConnectionId("k1"),
    session=SessionId("s1"),
    resumed=False,
    cursor=EntryId("0-0"),
    pending=0,
    window=256,
    heartbeat_ms=20_000,
    ack_timeout_ms=30_000,
    max_frame_bytes=65_536,
    token_expires_ms=1,
    epoch=Epoch("epoch-1"),
)

# --- arguments --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given,made",
    [
        ("https://bus.example.com", "wss://bus.example.com/v1/connect"),
        ("http://127.0.0.1:8080/", "ws://127.0.0.1:8080/v1/connect"),
        ("ws://bus/prefix", "ws://bus/prefix/v1/connect"),
        ("wss://bus/v1/connect?x=1#part", "wss://bus/v1/connect?x=1"),
    ],
)
def test_an_address_of_a_node_becomes_that_of_its_socket(given: str, made: str) -> None:
    assert parse_url(given) == made


@pytest.mark.parametrize("url", ["bus.example.com", "ftp://bus", "http://", ""])
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(InvalidField, match="url"):
        parse_url(url)


def test_a_filter_is_read() -> None:
    made = parse_filter({"types": ["step"], "runs": ["run_1"]})
    assert made == Filter(types=frozenset({"step"}), runs=frozenset({"run_1"}))
    assert parse_filter(made) is made


@pytest.mark.parametrize(
    "wrong,field",
    [
        ({"type": ["a"]}, "filter.type"),
        ({"types": "a"}, "filter.types"),
        ({"types": ["A B"]}, "types"),
        ({"types": 5}, "filter.types"),
        ({"runs": [f"r{number}" for number in range(257)]}, "filter.runs"),
        (5, "filter"),
        ([("types", ["a"])], "filter"),
    ],
)
def test_a_wrong_filter_is_refused_with_its_key(wrong: Any, field: str) -> None:
    with pytest.raises(InvalidField, match=field):
        parse_filter(wrong)


# --- coming back ------------------------------------------------------------------------------------------------------


def test_waits_double_up_to_a_limit_and_chance_decides_below_it() -> None:
    longest, shortest = Backoff(), Backoff()
    waits = [longest.wait_ms(1.0) for _ in range(40)]
    assert waits[:7] == [250, 500, 1_000, 2_000, 4_000, 8_000, WAIT_MAX_MS]
    assert set(waits[7:]) == {WAIT_MAX_MS}
    assert {shortest.wait_ms(0.0) for _ in range(40)} == {0}
    longest.good()
    assert longest.wait_ms(1.0) == 250


@pytest.mark.requirement("R10")
def test_a_goaway_says_when_to_come_back_and_makes_no_tight_loop_after_short_connections() -> None:
    backoff = Backoff()
    assert backoff.wait_ms(1.0, goaway_ms=1_234) == 1_234
    assert backoff.wait_ms(1.0, goaway_ms=0) == 500
    assert backoff.wait_ms(0.5, goaway_ms=5_000) == 5_000
    backoff.good()
    assert backoff.wait_ms(1.0, goaway_ms=-20) == 0


def test_retry_after_is_obeyed_with_jitter_on_top() -> None:
    assert Backoff().wait_ms(0.5, retry_ms=1_000) == 1_125


@pytest.mark.parametrize(
    "text,ms",
    [("1", 1_000), (" 30 ", 30_000), ("99999999999", 300_000), ("Wed, 21 Oct 2026 07:28:00 GMT", None), ("", None)],
)
def test_retry_after_is_seconds_and_bounded(text: str, ms: int | None) -> None:
    assert retry_after_ms(text) == ms
    assert retry_after_ms(None) is None


@pytest.mark.parametrize("code", [1000, 1001, 1006, 1011, 1012, 3000, 4000, *range(4001, 4008), 4499, 5000])
def test_closes_below_4500_mean_come_back(code: int) -> None:
    assert final_error(code, "", fresh_token=False) is None


@pytest.mark.parametrize(
    "code,kind",
    [
        (4500, ClosedForGood),
        (4502, Forbidden),
        (4504, Superseded),
        (4505, ClosedForGood),
        (4506, SessionEnded),
        (4599, ClosedForGood),
        (4999, ClosedForGood),
    ],
)
def test_closes_from_4500_on_are_final_whatever_the_token(code: int, kind: type[EventBusError]) -> None:
    for fresh in (True, False):
        error = final_error(code, "why", fresh_token=fresh)
        assert type(error) is kind
        assert "why" in str(error)
        assert str(code) in str(error)


def test_a_late_hello_is_tried_again_until_the_fifth_in_a_row() -> None:
    verdicts = [final_error(4503, "why", fresh_token=True, late_hellos=count) for count in (1, 2, 3, 4, 5, 6)]
    assert verdicts[:4] == [None] * 4
    assert [type(verdict) for verdict in verdicts[4:]] == [ClosedForGood] * 2


def test_a_refused_token_is_final_unless_another_can_be_had() -> None:
    assert final_error(CloseCode.UNAUTHENTICATED, "", fresh_token=True) is None
    assert isinstance(final_error(CloseCode.UNAUTHENTICATED, "", fresh_token=False), AuthError)
    assert http_error(401, "", fresh_token=True) is None
    assert isinstance(http_error(401, "expired", fresh_token=False), AuthError)


def test_of_the_http_answers_only_the_forbidden_is_always_final() -> None:
    assert isinstance(http_error(403, "no scope", fresh_token=True), Forbidden)
    assert [http_error(status, "", fresh_token=False) for status in (400, 404, 429, 500, 502, 503)] == [None] * 6


def test_a_refusal_speaks_the_nodes_words_or_the_first_of_the_body() -> None:
    assert refusal_text(b'{"error": {"code": "bad", "message": "the token has expired"}}') == "the token has expired"
    assert refusal_text(b"<html>" + b"x" * 1000) == "<html>" + "x" * 194
    assert [refusal_text(body) for body in (b"", b"[]", b'{"error": 1}')] == ["", "[]", '{"error": 1}']


@pytest.mark.parametrize(
    "life_ms,delay_ms",
    [(3_600_000, 2_880_000), (100_000, 70_000), (40_000, 20_000), (3_000, 1_500), (500, 1_000), (0, None), (-5, None)],
)
def test_a_token_is_refreshed_well_before_its_end(life_ms: int, delay_ms: int | None) -> None:
    assert refresh_delay_ms(life_ms) == delay_ms


def hello(**fields: Any) -> Hello:
    given: dict[str, Any] = dict.fromkeys(("session", "start", "cursor", "epoch", "window", "filter"))
    return make_hello(**{**given, **fields})


@pytest.mark.requirement("R7")
def test_a_new_session_starts_at_the_cursor_or_at_the_earliest_never_in_between() -> None:
    """R7, D9."""
    assert (hello().start, hello().cursor) == (Start.EARLIEST, None)
    at_cursor = hello(cursor=entry(5))
    assert (at_cursor.start, at_cursor.cursor) == (Start.CURSOR, entry(5))
    new = hello(start=Start.NEW, cursor=entry(5))
    assert (new.start, new.cursor) == (Start.NEW, None)


@pytest.mark.requirement("R7")
def test_a_known_session_says_where_it_stands_and_in_which_epoch() -> None:
    """R7, D9: `cursor` without `start` means `start: cursor`."""
    epoch = Epoch("e1")
    again = hello(session=SessionId("s"), start=Start.NEW, cursor=entry(5), epoch=epoch)
    assert (again.session, again.start, again.cursor, again.epoch) == ("s", None, entry(5), epoch)
    nothing_yet = hello(start=Start.NEW, epoch=epoch)
    assert (nothing_yet.start, nothing_yet.cursor) == (Start.EARLIEST, None)


# --- what was seen ----------------------------------------------------------------------------------------------------


@pytest.mark.requirement("R8")
def test_the_last_4096_events_are_known_however_old_and_all_of_the_last_ten_minutes() -> None:
    """R8, D5."""
    clock, seen = ManualClock(), SeenEvents()
    for number in range(SEEN_COUNT + 1_000):
        seen.add(EventId(f"e{number}"), clock.monotonic_ms())
    assert len(seen) == SEEN_COUNT + 1_000
    clock.advance(SEEN_MS)
    for number in range(1_000):
        seen.add(EventId(f"f{number}"), clock.monotonic_ms())
    assert len(seen) == SEEN_COUNT
    assert "e1999" not in seen
    assert "e2000" in seen


def test_the_memory_of_events_is_bounded_at_any_rate() -> None:
    seen = SeenEvents()
    for number in range(SEEN_MAX_COUNT + 500):
        seen.add(EventId(str(number)), 0)
    assert len(seen) == SEEN_MAX_COUNT
    assert "499" not in seen
    assert "500" in seen


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 7)), max_size=60))
def test_the_cursor_is_the_highest_entry_below_everything_unhandled(steps: list[tuple[bool, int]]) -> None:
    """D9: entries come in order and are done in any; a model says where the cursor belongs."""
    tracker, came, under_way = CursorTracker(entry(0)), 0, set[int]()
    for arrives, which in steps:
        if arrives or not under_way:
            came += 1
            under_way.add(came)
            tracker.arrived(entry(came))
        else:
            done = sorted(under_way)[which % len(under_way)]
            under_way.discard(done)
            tracker.done(entry(done))
        assert tracker.cursor == entry(min(under_way) - 1 if under_way else came)


def test_a_lost_connection_takes_the_cursor_back_to_what_is_held() -> None:
    tracker = CursorTracker(None)
    for number in (1, 2, 3, 4):
        tracker.arrived(entry(number))
    tracker.done(entry(1))
    tracker.rewind([entry(3)])
    assert tracker.cursor == entry(1)
    tracker.arrived(entry(2))
    tracker.done(entry(3))
    assert tracker.cursor == entry(1)
    tracker.done(entry(2))
    assert tracker.cursor == entry(2)
    tracker.passed(entry(3))  # comes again, and is known to be handled
    assert tracker.cursor == entry(3)


# --- the queue --------------------------------------------------------------------------------------------------------


class Application:
    """Takes from an inbox as a subscriber does."""

    def __init__(self, inbox: Inbox) -> None:
        self.inbox = inbox
        self.acked: list[EntryId] = []

    def take(self) -> Item:
        turn = self.inbox.peek()
        assert isinstance(turn, Item)
        self.inbox.take()
        return turn

    def handle(self) -> int:
        item = self.take()
        self.acked += self.inbox.handled(item, 0)
        number: int = item.event.data["number"]
        return number


def inbox_with(*numbers: int) -> tuple[Inbox, Application]:
    inbox = Inbox(None)
    inbox.arrived([delivered(number) for number in numbers], 0)
    return inbox, Application(inbox)


@pytest.mark.requirement("R8")
def test_an_event_that_was_handled_is_not_handed_over_again_but_acked_again() -> None:
    inbox, application = inbox_with(1)
    assert application.handle() == 1
    assert inbox.arrived([delivered(1, delivery=2)], 0) == [entry(1)]
    assert inbox.peek() is None


@pytest.mark.requirement("R8")
def test_an_event_that_was_stored_again_under_another_entry_is_a_duplicate() -> None:
    """R8, D5: an asynchronous failover lost it and its publisher sent it again."""
    inbox, application = inbox_with(5)
    application.handle()
    assert inbox.arrived([delivered(3, event="e5")], 0) == [entry(3)]


@pytest.mark.requirement("R8")
@pytest.mark.parametrize("in_hand", [False, True])
def test_an_event_that_comes_again_while_it_is_held_is_merged_and_acked_under_all_its_entries(in_hand: bool) -> None:
    inbox, application = inbox_with(5, 6)
    item = application.take() if in_hand else None
    inbox.disconnected()
    assert inbox.arrived([delivered(3, event="e5", delivery=2), delivered(6, delivery=2)], 0) == []
    item = item or application.take()
    assert set(inbox.handled(item, 0)) == {entry(3), entry(5)}
    assert application.handle() == 6
    assert inbox.peek() is None


def test_a_failed_event_comes_again_and_holds_the_cursor() -> None:
    inbox, application = inbox_with(1, 2)
    assert inbox.failed(application.take()) == entry(1)
    assert application.handle() == 2
    assert inbox.tracker.cursor is None
    assert inbox.arrived([delivered(1, delivery=2)], 0) == []
    assert application.handle() == 1
    assert inbox.tracker.cursor == entry(2)


def test_settling_an_event_twice_does_nothing() -> None:
    inbox, application = inbox_with(1)
    item = application.take()
    assert inbox.handled(item, 0) == {entry(1)}
    assert not inbox.handled(item, 0)
    assert inbox.failed(item) is None


def test_what_will_not_come_again_is_not_handed_over() -> None:
    inbox, application = inbox_with(1, 2, 3)
    in_hand = application.take()
    inbox.withdrawn([entry(1), entry(2)])
    assert inbox.handled(in_hand, 0) == {entry(1)}
    assert application.handle() == 3
    assert inbox.held == 0
    assert inbox.tracker.cursor == entry(3)


def test_a_gap_comes_in_its_place_among_the_events() -> None:
    inbox, application = inbox_with(1)
    gap = Gap(reason=GapReason.TRIMMED, after=entry(1), before=entry(5), count=3)
    inbox.gap(gap)
    inbox.arrived([delivered(5)], 0)
    assert application.handle() == 1
    assert inbox.peek() is gap
    inbox.take()
    assert application.handle() == 5


@pytest.mark.parametrize(
    "reason,after,cursor",
    [
        (GapReason.TRIMMED, 2, 7),
        (GapReason.ROLLBACK, 2, 2),
        (GapReason.ROLLBACK, 9, None),
        (GapReason.ROLLBACK, None, None),
        (GapReason.RESET, 2, None),
    ],
)
def test_after_a_rollback_or_a_reset_the_cursor_is_what_survived(
    reason: GapReason, after: int | None, cursor: int | None
) -> None:
    """D4: entry ids may be lower from there on."""
    inbox, application = inbox_with(7)
    application.handle()
    inbox.gap(Gap(reason=reason, after=None if after is None else entry(after)))
    assert inbox.tracker.cursor == (None if cursor is None else entry(cursor))
    inbox.take()
    inbox.arrived([delivered(3)], 0)
    application.handle()
    assert inbox.tracker.cursor == (entry(7) if reason is GapReason.TRIMMED else entry(3))


def test_only_the_last_connections_mark_is_kept() -> None:
    inbox, application = inbox_with(1)
    inbox.caught_up(entry(1), 1)
    inbox.caught_up(entry(1), 2)
    application.handle()
    assert inbox.peek() == CaughtUpMark(2)
    inbox.take()
    assert inbox.peek() is None


@pytest.mark.requirement("R9")
def test_a_queue_beyond_two_windows_is_full() -> None:
    inbox, application = inbox_with(*range(1, 24))
    assert not inbox.is_full(4)
    inbox.arrived([delivered(24)], 0)
    assert inbox.is_full(4)
    application.handle()
    assert not inbox.is_full(4)


@given(st.integers(0, 2**32), st.integers(1, 12))
def test_whatever_is_lost_each_event_is_handled_once_and_in_order(seed: int, window: int) -> None:
    """R8: a node with a window, acks and deliveries that are lost at random with their connection."""
    random = Random(seed)
    inbox = Inbox(None)
    application = Application(inbox)
    total, pending, next_entry, handled = 40, list[int](), 1, list[int]()
    in_flight: set[int] = set()
    while len(handled) < total or pending:
        step = random.random()
        if step < 0.15:  # the connection is lost: pending entries come again, in order
            inbox.disconnected()
            application.acked.clear()
            in_flight.clear()
        elif step < 0.55:
            room = window - len(in_flight)
            old = [number for number in pending if number not in in_flight][:room]
            new = [] if old else list(range(next_entry, min(total + 1, next_entry + room)))
            pending += new
            next_entry += len(new)
            in_flight.update(old + new)
            application.acked += inbox.arrived([delivered(number) for number in old + new], 0)
        elif step < 0.8 and inbox.peek() is not None:
            handled.append(application.handle())
        else:
            for gone in application.acked:
                number = entry_order(gone)[1]
                in_flight.discard(number)
                if number in pending:
                    pending.remove(number)
            application.acked.clear()
        cursor = inbox.tracker.cursor
        assert cursor is None or set(range(1, entry_order(cursor)[1] + 1)) <= set(handled)
        assert inbox.held <= window
    assert handled == list(range(1, total + 1))


# --- what is sent, and when -------------------------------------------------------------------------------------------


def test_acks_are_gathered_and_go_before_nacks() -> None:
    outbox = Outbox(65_536)
    outbox.nack(Nack(id=entry(0)))
    outbox.received([entry(1), entry(2)])
    outbox.received([entry(3)])
    assert outbox.next() == Ack(ids=(entry(1), entry(2), entry(3)))
    assert outbox.next() == Nack(id=entry(0))
    assert outbox.next() is None
    assert not outbox


@pytest.mark.parametrize("max_frame_bytes", [256, 1_024, 65_536])
def test_no_frame_of_acks_is_larger_than_the_node_takes(max_frame_bytes: int) -> None:
    outbox = Outbox(max_frame_bytes)
    outbox.received([EntryId(f"{2**64 - 1}-{2**64 - 1}")] * 3_000)
    count = 0
    while (frame := outbox.next()) is not None:
        assert isinstance(frame, Ack)
        count += len(frame.ids or ())
        assert all(len(encode_client(frame, wire_format)) <= max_frame_bytes for wire_format in Format)
    assert count == 3_000


def test_confirming_frames_stay_below_what_the_lowest_tier_takes() -> None:
    """20 a second after a burst of 200: the node would stop reading."""
    pacer, now_ms, sent = Pacer(0), 0, 0
    while now_ms < 60_000:
        wait_ms = pacer.take(now_ms)
        sent += wait_ms == 0
        now_ms += wait_ms
    assert 100 + 59 * 15 <= sent <= 100 + 61 * 15


class Wire:
    """A link with a clock."""

    def __init__(self, **fields: Any) -> None:
        self.clock = ManualClock()
        self.inbox = Inbox(None)
        self.confirms = Confirms()
        self.link = Link(1, Hello(session=SessionId("s1")), self.clock.monotonic_ms(), self.confirms)
        assert self.sent() == [Hello(session=SessionId("s1"))]
        if fields.pop("greeted", True):
            self.link.welcomed(dataclasses.replace(WELCOME, **fields), self.clock.monotonic_ms())

    def sent(self) -> list[ClientFrame]:
        frames = []
        while (frame := self.link.next_frame(self.clock.monotonic_ms())) is not None:
            frames.append(frame)
        return frames

    def wait(self, ms: int) -> list[Act | Lost]:
        """Lets time pass, and rings whenever the link asked for it."""
        end_ms, acts = self.clock.monotonic_ms() + ms, list[Act | Lost]()
        while (due_ms := self.link.due_ms) is not None and due_ms <= end_ms:
            self.clock.advance(max(0, due_ms - self.clock.monotonic_ms()))
            acts += self.link.on_clock(self.clock.monotonic_ms(), self.inbox)
        self.clock.advance(end_ms - self.clock.monotonic_ms())
        return acts


def test_a_node_that_does_not_welcome_is_given_up() -> None:
    wire = Wire(greeted=False)
    assert wire.wait(WELCOME_TIMEOUT_MS - 1) == []
    assert wire.wait(1) == [Lost("no welcome came")]


@pytest.mark.requirement("R2")
def test_a_silent_node_is_asked_after_a_heartbeat_and_given_up_ten_seconds_later() -> None:
    """R2: a half-open socket."""
    wire = Wire()
    assert wire.wait(19_999) == []
    assert wire.sent() == []
    wire.wait(1)
    assert wire.sent() == [Ping()]
    assert wire.wait(PONG_TIMEOUT_MS - 1) == []
    assert wire.wait(1) == [Lost("the node does not answer")]


def test_any_byte_is_a_sign_of_life() -> None:
    wire = Wire()
    for _ in range(10):
        wire.wait(15_000)
        wire.link.heard(wire.clock.monotonic_ms())
    assert wire.sent() == []
    wire.wait(20_000)
    assert wire.sent() == [Ping()]
    wire.link.heard(wire.clock.monotonic_ms())
    assert wire.wait(19_999) == []
    assert wire.sent() == []


def test_a_process_that_was_busy_looks_once_more_before_it_blames_the_node() -> None:
    wire = Wire()
    wire.wait(20_000)
    wire.clock.advance(PONG_TIMEOUT_MS + 5_000)
    assert wire.link.on_clock(wire.clock.monotonic_ms(), wire.inbox) == []
    assert wire.wait(1_000) == [Lost("the node does not answer")]


def test_a_node_that_is_not_read_is_not_blamed_for_its_silence() -> None:
    wire = Wire()
    wire.link.paused = True
    assert wire.wait(300_000) == []


def test_the_node_is_told_while_the_application_is_still_at_it() -> None:
    """Each held entry is named before its ack time-out is over, whenever it came."""
    wire = Wire(ack_timeout_ms=30_000)
    wire.wait(9_000)
    wire.inbox.arrived([delivered(1), delivered(2)], wire.clock.monotonic_ms())
    for _ in range(5):
        wire.wait(20_000)
        named = [frame for frame in wire.sent() if isinstance(frame, Working)]
        assert named
        assert all(frame.ids == (entry(1), entry(2)) for frame in named)
    wire.inbox.disconnected()
    wire.wait(40_000)
    assert not [frame for frame in wire.sent() if isinstance(frame, Working)]


def test_a_node_that_reads_nothing_is_told_a_bounded_number_of_frames() -> None:
    wire = Wire(ack_timeout_ms=300, max_frame_bytes=256)
    wire.link.paused = True
    wire.inbox.arrived([delivered(number) for number in range(1, 200)], 0)
    wire.wait(600_000)
    assert len(wire.sent()) <= 64 + 199


def test_acks_beyond_the_pace_wait_and_then_leave_together() -> None:
    wire = Wire()
    for number in range(1, 151):
        wire.link.acknowledge([entry(number)])
        wire.sent()
    wire.wait(67)
    (frame,) = wire.sent()
    assert isinstance(frame, Ack)
    assert len(frame.ids or ()) == 50


def test_on_the_way_out_nothing_waits_for_its_pace() -> None:
    wire = Wire()
    for number in range(1, 151):
        wire.link.acknowledge([entry(number)])
        wire.sent()
    assert isinstance(wire.link.last_frame(wire.clock.monotonic_ms()), Ack)
    assert wire.link.last_frame(wire.clock.monotonic_ms()) is None


def test_without_a_welcome_nothing_is_confirmed() -> None:
    wire = Wire(greeted=False)
    wire.link.acknowledge([entry(1)])
    wire.link.nack(entry(2), "why", 5)
    assert wire.sent() == []
    assert wire.link.last_frame(wire.clock.monotonic_ms()) is None


@pytest.mark.parametrize("max_frame_bytes", [256, 65_536])
def test_the_reason_of_a_nack_is_cut_to_what_the_node_takes(max_frame_bytes: int) -> None:
    wire = Wire(max_frame_bytes=max_frame_bytes)
    wire.link.nack(EntryId(f"{2**64 - 1}-{2**64 - 1}"), "\x00" * 1_000, 3_600_000)
    (frame,) = wire.sent()
    assert isinstance(frame, Nack)
    assert 0 < len(frame.reason or "") <= 256
    assert len(encode_client(frame, Format.JSON)) <= max_frame_bytes


def test_a_reason_that_is_no_unicode_is_a_frame_all_the_same() -> None:
    wire = Wire()
    wire.link.nack(entry(1), "no such file: caf\udce9", None)
    (frame,) = wire.sent()
    assert isinstance(frame, Nack)
    assert frame.reason == "no such file: caf?"
    assert all(encode_client(frame, wire_format) for wire_format in Format)


@pytest.mark.requirement("R11")
def test_a_confirmation_that_the_node_could_not_store_is_sent_again_on_the_same_connection() -> None:
    wire = Wire()
    for number in (1, 2, 3):
        wire.confirms.add(entry(number), Level.CONFIRMED, None)
    first, second, third = wire.sent()
    for frame, code in ((first, "store_unavailable"), (second, "bad_frame")):
        assert isinstance(frame, Ack)
        wire.link.confirm_refused(frame.ref, code, wire.clock.monotonic_ms())
    assert isinstance(third, Ack)
    assert third.ref is not None
    wire.confirms.answered(third.ref)
    assert wire.sent() == []
    wire.wait(4_000)
    assert wire.sent() == [first], "the second will never be stored, the third is"
    wire.wait(10_000)
    assert [frame for frame in wire.sent() if isinstance(frame, Ack)] == []
    wire.link.confirm_refused("of another", "store_unavailable", wire.clock.monotonic_ms())


def test_a_token_is_refreshed_on_the_live_socket_and_each_answer_sets_the_next_time() -> None:
    wire = Wire()
    wire.link.paused = True
    wire.link.token_lives(100_000, wire.clock.monotonic_ms())
    assert wire.wait(69_999) == []
    assert wire.wait(1) == [Act.FETCH_TOKEN]
    wire.link.refresh("jwt-2")
    assert wire.sent() == [Refresh(token="jwt-2")]
    wire.link.token_lives(200_000, wire.clock.monotonic_ms())
    assert wire.wait(160_000) == [Act.FETCH_TOKEN]
    wire.link.token_lives(0, wire.clock.monotonic_ms())
    assert wire.wait(600_000) == []


@pytest.mark.requirement("R10")
def test_a_goaway_is_left_at_the_nodes_own_time() -> None:
    wire = Wire()
    wire.wait(1_000)
    wire.link.goaway(GoAway(reason=GoAwayReason.DRAINING, reconnect_after_ms=700), wire.clock.monotonic_ms())
    assert wire.link.come_back_ms == 1_700
    assert wire.wait(699) == []
    assert wire.wait(1) == [Act.LEAVE]
