"""How many clients a node lets in at a time, so that those who come back in a storm do not harm those who are here.

Handshakes are taken at a steady pace. Some may wait for their turn with the connection open; who comes when that many
wait is given a place in a line that moves at the same pace, and told when the place is due. Pure; `now_ms` is monotonic
time.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

from gateway.access.limits import TokenBucket

__all__ = ["Admission", "Entry"]

BURST_MS: Final = 50
"""So many milliseconds' worth of handshakes are taken at once: what they hold the loop up for is what others wait."""

WAITING_MS: Final = 2_000
"""So many milliseconds' worth of handshakes may wait for their turn."""

FIRST_WAIT_MS: Final = 1_000
"""Nobody is asked to come back sooner: a refusal costs something too."""

WAIT_MAX_MS: Final = 15_000
"""Nobody is asked to stay away for longer; in a line that would take longer places are given twice."""

_BURST_MIN: Final = 10


class Entry(Enum):
    """What becomes of a client at the door."""

    NOW = "now"
    """It is let in."""
    WAIT = "wait"
    """It waits for its turn, with the connection open."""
    AWAY = "away"
    """It is told when to come back."""


class Admission:
    """The pace of a node.

    Args:
        per_second: handshakes of all clients a second; 0 is no limit.
        attaches_max: most sessions that may wait for Redis to open them.
        now_ms: monotonic time.

    Attributes:
        waiting_max: most handshakes that wait for their turn.
    """

    __slots__ = ("_attaches_max", "_bucket", "_line_us", "_pace", "waiting_max")

    def __init__(self, per_second: int, attaches_max: int, now_ms: int) -> None:
        self._attaches_max = attaches_max
        self._pace = per_second or attaches_max
        capacity = max(_BURST_MIN, per_second * BURST_MS // 1_000)
        self._bucket = TokenBucket(per_second, capacity, now_ms) if per_second else None
        self.waiting_max = max(_BURST_MIN, self._pace * WAITING_MS // 1_000)
        self._line_us = 0

    def __repr__(self) -> str:
        return f"<Admission {self._pace}/s {self._bucket!r}>"

    def enter(self, waiting: int, attaching: int, now_ms: int) -> Entry:
        """What becomes of one client.

        Args:
            waiting: handshakes that wait for their turn already.
            attaching: sessions that wait for Redis to open them.
            now_ms: monotonic time.
        """
        if not waiting and self.take(attaching, now_ms):
            return Entry.NOW
        return Entry.WAIT if waiting < self.waiting_max else Entry.AWAY

    def take(self, attaching: int, now_ms: int) -> bool:
        """Let one in, if its turn has come; else change nothing."""
        if attaching >= self._attaches_max:
            return False
        return self._bucket is None or self._bucket.take(now_ms)

    def come_back_ms(self, now_ms: int) -> int:
        """The next place in the line: milliseconds from now."""
        first_us = (now_ms + FIRST_WAIT_MS) * 1_000
        # In microseconds, so that a fast line moves too.
        self._line_us = max(self._line_us, first_us) + 1_000_000 // self._pace
        if self._line_us > (now_ms + WAIT_MAX_MS) * 1_000:
            self._line_us = first_us
        return self._line_us // 1_000 - now_ms
