"""Turns the wheel: everything of a node that happens because time has passed. Notices when the node itself stood still
(D23).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final, Generic, TypeVar

from eventbus.clock import Clock, seconds
from gateway.sessions.wheel import Timed, Wheel

__all__ = ["STALL_MS", "TICK_MS", "Clockwork"]

logger = logging.getLogger(__name__)

TICK_MS: Final = 50
"""How often the wheel is turned."""

STALL_MS: Final = 5_000
"""A tick that comes so late means that the node stood still: frozen, swapped out, or blocked."""


T = TypeVar("T", bound=Timed)


class Clockwork(Generic[T]):
    """The node's ticks.

    Args:
        clock: the node's.
        wheel: what is due when.
        due: called with each item that is due, and the time.
        stalled: called with how long the node stood still, before anything is due.

    Attributes:
        turned_ms: the time of the last turn of the wheel; monotonic.
    """

    def __init__(
        self,
        clock: Clock,
        wheel: Wheel[T],
        *,
        due: Callable[[T, int], None],
        stalled: Callable[[int], None],
    ) -> None:
        self._clock = clock
        self._wheel = wheel
        self._due = due
        self._stalled = stalled
        self.turned_ms = clock.monotonic_ms()

    async def run(self) -> None:
        """Ticks until it is cancelled."""
        self.turned_ms = self._clock.monotonic_ms()
        while True:
            await asyncio.sleep(seconds(TICK_MS))
            late_ms = self._clock.monotonic_ms() - self.turned_ms - TICK_MS
            if late_ms >= STALL_MS:
                logger.warning("the node stood still for %d ms", late_ms)
                self._stalled(late_ms)
                # What clients sent meanwhile is waiting in the sockets: it is read before anybody is found late.
                await asyncio.sleep(0)
                await asyncio.sleep(0)
            self.turn()

    def turn(self) -> None:
        """Calls what is due by now."""
        now_ms = self._clock.monotonic_ms()
        for item in self._wheel.turn(now_ms):
            self._due(item, now_ms)
        self.turned_ms = now_ms
