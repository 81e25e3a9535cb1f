"""A clock that stands still until a test moves it."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

__all__ = ["START_MS", "ManualClock", "Timer"]

START_MS: Final = 1_750_000_000_000
"""Where a `ManualClock` begins by default: an ordinary moment, so that entry ids look as they do in Redis."""


@dataclass(slots=True, order=True)
class Timer:
    """A call that waits for its time; `cancel` forgets it."""

    when_ms: int
    number: int
    callback: Callable[[], object] | None = field(compare=False)

    def cancel(self) -> None:
        """Forget the call; harmless when it was already made."""
        self.callback = None


class ManualClock:
    """An `eventbus.clock.Clock` whose time passes only when the test calls `advance` or `pass_time`.

    Args:
        start_ms: Unix milliseconds at the beginning.

    Wall time and monotonic time pass together; `set_wall` makes the wall clock jump alone, as an operator or NTP would.
    """

    __slots__ = ("_monotonic_ms", "_number", "_timers", "_wall_offset_ms")

    def __init__(self, start_ms: int = START_MS) -> None:
        self._monotonic_ms = 0
        self._wall_offset_ms = start_ms
        self._timers: list[Timer] = []
        self._number = 0

    def __repr__(self) -> str:
        return f"<ManualClock now_ms={self.now_ms()} monotonic_ms={self._monotonic_ms} timers={self.waiting}>"

    def now_ms(self) -> int:
        """Unix milliseconds."""
        return self._monotonic_ms + self._wall_offset_ms

    def monotonic_ms(self) -> int:
        """Milliseconds since the clock was made."""
        return self._monotonic_ms

    @property
    def waiting(self) -> int:
        """How many timers wait."""
        return sum(timer.callback is not None for timer in self._timers)

    def advance(self, ms: int) -> None:
        """Let time pass, and make the calls that fall due on the way, in order and each at its own time.

        Args:
            ms: milliseconds, 0 or more.

        Raises:
            ValueError: `ms` is negative; time runs forward only.
        """
        if ms < 0:
            raise ValueError(f"time runs forward only, not by {ms} ms")
        until_ms = self._monotonic_ms + ms
        while self._timers and self._timers[0].when_ms <= until_ms:
            timer = heapq.heappop(self._timers)
            if timer.callback is None:
                continue
            # A callback sees the time it asked for, and may set a timer that falls due within this advance too.
            self._monotonic_ms = max(self._monotonic_ms, timer.when_ms)
            callback, timer.callback = timer.callback, None
            callback()
        self._monotonic_ms = until_ms

    async def pass_time(self, ms: int) -> None:
        """`advance`, then let the event loop run what became ready.

        A cancelled call has advanced the clock.
        """
        self.advance(ms)
        for _ in range(SETTLE_TURNS):
            await asyncio.sleep(0)

    def set_wall(self, now_ms: int) -> None:
        """Make the wall clock jump, forwards or backwards; monotonic time and timers do not notice.

        Args:
            now_ms: Unix milliseconds.
        """
        self._wall_offset_ms = now_ms - self._monotonic_ms

    def call_later(self, delay_ms: int, callback: Callable[[], object]) -> Timer:
        """Have `callback` called by the `advance` that reaches its time.

        Args:
            delay_ms: milliseconds from now; 0 or less means by the next `advance`, also `advance(0)`.
            callback: called without arguments.

        Returns:
            The timer, to cancel it.
        """
        self._number += 1
        timer = Timer(self._monotonic_ms + max(0, delay_ms), self._number, callback)
        heapq.heappush(self._timers, timer)
        return timer

    async def sleep(self, ms: int) -> None:
        """Wait until the clock was advanced by `ms`. A cancelled call leaves no timer behind."""
        reached = asyncio.get_running_loop().create_future()

        def wake() -> None:
            if not reached.done():
                reached.set_result(None)

        timer = self.call_later(ms, wake)
        try:
            await reached
        finally:
            timer.cancel()


SETTLE_TURNS: Final = 10
"""Turns of the event loop that `pass_time` leaves to what became ready: a call of a store takes a few."""
