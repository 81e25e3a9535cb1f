"""The fields of an event, each with the one function that judges it. Pure. Source: docs/protocol.md, section 3."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, TypeVar

from eventbus.errors import InvalidField
from eventbus.ids import parse_event_id, parse_run_id, parse_thread_id, parse_user_id
from eventbus.jsonvalue import MAX_INTEGER

__all__ = [
    "READERS",
    "Deliver",
    "Level",
    "Require",
    "parse_deliver",
    "parse_event_type",
    "parse_integer",
    "parse_object",
    "parse_require",
    "parse_seq",
    "parse_trace",
    "parse_word",
    "refuse_missing",
]

WordT = TypeVar("WordT", bound=StrEnum)

_TYPE: Final = re.compile(r"[a-z][a-z0-9_.]{0,63}")
_TRACE: Final = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


class Level(StrEnum):
    """How far a client has confirmed an event; each level implies those before it, and they compare in this order."""

    RECEIVED = "received"
    DISPLAYED = "displayed"
    CONFIRMED = "confirmed"

    @property
    def rank(self) -> int:
        """0 for `received`, 2 for `confirmed`."""
        return _RANKS[self]

    # A StrEnum would compare by the alphabet, where "confirmed" is the least.
    def __lt__(self, other: str) -> bool:
        return self.rank < Level(other).rank

    def __le__(self, other: str) -> bool:
        return self.rank <= Level(other).rank

    def __gt__(self, other: str) -> bool:
        return self.rank > Level(other).rank

    def __ge__(self, other: str) -> bool:
        return self.rank >= Level(other).rank


_RANKS: Final = {level: rank for rank, level in enumerate(Level)}


class Deliver(StrEnum):
    """Whom an event is for: every session of the user, or any one of them."""

    EACH = "each"
    ANY = "any"


@dataclass(frozen=True, slots=True, kw_only=True)
class Require:
    """A demanded confirmation.

    Attributes:
        level: what must be confirmed.
        within_ms: how long it may take, from the publish.
    """

    level: Level
    within_ms: int


def parse_event_type(value: object, field: str = "type") -> str:
    """Check a type of event. Raises: InvalidField. Source: docs/protocol.md, section 3."""
    if not isinstance(value, str):
        raise InvalidField(field, f"must be a string, not {type(value).__name__}")
    if not _TYPE.fullmatch(value):
        raise InvalidField(field, f"{value[:40]!r} does not match [a-z][a-z0-9_.]{{0,63}}")
    return value


def parse_integer(value: object, name: str, least: int = 0) -> int:
    """Check an integer from `least` to 2**53. Raises: InvalidField."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise InvalidField(name, f"must be an integer, not {type(value).__name__}")
    if not least <= value <= MAX_INTEGER:
        raise InvalidField(name, f"must be from {least} to 2**53")
    return int(value)


def parse_word(kind: type[WordT], value: object, name: str) -> WordT:
    """Check a word of an enum. Raises: InvalidField, with the words there are."""
    if not isinstance(value, str):
        raise InvalidField(name, f"must be a string, not {type(value).__name__}")
    try:
        return kind(value)
    except ValueError:
        raise InvalidField(name, f"must be one of {', '.join(kind)}") from None


def parse_deliver(value: object, name: str) -> Deliver:
    """Check `each` or `any`. Raises: InvalidField."""
    return parse_word(Deliver, value, name)


def parse_trace(value: object, name: str = "trace") -> str:
    """Check a traceparent. Raises: InvalidField. Source: W3C Trace Context, section 3.2."""
    if not isinstance(value, str):
        raise InvalidField(name, f"must be a string, not {type(value).__name__}")
    if not _TRACE.fullmatch(value):
        raise InvalidField(name, f"{value[:60]!r} is no traceparent like 00-<32 hex digits>-<16 hex digits>-01")
    return value


def parse_require(value: object, name: str = "require") -> Require:
    """Check a demanded confirmation. Raises: InvalidField, `field` being `require.level` and the like."""
    fields = parse_object(value, name)
    for part in ("level", "within_ms"):
        if part not in fields:
            raise InvalidField(f"{name}.{part}", "is missing")
    return Require(
        level=parse_word(Level, fields["level"], f"{name}.level"),
        within_ms=parse_integer(fields["within_ms"], f"{name}.within_ms", 1),
    )


def parse_seq(value: object, name: str) -> int:
    """Check an integer from 1. Raises: InvalidField."""
    return parse_integer(value, name, 1)


def parse_object(value: object, name: str) -> dict[str, Any]:
    """Check that a decoder gave an object with strings as keys. Raises: InvalidField."""
    if not isinstance(value, dict):
        raise InvalidField(name, f"must be a JSON object, not {type(value).__name__}")
    for key in value:
        if not isinstance(key, str):
            raise InvalidField(name, f"has a key of type {type(key).__name__}; keys are strings")
    return value


def refuse_missing(fields: Mapping[str, Any], names: tuple[str, ...]) -> None:
    """Check that fields are there. Raises: InvalidField, for the first that is not."""
    for name in names:
        if name not in fields:
            raise InvalidField(name, "is missing")


READERS: Final[Mapping[str, Callable[[Any, str], Any]]] = {
    "id": parse_event_id,
    "type": parse_event_type,
    "user": parse_user_id,
    "thread": parse_thread_id,
    "run": parse_run_id,
    "seq": parse_seq,
    "time_ms": parse_integer,
    "require": parse_require,
    "deliver": parse_deliver,
    "expires_ms": parse_integer,
    "trace": parse_trace,
    "v": parse_seq,
}
"""Every field but `data`, whose rules depend on where it comes from."""
