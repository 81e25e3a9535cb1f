"""The clock and the source of chance: the one place where time and random bytes enter.

Everything below takes `now_ms` or a `Clock`, so that a test can hand in its own time.
"""

from __future__ import annotations

import secrets
import time
from typing import Final, Protocol

from eventbus import ids

__all__ = [
    "Clock",
    "SystemClock",
    "new_connection_id",
    "new_epoch",
    "new_event_id",
    "new_session_id",
    "seconds",
]

_NS_PER_MS: Final = 1_000_000


class Clock(Protocol):
    """Where the time comes from."""

    def now_ms(self) -> int:
        """Wall time, Unix milliseconds: for what is stored or shown. It may jump."""
        ...

    def monotonic_ms(self) -> int:
        """Milliseconds from an arbitrary start that never run backwards: for deadlines and time-outs."""
        ...


class SystemClock:
    """The clock of the machine."""

    __slots__ = ()

    def now_ms(self) -> int:
        return time.time_ns() // _NS_PER_MS

    def monotonic_ms(self) -> int:
        return time.monotonic_ns() // _NS_PER_MS


def seconds(ms: int) -> float:
    """Milliseconds as the seconds that asyncio and sockets want: the only place where the unit changes."""
    return ms / 1000


def new_event_id(clock: Clock) -> ids.EventId:
    """Make an event id: a UUIDv7 of the clock's wall time, in lowercase. Source: RFC 9562, section 5.7."""
    return ids.event_id_from(clock.now_ms(), secrets.token_bytes(10))


def new_connection_id() -> ids.ConnectionId:
    """Make a connection id: 128 random bits, for it is the fencing token and must never repeat."""
    return ids.connection_id_from(secrets.token_bytes(16))


def new_session_id() -> ids.SessionId:
    """Make a session id for a client that brought none."""
    return ids.session_id_from(secrets.token_bytes(16))


def new_epoch() -> ids.Epoch:
    """Make the word that names one life of a partition's data: 64 random bits as 16 hex digits."""
    return ids.Epoch(secrets.token_hex(8))
