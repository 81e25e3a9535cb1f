"""`eventbus token`: a JSON Web Token for tests and small installations."""

from __future__ import annotations

import secrets

import click

from eventbus.cli.common import Signing, duration_ms, secret_option, signing
from eventbus.clock import SystemClock
from eventbus.errors import ConfigError

__all__ = ["needed_secret", "signed", "token"]

_EPILOG = """\
\b
  openssl rand -hex 32 > secret
  eventbus token --user ada --jwt-secret-file secret
  eventbus token --user bot --scope publish --ttl 7d --jwt-secret-file secret

EVENTBUS_JWT_ISSUER and EVENTBUS_JWT_AUDIENCE, if set, become the token's `iss` and `aud`, as the nodes want them.
"""


def needed_secret(settings: Signing) -> bytes:
    """The secret. Raises: ConfigError: there is none."""
    if settings.jwt_secret is None:
        raise ConfigError("no secret: give --jwt-secret-file FILE, or set EVENTBUS_JWT_SECRET_FILE", field="jwt_secret")
    return settings.jwt_secret


def signed(
    settings: Signing,
    user: str,
    *,
    ttl_ms: int = 3_600_000,
    scopes: tuple[str, ...] = (),
    tier: str | None = None,
    session: str | None = None,
    jti: str | None = None,
) -> str:
    """A token for a user, with an id of its own by which it can be revoked. Raises: ConfigError, InvalidField."""
    from eventbus.tokens import make_token

    return make_token(
        user=user,
        secret=needed_secret(settings),
        now_ms=SystemClock().now_ms(),
        ttl_ms=ttl_ms,
        scopes=scopes,
        tier=tier,
        session=session,
        issuer=settings.jwt_issuer,
        audience=settings.jwt_audience,
        jti=jti or secrets.token_urlsafe(12),
    )


@click.command(epilog=_EPILOG, short_help="Make a token for a user.")
@click.option("--user", required=True, metavar="USER", help="Who shows it: the token's `sub`.")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    metavar="SCOPE",
    help="subscribe, publish or admin; several as one text or by repeating.  [default: subscribe]",
)
@click.option("--tier", metavar="TIER", help="A tier that the nodes have.  [default: theirs]")
@click.option("--session", metavar="SESSION", help="Pin the token to a session.")
@click.option("--ttl", default="1h", show_default=True, metavar="TIME", help="Its life: 90s, 30m, 1h, 7d.")
@click.option("--jti", metavar="JTI", help="Its own id, by which it can be revoked.  [default: a random one]")
@secret_option
# As many arguments as the command has options.
def token(
    user: str, scopes: tuple[str, ...], tier: str | None, session: str | None, ttl: str, jti: str | None,
    jwt_secret_file: str | None,
) -> None:  # fmt: skip
    """Make a token (JWT, HS256) for a user, and print it."""
    wanted = tuple(word for scope in scopes for word in scope.replace(",", " ").split())
    ttl_ms = duration_ms(ttl, "--ttl")
    settings = signing(jwt_secret_file)
    click.echo(signed(settings, user, ttl_ms=ttl_ms, scopes=wanted, tier=tier, session=session, jti=jti))
