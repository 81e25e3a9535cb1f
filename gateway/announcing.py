"""What a node tells the others of itself, in `eb:nodes`, and what they tell."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Protocol

from eventbus.clock import seconds
from eventbus.errors import StoreError
from eventbus.ids import NodeName
from eventbus.store import NodeRecord, Store
from gateway.config import NodeSettings
from gateway.counters import Counters
from gateway.readiness.probes import Readiness
from gateway.sessions.hub import Hub
from gateway.sessions.session import Session
from gateway.version import VERSION

__all__ = ["Announced", "Announcing"]

logger = logging.getLogger(__name__)


class Announced(Protocol):
    """What a node is asked for what it tells."""

    name: NodeName
    store: Store
    hub: Hub[Session]
    counters: Counters
    readiness: Readiness
    node_settings: NodeSettings
    started_ms: int

    @property
    def port(self) -> int:
        """The port that it accepts on."""

    @property
    def connections(self) -> int:
        """How many it has."""

    @property
    def draining(self) -> bool:
        """Whether it takes none."""

    def not_ready(self) -> str | None:
        """Why none should come here; None when they may."""


class Announcing:
    """Tells of one node.

    Args:
        node: of which it tells.
    """

    def __init__(self, node: Announced) -> None:
        self._node = node

    async def run(self) -> None:
        """Tells again and again until it is cancelled."""
        node = self._node
        while True:
            state = "draining" if node.draining else "ready" if node.not_ready() is None else "not_ready"
            try:
                await self.announce(state)
            except StoreError as error:
                node.counters.store_errors[error.code] += 1
            await asyncio.sleep(seconds(node.node_settings.liveness.node_heartbeat_ms))

    async def announce(self, state: str) -> None:
        """Writes what the node is and does. Raises: StoreError."""
        node = self._node
        settings = node.node_settings
        figures = {
            "connections": node.connections,
            "sessions": len(node.hub),
            "users": node.hub.users,
            "delivered": node.counters.events_delivered,
            "acked": node.counters.events_acked,
            # By this another node knows whether it alone is cut off from a part of the store.
            "lanes_away": node.readiness.lanes_away,
            # By these a node that drains tells how fast its clients may come here.
            "room": max(0, settings.limits.max_connections - node.connections),
            "handshakes_per_second": settings.limits.handshakes_per_second,
            # By these operators' tools tell the late from the young, whatever their own settings say.
            "ack_timeout_ms": settings.delivery.ack_timeout_ms,
            "max_wait_ms": settings.delivery.max_wait_ms,
        }
        record = NodeRecord(
            node=node.name,
            address=f"{settings.listen.host}:{node.port}",
            version=VERSION,
            state=state,
            started_ms=node.started_ms,
            figures=figures,
        )
        await node.store.beat_node(record)

    async def others(self) -> Sequence[NodeRecord]:
        """The other nodes, as they tell of themselves. Raises: StoreError."""
        return [record for record in await self._node.store.nodes() if record.node != self._node.name]

    async def leave(self) -> None:
        """Takes the node off the list."""
        try:
            await self._node.store.leave_node(self._node.name)
        except StoreError as error:
            logger.info("the node stays in the list for 15 s more: %s", error)
