"""Waiting for a condition with a deadline: the only kind of waiting that tests do."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar, overload

T = TypeVar("T")

DEADLINE_MS = 15_000
"""How long a test waits that does not say how long: it has failed then, however slow the machine is."""
PACE_MS = 5
"""The pause between two looks; longer where a look costs those who are looked at."""


@overload
async def until(
    condition: Callable[[], Awaitable[T]],
    timeout_ms: int = DEADLINE_MS,
    message: str | Callable[[], str] = "",
    *,
    pace_ms: int = PACE_MS,
) -> T: ...
@overload
async def until(
    condition: Callable[[], T],
    timeout_ms: int = DEADLINE_MS,
    message: str | Callable[[], str] = "",
    *,
    pace_ms: int = PACE_MS,
) -> T: ...
async def until(
    condition: Callable[[], T | Awaitable[T]],
    timeout_ms: int = DEADLINE_MS,
    message: str | Callable[[], str] = "",
    *,
    pace_ms: int = PACE_MS,
) -> T:
    """Waits until `condition()` (or what it returns, awaited) is true, and returns that value.

    Args:
        condition: Asked every few milliseconds; an exception it raises passes on.
        timeout_ms: The deadline, of real time.
        message: What was waited for; a function is called when the deadline has passed.
        pace_ms: The pause between two looks.

    Raises:
        AssertionError: The deadline passed; the message has the last value.
    """
    deadline = time.monotonic() + timeout_ms / 1000
    while True:
        is_last = time.monotonic() >= deadline  # a process that stood still until then looks once more
        result = condition()
        value: T = await result if inspect.isawaitable(result) else result
        if value:
            return value
        if is_last:
            raise AssertionError(_explain(message, timeout_ms, value))
        await asyncio.sleep(pace_ms / 1000)  # real time: between two looks


def until_blocking(
    condition: Callable[[], T], timeout_ms: int = DEADLINE_MS, message: str | Callable[[], str] = ""
) -> T:
    """As `until`, for tests without an event loop."""
    deadline = time.monotonic() + timeout_ms / 1000
    while True:
        is_last = time.monotonic() >= deadline
        value = condition()
        if value:
            return value
        if is_last:
            raise AssertionError(_explain(message, timeout_ms, value))
        time.sleep(PACE_MS / 1000)  # real time: between two looks


def _explain(message: str | Callable[[], str], timeout_ms: int, value: object) -> str:
    what = message() if callable(message) else message
    return f"not within {timeout_ms} ms: {what or 'the condition'} (last value: {value!r})"
