"""Limits of one node: handshakes and connections by address, frames by connection, sessions by user. Pure.

`now_ms` here is monotonic time. All tables are bounded. Who stands behind a shared proxy is never limited as one
client: what counts is the address that the proxy reports, and where it reports none there is no limit.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from enum import Enum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final

from eventbus.errors import RateLimited

__all__ = [
    "AddressConnections",
    "AddressRate",
    "FrameLimit",
    "FrameVerdict",
    "HandshakeLimit",
    "TokenBucket",
    "is_within",
    "limited_address",
]

FRAMES_BURST_S: Final = 10
STARVED_MAX_MS: Final = 30_000
ADDRESSES_MAX: Final = 20_000
_IDLE_CHECKS: Final = 2


class TokenBucket:
    """A bucket that fills at a steady rate. In thousandths of a token, so that all of it is whole numbers.

    Args:
        rate: tokens a second.
        capacity: most tokens in it; it begins full.
        now_ms: monotonic time.
    """

    __slots__ = ("_at_ms", "_level", "capacity", "rate")

    def __init__(self, rate: int, capacity: int, now_ms: int) -> None:
        self.rate = rate
        self.capacity = capacity
        self._level = capacity * 1000
        self._at_ms = now_ms

    def __repr__(self) -> str:
        return f"<TokenBucket {self._level / 1000:g} of {self.capacity} at {self.rate}/s>"

    def _fill(self, now_ms: int) -> None:
        # One token a second is one thousandth a millisecond. Most frames come in the millisecond of another.
        elapsed_ms = now_ms - self._at_ms
        if elapsed_ms > 0:
            self._level = min(self.capacity * 1000, self._level + elapsed_ms * self.rate)
            self._at_ms = now_ms

    def level(self, now_ms: int) -> int:
        """Whole tokens in the bucket."""
        self._fill(now_ms)
        return self._level // 1000

    def take(self, now_ms: int, tokens: int = 1) -> bool:
        """Take tokens if there are that many; else take none."""
        self._fill(now_ms)
        if self._level < tokens * 1000:
            return False
        self._level -= tokens * 1000
        return True

    def wait_ms(self, now_ms: int, tokens: int = 1) -> int:
        """Milliseconds until there are that many tokens; 0 when there are now. More than the capacity never come."""
        self._fill(now_ms)
        missing = min(tokens, self.capacity) * 1000 - self._level
        return max(0, -(-missing // self.rate))


class FrameVerdict(Enum):
    """What to do with a client's frame."""

    READ = "read"
    """Handle it."""
    PAUSE = "pause"
    """Hold it, stop reading the socket for `resume_in_ms`, then ask again."""
    CLOSE = "close"
    """Close with 4006: the client kept the bucket empty for too long."""


