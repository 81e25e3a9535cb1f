"""What the store refuses for one user, whose data somebody broke, is put off: it must not hold up the others."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from eventbus.clock import seconds

__all__ = ["REFUSED_MS", "put_off"]

REFUSED_MS: Final = 1_000
"""So long it waits before it is tried again: no time heals it, but an operator may."""


def put_off(again: Callable[[], None]) -> None:
    """Calls later what tries again; call it in the event loop."""
    asyncio.get_running_loop().call_later(seconds(REFUSED_MS), again)
