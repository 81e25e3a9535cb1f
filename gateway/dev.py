"""The command `eventbus-gateway dev`: a server, nodes, an agent and a page on this machine, without a setting."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Final

import click

from eventbus.errors import ConfigError

__all__ = ["dev"]

NODES_MAX: Final = 8
PORT: Final = 8080


def default_data_dir() -> Path:
    """Where data of this user is kept that is worth keeping and can be done without. Source: XDG base directories."""
    state = os.environ.get("XDG_STATE_HOME", "")
    return (Path(state) if Path(state).is_absolute() else Path.home() / ".local" / "state") / "eventbus"


@click.command(
    short_help="Try everything on this machine: a server, nodes, an agent and a page.",
    epilog="Nothing else has to be there: no account, no configuration, no network. More: docs/demo.md.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65_535),
    help=f"Port of the page; 0 takes a free one.  [default: {PORT}, or the next that is free]",
)
@click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where the server keeps its data.  [default: ~/.local/state/eventbus]",
)
@click.option(
    "--nodes", type=click.IntRange(1, NODES_MAX), default=2, show_default=True, help="How many gateway nodes."
)
@click.option(
    "--open/--no-open", "open_browser", default=None, help="Open the page in a browser.  [default: on a desktop]"
)
@click.option("--run", "question", metavar="QUESTION", help="Start a run with this question at once.")
def dev(port: int | None, data_dir: Path | None, nodes: int, open_browser: bool | None, question: str | None) -> None:
    """Run everything on this machine, to see how it works.

    It starts a Valkey server of its own, gateway nodes, and a demo agent that reads files and publishes what it does; a
    page shows the agent's steps as they arrive. Kill a node there, in the middle of a run, and see that nothing is
    missing. Ctrl-C ends it all; the data stays.
    """
    # Only now: who asks for help does not wait for all that a demo needs.
    from eventbus.embedded import EmbeddedServerError
    from gateway.demo.running import Options, run

    options = Options(
        port=port,
        first_port=PORT,
        data_dir=(data_dir or default_data_dir()).expanduser().absolute(),
        nodes=nodes,
        open_browser=_has_desktop() if open_browser is None else open_browser,
        question=question,
    )
    try:
        run(options)
        click.echo(f"Stopped. The data stays in {options.data_dir}.")
    except (ConfigError, EmbeddedServerError, OSError) as error:
        click.echo(f"eventbus-gateway dev: {error}", err=True)
        sys.exit(2)


def _has_desktop() -> bool:
    """Whether a browser that is opened would be a window: a browser in the terminal would take it away."""
    return sys.stdout.isatty() and (
        sys.platform == "darwin" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
    )
