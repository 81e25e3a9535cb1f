"""What several commands share that look: repeating with `--watch`, and progress on long work."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any, TypeVar

import click

from eventbus.cli.common import duration_ms

__all__ = ["progress", "repeated", "watch_option"]

_Decorated = TypeVar("_Decorated", bound=Callable[..., Any])


def watch_option(command: _Decorated) -> _Decorated:
    """`--watch`, or `--watch=5s`."""
    return click.option(
        "--watch",
        is_flag=False,
        flag_value="2s",
        metavar="[TIME]",
        help="Look again every 2 s, or as --watch=5s says, until Ctrl-C.",
    )(command)


def repeated(show: Callable[[], None], watch: str | None) -> None:
    """Show something once, or again and again until Ctrl-C. Raises: click.BadParameter."""
    if watch is None:
        show()
        return
    wait_ms = duration_ms(watch, "--watch")
    try:
        while True:
            if sys.stdout.isatty():
                click.clear()
            show()
            time.sleep(wait_ms / 1_000)
    except KeyboardInterrupt:
        return


def progress(text: str) -> None:
    """A line on a terminal that the next one replaces; an empty one takes it away."""
    if sys.stderr.isatty():
        click.echo(f"\r\x1b[K{text}", err=True, nl=False)
