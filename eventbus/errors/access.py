"""Who may, and how much: tokens, scopes, limits."""

from __future__ import annotations

from eventbus.errors.root import CloseCode, EventBusError

__all__ = [
    "AuthError",
    "Forbidden",
    "RateLimited",
    "SessionRevoked",
    "TooManySessions",
]


class AuthError(EventBusError):
    """A token is missing, malformed, expired, or signed with the wrong key. The message never holds the token."""

    code = "unauthenticated"
    close_code = CloseCode.UNAUTHENTICATED

    def __init__(self, message: str, *, reason: str = "unauthenticated") -> None:
        super().__init__(message)
        self.reason = reason


class Forbidden(EventBusError):
    """The token is good and lacks the scope, or the origin is not on the list."""

    code = "forbidden"
    close_code = CloseCode.FORBIDDEN


class SessionRevoked(Forbidden):
    """The token is good, and the session that it asks for was revoked after the token was issued."""

    code = "session_revoked"
    close_code = CloseCode.SESSION_ENDED


class RateLimited(EventBusError):
    """A limit is reached; `retry_after_ms` says when another try makes sense."""

    code = "rate_limited"
    retryable = True
    close_code = CloseCode.RATE_LIMITED

    def __init__(self, message: str, *, retry_after_ms: int = 1000) -> None:
        super().__init__(message)
        self.retry_after_ms = retry_after_ms


class TooManySessions(RateLimited):
    """The user has as many live sessions as the tier allows."""

    code = "too_many_sessions"
