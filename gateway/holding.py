"""What an operator wants of a node: to drain and stay until it is let go.

A held node takes no new connections, is not ready, and sends its clients elsewhere, each after a wait of its own. It
reads what it is told of by the store's list, at once when its channel says that the list has changed, and every five
seconds, for a message may be lost. A store that is away changes nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Final

from eventbus.clock import seconds
from eventbus.errors import CloseCode, StoreError
from eventbus.ids import NodeName
from eventbus.store import Store
from eventbus.store.mending import Hold
from eventbus.wire import GoAway, GoAwayReason
from gateway.counters import Counters
from gateway.drain import reconnect_after_ms
from gateway.sessions.hub import Hub
from gateway.sessions.session import Session

__all__ = ["HELD_LOOK_MS", "Holding"]

logger = logging.getLogger(__name__)

HELD_LOOK_MS: Final = 5_000
"""Time between two looks at the list."""

GRACE_MS: Final = 500
"""How long acks for what was sent before are waited for."""


class Holding:
    """Whether a node is held.

    Args:
        store: where the list is.
        node: the node's name.
        hub: its sessions.
        counters: for the store's errors.
        close_rest: closes the connections that have no session yet.

    Attributes:
        hold: by whom and why; None while it is not.
    """

    def __init__(
        self, store: Store, node: NodeName, hub: Hub[Session], counters: Counters, close_rest: Callable[[], None]
    ) -> None:
        self._store = store
        self._node = node
        self._hub = hub
        self._counters = counters
        self._close_rest = close_rest
        self._wanted = asyncio.Event()
        self.hold: Hold | None = None

    def __repr__(self) -> str:
        return f"<Holding {'free' if self.hold is None else self.hold}>"

    def look_at_once(self) -> None:
        """The list has changed."""
        self._wanted.set()

    async def run(self) -> None:
        """Looks until it is cancelled."""
        while True:
            self._wanted.clear()
            await self.look()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds(HELD_LOOK_MS)):
                    await self._wanted.wait()

    async def look(self) -> None:
        """Reads the list and does what it says. Cancellation leaves the rest to the next look."""
        try:
            held = await self._store.held_nodes()
        except StoreError as error:
            self._counters.store_errors[error.code] += 1
            return
        was, self.hold = self.hold, next((one for one in held if one.node == self._node), None)
        if was is None and self.hold is not None:
            logger.warning(
                "an operator drains the node until it is let go: %s",
                self.hold.reason or "no reason",
                extra={"by": self.hold.by},
            )
        elif was is not None and self.hold is None:
            logger.warning("the node is let go and takes connections again")
        if self.hold is not None:
            await self._send_away()

    async def _send_away(self) -> None:
        sessions = [session for session in self._hub if session.is_open]
        for index, session in enumerate(sessions):
            wait_ms = reconnect_after_ms(index, len(sessions))
            session.send(GoAway(reason=GoAwayReason.DRAINING, reconnect_after_ms=wait_ms))
        if sessions:
            await asyncio.sleep(seconds(GRACE_MS))
        told = set(sessions)
        for session in list(self._hub):
            if session.is_open and session not in told:
                # It was opened meanwhile, and comes after the others.
                wait_ms = reconnect_after_ms(len(told), len(told) + 1)
                session.send(GoAway(reason=GoAwayReason.DRAINING, reconnect_after_ms=wait_ms))
            session.close(CloseCode.DRAINING, "the node is draining")
        self._close_rest()
