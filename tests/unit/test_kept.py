"""The kept events and how they notice that a primary is another one."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from eventbus.ids import EventId, UserId
from eventbus.publishing.kept import Kept, KeptEvent
from eventbus.store import Append

KEPT_MS = 30_000


def event(name: str, user: str = "ada", size: int = 10) -> Append:
    return Append(user=UserId(user), event=EventId(name), body=b"x" * size)


def names(events: Sequence[KeptEvent]) -> list[str]:
    return [kept.append.event for kept in events]


def make(max_bytes: int = 1_000_000) -> Kept:
    return Kept(kept_ms=KEPT_MS, max_bytes=max_bytes)


def sent_again(kept: Kept, users: Sequence[str], by: str) -> list[str]:
    """What goes before anything new of these users, when that server answers."""
    sent = []
    for user in users:
        while (first := kept.before_new(UserId(user))) is not None:
            sent.append(first)
            assert not kept.stored_again(first, by) or first is sent[0], "a change is told once"
    return names(sent)


@pytest.mark.requirement("R2")
def test_events_that_another_server_answered_for_go_out_again_in_their_order() -> None:
    kept = make()
    for number in range(3):
        assert not kept.stored(event(f"e{number}"), "one", number)
    assert kept.stored(event("e3"), "two", 3) == ["ada"]
    assert sent_again(kept, ["ada"], "two") == ["e0", "e1", "e2"]


def test_events_of_all_users_go_out_again_when_a_new_server_answers_for_one_of_them() -> None:
    kept = make()
    kept.stored(event("a1", "ada"), "one", 0)
    kept.stored(event("b1", "bob"), "one", 1)
    assert kept.stored(event("c1", "cyd"), "two", 2) == ["ada", "bob"]
    assert kept.is_wanting(UserId("ada"))
    assert sent_again(kept, ["ada", "bob", "cyd"], "two") == ["a1", "b1"]
    assert not kept.is_wanting(UserId("ada"))


def test_a_change_is_told_once_when_the_events_are_stored_again() -> None:
    kept = make()
    kept.stored(event("e1"), "one", 0)
    assert kept.stored(event("e2"), "two", 1)
    assert sent_again(kept, ["ada"], "two") == ["e1"]
    assert not kept.stored(event("e3"), "two", 2)
    assert sent_again(kept, ["ada"], "two") == []


def test_a_second_change_sends_again_what_the_first_has_sent_again() -> None:
    kept = make()
    kept.stored(event("e1"), "one", 0)
    kept.stored(event("e2"), "two", 1)
    sent_again(kept, ["ada"], "two")
    kept.stored(event("e3"), "three", 2)
    assert sent_again(kept, ["ada"], "three") == ["e1", "e2"]


@pytest.mark.requirement("R2")
def test_a_change_while_events_are_sent_again_begins_anew_with_the_first() -> None:
    """Whatever server answered for them meanwhile: what the third has is not known."""
    kept = make()
    for number in range(4):
        kept.stored(event(f"e{number}"), "one", number)
    kept.stored(event("e4"), "two", 4)
    for number in range(2):
        first = kept.before_new(UserId("ada"))
        assert first is not None
        assert first.append.event == f"e{number}"
        kept.stored_again(first, "two")
    kept.doubt(5)
    assert sent_again(kept, ["ada"], "three") == ["e0", "e1", "e2", "e3", "e4"]


@pytest.mark.requirement("R2")
def test_a_late_answer_of_the_server_before_has_the_event_sent_again() -> None:
    kept = make()
    kept.stored(event("e1"), "one", 0)
    began = kept.doubts
    kept.doubt(1)
    assert sent_again(kept, ["ada"], "two") == ["e1"]
    kept.stored(event("e2"), "one", 2, began)
    assert kept.is_wanting(UserId("ada")), "also when nothing new is published"
    assert "e2" in sent_again(kept, ["ada"], "two")
    assert not kept.is_wanting(UserId("ada"))


def test_the_first_server_coming_back_is_a_change_for_every_user() -> None:
    kept = make()
    kept.stored(event("a1", "ada"), "one", 0)
    assert kept.stored(event("b1", "bob"), "two", 1) == ["ada"]
    assert sent_again(kept, ["ada"], "two") == ["a1"]
    assert kept.stored(event("c1", "cyd"), "one", 2) == ["ada", "bob"]
    assert sent_again(kept, ["ada", "bob"], "one") == ["a1", "b1"]


def test_servers_that_answer_for_different_users_at_one_time_are_no_change() -> None:
    kept = make()
    kept.stored(event("a1", "ada"), "one", 0)
    kept.stored(event("b1", "bob"), "two", 1)
    sent_again(kept, ["ada"], "one")  # a server not seen before: asked once, harmless
    for number in range(10):
        assert not kept.stored(event(f"a{number}", "ada"), "one", 2)
        assert not kept.stored(event(f"b{number}", "bob"), "two", 2)


def test_a_user_moved_to_a_known_server_has_only_the_own_events_sent_again() -> None:
    kept = make()
    kept.stored(event("a1", "ada"), "one", 0)
    kept.stored(event("a2", "ada"), "one", 0)
    kept.stored(event("b1", "bob"), "two", 1)
    sent_again(kept, ["ada"], "one")
    kept.stored(event("c1", "cyd"), "one", 1)
    assert kept.stored(event("a3", "ada"), "two", 2) == ["ada"]
    assert sent_again(kept, ["ada", "bob", "cyd"], "two") == ["a1", "a2"]


def test_events_are_let_go_when_their_time_is_over() -> None:
    kept = make()
    kept.stored(event("old"), "one", 0)
    kept.stored(event("new"), "one", KEPT_MS)
    assert len(kept) == 2
    kept.expire(KEPT_MS + 1)
    assert (len(kept), kept.overflow) == (1, 0)
    kept.expire(3 * KEPT_MS)
    assert (len(kept), kept.bytes, kept.overflow) == (0, 0, 0)


def test_more_than_the_bytes_allow_lets_the_oldest_go_and_counts_them() -> None:
    kept = make(max_bytes=5_000)
    for number in range(10):
        kept.stored(event(f"e{number}", size=1_000), "one", number)
    assert kept.bytes <= 5_000
    assert kept.overflow == 10 - len(kept) > 0
    kept.stored(event("last", size=0), "two", 10)
    assert sent_again(kept, ["ada"], "two")[-1] == "e9"


def test_nothing_is_kept_where_the_setting_is_zero() -> None:
    kept = Kept(kept_ms=0, max_bytes=1_000)
    kept.stored(event("e1"), "one", 0)
    assert not kept.stored(event("e2"), "two", 0)
    assert len(kept) == 0


def test_an_event_that_expired_while_it_was_sent_again_is_not_counted_twice() -> None:
    kept = make()
    kept.stored(event("e1"), "one", 0)
    kept.stored(event("e2"), "one", KEPT_MS)
    kept.stored(event("e3"), "two", KEPT_MS)
    first = kept.before_new(UserId("ada"))
    assert first is not None
    kept.expire(KEPT_MS + 1)
    assert not kept.stored_again(first, "two")
    assert sent_again(kept, ["ada"], "two") == ["e2"]
    kept.expire(10 * KEPT_MS)
    assert (len(kept), kept.bytes) == (0, 0)


def test_an_event_whose_time_is_over_before_it_was_sent_again_is_told() -> None:
    late: list[KeptEvent] = []
    kept = Kept(kept_ms=KEPT_MS, max_bytes=1_000_000, on_late=late.append)
    for number in range(3):
        kept.stored(event(f"e{number}"), "one", number)
    kept.stored(event("e3"), "two", KEPT_MS)
    kept.expire(KEPT_MS + 1)
    assert names(late) == ["e0"]
    assert sent_again(kept, ["ada"], "two") == ["e1", "e2"]
    kept.expire(10 * KEPT_MS)
    assert names(late) == ["e0"], "what has been sent again may go"


def test_what_was_refused_for_good_is_passed_over() -> None:
    kept = make()
    for number in range(3):
        kept.stored(event(f"e{number}"), "one", 0)
    kept.doubt(1)
    first = kept.before_new(UserId("ada"))
    assert first is not None
    first.refused = True
    assert sent_again(kept, ["ada"], "two") == ["e1", "e2"]


def test_after_a_doubt_the_oldest_event_of_each_user_is_to_be_checked_once() -> None:
    kept = make()
    for name, user in [("a1", "ada"), ("a2", "ada"), ("b1", "bob")]:
        kept.stored(event(name, user), "one", 0)
    assert kept.before_new(UserId("ada")) is None
    kept.doubt(1)
    assert sent_again(kept, ["ada"], "one") == ["a1"]
    assert kept.before_new(UserId("ada")) is None
    assert kept.before_new(UserId("cyd")) is None
    assert kept.before_new(UserId("bob")) is not None


def test_a_check_that_came_to_nothing_is_made_again() -> None:
    kept = make()
    kept.stored(event("a1"), "one", 0)
    kept.doubt(1)
    assert kept.before_new(UserId("ada")) is not None
    assert kept.before_new(UserId("ada")) is not None, "no answer has come"


def test_an_answer_to_a_later_call_ends_the_doubt_and_one_to_an_earlier_call_does_not() -> None:
    kept = make()
    kept.stored(event("a1", "ada"), "one", 0)
    kept.stored(event("b1", "bob"), "one", 0)
    earlier = kept.doubts
    kept.doubt(1)
    kept.trust("one", earlier)
    assert kept.before_new(UserId("ada")) is not None
    kept.trust("one", kept.doubts)
    assert kept.before_new(UserId("bob")) is None


def test_a_second_doubt_trusts_nobody_again() -> None:
    kept = make()
    kept.stored(event("a1", "ada"), "one", 0)
    kept.doubt(1)
    kept.trust("one", kept.doubts)
    kept.doubt(2)
    assert kept.before_new(UserId("ada")) is not None


@pytest.mark.requirement("R2")
def test_an_event_whose_call_began_before_a_doubt_is_checked_although_it_was_answered_after_it() -> None:
    """A primary that was replaced still answered: what it said counts for nothing there."""
    kept = make()
    began = kept.doubts
    kept.doubt(1)
    kept.stored(event("a1"), "one", 2, began)
    kept.stored(event("b1", "bob"), "one", 2, kept.doubts)
    assert kept.before_new(UserId("ada")) is not None
    assert kept.before_new(UserId("bob")) is None


@pytest.mark.requirement("R2")
def test_when_the_oldest_event_has_gone_since_the_doubt_the_next_of_its_user_is_checked() -> None:
    kept = make()
    kept.stored(event("e1"), "one", 0)
    kept.stored(event("b1", "bob"), "one", 1)
    kept.stored(event("e2"), "one", KEPT_MS - 1)
    kept.stored(event("b2", "bob"), "one", KEPT_MS - 1)
    kept.doubt(KEPT_MS - 1)
    kept.expire(KEPT_MS + 10)  # the store is away for longer than the oldest event is kept
    assert sent_again(kept, ["ada", "bob", "ada"], "one") == ["e2", "b2"]
