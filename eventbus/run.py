"""A run: which of an agent's events may come when, and which are owed. A state machine as a table. Pure.

The state is a value and a move makes a new one, so a move whose events are refused (too large, an application's own
schema) has not happened: it takes no `seq`. Whatever the moves: `agent_started` is the first event, `agent_completed`
the last, both come once, each `tool_executing` has its `tool_completed`, and `seq` counts from 1 without a hole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Final, cast

from eventbus import events
from eventbus.errors import RunMisused
from eventbus.events import CallId, Outcome, TypedEvent
from eventbus.ids import RunId
from eventbus.schemas import CRITICAL_TYPES

__all__ = [
    "AGENT_FAILED",
    "MAX_OPEN_CALLS",
    "TABLE",
    "TOOL_CANCELLED",
    "TOOL_FAILED",
    "TOOL_LEFT",
    "TOOL_RESTARTED",
    "UNSENDABLE",
    "Complete",
    "Emit",
    "Move",
    "Owed",
    "Phase",
    "RunState",
    "Start",
    "Think",
    "ToolEnd",
    "ToolStart",
    "next_call_id",
    "resumed",
    "step",
]

# What a user is told of an error: never its text, which may hold anything. Operators find that in the log.
AGENT_FAILED: Final = "the agent failed"
TOOL_FAILED: Final = "the tool failed"
TOOL_CANCELLED: Final = "the tool was cancelled"
TOOL_LEFT: Final = "the run ended before the tool was done"
TOOL_RESTARTED: Final = "the agent was restarted before the tool was done"
UNSENDABLE: Final = "the result could not be sent"

MAX_OPEN_CALLS: Final = 1_000
"""So many calls of tools may be open at a time: nodes read them all for each deadline that a call misses."""


class Phase(StrEnum):
    """Where a run stands."""

    NEW = "new"
    STARTED = "started"
    COMPLETED = "completed"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """What is known of a run.

    Attributes:
        phase: where it stands.
        seq: the number of its last event, 0 before the first.
        open: the calls of tools that have begun and not ended, oldest first, with the names of their tools.
        ended: the calls that have ended; their ids are not used again. In sets of which each is smaller than the one
            before it by half or more: one more is cheap, however many there are.
        before: of a run that was resumed: the number of its last event then; ids of calls are made above it.
    """

    phase: Phase = Phase.NEW
    seq: int = 0
    open: Mapping[CallId, str] = field(default_factory=dict)
    ended: tuple[frozenset[CallId], ...] = ()
    before: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Owed:
    """An event that the run owes, at its place.

    Attributes:
        seq: its number in the run, from 1.
        type: its type.
        data: its data.
    """

    seq: int
    type: str
    data: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """The agent begins; `parent` is the run that it works for."""

    agent: str
    parent: RunId | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Think:
    """The agent says what it thinks."""

    text: str
    more: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolStart:
    """A tool begins."""

    call_id: CallId
    tool: str
    arguments: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolEnd:
    """A tool has ended: with `error` in words for the user, else with `result`."""

    call_id: CallId
    result: Any = None
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Emit:
    """The agent publishes an event of another type."""

    type: str
    data: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Complete:
    """The agent has ended. Tools that are open end first, with an error; `result` None is left out."""

    outcome: Outcome
    result: Any = None
    error: str | None = None


Move = Start | Think | ToolStart | ToolEnd | Emit | Complete
Made = tuple[RunState, list[TypedEvent]]


def step(state: RunState, move: Move) -> tuple[RunState, tuple[Owed, ...]]:
    """Make a move.

    Args:
        state: where the run stands.
        move: what happens.

    Returns:
        The new state, and the events that are owed now, in order.

    Raises:
        RunMisused: the move is not allowed here; the message says what to do.
        InvalidEvent: an event of it is wrong; `field` names the part.
    """
    make = TABLE.get((state.phase, type(move)))
    if make is None:
        raise RunMisused(_ILLEGAL[state.phase, type(move)])
    after, made = make(state, move)
    owed = tuple(Owed(seq=number, type=event.type, data=event.data) for number, event in enumerate(made, state.seq + 1))
    return replace(after, seq=state.seq + len(made)), owed


def resumed(seq: int, open: Mapping[CallId, str]) -> tuple[RunState, tuple[Owed, ...]]:
    """Go on with a run whose process is gone.

    Its open calls end first, with an error: nobody knows how far their tools came. The ids of its calls are free to be
    used again, for an agent that does its work over may name them.

    Args:
        seq: the number of its last event that is stored.
        open: the calls that have begun and not ended, oldest first, with the names of their tools.

    Returns:
        The state behind what is owed, and the events that are owed now, in order.
    """
    state = RunState(phase=Phase.STARTED, seq=seq, open=open, before=seq)
    owed: tuple[Owed, ...] = ()
    for call_id in open:
        state, made = step(state, ToolEnd(call_id=call_id, error=TOOL_RESTARTED))
        owed += made
    return replace(state, ended=()), owed


def next_call_id(state: RunState) -> CallId:
    """An id for a call that brought none: `call_1`, `call_2`, ..., one that this run has not seen."""
    number = state.before + len(state.open) + sum(map(len, state.ended)) + 1
    while _is_used(state, CallId(f"call_{number}")):
        number += 1
    return CallId(f"call_{number}")


def _is_used(state: RunState, call_id: CallId) -> bool:
    return call_id in state.open or _has_ended(state, call_id)


def _has_ended(state: RunState, call_id: CallId) -> bool:
    return any(call_id in some for some in state.ended)


def _ended_too(ended: tuple[frozenset[CallId], ...], call_id: CallId) -> tuple[frozenset[CallId], ...]:
    newest = frozenset((call_id,))
    while ended and len(ended[-1]) < 2 * len(newest):
        ended, newest = ended[:-1], ended[-1] | newest
    return *ended, newest


def _start(state: RunState, move: Start) -> Made:
    above = {} if move.parent is None else {"parent": move.parent}
    return replace(state, phase=Phase.STARTED), [events.agent_started(agent=move.agent, **above)]


def _think(state: RunState, move: Think) -> Made:
    return state, [events.agent_thinking(**{**move.more, "text": move.text})]


def _tool_start(state: RunState, move: ToolStart) -> Made:
    made = events.tool_executing(tool=move.tool, call_id=move.call_id, arguments=move.arguments)
    if _is_used(state, move.call_id):
        raise RunMisused(
            f"call {move.call_id!r} was begun in this run before: give each call of a tool an id of its own"
        )
    if len(state.open) >= MAX_OPEN_CALLS:
        raise RunMisused(
            f"{len(state.open)} calls of tools are open in this run, as many as a run may have: end some before you"
            " begin more, or begin them in child runs"
        )
    return replace(state, open={**state.open, move.call_id: move.tool}), [made]


def _tool_end(state: RunState, move: ToolEnd) -> Made:
    if move.call_id not in state.open:
        ended = "has ended before" if _has_ended(state, move.call_id) else "was never begun"
        raise RunMisused(f"call {move.call_id!r} {ended} in this run: end each call once, after its beginning")
    tool = state.open[move.call_id]
    if move.error is None:
        made = events.tool_completed(tool=tool, call_id=move.call_id, result=move.result)
    else:
        made = events.tool_completed(tool=tool, call_id=move.call_id, error=move.error)
    left = {call_id: name for call_id, name in state.open.items() if call_id != move.call_id}
    return replace(state, open=left, ended=_ended_too(state.ended, move.call_id)), [made]


def _emit(state: RunState, move: Emit) -> Made:
    if move.type in CRITICAL_TYPES:
        raise RunMisused(f"{move.type} is sent by the run itself: {_INSTEAD[move.type]}")
    # Judged, with the fields that are its own, where the event is made.
    return state, [TypedEvent(move.type, cast(dict[str, Any], move.data))]


def _complete(state: RunState, move: Complete) -> Made:
    made = [events.tool_completed(tool=tool, call_id=call_id, error=TOOL_LEFT) for call_id, tool in state.open.items()]
    # A result of null says nothing, so it is left out.
    result = {} if move.result is None else {"result": move.result}
    made.append(events.agent_completed(outcome=move.outcome, error=move.error, **result))
    return replace(state, phase=Phase.COMPLETED, open={}), made


TABLE: Final[Mapping[tuple[Phase, type[Move]], Callable[[RunState, Any], Made]]] = {
    (Phase.NEW, Start): _start,
    (Phase.STARTED, Think): _think,
    (Phase.STARTED, ToolStart): _tool_start,
    (Phase.STARTED, ToolEnd): _tool_end,
    (Phase.STARTED, Emit): _emit,
    (Phase.STARTED, Complete): _complete,
}
"""What may happen when. A missing key is the illegal move."""

_INSTEAD: Final = {
    "agent_started": "it came when the run was entered; a further agent is `run.child(agent=...)`",
    "agent_thinking": "use `run.thinking(text)`",
    "tool_executing": "use `run.tool(name, arguments)`",
    "tool_completed": "use `run.tool(name, arguments)` and set `tool.result`",
    "agent_completed": "set `run.result`; it comes when the run is left",
}
_EARLY: Final = "the run has not started: use it inside `async with bus.run(...) as run:`"
_LATE: Final = (
    "the run is completed, and nothing may follow its agent_completed: do this inside the run, or begin a new one"
)
_ILLEGAL: Final[Mapping[tuple[Phase, type[Move]], str]] = {
    (Phase.STARTED, Start): "the run was entered before: enter a run once, and make a new one with `bus.run(...)`",
    (Phase.COMPLETED, Start): "the run is over: make a new one with `bus.run(...)`",
    **{(Phase.NEW, move): _EARLY for move in (Think, ToolStart, ToolEnd, Emit, Complete)},
    **{(Phase.COMPLETED, move): _LATE for move in (Think, ToolStart, ToolEnd, Emit, Complete)},
}
