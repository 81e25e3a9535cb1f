"""How long something took, in buckets: what is added costs a look into a short tuple. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Final

__all__ = ["BOUNDS_MS", "Histogram", "Worst"]

BOUNDS_MS: Final = (1, 2, 5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 30_000)
"""Upper ends of the buckets; the last one, for all that took longer, has none. 50 ms and 1 s are what is promised and
what is felt; 10 s is a session's heartbeat, by which an event is found whose wake-up was lost.
"""


class Histogram:
    """Counts by how long it took.

    Attributes:
        counts: of each bucket for itself, the open one last.
        sum_ms: of everything.
    """

    __slots__ = ("_bounds_ms", "counts", "sum_ms")

    def __init__(self, bounds_ms: Sequence[int] = BOUNDS_MS) -> None:
        self._bounds_ms = bounds_ms
        self.counts = [0] * (len(bounds_ms) + 1)
        self.sum_ms = 0

    def __repr__(self) -> str:
        return f"<Histogram {sum(self.counts)} in {self.sum_ms} ms>"

    def add(self, took_ms: int, count: int = 1) -> None:
        """Counts so many that took so long; a negative time, of clocks that differ, is none."""
        if took_ms < 0:
            took_ms = 0
        self.counts[bisect_left(self._bounds_ms, took_ms)] += count
        self.sum_ms += took_ms * count

    def buckets(self) -> list[tuple[str, int]]:
        """The upper end of each bucket in seconds, as Prometheus writes it, and how many took at most so long."""
        ends = [str(bound_ms / 1000) for bound_ms in self._bounds_ms] + ["+Inf"]
        found, total = list[tuple[str, int]](), 0
        for end, count in zip(ends, self.counts, strict=True):
            total += count
            found.append((end, total))
        return found


class Worst:
    """The largest of the figures of late: of between one and two spans of time.

    Args:
        span: in the unit of `now`.
    """

    __slots__ = ("_before", "_begun", "_span", "_worst")

    def __init__(self, span: float) -> None:
        self._span = span
        self._begun = 0.0
        self._worst = 0.0
        self._before = 0.0

    def add(self, figure: float, now: float) -> None:
        """Takes a figure into account."""
        self._turn(now)
        self._worst = max(self._worst, figure)

    def at(self, now: float) -> float:
        """The largest; 0 when there was none."""
        self._turn(now)
        return max(self._worst, self._before)

    def _turn(self, now: float) -> None:
        spans = (now - self._begun) // self._span
        if spans >= 1:
            self._before = self._worst if spans < 2 else 0.0
            self._worst, self._begun = 0.0, now
