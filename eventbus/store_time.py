"""What the store's clock says, as far as its answers tell: deadlines hold by that, not by a machine's wall clock. Pure.

An entry's id is the store's time at its storing. An event that was made at a moment of this process's monotonic clock
was stored then or later, so the smallest difference that was seen is the nearest to that of the two clocks, and never
below it: a deadline that is worked out with it may be some milliseconds too late, and never too early.
"""

from __future__ import annotations

from typing import Final

__all__ = ["WINDOW_MS", "StoreTime"]

WINDOW_MS: Final = 60_000
"""What was learnt is forgotten after two of these: another server's clock may run ahead of the last one's."""


class StoreTime:
    """Learns from what was stored."""

    __slots__ = ("_before_ms", "_begun_ms", "_least_ms")

    def __init__(self) -> None:
        self._least_ms: int | None = None
        self._before_ms: int | None = None
        self._begun_ms = 0

    def __repr__(self) -> str:
        return f"<StoreTime ahead_ms={self._ahead_ms}>"

    def learn(self, stored_ms: int, made_ms: int) -> None:
        """An event was stored.

        Args:
            stored_ms: when, by the store's clock in Unix milliseconds.
            made_ms: when it was made, by the monotonic clock.
        """
        if self._least_ms is not None and made_ms - self._begun_ms >= WINDOW_MS:
            self._before_ms, self._least_ms = self._least_ms, None
        if self._least_ms is None:
            self._begun_ms, self._least_ms = made_ms, stored_ms - made_ms
        else:
            self._least_ms = min(self._least_ms, stored_ms - made_ms)

    def at(self, monotonic_ms: int) -> int | None:
        """What the store's clock says at a moment, Unix milliseconds; None as long as nothing is known of it."""
        ahead_ms = self._ahead_ms
        return None if ahead_ms is None else monotonic_ms + ahead_ms

    @property
    def _ahead_ms(self) -> int | None:
        known = [one for one in (self._least_ms, self._before_ms) if one is not None]
        return min(known, default=None)
