"""The random mix: which fault comes when, all of it from the seed. Pure but for `random.Random`, which is seeded."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

__all__ = ["Planned", "plan_mix"]

_FIRST_S: Final = 2.0
_BETWEEN_S: Final = (0.8, 5.0)
_LAST_S: Final = 4.0  # so long before the end the last one begins


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A fault to come: when it is due after the begin of the run, and the seed of its own chance."""

    number: int
    at_s: float
    name: str
    seed: str


def plan_mix(seed: int, duration_s: float, weights: Mapping[str, int]) -> list[Planned]:
    """Draws the faults of a run.

    Args:
        seed: the same gives the same faults at the same times, with the same targets and lengths.
        duration_s: of the run.
        weights: fault -> how often it comes beside the others.
    """
    chance = random.Random(seed)
    names, shares = list(weights), list(weights.values())
    planned: list[Planned] = []
    at_s = _FIRST_S
    while at_s < duration_s - _LAST_S:
        [name] = chance.choices(names, shares)
        number = len(planned) + 1
        planned.append(Planned(number=number, at_s=at_s, name=name, seed=f"{seed}/{number}"))
        at_s += chance.uniform(*_BETWEEN_S)
    return planned
