"""How many clients a node lets in at a time, so that those who come back in a storm do not harm those who are here.

Who is refused is given a place in a line that moves at the node's own pace, and told when that place is due: the
storm comes back as a queue. Pure; `now_ms` is monotonic time.
"""

from __future__ import annotations

from typing import Final

from gateway.limits import TokenBucket

__all__ = ["Admission"]

BURST_S: Final = 2
"""So many seconds' worth of handshakes are let in at once."""

FIRST_WAIT_MS: Final = 1_000
"""Nobody is asked to come back sooner: a refusal costs something too."""

WAIT_MAX_MS: Final = 15_000
"""Nobody is asked to wait for longer; a line that would take longer is refused again then."""


class Admission:
    """The door of a node.

    Args:
        per_second: handshakes of all clients a second; 0 is no limit.
        attaches_max: most sessions that may wait for Redis to open them.
        now_ms: monotonic time.

    Attributes:
        refused: how many were told to come back.
    """

    __slots__ = ("_attaches_max", "_bucket", "_line_us", "_per_second", "refused")

    def __init__(self, per_second: int, attaches_max: int, now_ms: int) -> None:
        self._per_second = per_second
        self._attaches_max = attaches_max
        self._bucket = TokenBucket(per_second, per_second * BURST_S, now_ms) if per_second else None
        self._line_us = 0
        self.refused = 0

    def __repr__(self) -> str:
        return f"<Admission {self._per_second}/s refused={self.refused}>"

    def is_full(self, attaching: int, now_ms: int) -> bool:
        """Whether `take` would refuse now.

        Args:
            attaching: sessions that wait for Redis to open them.
            now_ms: monotonic time.
        """
        return attaching >= self._attaches_max or (self._bucket is not None and self._bucket.level(now_ms) < 1)

    def take(self, attaching: int, now_ms: int) -> int | None:
        """Let one client in, or give it a place in the line.

        Args:
            attaching: sessions that wait for Redis to open them.
            now_ms: monotonic time.

        Returns:
            None when it is let in, else the milliseconds until it should come back.
        """
        if not self.is_full(attaching, now_ms):
            if self._bucket is not None:
                self._bucket.take(now_ms)
            return None
        self.refused += 1
        # In thousandths of a millisecond a place, so that a fast line moves too.
        first = (now_ms + FIRST_WAIT_MS) * 1000
        self._line_us = max(self._line_us, first) + 1_000_000 // self._pace
        if self._line_us > first + (WAIT_MAX_MS - FIRST_WAIT_MS) * 1000:
            # The line is as long as it may be: who comes now shares its places.
            self._line_us = first
        return self._line_us // 1000 - now_ms

    @property
    def _pace(self) -> int:
        return self._per_second or self._attaches_max
