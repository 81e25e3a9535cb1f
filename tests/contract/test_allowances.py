"""Allowances of users, over every store."""

from __future__ import annotations

import asyncio

import pytest

from eventbus.ids import UserId
from eventbus.store.allowing import Spending
from tests.contract.worlds import ALICE, World

BOB = UserId("bob")
pytestmark = pytest.mark.requirement("R23")


def spending(cost: int, *, rate: int = 1, capacity: int = 10) -> Spending:
    return Spending(rate=rate, capacity=capacity, cost=cost)


async def test_an_allowance_begins_full_and_gives_no_more_than_it_has(world: World) -> None:
    taken = [await world.store.spend(ALICE, [spending(4)]) for _ in range(3)]

    assert taken[:2] == [0, 0]
    assert 1_000 <= taken[2] <= 2_000, "two of the four are there, and the others come one a second"
    assert await world.store.spend(ALICE, [spending(2)]) == 0, "what was refused took nothing"


async def test_the_wait_is_as_long_as_it_says(world: World) -> None:
    slow = spending(1, rate=10, capacity=1)
    assert await world.store.spend(ALICE, [slow]) == 0
    wait_ms = await world.store.spend(ALICE, [slow])
    assert 0 < wait_ms <= 100

    await world.pass_time(wait_ms + 1)

    assert await world.store.spend(ALICE, [slow]) == 0


async def test_of_several_allowances_each_is_taken_from_or_none(world: World) -> None:
    assert await world.store.spend(ALICE, [spending(1), spending(10)]) == 0
    assert await world.store.spend(ALICE, [spending(1), spending(10)]) > 0
    # The first has nine left, all of which are there.
    assert await world.store.spend(ALICE, [spending(9), spending(0)]) == 0


async def test_more_than_the_capacity_takes_all_of_a_full_allowance(world: World) -> None:
    assert await world.store.spend(ALICE, [spending(1_000)]) == 0
    assert 9_000 < await world.store.spend(ALICE, [spending(1_000)]) <= 10_000


async def test_users_have_allowances_of_their_own(world: World) -> None:
    assert await world.store.spend(ALICE, [spending(10)]) == 0
    assert await world.store.spend(ALICE, [spending(10)]) > 0
    assert await world.store.spend(BOB, [spending(10)]) == 0


async def test_callers_at_once_get_together_what_one_gets(world: World) -> None:
    answers = await asyncio.gather(*(world.store.spend(ALICE, [spending(1, capacity=20)]) for _ in range(50)))
    assert answers.count(0) in (20, 21), "a second may pass meanwhile"


async def test_an_allowance_that_shrank_holds_no_more_than_it_may(world: World) -> None:
    assert await world.store.spend(ALICE, [spending(1, capacity=1_000)]) == 0
    assert await world.store.spend(ALICE, [spending(10, capacity=10)]) == 0
    assert await world.store.spend(ALICE, [spending(1, capacity=10)]) > 0
