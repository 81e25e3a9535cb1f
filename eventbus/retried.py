"""A call of the store that is safe to repeat, repeated with growing, jittered waits until its deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from eventbus.clock import Clock
from eventbus.errors import StoreError
from eventbus.publishing.retries import RetryPolicy
from eventbus.timers import Timers

__all__ = ["retried"]

T = TypeVar("T")


async def retried(
    call: Callable[[], Awaitable[T]], policy: RetryPolicy, clock: Clock, timers: Timers, deadline_ms: int
) -> T:
    """Make a call until it succeeds.

    Args:
        call: makes one try.
        policy: which errors are tried again, and after how long.
        clock: monotonic time.
        timers: where waits go.
        deadline_ms: no try begins later than this, in milliseconds from now.

    Raises:
        StoreError: of the last try.
    Cancelled, it leaves open whether a try took effect.
    """
    until_ms = clock.monotonic_ms() + deadline_ms
    failures = 0
    while True:
        try:
            return await call()
        except StoreError as error:
            failures += 1
            wait_ms = policy.wait_ms(error, failures)
            if wait_ms is None or clock.monotonic_ms() + wait_ms >= until_ms:
                raise
        rung = asyncio.Event()
        timer = timers.call_later(wait_ms, rung.set)
        try:
            await rung.wait()
        finally:
            timer.cancel()
