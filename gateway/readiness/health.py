"""Whether a node can do its work, and whose connections end when it can not for too long.

While a part of the store is away (one primary of several) the node stays ready: all nodes have lost the same part, and
a load balancer that took them all out would shut out the users of the others too. What that part's users have is ended
as if it were the whole store, when it has been away for as long. When it is away from this node alone
(`gateway.readiness.cut_off`) the node is not ready, and its users go at once: other nodes can serve them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from itertools import islice
from typing import Final

from eventbus.clock import Clock, seconds
from eventbus.errors import CloseCode
from gateway.access.revocations import Revocations
from gateway.delivery.lanes import Readers
from gateway.readiness.cut_off import CutOff
from gateway.readiness.probes import Readiness
from gateway.sessions.clockwork import STALL_MS
from gateway.sessions.hub import Hub
from gateway.sessions.session import Session

__all__ = ["Health"]

logger = logging.getLogger(__name__)

LOOK_MS: Final = 1_000

CLOSED_A_LOOK: Final = 500
"""So many connections are closed at a time: their clients all come back."""

REST_MS: Final = 5_000
"""Time between two looks at all sessions for those of a part that is away, when the last one found none left."""


class Health:
    """How a node stands with its store.

    Args:
        hub: the sessions of the node.
        clock: of the machine.
        readiness: what is proven of the store.
        reader: whether anything is read.
        revocations: whether they are known.
        cut_off: whether this node alone misses a part of the store.
        store_down_ms: when the store, or a part of it, is away for so long, connections end.
    """

    def __init__(
        self,
        hub: Hub[Session],
        clock: Clock,
        *,
        readiness: Readiness,
        reader: Readers,
        revocations: Revocations,
        cut_off: CutOff,
        store_down_ms: int,
    ) -> None:
        self._hub = hub
        self._clock = clock
        self._readiness = readiness
        self._reader = reader
        self._revocations = revocations
        self._cut_off = cut_off
        self._store_down_ms = store_down_ms

    def __repr__(self) -> str:
        return f"<Health {self.problem() or 'well'}>"

    @property
    def store_is_down(self) -> bool:
        """Whether the store is away for so long that nobody is let in. Revocations that can not be read for so long are
        the same, wherever they are: somebody may be here who must not be.
        """
        failed_ms = max(self._readiness.store_failed_ms(), self._revocations.unread_ms())
        return not self._revocations.loaded.is_set() or failed_ms >= self._store_down_ms

    def problem(self) -> str | None:
        """Why the node can not do its work; None when it can."""
        return (
            self._readiness.problem()
            or self._reader.problem(self._readiness.proven)
            or self._problem_of_revocations()
            or self._cut_off.problem()
        )

    def _problem_of_revocations(self) -> str | None:
        problem = self._revocations.problem()
        if problem is None or self._readiness.parts == 1 or self._revocations.is_refused or self.store_is_down:
            return problem
        # They are in a part that is away, from all nodes alike. While it is, nobody can add to them either.
        return None

    async def run(self) -> None:
        """Closes connections, a few at a time, when the store, or their part of it, is away for too long; until it is
        cancelled.
        """
        rests_until_ms = 0
        while True:
            begin_ms = self._clock.monotonic_ms()
            await asyncio.sleep(seconds(LOOK_MS))
            now_ms = self._clock.monotonic_ms()
            # After a stall of the node itself the clockwork says first how long it was.
            if now_ms - begin_ms > LOOK_MS + STALL_MS:
                continue
            if self.store_is_down:
                self._close(self._hub, "the store is away", self._store_down_ms)
            elif self._readiness.longest_failed_ms() >= self._stranded_ms and now_ms >= rests_until_ms:
                rests_until_ms = now_ms + (REST_MS if self.close_stranded() < CLOSED_A_LOOK else 0)

    @property
    def _stranded_ms(self) -> int:
        """For how long a part of the store has to be away before its users go."""
        return min(self._store_down_ms, self._cut_off.after_ms) if self._cut_off.is_alone else self._store_down_ms

    def close_stranded(self) -> int:
        """Closes connections whose part of the store is away for too long. Returns how many."""
        patience_ms = self._stranded_ms
        stranded = (session for session in self._hub if self._readiness.failed_ms_of(session.user) >= patience_ms)
        return self._close(stranded, "the part of the store that has the user is away", patience_ms)

    def _close(self, sessions: Iterable[Session], why: str, for_ms: int) -> int:
        closed = 0
        for session in islice(sessions, CLOSED_A_LOOK):
            session.close(CloseCode.STORE_UNAVAILABLE, why)
            closed += 1
        if closed:
            logger.warning("%s for %d s: %d connections are closed", why, for_ms // 1_000, closed)
        return closed
