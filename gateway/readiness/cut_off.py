"""Whether this node alone is cut off from a part of the store, while another node reaches all of it.

A part that is away from all nodes is no reason to leave the load balancer (`gateway.readiness.probes`). One that is
away from here alone is: its users would be served elsewhere. The nodes tell each other in `eb:nodes` which parts they
miss. Where that list is in the part that is away nobody knows, and the node stays; docs/decisions/0016 says why.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from eventbus.clock import seconds
from eventbus.errors import StoreError
from eventbus.store import NodeRecord
from eventbus.store.commands import NODE_LIFE_MS
from gateway.readiness.probes import Readiness

__all__ = ["CutOff"]

logger = logging.getLogger(__name__)

LOOK_MS: Final = 1_000


class CutOff:
    """Compares what this node reaches with what the others reach.

    Args:
        readiness: knows which parts of the store answer here.
        others: asks for the other nodes.

    Attributes:
        is_alone: a part of the store is away from here, and another node that is ready reaches everything.
        after_ms: a part must be away for so long before the others are asked: by then a node that misses the same part
            has found it out, and whatever it said before is out of the list, also what a node said that died since.
    """

    def __init__(self, readiness: Readiness, *, others: Callable[[], Awaitable[Sequence[NodeRecord]]]) -> None:
        self._readiness = readiness
        self._others = others
        self.is_alone = False
        self.after_ms = NODE_LIFE_MS + 2 * readiness.proof_life_ms

    def __repr__(self) -> str:
        return f"<CutOff {'alone' if self.is_alone else 'like the others'}>"

    def problem(self) -> str | None:
        """Why the node is not ready; None when it is no reason."""
        return "a part of the store is away from this node and not from others" if self.is_alone else None

    async def run(self) -> None:
        """Looks once a second until it is cancelled."""
        while True:
            await asyncio.sleep(seconds(LOOK_MS))
            await self.look()

    async def look(self) -> None:
        """Find out. When the others can not be asked, this node may be as they are."""
        was_alone, self.is_alone = self.is_alone, await self._is_alone()
        if self.is_alone and not was_alone:
            logger.warning("this node is cut off from a part of the store, and others are not: it is not ready")
        elif was_alone and not self.is_alone:
            logger.info("this node misses no part of the store any more, or the others miss it too")

    async def _is_alone(self) -> bool:
        readiness = self._readiness
        if readiness.store_failed_ms() or readiness.longest_failed_ms() < self.after_ms:
            return False
        try:
            others = await self._others()
        except StoreError as error:
            logger.debug("nobody knows what other nodes reach: %s", error)
            return False
        # A node of a release that does not tell is no witness.
        reaching = [node for node in others if node.state == "ready" and node.figures.get("lanes_away") == 0]
        return bool(reaching) and readiness.longest_failed_ms() >= self.after_ms
