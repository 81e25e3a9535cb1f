"""What every open console shows of the whole: looked up once for all of them, and only while one is open."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from eventbus import inspection, watched
from eventbus.breach import operator_object
from eventbus.clock import Clock
from eventbus.counting import overall_rates
from eventbus.errors import StoreError
from eventbus.ids import EntryId
from eventbus.store import Store
from gateway.admin.looking import plain_of, rates_object
from gateway.console.latency import Sampler

__all__ = ["TOLD_KEPT", "Figures", "Look"]

_PAUSE_MIN_MS: Final = 1_000
_PAUSE_MAX_MS: Final = 5_000
_PAUSE_FACTOR: Final = 50
"""After a look comes a pause of so many times its length, up to the longest: what is slow is asked less often, and a
console costs its node and Redis about a fiftieth of their time at the most.
"""

TOLD_KEPT: Final = 50
"""Events for operators that are kept for the next feed."""

_TOLD_SINCE_MS: Final = 24 * 60 * 60_000
_TOLD_AT_LEAST_MS: Final = 30_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What a look found.

    Attributes:
        number: counts the looks.
        figures: the object that the page is sent.
        told: the newest events for operators, the newest last.
    """

    number: int
    figures: dict[str, Any]
    told: Sequence[dict[str, Any]]


class Figures:
    """Looks at the installation as a whole for whoever asks, and between two looks whether the store still answers.

    Args:
        store: what is looked at.
        clock: of this process.
        partitions: of the installation.
    """

    def __init__(self, store: Store, clock: Clock, *, partitions: int) -> None:
        self._store = store
        self._clock = clock
        self._partitions = partitions
        self._sampler = Sampler(store, partitions)
        self._turn = asyncio.Lock()
        self._due_ms = self._asked_ms = 0
        self._last: Look | StoreError | None = None
        self._number = 0
        self._seen: dict[int, EntryId] = {}
        self._told: deque[dict[str, Any]] = deque(maxlen=TOLD_KEPT)
        self._told_count = -1
        self._told_ms = 0

    async def newest(self) -> Look:
        """The last look, or a new one when its time has come.

        Raises:
            StoreError: the last look failed.
        When cancelled, the next who asks looks.
        """
        async with self._turn:
            begun_ms = self._clock.monotonic_ms()
            last = self._last
            if last is None or begun_ms >= self._asked_ms + _PAUSE_MIN_MS:
                try:
                    if isinstance(last, Look) and begun_ms < self._due_ms:
                        await self._store.ping()
                    else:
                        last = await self._take()
                        took_ms = self._clock.monotonic_ms() - begun_ms
                        self._due_ms = begun_ms + took_ms + min(took_ms * _PAUSE_FACTOR, _PAUSE_MAX_MS)
                except StoreError as error:
                    last = error
                self._last, self._asked_ms = last, self._clock.monotonic_ms()
        if isinstance(last, StoreError):
            raise last.with_traceback(None)  # else each who asks makes its traceback longer
        return last

    async def _take(self) -> Look:
        begun_ms = self._clock.monotonic_ms()
        await self._store.ping()
        ping_ms = self._clock.monotonic_ms() - begun_ms
        found = await inspection.overview(self._store, partitions=self._partitions)
        rates = await overall_rates(self._store, partitions=self._partitions)
        latency = await self._sampler.sample(found.now_ms)
        await self._listen(found.operator_events, found.now_ms)
        figures = {
            **plain_of(found),
            "rates": rates_object(rates),
            "by_type": {name: rates_object(one) for name, one in rates.by_type.items()},
            "latency": plain_of(latency),
            "ping_ms": ping_ms,
        }
        self._number += 1
        return Look(number=self._number, figures=figures, told=list(self._told))

    async def _listen(self, count: int, now_ms: int) -> None:
        """Reads what operators were told since; not while nothing seems to have come, for it is a look at each
        partition. The number can stand still while old ones leave, so sometimes it looks all the same.
        """
        if count == self._told_count and now_ms - self._told_ms < _TOLD_AT_LEAST_MS:
            return
        since = EntryId(f"{max(0, now_ms - _TOLD_SINCE_MS)}-0")
        for one in await watched.new_operator_events(self._store, self._seen, since):
            self._told.append(operator_object(one))
        self._told_count, self._told_ms = count, now_ms
