"""Hypothesis walks the delivery machine of a session through connections that crash, calls whose answers are lost,
time-outs, and every kind of client, and holds it to the guarantees after each step.

A step does one thing and then lets the node get on for a few turns; what fails, crashes or is late does so in between.
The steps are a list and no `RuleBasedStateMachine`: that one leaves half of the rules out of each walk, and a session
without reads, or without time, gets nowhere.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.property.delivery_world import World

Act = Callable[[World, int, int], object]

# What may happen, with two small numbers to choose by, and how often it does. An ack takes up to three at once.
ACTS: dict[str, tuple[int, Act]] = {
    "get on": (6, lambda world, a, b: [world.turn(b * turn) for turn in range(a)]),
    "publish": (8, lambda world, a, b: world.publish(1 + a % 5, woken=b % 4 > 0)),
    "publish filtered": (1, lambda world, a, b: world.publish(kind="filtered")),
    "publish poison": (2, lambda world, a, b: world.publish(kind="poison")),
    "publish expiring": (1, lambda world, a, b: world.publish(kind="expiring", life_ms=(1, 900, 2_500)[a % 3])),
    "publish shared": (3, lambda world, a, b: world.publish(1 + a % 2, kind="shared")),
    "others ack": (4, lambda world, a, b: world.others_ack(a, tells=b % 2 > 0)),
    "others ack under a read": (3, lambda world, a, b: world.others_ack_under_a_read(a)),
    "hear": (2, lambda world, a, b: world.hear()),
    "ack": (5, lambda world, a, b: world.ack(world.owed[a % 4 : a % 4 + 1 + b % 3])),
    "ack all": (5, lambda world, a, b: world.ack_all()),
    "ack up to": (2, lambda world, a, b: world.ack_up_to(a)),
    "ack again": (1, lambda world, a, b: world.ack_again(a)),
    "ack elsewhere": (1, lambda world, a, b: world.ack_elsewhere(a, tells=b % 2 > 0)),
    "nack": (4, lambda world, a, b: world.nack(a, (None, 0, 300, 5_000)[b % 4])),
    "work": (1, lambda world, a, b: world.work(a)),
    "advance": (2, lambda world, a, b: world.advance((1, 100, 500, 1_300)[a % 4])),
    "advance to what is due": (4, lambda world, a, b: world.advance_to_what_is_due()),
    "stall": (1, lambda world, a, b: world.stall((5_000, 60_000)[a % 2])),
    "write read": (2, lambda world, a, b: world.write_read()),
    "execute read": (4, lambda world, a, b: world.execute_read()),
    "publish under a read": (2, lambda world, a, b: world.publish_under_a_read(1 + a % 2)),
    "lose read": (2, lambda world, a, b: world.fail_read(late=a % 2 > 0)),
    "lose a whole read": (2, lambda world, a, b: world.lose_read(executed=b % 2 > 0)),
    "late read": (1, lambda world, a, b: world.carry_out_late_read()),
    "execute call": (1, lambda world, a, b: world.carry_out(a)),
    "answer call": (2, lambda world, a, b: world.answer_call(a)),
    "fail call": (3, lambda world, a, b: world.fail_call(a)),
    "left behind": (1, lambda world, a, b: world.carry_out_what_was_left_behind()),
    "reattach": (3, lambda world, a, b: world.reattach()),
    "sweep": (1, lambda world, a, b: world.sweep()),
    "execute attach": (1, lambda world, a, b: world.execute_attach()),
    "lose attach": (1, lambda world, a, b: world.lose_attach()),
    "answer attach": (1, lambda world, a, b: world.answer_attach()),
    "connect": (2, lambda world, a, b: world.connect(1 + a % 6)),
    "change window": (1, lambda world, a, b: world.change_window(1 + a % 6)),
    "trim": (2, lambda world, a, b: world.trim(1 + a)),
    "trim while away": (2, lambda world, a, b: world.trim_while_away(a)),
    "lose group": (1, lambda world, a, b: world.lose_group()),
    "fail over": (1, lambda world, a, b: world.fail_over(a % 4, clock_behind=b % 2 > 0)),
}

# After these more may come again than else, so half of the walks go without.
DISASTERS = {"late read", "lose group", "fail over"}


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that happens, and how many turns the node has after it."""

    act: str
    a: int
    b: int
    turns: int


STEPS = st.builds(
    Step,
    act=st.sampled_from([act for act, (often, _) in ACTS.items() for _ in range(often)]),
    a=st.integers(0, 7),
    b=st.integers(0, 7),
    turns=st.sampled_from([0, 0, 1, 1, 2, 4]),
)


@dataclass(frozen=True, slots=True)
class Walk:
    """A whole walk."""

    steps: Sequence[Step]
    max_deliveries: int
    window: int
    disasters: bool
    acks_at_last: bool


def walks(steps: int) -> st.SearchStrategy[Walk]:
    """Walks of about so many steps."""
    return st.builds(
        Walk,
        steps=st.lists(STEPS, min_size=steps // 2, max_size=steps),
        max_deliveries=st.integers(3, 4),
        window=st.integers(1, 6),
        disasters=st.booleans(),
        acks_at_last=st.booleans(),
    )


def walked(walk: Walk) -> Counter[str]:
    """Walks, judges all the way, and lets it end well. Returns what was seen."""
    world = World(max_deliveries=walk.max_deliveries, window=walk.window)
    for step in walk.steps:
        if step.act in DISASTERS and not walk.disasters:
            continue
        ACTS[step.act][1](world, step.a, step.b)
        world.judge_state(world.at)
        for _ in range(step.turns):
            world.turn(step.b)
        world.judge_state(world.at)
    world.settle(acks=walk.acks_at_last)
    return world.seen


@pytest.mark.requirement("R1", "R2", "R3", "R6", "R7", "R9")
@settings(max_examples=400, suppress_health_check=list(HealthCheck))
@given(walk=walks(steps=100))
def test_nothing_is_lost_reordered_or_sent_twice_unmarked_whatever_fails(walk: Walk) -> None:
    walked(walk)


@pytest.mark.soak
@pytest.mark.requirement("R1", "R2", "R3", "R6", "R7", "R9")
@settings(max_examples=20_000, suppress_health_check=list(HealthCheck))
@given(walk=walks(steps=200))
def test_nothing_is_lost_reordered_or_sent_twice_unmarked_in_long_walks(walk: Walk) -> None:
    walked(walk)
