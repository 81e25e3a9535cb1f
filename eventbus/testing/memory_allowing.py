"""Allowances in memory."""

from __future__ import annotations

from collections.abc import Sequence

from eventbus.ids import UserId
from eventbus.store.allowing import Spending
from eventbus.testing.memory_base import MemoryBase

__all__ = ["MemoryAllowances"]


class MemoryAllowances(MemoryBase):
    """The part of a `MemoryStore` for `eventbus.store.allowing`."""

    async def spend(self, user: UserId, spendings: Sequence[Spending]) -> int:
        async with self._call():
            now_ms = self.clock.now_ms()
            known = self._allowances.get(user, {})
            wait_ms, left = 0, dict(known)
            for number, one in enumerate(spendings):
                # In thousandths: one a second is one of them a millisecond.
                capacity, cost = one.capacity * 1000, one.cost * 1000
                level, at_ms = known.get(number, (capacity, now_ms))
                level = min(capacity, level + max(0, now_ms - at_ms) * one.rate)
                wait_ms = max(wait_ms, -(-(min(cost, capacity) - level) // one.rate))
                left[number] = max(0, level - cost), now_ms
            if wait_ms == 0:
                self._allowances[user] = left
            return wait_ms
