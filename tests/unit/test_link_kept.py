"""The kept events of a publisher whose store says which primary has which user (D6)."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from eventbus.ids import EventId, UserId
from eventbus.publishing.kept import Kept
from eventbus.store import Append

ADA, BOB = UserId("ada"), UserId("bob")


class Primaries:
    """Who has whom now."""

    def __init__(self) -> None:
        self.of: dict[UserId, str] = {ADA: "one", BOB: "two"}
        self.kept = Kept(kept_ms=30_000, max_bytes=1_000_000, primary_of=lambda user: self.of[user])

    def stored(
        self, name: str, user: UserId, now_ms: int = 0, by: str | None = None, doubts: int | None = None
    ) -> Sequence[UserId]:
        event = Append(user=user, event=EventId(name), body=b"x")
        return self.kept.stored(event, by or self.of[user], now_ms, doubts)

    def sent_again(self, *users: UserId) -> list[str]:
        """What goes before anything new of these users, answered by who has them."""
        sent: list[str] = []
        for user in users:
            while (first := self.kept.before_new(user)) is not None:
                sent.append(first.append.event)
                self.kept.stored_again(first, self.of[user] or "three")
        return sent


@pytest.mark.requirement("R2")
def test_what_another_server_has_now_goes_out_again_though_nothing_is_published() -> None:
    world = Primaries()
    for number in range(3):
        world.stored(f"a{number}", ADA)
        world.stored(f"b{number}", BOB)
    assert world.kept.moved() == []
    world.of[ADA] = "three"
    assert world.kept.moved() == [ADA]
    assert world.kept.is_wanting(ADA)
    assert world.sent_again(ADA, BOB) == ["a0", "a1", "a2"]


def test_what_is_being_sent_again_is_sent_once_however_often_it_is_looked_after() -> None:
    """A Cluster tells of each slot that moves and of each connection."""
    world = Primaries()
    for number in range(3):
        world.stored(f"a{number}", ADA)
    world.of[ADA] = "three"
    sent = []
    assert world.kept.moved() == [ADA]
    while (first := world.kept.before_new(ADA)) is not None:
        assert world.kept.moved() == [], "it is known already"
        sent.append(first.append.event)
        world.kept.stored_again(first, "three")
        assert world.kept.moved() == []
    assert sent == ["a0", "a1", "a2"]


def test_nothing_goes_out_while_no_server_is_known() -> None:
    world = Primaries()
    world.stored("a", ADA)
    world.of[ADA] = ""
    assert world.kept.moved() == []


def test_several_primaries_are_no_change() -> None:
    """Each answers for its own users: the first answer of the second says nothing of the first."""
    world = Primaries()
    assert not world.stored("a", ADA)
    assert not world.stored("b", BOB)
    assert not world.stored("a2", ADA)
    assert world.sent_again(ADA, BOB) == []


def test_failover_of_one_primary_concerns_its_users_alone() -> None:
    world = Primaries()
    world.stored("a", ADA)
    world.stored("b", BOB)
    world.of[ADA] = "three"
    assert list(world.stored("a2", ADA)) == [ADA]
    assert world.sent_again(ADA, BOB) == ["a"]


def test_after_a_loss_an_event_is_checked_unless_its_server_is_there_again() -> None:
    world = Primaries()
    world.stored("a", ADA)
    world.stored("b", BOB)
    world.kept.doubt(1)
    world.of[ADA] = ""
    assert world.kept.before_new(BOB) is None, "the same server, connected again, has all it had"
    checked = world.kept.before_new(ADA)
    assert checked is not None
    assert checked.append.event == "a"


def test_server_that_answers_for_others_is_not_trusted_with_a_user_who_is_elsewhere_now() -> None:
    world = Primaries()
    world.stored("a", ADA)
    world.kept.doubt(1)
    world.of[ADA] = "two"
    world.kept.trust("one", world.kept.doubts)
    assert world.kept.before_new(ADA) is not None


@pytest.mark.requirement("R2")
def test_answer_of_a_server_that_was_replaced_meanwhile_has_the_event_sent_to_the_one_that_has_the_user() -> None:
    """Also when the user publishes nothing more, and the look at what was kept is over."""
    world = Primaries()
    began = world.kept.doubts
    world.kept.doubt(1)
    world.of[ADA] = "three"
    assert world.kept.moved() == []
    assert list(world.stored("a", ADA, by="one", doubts=began)) == [ADA]
    assert world.kept.is_wanting(ADA)
    assert world.sent_again(ADA) == ["a"]


@pytest.mark.requirement("R2")
def test_user_whose_server_is_not_connected_is_checked_though_the_one_before_answers_for_others() -> None:
    """A slot that moved to a server that had none so far: nothing stands there until its connection does."""
    world = Primaries()
    world.stored("a", ADA)
    world.kept.doubt(1)
    world.of[ADA] = ""
    world.kept.trust("one", world.kept.doubts)
    assert world.sent_again(ADA) == ["a"]


def test_answer_by_way_of_another_server_is_no_endless_change() -> None:
    """A slot on its way (ASK): the one that has the user leaves the answer to another."""
    world = Primaries()
    for number in range(3):
        world.stored(f"a{number}", ADA, by="two")
    world.kept.doubt(1)
    sent = []
    while (first := world.kept.before_new(ADA)) is not None:
        sent.append(first.append.event)
        world.kept.stored_again(first, "two")
    assert sent == ["a0"]
