"""What the commands share: their options, the store they open, and how an error ends them."""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from eventbus.config import Settings, StoreSettings, redacted_url
from eventbus.errors import AuthError, ConfigError, EventBusError, Forbidden, InvalidField, StoreError
from eventbus.ids import UserId, parse_user_id
from eventbus.kinds import SecretBytes, Text
from eventbus.settings import check, read, setting

if TYPE_CHECKING:
    from eventbus.store import Store

__all__ = [
    "FOUND_PROBLEMS",
    "STORE_UNAVAILABLE",
    "USAGE",
    "CommandGroup",
    "Signing",
    "as_json_option",
    "as_user",
    "duration_ms",
    "opened",
    "redis_option",
    "secret_option",
    "settings_of",
    "signing",
    "unasked",
    "version",
    "with_place",
]

FOUND_PROBLEMS: Final = 1
USAGE: Final = 2
STORE_UNAVAILABLE: Final = 3

_Decorated = TypeVar("_Decorated", bound=Callable[..., Any])

_UNITS_MS: Final = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_DURATION: Final = re.compile(r"([0-9]{1,9})(ms|s|m|h|d)")


class CommandGroup(click.Group):
    """Commands whose errors are one sentence and an exit status, never a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except EventBusError as error:
            click.echo(f"{ctx.find_root().info_name}: {error}", err=True)
            ctx.exit(_status(error))


def _status(error: EventBusError) -> int:
    if isinstance(error, StoreError):
        return STORE_UNAVAILABLE
    return USAGE if isinstance(error, ConfigError | InvalidField | AuthError | Forbidden) else FOUND_PROBLEMS


def version() -> str:
    """The version that is installed."""
    try:
        return installed("eventbus")
    except PackageNotFoundError:  # a checkout that was never installed
        return "0.0.0"


# --- options ----------------------------------------------------------------------------------------------------------


def redis_option(command: _Decorated) -> _Decorated:
    """`--redis-url`."""
    return click.option(
        "--redis-url",
        metavar="URL",
        help="Where Redis or Valkey is.  [EVENTBUS_REDIS_URL; default redis://127.0.0.1:6379/0]",
    )(command)


def as_json_option(command: _Decorated) -> _Decorated:
    """`--json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")(command)


def secret_option(command: _Decorated) -> _Decorated:
    """`--jwt-secret-file`."""
    return click.option(
        "--jwt-secret-file",
        metavar="FILE",
        help="The secret that the nodes have.  [EVENTBUS_JWT_SECRET_FILE, or EVENTBUS_JWT_SECRET]",
    )(command)


def duration_ms(text: str, option: str) -> int:
    """A duration such as `90s` or `1h` in milliseconds. Raises: click.BadParameter."""
    match = _DURATION.fullmatch(text)
    if match is None or int(match[1]) == 0:
        raise click.BadParameter(f"{text!r} is no time such as 90s, 30m, 1h or 7d", param_hint=option)
    return int(match[1]) * _UNITS_MS[match[2]]


def as_user(_ctx: click.Context, _param: click.Parameter, value: str | None) -> UserId | None:
    """The value of `--user`, checked. Raises: InvalidField."""
    return None if value is None else parse_user_id(value)


# --- settings ---------------------------------------------------------------------------------------------------------


def settings_of(redis_url: str | None) -> Settings:
    """The settings of the environment, under the options. Raises: ConfigError."""
    return Settings.from_env(os.environ, redis_url=redis_url)


# `setting` returns a field: nothing is computed or shared in a default.
@dataclass(frozen=True, slots=True, kw_only=True)
class Signing:
    """How tokens are signed here: the variables are those of the nodes."""

    jwt_secret: bytes | None = setting(None, "JWT_SECRET", "Shared secret.", SecretBytes(), secret=True)
    jwt_issuer: str | None = setting(None, "JWT_ISSUER", "Issuer.", Text(r"[!-~]{1,512}", "printable"))
    jwt_audience: str | None = setting(None, "JWT_AUDIENCE", "Audience.", Text(r"[!-~]{1,512}", "printable"))

    def __post_init__(self) -> None:
        check(self)


def signing(jwt_secret_file: str | None) -> Signing:
    """How tokens are signed here. Raises: ConfigError: a file cannot be read, or a value is wrong."""
    return read(Signing, os.environ, {"jwt_secret_file": jwt_secret_file})


# --- the store --------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def unasked(settings: Settings, store_settings: StoreSettings | None = None) -> AsyncIterator[Store]:
    """A store of which nothing is known yet, closed at the end."""
    from eventbus.store.redis_store import RedisStore

    store = RedisStore(settings.redis_url, store_settings or settings.store)
    try:
        yield store
    finally:
        await store.aclose()


@asynccontextmanager
async def opened(settings: Settings, store_settings: StoreSettings | None = None) -> AsyncIterator[Store]:
    """A store that has answered, closed at the end.

    Raises:
        StoreError: it does not answer; the sentence says where it was looked for.
    """
    async with unasked(settings, store_settings) as store:
        try:
            await store.ping()
        except StoreError as error:
            raise with_place(error, settings) from None
        yield store


def with_place(error: StoreError, settings: Settings) -> StoreError:
    """The same error; its sentence says where the store was looked for."""
    where = redacted_url(settings.redis_url)
    return type(error)(f"{error} (at {where}; another place: --redis-url or EVENTBUS_REDIS_URL)")
