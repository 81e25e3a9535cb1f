"""Waiting for a condition with a deadline: the only kind of waiting that tests do."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar, overload

T = TypeVar("T")

_POLL_MS = 5


@overload
async def until(
    condition: Callable[[], Awaitable[T]], timeout_ms: int = 5_000, message: str | Callable[[], str] = ""
) -> T: ...
@overload
async def until(condition: Callable[[], T], timeout_ms: int = 5_000, message: str | Callable[[], str] = "") -> T: ...
async def until(
    condition: Callable[[], T | Awaitable[T]], timeout_ms: int = 5_000, message: str | Callable[[], str] = ""
) -> T:
    """Waits until `condition()` (or what it returns, awaited) is true, and returns that value.

    Args:
        condition: Asked every few milliseconds; an exception it raises passes on.
        timeout_ms: The deadline, of real time.
        message: What was waited for; a function is called when the deadline has passed.

    Raises:
        AssertionError: The deadline passed; the message has the last value.
    """
    deadline = time.monotonic() + timeout_ms / 1000
    while True:
        result = condition()
        value: T = await result if inspect.isawaitable(result) else result
        if value:
            return value
        if time.monotonic() >= deadline:
            raise AssertionError(_explain(message, timeout_ms, value))
        await asyncio.sleep(_POLL_MS / 1000)


def until_blocking(condition: Callable[[], T], timeout_ms: int = 5_000, message: str | Callable[[], str] = "") -> T:
    """As `until`, for tests without an event loop."""
    deadline = time.monotonic() + timeout_ms / 1000
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() >= deadline:
            raise AssertionError(_explain(message, timeout_ms, value))
        time.sleep(_POLL_MS / 1000)


def _explain(message: str | Callable[[], str], timeout_ms: int, value: object) -> str:
    what = message() if callable(message) else message
    return f"not within {timeout_ms} ms: {what or 'the condition'} (last value: {value!r})"
