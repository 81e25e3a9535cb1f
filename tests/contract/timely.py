"""Tests whose lives are so short that a machine that stands still outlives them."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import Any, Concatenate, Final, ParamSpec

from tests.contract.conftest import MakeWorld
from tests.contract.worlds import World

P = ParamSpec("P")

SLACK_MS: Final = 20
"""What the steps of a test may take beside the time that it lets pass; the lives of the tests here leave more room."""
TIMES: Final = 6


def timely(test: Callable[Concatenate[MakeWorld, P], Awaitable[None]]) -> Callable[..., Any]:
    """Repeats a test that failed when more of its server's time has passed than it asked for: it was about another
    course of events then. One that failed in its time has failed, and so has one that fails again and again.
    """

    @functools.wraps(test)
    async def run(make_world: MakeWorld, *args: P.args, **kwargs: P.kwargs) -> None:
        for time in range(1, TIMES + 1):
            watched = _Watched(make_world)
            try:
                await test(watched.make, *args, **kwargs)
            except Exception:
                if time == TIMES or await watched.late_ms() < SLACK_MS:
                    raise
            else:
                return

    return run


class _Watched:
    """Makes worlds and knows when each began."""

    def __init__(self, make_world: MakeWorld) -> None:
        self._make_world = make_world
        self._made: list[tuple[World, int]] = []

    async def make(self, **settings: Any) -> World:
        world = await self._make_world(**settings)
        self._made.append((world, await world.store.ping()))
        return world

    async def late_ms(self) -> int:
        """How much more time has passed than was asked for, in the world where that is most."""
        late = [await world.store.ping() - begun_ms - world.passed_ms for world, begun_ms in self._made]
        return max(late, default=0)
