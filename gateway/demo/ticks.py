"""What the agent's side knows of its events: how far each has come, from the confirmations of its run.

Asked of the bus, as an agent would ask, for the runs that a page shows.
"""

from __future__ import annotations

import asyncio
from typing import Final

from eventbus import Bus, ConfirmationTimeout, EventBusError, Level
from eventbus.clock import Clock, seconds
from gateway.demo.jobs import USER

__all__ = ["Ticks"]

UNASKED_MS: Final = 10_000
"""A run that no page asks for is left alone after so long."""
FOLLOW_MS: Final = 60_000
PAUSE_MS: Final = 500
"""How long it rests when the store fails."""


class _Followed:
    """One run."""

    def __init__(self) -> None:
        self.levels: dict[str, Level] = {}
        self.asked_ms = 0
        self.task: asyncio.Task[None] | None = None


class Ticks:
    """Follows the confirmations of runs, as long as somebody asks for them.

    Args:
        bus: an open one.
        clock: monotonic time.
        user: whose runs they are.
    """

    def __init__(self, bus: Bus, clock: Clock, user: str = USER) -> None:
        self._bus = bus
        self._user = user
        self._clock = clock
        self._runs: dict[str, _Followed] = {}

    def of_run(self, run: str) -> dict[str, Level]:
        """How far the events of a run have come by now: event id to the highest level that a session has given.

        The first call begins to follow the run, and has nothing yet.
        """
        now_ms = self._clock.monotonic_ms()
        followed = self._runs.get(run)
        if followed is None:
            followed = self._runs[run] = _Followed()
            followed.task = asyncio.create_task(self._follow(run, followed), name=f"demo:ticks:{run}")
        followed.asked_ms = now_ms
        for other, left in list(self._runs.items()):
            if now_ms - left.asked_ms > UNASKED_MS and left.task is not None:
                left.task.cancel()
                del self._runs[other]
        return followed.levels

    async def aclose(self) -> None:
        """Follow nothing any more."""
        tasks = [followed.task for followed in self._runs.values() if followed.task is not None]
        self._runs.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _follow(self, run: str, followed: _Followed) -> None:
        while True:
            # It would end when all is confirmed, which a visitor never does: it begins anew, and tells all again.
            confirmations = self._bus.run_confirmations(
                run, user=self._user, level=Level.CONFIRMED, timeout_ms=FOLLOW_MS
            )
            try:
                async for one in confirmations:
                    known = followed.levels.get(one.event)
                    if known is None or one.level.rank > known.rank:
                        followed.levels[one.event] = one.level
            except ConfirmationTimeout:
                continue
            except EventBusError:
                pass
            await asyncio.sleep(seconds(PAUSE_MS))
