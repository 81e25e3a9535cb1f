"""Whether the events of runs are what they must be: numbered without a hole, in order, all that is owed there. Pure.

The store refuses a wrong step where it is made (`append_run.lua`), so what is found here is what a store has lost, what
a client was not given, or what an application published under a run's name by itself. Events of other types are
allowed anywhere within a run, and anywhere at all when they have no number.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from eventbus.event import Event
from eventbus.ids import EventId, RunId
from eventbus.schemas import CRITICAL_TYPES

__all__ = ["OrderChecker", "OrderProblem", "ProblemKind"]

MAX_RUNS: Final = 10_000
"""So many runs are remembered, those that were heard of last."""
_MAX_IDS: Final = 1_000


class ProblemKind(StrEnum):
    """What is wrong."""

    HOLE = "hole"
    """Numbers are missing before this event."""
    REPEATED = "repeated"
    """Another event had this number, or a higher one, before."""
    NOT_STARTED = "not_started"
    """It comes before the run's `agent_started`."""
    STARTED_AGAIN = "started_again"
    """The run has started before."""
    AFTER_END = "after_end"
    """It comes behind the run's `agent_completed`."""
    NOT_EXECUTING = "not_executing"
    """A call of a tool is completed that is not open."""
    EXECUTING_AGAIN = "executing_again"
    """A call of a tool begins that is open."""
    NOT_COMPLETED = "not_completed"
    """A call of a tool is open at the end of the run, or the run has no end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderProblem:
    """One thing that is wrong.

    Attributes:
        kind: what it is.
        run: where.
        event: at which event; None at the end of what was seen.
        seq: its number, where it has one.
        detail: in words, with the numbers.
    """

    kind: ProblemKind
    run: RunId
    event: EventId | None
    seq: int | None
    detail: str


@dataclass(slots=True)
class _Seen:
    """A run as far as it was seen."""

    last: int = 0
    started: bool = False
    completed: bool = False
    open: dict[str, str] = field(default_factory=dict)
    ids: OrderedDict[EventId, None] = field(default_factory=OrderedDict)


class OrderChecker:
    """Looks at a user's events as they come, or at a history, and says what is wrong with those of runs.

    An event that is seen again under its id (a redelivery) is passed over.

    Args:
        from_start: the first event of each run is expected. A history whose beginning is gone says False: a run that is
            first seen in its midst is taken from there.
    """

    def __init__(self, *, from_start: bool = True) -> None:
        self._from_start = from_start
        self._runs: OrderedDict[RunId, _Seen] = OrderedDict()

    def see(self, event: Event) -> tuple[OrderProblem, ...]:
        """Look at the next event. Returns what is wrong with it, as a rule nothing."""
        if event.run is None:
            return ()
        seen = self._runs.get(event.run)
        if seen is None:
            seen = self._runs[event.run] = self._first(event)
        self._runs.move_to_end(event.run)
        if len(self._runs) > MAX_RUNS:
            self._runs.popitem(last=False)
        if event.id in seen.ids:
            return ()
        seen.ids[event.id] = None
        if len(seen.ids) > _MAX_IDS:
            seen.ids.popitem(last=False)
        found = [*_numbers(seen, event), *_kinds(seen, event)]
        return tuple(
            OrderProblem(kind=kind, run=event.run, event=event.id, seq=event.seq, detail=detail)
            for kind, detail in found
        )

    def _first(self, event: Event) -> _Seen:
        if self._from_start or event.type == "agent_started":
            return _Seen()
        return _Seen(last=(event.seq or 1) - 1, started=True)

    def missing(self) -> tuple[OrderProblem, ...]:
        """What the runs that were seen still owe: the ends of open calls, and their own."""
        found = []
        for run, seen in self._runs.items():
            if seen.started and not seen.completed:
                calls = f", and so are its calls {', '.join(seen.open)}" if seen.open else ""
                found.append(
                    OrderProblem(
                        kind=ProblemKind.NOT_COMPLETED,
                        run=run,
                        event=None,
                        seq=None,
                        detail=f"the run is open behind event {seen.last}{calls}",
                    )
                )
        return tuple(found)


_Found = list[tuple[ProblemKind, str]]


def _numbers(seen: _Seen, event: Event) -> _Found:
    """What is wrong with the number. What was published without one is not judged by it."""
    seq = event.seq
    if seq is None:
        return []
    last = seen.last
    if seq <= last:
        return [(ProblemKind.REPEATED, f"event {seq} comes behind event {last}")]
    seen.last = seq
    if seq == last + 1:
        return []
    between = f"event {last + 1} is" if seq == last + 2 else f"events {last + 1} to {seq - 1} are"
    return [(ProblemKind.HOLE, f"{between} missing before event {seq}")]


def _kinds(seen: _Seen, event: Event) -> _Found:
    """What is wrong with the kind of event at this place."""
    found: _Found = []
    if event.seq is None and event.type not in CRITICAL_TYPES:
        return found  # what an application says about a run, whenever it does
    if event.type == "agent_started":
        if seen.started:
            found.append((ProblemKind.STARTED_AGAIN, "the run has started before"))
        seen.started = True
    elif not seen.started:
        found.append((ProblemKind.NOT_STARTED, f"{event.type} comes before agent_started"))
        seen.started = True  # told once
    if seen.completed:
        found.append((ProblemKind.AFTER_END, f"{event.type} comes behind agent_completed"))
    call = event.data.get("call_id")
    if event.type == "agent_completed":
        if seen.open and not seen.completed:
            found.append((ProblemKind.NOT_COMPLETED, f"the calls {', '.join(seen.open)} are open at the end"))
        seen.completed = True
        seen.open.clear()
    elif isinstance(call, str) and event.type == "tool_executing":
        if call in seen.open:
            found.append((ProblemKind.EXECUTING_AGAIN, f"call {call} is open"))
        seen.open[call] = str(event.data.get("tool", ""))
    elif isinstance(call, str) and event.type == "tool_completed" and seen.open.pop(call, None) is None:
        found.append((ProblemKind.NOT_EXECUTING, f"call {call} is not open"))
    return found
