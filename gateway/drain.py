"""How a node ends. The order stands here and nowhere else: a node that is told to stop loses nothing and surprises
nobody.

1. New connections get 503 (a browser is let in and closed with 4001), readiness says no, `eb:nodes` says `draining`.
2. Every client is told `goaway`, each with a wait of its own, so that they do not come back in one moment: the more
   nodes there are that take them, and the more each of these takes, the sooner.
3. Nothing new is read. Acks that come within the grace are taken.
4. Acks are stored, holds are given up, connections close with 4001: all of them now, whenever they are to come back.
   Whoever was opened meanwhile is told `goaway` first.
5. The listener ends when the last connection has gone, at least a second after the signal; the node leaves `eb:nodes`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterable, Sequence
from typing import Final, Protocol

from eventbus.clock import Clock, seconds
from eventbus.errors import CloseCode, StoreError
from eventbus.store import NodeRecord
from eventbus.wire import GoAway, GoAwayReason
from gateway.delivery.lanes import Readers, Senders
from gateway.sessions.hub import Hub
from gateway.sessions.session import Session

__all__ = ["Draining", "drain", "reconnect_after_ms", "taken_per_second"]

logger = logging.getLogger(__name__)

GRACE_MS: Final = 500
"""How long acks for what was sent before the signal are waited for."""

ANNOUNCE_MS: Final = 500
"""Longest wait for a store that is to hear of the drain, and tell of the other nodes: the clients are told all the
same."""

LINGER_MS: Final = 1_000
"""The listener answers 503 at least so long, so that a load balancer sees it."""

NODE_TAKES_PER_SECOND: Final = 500
"""Clients come back at most so fast to each node that takes them."""

SPREAD_MAX_MS: Final = 15_000
"""Nobody is sent away for longer; what is too much for the others then, their admission spreads further."""


class Draining(Protocol):
    """What a drain needs of a node."""

    clock: Clock
    hub: Hub[Session]
    reader: Readers
    sending: Senders
    drain_ms: int

    async def announce(self, state: str) -> None:
        """Writes the node's state to `eb:nodes`."""

    async def others(self) -> Sequence[NodeRecord]:
        """The other nodes, as they tell of themselves."""

    def close_sockets(self, code: CloseCode, reason: str) -> None:
        """Closes every socket that is still open, also those without a session."""

    async def wait_closed(self, timeout_ms: int) -> bool:
        """Waits until no connection is left."""

    async def leave(self) -> None:
        """Ends the listener and takes the node off `eb:nodes`."""


def reconnect_after_ms(index: int, count: int, per_second: int = NODE_TAKES_PER_SECOND) -> int:
    """The wait of client number `index` of `count`: evenly spread, at most 15 s.

    Args:
        index: from 0.
        count: all clients.
        per_second: how many the other nodes take.
    """
    spread_ms = min(count * 1_000 // max(1, per_second), SPREAD_MAX_MS)
    return 50 + spread_ms * index // max(1, count)


def taken_per_second(count: int, others: Iterable[NodeRecord]) -> int:
    """How many clients a second the others can take.

    A node takes a quarter of what it would admit, for others come to it too, and at most 500. Where all of them
    together have not enough room, clients come back as slowly as they may: some will be refused, but not twice.

    Args:
        count: the clients that come.
        others: what the other nodes tell. Those that are not ready take nobody. A release that does not tell its room
            or its pace has room, and takes 500.
    """
    ready = [node.figures for node in others if node.state == "ready"]
    if not ready:
        # A single node: it is back in a moment, or there is nobody to spare.
        return NODE_TAKES_PER_SECOND
    if sum(figures.get("room", count) for figures in ready) < count:
        return 1
    paces = (figures.get("handshakes_per_second", 0) or 4 * NODE_TAKES_PER_SECOND for figures in ready)
    return max(1, sum(min(NODE_TAKES_PER_SECOND, pace // 4) for pace in paces))


async def drain(node: Draining) -> None:
    """Drains a node that has already stopped taking connections. Bounded by `drain_ms`; a store that is away only costs
    time.

    Cancellation leaves what is not done yet to the next attach of each session: nothing is lost, some events come
    twice.
    """
    start_ms = node.clock.monotonic_ms()
    end_ms = start_ms + node.drain_ms
    others: Sequence[NodeRecord] = ()
    with contextlib.suppress(StoreError, TimeoutError):
        async with asyncio.timeout(seconds(ANNOUNCE_MS)):
            await node.announce("draining")
            others = await node.others()
    told: dict[Session, None] = {}
    _tell(node, told, others)
    node.reader.stop_reading()
    await _settle(node, min(GRACE_MS, node.drain_ms // 4))
    await node.sending.flush(max(1, (end_ms - node.clock.monotonic_ms()) // 4))
    await node.reader.flush(max(1, (end_ms - node.clock.monotonic_ms()) // 2))
    _tell(node, told, others)
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


def _tell(node: Draining, told: dict[Session, None], others: Iterable[NodeRecord]) -> None:
    """Tells those who have not been told yet, the last to come, when to come back."""
    sessions = [session for session in node.hub if session.is_open and session not in told]
    count = len(told) + len(sessions)
    per_second = taken_per_second(count, others)
    for index, session in enumerate(sessions, len(told)):
        wait_ms = reconnect_after_ms(index, count, per_second)
        session.send(GoAway(reason=GoAwayReason.DRAINING, reconnect_after_ms=wait_ms))
    told.update(dict.fromkeys(sessions))


async def _settle(node: Draining, grace_ms: int) -> None:
    """Waits for the acks of what is in flight, and not longer than the grace."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds(grace_ms)):
            while any(session.delivery.in_flight for session in node.hub if session.is_open):
                await node.reader.ack_came()
