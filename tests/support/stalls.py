"""How long the machine let this process stand still: a bound in seconds is for the product, on a machine that runs it.

A test of such a bound adds exactly what the machine took, and says so when it fails. Everything else that takes long
counts against the product: also a loop that it holds up, which the thread that looks here does not notice.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

_LOOK_S = 0.01
# Far beyond any bound: what hangs ends here.
_HANGS_S = 60.0


class Stalls:
    """Watches this process for the length of a `with`; tells also afterwards what it saw.

    Args:
        look_s: the pause between two looks at the clock.
        now: seconds of a clock that never stands still.
        pause: waits so many seconds, or until the watch is over; true then.
    """

    def __init__(
        self,
        *,
        look_s: float = _LOOK_S,
        now: Callable[[], float] = time.monotonic,
        pause: Callable[[float], bool] | None = None,
    ) -> None:
        self._over = threading.Event()
        self._look_s = look_s
        self._now = now
        self._pause = pause or self._over.wait
        self._thread = threading.Thread(target=self.watch, name="stalls", daemon=True)
        self._begun_waiting_s = waited_for_a_processor_s()
        self._last = self._now()
        self._longest_s = 0.0
        self._waited_s = 0.0

    def __enter__(self) -> Self:
        self._begun_waiting_s = waited_for_a_processor_s()
        self._last = self._now()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._longest_s = self.standing_s
        self._waited_s = waited_for_a_processor_s() - self._begun_waiting_s
        self._over.set()
        self._thread.join()

    def watch(self) -> None:
        """Looks at the clock until the watch is over; what a look comes too late is a stall."""
        self._last = self._now()
        while not self._pause(self._look_s):
            now = self._now()
            self._longest_s = max(self._longest_s, now - self._last - self._look_s)
            self._last = now

    @property
    def standing_s(self) -> float:
        """The longest time for which the whole process stood still."""
        if self._over.is_set():
            return self._longest_s
        return max(self._longest_s, self._now() - self._last - self._look_s, 0.0)

    @property
    def lost_s(self) -> float:
        """What the machine took: the longest time for which the whole process stood still, or, if that is more, the
        time for which its main thread was ready and was given no processor.
        """
        waited_s = self._waited_s if self._over.is_set() else waited_for_a_processor_s() - self._begun_waiting_s
        return max(self.standing_s, waited_s)


@asynccontextmanager
async def within(bound_s: float) -> AsyncIterator[None]:
    """The block takes no longer than so many seconds, and what the machine took meanwhile.

    Raises:
        AssertionError: It took longer.
        TimeoutError: It did not end at all.
    """
    with Stalls() as stalls:
        begun = time.monotonic()
        async with asyncio.timeout(bound_s + _HANGS_S):
            yield
        took_s = time.monotonic() - begun
        lost_s = stalls.lost_s
    told = f"it took {took_s:.2f} s; the bound is {bound_s} s, and the machine took {lost_s:.2f}"
    assert took_s < bound_s + lost_s, told


def waited_for_a_processor_s() -> float:
    """For how long the main thread of this process has been ready to run, and did not, since it began (Linux)."""
    try:
        return int(Path("/proc/self/schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError):
        return 0.0
