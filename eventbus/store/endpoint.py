"""Where Redis is, as a URL says it: one server, Sentinels that know the primary, or some servers of a Cluster.

| URL | what |
|---|---|
| `redis://[user:password@]host:port/db`, `rediss://...`, `unix:///path` | one server; one of a Cluster is recognised |
| `redis+sentinel://[user:password@]host:port,host:port/service/db`, `rediss+sentinel://...` | Sentinels |
| `redis+cluster://[user:password@]host:port,host:port`, `rediss+cluster://...` | a Cluster |

Options stand in the query, as redis-py has them: `ssl_ca_certs`, `ssl_certfile`, `ssl_keyfile`, `ssl_cert_reqs`, ...
For the Sentinels' own password there are `sentinel_username` and `sentinel_password`.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode, urlsplit

from redis.asyncio.connection import AbstractConnection, Connection, SSLConnection, parse_url
from redis.exceptions import RedisError

from eventbus.errors import StoreMisconfigured
from eventbus.store.topology import Address

__all__ = ["Endpoint", "Mode", "Target", "parse_target"]

_REDIS_PORT: Final = 6379
_SENTINEL_PORT: Final = 26379
# redis-py's options of a pool, which is no concern of ours.
_POOL_OPTIONS: Final = ("max_connections", "timeout", "connection_class")


class Mode(StrEnum):
    """How the primary of a key is found."""

    SINGLE = "single"
    SENTINEL = "sentinel"
    CLUSTER = "cluster"


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A server, and what it wants to know of us.

    Attributes:
        address: where it listens; with the port 0 the host is the path of a Unix socket.
        username, password: for AUTH, None: without.
        database: for SELECT.
        tls: None for a plain connection.
    """

    address: Address
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    database: int = 0
    tls: ssl.SSLContext | None = field(default=None, repr=False, compare=False)

    def __str__(self) -> str:
        return str(self.address) if self.address.port else self.address.host

    def at(self, address: Address) -> Endpoint:
        """The same for another server of the installation."""
        return replace(self, address=address)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a URL names.

    Attributes:
        servers: the server, or some servers of a Cluster; with Sentinels what a primary wants, at no address.
        sentinels: the Sentinels.
        service: the name under which they know the primary.
    """

    mode: Mode
    servers: tuple[Endpoint, ...]
    sentinels: tuple[Endpoint, ...] = ()
    service: str = ""


def parse_target(url: str) -> Target:
    """What a URL names.

    Raises:
        StoreMisconfigured: it makes no sense; the sentence names no password.
    """
    try:
        scheme, marked, rest = url.partition("://")
        kind, plus, family = scheme.partition("+")
        if not plus:
            return Target(mode=Mode.SINGLE, servers=(_endpoint(url),))
        if not marked or kind not in ("redis", "rediss") or family not in ("sentinel", "cluster"):
            raise ValueError(
                f"the scheme {scheme!r} is none of redis, rediss, unix, redis+sentinel, rediss+sentinel, redis+cluster,"
                " rediss+cluster"
            )
        if family == "cluster":
            return _cluster(kind, rest)
        return _sentinel(kind, rest)
    except (ValueError, TypeError, RedisError, OSError) as error:
        raise StoreMisconfigured(f"the URL of Redis is wrong: {error}") from None


def _endpoint(url: str) -> Endpoint:
    options: dict[str, Any] = dict(parse_url(url))
    kind: type[AbstractConnection] = options.get("connection_class", Connection)
    wanted = {name: value for name, value in options.items() if name not in _POOL_OPTIONS}
    # redis-py knows its options, and what they mean for TLS; nothing is connected here.
    made = kind(**wanted)
    host, port = str(options.get("host", "localhost")), int(options.get("port", _REDIS_PORT))
    if "path" in options:
        host, port = str(options["path"]), 0
    return Endpoint(
        address=Address(host=host, port=port),
        username=options.get("username"),
        password=options.get("password"),
        database=int(options.get("db", 0)),
        tls=made.ssl_context.get() if isinstance(made, SSLConnection) else None,
    )


def _split(rest: str, default_port: int) -> tuple[str, list[str], list[str], str]:
    """Of what follows `://`: `user:password@` or nothing, the addresses, the words of the path, and the query."""
    place, _, query = rest.partition("?")
    hosts, _, path = place.partition("/")
    credentials, at, listed = hosts.rpartition("@")
    addresses = []
    for given in listed.split(","):
        parts = urlsplit(f"//{given.strip()}")
        if not parts.hostname or parts.username is not None:
            raise ValueError(f"{given!r} is no host:port in the list of servers")
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        addresses.append(f"{host}:{parts.port or default_port}")
    return f"{credentials}{at}", addresses, [word for word in path.split("/") if word], query


def _cluster(kind: str, rest: str) -> Target:
    credentials, addresses, words, query = _split(rest, _REDIS_PORT)
    if words and words != ["0"]:
        raise ValueError(f"a Cluster has database 0 alone, not {'/'.join(words)!r}")
    after = f"?{query}" if query else ""
    servers = tuple(_endpoint(f"{kind}://{credentials}{address}/0{after}") for address in addresses)
    return Target(mode=Mode.CLUSTER, servers=servers)


def _sentinel(kind: str, rest: str) -> Target:
    credentials, addresses, words, query = _split(rest, _SENTINEL_PORT)
    if not words or len(words) > 2 or (len(words) == 2 and not words[1].isdigit()):
        raise ValueError("after the Sentinels comes /service or /service/database")
    options = dict(parse_qsl(query))
    username, password = options.pop("sentinel_username", None), options.pop("sentinel_password", None)
    after = f"?{urlencode(options)}" if options else ""
    database = words[1] if len(words) == 2 else "0"
    first = _endpoint(f"{kind}://{credentials}{addresses[0]}/{database}{after}")
    sentinels = [_endpoint(f"{kind}://{address}/0{after}") for address in addresses]
    return Target(
        mode=Mode.SENTINEL,
        servers=(first,),
        sentinels=tuple(replace(one, username=username, password=password) for one in sentinels),
        service=words[0],
    )
