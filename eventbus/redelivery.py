"""When an event is sent again, and when it is given up: the waits, as pure functions of the attempt.

Waits double with each attempt and carry up to 20 % of jitter, so that the windows of a thousand sessions which stalled
together do not come due together. The jitter is a hash of the entry and the attempt: no random source, and the same
wait when it is computed again.
"""

from __future__ import annotations

from dataclasses import dataclass
from zlib import crc32

from eventbus.errors import ConfigError
from eventbus.ids import EntryId

__all__ = ["RedeliveryPolicy", "ack_wait_ms", "nack_wait_ms"]

MAX_NACK_DELAY_MS = 3_600_000


@dataclass(frozen=True, slots=True, kw_only=True)
class RedeliveryPolicy:
    """The settings of redelivery.

    Attributes:
        ack_timeout_ms: how long an ack may take after the first delivery.
        max_deliveries: sent this often without an ack, an event is dead-lettered; at least 3.
        nack_wait_ms: the wait after a first nack that names none.
        max_wait_ms: no wait is longer, jitter aside.
        jitter: the largest part of a wait that is added to it, 0 to 1.
    """

    ack_timeout_ms: int = 30_000
    max_deliveries: int = 5
    nack_wait_ms: int = 1_000
    max_wait_ms: int = 300_000
    jitter: float = 0.2

    def __post_init__(self) -> None:
        """Checks the numbers. Raises: ConfigError."""
        for name in ("ack_timeout_ms", "nack_wait_ms", "max_wait_ms"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}: it must be at least 1 ms", field=name)
        if self.max_deliveries < 3:
            raise ConfigError(
                f"max_deliveries is {self.max_deliveries}: at least 3 attempts come before a dead letter",
                field="max_deliveries",
            )
        if not 0 <= self.jitter <= 1:
            raise ConfigError(f"jitter is {self.jitter}: it must be from 0 to 1", field="jitter")


def ack_wait_ms(policy: RedeliveryPolicy, attempts: int, entry: EntryId) -> int:
    """How long the ack of the delivery number `attempts` (from 1) of `entry` may take."""
    return _jittered(policy, policy.ack_timeout_ms, attempts, entry)


def nack_wait_ms(policy: RedeliveryPolicy, nacks: int, entry: EntryId, delay_ms: int | None) -> int:
    """How long a nacked entry waits before it is sent again.

    Args:
        policy: the settings.
        nacks: how often it was nacked, this one included.
        entry: the entry.
        delay_ms: what the client asked for, kept to the letter up to an hour; None for a wait that doubles with each
            nack.
    """
    if delay_ms is not None:
        return min(delay_ms, MAX_NACK_DELAY_MS)
    return _jittered(policy, policy.nack_wait_ms, nacks, entry)


def _jittered(policy: RedeliveryPolicy, first_ms: int, number: int, entry: EntryId) -> int:
    # 2**40 is beyond any max_wait_ms; without the bound a huge count would build a huge integer.
    wait_ms = min(first_ms << min(number - 1, 40), max(policy.max_wait_ms, first_ms))
    return wait_ms + int(wait_ms * policy.jitter * crc32(entry.encode(), number) / 0x1_0000_0000)
