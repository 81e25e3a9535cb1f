"""`eventbus revoke|revocations`: tokens, sessions and users that are let in no more."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import IO, TYPE_CHECKING, Final

import click

from eventbus.cli.acting import who
from eventbus.cli.common import as_json_option, opened, redis_option, settings_of
from eventbus.cli.output import clock_time, note, plain, print_json, print_table
from eventbus.clock import SystemClock
from eventbus.config import Settings
from eventbus.errors import InvalidField

if TYPE_CHECKING:
    from eventbus.store.revoking import Revocation, Revoke

__all__ = ["revocations", "revoke"]

_EPILOG: Final = """\
\b
  eventbus revoke --user ada --reason "laptop stolen"
  eventbus revoke --user ada --session tab-1 --yes
  eventbus revoke --token leaked.jwt --json --yes
"""


@click.command(epilog=_EPILOG, short_help="Revoke a token, a session or a user.")
@click.option("--jti", metavar="JTI", help="The token with this `jti`.")
@click.option("--token", "token_file", type=click.File(), metavar="FILE", help="The token in this file; - for stdin.")
@click.option("--user", metavar="USER", help="All tokens of this user that were issued up to now.")
@click.option("--session", metavar="SESSION", help="With --user: this session only, which ends.")
@click.option("--reason", default="", metavar="TEXT", help="Why, for those who look later.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@redis_option
@as_json_option
# As many arguments as the command has options.
def revoke(
    jti: str | None, token_file: IO[str] | None, user: str | None, session: str | None, reason: str, yes: bool,
    redis_url: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Revoke a token, a session or a user: what is connected is closed on every node within two seconds, and nobody
    comes back with a token that was issued before. One that is issued later is good.

    Safe to repeat; a user or a session is then revoked up to that moment.
    """
    from eventbus.revoking import described, revocation_asked_for

    asked: dict[str, object] = {"jti": jti, "user": user, "session": session, "reason": reason}
    if token_file is not None:
        if jti is not None:
            raise click.UsageError("give --jti or --token")
        asked |= _claims_of(token_file.read())
    request = revocation_asked_for({name: value for name, value in asked.items() if value is not None}, by=who())
    settings = settings_of(redis_url)
    if not yes:
        click.confirm(f"Revoke {plain(_shown(request))}?", abort=True, err=True)
    made = asyncio.run(_revoke(settings, request))
    if as_json:
        print_json([described(made)])
    else:
        click.echo(f"revoked {plain(_shown(request))}  until {clock_time(made.until_ms)}")


def _claims_of(token: str) -> dict[str, object]:
    """The `jti` and the end of a token, unverified: whoever may revoke may revoke anything."""
    parts = token.strip().split(".")
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
        expires_s, jti = claims.get("exp"), claims.get("jti")
    except (AttributeError, IndexError, ValueError):
        # `from None`: the inner error holds the text.
        raise InvalidField("token", "is no JWT") from None
    if not isinstance(jti, str):
        raise InvalidField("token", "has no `jti`: revoke its user")
    return {"jti": jti, "expires_ms": expires_s * 1000 if isinstance(expires_s, int) else None}


def _shown(request: Revoke) -> str:
    subject = request.subject
    if subject.jti is not None:
        return f"the token {subject.jti}"
    return f"the user {subject.user}" if subject.session is None else f"the session {subject.session} of {subject.user}"


async def _revoke(settings: Settings, request: Revoke) -> Revocation:
    from eventbus import revoking

    async with opened(settings) as store:
        return await revoking.revoke(store, request)


@click.command(short_help="What is revoked.")
@redis_option
@as_json_option
def revocations(redis_url: str | None, as_json: bool) -> None:
    """List what is revoked and has not ended, in the order in which it was revoked."""
    from eventbus.revoking import described

    rows = [described(one) for one in asyncio.run(_revocations(settings_of(redis_url)))]
    if as_json:
        print_json(rows)
    elif not rows:
        note("Nothing is revoked.")
    else:
        times = ("revoked_ms", "until_ms")
        print_table(
            ("kind", "jti", "user", "session", "reason", "by", "revoked", "until"),
            (
                (
                    *(row[name] for name in row if name not in times),
                    *(clock_time(int(row[name] or 0)) for name in times),
                )
                for row in rows
            ),
            spare=("by", "revoked"),
            text="reason",
        )


async def _revocations(settings: Settings) -> list[Revocation]:
    from eventbus import revoking

    async with opened(settings) as store:
        return await revoking.revocations(store, SystemClock().now_ms())
