"""The settings that agents, nodes and tools share. A node has more of them, in `gateway.config`.

Nothing is read at import: `Settings.from_env` reads the environment, once. Every class is checked when it is made:
a value that arrives anywhere is a good one. `docs/configuration.md` is generated from the descriptions here.
"""
# ruff: noqa: RUF009 - `setting` and `group` return fields; nothing is computed or shared in a default.

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from eventbus.errors import ConfigError
from eventbus.kinds import Choice, Integer, Ratio, Text
from eventbus.known import FOREIGN_VARIABLES, NODE_VARIABLES, warn_of_unknown_variables
from eventbus.redis_url import redacted_url, redis_url_setting
from eventbus.settings import check, group, read, setting, variables
from eventbus.store import Durability
from eventbus.tiers import BUILT_IN_TIERS, Tier, TierTable

__all__ = [
    "BUILT_IN_TIERS",
    "ConfirmationRecords",
    "DeliverySettings",
    "Durability",
    "PublishSettings",
    "Settings",
    "StoreSettings",
    "StreamFullPolicy",
    "Tier",
    "TierTable",
    "TraceSettings",
    "Traces",
    "redacted_url",
    "warn_of_unknown_variables",
]

MINUTE_MS: Final = 60_000
HOUR_MS: Final = 60 * MINUTE_MS
DAY_MS: Final = 24 * HOUR_MS
KIB: Final = 1024
MIB: Final = 1024 * KIB

_AS_RETENTION: Final = 0


class StreamFullPolicy(StrEnum):
    """What happens at the hard cap of a user's stream, when the oldest entries are still needed by somebody."""

    GAP = "gap"
    """The oldest go, and the sessions that wanted them are told of the gap."""
    REJECT = "reject"
    """The publisher gets `stream_full`."""


