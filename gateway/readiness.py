"""Readiness proves the delivery path: a write, a read and a wake-up came back within the last seconds (R30)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from typing import Final

from eventbus.clock import Clock, seconds
from eventbus.errors import StoreError, StoreMisconfigured
from eventbus.ids import NodeName
from eventbus.store import Store

__all__ = ["Readiness", "StoreClock"]

logger = logging.getLogger(__name__)

PROOF_LIFE_PROBES: Final = 2
"""A proof older than so many probes counts no more."""

DEAF_AFTER_MS: Final = 3_000
"""A wake-up that is so late makes the node look after its sessions by itself. Not sooner: in a storm a wake-up waits
for its turn in the loop, and a node that is only busy must not be given more to do.
"""

SLACK_MS: Final = 500
"""What a probe may take beside: the loop is busy, or Redis is."""


class Readiness:
    """The probes of a node.

    Args:
        store: what is probed.
        node: whose channel is probed.
        clock: the node's.
        probe_ms: time between two probes.

    Attributes:
        first: set when a probe has come back.
        proof_life_ms: a proof older than this counts no more.
        store_ahead_ms: how far the store's clock is ahead of this machine's, as last seen.
    """

    def __init__(self, store: Store, node: NodeName, clock: Clock, *, probe_ms: int) -> None:
        self._store = store
        self._node = node
        self._clock = clock
        self._probe_ms = probe_ms
        self.proof_life_ms = PROOF_LIFE_PROBES * probe_ms + SLACK_MS
        self._sent: dict[str, int] = {}
        self._proven_ms: int | None = None
        self._written_ms: int | None = None
        self._unheard_ms: int | None = None
        self._refused_since_ms: int | None = None
        self._problem = "no probe has come back yet"
        self._at_once = asyncio.Event()
        self.first = asyncio.Event()
        self.store_ahead_ms = 0

    def __repr__(self) -> str:
        return f"<Readiness {self.problem() or 'ready'}>"

    def probed(self, token: str) -> None:
        """A probe came back through the node's channel."""
        sent_ms = self._sent.pop(token, None)
        if sent_ms is not None:
            # What is proven is the path at the moment when the probe was written.
            self._proven_ms = max(sent_ms, self._proven_ms or 0)
            self._unheard_ms = None
            self.first.set()

    def problem(self) -> str | None:
        """Why the node is not ready; None when it is."""
        if self._proven_ms is None:
            return self._problem
        age_ms = self._clock.monotonic_ms() - self._proven_ms
        if age_ms > self.proof_life_ms:
            return f"no probe came back for {age_ms} ms: {self._problem}"
        return None

    @property
    def is_deaf(self) -> bool:
        """Whether the store answers and its wake-ups do not come: sooner known than `problem`."""
        if self._unheard_ms is None or self.store_failed_ms():
            return False
        return self._clock.monotonic_ms() - self._unheard_ms >= DEAF_AFTER_MS

    def refused_ms(self) -> int:
        """For how long Redis has answered every probe, and refused it; 0 when it has not. That a probe is slow, or
        gets no answer, is no refusal: a busy node must not be taken for one that can not read.
        """
        return 0 if self._refused_since_ms is None else self._clock.monotonic_ms() - self._refused_since_ms

    def unsubscribed(self) -> None:
        """The subscription was lost: the node is deaf from this moment."""
        self._unheard_ms = self._clock.monotonic_ms() - DEAF_AFTER_MS

    def store_failed_ms(self) -> int:
        """For how long no write and read went through; 0 while they do."""
        if self._written_ms is None:
            return 0
        silent_ms = self._clock.monotonic_ms() - self._written_ms
        return silent_ms if silent_ms > self.proof_life_ms else 0

    def stood_still(self, by_ms: int) -> None:
        """The node stood still for so long: the store is not to blame for that (D23)."""
        if self._written_ms is not None:
            self._written_ms += by_ms

    def probe_at_once(self) -> None:
        """Something has changed (the channels are subscribed): the next probe need not wait for its time."""
        self._at_once.set()

    async def run(self) -> None:
        """Probes until it is cancelled."""
        self._written_ms = self._clock.monotonic_ms()
        while True:
            token = self._next_token()
            try:
                async with asyncio.timeout(seconds(max(self._probe_ms, 1_000))):
                    await self._store.probe(self._node, token)
                    self.store_ahead_ms = await self._store.ping() - self._clock.now_ms()
                self._written_ms = self._clock.monotonic_ms()
                if token in self._sent and self._unheard_ms is None:
                    self._unheard_ms = self._sent[token]
                self._problem = "the wake-up of the last probe has not come: the node is deaf"
                self._refused_since_ms = None
            except StoreMisconfigured as error:
                self._problem = str(error)
                if self._refused_since_ms is None:
                    self._refused_since_ms = self._clock.monotonic_ms()
            except StoreError as error:
                self._problem = str(error)
                self._refused_since_ms = None
            except TimeoutError:
                self._problem = "the store does not answer"
                self._refused_since_ms = None
            # At the start, and while it is not ready, a proof is looked for more often.
            await self._pause(self._probe_ms if self.problem() is None else min(self._probe_ms, 250))

    async def _pause(self, pause_ms: int) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds(pause_ms)):
                await self._at_once.wait()
        self._at_once.clear()

    def _next_token(self) -> str:
        now_ms = self._clock.monotonic_ms()
        # A wake-up may be later than the next probe, and still proves the path; one that is too old proves nothing.
        self._sent = {token: at_ms for token, at_ms in self._sent.items() if now_ms - at_ms <= self.proof_life_ms}
        token = secrets.token_hex(8)
        self._sent[token] = now_ms
        return token


class StoreClock:
    """The node's clock with the store's wall time, as far as the probes know it.

    Args:
        clock: the node's.
        readiness: how far the store's is ahead.
    """

    __slots__ = ("_clock", "_readiness")

    def __init__(self, clock: Clock, readiness: Readiness) -> None:
        self._clock = clock
        self._readiness = readiness

    def now_ms(self) -> int:
        """See `Clock.now_ms`."""
        return self._clock.now_ms() + self._readiness.store_ahead_ms

    def monotonic_ms(self) -> int:
        """See `Clock.monotonic_ms`."""
        return self._clock.monotonic_ms()
