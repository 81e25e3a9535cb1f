"""Where waits go: the event loop, or the manual clock of a test."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol, runtime_checkable

from eventbus.clock import seconds

__all__ = ["Cancellable", "LoopTimers", "Timers"]


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
