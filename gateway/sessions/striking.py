"""Whose connection ends because a right was taken away: a revocation came, or a key went."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from eventbus.clock import Clock
from eventbus.errors import CloseCode
from eventbus.store.revoking import Revocation, RevocationKind
from gateway.access.auth import Authenticator
from gateway.access.revocations import RevokedList
from gateway.sessions.hub import Hub
from gateway.sessions.opening import token_of
from gateway.sessions.session import Session

__all__ = ["Striking"]

logger = logging.getLogger("gateway.node")


class Striking:
    """Closes those who have lost a right.

    Args:
        hub: whom there is.
        authenticator: which keys still count.
        clock: of the machine.
    """

    def __init__(self, hub: Hub[Session], authenticator: Authenticator, clock: Clock) -> None:
        self._hub = hub
        self._authenticator = authenticator
        self._clock = clock

    def revoked(self, fresh: Sequence[Revocation], known: RevokedList) -> None:
        """Something was revoked: closes whom it strikes, as all that is `known` says."""
        if any(one.subject.kind is RevocationKind.JTI for one in fresh):
            looked_at = list(self._hub)
        else:
            users = {one.subject.user for one in fresh}
            looked_at = [session for user in users if user is not None for session in self._hub.of_user(user)]
        now_ms, struck = self._clock.now_ms(), 0
        for session in looked_at:
            found = known.find(token_of(session.identity), session.session_id, now_ms)
            if found is not None:
                struck += 1
                session.revoked(found.subject.kind)
        logger.info("%d revocations came, %d connections were closed", len(fresh), struck)

    def keys_gone(self) -> None:
        """Keys were taken away: closes whose tokens they verified, to come back with others."""
        struck = [
            session
            for session in self._hub
            if session.identity is not None and not self._authenticator.knows_key_of(session.identity)
        ]
        for session in struck:
            session.close(CloseCode.TOKEN_EXPIRED, "the key of the token has been taken away")
        logger.info("keys were taken away, %d connections were closed", len(struck))
