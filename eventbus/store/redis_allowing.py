"""Allowances on Redis."""

from __future__ import annotations

from collections.abc import Sequence

from eventbus.ids import UserId
from eventbus.store.allowing import ALLOWANCES_LIFE_MS, Spending
from eventbus.store.answers import whole
from eventbus.store.command import Argument, Command
from eventbus.store.keys import Keys
from eventbus.store.linked import Linked
from eventbus.store.scripts import script

__all__ = ["RedisAllowances", "spend_call"]


class RedisAllowances(Linked):
    """The part of a `RedisStore` for `eventbus.store.allowing`."""

    async def spend(self, user: UserId, spendings: Sequence[Spending]) -> int:
        return await self._call(spend_call(self.keys, user, spendings))


def spend_call(keys: Keys, user: UserId, spendings: Sequence[Spending]) -> Command[int]:
    """The call of spend.lua."""
    words: list[Argument] = [ALLOWANCES_LIFE_MS]
    for one in spendings:
        words += [one.rate, one.capacity, one.cost]
    return Command(("EVALSHA", script("spend").sha, 1, keys.user(user).allowances, *words), whole, scripted=True)
