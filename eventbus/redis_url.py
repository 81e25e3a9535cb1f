"""The address of Redis as a setting: which ones there are, what is wrong with one, and how it is shown."""

from __future__ import annotations

from typing import Final
from urllib.parse import urlsplit

from eventbus.kinds import Judged
from eventbus.settings import setting

__all__ = ["REDIS_URL_DEFAULT", "redacted_url", "redis_url_setting"]

REDIS_URL_DEFAULT: Final = "redis://127.0.0.1:6379/0"
_MANY_SERVERS: Final = ("redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster")


def _url_problem(url: str) -> str | None:
    try:
        parts = urlsplit(url)
        if parts.scheme == "unix":
            return None if parts.path else "the path of the socket is missing"
        if parts.scheme in _MANY_SERVERS:
            return _servers_problem(parts.netloc.rpartition("@")[2], parts.scheme, parts.path)
        if parts.scheme not in ("redis", "rediss"):
            return "its scheme is none of redis, rediss, unix, redis+sentinel and redis+cluster"
        if not parts.hostname:
            return "the host is missing"
        if parts.port == 0:
            return "port 0 is none"
    except ValueError:
        return "it is no URL"
    return None


def _servers_problem(listed: str, scheme: str, path: str) -> str | None:
    """What is wrong with `host:port,host:port` of Sentinels or of a Cluster."""
    for server in listed.split(","):
        parts = urlsplit(f"//{server}")
        if not parts.hostname:
            return "a host is missing"
        if parts.port == 0:
            return "port 0 is none"
    if scheme.endswith("sentinel") and not path.strip("/"):
        return "the name of the primary is missing: redis+sentinel://host:26379/name"
    return None


def redacted_url(url: str) -> str:
    """A URL without the user name and the password in it, for logs."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl()


_REDIS_URL: Final = Judged(
    "a URL such as redis://host:6379/0, rediss://user:password@host:6380/0, unix:///path/to/socket,"
    " redis+sentinel://host:26379,host:26379/name/0 or redis+cluster://host:6379,host:6379",
    lambda url: _url_problem(url) is None,
)


def redis_url_setting() -> str:
    """Declare the field for the address of Redis; agents and nodes have the same."""
    return setting(
        REDIS_URL_DEFAULT,
        "REDIS_URL",
        "Where Redis or Valkey is. It may hold a password and is never logged as it stands.",
        _REDIS_URL,
        secret=True,
    )
