"""What is revoked, as a node knows it: all of it in memory, read before the node lets anybody in and each second after.

A message of the store makes the node read at once. It may be lost: then a second is what a revocation takes at most.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from eventbus.clock import Clock, seconds
from eventbus.errors import AuthError, SessionRevoked, StoreError, StoreUnavailable
from eventbus.ids import SessionId
from eventbus.store.revoking import NOTHING_SEEN, REVOCATIONS_MAX, Revocation, RevocationKind, RevokeStore
from gateway.access.auth import Identity
from gateway.counters import Counters

__all__ = ["LOOK_MS", "Revocations", "RevokedList"]

logger = logging.getLogger(__name__)

LOOK_MS: Final = 1_000
"""Time between two looks."""

PAGE_MAX: Final = 500
"""Most revocations of one read."""

SLACK_MS: Final = 2_000
"""What a look may take beside: the loop is busy, or Redis is."""

FORGET_LOOKS: Final = 300
"""After so many looks what has ended is forgotten."""


class RevokedList:
    """Revocations, and whom they strike. Pure.

    Args:
        most: how many are kept. The store keeps no more; beyond it are those that the store has lost, and the ones that
            end first go.
    """

    def __init__(self, most: int = 2 * REVOCATIONS_MAX) -> None:
        self._most = most
        self._known: dict[str, Revocation] = {}

    def __len__(self) -> int:
        return len(self._known)

    def add(self, revocation: Revocation) -> bool:
        """Takes one in, for good: a list that the store has lost is still obeyed. Returns whether it is new."""
        name = revocation.subject.name
        known = self._known.get(name)
        if known is not None:
            if known.revoked_ms >= revocation.revoked_ms and known.until_ms >= revocation.until_ms:
                return False
            # The clock of another server may be behind.
            revocation = replace(
                revocation,
                revoked_ms=max(known.revoked_ms, revocation.revoked_ms),
                until_ms=max(known.until_ms, revocation.until_ms),
            )
        self._known[name] = revocation
        return True

    def forget(self, now_ms: int) -> None:
        """Forgets what has ended by `now_ms`, wall time, and what is above the bound."""
        kept = [one for one in self._known.values() if one.until_ms > now_ms]
        if len(kept) > self._most:
            kept = sorted(kept, key=lambda one: one.until_ms)[-self._most :]
        self._known = {one.subject.name: one for one in kept}

    def find(self, identity: Identity, session: SessionId | None, now_ms: int) -> Revocation | None:
        """What strikes a token that is used for a session.

        Args:
            identity: what the token says.
            session: that of the connection; None where there is none (yet).
            now_ms: wall time, Unix milliseconds.
        """
        if not self._known:
            return None
        names = [f"user {identity.user}"]
        if identity.jti is not None:
            names.append(f"jti {identity.jti}")
        names += [f"session {identity.user} {name}" for name in (identity.session, session) if name is not None]
        for name in names:
            found = self._known.get(name)
            if found is not None and found.until_ms > now_ms and found.strikes(identity.issued_ms):
                return found
        return None

    def check(self, identity: Identity, session: SessionId | None, now_ms: int) -> None:
        """Checks that a token is not revoked, nor the session that it is used for; the arguments are those of `find`.

        Raises:
            AuthError: the token is, with the reason `token_revoked`.
            SessionRevoked: the session is, and the token is not bound to it.
        """
        found = self.find(identity, session, now_ms)
        if found is None:
            return
        if found.subject.kind is RevocationKind.SESSION and identity.session is None:
            raise SessionRevoked("the session was revoked; a newer token, or another session, is good")
        raise AuthError(f"the token was revoked ({found.subject.kind})", reason="token_revoked")


class Revocations:
    """Keeps a `RevokedList` as the store has it.

    Args:
        store: where they are.
        clock: the node's.
        counters: for the store's errors.
        struck: called with what was not known before, when the list has it.

    Attributes:
        known: the list.
        loaded: set when all of it has been read once.
        is_refused: the store answered the last look, and it can not be done: no time heals that.
    """

    def __init__(
        self,
        store: RevokeStore,
        clock: Clock,
        counters: Counters,
        *,
        struck: Callable[[Sequence[Revocation]], None] = lambda _fresh: None,
    ) -> None:
        self._store = store
        self._clock = clock
        self._counters = counters
        self._struck = struck
        self._mark = NOTHING_SEEN
        self._read_ms = clock.monotonic_ms()
        self._wanted = asyncio.Event()
        self.known = RevokedList()
        self.loaded = asyncio.Event()
        self.is_refused = False

    def __repr__(self) -> str:
        return f"<Revocations {len(self.known)} {self.problem() or 'read'}>"

    def check(self, identity: Identity, session: SessionId | None = None) -> None:
        """Checks that a token is not revoked, nor the session that it is used for.

        Raises:
            AuthError: the token is, with the reason `token_revoked`.
            SessionRevoked: the session is.
            StoreUnavailable: nobody knows: nothing has been read since the start.
        """
        if not self.loaded.is_set():
            raise StoreUnavailable("the revocations have not been read yet")
        self.known.check(identity, session, self._clock.now_ms())

    def unread_ms(self) -> int:
        """For how long they can not be read; 0 while they can."""
        silent_ms = self._clock.monotonic_ms() - self._read_ms
        return silent_ms if silent_ms > LOOK_MS + SLACK_MS else 0

    def problem(self) -> str | None:
        """Why nobody should come here; None when they may."""
        if not self.loaded.is_set():
            return "the revocations have not been read yet"
        unread_ms = self.unread_ms()
        return f"the revocations were not read for {unread_ms} ms" if unread_ms else None

    def stood_still(self, by_ms: int) -> None:
        """The node stood still for so long: the store is not to blame for that (D23)."""
        self._read_ms += by_ms

    def look_at_once(self) -> None:
        """Something was revoked."""
        self._wanted.set()

    async def load(self) -> None:
        """Reads what is new.

        Raises:
            StoreError: it can not be read.

        Cancellation loses nothing: what was read is kept, and the rest comes with the next call.
        """
        fresh: list[Revocation] = []
        try:
            while True:
                page = await self._store.revocations(self._mark, PAGE_MAX)
                self._mark = page.mark
                fresh += [one for one in page.revocations if self.known.add(one)]
                if not page.more:
                    break
        finally:
            if fresh:
                self._struck(fresh)
        self._read_ms = self._clock.monotonic_ms()
        self.is_refused = False
        self.loaded.set()

    async def run(self) -> None:
        """Looks until it is cancelled."""
        looks = 0
        while True:
            self._wanted.clear()
            try:
                await self.load()
            except StoreError as error:
                self._counters.store_errors[error.code] += 1
                self.is_refused = not error.retryable
                if not self.unread_ms():
                    logger.info("the revocations can not be read: %s", error)
            looks += 1
            if looks % FORGET_LOOKS == 0:
                self.known.forget(self._clock.now_ms())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds(LOOK_MS)):
                    await self._wanted.wait()
