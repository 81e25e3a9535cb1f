"""The settings of a node, and the loading of what they name: keys, certificates' names, the node's own name.

`NodeSettings.from_env` is the one place that reads the environment. Nothing is read at import.
"""
# ruff: noqa: RUF009 - `setting` and `group` return fields; nothing is computed or shared in a default.

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from eventbus.config import (
    DeliverySettings,
    PublishSettings,
    Settings,
    StoreSettings,
    TraceSettings,
)
from eventbus.errors import ConfigError
from eventbus.ids import NodeName, parse_node_name
from eventbus.kinds import SecretBytes
from eventbus.known import FOREIGN_VARIABLES, warn_of_unknown_variables
from eventbus.redis_url import redis_url_setting
from eventbus.settings import check, group, read, read_secret_file, variables
from eventbus.tiers import TierTable
from gateway.access.auth import Authenticator, AuthSettings
from gateway.access.keys import VerificationKey, key_from_pem, key_from_secret, keys_from_jwks
from gateway.groups import (
    JwtSettings,
    LimitSettings,
    ListenSettings,
    LivenessSettings,
    LogFormat,
    LogLevel,
    LogSettings,
    WatchSettings,
)

__all__ = [
    "JwtSettings",
    "LimitSettings",
    "ListenSettings",
    "LivenessSettings",
    "LogFormat",
    "LogLevel",
    "LogSettings",
    "NodeSettings",
    "WatchSettings",
    "key_files",
    "load_auth",
    "load_authenticator",
    "load_keys",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSettings:
    """All that a node needs."""

    redis_url: str = redis_url_setting()
    listen: ListenSettings = group(ListenSettings)
    jwt: JwtSettings = group(JwtSettings)
    liveness: LivenessSettings = group(LivenessSettings)
    limits: LimitSettings = group(LimitSettings)
    log: LogSettings = group(LogSettings)
    watch: WatchSettings = group(WatchSettings)
    store: StoreSettings = group(StoreSettings)
    delivery: DeliverySettings = group(DeliverySettings)
    publish: PublishSettings = group(PublishSettings)
    trace: TraceSettings = group(TraceSettings)
    tiers: TierTable = group(TierTable)

    def __post_init__(self) -> None:
        check(self)
        # Two missed heartbeats must not make a living session look gone.
        if 2 * self.liveness.session_heartbeat_ms > self.store.live_ttl_ms:
            raise ConfigError(
                f"EVENTBUS_LIVE_TTL_MS is {self.store.live_ttl_ms}: it must be at least twice"
                f" EVENTBUS_SESSION_HEARTBEAT_MS, which is {self.liveness.session_heartbeat_ms}",
                field="live_ttl_ms",
            )

    @classmethod
    def from_env(cls, env: Mapping[str, str], **overrides: object) -> NodeSettings:
        """Read the settings; a node without a name gets one from the machine and the process.

        Args:
            env: the environment, as a rule `os.environ`.
            overrides: values that stand above it (the command line's), by field name, also of fields in groups
                (`port=...`); a string is parsed like a variable, None counts as absent, `jwt_secret_file=` names
                a file.

        Raises:
            ConfigError: one sentence with the variable, its value and what is allowed.
        """
        made = read(cls, env, overrides)
        origin = overrides.get("jwt_secret_file") or env.get("EVENTBUS_JWT_SECRET_FILE")
        if origin and overrides.get("jwt_secret") is None:
            made = replace(made, jwt=replace(made.jwt, jwt_secret_origin=str(origin)))
        warn_of_unknown_variables(env, [*variables(cls), *FOREIGN_VARIABLES])
        if made.listen.node:
            return made
        return replace(made, listen=replace(made.listen, node=default_node_name()))

    @property
    def node_name(self) -> NodeName:
        """The node's name as the store wants it."""
        return parse_node_name(self.listen.node or default_node_name())

    def for_agents(self) -> Settings:
        """The part that an agent's process has too, for a `Bus` inside a node."""
        return Settings(
            redis_url=self.redis_url,
            store=self.store,
            delivery=self.delivery,
            publish=self.publish,
            trace=self.trace,
            tiers=self.tiers,
        )


def default_node_name() -> str:
    """The host's name and the process's id, in the characters that a node's name may have."""
    host = re.sub(r"[^A-Za-z0-9_.-]", "-", socket.gethostname())[:40] or "node"
    return f"{host}-{os.getpid()}"


def load_keys(settings: JwtSettings) -> tuple[VerificationKey, ...]:
    """Read and check all keys that the settings name.

    Raises:
        ConfigError: a file cannot be read or holds no usable key.
    """
    keys: list[VerificationKey] = []
    if settings.jwt_secret_origin is not None:
        secret = read_secret_file(settings.jwt_secret_origin, variable="EVENTBUS_JWT_SECRET_FILE", field="jwt_secret")
        keys.append(key_from_secret(SecretBytes().parse(secret)))
    elif settings.jwt_secret is not None:
        keys.append(key_from_secret(settings.jwt_secret))
    for item in settings.jwt_public_key_files:
        kid, _, file = item.partition("=") if "=" in item else ("", "", item)
        pem = _file_bytes(file, "EVENTBUS_JWT_PUBLIC_KEY_FILES", "jwt_public_key_files")
        keys.append(key_from_pem(pem, name=f"EVENTBUS_JWT_PUBLIC_KEY_FILES {file!r}", kid=kid or None))
    if settings.jwt_jwks_file is not None:
        text = _file_bytes(settings.jwt_jwks_file, "EVENTBUS_JWT_JWKS_FILE", "jwt_jwks_file")
        keys.extend(keys_from_jwks(text, name=f"EVENTBUS_JWT_JWKS_FILE {settings.jwt_jwks_file!r}"))
    return tuple(keys)


def load_authenticator(settings: NodeSettings) -> Authenticator:
    """Make the authenticator of a node: reads the key files, so it is called once at the start and for a rotation.

    Raises:
        ConfigError: no key, an unusable one, or one whose algorithm is not allowed.
    """
    return Authenticator(load_auth(settings))


def load_auth(settings: NodeSettings) -> AuthSettings:
    """What an authenticator works with, its keys as the files hold them now.

    Raises:
        ConfigError: no key, an unusable one, or one whose algorithm is not allowed.
    """
    return AuthSettings(
        keys=load_keys(settings.jwt),
        algorithms=frozenset(settings.jwt.jwt_algorithms),
        tiers=frozenset(settings.tiers.names),
        default_tier=settings.tiers.default_tier,
        issuer=settings.jwt.jwt_issuer,
        audience=settings.jwt.jwt_audience,
        leeway_ms=settings.jwt.jwt_leeway_ms,
    )


def key_files(settings: JwtSettings) -> tuple[str, ...]:
    """The files that the keys come from."""
    named = [item.partition("=")[2] if "=" in item else item for item in settings.jwt_public_key_files]
    others = (settings.jwt_secret_origin, settings.jwt_jwks_file)
    return (*named, *(file for file in others if file is not None))


def _file_bytes(name: str, variable: str, field: str) -> bytes:
    try:
        return Path(name).read_bytes()
    except OSError as error:
        raise ConfigError(f"{variable} names {name!r}, which cannot be read: {error.strerror}", field=field) from None
