"""The delivery machine of a session: its rules one by one. The walk in `tests/property` tries them all together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from eventbus import moves
from eventbus.delivery import TABLE, Delivery, IllegalMove, Phase
from eventbus.ids import ENTRY_ZERO, EntryId
from eventbus.redelivery import RedeliveryPolicy
from eventbus.store import GapReason, Redelivery, RedeliveryOutcome, ReleaseReason, StoreGap
from eventbus.window import ENTRY_GUESS_BYTES, STEP_RETRY_MS

ACK_MS = 1_000
NACK_MS = 100
POLICY = RedeliveryPolicy(ack_timeout_ms=ACK_MS, max_deliveries=3, nack_wait_ms=NACK_MS, max_wait_ms=60_000, jitter=0)
NEVER_MS = 2**62
READY, GONE, TRIMMED = RedeliveryOutcome
ROLLBACK = StoreGap(reason=GapReason.ROLLBACK, after=None, before=None)


def eid(number: int) -> EntryId:
    return EntryId(f"{number}-0")


def ids(*numbers: int) -> tuple[EntryId, ...]:
    return tuple(eid(number) for number in numbers)


def item(number: int, **changes: Any) -> moves.Item:
    fields: dict[str, Any] = {"id": eid(number), "payload": f"p{number}", "size_bytes": 10}
    return moves.Item(**(fields | changes))


def trimmed(number: int) -> moves.Item:
    return moves.Item(id=eid(number), payload=None)


def opened(
    position: int = 0, *, tail: int | None = None, pending: int = 0, gap: StoreGap | None = None
) -> moves.Opened:
    return moves.Opened(position=eid(position), tail=eid(position if tail is None else tail), pending=pending, gap=gap)


class Played:
    """A machine and a clock."""

    def __init__(self, window: int = 10, **arguments: Any) -> None:
        self.machine = Delivery(POLICY, window=window, **arguments)
        self.now_ms = 0

    def feed(self, event: moves.Input) -> list[moves.Effect]:
        return self.machine.handle(event, self.now_ms)

    def at(self, now_ms: int) -> list[moves.Effect]:
        self.now_ms = now_ms
        return self.feed(moves.Clock())

    def new(self, *items: moves.Item | int, gap: StoreGap | None = None) -> list[moves.Effect]:
        """Something is stored, read, and comes."""
        self.feed(moves.Woken())
        assert isinstance(self.machine.take_read(), moves.ReadNew)
        return self.feed(moves.NewItems(items=[item(i) if isinstance(i, int) else i for i in items], gap=gap))

    def page(self, *items: moves.Item | int, last: bool = True) -> list[moves.Effect]:
        """A page of pending entries is read, and comes."""
        assert isinstance(self.machine.take_read(), moves.ReadPending)
        return self.feed(moves.PendingItems(items=[item(i) if isinstance(i, int) else i for i in items], last=last))

    def reattach(self, position: int, *, pending: int = 0, gap: StoreGap | None = None) -> list[moves.Effect]:
        self.feed(moves.ReattachStarted())
        return self.feed(opened(position, pending=pending, gap=gap))


def live(*items: moves.Item | int, window: int = 10, **arguments: Any) -> Played:
    """A live session that has been sent these."""
    played = Played(window, **arguments)
    played.feed(opened())
    if items:
        played.new(*items)
    return played


def sent(effects: Sequence[moves.Effect]) -> list[tuple[int, int]]:
    """What was sent: the number of the id and of the delivery."""
    sends = [effect for effect in effects if isinstance(effect, moves.Send)]
    return [(int(event.id.partition("-")[0]), event.delivery) for send in sends for event in send.events]


def kinds(effects: Sequence[moves.Effect]) -> list[str]:
    return [type(effect).__name__ for effect in effects]


# --- opening ----------------------------------------------------------------------------------------------------------


def test_new_session_of_an_empty_stream_is_caught_up_at_once_and_reads_nothing() -> None:
    played = Played()
    assert played.machine.take_read() is None
    assert played.feed(opened()) == [moves.CaughtUp(ENTRY_ZERO)]
    assert (played.machine.phase, played.machine.take_read()) == (Phase.LIVE, None)


def test_session_behind_the_stream_reads_and_is_caught_up_when_all_stored_at_its_opening_was_sent() -> None:
    played = Played(window=2)
    assert played.feed(opened(tail=3)) == []
    assert played.machine.take_read() == moves.ReadNew(2, None)
    assert kinds(played.feed(moves.NewItems(items=[item(1), item(2)]))) == ["Send"]
    played.feed(moves.Acked(ids(1, 2)))
    assert played.machine.take_read() == moves.ReadNew(2, eid(2))
    effects = played.feed(moves.NewItems(items=[item(3), item(4)]))
    assert (sent(effects), kinds(effects)) == ([(3, 1), (4, 1)], ["Send", "CaughtUp"])
    assert "CaughtUp" not in kinds(played.feed(moves.Acked(ids(3)))) + kinds(played.new())


def test_gap_that_an_attach_found_is_announced_first() -> None:
    gap = StoreGap(reason=GapReason.TRIMMED, after=None, before=eid(5), count=4)
    assert kinds(Played().feed(opened(gap=gap))) == ["AnnounceGap", "CaughtUp"]
    again = live(1)
    assert kinds(again.reattach(1, pending=1, gap=gap)) == ["AnnounceGap"]


@pytest.mark.requirement("R6", "R7")
def test_pending_entries_come_first_in_pages_and_marked_and_only_then_what_is_new() -> None:
    played = Played(window=2)
    assert played.feed(opened(4, tail=5, pending=3)) == []
    assert played.machine.take_read() == moves.ReadPending(ENTRY_ZERO, 2)
    assert played.machine.take_read() is None
    effects = played.feed(moves.PendingItems(items=[item(1), item(2, attempts=2)], last=False))
    assert sent(effects) == [(1, 2), (2, 3)]
    assert played.machine.take_read() is None  # no room
    played.feed(moves.Acked(ids(1)))
    assert played.machine.take_read() == moves.ReadPending(eid(2), 1)
    assert sent(played.feed(moves.PendingItems(items=[item(4)], last=True))) == [(4, 2)]
    played.feed(moves.Acked(ids(2)))
    assert played.machine.take_read() == moves.ReadNew(1, eid(4))
    assert sent(played.feed(moves.NewItems(items=[item(5)]))) == [(5, 1)]


def test_page_of_nothing_ends_the_pages_even_when_it_does_not_say_so() -> None:
    played = Played()
    played.feed(opened(3, pending=1))
    assert played.page(last=False) == [moves.CaughtUp(eid(3))]


def test_page_entry_without_room_is_read_again_when_there_is_some() -> None:
    played = Played(window=2)
    played.feed(opened(3, pending=3))
    assert isinstance(played.machine.take_read(), moves.ReadPending)
    played.feed(moves.WindowChanged(1))
    assert sent(played.feed(moves.PendingItems(items=[item(1), item(2)], last=True))) == [(1, 2)]
    assert (played.machine.phase, played.machine.take_read()) == (Phase.PENDING, None)
    played.feed(moves.Acked(ids(1)))
    assert played.machine.take_read() == moves.ReadPending(eid(1), 1)


@pytest.mark.requirement("R7")
def test_pending_entries_that_were_trimmed_are_a_gap_with_its_range_and_are_released() -> None:
    played = Played()
    played.feed(opened(6, pending=5))
    effects = played.page(1, trimmed(2), trimmed(3), 4, trimmed(6))
    assert kinds(effects) == ["Send", "AnnounceGap", "Release", "Send", "AnnounceGap", "Release", "CaughtUp"]
    gaps = [effect.gap for effect in effects if isinstance(effect, moves.AnnounceGap)]
    assert gaps == [
        StoreGap(reason=GapReason.TRIMMED, after=eid(1), before=eid(4), count=2),
        StoreGap(reason=GapReason.TRIMMED, after=eid(4), before=None, count=1),
    ]
    assert effects[2] == moves.Release(ids(2, 3), ReleaseReason.TRIMMED)


def test_gap_before_everything_has_no_beginning() -> None:
    played = Played()
    played.feed(opened(2, pending=2))
    effects = played.page(trimmed(1), 2)
    assert effects[0] == moves.AnnounceGap(StoreGap(reason=GapReason.TRIMMED, after=None, before=eid(2), count=1))


def test_filtered_and_expired_entries_are_released_in_one_call_for_each_reason_and_never_sent() -> None:
    filtered, expired = ReleaseReason.FILTERED, ReleaseReason.EXPIRED
    items = [item(1, skip=filtered), item(2, skip=expired), item(3), item(4, skip=filtered)]
    released = [moves.Release(ids(1, 4), filtered), moves.Release(ids(2), expired)]
    effects = live().new(*items)
    assert (sent(effects), effects[1:]) == ([(3, 1)], released)
    played = Played()
    played.feed(opened(4, pending=4))
    effects = played.page(*items)
    assert (sent(effects), effects[1:3]) == ([(3, 2)], released)


# --- reading ----------------------------------------------------------------------------------------------------------


def test_wake_up_during_a_read_is_not_lost() -> None:
    played = live()
    played.feed(moves.Woken())
    assert played.machine.take_read() is not None
    played.feed(moves.Woken())
    assert played.machine.take_read() is None
    played.feed(moves.NewItems(items=[item(1)]))
    assert played.machine.take_read() == moves.ReadNew(9, None)


def test_full_read_is_followed_by_one_that_looks_whether_its_last_id_is_still_there() -> None:
    played = live(1, 2, window=2)
    played.feed(moves.Acked(ids(1)))
    assert played.machine.take_read() == moves.ReadNew(1, eid(2))
    played.feed(moves.NewItems(items=[]))
    played.feed(moves.Woken())
    assert played.machine.take_read() == moves.ReadNew(1, None)


@pytest.mark.requirement("R7")
def test_gap_before_new_entries_is_announced_before_them() -> None:
    gap = StoreGap(reason=GapReason.TRIMMED, after=eid(2), before=eid(9), count=6)
    assert kinds(live(1).new(9, gap=gap)) == ["AnnounceGap", "Send"]


def test_first_read_after_an_attach_looks_whether_the_position_is_still_there() -> None:
    played = Played()
    played.feed(opened(7, tail=8))
    assert played.machine.take_read() == moves.ReadNew(10, eid(7))


@pytest.mark.requirement("R9")
def test_nothing_is_read_while_the_window_is_full_or_too_many_bytes_are_held() -> None:
    assert live(1, 2, window=2).machine.room == 0
    heavy = live(item(1, size_bytes=900), item(2, size_bytes=101), max_held_bytes=1_000)
    assert (heavy.machine.held_bytes, heavy.machine.room, heavy.machine.wants_read) == (1_001, 0, False)
    heavy.feed(moves.Acked(ids(2)))
    assert heavy.machine.room > 0


@pytest.mark.requirement("R9")
def test_read_asks_for_no_more_than_may_be_held() -> None:
    unknown = live(window=100, max_held_bytes=10 * ENTRY_GUESS_BYTES)
    unknown.feed(moves.Woken())
    assert unknown.machine.take_read() == moves.ReadNew(10, None)
    tiny = live(window=100, max_held_bytes=1)
    tiny.feed(moves.Woken())
    assert tiny.machine.take_read() == moves.ReadNew(1, None)


@pytest.mark.requirement("R9")
def test_read_never_asks_for_more_than_its_most() -> None:
    played = live(window=1_000, read_max=7)
    played.feed(moves.Woken())
    assert played.machine.take_read() == moves.ReadNew(7, None)


@pytest.mark.requirement("R9")
def test_acks_that_the_store_does_not_hear_stop_the_reading_and_the_remembering() -> None:
    played = live(window=2)
    effects = played.feed(moves.Acked(ids(*range(100, 120))))
    assert effects == [moves.Acknowledge(ids(*range(100, 108)))]
    played.feed(moves.Woken())
    assert played.machine.take_read() is None
    played.feed(moves.Stored(ids(*range(100, 108))))
    assert played.machine.take_read() is not None


# --- acks -------------------------------------------------------------------------------------------------------------


@pytest.mark.requirement("R1")
def test_ack_releases_and_is_remembered_until_it_is_stored() -> None:
    played = live(1, 2)
    assert played.feed(moves.Acked(ids(1))) == [moves.Acknowledge(ids(1))]
    assert (played.machine.in_flight, played.machine.outstanding, played.machine.held_bytes) == (1, 2, 10)
    assert played.feed(moves.Acked(ids(1, 1))) == []
    played.feed(moves.Stored(ids(1)))
    assert played.machine.outstanding == 1


def test_ack_of_what_is_not_held_is_left_to_the_store() -> None:
    assert live().feed(moves.Acked(ids(9, 9))) == [moves.Acknowledge(ids(9))]


def test_ack_up_to_an_id_acks_what_was_delivered_by_number_and_not_by_text() -> None:
    played = live(8, 9, 10, 11)
    assert played.feed(moves.AckedUpTo(eid(10))) == [moves.Acknowledge(ids(8, 9, 10))]
    assert played.feed(moves.AckedUpTo(eid(10))) == []


def test_ack_through_another_door_takes_the_entry_out_of_the_window_without_a_word() -> None:
    played = live(1, 2)
    assert played.feed(moves.AckedElsewhere(ids(1, 7))) == []
    assert (played.machine.in_flight, played.machine.outstanding) == (1, 1)


def test_cursor_is_the_highest_id_up_to_which_everything_is_handled() -> None:
    played = live(1, 2, 3)
    assert played.machine.cursor == ENTRY_ZERO
    played.feed(moves.Acked(ids(2)))
    assert played.machine.cursor == ENTRY_ZERO
    played.feed(moves.Acked(ids(1)))
    assert played.machine.cursor == eid(2)
    played.feed(moves.Acked(ids(3)))
    assert played.machine.cursor == eid(3)


def test_cursor_with_entries_pending_is_what_the_client_says() -> None:
    played = Played(cursor=eid(2))
    played.feed(opened(5, pending=1))
    assert played.machine.cursor == eid(2)
    played.page(4)
    assert played.machine.cursor == eid(2)
    played.feed(moves.Acked(ids(4)))
    assert played.machine.cursor == eid(5)


# --- redelivery -------------------------------------------------------------------------------------------------------


@pytest.mark.requirement("R3", "R6")
def test_entry_is_counted_and_sent_again_marked_when_its_ack_times_out_with_growing_waits() -> None:
    played = live(1)
    assert played.machine.due_ms == ACK_MS
    assert played.at(ACK_MS - 1) == []
    assert played.at(ACK_MS) == [moves.Redeliver((Redelivery(id=eid(1), attempts=2),))]
    assert played.machine.due_ms == NEVER_MS
    assert sent(played.feed(moves.Redelivered([(eid(1), READY)]))) == [(1, 2)]
    assert played.machine.due_ms == ACK_MS + 2 * ACK_MS


@pytest.mark.requirement("R1", "R3")
def test_entry_that_was_sent_often_enough_becomes_a_dead_letter_and_the_client_is_told() -> None:
    played = live(1)
    for _ in range(2):
        played.at(played.machine.due_ms)
        played.feed(moves.Redelivered([(eid(1), READY)]))
    assert played.at(played.machine.due_ms) == [moves.GiveUp(eid(1), 3, "ack_timeout", "p1")]
    assert played.machine.in_flight == 1
    assert played.feed(moves.GivenUp(eid(1), dead=True)) == [moves.Dropped(ids(1), moves.DropReason.DEAD_LETTERED)]
    assert (played.machine.in_flight, played.machine.held_bytes) == (0, 0)


def test_dead_letter_that_was_acked_meanwhile_ends_without_a_word() -> None:
    played = live(item(1, attempts=3))
    assert kinds(played.at(10 * ACK_MS)) == ["GiveUp"]
    assert played.feed(moves.Acked(ids(1))) == [moves.Acknowledge(ids(1))]
    assert played.feed(moves.GivenUp(eid(1), dead=False)) == []


def test_entries_that_came_together_are_counted_in_one_call() -> None:
    played = live(1, 2, 3)
    assert played.at(ACK_MS) == [moves.Redeliver(tuple(Redelivery(id=eid(n), attempts=2) for n in (1, 2, 3)))]


def test_entry_that_is_gone_leaves_the_window_and_a_trimmed_one_is_sent_from_memory() -> None:
    played = live(1, 2, 3)
    played.at(ACK_MS)
    played.feed(moves.Acked(ids(3)))
    effects = played.feed(moves.Redelivered([(eid(1), GONE), (eid(2), TRIMMED), (eid(3), READY)]))
    assert (sent(effects), played.machine.in_flight) == ([(2, 2)], 1)
    assert played.feed(moves.Redelivered([(eid(2), READY)])) == []


@pytest.mark.requirement("R3")
def test_redelivery_that_could_not_be_recorded_is_tried_again_and_counts_once() -> None:
    played = live(1)
    played.at(ACK_MS)
    assert played.feed(moves.StepFailed(ids(1, 9))) == []
    assert played.at(ACK_MS + STEP_RETRY_MS - 1) == []
    assert played.at(ACK_MS + STEP_RETRY_MS) == [moves.Redeliver((Redelivery(id=eid(1), attempts=2),))]


@pytest.mark.requirement("R3")
def test_nacked_entry_waits_takes_no_room_and_comes_again() -> None:
    played = live(1, 2, window=2)
    assert played.feed(moves.Nacked(eid(1), None)) == []
    assert (played.machine.in_flight, played.machine.outstanding, played.machine.room) == (1, 2, 1)
    assert played.feed(moves.Nacked(eid(1), 0)) == []  # says nothing new
    assert played.at(NACK_MS) == [moves.Redeliver((Redelivery(id=eid(1), attempts=2),))]
    assert played.machine.in_flight == 2
    assert sent(played.feed(moves.Redelivered([(eid(1), READY)]))) == [(1, 2)]
    played.feed(moves.Nacked(eid(1), None))
    assert played.at(NACK_MS + 2 * NACK_MS) == [moves.Redeliver((Redelivery(id=eid(1), attempts=3),))]


@pytest.mark.requirement("R3")
def test_reconnect_raises_what_the_client_is_told_and_never_the_attempts() -> None:
    played = Played()
    played.feed(opened(1, pending=1))
    assert sent(played.page(1)) == [(1, 2)]
    assert played.at(ACK_MS) == [moves.Redeliver((Redelivery(id=eid(1), attempts=2),))]
    assert sent(played.feed(moves.Redelivered([(eid(1), READY)]))) == [(1, 3)]


def test_nack_with_a_delay_waits_that_long() -> None:
    played = live(1)
    played.feed(moves.Nacked(eid(1), 5_000))
    assert played.machine.due_ms == ACK_MS
    assert played.at(4_999) == []
    assert kinds(played.at(5_000)) == ["Redeliver"]


@pytest.mark.requirement("R3")
def test_nack_of_the_last_delivery_is_a_dead_letter_at_once() -> None:
    played = live(item(1, attempts=3))
    assert played.feed(moves.Nacked(eid(1), 60_000)) == [moves.GiveUp(eid(1), 3, "nacked", "p1")]
    assert played.feed(moves.Nacked(eid(1), None)) == []
    assert played.feed(moves.Nacked(eid(9), None)) == []


def test_nacked_entry_that_is_due_waits_for_room_and_comes_before_what_is_new() -> None:
    played = live(1, 2, 3, window=3)
    played.feed(moves.Nacked(eid(1), 0))
    played.new(4)
    assert played.at(1) == []
    assert (played.machine.due_ms, played.machine.room) == (ACK_MS, 0)
    played.feed(moves.Acked(ids(2)))
    assert played.machine.due_ms == 0  # at once
    played.feed(moves.Woken())
    assert played.machine.take_read() is None  # the room is owed
    assert played.at(2) == [moves.Redeliver((Redelivery(id=eid(1), attempts=2),))]
    assert played.machine.due_ms == ACK_MS


def test_nacked_entry_that_is_due_waits_for_a_read_that_may_bring_as_much_as_there_is_room() -> None:
    played = live(1, window=1)
    played.feed(moves.Nacked(eid(1), 50))
    played.feed(moves.Woken())
    assert played.machine.take_read() == moves.ReadNew(1, eid(1))
    assert played.at(60) == []
    played.feed(moves.NewItems(items=[]))
    assert kinds(played.at(61)) == ["Redeliver"]


@pytest.mark.parametrize("lost", [[moves.ReadFailed()], [moves.ReattachStarted(), opened(1, pending=1)]])
def test_nacked_entry_that_is_due_does_not_wait_for_a_read_whose_answer_brings_nothing(lost: list[moves.Input]) -> None:
    played = live(1, window=1)
    played.feed(moves.Nacked(eid(1), 50))
    played.feed(moves.Woken())
    assert played.machine.take_read() is not None
    for event in lost:
        played.feed(event)
    assert kinds(played.at(60)) == ["Redeliver"]


@pytest.mark.requirement("R9")
def test_nacked_entries_are_bounded_by_a_second_window() -> None:
    played = live(1, 2, window=2)
    for number in (1, 2):
        played.feed(moves.Nacked(eid(number), 60_000))
    played.new(3, 4)
    played.feed(moves.Nacked(eid(3), 60_000))
    assert (played.machine.in_flight, played.machine.room) == (1, 0)


def test_working_starts_the_ack_time_out_anew() -> None:
    played = live(1, 2)
    played.now_ms = 900
    assert played.feed(moves.Working(ids(1, 9))) == []
    assert played.at(ACK_MS) == [moves.Redeliver((Redelivery(id=eid(2), attempts=2),))]
    assert played.at(1_900) == [moves.Redeliver((Redelivery(id=eid(1), attempts=2),))]


def test_entry_that_expired_is_released_and_dropped_in_place_of_a_redelivery() -> None:
    played = live(item(1, expires_ms=ACK_MS), item(2, expires_ms=ACK_MS + 1))
    assert played.at(ACK_MS) == [
        moves.Release(ids(1), ReleaseReason.EXPIRED),
        moves.Dropped(ids(1), moves.DropReason.EXPIRED),
        moves.Redeliver((Redelivery(id=eid(2), attempts=2),)),
    ]


@pytest.mark.requirement("R2")
def test_node_that_stood_still_counts_no_attempt_for_that() -> None:
    played = live(1)
    played.now_ms = 70_000
    assert played.feed(moves.Stalled(70_000)) == []
    assert played.feed(moves.Clock()) == []
    assert played.machine.due_ms == 71_000
    played.new(2)
    played.feed(moves.Nacked(eid(2), 10))
    assert played.at(70_010) == [moves.Redeliver((Redelivery(id=eid(2), attempts=2),))]
    empty = live()
    empty.feed(moves.Stalled(70_000))
    assert empty.machine.due_ms == NEVER_MS


@pytest.mark.requirement("R1")
def test_entry_that_can_not_be_sent_is_a_dead_letter_until_the_store_has_it_and_never_sent_nor_acked() -> None:
    poison = item(1, payload=None, poison="undecodable")
    played = live()
    assert played.new(poison, 2) == [
        moves.GiveUp(eid(1), 1, "undecodable", None),
        moves.Send((moves.Sending(eid(2), 1, "p2"),)),
    ]
    assert played.feed(moves.AckedUpTo(eid(1))) == []
    played.feed(moves.StepFailed(ids(1)))
    assert played.at(STEP_RETRY_MS - 1) == []
    effects = played.at(STEP_RETRY_MS)
    assert moves.GiveUp(eid(1), 1, "undecodable", None) in effects
    pending = Played()
    pending.feed(opened(1, pending=1))
    assert kinds(pending.page(poison)) == ["GiveUp", "CaughtUp"]


# --- a re-attach with the socket open (D1) ----------------------------------------------------------------------------


@pytest.mark.requirement("R2")
def test_failed_read_wants_a_reattach_and_nothing_is_read_before() -> None:
    played = live()
    played.feed(moves.Woken())
    assert played.machine.take_read() is not None
    assert played.feed(moves.ReadFailed()) == []
    assert (played.machine.reattach_wanted, played.machine.take_read()) == (True, None)
    played.reattach(2, pending=2)
    assert played.machine.wants_read
    assert sent(played.page(1, 2)) == [(1, 1), (2, 1)]  # never sent before
    assert isinstance(played.machine.take_read(), moves.ReadNew)


@pytest.mark.requirement("R2", "R6")
def test_merge_sends_what_nobody_holds_and_not_what_is_held_and_repeats_what_was_acked() -> None:
    played = live(1, 2, 3)
    played.feed(moves.Acked(ids(2)))
    played.reattach(5, pending=5)
    effects = played.page(1, 2, 3, 4, item(5, attempts=2))
    assert effects[0] == moves.Acknowledge(ids(2))
    assert sent(effects) == [(4, 1), (5, 2)]


def test_merge_repeats_a_release_as_the_release_that_it_was() -> None:
    played = live(item(1, skip=ReleaseReason.FILTERED))
    played.reattach(1, pending=1)
    assert moves.Release(ids(1), ReleaseReason.FILTERED) in played.page(trimmed(1))


def test_merge_forgets_what_is_held_and_on_no_page() -> None:
    played = live(1, 2, 3, 4)
    played.reattach(4, pending=2)
    played.page(2, last=False)
    assert played.machine.in_flight == 3
    played.page(3, last=True)
    assert (played.machine.in_flight, played.machine.outstanding) == (2, 2)


def test_merge_that_finds_nothing_pending_forgets_what_the_group_has_handed_out_and_keeps_what_will_come_again() -> (
    None
):
    played = live(1, 2, 3)
    played.reattach(2)
    played.page()
    assert played.machine.in_flight == 1
    assert sent(played.new(3, 4)) == [(4, 1)]


def test_merge_reads_past_what_is_held_even_without_room_and_then_waits() -> None:
    played = live(1, 2, window=2)
    played.reattach(3, pending=3)
    assert played.machine.take_read() == moves.ReadPending(ENTRY_ZERO, 2)
    played.feed(moves.PendingItems(items=[item(1), item(2)], last=False))
    assert played.machine.take_read() is None
    played.feed(moves.Acked(ids(1)))
    assert sent(played.page(3)) == [(3, 1)]


def test_merge_without_room_waits_at_the_first_entry_that_nobody_holds() -> None:
    played = live(2, 3, window=2)
    played.reattach(3, pending=3)
    assert played.page(1, 2, last=False) == []
    assert played.machine.take_read() is None
    played.feed(moves.Acked(ids(2)))
    assert sent(played.page(1, 3)) == [(1, 2)]


def test_trimmed_entry_that_is_held_stays_held_in_a_merge() -> None:
    played = live(1)
    played.reattach(1, pending=1)
    assert played.page(trimmed(1)) == []
    assert played.machine.in_flight == 1


def test_cursor_is_behind_what_a_merge_found_below_what_is_held() -> None:
    played = live(1, 4)
    played.feed(moves.Acked(ids(1)))
    assert played.machine.cursor == eid(1)
    played.reattach(4, pending=3)
    played.page(2, 3, 4)
    assert played.machine.cursor == eid(1)
    played.feed(moves.Acked(ids(2, 3)))
    assert played.machine.cursor == eid(3)


def test_answer_of_a_read_that_was_written_before_the_attach_brings_nothing_but_its_gap() -> None:
    gap = StoreGap(reason=GapReason.TRIMMED, after=None, before=eid(1), count=1)
    played = live()
    played.feed(moves.Woken())
    assert played.machine.take_read() is not None
    played.reattach(0)
    assert played.machine.take_read() is None  # one read at a time
    assert played.feed(moves.NewItems(items=[item(1)], gap=gap)) == [moves.AnnounceGap(gap)]
    assert sent(played.page(1)) == [(1, 1)]
    assert played.machine.take_read() == moves.ReadNew(9, eid(1))


def test_page_that_was_written_before_the_attach_is_read_again() -> None:
    played = Played()
    played.feed(opened(1, pending=1))
    assert played.machine.take_read() is not None
    played.reattach(1, pending=1)
    assert played.feed(moves.PendingItems(items=[item(1)], last=True)) == []
    assert sent(played.page(1)) == [(1, 2)]


@pytest.mark.requirement("R6")
def test_what_an_earlier_connection_may_have_had_is_marked_also_when_the_first_page_was_lost() -> None:
    played = Played()
    played.feed(opened(1, tail=3, pending=2))  # rolled back: what is pending lies above the position
    assert played.machine.take_read() is not None
    played.feed(moves.ReadFailed())
    played.reattach(1, pending=2)
    assert sent(played.page(2, 3)) == [(2, 2), (3, 2)]


@pytest.mark.requirement("R6", "R7")
def test_what_comes_again_from_a_group_made_anew_is_marked() -> None:
    played = live(1, 2)
    played.feed(moves.Acked(ids(1)))
    played.feed(moves.Stored(ids(1)))
    played.reattach(0)
    played.page()
    assert sent(played.new(1, 2, 3)) == [(1, 2), (3, 1)]  # 2 is held


def test_what_earlier_connections_had_is_marked_when_the_group_was_made_anew() -> None:
    played = Played()
    played.feed(opened(2))
    played.reattach(0)
    played.page()
    assert sent(played.new(2, 3)) == [(2, 2), (3, 1)]


def test_what_the_client_says_it_had_is_marked_when_its_group_was_made_anew() -> None:
    played = Played(cursor=eid(2))
    played.feed(opened(0, tail=3))
    assert played.machine.take_read() is not None
    assert sent(played.feed(moves.NewItems(items=[item(2), item(3)]))) == [(2, 2), (3, 1)]


def test_ack_is_repeated_when_the_entry_is_handed_out_anew() -> None:
    played = live(1)
    played.feed(moves.Acked(ids(1)))
    played.reattach(0)
    played.page()
    assert played.new(1) == [moves.Acknowledge(ids(1))]


@pytest.mark.requirement("R7")
def test_rollback_lets_go_of_what_lies_above_it_for_other_events_may_have_those_ids() -> None:
    played = live(1, 2, 3)
    played.feed(moves.Acked(ids(3)))
    played.reattach(1, pending=1, gap=ROLLBACK)
    assert (played.machine.in_flight, played.machine.outstanding, played.machine.cursor) == (1, 1, ENTRY_ZERO)
    played.page(1)
    assert sent(played.new(2, 3)) == [(2, 2), (3, 2)]


def test_reattach_reads_the_pages_also_when_nothing_was_pending_then() -> None:
    played = live()
    assert played.reattach(0) == []
    assert sent(played.page(1)) == [(1, 1)]  # a read that was given up took effect after the attach
    assert played.machine.take_read() == moves.ReadNew(9, eid(1))


# --- the table --------------------------------------------------------------------------------------------------------


def test_input_in_a_phase_that_has_no_place_for_it_is_a_defect() -> None:
    with pytest.raises(IllegalMove, match="NewItems in phase attaching"):
        Played().feed(moves.NewItems(items=[]))
    with pytest.raises(IllegalMove, match="PendingItems in phase live"):
        live().feed(moves.PendingItems(items=[], last=True))


def test_closed_machine_takes_all_and_does_nothing() -> None:
    played = live(1, 2)
    played.feed(moves.Nacked(eid(1), 0))
    assert played.feed(moves.Closed()) == []
    machine = played.machine
    assert (machine.in_flight, machine.outstanding, machine.held_bytes, machine.due_ms) == (0, 0, 0, NEVER_MS)
    assert played.feed(moves.Acked(ids(2))) == played.feed(opened()) == played.at(10**6) == []
    assert machine.take_read() is None


def test_every_input_has_a_place_while_the_session_is_open() -> None:
    every = set(moves.Input.__args__)
    for phase, missing in ((Phase.PENDING, set()), (Phase.LIVE, {moves.PendingItems})):
        assert every - {kind for at, kind in TABLE if at is phase} == missing


def test_operator_can_read_a_machine() -> None:
    assert repr(live(1).machine) == "<Delivery live in_flight=1/10 waiting=0 last_read=1-0 dirty=False>"


def test_what_an_operator_made_dead_letters_leaves_the_window_and_the_client_is_told_of_what_it_was_sent() -> None:
    played = live(1, 2, window=2)
    assert played.feed(moves.DeadLetteredElsewhere(ids(1, 9))) == [
        moves.Dropped(ids(1), moves.DropReason.DEAD_LETTERED)
    ]
    assert (played.machine.in_flight, played.machine.room) == (1, 1)
    assert played.feed(moves.DeadLetteredElsewhere(ids(1))) == []
    assert played.feed(moves.AckedElsewhere(ids(1))) == []


# --- ended elsewhere --------------------------------------------------------------------------------------------------


def shared(number: int, **changes: Any) -> moves.Item:
    return item(number, shared=True, **changes)


def test_what_another_session_released_leaves_the_window_and_the_client_is_told() -> None:
    played = live(shared(1), shared(2), 3, window=3)
    assert played.feed(moves.ReleasedElsewhere(ids(1, 9))) == [moves.Withdrawn(ids(1))]
    assert (played.machine.in_flight, played.machine.room) == (2, 1)
    assert played.feed(moves.ReleasedElsewhere(ids(1))) == []


def test_what_was_nacked_or_is_being_sent_again_is_withdrawn_too() -> None:
    played = live(shared(1), shared(2))
    played.feed(moves.Nacked(eid(1), None))
    played.at(ACK_MS)
    assert played.feed(moves.ReleasedElsewhere(ids(1, 2))) == [moves.Withdrawn(ids(1, 2))]
    assert played.feed(moves.Redelivered([(eid(1), READY), (eid(2), GONE)])) == []


def test_a_read_that_was_carried_out_before_a_release_does_not_bring_it_back() -> None:
    played = live()
    played.feed(moves.Woken())
    played.machine.take_read()
    assert played.feed(moves.ReleasedElsewhere(ids(1))) == []
    effects = played.feed(moves.NewItems(items=[shared(1), shared(2)]))
    assert sent(effects) == [(2, 1)]
    assert (played.machine.in_flight, played.machine.cursor) == (1, eid(1))
    assert sent(played.new(shared(3))) == [(3, 1)]


@pytest.mark.parametrize("ended", [moves.ReleasedElsewhere, moves.AckedElsewhere, moves.DeadLetteredElsewhere])
def test_a_page_that_was_read_before_an_ack_elsewhere_does_not_bring_a_held_entry_back(ended: type[Any]) -> None:
    played = live(shared(1))
    played.reattach(1, pending=1)
    assert isinstance(played.machine.take_read(), moves.ReadPending)
    played.feed(ended(ids(1)))
    effects = played.feed(moves.PendingItems(items=[shared(1)], last=True))
    assert (sent(effects), played.machine.in_flight) == ([], 0)


def test_a_release_that_was_not_heard_of_is_told_when_a_merge_or_a_redelivery_shows_it() -> None:
    merged = live(shared(1), 2)
    merged.reattach(2)
    assert merged.page()[0] == moves.Withdrawn(ids(1))
    redelivered = live(shared(1), 2)
    redelivered.at(ACK_MS)
    assert redelivered.feed(moves.Redelivered([(eid(1), GONE), (eid(2), GONE)])) == [moves.Withdrawn(ids(1))]
    given_up = live(shared(1, attempts=3))
    given_up.at(60_000)
    assert given_up.feed(moves.GivenUp(eid(1), dead=False)) == [moves.Withdrawn(ids(1))]


def test_what_was_released_before_it_was_read_is_released_unsent() -> None:
    played = live()
    skipped = shared(1, skip=ReleaseReason.RELEASED)
    effects = played.new(skipped, shared(2))
    assert (sent(effects), effects[1]) == ([(2, 1)], moves.Release(ids(1), ReleaseReason.RELEASED))


def test_acks_and_releases_carry_the_payloads_that_are_known() -> None:
    played = live(1, item(2, skip=ReleaseReason.FILTERED))
    (acked,) = played.feed(moves.Acked(ids(1, 7)))
    assert isinstance(acked, moves.Acknowledge)
    assert list(acked.payloads) == ["p1", None]
    (_, filtered) = played.new(3, item(4, skip=ReleaseReason.FILTERED))
    assert isinstance(filtered, moves.Release)
    assert list(filtered.payloads) == ["p4"]


def test_a_gap_that_was_told_on_this_connection_is_not_told_again_when_it_is_attached_anew() -> None:
    gap = StoreGap(reason=GapReason.TRIMMED, after=eid(1), before=eid(4), count=2)
    later = StoreGap(reason=GapReason.TRIMMED, after=eid(1), before=eid(9), count=6)
    played = live(1)
    assert kinds(played.new(4, gap=gap))[0] == "AnnounceGap"
    assert played.reattach(4, pending=2, gap=gap) == []
    played.page(1, 4)
    assert played.reattach(4, pending=2, gap=later) == [moves.AnnounceGap(later)]


def test_a_gap_whose_read_was_lost_is_told_by_the_attach_that_follows() -> None:
    gap = StoreGap(reason=GapReason.TRIMMED, after=eid(1), before=eid(4), count=2)
    played = live(1)
    played.feed(moves.Woken())
    played.machine.take_read()
    played.feed(moves.ReadFailed())
    assert played.reattach(4, pending=2, gap=gap) == [moves.AnnounceGap(gap)]
