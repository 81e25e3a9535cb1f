"""What can go wrong with a server, as switches of a `MemoryStore`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from eventbus.errors import StoreError, StoreUnavailable

__all__ = ["FaultSwitches"]


class FaultSwitches:
    """The gate through which every call of a `MemoryStore` goes, in order.

    Attributes:
        calls: how many calls have come, failed ones included.
    """

    def __init__(self) -> None:
        self.calls = 0
        self._request_error: StoreError | None = None
        self._reply_error: StoreError | None = None
        self._left: int | None = None
        self._open = asyncio.Event()
        self._open.set()
        self._closed = False

    @property
    def health(self) -> str:
        """What calls may expect: `healthy`, `hanging`, `closed`, or the error."""
        if self._closed:
            return "closed"
        if not self._open.is_set():
            return "hanging"
        error = self._request_error or self._reply_error
        return f"failing with {error!r}" if error is not None else "healthy"

    def fail(self, error: StoreError | None = None, calls: int | None = None) -> None:
        """Let calls fail before they take effect.

        Args:
            error: what they raise; `StoreUnavailable` when absent.
            calls: how many calls, until `heal` when absent.
        """
        self._request_error = error or StoreUnavailable("the connection to the store was lost (a fault of the test)")
        self._reply_error, self._left = None, calls

    def lose_replies(self, error: StoreError | None = None, calls: int | None = None) -> None:
        """Let calls take effect and then fail: the connection dies between request and reply.

        Args:
            error: what they raise; `StoreUnavailable` when absent.
            calls: how many calls, until `heal` when absent.
        """
        self._reply_error = error or StoreUnavailable("the reply of the store was lost (a fault of the test)")
        self._request_error, self._left = None, calls

    def hang(self) -> None:
        """Let calls wait, before they take effect, until `resume`."""
        self._open.clear()

    def resume(self) -> None:
        """Let the calls that hang go on, in the order in which they were made."""
        self._open.set()

    def heal(self) -> None:
        """Everything works again."""
        self._request_error = self._reply_error = self._left = None
        self.resume()

    def _close(self) -> None:
        """For good: calls that hang and calls to come end with `StoreUnavailable`."""
        self._closed = True
        self._open.set()

    @asynccontextmanager
    async def _call(self) -> AsyncIterator[None]:
        """One call of the store: waits its turn, then takes effect inside, or raises."""
        await asyncio.sleep(0)
        await self._open.wait()
        self.calls += 1
        if self._closed:
            raise StoreUnavailable("the store is closed")
        before, after = self._request_error, self._reply_error
        if self._left is not None:
            self._left -= 1
            if self._left <= 0:
                self._request_error = self._reply_error = self._left = None
        if before is not None:
            raise before
        yield
        if after is not None:
            raise after
