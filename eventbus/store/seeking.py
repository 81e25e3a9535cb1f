"""When to look for primaries: soon when something seems wrong, now and then when nothing does."""

from __future__ import annotations

import asyncio
import random
from typing import Final, Protocol

__all__ = ["Seeker", "Sought"]

_FIRST_WAIT_S: Final = 0.02


class Sought(Protocol):
    """Who looks."""

    async def look(self) -> None:
        """Look once; whoever did not find what it wants calls `Seeker.soon`."""

    @property
    def is_wanting(self) -> bool:
        """Whether something waits for what the next look may find."""


class Seeker:
    """Has someone look, with growing waits while nothing is found.

    Args:
        sought: looks.
        name: of the task.
        refresh_s: how often to look when nothing seems wrong.
        longest_wait_s: longest wait between two looks while something is wrong.
    """

    def __init__(self, sought: Sought, *, name: str, refresh_s: float, longest_wait_s: float) -> None:
        self._sought = sought
        self._name = name
        self._refresh_s = refresh_s
        self._longest_wait_s = longest_wait_s
        self._wanted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Look now and then; call it in the event loop."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run(), name=self._name)

    def soon(self) -> None:
        """Look soon; call it in the event loop."""
        self._wanted.set()
        self.start()

    async def aclose(self) -> None:
        """End it; safe to call twice."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _run(self) -> None:
        wait_s = _FIRST_WAIT_S
        while True:
            try:
                async with asyncio.timeout(self._refresh_s * random.uniform(0.8, 1.2)):  # noqa: S311
                    await self._wanted.wait()
            except TimeoutError:
                pass
            self._wanted.clear()
            await self._sought.look()
            # Whoever is still without a server asks for another look at once; this is what keeps them apart.
            seeking = self._sought.is_wanting or self._wanted.is_set()
            wait_s = min(2 * wait_s, self._longest_wait_s) if seeking else _FIRST_WAIT_S
            await asyncio.sleep(wait_s * random.uniform(0.5, 1.0))  # noqa: S311
