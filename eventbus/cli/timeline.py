"""How `eventbus runs RUN` shows one run: its steps with the time between them, its deadlines, what is wrong with it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, Final

import click

from eventbus.cli.output import age, clock_time, note, objects, plain, print_table

__all__ = ["timeline_object", "show_timeline"]

_HEAD_NAMES: Final = (
    *("run", "user", "thread", "parent", "agent", "tier", "state", "outcome"),
    *("requested_ms", "started_ms", "thinking_ms", "ended_ms"),
)
_DEADLINE_NAMES: Final = ("deadline", "call", "tool", "due_ms", "met_ms", "late_ms", "state")
_EVENT_NAMES: Final = ("entry", "event", "seq", "type", "time_ms", "stored_ms", "call", "tool")
_PROBLEM_NAMES: Final = ("kind", "seq", "event", "detail")


def timeline_object(found: Any, deadlines: Sequence[Any]) -> dict[str, Any]:
    """A run's timeline as JSON has it; `breaches` counts, as in the list of runs."""
    return {
        **objects([found], _HEAD_NAMES)[0],
        "state": found.state or None,
        "breaches": len(found.breaches),
        "open_calls": list(found.open_calls),
        "deadlines": objects(deadlines, _DEADLINE_NAMES),
        "problems": objects(found.problems, _PROBLEM_NAMES),
        "events": [
            {**one, "gap_ms": gap_ms}
            for one, gap_ms in zip(objects(found.events, _EVENT_NAMES), _gaps_ms(found.events), strict=True)
        ],
    }


def show_timeline(found: Any, deadlines: Sequence[Any]) -> None:
    """Prints a run's timeline for people, and in the end a sentence of what is to be made of it."""
    state = found.state or "no longer remembered"
    ended = f", {found.outcome}" if found.outcome else ""
    click.echo(f"run {plain(found.run)}  user {found.user}  {plain(found.agent or '?')}  {state}{ended}")
    given = {"thread": found.thread, "parent": found.parent, "tier": found.tier}
    about = [f"{name} {plain(value)}" for name, value in given.items() if value]
    if about:
        click.echo("  ".join(about))
    click.echo("")
    steps = ("when", "after", "gap", "seq", "what", "tool", "call")
    print_table(steps, _steps(found, deadlines), spare=("call", "after"))
    if deadlines:
        click.echo("")
        headings = ("deadline", "tool", "call", "due", "met", "state", "late")
        print_table(headings, (_deadline_cells(one) for one in deadlines), spare=("call",))
    note("")
    for problem in found.problems:
        note(f"order: {plain(problem.detail)}")
    for sentence in _sentences(found, deadlines):
        note(sentence)


def _gaps_ms(events: Sequence[Any]) -> list[int | None]:
    """How long after the event before it each was stored."""
    return [
        None if number == 0 else max(0, one.stored_ms - events[number - 1].stored_ms)
        for number, one in enumerate(events)
    ]


def _steps(found: Any, deadlines: Sequence[Any]) -> Iterator[tuple[object, ...]]:
    """The events, and among them what was missed at the moment when it was due."""
    rows: list[tuple[int, int, tuple[object, ...]]] = []
    since_ms = found.events[0].stored_ms if found.events else 0
    for one, gap_ms in zip(found.events, _gaps_ms(found.events), strict=True):
        gap = None if gap_ms is None else age(gap_ms)
        when = (_moment(one.stored_ms), age(max(0, one.stored_ms - since_ms)), gap)
        rows.append((one.stored_ms, 1, (*when, one.seq, one.type, one.tool, one.call)))
    for one in deadlines:
        if one.state == "missed" and one.due_ms is not None:
            after = age(one.due_ms - since_ms) if found.events and one.due_ms >= since_ms else None
            missed = (None, f"missed: {one.deadline}", one.tool, one.call)
            rows.append((one.due_ms, 0, (_moment(one.due_ms), after, None, *missed)))
    return iter([cells for _, _, cells in sorted(rows, key=lambda row: row[:2])])


def _deadline_cells(one: Any) -> tuple[object, ...]:
    due, met = (None if ms is None else _moment(ms) for ms in (one.due_ms, one.met_ms))
    return (one.deadline, one.tool, one.call, due, met, one.state, None if one.late_ms is None else age(one.late_ms))


def _call(one: Any) -> str | None:
    """The tool of a call, and which call where it is not the only word for it."""
    return " ".join(word for word in (one.tool, one.call) if word) or None


def _moment(ms: int) -> str:
    """A time of the day in this machine's zone, to the millisecond: the day stands above, or in the list of runs."""
    return datetime.fromtimestamp(ms / 1_000).astimezone().strftime("%H:%M:%S.") + f"{ms % 1_000:03d}"


def _sentences(found: Any, deadlines: Sequence[Any]) -> Iterator[str]:
    begun_ms = found.started_ms or found.requested_ms or (found.events[0].stored_ms if found.events else None)
    if begun_ms is not None:
        yield f"Begun {clock_time(begun_ms)}; {len(found.events)} events are retained."
    if found.state == "requested":
        yield "No agent has begun it: is a worker running that takes requests?"
    if not found.state:
        yield "Its record is gone (EVENTBUS_RETENTION_MS after its last event); what is left are its events."
    missed = [one for one in deadlines if one.state == "missed"]
    if any(one.deadline == "lease" for one in missed):
        yield "The process of its agent was gone, and a node closed the run: look into the agent's log, at that time."
    for one in missed:
        if one.deadline != "lease":
            came = "has not come" if one.met_ms is None else f"came {age(one.late_ms or 0)} late"
            yield f"Missed: {one.deadline}{f' of {_call(one)}' if _call(one) else ''}; it {came}."
    if found.open_calls:
        yield f"Tools are being called: {', '.join(plain(one) for one in found.open_calls)}."
    if not missed and not found.problems and found.state:
        yield "No deadline was missed, and its events are in order."
