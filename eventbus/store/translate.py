"""Redis's errors become the bus's, here and nowhere else."""

from __future__ import annotations

from typing import Final

from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    ClusterDownError,
    MasterDownError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import TimeoutError as RedisTimeoutError

from eventbus.errors import StoreBusy, StoreError, StoreFull, StoreMisconfigured, StoreTimeout, StoreUnavailable

__all__ = ["is_reply", "translate"]

_BUSY: Final = (BusyLoadingError, ClusterDownError, MasterDownError, ReadOnlyError, TryAgainError)
_BUSY_CODES: Final = frozenset(
    ("BUSY", "LOADING", "CLUSTERDOWN", "MASTERDOWN", "READONLY", "TRYAGAIN", "NOREPLICAS", "MISCONF", "UNBLOCKED")
)
_AUTHENTICATION: Final = (AuthenticationError, AuthorizationError, NoPermissionError)


def is_reply(error: BaseException) -> bool:
    """Whether the server answered with this error, so that the connection behind it is in order."""
    return isinstance(error, ResponseError | BusyLoadingError | AuthenticationError | AuthorizationError)


def translate(error: BaseException) -> StoreError:
    """The bus's error for one of redis-py, of a socket or of a time-out."""
    text = str(error) or type(error).__name__
    if isinstance(error, StoreError):
        return error
    if isinstance(error, OutOfMemoryError):
        return StoreFull(f"Redis is at its memory limit and refuses to store: {text}")
    if isinstance(error, _AUTHENTICATION):
        return StoreMisconfigured(f"Redis refuses the user or a command of its: {text}")
    if isinstance(error, _BUSY):
        return StoreBusy(f"Redis can not answer now: {text}")
    if isinstance(error, ResponseError):
        code = text.partition(" ")[0]
        if code == "OOM":
            return StoreFull(f"Redis is at its memory limit and refuses to store: {text}")
        if code in _BUSY_CODES:
            return StoreBusy(f"Redis can not answer now: {text}")
        # WRONGTYPE, an unknown command or flag, a script error: trying again changes nothing.
        return StoreMisconfigured(f"Redis can not do what is asked: {text}")
    if isinstance(error, RedisTimeoutError | TimeoutError):
        return StoreTimeout(f"Redis did not answer in time: {text}")
    if isinstance(error, RedisError | OSError | EOFError):
        return StoreUnavailable(f"no connection to Redis: {text}")
    return StoreMisconfigured(f"an answer of Redis makes no sense: {type(error).__name__}: {text}")
