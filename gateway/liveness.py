"""When a connection is looked at, and whether it may go on: pings, silence, the token's end, a backlog that stands still. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from eventbus.errors import CloseCode
from gateway.wheel import NEVER_MS

__all__ = ["Look", "Liveness", "LivenessRules"]


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
        "_backlog_since_ms",
        "_pinged_ms",
        "_rules",
        "_silence_max_ms",
        "beat_due_ms",
        "look_due_ms",
        "resume_due_ms",
    )

    def __init__(self, rules: LivenessRules, *, connection_timeout_ms: int, now_ms: int, spread: int) -> None:
        self._rules = rules
        self._silence_max_ms = max(rules.heartbeat_ms * 5 // 2, connection_timeout_ms)
        self._pinged_ms = now_ms
        self._backlog_since_ms: int | None = None
        half_ms = max(1, rules.beat_ms // 2)
        self.beat_due_ms = now_ms + half_ms + spread % half_ms
        self.look_due_ms = now_ms + 1 + spread % max(1, rules.heartbeat_ms // 2)
        self.resume_due_ms = NEVER_MS

    @property
    def due_ms(self) -> int:
        """The first of its due times."""
        return min(self.beat_due_ms, self.look_due_ms, self.resume_due_ms)

    def token_ends(self, now_ms: int, left_ms: int) -> None:
        """A token ends in `left_ms`: the connection is looked at then."""
        self.look_due_ms = min(self.look_due_ms, now_ms + max(0, left_ms))

    def look(self, now_ms: int, *, silent_ms: int, token_left_ms: int, owes: bool, waiting_bytes: int) -> Look:
        """Looks at a connection.

        Args:
            now_ms: monotonic time.
            silent_ms: since when nothing came from the client.
            token_left_ms: how long its token is good.
            owes: whether it has events that it has not acked; then their time-outs judge it.
            waiting_bytes: what waits to be written to it.
        """
        rules = self._rules
        if owes or waiting_bytes <= rules.backlog_bytes:
            self._backlog_since_ms = None
        elif self._backlog_since_ms is None:
            self._backlog_since_ms = now_ms
        stood_ms = 0 if self._backlog_since_ms is None else now_ms - self._backlog_since_ms
        self.look_due_ms = now_ms + max(1, min(rules.heartbeat_ms // 2, rules.stalled_ms // 4, token_left_ms))
        if token_left_ms <= 0:
            return Look(close=CloseCode.TOKEN_EXPIRED, reason="the token has expired")
        if silent_ms > self._silence_max_ms:
            return Look(close=CloseCode.HEARTBEAT_TIMEOUT, reason=f"nothing was heard for {silent_ms} ms")
        if stood_ms >= rules.stalled_ms:
            return Look(close=CloseCode.SLOW_CONSUMER, reason=f"{waiting_bytes} bytes were not read for {stood_ms} ms")
        if now_ms - self._pinged_ms >= rules.heartbeat_ms // 2:
            self._pinged_ms = now_ms
            return _PING
        return _FINE
