"""The command `eventbus-gateway`. What is heavy to load is loaded by the command that needs it."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from typing import Any, Final, NoReturn

import click

from eventbus.errors import ConfigError, StoreMisconfigured
from eventbus.kinds import Choice, FileName, Integer, Listed
from eventbus.settings import Entry, entries, read
from gateway.config import LogSettings, NodeSettings
from gateway.version import VERSION

__all__ = ["cli", "main"]

PROGRAM: Final = "eventbus-gateway"

_BAD_SETTINGS: Final = 2
"""The exit status for settings that can not work."""

_OTHER_COMMANDS: Final = {"dev": "gateway.dev"}
"""Commands that have a module of their own, which holds a click command of that name."""

_COMMON: Final = (
    "redis_url",
    "host",
    "port",
    "admin_host",
    "admin_port",
    "jwt_secret",
    "jwt_public_key_files",
    "node",
    "workers",
    "allowed_origins",
    "trusted_proxies",
    "tls_cert_file",
    "tls_key_file",
    "drain_ms",
    "log_format",
    "log_level",
)
"""The settings that `--help` shows; `--help-all` shows every one."""

_METAVARS: Final = {"redis_url": "URL", "host": "HOST", "admin_host": "HOST", "node": "NAME"}

Decorated = Callable[..., Any]


class _Commands(click.Group):
    """Commands in modules of their own, loaded when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        others = (name for name, module in _OTHER_COMMANDS.items() if importlib.util.find_spec(module))
        return sorted({*super().list_commands(ctx), *others})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        module = _OTHER_COMMANDS.get(cmd_name)
        if module is None or importlib.util.find_spec(module) is None:
            return super().get_command(ctx, cmd_name)
        command = getattr(importlib.import_module(module), cmd_name)
        return command if isinstance(command, click.Command) else None


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="New here? `eventbus-gateway dev` brings a server, an agent and a page with it, and needs no settings.",
)
@click.version_option(VERSION, prog_name=PROGRAM, message="%(prog)s %(version)s")
def cli() -> None:
    """A gateway node of the event bus.

    Agents publish events for users into Redis; a gateway node brings them over WebSockets to the users' browsers and
    apps, and keeps each event until the client has acked it. Any number of nodes work side by side on one Redis.
    """


# --- options made from the settings -----------------------------------------------------------------------------------


def _metavar(entry: Entry) -> str:
    kind = entry.option.kind
    if entry.by_file or isinstance(kind, FileName) or entry.flag.endswith("-file"):
        return "FILE"
    if isinstance(kind, Choice):
        return "|".join(kind.of)
    if isinstance(kind, Integer):
        return {"ms": "MS", "bytes": "BYTES"}.get(entry.option.unit, "N")
    return _METAVARS.get(entry.name, "A,B,..." if isinstance(kind, Listed) else "VALUE")


def _option(entry: Entry) -> click.Option:
    variable = f"{entry.option.env}_FILE" if entry.by_file else entry.option.env
    notes = [variable] + ([f"default {entry.default_text}"] if entry.default_text else [])
    return click.Option(
        [entry.flag, entry.parameter],
        metavar=_metavar(entry),
        help=f"{entry.option.help}  [{'; '.join(notes)}]",
        hidden=entry.name not in _COMMON,
    )


def _settings_options(command: Decorated) -> Decorated:
    """Gives a command one option for each setting of a node; all come as text and None when they are not given."""
    shown = sorted(
        entries(NodeSettings), key=lambda entry: _COMMON.index(entry.name) if entry.name in _COMMON else len(_COMMON)
    )
    # click keeps the options of a function in the order from the inside out.
    params = command.__dict__.setdefault("__click_params__", [])
    params.extend(_option(entry) for entry in reversed(shown))
    return command


def _help_all(ctx: click.Context, param: click.Parameter, wanted: bool) -> None:
    if not wanted or ctx.resilient_parsing:
        return
    hidden = [one for one in ctx.command.params if isinstance(one, click.Option) and one.hidden]
    try:
        for one in hidden:
            one.hidden = False
        click.echo(ctx.get_help())
    finally:
        # The command outlives this call where it is used from within a program.
        for one in hidden:
            one.hidden = True
    ctx.exit()


def _refuse(error: Exception) -> NoReturn:
    click.echo(f"{PROGRAM}: {error}", err=True)
    sys.exit(_BAD_SETTINGS)


# --- serve ------------------------------------------------------------------------------------------------------------

_SERVE_EPILOG: Final = """\
Each setting is an option and a variable; the option stands above the variable.
Every further one: eventbus-gateway serve --help-all, or docs/configuration.md.

\b
  openssl rand -hex 32 > secret
  eventbus-gateway serve --jwt-secret-file secret
  eventbus token --user ada --jwt-secret-file secret

It prints one line `ready node=... url=... admin=...` when it accepts connections.
SIGTERM or Ctrl-C drains it: clients are told to come back, acks are stored, then it ends with status 0; a second one
ends it at once. Settings that can not work end it with status 2 and a sentence.
"""


@cli.command(epilog=_SERVE_EPILOG, short_help="Run a node, or several workers that share a port.")
@_settings_options
@click.option(
    "--help-all", is_flag=True, is_eager=True, expose_value=False, callback=_help_all, help="Show every setting."
)
def serve(**given: str | None) -> None:
    """Run a node, or with --workers several that share a port, until SIGTERM.

    A node needs a Redis (7.0 or later) or Valkey (8 or later), and a key with which it verifies the tokens of clients:
    a shared secret, public keys, or a key set.
    """
    from gateway import logs

    try:
        log = {name: given[name] for name in ("log_format", "log_level")}
        # First of all, so that a warning about another setting comes in the format that is wanted.
        logs.configure(read(LogSettings, os.environ, log))
        settings = NodeSettings.from_env(os.environ, **given)
        if settings.listen.workers == 1:
            logs.configure(settings.log, node=settings.listen.node)
        status = _run(settings)
    except (ConfigError, StoreMisconfigured) as error:
        _refuse(error)
    sys.exit(status)


def _run(settings: NodeSettings) -> int:
    from gateway.processes.process import run_with_loop

    if settings.listen.workers > 1:
        from gateway.processes.supervisor import run_workers

        return run_with_loop(run_workers(settings))
    from gateway.processes.serving import run_node
    from gateway.traces import exported

    with exported(settings):
        return run_with_loop(run_node(settings))


def main() -> None:
    """Run the command; ends the process."""
    cli.main(prog_name=PROGRAM)


if __name__ == "__main__":
    main()