class ConfirmationRecords(StrEnum):
    """Which confirmations are recorded with their time and session."""

    ALL = "all"
    REQUIRED = "required"
    OFF = "off"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreSettings:
    """What the store keeps and for how long; all processes of an installation must agree on these.

    `session_ttl_ms` and `dedupe_ms` are never above `retention_ms`: where they are not given, a shorter retention
    shortens them.
    """

    namespace: str = setting(
        "eb",
        "NAMESPACE",
        "The first part of every key; several installations may share one Redis.",
        Text(r"[a-z0-9_-]{1,32}", "1 to 32 of the characters a-z, 0-9, _ and -"),
    )
    partitions: int = setting(
        1024,
        "PARTITIONS",
        "Partitions of the users. Fixed when an installation is made: changing it loses sight of the data.",
        Integer(1, 16_384),
    )
    retention_ms: int = setting(
        DAY_MS,
        "RETENTION_MS",
        "How long events are kept for sessions that are away.",
        Integer(1_000, 30 * DAY_MS),
        unit="ms",
    )
    session_ttl_ms: int = setting(
        _AS_RETENTION,
        "SESSION_TTL_MS",
        "How long a session that is away is remembered; never above the retention.",
        Integer(0, 30 * DAY_MS),
        unit="ms",
        default_text="86400000, or the retention where that is less",
    )
    dedupe_ms: int = setting(
        _AS_RETENTION,
        "DEDUPE_MS",
        "How long a repeated event id is recognised; later the event is stored again. Never above the retention.",
        Integer(0, 30 * DAY_MS),
        unit="ms",
        default_text="120000, or the retention where that is less",
    )
    max_stream_entries: int = setting(
        10_000,
        "MAX_STREAM_ENTRIES",
        "Hard cap of the entries in one user's stream.",
        Integer(1, 10_000_000),
        unit="entries",
    )
    max_stream_bytes: int = setting(
        64 * MIB,
        "MAX_STREAM_BYTES",
        "Hard cap of one user's stream in memory.",
        Integer(1 * KIB, 64 * KIB * MIB),
        unit="bytes",
    )
    stream_full_policy: StreamFullPolicy = setting(
        StreamFullPolicy.GAP,
        "STREAM_FULL_POLICY",
        "At the cap: `gap` drops the oldest entries and tells sessions that miss them, `reject` refuses the publish.",
        Choice(StreamFullPolicy),
    )
    live_ttl_ms: int = setting(
        90_000,
        "LIVE_TTL_MS",
        "How long a session counts as live after the last heartbeat of its node.",
        Integer(200, HOUR_MS),
        unit="ms",
    )
    dead_letter_ttl_ms: int = setting(
        7 * DAY_MS, "DEAD_LETTER_TTL_MS", "How long dead letters are kept.", Integer(1_000, 365 * DAY_MS), unit="ms"
    )
    revocation_ttl_ms: int = setting(
        30 * DAY_MS,
        "REVOCATION_TTL_MS",
        "How long a revocation is remembered: as long as the longest token lives.",
        Integer(60_000, 3_650 * DAY_MS),
        unit="ms",
    )
    confirmation_records: ConfirmationRecords = setting(
        ConfirmationRecords.ALL,
        "CONFIRMATION_RECORDS",
        "Which confirmations are recorded with their time and session.",
        Choice(ConfirmationRecords),
    )
    redis_timeout_ms: int = setting(
        5_000,
        "REDIS_TIMEOUT_MS",
        "Longest wait for a connection to Redis and for an answer on it.",
        Integer(50, MINUTE_MS),
        unit="ms",
    )

    def __post_init__(self) -> None:
        check(self)
        for name, usual_ms in (("session_ttl_ms", DAY_MS), ("dedupe_ms", 120_000)):
            value = getattr(self, name)
            if value == _AS_RETENTION:
                object.__setattr__(self, name, min(usual_ms, self.retention_ms))
            elif value > self.retention_ms:
                raise ConfigError(
                    f"EVENTBUS_{name.upper()} is {value}: it must not be above EVENTBUS_RETENTION_MS,"
                    f" which is {self.retention_ms}",
                    field=name,
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliverySettings:
    """How a session's events are sent, and sent again."""

    ack_timeout_ms: int = setting(
        30_000,
        "ACK_TIMEOUT_MS",
        "Wait for the first ack of an event before it is sent again; doubles with each delivery.",
        Integer(10, HOUR_MS),
        unit="ms",
    )
    max_deliveries: int = setting(
        5, "MAX_DELIVERIES", "Deliveries of an event to a session before it becomes a dead letter.", Integer(3, 100)
    )
    max_wait_ms: int = setting(
        5 * MINUTE_MS,
        "MAX_WAIT_MS",
        "Longest wait between two deliveries; at least the ack time-out.",
        Integer(10, DAY_MS),
        unit="ms",
    )
    jitter: float = setting(
        0.2, "JITTER", "Part of a wait that is left to chance, so that clients do not come all at once.", Ratio(0, 1)
    )
    nack_base_ms: int = setting(
        1_000,
        "NACK_BASE_MS",
        "Wait after the first nack that names none; doubles with each.",
        Integer(1, HOUR_MS),
        unit="ms",
    )
    window_default: int = setting(
        256, "WINDOW_DEFAULT", "Events in flight to a session that asks for no window.", Integer(1, 1024), unit="events"
    )
    window_max: int = setting(
        1024, "WINDOW_MAX", "Largest window that a session may ask for.", Integer(1, 1024), unit="events"
    )

    def __post_init__(self) -> None:
        check(self)
        if self.max_wait_ms < self.ack_timeout_ms:
            raise ConfigError(
                f"EVENTBUS_MAX_WAIT_MS is {self.max_wait_ms}: it must not be below EVENTBUS_ACK_TIMEOUT_MS,"
                f" which is {self.ack_timeout_ms}",
                field="max_wait_ms",
            )
        if self.window_default > self.window_max:
            raise ConfigError(
                f"EVENTBUS_WINDOW_DEFAULT is {self.window_default}: it must not be above EVENTBUS_WINDOW_MAX,"
                f" which is {self.window_max}",
                field="window_default",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishSettings:
    """How an agent's publish is tried, and what its return promises."""

    publish_deadline_ms: int = setting(
        10_000,
        "PUBLISH_DEADLINE_MS",
        "A publish returns or raises within this time, retries included.",
        Integer(10, HOUR_MS),
        unit="ms",
    )
    retry_base_ms: int = setting(
        50,
        "RETRY_BASE_MS",
        "Wait before the first retry of a publish; doubles, with jitter.",
        Integer(1, MINUTE_MS),
        unit="ms",
    )
    retry_max_ms: int = setting(
        2_000, "RETRY_MAX_MS", "Longest wait between two tries.", Integer(1, MINUTE_MS), unit="ms"
    )
    breaker_failures: int = setting(
        5, "BREAKER_FAILURES", "Failures in a row that open the circuit breaker.", Integer(1, 10_000)
    )
    breaker_open_ms: int = setting(
        1_000,
        "BREAKER_OPEN_MS",
        "Time from the opening of the breaker to its first probe; doubles with each probe that fails.",
        Integer(10, HOUR_MS),
        unit="ms",
    )
    breaker_open_max_ms: int = setting(
        30_000, "BREAKER_OPEN_MAX_MS", "Longest time between two probes.", Integer(10, HOUR_MS), unit="ms"
    )
    durability: Durability = setting(
        Durability.MEMORY,
        "DURABILITY",
        "What a returned publish promises: `memory` of the primary, `replicated` to replicas, `fsync` to its disk.",
        Choice(Durability),
    )
    replicas: int = setting(1, "REPLICAS", "Replicas that must have an event under `replicated`.", Integer(1, 16))
    replicated_timeout_ms: int = setting(
        1_000, "REPLICATED_TIMEOUT_MS", "Longest wait for the replicas of one batch.", Integer(1, MINUTE_MS), unit="ms"
    )
    max_event_bytes: int = setting(
        256 * KIB, "MAX_EVENT_BYTES", "Largest event, as MessagePack.", Integer(64, 16 * MIB), unit="bytes"
    )
    kept_ms: int = setting(
        30_000,
        "KEPT_MS",
        "How long a publisher keeps events to send them again when a primary changed. While a primary is away the time"
        " of its events does not pass, up to `EVENTBUS_DEDUPE_MS`.",
        Integer(0, 10 * MINUTE_MS),
        unit="ms",
    )
    kept_bytes: int = setting(
        64 * MIB,
        "KEPT_BYTES",
        "Most that a publisher keeps for that; beyond it the oldest go and are counted.",
        Integer(0, 64 * KIB * MIB),
        unit="bytes",
    )
    run_lease_ms: int = setting(
        30_000,
        "RUN_LEASE_MS",
        "How long a run is its agent's without a sign of life; after that a node closes it as failed.",
        Integer(100, HOUR_MS),
        unit="ms",
    )
    text_flush_ms: int = setting(
        20,
        "TEXT_FLUSH_MS",
        "How long the first character of a token stream's next piece waits for more.",
        Integer(0, MINUTE_MS),
        unit="ms",
    )
    text_flush_bytes: int = setting(
        4 * KIB,
        "TEXT_FLUSH_BYTES",
        "A piece of a token stream of this size waits no longer.",
        Integer(1, MIB),
        unit="bytes",
    )
    queue_events: int = setting(
        10_000,
        "QUEUE_EVENTS",
        "Publishes that may wait for the store in one process; one more is refused as busy.",
        Integer(1, 10_000_000),
        unit="events",
    )

    def __post_init__(self) -> None:
        check(self)
        for low, high in (("retry_base_ms", "retry_max_ms"), ("breaker_open_ms", "breaker_open_max_ms")):
            least, most = getattr(self, low), getattr(self, high)
            if least > most:
                raise ConfigError(
                    f"EVENTBUS_{low.upper()} is {least}: it must not be above EVENTBUS_{high.upper()}, which is {most}",
                    field=low,
                )


class Traces(StrEnum):
    """What records the spans of events."""

    OFF = "off"
    OTEL = "otel"


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceSettings:
    """Whether publishes and deliveries are traced."""

    traces: Traces = setting(
        Traces.OFF,
        "TRACES",
        "`otel`: spans of publishes and deliveries with OpenTelemetry, for which `eventbus[otel]` must be installed.",
        Choice(Traces),
    )

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All that an agent's process and the tools need."""

    redis_url: str = redis_url_setting()
    store: StoreSettings = group(StoreSettings)
    delivery: DeliverySettings = group(DeliverySettings)
    publish: PublishSettings = group(PublishSettings)
    trace: TraceSettings = group(TraceSettings)
    tiers: TierTable = group(TierTable)

    def __post_init__(self) -> None:
        check(self)

    @classmethod
    def from_env(cls, env: Mapping[str, str], **overrides: object) -> Settings:
        """Read the settings.

        Args:
            env: the environment, as a rule `os.environ`.
            overrides: values that stand above it, by field name, also of fields in groups (`ack_timeout_ms=...`); a
                string is parsed like a variable, None counts as absent, `redis_url_file=` names a file.

        Raises:
            ConfigError: one sentence with the variable, its value and what is allowed.
        """
        made = read(cls, env, overrides)
        warn_of_unknown_variables(env, [*variables(cls), *NODE_VARIABLES, *FOREIGN_VARIABLES])
        return made
