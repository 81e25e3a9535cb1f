"""What all lanes hold together is bounded, and one lane can not take the room of the others."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.delivery.room import Place, Room


def test_one_that_fills_the_room_leaves_each_other_a_little() -> None:
    room = Room(100, 10)
    greedy, modest = Place(room), Place(room)
    while greedy.take(7):
        pass
    assert 93 < greedy.held <= 100
    assert [modest.take(5), modest.take(5), modest.take(1)] == [True, True, False]
    modest.give_back(5)
    assert modest.take(3)
    assert modest.held_by_all == greedy.held + 8


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 40), st.booleans()), max_size=200),
)
def test_all_hold_no_more_than_the_room_and_what_is_each_ones_own(steps: list[tuple[int, int, bool]]) -> None:
    room = Room(100, 10)
    places = [Place(room) for _ in range(4)]
    for number, weight, takes in steps:
        place = places[number]
        if takes:
            place.take(weight)
        elif weight <= place.held:
            place.give_back(weight)
        assert room.held == sum(one.held for one in places)
        assert room.held <= 100 + 4 * 10
        assert all(one.held >= 0 for one in places)
