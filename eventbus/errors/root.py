"""The root of all errors, what a caller decides by, and the codes that close a socket."""

from __future__ import annotations

from enum import IntEnum
from typing import ClassVar

__all__ = [
    "CloseCode",
    "ConfigError",
    "EventBusError",
]


class CloseCode(IntEnum):
    """WebSocket close codes: 4000-4499 reconnect, 4500-4999 do not. Source: docs/protocol.md, section 5."""

    NORMAL = 1000
    PROTOCOL_ERROR = 1002
    UNSUPPORTED_DATA = 1003
    ABNORMAL = 1006
    INVALID_DATA = 1007
    DRAINING = 4001
    SLOW_CONSUMER = 4002
    HEARTBEAT_TIMEOUT = 4003
    TOKEN_EXPIRED = 4004
    STORE_UNAVAILABLE = 4005
    RATE_LIMITED = 4006
    OVERLOADED = 4007
    PROTOCOL_VIOLATION = 4500
    UNAUTHENTICATED = 4501
    FORBIDDEN = 4502
    HELLO_TIMEOUT = 4503
    SUPERSEDED = 4504
    FRAME_TOO_LARGE = 4505
    SESSION_ENDED = 4506

    @property
    def reconnect(self) -> bool:
        """Whether a client that got this code comes back with the same session."""
        return not (4500 <= self < 5000 or self in (CloseCode.NORMAL, CloseCode.UNSUPPORTED_DATA))


class EventBusError(Exception):
    """The root: nothing of the bus raises anything else on purpose."""

    code: ClassVar[str] = "internal"
    retryable: ClassVar[bool] = False
    close_code: ClassVar[CloseCode | None] = None


class ConfigError(EventBusError):
    """A setting is missing or wrong; the process does not start (exit status 2)."""

    code = "bad_setting"

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field
