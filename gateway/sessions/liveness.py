"""When a connection is looked at, and whether it may go on: pings, silence, the token's end, a backlog. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from eventbus.errors import CloseCode
from gateway.transport.outbox import Backlog

__all__ = ["Liveness", "LivenessRules", "Look"]


AFTER_STALL_MS: Final = 1_000
"""How long after a stall of the node no client is judged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LivenessRules:
    """The numbers of a node.

    Attributes:
        heartbeat_ms: time between two pings.
        beat_ms: time between two heartbeats in Redis (D17).
        stalled_ms: so long may a backlog stand still, when the client owes nothing.
        backlog_bytes: more than this waiting is a backlog.
    """

    heartbeat_ms: int
    beat_ms: int
    stalled_ms: int
    backlog_bytes: int

    @property
    def look_ms(self) -> int:
        """Most time between two looks at a connection."""
        return min(self.heartbeat_ms // 2, self.stalled_ms // 4)


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What a look at a connection finds: a reason to close it, or else whether to ping it."""

    close: CloseCode | None = None
    reason: str = ""
    ping: bool = False


_FINE: Final = Look()
_PING: Final = Look(ping=True)


class Liveness:
    """The due times of one open connection.

    Args:
        rules: the node's.
        connection_timeout_ms: the tier's.
        now_ms: monotonic time.
        spread: a whole number that differs between connections: those of one storm do not beat together.
    """

    __slots__ = (
        "_ping_due_ms",
        "_rules",
        "_silence_max_ms",
        "beat_due_ms",
        "look_due_ms",
    )

    def __init__(self, rules: LivenessRules, *, connection_timeout_ms: int, now_ms: int, spread: int) -> None:
        self._rules = rules
        self._silence_max_ms = max(rules.heartbeat_ms * 5 // 2, connection_timeout_ms)
        half_ms = max(1, rules.beat_ms // 2)
        self.beat_due_ms = now_ms + half_ms + spread % half_ms
        self._ping_due_ms = now_ms + 1 + spread % rules.heartbeat_ms
        self.look_due_ms = now_ms + 1 + spread % max(1, rules.look_ms)

    @property
    def due_ms(self) -> int:
        """The first of its due times."""
        return min(self.beat_due_ms, self.look_due_ms)

    def token_ends(self, now_ms: int, left_ms: int) -> None:
        """A token ends in `left_ms`: the connection is looked at then."""
        self.look_due_ms = min(self.look_due_ms, now_ms + max(0, left_ms))

    def stood_still(self, now_ms: int) -> None:
        """The node stood still: what clients sent meanwhile may not be read yet, so nobody is judged just now (D23)."""
        self.look_due_ms = max(self.look_due_ms, now_ms + AFTER_STALL_MS)

    def look(self, now_ms: int, *, silent_ms: int, token_left_ms: int, owes: bool, backlog: Backlog) -> Look:
        """Looks at a connection.

        Args:
            now_ms: monotonic time.
            silent_ms: since when nothing came from the client.
            token_left_ms: how long its token is good.
            owes: whether it has events that it has not acked; then their time-outs judge it.
            backlog: what waits to be written to it.
        """
        rules = self._rules
        pings = self._ping_due_ms <= now_ms
        if pings:
            self._ping_due_ms = now_ms + rules.heartbeat_ms
        # A backlog is seen to stand still only by looking at it now and then.
        pause_ms = min(rules.look_ms, token_left_ms, self._ping_due_ms - now_ms)
        self.look_due_ms = now_ms + max(1, pause_ms)
        if token_left_ms <= 0:
            return Look(close=CloseCode.TOKEN_EXPIRED, reason="the token has expired")
        if silent_ms > self._silence_max_ms:
            return Look(close=CloseCode.HEARTBEAT_TIMEOUT, reason=f"nothing was heard for {silent_ms} ms")
        if not owes and backlog.waiting_bytes > rules.backlog_bytes and backlog.stalled_ms >= rules.stalled_ms:
            waiting, stood_ms = backlog.waiting_bytes, backlog.stalled_ms
            return Look(close=CloseCode.SLOW_CONSUMER, reason=f"{waiting} bytes were not read for {stood_ms} ms")
        return _PING if pings else _FINE
