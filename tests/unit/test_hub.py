"""The hub: who is connected to this node."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from eventbus.ids import ConnectionId, UserId
from gateway.sessions.hub import Hub


@dataclass(frozen=True)
class Seat:
    """A session as the hub knows it."""

    user: UserId
    connection_id: ConnectionId


def seat(user: str, connection: str) -> Seat:
    return Seat(UserId(user), ConnectionId(connection))


def hub_of(*seats: Seat) -> Hub[Seat]:
    hub: Hub[Seat] = Hub()
    for each in seats:
        hub.add(each)
    return hub


@pytest.mark.requirement("R22")
def test_sessions_of_one_user_are_found_and_nobody_elses() -> None:
    phone, laptop, other = seat("ada", "c1"), seat("ada", "c2"), seat("bob", "c3")
    hub = hub_of(phone, laptop, other)
    assert list(hub.of_user(UserId("ada"))) == [phone, laptop]
    assert list(hub.of_user(UserId("bob"))) == [other]
    assert list(hub.of_user(UserId("cyd"))) == []
    assert (len(hub), hub.users) == (3, 2)


def test_session_seated_twice_counts_once() -> None:
    hub = hub_of(seat("ada", "c1"), seat("ada", "c1"))
    assert (len(hub), len(hub.of_user(UserId("ada")))) == (1, 1)


def test_removing_a_session_leaves_the_others_and_no_trace_of_a_user_who_is_gone() -> None:
    phone, laptop = seat("ada", "c1"), seat("ada", "c2")
    hub = hub_of(phone, laptop)
    hub.remove(phone)
    assert list(hub) == [laptop]
    hub.remove(laptop)
    assert (len(hub), hub.users, list(hub)) == (0, 0, [])


def test_removing_a_session_that_is_not_seated_is_no_error() -> None:
    hub = hub_of(seat("ada", "c1"))
    hub.remove(seat("ada", "c2"))
    hub.remove(seat("bob", "c1"))
    assert len(hub) == 1


def test_sessions_may_leave_and_come_while_all_are_walked() -> None:
    seats = [seat("ada", "c1"), seat("ada", "c2"), seat("bob", "c3")]
    hub = hub_of(*seats)
    for index, each in enumerate(hub):
        hub.remove(each)
        hub.add(seat("cyd", f"new{index}"))
    assert hub.users == 1
    assert len(hub) == 3
