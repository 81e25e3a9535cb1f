"""What the store tells a node through its channels, on its way to whom it concerns: an `eventbus.store.Listener`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Final

from eventbus.clock import Clock
from eventbus.errors import CloseCode
from eventbus.ids import ConnectionId, EntryId, RunId, SessionId, UserId
from eventbus.store.mending import DeadLettered, EndSession, LookAgain, LookAtHeld, Order, SendAgain
from gateway.access.revocations import Revocations
from gateway.counters import Counters
from gateway.delivery.lanes import Keepers
from gateway.delivery.texting import Texting
from gateway.holding import Holding
from gateway.readiness.probes import Readiness
from gateway.sessions.hub import Hub
from gateway.sessions.session import Session

__all__ = ["Hearing"]

logger = logging.getLogger("gateway.node")

TROUBLE_MS: Final = 30_000
"""So long after trouble with the store may it name a holder of the past for a session."""


class Hearing:
    """Hands on what was heard. Called in the event loop.

    Args:
        hub: the sessions of the node.
        clock: of the machine.
        counters: what is counted.
        keeper: asks Redis who has a session.
        texting: the token streams.
        readiness: whether the wake-ups come.
        revocations: what is revoked.
        holding: what an operator wants of the node.
    """

    def __init__(
        self,
        hub: Hub[Session],
        clock: Clock,
        counters: Counters,
        *,
        keeper: Keepers,
        texting: Texting,
        readiness: Readiness,
        revocations: Revocations,
        holding: Holding,
    ) -> None:
        self._hub = hub
        self._clock = clock
        self._counters = counters
        self._keeper = keeper
        self._texting = texting
        self._readiness = readiness
        self._revocations = revocations
        self._holding = holding
        self._trouble_ms = -TROUBLE_MS

    def woken(self, user: UserId) -> None:
        self._counters.wakeups += 1
        # A copy: an input may end a session, which leaves the hub.
        for session in list(self._hub.of_user(user)):
            session.woken()

    def displaced(self, user: UserId, session: SessionId, connection: ConnectionId) -> None:
        # The message may be older than the hold of a connection that is here now: Redis says who has it.
        for seated in list(self._hub.of_user(user)):
            if seated.session_id == session and seated.connection_id != connection and seated.doubted():
                self._keeper.beat(seated)

    def acked_elsewhere(self, user: UserId, session: SessionId, entries: Sequence[EntryId]) -> None:
        for seated in list(self._hub.of_user(user)):
            if seated.session_id == session:
                seated.acked_elsewhere(entries)

    def released(self, user: UserId, session: SessionId, entries: Sequence[EntryId]) -> None:
        for seated in list(self._hub.of_user(user)):
            if seated.session_id == session:
                seated.released_elsewhere(entries)

    def text_came(self, user: UserId, run: RunId) -> None:
        self._texting.came(user, run)

    def revoked(self) -> None:
        self._revocations.look_at_once()

    def ordered(self, order: Order) -> None:
        match order:
            case LookAtHeld():
                self._holding.look_at_once()
            case EndSession():
                for session in self._seated(order.user, order.session):
                    session.close(CloseCode.SESSION_ENDED, "the session was ended")
            case SendAgain():
                for session in self._seated(order.user, order.session):
                    session.send_again(order.entries)
            case DeadLettered():
                for session in self._seated(order.user, order.session):
                    session.dead_lettered_elsewhere(order.entries)
            case LookAgain():
                for session in self._seated(order.user, order.session):
                    session.reattach("operator")

    def _seated(self, user: UserId, session: SessionId) -> list[Session]:
        return [seated for seated in self._hub.of_user(user) if seated.session_id == session]

    def probed(self, token: str) -> None:
        self._readiness.probed(token)

    @property
    def store_was_in_trouble(self) -> bool:
        return self._clock.monotonic_ms() - self._trouble_ms < TROUBLE_MS

    def troubled(self) -> None:
        """From now on the store may name a holder of the past."""
        self._trouble_ms = self._clock.monotonic_ms()

    def subscribed(self) -> None:
        self._counters.subscriptions += 1
        if self._counters.subscriptions > 1:
            self.troubled()
        self._readiness.probe_at_once()
        self._revocations.look_at_once()
        if self._counters.subscriptions > 1:
            logger.info("subscribed again: %d sessions are attached again", len(self._hub))
        for session in self._hub:
            session.reattach("subscribed")
        if self._counters.subscriptions > 1:
            self._texting.subscribed()

    def resubscribed(self, concerns: Callable[[UserId], bool]) -> None:
        self.troubled()
        self._readiness.probe_at_once()
        self._revocations.look_at_once()
        again = [session for session in self._hub if concerns(session.user)]
        logger.info("subscribed again to some partitions: %d sessions are attached again", len(again))
        for session in again:
            session.reattach("subscribed")
        self._texting.subscribed()

    def unsubscribed(self, reason: str) -> None:
        self.troubled()
        logger.warning("the wake-ups are gone: %s", reason)
        self._readiness.unsubscribed()
