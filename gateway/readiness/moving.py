"""Sends the sessions of a node that can not read to nodes that can.

A node that is deaf still reads (`sweep`). One whose reads Redis refuses, while others are ready, can do nothing for its
sessions: each is told when to come back and closed. Where no other node is ready all of them stay, for they would come
back to the same. That reads are slow is no reason: sessions of a busy node would make the others busy.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from eventbus.clock import seconds
from eventbus.errors import CloseCode, StoreError
from eventbus.store import NodeRecord
from eventbus.wire import GoAway, GoAwayReason
from gateway.drain import reconnect_after_ms, taken_per_second
from gateway.readiness.probes import Readiness
from gateway.sessions.hub import Hub
from gateway.sessions.session import Session

__all__ = ["Moving"]

logger = logging.getLogger(__name__)

LOOK_MS: Final = 1_000

MOVE_AFTER_MS: Final = 12_000
"""Longer than a node that fails in the same way needs to say so in `eb:nodes`: 4.5 s and a heartbeat of the node."""


class Moving:
    """Looks whether the sessions are better off elsewhere.

    Args:
        hub: the sessions.
        readiness: knows whether the path of a delivery is proven.
        others: asks for the other nodes.
    """

    def __init__(
        self,
        hub: Hub[Session],
        readiness: Readiness,
        *,
        others: Callable[[], Awaitable[Sequence[NodeRecord]]],
    ) -> None:
        self._hub = hub
        self._readiness = readiness
        self._others = others

    async def run(self) -> None:
        """Looks once a second until it is cancelled."""
        while True:
            await asyncio.sleep(seconds(LOOK_MS))
            try:
                await self.look()
            except StoreError as error:
                # The whole store is away from here, so nobody knows who else is there: the sockets stay open.
                logger.debug("nobody knows of other nodes: %s", error)

    async def look(self) -> int:
        """Moves all sessions when that serves them. Returns how many.

        Raises:
            StoreError: the other nodes are not known.
        """
        if self._readiness.refused_ms() < MOVE_AFTER_MS:
            return 0
        others = await self._others()
        if not any(node.state == "ready" for node in others):
            return 0
        moved = [session for session in self._hub if session.is_open]
        per_second = taken_per_second(len(moved), others)
        for index, session in enumerate(moved):
            wait_ms = reconnect_after_ms(index, len(moved), per_second)
            session.send(GoAway(reason=GoAwayReason.REBALANCE, reconnect_after_ms=wait_ms))
            session.close(CloseCode.STORE_UNAVAILABLE, "the node can not read")
        if moved:
            logger.warning("%d sessions were sent to other nodes: %s", len(moved), self._readiness.problem())
        return len(moved)
