"""What HTTP requests may cost: requests and events of an address, events and bytes of a user, bodies in memory.

Those of an address are counted by each node for itself. Those of a user, who may spread over all nodes, are kept in the
store; so they hold for as many nodes as there are.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from eventbus.clock import Clock, seconds
from eventbus.errors import RateLimited, StoreError
from eventbus.store.allowing import AllowStore, Spending
from eventbus.tiers import Tier
from gateway.access.auth import Identity
from gateway.access.limits import FRAMES_BURST_S, AddressRate, limited_address
from gateway.config import LimitSettings, ListenSettings
from gateway.counters import Counters

__all__ = ["BodiesFull", "BodyMeter", "Quotas"]

EVENTS_A_REQUEST: Final = 500
"""For so many there is room in an allowance, however slowly it grows: a request can hold that many."""

ASK_MS: Final = 1_000
"""How long the store may take to say whether a publish is within the allowance."""


class BodiesFull(RateLimited):
    """The node holds as many bytes of requests as it may."""

    code = "overloaded"


class Quotas:
    """The limits of one node's HTTP side.

    Args:
        store: where the allowances of users are.
        limits: the settings.
        listen: of these the trusted proxies.
        clock: the node's.
        counters: for what is refused.
    """

    def __init__(
        self, store: AllowStore, limits: LimitSettings, listen: ListenSettings, clock: Clock, counters: Counters
    ) -> None:
        self._store = store
        self._limits = limits
        self._trusted = listen.trusted_proxies
        self._clock = clock
        self._counters = counters
        self._requests = AddressRate(limits.requests_per_address, "requests")
        self._publishes = AddressRate(limits.publishes_per_address, "events")
        self._bodies_bytes = 0

    def __repr__(self) -> str:
        return f"<Quotas {len(self._requests)} addresses, {self._bodies_bytes} bytes of bodies>"

    @property
    def bodies_bytes(self) -> int:
        """How many bytes of bodies are held now."""
        return self._bodies_bytes

    def count_request(self, client: str) -> None:
        """Counts a request of an address.

        Raises:
            RateLimited: it has made more than it may.
        """
        self._check(self._requests, client, 1)

    async def count_publish(self, identity: Identity, tier: Tier, client: str | None, events: int, size: int) -> None:
        """Counts events of an address, and of a user on all nodes together.

        A store that does not answer refuses nothing here: the publish that follows finds out, and says so better.

        Args:
            identity: who publishes; what is published may be for others.
            tier: the caller's.
            client: the address that they came from, as `gateway.access.proxy` found it; None where there is none.
            events: their number.
            size: bytes of the body.

        Raises:
            RateLimited: more than the address or the tier allows; nothing of the user's allowance was taken.

        Cancellation may lose what was taken.
        """
        if client is not None:
            self._check(self._publishes, client, events)
        by_number = Spending(
            rate=tier.publishes_per_second,
            capacity=max(tier.publishes_per_second * FRAMES_BURST_S, EVENTS_A_REQUEST),
            cost=events,
        )
        by_size = Spending(
            rate=tier.publish_bytes_per_second,
            capacity=max(tier.publish_bytes_per_second * FRAMES_BURST_S, self._limits.max_body_bytes),
            cost=size,
        )
        try:
            async with asyncio.timeout(seconds(ASK_MS)):
                wait_ms = await self._store.spend(identity.user, (by_number, by_size))
        except (StoreError, TimeoutError) as error:
            self._counters.store_errors[getattr(error, "code", "store_timeout")] += 1
            return
        if wait_ms:
            self._counters.requests_limited["user"] += 1
            raise RateLimited(
                f"the tier {tier.name!r} allows {tier.publishes_per_second} events and {tier.publish_bytes_per_second}"
                " bytes a second",
                retry_after_ms=wait_ms,
            )

    @contextmanager
    def holding(self) -> Iterator[BodyMeter]:
        """Counts the bytes of one body for as long as it is held."""
        meter = BodyMeter(self)
        try:
            yield meter
        finally:
            self._bodies_bytes -= meter.held_bytes

    def hold(self, more_bytes: int) -> None:
        """Makes room for a part of a body.

        Raises:
            BodiesFull: there is none.
        """
        if self._bodies_bytes + more_bytes > self._limits.max_bodies_bytes:
            self._counters.requests_limited["bodies"] += 1
            raise BodiesFull(f"the node holds {self._bodies_bytes} bytes of requests, which is about its limit")
        self._bodies_bytes += more_bytes

    def _check(self, rate: AddressRate, client: str, count: int) -> None:
        try:
            rate.check(limited_address(client, self._trusted), self._clock.monotonic_ms(), count)
        except RateLimited:
            self._counters.requests_limited["address"] += 1
            raise


class BodyMeter:
    """The bytes that are held of one body."""

    __slots__ = ("_quotas", "held_bytes")

    def __init__(self, quotas: Quotas) -> None:
        self._quotas = quotas
        self.held_bytes = 0

    def add(self, more_bytes: int) -> None:
        """Counts a part that came. Raises: BodiesFull."""
        self._quotas.hold(more_bytes)
        self.held_bytes += more_bytes
