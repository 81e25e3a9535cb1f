"""Waits between looks at a store: until something was told, until a time is over, or until the bus is closed."""

from __future__ import annotations

import asyncio

from eventbus.errors import EventBusError
from eventbus.timers import Timers

__all__ = ["Looks"]


class Looks:
    """The waits of everybody who looks again and again. Closed, all of them raise.

    Args:
        timers: where waits go.
    """

    def __init__(self, timers: Timers) -> None:
        self._timers = timers
        self._rings: set[asyncio.Event] = set()
        self._closed = False

    def __repr__(self) -> str:
        return f"<Looks waiting={len(self._rings)}{' closed' if self._closed else ''}>"

    async def pause(self, ring: asyncio.Event, longest_ms: int) -> None:
        """Wait until `ring` is set or the time is over. Safe to cancel.

        Raises:
            EventBusError: the bus is closed.
        """
        self.check()
        timer = self._timers.call_later(longest_ms, ring.set)
        self._rings.add(ring)
        try:
            await ring.wait()
        finally:
            timer.cancel()
            self._rings.discard(ring)
        self.check()

    def check(self) -> None:
        """Raises: EventBusError: the bus is closed."""
        if self._closed:
            raise EventBusError("the bus is closed")

    async def aclose(self) -> None:
        """End all waits. May be repeated."""
        self._closed = True
        for ring in self._rings:
            ring.set()
