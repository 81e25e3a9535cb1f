"""Readiness proves the delivery path: a write, a read and a wake-up came back within the last seconds (R30).

A store with several primaries is proven in each of its lanes. While one primary is away all nodes have lost the same
part of it, and its users can be served by none: the nodes stay ready, for the users of the others. A node that is deaf
in any part has a fault of its own, and leaves the load balancer.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Callable, Sequence
from typing import Final

from eventbus.clock import Clock, seconds
from eventbus.errors import StoreError, StoreMisconfigured
from eventbus.ids import NodeName, UserId
from eventbus.store import Store
from eventbus.store.topology import LANES
from gateway.readiness.proof import DEAF_AFTER_MS, Proof

__all__ = ["DEAF_AFTER_MS", "Readiness", "StoreClock"]

logger = logging.getLogger(__name__)

SOON_MS: Final = 250
"""Time between two probes while a part is not proven: at the start, and when one has not come back."""

DRAWS: Final = 128
"""So many tokens are drawn in search of one of a lane: that of twelve which is missed is found the next time."""


class Readiness:
    """The probes of a node.

    Args:
        store: what is probed; it says which lane a token has by `lane_of`, if it has several.
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
        self._lane_of: Callable[[UserId], int] | None = getattr(store, "lane_of", None)
        self._node = node
        self._clock = clock
        self._probe_ms = probe_ms
        self._proofs: dict[int, Proof] = {}
        self._away: tuple[int, ...] = ()
        self._at_once: dict[int, asyncio.Event] = {}
        self.proof_life_ms = Proof(probe_ms, 0).life_ms
        self.first = asyncio.Event()
        self.store_ahead_ms = 0

    def __repr__(self) -> str:
        return f"<Readiness {self.problem() or 'ready'}>"

    # --- how it stands ----------------------------------------------------------------------------------------------

    @property
    def parts(self) -> int:
        """In how many lanes the store is probed: one, unless it has several primaries."""
        return len(self._proofs)

    @property
    def proven(self) -> Sequence[int]:
        """The lanes that are proven."""
        now_ms = self._clock.monotonic_ms()
        return [lane for lane, proof in self._proofs.items() if proof.problem(now_ms) is None]

    def problem(self) -> str | None:
        """Why the node is not ready; None when it is."""
        now_ms = self._clock.monotonic_ms()
        proofs = list(self._proofs.values())
        if not proofs:
            return "no probe has come back yet"
        if all(proof.problem(now_ms) for proof in proofs):
            # That of the part that was well last.
            return max(proofs, key=lambda proof: -1 if proof.proven_ms is None else proof.proven_ms).problem(now_ms)
        if len(proofs) > 1 and any(proof.is_long_deaf(now_ms) for proof in proofs):
            return "the wake-ups of a part of the store do not come: the node is deaf for its users"
        return None

    @property
    def is_deaf(self) -> bool:
        """Whether the store answers and its wake-ups, or a part of them, do not come: sooner known than `problem`."""
        now_ms = self._clock.monotonic_ms()
        return any(proof.is_deaf(now_ms) for proof in self._proofs.values())

    def refused_ms(self) -> int:
        """For how long Redis has answered every probe, and refused it; 0 when it has not. That a probe is slow, or
        gets no answer, is no refusal: a busy node must not be taken for one that can not read.
        """
        now_ms = self._clock.monotonic_ms()
        return min((proof.refused_ms(now_ms) for proof in self._proofs.values()), default=0)

    def store_failed_ms(self) -> int:
        """For how long no write and read went through in any part; 0 while they do."""
        now_ms = self._clock.monotonic_ms()
        return min((proof.failed_ms(now_ms) for proof in self._proofs.values()), default=0)

    def longest_failed_ms(self) -> int:
        """The same of the part of which it is true for longest."""
        now_ms = self._clock.monotonic_ms()
        return max((proof.failed_ms(now_ms) for proof in self._proofs.values()), default=0)

    @property
    def lanes_away(self) -> int:
        """In how many lanes no write and read go through; the other nodes are told."""
        now_ms = self._clock.monotonic_ms()
        return sum(proof.failed_ms(now_ms) > 0 for proof in self._proofs.values())

    def failed_ms_of(self, user: UserId) -> int:
        """The same of the part where a user is."""
        proof = self._proofs.get(0 if self._lane_of is None else self._lane_of(user))
        return 0 if proof is None else proof.failed_ms(self._clock.monotonic_ms())

    # --- what happens -----------------------------------------------------------------------------------------------

    def probed(self, token: str) -> None:
        """A probe came back through the node's channel."""
        if any(proof.came(token) for proof in self._proofs.values()):
            self.first.set()

    def unsubscribed(self) -> None:
        """The subscription, or a part of it, was lost: the node is deaf from this moment, until a probe comes back."""
        now_ms = self._clock.monotonic_ms()
        for proof in self._proofs.values():
            proof.unsubscribed(now_ms)
        if len(self._proofs) > 1:
            # Which parts are still heard shows at once, and the sessions of these need not be looked after.
            self.probe_at_once()

    def stood_still(self, by_ms: int) -> None:
        """The node stood still for so long: the store is not to blame for that (D23)."""
        for proof in self._proofs.values():
            proof.stood_still(by_ms)

    def probe_at_once(self) -> None:
        """Something has changed (the channels are subscribed): the next probes need not wait for their time."""
        for event in self._at_once.values():
            event.set()

    # --- the probes -------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Probes until it is cancelled."""
        proving: dict[int, asyncio.Task[None]] = {}
        async with asyncio.TaskGroup() as group:
            while True:
                lanes = self._lanes()
                for lane in lanes - proving.keys():
                    self._proofs[lane] = Proof(self._probe_ms, self._clock.monotonic_ms())
                    self._at_once[lane] = asyncio.Event()
                    proving[lane] = group.create_task(self._prove(lane), name=f"readiness:{lane}")
                if len(lanes) == 1:
                    # It is one server, which was not known before its first answer.
                    for lane in proving.keys() - lanes:
                        proving.pop(lane).cancel()
                        del self._proofs[lane], self._at_once[lane]
                await self._compare_clocks()
                self._tell()
                await asyncio.sleep(seconds(min(self._probe_ms, 1_000)))

    def _lanes(self) -> set[int]:
        """The lanes there are. Whether a store is a Cluster shows with its first answer."""
        if self._lane_of is None:
            return {0}
        found: set[int] = set()
        for _ in range(DRAWS):
            found.add(self._lane_of(UserId(secrets.token_hex(8))))
            if len(found) == LANES:
                break
        return found

    async def _prove(self, lane: int) -> None:
        proof, at_once = self._proofs[lane], self._at_once[lane]
        while True:
            token = self._token_of(lane)
            proof.sends(token, self._clock.monotonic_ms())
            try:
                async with asyncio.timeout(seconds(max(self._probe_ms, 1_000))):
                    await self._store.probe(self._node, token)
                proof.wrote(token, self._clock.monotonic_ms())
            except StoreMisconfigured as error:
                proof.refused(str(error), self._clock.monotonic_ms())
            except StoreError as error:
                proof.failed(str(error))
            except TimeoutError:
                proof.failed("the store does not answer")
            await self._pause(proof, at_once)

    async def _pause(self, proof: Proof, at_once: asyncio.Event) -> None:
        is_well = proof.problem(self._clock.monotonic_ms()) is None
        pause_ms = self._probe_ms if is_well else min(self._probe_ms, SOON_MS)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds(pause_ms)):
                await at_once.wait()
        at_once.clear()

    def _token_of(self, lane: int) -> str:
        token = secrets.token_hex(8)
        if self._lane_of is not None:
            for _ in range(DRAWS):
                if self._lane_of(UserId(token)) == lane:
                    break
                token = secrets.token_hex(8)
        return token

    async def _compare_clocks(self) -> None:
        with contextlib.suppress(StoreError, TimeoutError):
            async with asyncio.timeout(seconds(max(self._probe_ms, 1_000))):
                self.store_ahead_ms = await self._store.ping() - self._clock.now_ms()

    def _tell(self) -> None:
        """Writes into the log when a part goes away or comes back."""
        now_ms = self._clock.monotonic_ms()
        away = tuple(sorted(lane for lane, proof in self._proofs.items() if proof.failed_ms(now_ms)))
        if away == self._away:
            return
        if away and len(away) < len(self._proofs):
            logger.warning(
                "a part of the store is away: its users wait, those of %d of %d lanes do not",
                len(self._proofs) - len(away), len(self._proofs),
            )  # fmt: skip
        elif self._away and not away and len(self._away) < len(self._proofs):
            logger.info("all parts of the store answer again")
        self._away = away


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
