"""Runs one node in this process until a signal ends it."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from gateway.config import NodeSettings
from gateway.node import Node

__all__ = ["run_node", "run_with_loop"]

logger = logging.getLogger(__name__)


def run_with_loop(main: Coroutine[Any, Any, int]) -> int:
    """Runs a coroutine on uvloop, or on asyncio's own loop where there is none; returns the exit status."""
    try:
        import uvloop
    except ImportError:  # Windows
        return asyncio.run(main)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)


async def run_node(settings: NodeSettings, *, started: Callable[[Node], Awaitable[None]] | None = None) -> int:
    """Runs a node until SIGTERM or SIGINT, then drains it; a second signal ends it at once.

    Args:
        settings: the node's.
        started: called when the node accepts connections.

    Returns:
        The exit status: 0 after a drain, 1 when the node failed.
    """
    node = Node(settings)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        await node.start()
        if started is not None:
            await started(node)
        _say(f"ready node={node.name} url=http://{_shown(settings.listen.host)}:{node.port}")
        ended = [asyncio.ensure_future(stop.wait()), asyncio.ensure_future(node.failed.wait())]
        await asyncio.wait(ended, return_when=asyncio.FIRST_COMPLETED)
        for task in ended:
            task.cancel()
        stop.clear()
        draining = asyncio.ensure_future(node.drain())
        again = asyncio.ensure_future(stop.wait())
        await asyncio.wait([draining, again], return_when=asyncio.FIRST_COMPLETED)
        again.cancel()
        if not draining.done():
            logger.warning("a second signal: the node ends without finishing its drain")
            draining.cancel()
        return 1 if node.failed.is_set() else 0
    finally:
        await node.aclose()


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
