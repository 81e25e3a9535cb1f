"""Tiers: what the users of each get, and the hierarchy of time-outs that a tier must keep (R24).

A token's claim `tier` names one. The built-in table can be changed and extended by a JSON file.

The hierarchy, from the inside out: each deadline within a run <= the run's own (the agent timeout); a wait for a
confirmation <= the agent timeout, or an agent that waits for its user runs late by that alone; agent timeout + 5 s <=
connection timeout, or a slow agent looks like a dead network; the connection timeout has a least value.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson

from eventbus.errors import ConfigError
from eventbus.kinds import Integer, Text
from eventbus.settings import check, setting
from eventbus.watch import RunLimits

__all__ = [
    "AGENT_MARGIN_MS",
    "BUILT_IN_TIERS",
    "CONNECTION_MIN_MS",
    "ENTERPRISE_CONNECTION_MIN_MS",
    "TIER_NAME",
    "Tier",
    "TierTable",
]

AGENT_MARGIN_MS: Final = 5_000
CONNECTION_MIN_MS: Final = 40_000
ENTERPRISE_CONNECTION_MIN_MS: Final = 60_000
DAY_MS: Final = 24 * 60 * 60_000

_AS_AGENT: Final = 0
"""Stands for the usual value, or the agent timeout where that is less."""

_USUAL_MS: Final = {
    "started_within_ms": 1_000,
    "thinking_within_ms": 2_000,
    "executing_within_ms": 3_000,
    "completed_within_ms": 5_000,
    "confirmation_timeout_ms": DAY_MS,
}

_USUAL_RATES: Final = {
    "bytes_per_second": 128 * 1024,
    "publishes_per_second": 1_000,
    "publish_bytes_per_second": 4 * 1024 * 1024,
}
"""Rates of a tier that does not say; unlike the usual times they are ordinary defaults."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tier:
    """What the users of one tier get. The deadlines of a run and the wait for a confirmation are never above the agent
    timeout: where they are not given, a shorter one shortens them.

    Attributes:
        name: as the claim `tier` of a token gives it.
        agent_timeout_ms: a run that takes longer is marked, and ended only where its `on_timeout` says so.
        connection_timeout_ms: a connection without any sign of life for this long is closed.
        live_sessions: of one user, at a time.
        frames_per_second: that a client may send, each connection for itself.
        bytes_per_second: that a client's frames may have together, each connection for itself.
        publishes_per_second: events that a user may publish over HTTP, on all nodes together.
        publish_bytes_per_second: bytes that the bodies of these requests may have together.
        started_within_ms: a run starts so long after it was asked for.
        thinking_within_ms: ... and its agent thinks so long after that.
        executing_within_ms: a tool is told of so long after it was entered.
        completed_within_ms: ... and is through so long after that.
        confirmation_timeout_ms: how long a wait for a confirmation is that gives no time of its own.
    """

    name: str
    agent_timeout_ms: int
    connection_timeout_ms: int
    live_sessions: int
    frames_per_second: int
    bytes_per_second: int = _USUAL_RATES["bytes_per_second"]
    publishes_per_second: int = _USUAL_RATES["publishes_per_second"]
    publish_bytes_per_second: int = _USUAL_RATES["publish_bytes_per_second"]
    started_within_ms: int = _AS_AGENT
    thinking_within_ms: int = _AS_AGENT
    executing_within_ms: int = _AS_AGENT
    completed_within_ms: int = _AS_AGENT
    confirmation_timeout_ms: int = _AS_AGENT

    def __post_init__(self) -> None:
        for name, usual_ms in _USUAL_MS.items():
            if getattr(self, name) == _AS_AGENT and isinstance(self.agent_timeout_ms, int):
                object.__setattr__(self, name, min(usual_ms, self.agent_timeout_ms))
        _check_tier_values(self)
        for name in _USUAL_MS:
            if getattr(self, name) > self.agent_timeout_ms:
                raise ConfigError(
                    f"tier {self.name!r}: {name} is {getattr(self, name)}: it must not be above agent_timeout_ms,"
                    f" which is {self.agent_timeout_ms}",
                    field="tiers",
                )
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

    @property
    def limits(self) -> RunLimits:
        """The deadlines of a run."""
        return RunLimits(
            started_ms=self.started_within_ms,
            thinking_ms=self.thinking_within_ms,
            executing_ms=self.executing_within_ms,
            completed_ms=self.completed_within_ms,
            run_ms=self.agent_timeout_ms,
        )


_TIER_FIELDS: Final = {
    "agent_timeout_ms": Integer(1, DAY_MS),
    "connection_timeout_ms": Integer(1, DAY_MS),
    "live_sessions": Integer(1, 100_000),
    "frames_per_second": Integer(1, 1_000_000),
    **dict.fromkeys(_USUAL_RATES, Integer(1, 1024**3)),
    **dict.fromkeys(_USUAL_MS, Integer(1, DAY_MS)),
}
TIER_NAME: Final = Text(
    r"[a-z][a-z0-9_-]{0,31}", "a name of 1 to 32 of the characters a-z, 0-9, _ and -, beginning with a letter"
)


def _check_tier_values(tier: Tier) -> None:
    if not TIER_NAME.accepts(tier.name):
        raise ConfigError(f"tier {tier.name!r}: its name must be {TIER_NAME.allowed}", field="tiers")
    for name, kind in _TIER_FIELDS.items():
        value = getattr(tier, name)
        if not kind.accepts(value):
            raise ConfigError(f"tier {tier.name!r}: {name} is {value!r}: it must be {kind.allowed}", field="tiers")


BUILT_IN_TIERS: Final = (
    Tier(name="free", agent_timeout_ms=30_000, connection_timeout_ms=40_000, live_sessions=10, frames_per_second=20),
    Tier(
        name="pro",
        agent_timeout_ms=45_000,
        connection_timeout_ms=60_000,
        live_sessions=20,
        frames_per_second=50,
        bytes_per_second=256 * 1024,
        publishes_per_second=2_000,
        publish_bytes_per_second=8 * 1024 * 1024,
    ),
    Tier(
        name="enterprise",
        agent_timeout_ms=120_000,
        connection_timeout_ms=180_000,
        live_sessions=100,
        frames_per_second=500,
        bytes_per_second=2 * 1024 * 1024,
        publishes_per_second=10_000,
        publish_bytes_per_second=32 * 1024 * 1024,
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
            try:
                tiers[name] = _tier_from(name, values, tiers.get(name))
            except ConfigError as error:
                raise ConfigError(f"{error} (EVENTBUS_TIERS_FILE is {text!r})", field="tiers") from None
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
    own = [field for field in _TIER_FIELDS if field not in _USUAL_MS and field not in _USUAL_RATES]
    merged: dict[str, Any] = {field: getattr(base, field, None) for field in own}
    merged |= {field: getattr(base, field, usual) for field, usual in _USUAL_RATES.items()} | values
    if missing := [field for field in own if merged[field] is None]:
        raise ConfigError(f"tier {name!r} lacks {missing[0]}", field="tiers")
    if zero := [field for field in _USUAL_MS if merged.get(field) == _AS_AGENT]:
        raise ConfigError(f"tier {name!r}: {zero[0]} is 0: leave it out, or give a time", field="tiers")
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
    default_tier: str = setting("free", "DEFAULT_TIER", "The tier of a token that names none.", TIER_NAME)

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
