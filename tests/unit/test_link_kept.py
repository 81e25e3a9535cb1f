"""The kept events of a publisher whose store says which primary has which user (D6)."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from eventbus.ids import EventId, UserId
from eventbus.kept import Kept, KeptEvent
from eventbus.store import Append

ADA, BOB = UserId("ada"), UserId("bob")


class Primaries:
    """Who has whom now."""

    def __init__(self) -> None:
        self.of: dict[UserId, str] = {ADA: "one", BOB: "two"}
        self.kept = Kept(kept_ms=30_000, max_bytes=1_000_000, primary_of=lambda user: self.of[user])

    def stored(self, name: str, user: UserId, now_ms: int = 0) -> list[str]:
        event = Append(user=user, event=EventId(name), body=b"x")
        return names(self.kept.stored(event, self.of[user], now_ms))


def names(events: Sequence[KeptEvent]) -> list[str]:
    return [kept.append.event for kept in events]


@pytest.mark.requirement("R2")
def test_what_another_server_has_now_goes_out_again_though_nothing_is_published() -> None:
    world = Primaries()
    for number in range(3):
        world.stored(f"a{number}", ADA)
        world.stored(f"b{number}", BOB)
    assert names(world.kept.moved()) == []
    world.of[ADA] = "three"
    assert names(world.kept.moved()) == ["a0", "a1", "a2"]


def test_nothing_goes_out_while_no_server_is_known() -> None:
    world = Primaries()
    world.stored("a", ADA)
    world.of[ADA] = ""
    assert names(world.kept.moved()) == []


def test_several_primaries_are_no_change() -> None:
    """Each answers for its own users: the first answer of the second says nothing of the first."""
    world = Primaries()
    assert world.stored("a", ADA) == []
    assert world.stored("b", BOB) == []
    assert world.stored("a2", ADA) == []


def test_failover_of_one_primary_concerns_its_users_alone() -> None:
    world = Primaries()
    world.stored("a", ADA)
    world.stored("b", BOB)
    world.of[ADA] = "three"
    assert world.stored("a2", ADA) == ["a"]


def test_after_a_loss_an_event_is_checked_unless_its_server_is_there_again() -> None:
    world = Primaries()
    world.stored("a", ADA)
    world.stored("b", BOB)
    world.kept.doubt(1)
    world.of[ADA] = ""
    assert world.kept.to_check(BOB) is None, "the same server, connected again, has all it had"
    checked = world.kept.to_check(ADA)
    assert checked is not None
    assert checked.append.event == "a"


def test_server_that_answers_for_others_is_not_trusted_with_a_user_who_is_elsewhere_now() -> None:
    world = Primaries()
    world.stored("a", ADA)
    world.kept.doubt(1)
    world.of[ADA] = "two"
    world.kept.trust("one", world.kept.doubts)
    assert world.kept.to_check(ADA) is not None
