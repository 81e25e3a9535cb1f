"""Behind Sentinels: who is the primary, and who has just been told to be the next one.

Sentinels name the new primary up to a second after they have made it one, for they ask it first. The one that leads
the failover says at once whom it has told (`eventbus.store.heralds`). That server is asked here, and when it says that
it is the primary it is taken for it, on trust, until the Sentinels name it too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from eventbus.store.endpoint import Endpoint
from eventbus.store.finding import find_primary, is_primary
from eventbus.store.heralds import Heralds
from eventbus.store.topology import Address
from eventbus.store.whereabouts import Whereabouts

__all__ = ["Succession"]

# A server that was told to be the primary is one at once, or never.
_PROMISE_LIFE_S: Final = 2.0


class Succession:
    """Finds the primary.

    Args:
        where: what is known; it is corrected here.
        moved: called with the primary before, None if there was none, when another is found.
        seek: has `find` called again soon.
        name: how its connections call themselves in CLIENT LIST.
        timeout_s: longest wait for an answer.
    """

    def __init__(
        self,
        where: Whereabouts,
        *,
        moved: Callable[[Address | None], object],
        seek: Callable[[], object],
        name: str,
        timeout_s: float,
    ) -> None:
        self._where = where
        self._moved = moved
        self._seek = seek
        self._timeout_s = timeout_s
        self._heralds = Heralds(
            where.target.sentinels, where.target.service, self._hear, name=name, timeout_s=timeout_s
        )
        self._told_by: Endpoint | None = None
        self._promised: Address | None = None
        self._promised_s = 0.0

    def start(self) -> None:
        """Listen to the Sentinels; call it in the event loop."""
        self._heralds.start()

    async def aclose(self) -> None:
        """End it; safe to call twice."""
        await self._heralds.aclose()

    async def find(self) -> Address:
        """Where the primary is.

        Raises:
            StoreUnavailable: that could not be found out.
        """
        where, loop = self._where, asyncio.get_running_loop()
        told_by, self._told_by = self._told_by, None
        if (promised := self._promised_at(loop.time())) is not None:
            if not await is_primary(where.endpoint(promised), timeout_s=self._timeout_s):
                self._seek()
            elif self._promised == promised:
                self._promised = None
                self._locate(promised)
                where.trust(loop.time())
                return promised
        target = where.target
        epoch, found = await find_primary(target.sentinels, target.service, timeout_s=self._timeout_s, told_by=told_by)
        before = where.located
        if found != before and before is not None and where.is_late(epoch, loop.time()):
            # These have not heard of the failover yet. The old primary, thawed, would take what it is to lose.
            return before
        self._locate(found)
        where.confirm(epoch, loop.time())
        return found

    def _hear(self, sentinel: Endpoint, promised: Address | None) -> None:
        """A Sentinel tells of a change."""
        self._told_by = sentinel
        if promised is not None:
            self._promised, self._promised_s = promised, asyncio.get_running_loop().time()
        self._seek()

    def _promised_at(self, now_s: float) -> Address | None:
        """The server that was told a moment ago to be the primary, and is not known as that yet."""
        located = self._where.located
        if located in (None, self._promised) or now_s - self._promised_s > _PROMISE_LIFE_S:
            self._promised = None
        return self._promised

    def _locate(self, found: Address) -> None:
        before, self._where.located = self._where.located, found
        if before != found:
            self._moved(before)
