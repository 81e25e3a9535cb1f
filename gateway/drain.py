"""How a node ends. The order stands here and nowhere else: a node that is told to stop loses nothing and surprises
nobody.

1. New connections get 503 (a browser is let in and closed with 4001), readiness says no, `eb:nodes` says `draining`.
2. Every client is told `goaway`, each with a wait of its own, so that they do not come back in one moment.
3. Nothing new is read. Acks that come within the grace are taken.
4. Acks are stored, holds are given up, connections close with 4001.
5. The listener ends when the last connection has gone, at least a second after the signal; the node leaves `eb:nodes`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Final, Protocol

from eventbus.clock import Clock, seconds
from eventbus.errors import CloseCode, StoreError
from eventbus.wire import GoAway, GoAwayReason
from gateway.hub import Hub
from gateway.reader import Reader
from gateway.sending import Sending
from gateway.session import Session

__all__ = ["Draining", "drain", "reconnect_after_ms"]

logger = logging.getLogger(__name__)

GRACE_MS: Final = 500
"""How long acks for what was sent before the signal are waited for."""

ANNOUNCE_MS: Final = 500
"""Longest wait for a store that is to hear of the drain: the clients are told all the same."""

LINGER_MS: Final = 1_000
"""The listener answers 503 at least so long, so that a load balancer sees it."""

SPREAD_PER_SESSION_MS: Final = 2
"""Clients come back at most so fast: 500 a second."""

SPREAD_MAX_MS: Final = 15_000


class Draining(Protocol):
    """What a drain needs of a node."""

    clock: Clock
    hub: Hub[Session]
    reader: Reader
    sending: Sending
    drain_ms: int

    async def announce(self, state: str) -> None:
        """Writes the node's state to `eb:nodes`."""

    def close_sockets(self, code: CloseCode, reason: str) -> None:
        """Closes every socket that is still open, also those without a session."""

    async def wait_closed(self, timeout_ms: int) -> bool:
        """Waits until no connection is left."""

    async def leave(self) -> None:
        """Ends the listener and takes the node off `eb:nodes`."""


def reconnect_after_ms(index: int, count: int) -> int:
    """The wait of client number `index` of `count`: evenly spread, at most 15 s."""
    spread_ms = min(count * SPREAD_PER_SESSION_MS, SPREAD_MAX_MS)
    return 50 + spread_ms * index // max(1, count)


async def drain(node: Draining) -> None:
    """Drains a node that has already stopped taking connections. Bounded by `drain_ms`; a store that is away only costs
    time.

    Cancellation leaves what is not done yet to the next attach of each session: nothing is lost, some events come
    twice.
    """
    start_ms = node.clock.monotonic_ms()
    end_ms = start_ms + node.drain_ms
    with contextlib.suppress(StoreError, TimeoutError):
        async with asyncio.timeout(seconds(ANNOUNCE_MS)):
            await node.announce("draining")
    sessions = [session for session in node.hub if session.is_open]
    for index, session in enumerate(sessions):
        wait_ms = reconnect_after_ms(index, len(sessions))
        session.send(GoAway(reason=GoAwayReason.DRAINING, reconnect_after_ms=wait_ms))
    node.reader.stop_reading()
    await _settle(node, min(GRACE_MS, node.drain_ms // 4))
    await node.sending.flush(max(1, (end_ms - node.clock.monotonic_ms()) // 4))
    await node.reader.flush(max(1, (end_ms - node.clock.monotonic_ms()) // 2))
    for session in node.hub:
        session.end(CloseCode.DRAINING)
    stored = await node.reader.flush(max(1, (end_ms - node.clock.monotonic_ms()) // 2))
    # Also those that have not said `hello` yet.
    node.close_sockets(CloseCode.DRAINING, "the node is draining")
    if not stored:
        logger.warning("the drain's time is over and acks are not stored: their events will be delivered again")
    await node.wait_closed(max(1, end_ms - node.clock.monotonic_ms()))
    left_ms = min(start_ms + LINGER_MS, end_ms) - node.clock.monotonic_ms()
    if left_ms > 0:
        await asyncio.sleep(seconds(left_ms))
    await node.leave()


async def _settle(node: Draining, grace_ms: int) -> None:
    """Waits for the acks of what is in flight, and not longer than the grace."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds(grace_ms)):
            while any(session.delivery.in_flight for session in node.hub if session.is_open):
                await node.reader.ack_came()
