"""Where waits go: the event loop, or the manual clock of a test."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, Protocol, runtime_checkable

from eventbus.clock import Clock, seconds

__all__ = ["NEVER_MS", "Alarm", "Cancellable", "LoopTimers", "Timers"]

NEVER_MS: Final = 1 << 62
"""Later than any time."""


class Cancellable(Protocol):
    """What a timer is known by."""

    def cancel(self) -> None:
        """Forget it; harmless when it has rung."""


@runtime_checkable
class Timers(Protocol):
    """Whoever can call back later."""

    def call_later(self, delay_ms: int, callback: Callable[[], object]) -> Cancellable:
        """Have `callback` called in the event loop after `delay_ms`."""


class LoopTimers:
    """The timers of the event loop that runs when this is made."""

    __slots__ = ("_loop",)

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()

    def call_later(self, delay_ms: int, callback: Callable[[], object]) -> Cancellable:
        return self._loop.call_later(seconds(delay_ms), callback)


class Alarm:
    """One timer for all that will be due: it rings at the earliest time that was asked for, and forgets the others.

    Args:
        clock: monotonic time.
        timers: where the wait goes.
        ring: called when it rings; looks at everything, and asks for the next time.
    """

    __slots__ = ("_at_ms", "_clock", "_ended", "_ring", "_timer", "_timers")

    def __init__(self, clock: Clock, timers: Timers, ring: Callable[[], object]) -> None:
        self._clock = clock
        self._timers = timers
        self._ring = ring
        self._timer: Cancellable | None = None
        self._at_ms = NEVER_MS
        self._ended = False

    def arm(self, at_ms: int) -> None:
        """Ring at that time of the monotonic clock, or earlier."""
        if at_ms >= self._at_ms or self._ended:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._at_ms = at_ms
        self._timer = self._timers.call_later(max(1, at_ms - self._clock.monotonic_ms()), self._rung)

    def end(self) -> None:
        """Never ring again."""
        self._ended = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _rung(self) -> None:
        self._timer, self._at_ms = None, NEVER_MS
        self._ring()
