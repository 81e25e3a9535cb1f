"""Redis's errors become the bus's, here and nowhere else."""

from __future__ import annotations

from typing import Final

from eventbus.errors import StoreBusy, StoreError, StoreFull, StoreMisconfigured, StoreTimeout, StoreUnavailable

__all__ = ["Refused", "translate"]

_BUSY_CODES: Final = frozenset(
    (
        "ASK",
        "BUSY",
        "CLUSTERDOWN",
        "FAILOVER",
        "LOADING",
        "MASTERDOWN",
        "MISCONF",
        "MOVED",
        "NOREPLICAS",
        "READONLY",
        "REDIRECT",
        "TRYAGAIN",
        "UNBLOCKED",
    )
)
_RIGHTS_CODES: Final = frozenset(("NOAUTH", "NOPERM", "WRONGPASS"))


class Refused(Exception):
    """An error that is an answer: the connection behind it is in order."""

    @property
    def code(self) -> str:
        """Its first word, which Redis keeps stable."""
        return str(self).partition(" ")[0]


def translate(error: BaseException) -> StoreError:
    """The bus's error for an answer of a server, or for one of a socket or of a time-out."""
    text = str(error) or type(error).__name__
    if isinstance(error, StoreError):
        return error
    if isinstance(error, Refused):
        code = error.code
        if code == "OOM":
            return StoreFull(f"Redis is at its memory limit and refuses to store: {text}")
        if code in _RIGHTS_CODES:
            return StoreMisconfigured(f"Redis refuses the user, its password, or what it may do: {text}")
        if code in _BUSY_CODES:
            return StoreBusy(f"Redis can not answer now: {text}")
        # WRONGTYPE, an unknown command or flag, a script error: trying again changes nothing.
        return StoreMisconfigured(f"Redis can not do what is asked: {text}")
    if isinstance(error, TimeoutError):
        return StoreTimeout(f"Redis did not answer in time: {text}")
    if isinstance(error, OSError | EOFError):
        return StoreUnavailable(f"no connection to Redis: {text}")
    return StoreMisconfigured(f"an answer of Redis makes no sense: {type(error).__name__}: {text}")
