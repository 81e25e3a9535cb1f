"""Keeps sessions' hold in Redis: attaches, re-attaches and heartbeats, in batches that leave in one write.

An attach is tried again until the store answers or the session is gone; those that failed share the waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from typing import Final

from eventbus.clock import seconds
from eventbus.errors import StoreError
from eventbus.ids import NodeName
from eventbus.store import Attached, AttachRefused, Beat, Store
from gateway.counters import Counters
from gateway.sessions.session import Session

__all__ = ["Keeper"]

logger = logging.getLogger(__name__)

BATCH_MAX: Final = 256
"""Most attaches or heartbeats of one write."""

PAUSE_MS: Final = 100
"""First wait after the store failed; doubles up to `PAUSE_MAX_MS`."""

PAUSE_MAX_MS: Final = 1_000


class Keeper:
    """The holds of a node's sessions."""

    def __init__(self, store: Store, node: NodeName, counters: Counters) -> None:
        self._store = store
        self._node = node
        self._counters = counters
        self._attaches: dict[Session, None] = {}
        self._failed: dict[Session, None] = {}
        self._beats: dict[Session, tuple[int, int]] = {}
        self._attach_wanted = asyncio.Event()
        self._beat_wanted = asyncio.Event()

    def __repr__(self) -> str:
        return f"<Keeper attaches={self.waiting} beats={len(self._beats)}>"

    @property
    def waiting(self) -> int:
        """How many attaches wait."""
        return len(self._attaches) + len(self._failed)

    def attach(self, session: Session) -> None:
        """Attaches a session soon; `session.attached` gets the answer."""
        self._attaches[session] = None
        self._attach_wanted.set()

    def beat(self, session: Session) -> None:
        """Renews a session's hold soon; `session.beaten` gets the answer, nothing does when the store fails."""
        self._beats[session] = session.belief
        self._beat_wanted.set()

    def forget(self, session: Session) -> None:
        """The session is gone."""
        self._attaches.pop(session, None)
        self._failed.pop(session, None)
        self._beats.pop(session, None)

    async def run_attaches(self) -> None:
        """Carries attaches out until it is cancelled; failed ones after a pause in which new ones go on."""
        loop = asyncio.get_running_loop()
        pause_ms, again_at = PAUSE_MS, 0.0
        while True:
            await self._next_attach(again_at)
            batch = _take(self._attaches, BATCH_MAX)
            pause_is_over = loop.time() >= again_at
            if pause_is_over:
                batch += _take(self._failed, BATCH_MAX - len(batch))
            answers = await asyncio.gather(*(self._attach(session) for session in batch))
            for session, answer in zip(batch, answers, strict=True):
                if answer is not None:
                    session.attached(answer)
                elif not session.is_closed:
                    self._failed[session] = None
            if None in answers:
                again_at = loop.time() + seconds(pause_ms)
                pause_ms = min(2 * pause_ms, PAUSE_MAX_MS)
            elif pause_is_over:
                pause_ms, again_at = PAUSE_MS, 0.0

    async def _next_attach(self, again_at: float) -> None:
        """Waits until there is something to attach."""
        if not self._attaches:
            self._attach_wanted.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(again_at if self._failed else None):
                    await self._attach_wanted.wait()

    async def _attach(self, session: Session) -> Attached | AttachRefused | None:
        if session.is_closed:
            return AttachRefused.LOST
        try:
            return await self._store.attach(replace(session.attach_request(), wanted=lambda: not session.is_closed))
        except StoreError as error:
            self._counters.store_errors[error.code] += 1
            # Also of a session that is gone by now: its attach may yet be carried out, and take its successor's hold.
            session.unanswered()
            return None

    async def run_beats(self) -> None:
        """Carries heartbeats out until it is cancelled."""
        while True:
            await self._beat_wanted.wait()
            self._beat_wanted.clear()
            batch = [(session, self._beats[session]) for session in islice(self._beats, BATCH_MAX)]
            for session, _ in batch:
                del self._beats[session]
            answers: Sequence[Beat | StoreError]
            try:
                answers = await self._store.heartbeat([session.fence for session, _ in batch], self._node)
            except StoreError as error:
                answers = [error] * len(batch)
            for (session, belief), answer in zip(batch, answers, strict=True):
                if isinstance(answer, StoreError):
                    self._counters.store_errors[answer.code] += 1
                else:
                    session.beaten(answer, belief)
            if self._beats:
                self._beat_wanted.set()


def _take(sessions: dict[Session, None], count: int) -> list[Session]:
    """Takes the first ones out."""
    taken = list(islice(sessions, count))
    for session in taken:
        del sessions[session]
    return taken
