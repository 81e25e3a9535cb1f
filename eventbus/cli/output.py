"""How the commands print: tables for people, JSON for scripts.

Colours only on a terminal. In a pipe no cell is cut or wrapped, so that grep and awk find what they look for. On a
terminal that is too narrow columns are left out, for an id that is broken in two can not be copied. Whatever comes from
outside is shown without control characters: it must not steer the terminal.
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
    from rich.table import Table

__all__ = ["about_in_words", "age", "clock_time", "note", "objects", "plain", "print_json", "print_table"]

_PIPE_WIDTH: Final = 10_000
_GAP: Final = 2
_TEXT_WIDTH: Final = 28
"""So narrow may a column with sentences become."""

Row = Sequence[object]

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


def about_in_words(about: Mapping[str, object]) -> str:
    """What an action is about: `user ada, session laptop`. A filter that narrows nothing is `all`."""
    return ", ".join(f"{name} {_in_words(value)}" for name, value in about.items())


def _in_words(value: object) -> str:
    if isinstance(value, dict):
        shown = (
            f"{name.removesuffix('_ms')} {clock_time(one)}" if name.endswith("_ms") else f"{name} {one}"
            for name, one in value.items()
        )
        return plain(", ".join(shown) or "all")
    return plain(", ".join(map(str, value)) if isinstance(value, list) else str(value))


def clock_time(ms: int) -> str:
    """A moment in this machine's time zone, to the second."""
    return datetime.fromtimestamp(ms / 1_000).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def objects(rows: Iterable[object], names: Sequence[str]) -> list[dict[str, Any]]:
    """The rows as objects with these attributes, in this order."""
    return [{name: getattr(row, name) for name in names} for row in rows]


def print_json(value: object) -> None:
    """Print a value as JSON, for scripts."""
    click.echo(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode())


def print_table(
    headings: Sequence[str],
    rows: Iterable[Row],
    *,
    spare: Sequence[str] = (),
    text: str | None = None,
    least: int = _TEXT_WIDTH,
) -> None:
    """Print a table; whole numbers stand to the right, None is a dash, known words have their colour.

    On a terminal on which it has no room, columns go in which nothing stands, then those of `spare`, and a note names
    the latter. What has no room even so is shown row by row.

    Args:
        headings: of the columns.
        rows: a cell for each column.
        spare: headings of columns that can be spared, the least important first.
        text: the heading of a column of sentences, which may be wrapped.
        least: so narrow may that column become, in characters.
    """
    from rich.cells import cell_len

    found = [tuple(row) for row in rows]
    widths = [
        max(cell_len(_shown(cell)) for cell in (heading, *(row[number] for row in found)))
        for number, heading in enumerate(headings)
    ]
    console = _console(_width(widths))
    if text is not None:
        number = headings.index(text)
        widths[number] = min(widths[number], least)
    empty = [number for number in range(1, len(headings)) if all(row[number] is None for row in found)]
    shown, left_out = _columns(widths, console.width, empty, [headings.index(heading) for heading in spare])
    if _width(widths[number] for number in shown) <= console.width:
        cells = [[row[number] for number in shown] for row in found]
        _print_columns(console, [headings[number] for number in shown], cells, text)
        if left_out:
            names = ", ".join(headings[number] for number in left_out)
            note(f"(no room here for {names}: a wider terminal, or --json)")
    else:
        _print_records(console, headings, found)


def _columns(
    widths: Sequence[int], most: int, empty: Sequence[int], spare: Sequence[int]
) -> tuple[list[int], list[int]]:
    """The numbers of the columns that are shown, and of those that were spared."""
    shown, left_out = list(range(len(widths))), list[int]()
    if _width(widths) > most:
        shown = [number for number in shown if number not in empty]
    for number in spare:
        if _width(widths[one] for one in shown) <= most:
            break
        if number in shown:
            shown.remove(number)
            left_out.append(number)
    for number in left_out[::-1]:  # a wide one that went last may have made room for others
        more = sorted([*shown, number])
        if _width(widths[one] for one in more) <= most:
            shown = more
            left_out.remove(number)
    return shown, left_out


def _width(widths: Iterable[int]) -> int:
    """How wide a table of such columns is."""
    return sum(width + _GAP for width in widths) - _GAP


def _print_columns(console: Console, headings: Sequence[str], rows: Sequence[Row], text: str | None) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, _GAP, 0, 0))
    for number, heading in enumerate(headings):
        numeric = all(isinstance(row[number], int | None) for row in rows)
        table.add_column(heading, justify="right" if numeric else "left", overflow="fold", no_wrap=heading != text)
    for row in rows:
        table.add_row(*(Text(_shown(cell), STYLES.get(str(cell), "")) for cell in row))
    _emit(console, table)


def _print_records(console: Console, headings: Sequence[str], rows: Sequence[Row]) -> None:
    """A line for each cell that has something in it, and an empty one behind each row."""
    from rich.table import Table
    from rich.text import Text

    for row_number, row in enumerate(rows):
        table = Table(box=None, pad_edge=False, show_header=False, padding=(0, _GAP, 0, 0))
        table.add_column(style="bold", no_wrap=True)
        table.add_column(overflow="fold")
        for heading, cell in zip(headings, row, strict=True):
            if cell is not None:
                table.add_row(heading, Text(_shown(cell), STYLES.get(str(cell), "")))
        if row_number:
            click.echo("")
        _emit(console, table)


def _emit(console: Console, table: Table) -> None:
    """Print a table, without the blanks that fill its last column."""
    with console.capture() as captured:
        console.print(table)
    for line in captured.get().splitlines():
        console.file.write(line.rstrip(" ") + "\n")


def _shown(cell: object) -> str:
    return "-" if cell is None else plain(str(cell))


def note(text: str) -> None:
    """A sentence for people, beside what was asked for: on stderr, so that a pipe gets the answer alone."""
    click.echo(text, err=True)


def _console(width: int) -> Console:
    """As wide as the terminal; in a pipe as wide as it takes."""
    from rich.console import Console

    # Made for each table: the streams may have been replaced since (a test, a pager).
    terminal = sys.stdout.isatty()
    return Console(file=sys.stdout, highlight=False, emoji=False, width=None if terminal else max(width, _PIPE_WIDTH))
