"""What a user may still do, kept for the whole cluster: records and a Protocol. Pure.

An allowance is a token bucket: it grows at a steady rate up to its capacity, and what is done is taken out of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from eventbus.ids import UserId

__all__ = ["ALLOWANCES_LIFE_MS", "AllowStore", "Spending"]

ALLOWANCES_LIFE_MS: Final = 60 * 60_000
"""A user who has done nothing for so long has full allowances, however slowly they grow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spending:
    """What is to be taken out of one allowance.

    Attributes:
        rate: what it grows by in a second, at least 1.
        capacity: the most that is in it; that much is in it at first.
        cost: what is taken. More than the capacity takes all of a full one.
    """

    rate: int
    capacity: int
    cost: int


class AllowStore(Protocol):
    """Allowances of users."""

    async def spend(self, user: UserId, spendings: Sequence[Spending]) -> int:
        """Takes each spending out of its allowance, or nothing at all. The place in the sequence names the allowance.

        Returns 0 when it was taken; else in how many milliseconds it can be, if nobody else takes. Not idempotent: a
        call whose answer was lost and is made again may take twice. Redis: EVALSHA spend.lua.
        """
