"""Tests of what sits on the event loop run on both: uvloop, which nodes use, and asyncio's own."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvloop

from tests.support.leaks import leaked_tasks

# libuv opens one pipe for signals a process, with the first loop; the leak check would blame the first test for it.
uvloop.new_event_loop().close()

AsyncTest = Callable[..., Coroutine[Any, Any, None]]


def on_both_loops(test: AsyncTest) -> Callable[..., None]:
    """Make of an asynchronous test two, one a loop; a task that is left running fails it."""

    def run(loop_factory: Callable[[], asyncio.AbstractEventLoop], **fixtures: Any) -> None:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(_checked(test(**fixtures)))

    signature = inspect.signature(test)
    extra = inspect.Parameter("loop_factory", inspect.Parameter.KEYWORD_ONLY)
    run.__signature__ = signature.replace(parameters=[*signature.parameters.values(), extra])  # type: ignore[attr-defined]
    run.__name__, run.__doc__, run.__module__ = test.__name__, test.__doc__, test.__module__
    factories = [uvloop.new_event_loop, asyncio.new_event_loop]
    mark = pytest.mark.parametrize("loop_factory", factories, ids=["uvloop", "asyncio"])
    marked: Callable[..., None] = mark(run)
    return marked


async def _checked(test: Coroutine[Any, Any, None]) -> None:
    await test
    leaked = await leaked_tasks()
    assert not leaked, f"the test left these tasks running: {', '.join(leaked)}"
