"""What was measured, as tables and as JSON. Pure: no clock, no files, no processes."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Final

__all__ = [
    "BEGIN",
    "END",
    "Case",
    "Circumstances",
    "Figure",
    "Report",
    "as_json",
    "as_markdown",
    "figures",
    "insert",
    "percentile",
    "per_event_us",
    "shown",
]

BEGIN: Final = "<!-- figures: begin (written by `python -m benchmarks --write`) -->"
END: Final = "<!-- figures: end -->"


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One figure, measured several times.

    Attributes:
        name: what it is.
        unit: what it is counted in.
        values: one for each run, in the order of the runs.
    """

    name: str
    unit: str
    values: tuple[float, ...]

    @property
    def low(self) -> float:
        """The least of the runs."""
        return min(self.values)

    @property
    def median(self) -> float:
        """The middle one of the runs; the mean of both when there are two."""
        ordered = sorted(self.values)
        middle = len(ordered) // 2
        return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2

    @property
    def high(self) -> float:
        """The most of the runs."""
        return max(self.values)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One load, and its figures.

    Attributes:
        name: the load in words.
        figures: what was measured under it.
        faults: what did not go as it must, one sentence for each run that it happened in; none when all is well.
    """

    name: str
    figures: tuple[Figure, ...]
    faults: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Circumstances:
    """What a figure is worth nothing without.

    Attributes:
        command: the command line.
        commit: the commit, with a `+` when the tree had changes.
        date: the day, UTC.
        machine: what kind of machine; no names, no paths.
        software: versions.
    """

    command: str
    commit: str
    date: str
    machine: str
    software: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A whole measurement: the cases of each benchmark, by its title."""

    circumstances: Circumstances
    benchmarks: Mapping[str, Sequence[Case]] = field(default_factory=dict)

    @property
    def faults(self) -> list[str]:
        """All that did not go as it must."""
        return [
            f"{case.name}: {fault}" for cases in self.benchmarks.values() for case in cases for fault in case.faults
        ]


def figures(runs: Sequence[Mapping[tuple[str, str], float]]) -> tuple[Figure, ...]:
    """Put the runs of one case together.

    Args:
        runs: for each run its values by name and unit; all runs have the same names, a name that a run lacks is left
            out of that run's figure.
    """
    names = dict.fromkeys(key for run in runs for key in run)
    return tuple(
        Figure(name=name, unit=unit, values=tuple(run[name, unit] for run in runs if (name, unit) in run))
        for name, unit in names
    )


def percentile(ordered: Sequence[float], share: float) -> float:
    """The value that `share` (0 to 1) of the values do not exceed, by the nearest rank.

    Args:
        ordered: the values, ascending; not empty.
        share: which one.
    """
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def per_event_us(cpu_ns: int, events: int) -> float:
    """CPU time an event, in microseconds; 0 when there was no event."""
    return cpu_ns / 1000 / events if events else 0.0


def shown(value: float) -> str:
    """A value with three significant digits, and thousands apart."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{digits}f}"


def as_markdown(report: Report) -> str:
    """The report as Markdown: the circumstances, a table for each benchmark, and what went wrong."""
    told = report.circumstances
    lines = [
        f"Measured on {told.date} at commit `{told.commit}` with `{told.command}`.",
        f"{told.machine}. {told.software}.",
    ]
    for title, cases in report.benchmarks.items():
        lines += ["", f"### {title}", "", "| load | figure | median | least | most | unit | runs |"]
        lines.append("|---|---|--:|--:|--:|---|--:|")
        for case in cases:
            lines += _rows(case)
    if report.faults:
        lines += ["", "These runs do not count, for not everything that was sent was received and acked:", ""]
        lines += [f"- {fault}" for fault in report.faults]
    return "\n".join(lines) + "\n"


def _rows(case: Case) -> Iterable[str]:
    for number, figure in enumerate(case.figures):
        values = f"{shown(figure.median)} | {shown(figure.low)} | {shown(figure.high)}"
        name = case.name if number == 0 else ""
        yield f"| {name} | {figure.name} | {values} | {figure.unit} | {len(figure.values)} |"


def as_json(report: Report) -> str:
    """The report as JSON, with the value of each run."""
    return json.dumps(asdict(report), indent=2) + "\n"


def insert(page: str, text: str) -> str:
    """Put text between the two marks of a page, in place of what stands there.

    Raises:
        ValueError: the page has not both marks, in order.
    """
    head, begin, rest = page.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page must have the lines {BEGIN!r} and {END!r}")
    return f"{head}{BEGIN}\n\n{text.strip()}\n\n{END}{tail}"
