"""How the commands print: tables for people, JSON for scripts.

Colours only on a terminal. In a pipe no cell is cut or wrapped, so that grep and awk find what they look for. Whatever
comes from outside is shown without control characters: it must not steer the terminal.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import click
import orjson

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["age", "clock_time", "note", "objects", "plain", "print_json", "print_table"]

_PIPE_WIDTH: Final = 10_000

STYLES: Final[Mapping[str, str]] = {
    "ok": "green",
    "live": "green",
    "ready": "green",
    "acked": "green",
    "in_flight": "green",
    "arriving": "green",
    "warning": "yellow",
    "slow": "yellow",
    "nacking": "yellow",
    "node_gone": "yellow",
    "expired": "yellow",
    "trimmed": "yellow",
    "draining": "yellow",
    "problem": "bold red",
    "not_ready": "bold red",
    "not_read": "bold red",
    "not_acking": "bold red",
    "dead_lettered": "bold red",
}


def plain(text: str) -> str:
    """A text that came from outside, with its control characters shown and not obeyed."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def age(ms: int) -> str:
    """A duration for people, in its two largest units."""
    if ms < 1_000:
        return f"{ms} ms"
    total_s = ms // 1_000
    if total_s < 60:
        return f"{ms / 1_000:.1f} s"
    for large, name, small, small_name in ((86_400, "d", 3_600, "h"), (3_600, "h", 60, "min"), (60, "min", 1, "s")):
        if total_s >= large:
            return f"{total_s // large} {name} {total_s % large // small} {small_name}"
    raise AssertionError(ms)


def clock_time(ms: int) -> str:
    """A moment in this machine's time zone, to the second."""
    return datetime.fromtimestamp(ms / 1_000).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def objects(rows: Iterable[object], names: Sequence[str]) -> list[dict[str, Any]]:
    """The rows as objects with these attributes, in this order."""
    return [{name: getattr(row, name) for name in names} for row in rows]


def print_json(value: object) -> None:
    """Print a value as JSON, for scripts."""
    click.echo(orjson.dumps(value, option=orjson.OPT_INDENT_2))


def print_table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table; whole numbers stand to the right, None is a dash, known words have their colour."""
    from rich.table import Table
    from rich.text import Text

    found = [tuple(row) for row in rows]
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for number, heading in enumerate(headings):
        numeric = all(isinstance(row[number], int) for row in found)
        table.add_column(heading, justify="right" if numeric else "left", overflow="fold")
    for row in found:
        table.add_row(*(Text("-" if cell is None else plain(str(cell)), STYLES.get(str(cell), "")) for cell in row))
    _console().print(table)


def note(text: str) -> None:
    """A sentence for people, beside what was asked for: on stderr, so that a pipe gets the answer alone."""
    click.echo(text, err=True)


def _console() -> Console:
    from rich.console import Console

    # Made for each table: the streams may have been replaced since (a test, a pager).
    terminal = sys.stdout.isatty()
    return Console(file=sys.stdout, highlight=False, emoji=False, width=None if terminal else _PIPE_WIDTH)
