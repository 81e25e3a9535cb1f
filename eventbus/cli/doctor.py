"""`eventbus doctor`: is everything there that events need to arrive."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import textwrap

import click

from eventbus.cli.common import (
    FOUND_PROBLEMS,
    Signing,
    as_json_option,
    redis_option,
    secret_option,
    settings_of,
    signing,
    unasked,
    with_place,
)
from eventbus.cli.output import STYLES, note, objects, plain, print_json
from eventbus.cli.token import signed
from eventbus.clock import SystemClock
from eventbus.config import Settings
from eventbus.doctor.server_checks import Check, CheckState
from eventbus.errors import StoreError

__all__ = ["doctor"]

_EPILOG = """\
\b
  eventbus doctor
  eventbus doctor --url https://bus.example.com --jwt-secret-file secret

The try writes under the user `eventbus-doctor`; its keys end by themselves. Exit status 1 when there is a problem.
"""


@click.command(epilog=_EPILOG, short_help="Check the server, the nodes and the delivery path.")
@click.option("--url", metavar="URL", help="A node, or the load balancer: also try the path to a client.")
@secret_option
@redis_option
@as_json_option
def doctor(url: str | None, jwt_secret_file: str | None, redis_url: str | None, as_json: bool) -> None:
    """Check the server's settings and state, the clocks and the nodes, and try the delivery path.

    Each line is ok, a warning (may cost events some day) or a problem (costs them, or nothing works), with what to do.
    With --url a node is asked whether it is ready; with the secret of the nodes, too, an event is sent through it.
    """
    settings, keys = settings_of(redis_url), signing(jwt_secret_file)
    if url is not None:
        from eventbus.client.state import parse_url

        parse_url(url)
    checks = asyncio.run(_examine(settings, keys, url))
    if as_json:
        print_json(objects(checks, ("check", "state", "found", "advice")))
    else:
        _print(checks)
    if any(check.state is CheckState.PROBLEM for check in checks):
        raise SystemExit(FOUND_PROBLEMS)


async def _examine(settings: Settings, keys: Signing, url: str | None) -> list[Check]:
    from eventbus.doctor import short_lived, try_node, try_readiness, try_store
    from eventbus.doctor.servers import look_at_nodes, look_at_servers

    clock = SystemClock()
    async with unasked(settings, short_lived(settings.store)) as store:
        try:
            checks = await look_at_servers(store, settings, clock)
        except StoreError as error:
            raise with_place(error, settings) from None
        checks += await try_store(store, clock)
        checks.append(await look_at_nodes(store))
        if url is not None:
            checks.append(await try_readiness(url))
            if keys.jwt_secret is not None:
                checks.append(await try_node(url, lambda user: signed(keys, user), store, clock))
            else:
                advice = "Give the secret of the nodes (--jwt-secret-file) to have an event sent through the node."
                checks.append(Check(check="delivery path", state=CheckState.WARNING, found="not tried", advice=advice))
    return checks


def _print(checks: list[Check]) -> None:
    width = max(len(check.check) for check in checks)
    # On a terminal a sentence is wrapped in its column; in a pipe a row stays a line.
    room = shutil.get_terminal_size().columns - width - 11 if sys.stdout.isatty() else 0

    def lines(text: str) -> str:
        wrapped = textwrap.wrap(text, room, break_long_words=False, break_on_hyphens=False) if room >= 28 else [text]
        return ("\n" + " " * (width + 11)).join(wrapped)

    for check in checks:
        style = STYLES[check.state].split()
        # As the tables do: see https://no-color.org
        color = False if os.environ.get("NO_COLOR") else None
        click.secho(f"{check.state:<8}", fg=style[-1], bold="bold" in style, nl=False, color=color)
        click.echo(f" {check.check:<{width}}  {lines(plain(check.found))}")
        if check.advice:
            click.echo(f"{'':<8} {'':<{width}}  {lines(f'-> {check.advice}')}")
    problems = sum(check.state is CheckState.PROBLEM for check in checks)
    warnings = sum(check.state is CheckState.WARNING for check in checks)
    note(f"\nproblems: {problems}, warnings: {warnings}, ok: {len(checks) - problems - warnings}")
