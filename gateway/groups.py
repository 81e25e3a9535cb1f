"""The settings of a node in groups: where it listens, what it waits for, what it allows, whom it believes, what it
says and what it watches. `gateway.config.NodeSettings` is all of them.
"""
# ruff: noqa: RUF009 - `setting` and `group` return fields; nothing is computed or shared in a default.

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final
from urllib.parse import urlsplit

from eventbus.breach import OperatorKind
from eventbus.config import (
    HOUR_MS,
    KIB,
    MIB,
    MINUTE_MS,
)
from eventbus.errors import ConfigError
from eventbus.kinds import Choice, FileName, Integer, Judged, Listed, Network, NetworkKind, SecretBytes, Text
from eventbus.settings import check, setting
from gateway.access.keys import Algorithm
from gateway.access.origin import parse_origin

__all__ = [
    "JwtSettings",
    "LimitSettings",
    "ListenSettings",
    "LivenessSettings",
    "LogFormat",
    "LogLevel",
    "LogSettings",
    "WatchSettings",
]

_HOST: Final = Text(r"[A-Za-z0-9.:_-]{1,253}", "a host name or an IP address")
_PORT: Final = Integer(0, 65_535)


@dataclass(frozen=True, slots=True)
class _Origin:
    allowed: str = "an exact origin such as https://app.example.org (no path, no wildcard)"

    def parse(self, text: str) -> str:
        return text

    def accepts(self, value: object) -> bool:
        return isinstance(value, str) and parse_origin(value) is not None

    def show(self, value: Any) -> str:
        return str(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenSettings:
    """Where a node listens, and what it is called."""

    host: str = setting("127.0.0.1", "HOST", "Address for clients; `0.0.0.0` is every one of IPv4.", _HOST)
    port: int = setting(8080, "PORT", "Port for clients; 0 takes a free one.", _PORT)
    admin_host: str = setting("127.0.0.1", "ADMIN_HOST", "Address for metrics and operators.", _HOST)
    admin_port: int = setting(8081, "ADMIN_PORT", "Port for metrics and operators; 0 takes a free one.", _PORT)
    node: str = setting(
        "",
        "NODE",
        "Name of the node, unique in the installation.",
        Text(r"[A-Za-z0-9_.-]{0,56}", "1 to 56 of the characters A-Z, a-z, 0-9, _, . and -"),
        default_text="<host name>-<process id>",
    )
    workers: int = setting(1, "WORKERS", "Processes that share the port; each is a node of its own.", Integer(1, 256))
    tls_cert_file: str | None = setting(
        None, "TLS_CERT_FILE", "Certificate chain (PEM), to serve TLS directly.", FileName()
    )
    tls_key_file: str | None = setting(None, "TLS_KEY_FILE", "Private key of the certificate (PEM).", FileName())
    allowed_origins: tuple[str, ...] = setting(
        (),
        "ALLOWED_ORIGINS",
        "Origins whose pages may connect; none means the host that serves the page.",
        Listed(_Origin()),
    )
    trusted_proxies: tuple[Network, ...] = setting(
        (), "TRUSTED_PROXIES", "Proxies whose `X-Forwarded-For` or PROXY protocol is believed.", Listed(NetworkKind())
    )

    def __post_init__(self) -> None:
        check(self)
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            missing, given = "CERT", "KEY"
            if self.tls_key_file is None:
                missing, given = given, missing
            raise ConfigError(
                f"EVENTBUS_TLS_{given}_FILE is set and EVENTBUS_TLS_{missing}_FILE is not: TLS needs both",
                field=f"tls_{missing.lower()}_file",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class LivenessSettings:
    """How a node tells the living from the dead, and how it ends."""

    hello_timeout_ms: int = setting(
        5_000,
        "HELLO_TIMEOUT_MS",
        "A client sends its `hello` within this time.",
        Integer(10, 10 * MINUTE_MS),
        unit="ms",
    )
    heartbeat_ms: int = setting(
        20_000, "HEARTBEAT_MS", "Time between two pings on a connection.", Integer(50, 10 * MINUTE_MS), unit="ms"
    )
    session_heartbeat_ms: int = setting(
        10_000,
        "SESSION_HEARTBEAT_MS",
        "Time between two checks of a session against the store; a takeover shows within one.",
        Integer(50, 10 * MINUTE_MS),
        unit="ms",
    )
    node_heartbeat_ms: int = setting(
        5_000,
        "NODE_HEARTBEAT_MS",
        "Time between two signs of life of the node; it counts as gone after three.",
        Integer(50, MINUTE_MS),
        unit="ms",
    )
    ready_probe_ms: int = setting(
        2_000,
        "READY_PROBE_MS",
        "Time between two probes of write, wake-up and read, on which readiness stands.",
        Integer(50, MINUTE_MS),
        unit="ms",
    )
    store_wait_ms: int = setting(
        30_000,
        "STORE_WAIT_MS",
        "Longest wait of a frame for a store that is away.",
        Integer(10, 10 * MINUTE_MS),
        unit="ms",
    )
    store_down_ms: int = setting(
        60_000,
        "STORE_DOWN_MS",
        "When the store is away for this long, connections are closed and new ones refused.",
        Integer(10, HOUR_MS),
        unit="ms",
    )
    drain_ms: int = setting(
        10_000,
        "DRAIN_MS",
        "Longest time from SIGTERM to the end.",
        Integer(1_000, HOUR_MS),
        unit="ms",
    )

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitSettings:
    """What a client may ask of a node."""

    max_frame_bytes: int = setting(
        64 * KIB, "MAX_FRAME_BYTES", "Largest frame of a client.", Integer(256, 16 * MIB), unit="bytes"
    )
    max_body_bytes: int = setting(
        8 * MIB, "MAX_BODY_BYTES", "Largest body of an HTTP request.", Integer(64, KIB * MIB), unit="bytes"
    )
    max_connections: int = setting(
        50_000, "MAX_CONNECTIONS", "Connections of one node; one more is refused as overloaded.", Integer(1, 10_000_000)
    )
    slow_consumer_ms: int = setting(
        30_000,
        "SLOW_CONSUMER_MS",
        "A client that has not read for this long, with too much waiting for it, is closed.",
        Integer(100, HOUR_MS),
        unit="ms",
    )
    slow_consumer_bytes: int = setting(
        1 * MIB, "SLOW_CONSUMER_BYTES", "How much is too much waiting.", Integer(16 * KIB, 256 * MIB), unit="bytes"
    )
    held_bytes: int = setting(
        KIB * MIB,
        "HELD_BYTES",
        "What a node holds for all its clients, about: windows and what waits to be written. Beyond it those of whom"
        " most is held are closed as slow consumers, and are sent it again when they come back.",
        Integer(64 * KIB, MIB * MIB),
        unit="bytes",
    )
    text_held_bytes: int = setting(
        64 * MIB,
        "TEXT_HELD_BYTES",
        "Text of open token streams that a node holds, about; beyond it what somebody lacks is read again.",
        Integer(16 * KIB, 64 * KIB * MIB),
        unit="bytes",
    )
    handshakes_per_address: int = setting(
        200, "HANDSHAKES_PER_ADDRESS", "New connections of one address a second; 0 is no limit.", Integer(0, 1_000_000)
    )
    handshakes_per_second: int = setting(
        2_000,
        "HANDSHAKES_PER_SECOND",
        "New connections of all clients a second, two seconds' worth at once; who comes above it is told when to come "
        "back. 0 is no limit.",
        Integer(0, 1_000_000),
    )
    attaches_waiting: int = setting(
        1_000,
        "ATTACHES_WAITING",
        "Sessions that may wait for Redis to open them before new connections are told to come back later.",
        Integer(1, 1_000_000),
    )
    connections_per_address: int = setting(
        10_000,
        "CONNECTIONS_PER_ADDRESS",
        "Open connections of one address, and as many that are no sockets (yet); 0 is no limit.",
        Integer(0, 10_000_000),
    )
    max_http_connections: int = setting(
        10_000,
        "MAX_HTTP_CONNECTIONS",
        "Connections that are no sockets (yet); for one more, the one goes that has waited longest for a request.",
        Integer(1, 10_000_000),
    )
    requests_per_address: int = setting(
        2_000,
        "REQUESTS_PER_ADDRESS",
        "HTTP requests of one address a second, ten seconds' worth at once; 0 is no limit.",
        Integer(0, 1_000_000),
    )
    publishes_per_address: int = setting(
        10_000,
        "PUBLISHES_PER_ADDRESS",
        "Events that one address may publish over HTTP a second, ten seconds' worth at once; 0 is no limit.",
        Integer(0, 10_000_000),
    )
    max_bodies_bytes: int = setting(
        256 * MIB,
        "MAX_BODIES_BYTES",
        "Bodies of requests that a node holds at a time, all together; one more byte is refused as overloaded.",
        Integer(64, 64 * KIB * MIB),
        unit="bytes",
    )

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class JwtSettings:
    """How tokens are verified. At least one key is needed."""

    jwt_secret: bytes | None = setting(None, "JWT_SECRET", "Shared secret for HS256.", SecretBytes(), secret=True)
    jwt_algorithms: tuple[Algorithm, ...] = setting(
        tuple(Algorithm), "JWT_ALGORITHMS", "Allow-list of signature algorithms.", Listed(Choice(Algorithm))
    )
    jwt_public_key_files: tuple[str, ...] = setting(
        (),
        "JWT_PUBLIC_KEY_FILES",
        "Public keys or certificates (PEM), each as `file` or `kid=file`.",
        Listed(FileName("`file` or `kid=file`")),
    )
    jwt_jwks_file: str | None = setting(None, "JWT_JWKS_FILE", "A JSON Web Key Set, for several keys.", FileName())
    jwt_issuer: str | None = setting(
        None, "JWT_ISSUER", "What `iss` must be.", Text(r"[!-~]{1,512}", "1 to 512 printable ASCII characters")
    )
    jwt_audience: str | None = setting(
        None,
        "JWT_AUDIENCE",
        "What `aud` must be or hold.",
        Text(r"[!-~]{1,512}", "1 to 512 printable ASCII characters"),
    )
    jwt_reload_ms: int = setting(
        1_000,
        "JWT_RELOAD_MS",
        "Time between two looks at the key files: keys that are new count, and those that have gone do not.",
        Integer(50, HOUR_MS),
        unit="ms",
    )
    jwt_leeway_ms: int = setting(
        5_000,
        "JWT_LEEWAY_MS",
        "How far the issuer's clock may be ahead (`nbf`).",
        Integer(0, 10 * MINUTE_MS),
        unit="ms",
    )

    jwt_secret_origin: str | None = None
    """The file that the secret was read from, to be looked at again; no setting of its own."""

    def __post_init__(self) -> None:
        check(self)
        if not self.jwt_algorithms:
            raise ConfigError("EVENTBUS_JWT_ALGORITHMS is empty: it must allow at least one", field="jwt_algorithms")


class LogFormat(StrEnum):
    """How a line of the log is written."""

    TEXT = "text"
    JSON = "json"


class LogLevel(StrEnum):
    """The least that is written."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class LogSettings:
    """What a node says on stderr, and how."""

    log_format: LogFormat = setting(
        LogFormat.TEXT, "LOG_FORMAT", "Lines for people, or one JSON object a line.", Choice(LogFormat)
    )
    log_level: LogLevel = setting(LogLevel.INFO, "LOG_LEVEL", "The least that is written.", Choice(LogLevel))

    def __post_init__(self) -> None:
        check(self)


def _is_target(url: str) -> bool:
    if not (url.isascii() and url.isprintable()):
        return False
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchSettings:
    """How deadlines are watched, and where operators are told of those that were missed."""

    watch_ms: int = setting(
        1_000,
        "WATCH_MS",
        "Time between two looks at the deadlines of a partition; four times that where nothing has been late.",
        Integer(20, MINUTE_MS),
        unit="ms",
    )
    tally_ms: int = setting(
        15_000,
        "TALLY_MS",
        "Time between two counts of what waits, for the metrics: two short questions of each partition, asked by one"
        " node.",
        Integer(100, 10 * MINUTE_MS),
        unit="ms",
    )
    webhook_url: str | None = setting(
        None,
        "WEBHOOK_URL",
        "Where operator events are posted; it may hold a secret and is never logged as it stands.",
        Judged("a URL such as https://alerts.example.org/hook", _is_target),
        secret=True,
    )
    webhook_secret: bytes | None = setting(
        None,
        "WEBHOOK_SECRET",
        "Signs what is posted (HMAC-SHA256); `whsec_` and base64 stands for the bytes.",
        SecretBytes(),
        secret=True,
    )
    webhook_kinds: tuple[OperatorKind, ...] = setting(
        (OperatorKind.MISSED_CONFIRMATION, OperatorKind.MISSED_DEADLINE, OperatorKind.RUN_ABANDONED),
        "WEBHOOK_KINDS",
        "Which operator events are posted.",
        Listed(Choice(OperatorKind)),
    )
    webhook_timeout_ms: int = setting(
        10_000, "WEBHOOK_TIMEOUT_MS", "Longest wait for the answer to a post.", Integer(10, 10 * MINUTE_MS), unit="ms"
    )
    webhook_retries: int = setting(
        10, "WEBHOOK_RETRIES", "How often a post that failed is made again before it is given up.", Integer(0, 1_000)
    )
    webhook_retry_base_ms: int = setting(
        1_000,
        "WEBHOOK_RETRY_BASE_MS",
        "Wait before the first retry of a post; doubles, with jitter.",
        Integer(1, HOUR_MS),
        unit="ms",
    )
    webhook_retry_max_ms: int = setting(
        5 * MINUTE_MS, "WEBHOOK_RETRY_MAX_MS", "Longest wait between two posts.", Integer(1, 24 * HOUR_MS), unit="ms"
    )

    def __post_init__(self) -> None:
        check(self)
        if self.webhook_url is not None and self.webhook_secret is None:
            raise ConfigError(
                "EVENTBUS_WEBHOOK_URL is set and EVENTBUS_WEBHOOK_SECRET is not: the receiver must be able to tell"
                " who posts",
                field="webhook_secret",
            )
        if OperatorKind.WEBHOOK_FAILED in self.webhook_kinds:
            raise ConfigError(
                f"EVENTBUS_WEBHOOK_KINDS holds {OperatorKind.WEBHOOK_FAILED}: of a post that failed no post can tell",
                field="webhook_kinds",
            )
        if self.webhook_retry_base_ms > self.webhook_retry_max_ms:
            raise ConfigError(
                f"EVENTBUS_WEBHOOK_RETRY_BASE_MS is {self.webhook_retry_base_ms}: it must not be above"
                f" EVENTBUS_WEBHOOK_RETRY_MAX_MS, which is {self.webhook_retry_max_ms}",
                field="webhook_retry_base_ms",
            )
