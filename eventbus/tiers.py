"""Tiers: what the users of each get, and the hierarchy of time-outs that a tier must keep (R24).

A token's claim `tier` names one. The built-in table can be changed and extended by a JSON file.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson

from eventbus.errors import ConfigError
from eventbus.kinds import Integer, Text
from eventbus.settings import check, setting

__all__ = [
    "AGENT_MARGIN_MS",
    "BUILT_IN_TIERS",
    "CONNECTION_MIN_MS",
    "ENTERPRISE_CONNECTION_MIN_MS",
    "Tier",
    "TierTable",
]

AGENT_MARGIN_MS: Final = 5_000
CONNECTION_MIN_MS: Final = 40_000
ENTERPRISE_CONNECTION_MIN_MS: Final = 60_000
DAY_MS: Final = 24 * 60 * 60_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Tier:
    """What the users of one tier get.

    Attributes:
        name: as the claim `tier` of a token gives it.
        agent_timeout_ms: a run that takes longer is marked.
        connection_timeout_ms: a connection without any sign of life for this long is closed.
        live_sessions: of one user, at a time.
        frames_per_second: that a client may send.
    """

    name: str
    agent_timeout_ms: int
    connection_timeout_ms: int
    live_sessions: int
    frames_per_second: int

    def __post_init__(self) -> None:
        _check_tier_values(self)
        # R24: the connection outlives the run that it shows, or a slow agent looks like a dead network.
        if self.agent_timeout_ms + AGENT_MARGIN_MS > self.connection_timeout_ms:
            raise ConfigError(
                f"tier {self.name!r}: agent_timeout_ms {self.agent_timeout_ms} and a margin of {AGENT_MARGIN_MS}"
                f" are above connection_timeout_ms {self.connection_timeout_ms}: raise the latter to at least"
                f" {self.agent_timeout_ms + AGENT_MARGIN_MS}",
                field="tiers",
            )
        least_ms = ENTERPRISE_CONNECTION_MIN_MS if self.name == "enterprise" else CONNECTION_MIN_MS
        if self.connection_timeout_ms < least_ms:
            raise ConfigError(
                f"tier {self.name!r}: connection_timeout_ms is {self.connection_timeout_ms}:"
                f" it must be at least {least_ms}",
                field="tiers",
            )

    @property
    def kept_sessions(self) -> int:
        """How many sessions of a user that are away are remembered; the longest unseen goes first."""
        return 4 * self.live_sessions


_TIER_FIELDS: Final = {
    "agent_timeout_ms": Integer(1, DAY_MS),
    "connection_timeout_ms": Integer(1, DAY_MS),
    "live_sessions": Integer(1, 100_000),
    "frames_per_second": Integer(1, 1_000_000),
}
_TIER_NAME: Final = Text(
    r"[a-z][a-z0-9_-]{0,31}", "a name of 1 to 32 of the characters a-z, 0-9, _ and -, beginning with a letter"
)


def _check_tier_values(tier: Tier) -> None:
    if not _TIER_NAME.accepts(tier.name):
        raise ConfigError(f"tier {tier.name!r}: its name must be {_TIER_NAME.allowed}", field="tiers")
    for name, kind in _TIER_FIELDS.items():
        value = getattr(tier, name)
        if not kind.accepts(value):
            raise ConfigError(f"tier {tier.name!r}: {name} is {value!r}: it must be {kind.allowed}", field="tiers")


BUILT_IN_TIERS: Final = (
    Tier(name="free", agent_timeout_ms=30_000, connection_timeout_ms=40_000, live_sessions=10, frames_per_second=20),
    Tier(name="pro", agent_timeout_ms=45_000, connection_timeout_ms=60_000, live_sessions=20, frames_per_second=50),
    Tier(
        name="enterprise",
        agent_timeout_ms=120_000,
        connection_timeout_ms=180_000,
        live_sessions=100,
        frames_per_second=500,
    ),
)


@dataclass(frozen=True, slots=True)
class _TiersFile:
    """A JSON file whose tiers are laid over the built-in ones."""

    allowed: str = "the name of a JSON file"

    def parse(self, text: str) -> tuple[Tier, ...]:
        try:
            given = orjson.loads(Path(text).read_bytes())
        except OSError as error:
            raise ConfigError(
                f"EVENTBUS_TIERS_FILE is {text!r}, which cannot be read: {error.strerror}", field="tiers"
            ) from None
        except ValueError as error:
            raise ConfigError(f"EVENTBUS_TIERS_FILE is {text!r}, which is not JSON: {error}", field="tiers") from None
        if not isinstance(given, dict):
            raise ConfigError(
                f"EVENTBUS_TIERS_FILE is {text!r}, which is not a JSON object of tiers by name", field="tiers"
            )
        tiers = {tier.name: tier for tier in BUILT_IN_TIERS}
        for name, values in given.items():
            tiers[name] = _tier_from(name, values, tiers.get(name))
        return tuple(tiers.values())

    def accepts(self, value: object) -> bool:
        return isinstance(value, tuple) and bool(value) and all(isinstance(tier, Tier) for tier in value)

    def show(self, value: Any) -> str:
        return ", ".join(tier.name for tier in value)


def _tier_from(name: str, values: object, base: Tier | None) -> Tier:
    if not isinstance(values, dict):
        raise ConfigError(f"tier {name!r} must be a JSON object", field="tiers")
    if unknown := sorted(set(values) - set(_TIER_FIELDS)):
        raise ConfigError(f"tier {name!r} has no field {unknown[0]!r}; it has {', '.join(_TIER_FIELDS)}", field="tiers")
    merged: dict[str, Any] = {
        field: values[field] if field in values else getattr(base, field, None) for field in _TIER_FIELDS
    }
    if missing := [field for field, value in merged.items() if value is None]:
        raise ConfigError(f"tier {name!r} lacks {missing[0]}", field="tiers")
    return Tier(name=name, **merged)


@dataclass(frozen=True, slots=True, kw_only=True)
class TierTable:
    """The configured tiers and the one for tokens that name none."""

    tiers: tuple[Tier, ...] = setting(
        BUILT_IN_TIERS,
        "TIERS_FILE",
        "Tiers by name, laid over the built-in ones; the fields are those of the table below.",
        _TiersFile(),
        default_text="",
    )
    default_tier: str = setting("free", "DEFAULT_TIER", "The tier of a token that names none.", _TIER_NAME)

    def __post_init__(self) -> None:
        check(self)
        if self.get(self.default_tier) is None:
            raise ConfigError(
                f"EVENTBUS_DEFAULT_TIER is {self.default_tier!r}: it must be a configured tier,"
                f" one of {', '.join(self.names)}",
                field="default_tier",
            )
        if len(set(self.names)) < len(self.tiers):
            raise ConfigError("two tiers have the same name", field="tiers")

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(tier.name for tier in self.tiers)

    def get(self, name: str) -> Tier | None:
        """The tier of that name; None when there is none."""
        return next((tier for tier in self.tiers if tier.name == name), None)

    def __getitem__(self, name: str) -> Tier:
        """The tier of that name, which is known to be one (a verified token names it). Raises: KeyError."""
        tier = self.get(name)
        if tier is None:
            raise KeyError(name)
        return tier