class FrameLimit:
    """A client's frames, and their bytes: ten seconds' worth of its tier's rate at once, then as many a second.

    A burst above that only waits; who keeps sending above the rate for 30 s is closed. The bucket counts as empty from
    the first frame that found none until it is half full again: a flooding client is read a little now and then, and
    its 30 s must not begin anew with each of these.

    Args:
        frames_per_second: of the tier.
        now_ms: monotonic time.
        bytes_per_second: of the tier.
        max_frame_bytes: the longest frame, for which there must be room.
    Source: docs/protocol.md, section 7.
    """

    __slots__ = ("_bucket", "_bytes", "_starved_since_ms")

    def __init__(
        self, frames_per_second: int, now_ms: int, *, bytes_per_second: int = 1024**3, max_frame_bytes: int = 0
    ) -> None:
        self._bucket = TokenBucket(frames_per_second, frames_per_second * FRAMES_BURST_S, now_ms)
        room = max(bytes_per_second * FRAMES_BURST_S, max_frame_bytes)
        self._bytes = TokenBucket(bytes_per_second, room, now_ms)
        self._starved_since_ms: int | None = None

    def take(self, now_ms: int, frame_bytes: int = 0) -> FrameVerdict:
        """Count one frame of so many bytes, if it may be handled now; a frame that may not is not counted."""
        frames, its_bytes = self._bucket, self._bytes
        if self._starved_since_ms is not None and all(
            2 * bucket.level(now_ms) >= bucket.capacity for bucket in (frames, its_bytes)
        ):
            self._starved_since_ms = None
        if frames.level(now_ms) >= 1 and its_bytes.take(now_ms, frame_bytes):
            frames.take(now_ms)
            return FrameVerdict.READ
        if self._starved_since_ms is None:
            self._starved_since_ms = now_ms
        starved_ms = now_ms - self._starved_since_ms
        return FrameVerdict.CLOSE if starved_ms >= STARVED_MAX_MS else FrameVerdict.PAUSE

    def resume_in_ms(self, now_ms: int, frame_bytes: int = 0) -> int:
        """How long to stop reading after `PAUSE`: until a second's worth is there, so that sockets do not flap, and
        the held frame of so many bytes can be handled.
        """
        its_bytes = self._bytes
        wanted = max(frame_bytes, min(its_bytes.rate, its_bytes.capacity // FRAMES_BURST_S))
        return max(self._bucket.wait_ms(now_ms, self._bucket.rate), its_bytes.wait_ms(now_ms, wanted))


class AddressRate:
    """How often one address does something in a second, for as many addresses as the table holds.

    Addresses that have been quiet leave the table a few with each call, and the longest unseen one leaves when it
    is full: whoever has more addresses than that is not held by a limit on addresses.

    Args:
        per_second: of one address; 0 is no limit.
        what: what is counted, for the message.
        burst_s: for so many seconds' worth there is room at once.
        addresses_max: rows of the table.
    """

    __slots__ = ("_addresses_max", "_buckets", "_capacity", "_per_second", "_what")

    def __init__(
        self, per_second: int, what: str, *, burst_s: int = FRAMES_BURST_S, addresses_max: int = ADDRESSES_MAX
    ) -> None:
        self._per_second = per_second
        self._capacity = per_second * burst_s
        self._what = what
        self._addresses_max = addresses_max
        self._buckets: OrderedDict[str, TokenBucket] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def check(self, address: str | None, now_ms: int, count: int = 1) -> None:
        """Count so many at once, or none. More than the table gives an address at once take all of it.

        Args:
            address: from `limited_address`; None is not limited.
            now_ms: monotonic time.
            count: how many.

        Raises:
            RateLimited: one too many; says when to try again.
        """
        if address is None or self._per_second == 0:
            return
        self._forget_idle(now_ms)
        bucket = self._buckets.get(address)
        if bucket is None:
            if len(self._buckets) >= self._addresses_max:
                self._buckets.popitem(last=False)
            bucket = self._buckets[address] = TokenBucket(self._per_second, self._capacity, now_ms)
        else:
            self._buckets.move_to_end(address)
        count = min(count, self._capacity)
        if not bucket.take(now_ms, count):
            raise RateLimited(
                f"more than {self._per_second} {self._what} a second from one address",
                retry_after_ms=max(1000, bucket.wait_ms(now_ms, count)),
            )

    def _forget_idle(self, now_ms: int) -> None:
        # The oldest are at the front. A few each time: a storm's table shrinks again, and no handshake pays for all.
        for _ in range(_IDLE_CHECKS):
            address = next(iter(self._buckets), None)
            if address is None or self._buckets[address].level(now_ms) < self._capacity:
                return
            del self._buckets[address]


class HandshakeLimit(AddressRate):
    """Handshakes of one address in a second.

    Args:
        per_second: handshakes of one address a second; 0 is no limit.
        addresses_max: rows of the table.
    """

    __slots__ = ()

    def __init__(self, per_second: int, *, addresses_max: int = ADDRESSES_MAX) -> None:
        super().__init__(per_second, "connections", burst_s=1, addresses_max=addresses_max)


class AddressConnections:
    """Open connections by address. A row lives as long as a connection of it, so the connections bound the table.

    Args:
        per_address: most at a time; 0 is no limit.
    """

    __slots__ = ("_counts", "_per_address")

    def __init__(self, per_address: int) -> None:
        self._per_address = per_address
        self._counts: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._counts)

    def add(self, address: str | None) -> None:
        """Count a connection that opens; each success needs its `remove`.

        Raises:
            RateLimited: the address has as many as it may; nothing was counted.
        """
        if address is None or self._per_address == 0:
            return
        count = self._counts.get(address, 0)
        if count >= self._per_address:
            raise RateLimited(
                f"{count} connections from one address are open, the most there may be", retry_after_ms=5000
            )
        self._counts[address] = count + 1

    def remove(self, address: str | None) -> None:
        """Count a connection that closed."""
        if address is None or self._per_address == 0:
            return
        count = self._counts[address] - 1
        if count:
            self._counts[address] = count
        else:
            del self._counts[address]


Network = IPv4Network | IPv6Network


def limited_address(client: str, trusted: Collection[Network]) -> str | None:
    """The row under which the limits by address count a client.

    Args:
        client: the client's address, as far as it is known: what `gateway.access.proxy` found.
        trusted: the trusted proxies.

    Returns:
        The address, for IPv6 its /64, since one host owns all of it. None where nobody can be limited: a trusted proxy
        that named no client, whose connections are those of many, or no address at all (a Unix socket).
    """
    address = _parsed(client)
    if address is None or _within(address, trusted):
        return None
    if isinstance(address, IPv6Address):
        return str(IPv6Network((int(address), 64), strict=False))
    return str(address)


def is_within(address: str, networks: Collection[Network]) -> bool:
    """Whether an address lies in one of the networks; no address lies in none."""
    parsed = _parsed(address)
    return parsed is not None and _within(parsed, networks)


def _parsed(text: str) -> IPv4Address | IPv6Address | None:
    try:
        address = ip_address(text)
    except ValueError:
        return None
    if isinstance(address, IPv6Address):
        return address.ipv4_mapped or address
    return address


def _within(address: IPv4Address | IPv6Address, networks: Collection[Network]) -> bool:
    return any(address in network for network in networks)
