"""How late the event loop is."""

from __future__ import annotations

import asyncio
from typing import Final

from gateway.histogram import Worst

__all__ = ["LoopLag"]


class LoopLag:
    """How late the event loop was at the worst in the last half to whole minute; a look every 100 ms.

    It does not begin anew with each reading: after a stall the first to be answered are scrapes that were given up long
    ago, and there may be two who scrape.
    """

    LOOK_S: Final = 0.1
    KEPT_S: Final = 30.0

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._due_s = 0.0
        self._kept = Worst(self.KEPT_S)

    def start(self) -> None:
        """Begin to look, in the running loop."""
        self._loop = asyncio.get_running_loop()
        self._again(self._loop)

    def stop(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    @property
    def worst_s(self) -> float:
        """The worst in seconds; a delay that is under way counts."""
        if self._loop is None or self._timer is None:
            return 0.0
        now_s = self._loop.time()
        return max(self._kept.at(now_s), now_s - self._due_s, 0.0)

    def _again(self, loop: asyncio.AbstractEventLoop) -> None:
        self._due_s = loop.time() + self.LOOK_S
        self._timer = loop.call_at(self._due_s, self._look, loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        now_s = loop.time()
        self._kept.add(now_s - self._due_s, now_s)
        self._again(loop)
