"""Calls for which no server is known: they wait for one."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from eventbus.errors import StoreBusy, StoreError, StoreTimeout
from eventbus.store.calls import Call

__all__ = ["Held"]


class Held:
    """Calls that wait until a server is found for them, each up to its own time.

    Args:
        timeout_s: longest wait of a call, all its waits together.
        max_calls: most that wait; one more ends with `StoreBusy`.
        trouble: why there is no server.
    """

    def __init__(self, *, timeout_s: float, max_calls: int, trouble: Callable[[], StoreError]) -> None:
        self._timeout_s = timeout_s
        self._max_calls = max_calls
        self._trouble = trouble
        self._calls: deque[Call] = deque()

    def __len__(self) -> int:
        return len(self._calls)

    def has_time(self, call: Call) -> bool:
        """Whether a call may wait; its time begins with its first wait."""
        now = asyncio.get_running_loop().time()
        call.until = call.until or now + self._timeout_s
        return now < call.until

    def put(self, call: Call) -> bool:
        """Have a call wait. Returns whether it does; else it has ended with an error."""
        if not self.has_time(call):
            self._expire(call)
        elif len(self._calls) >= self._max_calls:
            call.resolve(StoreBusy(f"{len(self._calls)} calls wait for a primary already"))
        else:
            self._calls.append(call)
            return True
        return False

    def take(self) -> list[Call]:
        """Take all that wait, in their order; whose time is over, or what nobody wants any more, has ended."""
        calls, self._calls = self._calls, deque()
        left = []
        for call in calls:
            if self.has_time(call) and not call.is_unwanted:
                left.append(call)
            else:
                self._expire(call)
        return left

    def end(self, error: StoreError) -> None:
        """End all that wait."""
        while self._calls:
            self._calls.popleft().resolve(error)

    def _expire(self, call: Call) -> None:
        call.resolve(StoreTimeout(f"Redis had no primary within {self._timeout_s} s: {self._trouble()}"))
