"""What several commands share that look: repeating with `--watch`, and progress on long work."""

from __future__ import annotations

import contextlib
import io
import sys
import time
from collections.abc import Callable
from typing import Any, TypeVar

import click

from eventbus.cli.common import duration_ms
from eventbus.cli.output import clock_time
from eventbus.errors import StoreError

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


def repeated(show: Callable[[], None], watch: str | None, *, with_time: bool = False) -> None:
    """Show something once, or again and again until Ctrl-C.

    A terminal keeps the last look until the next one is whole. A store that goes away meanwhile ends nothing: that is
    when somebody watches.

    Args:
        show: prints it.
        watch: the time between two looks; once when None.
        with_time: say above each look of when it is.

    Raises:
        click.BadParameter: the time between two looks is none.
        StoreError: the first look failed.
    """
    if watch is None:
        show()
        return
    wait_ms, seen = duration_ms(watch, "--watch"), False
    try:
        while True:
            try:
                _look(show, with_time=with_time)
            except StoreError as error:
                if not seen:
                    raise
                click.echo(f"{_now()}  {error}", err=True)
            seen = True
            time.sleep(wait_ms / 1_000)
    except KeyboardInterrupt:
        return


class _Screen(io.StringIO):
    """What is about to be shown on a terminal."""

    def isatty(self) -> bool:
        return True


def _look(show: Callable[[], None], *, with_time: bool) -> None:
    if not sys.stdout.isatty():
        if with_time:
            click.echo(_now())
        show()
        return
    screen, notes = _Screen(), io.StringIO()
    with contextlib.redirect_stdout(screen), contextlib.redirect_stderr(notes):
        show()
    click.clear()
    if with_time:
        click.echo(f"{_now()}  (Ctrl-C ends it)")
    click.echo(screen.getvalue() + notes.getvalue(), nl=False)


def _now() -> str:
    return clock_time(time.time_ns() // 1_000_000)


def progress(text: str) -> None:
    """A line on a terminal that the next one replaces; an empty one takes it away."""
    if sys.stderr.isatty():
        click.echo(f"\r\x1b[K{text}", err=True, nl=False)
