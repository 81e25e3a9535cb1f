"""The timeline of a run: its events with their times, its deadlines and what is wrong with its order.

`assemble` and `deadlines_of` are pure; `run_timeline` reads what it needs, bounded by the user's stream.

Source: docs/escalation.md, docs/cli.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from eventbus.breach import Deadline, deadline_of
from eventbus.errors import InvalidEvent
from eventbus.event import Event, decode_envelope
from eventbus.ids import ENTRY_ZERO, EntryId, EventId, RunId, ThreadId, UserId, entry_order
from eventbus.ordering import OrderChecker, OrderProblem
from eventbus.store import Store
from eventbus.store.running import RunRecord
from eventbus.watch import AGENT, LEASE, STARTED, THINKING, RunLimits, RunPhase, breaches_of, call_name, open_calls

__all__ = [
    "DeadlineState",
    "RunTimeline",
    "TimelineBreach",
    "TimelineDeadline",
    "TimelineEvent",
    "assemble",
    "deadlines_of",
    "run_timeline",
]

_PAGE: Final = 500
_CALL: Final = "call"
_OF_CALLS: Final = ("tool_executing", "tool_completed")
_MARGIN_MS: Final = 60_000
"""The clocks of publishers and of the store may differ by so much: the events are looked for from so long before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TimelineEvent:
    """An event of a run.

    Attributes:
        entry: its entry id.
        event: its event id.
        seq: its number, None for one that was published without.
        type: its type.
        time_ms: when it happened, by its publisher's clock.
        stored_ms: when it was stored, by the store's.
        call: the call of a tool that it begins or ends; None for others.
        tool: the tool of that call.
    """

    entry: EntryId
    event: EventId
    seq: int | None
    type: str
    time_ms: int
    stored_ms: int
    call: str | None = None
    tool: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TimelineBreach:
    """A missed deadline: its name, as `eventbus.watch` has it, and when it was due."""

    name: str
    due_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunTimeline:
    """A run as it went. Times are Unix milliseconds, None where something has not happened or is not known.

    Attributes:
        state: `requested`, `running`, `completed`; empty when its record is gone and only events are left.
        open_calls: the calls of tools that are open.
        breaches: the deadlines that were missed, in the order in which they were due.
        problems: what is wrong with the order of its events.
    """

    user: UserId
    run: RunId
    state: str
    agent: str | None
    thread: ThreadId | None
    parent: RunId | None
    tier: str | None
    outcome: str | None
    requested_ms: int | None
    started_ms: int | None
    thinking_ms: int | None
    ended_ms: int | None
    open_calls: Sequence[str]
    events: Sequence[TimelineEvent]
    breaches: Sequence[TimelineBreach]
    problems: Sequence[OrderProblem]


class DeadlineState(StrEnum):
    """How a deadline of a run stands."""

    MET = "met"
    MISSED = "missed"
    OPEN = "open"
    """Neither: its time has not come, or it was not looked at yet."""
    NOT_NEEDED = "not_needed"
    """The run was over before it was due."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TimelineDeadline:
    """A deadline of a run, and what became of it. Times are Unix milliseconds.

    Attributes:
        deadline: which, as operators and metrics name it; `lease` where the process of the run was gone.
        call: the call of a tool that it is of; None for the others.
        tool: the tool of that call, where that is known.
        due_ms: when it was due; None where nothing tells the limits of the run.
        met_ms: when its step came; None when it has not.
        late_ms: how late the step came; None when it came in time, or has not come.
    """

    deadline: str
    call: str | None
    tool: str | None
    due_ms: int | None
    met_ms: int | None
    late_ms: int | None
    state: DeadlineState


def deadlines_of(timeline: RunTimeline, limits: RunLimits | None) -> tuple[TimelineDeadline, ...]:
    """The deadlines of a run, met and missed, in the order in which they were due.

    That of `executing` is shown where it was missed: nothing keeps when the tool was entered.

    Args:
        timeline: the run.
        limits: those of its tier; None when they are not known, then only what was missed has a time.
    """
    missed = {one.name: one.due_ms for one in timeline.breaches}
    begun = {one.call: one for one in timeline.events if one.type == "tool_executing" and one.call}
    ended = {one.call: one for one in timeline.events if one.type == "tool_completed" and one.call}
    allowed: dict[str, int] = {}
    if limits is not None:
        allowed = {STARTED: limits.started_ms, THINKING: limits.thinking_ms, AGENT: limits.run_ms}
        allowed[_CALL] = limits.completed_ms
    found: list[TimelineDeadline] = []

    def add(name: str, since_ms: int | None, allowed_ms: int | None, met_ms: int | None) -> None:
        due_ms = missed.pop(name, None)
        was_missed = due_ms is not None
        if due_ms is None and since_ms is not None and allowed_ms is not None:
            due_ms = since_ms + allowed_ms
        late_ms = met_ms - due_ms if was_missed and met_ms is not None and due_ms is not None else None
        which = deadline_of(name)
        deadline, call = (Deadline(which[0]).value, which[1]) if which else (name, "")
        event = begun.get(call) or ended.get(call)
        found.append(
            TimelineDeadline(
                deadline=deadline,
                call=call or None,
                tool=event.tool if event else None,
                due_ms=due_ms,
                met_ms=met_ms,
                late_ms=None if late_ms is None else max(0, late_ms),
                state=_standing(was_missed, met_ms, timeline.state),
            )
        )

    # Deadlines hold by the store's clock: the times of a run's record are by its publisher's.
    started_ms = _stored(timeline, "agent_started", timeline.started_ms)
    ended_ms = _stored(timeline, "agent_completed", timeline.ended_ms)
    if timeline.requested_ms is not None or STARTED in missed:
        add(STARTED, timeline.requested_ms, allowed.get(STARTED), started_ms)
    if started_ms is not None:
        thought_ms = _stored(timeline, "agent_thinking", timeline.thinking_ms)
        add(THINKING, started_ms, allowed.get(THINKING), thought_ms)
        add(AGENT, started_ms, allowed.get(AGENT), ended_ms)
    for call, event in begun.items():
        answer = ended.get(call)
        met_ms = None if answer is None else answer.stored_ms
        add(call_name(call or ""), event.stored_ms, allowed.get(_CALL), met_ms)
    for name in list(missed):  # of `executing`, of a lease, and of calls whose events are gone
        which = deadline_of(name)
        first = begun.get(which[1]) if which and which[0] is Deadline.EXECUTING else None
        closed_ms = ended_ms if name == LEASE else None
        add(name, None, None, closed_ms if first is None else first.stored_ms)
    return tuple(sorted(found, key=lambda one: (one.due_ms or 0, one.deadline, one.call or "")))


def _stored(timeline: RunTimeline, type: str, told_ms: int | None) -> int | None:
    """When the first event of a type was stored; where it is gone, what the record tells."""
    return next((one.stored_ms for one in timeline.events if one.type == type), told_ms)


def _standing(was_missed: bool, met_ms: int | None, state: str) -> DeadlineState:
    if was_missed:
        return DeadlineState.MISSED
    if met_ms is not None:
        return DeadlineState.MET
    return DeadlineState.OPEN if state in (RunPhase.REQUESTED, RunPhase.RUNNING) else DeadlineState.NOT_NEEDED


def assemble(
    user: UserId, run: RunId, record: RunRecord | None, events: Sequence[tuple[EntryId, Event]]
) -> RunTimeline:
    """Make the timeline of a run of its record and its events, oldest first."""
    fields = {} if record is None else record.fields
    checker = OrderChecker()
    problems = [problem for _, event in events for problem in checker.see(event)]
    # A run that is open may still complete; one that is over, or unknown, must be whole.
    if fields.get("state") != RunPhase.RUNNING:
        problems += checker.missing()
    thread, parent = fields.get("thread"), fields.get("parent")
    breaches = {} if record is None else breaches_of(record)
    return RunTimeline(
        user=user,
        run=run,
        state=fields.get("state", ""),
        agent=fields.get("agent"),
        thread=None if thread is None else ThreadId(thread),
        parent=None if parent is None else RunId(parent),
        tier=fields.get("tier"),
        outcome=fields.get("outcome"),
        requested_ms=_ms(fields.get("requested_ms")),
        started_ms=_ms(fields.get("started_ms")),
        thinking_ms=_ms(fields.get("thinking_ms")),
        ended_ms=_ms(fields.get("ended_ms")),
        open_calls=() if record is None else tuple(open_calls(record)),
        events=tuple(
            TimelineEvent(
                entry=entry,
                event=event.id,
                seq=event.seq,
                type=event.type,
                time_ms=event.time_ms,
                stored_ms=entry_order(entry)[0],
                call=_word(event, "call_id"),
                tool=_word(event, "tool"),
            )
            for entry, event in events
        ),
        breaches=tuple(
            TimelineBreach(name=name, due_ms=due_ms)
            for name, due_ms in sorted(breaches.items(), key=lambda item: (item[1], item[0]))
        ),
        problems=tuple(problems),
    )


def _word(event: Event, name: str) -> str | None:
    """A field of an event of a tool's call."""
    value = event.data.get(name) if event.type in _OF_CALLS else None
    return value if isinstance(value, str) else None


def _ms(text: str | None) -> int | None:
    return int(text) if text else None


async def run_timeline(store: Store, user: UserId, run: RunId) -> RunTimeline | None:
    """Read a run as it went.

    Returns:
        Its timeline; None when nothing is known of it (any more).

    Raises:
        StoreError: the store does not answer.
    """
    # Before its events: a record that says completed must not stand beside events that do not.
    record = await store.run(user, run)
    events: list[tuple[EntryId, Event]] = []
    after, more = _beginning(record), True
    while more:
        page = await store.history(user, after, _PAGE)
        for stored in page.entries:
            after = stored.id
            try:
                event = decode_envelope(stored.body)
            except InvalidEvent:
                continue  # no event of ours; `eventbus event` tells of it
            if event.run == run:
                events.append((stored.id, event))
        more = page.more and bool(page.entries)
    if record is None and events:
        # It began while we looked: a run of which only events are left looks the same.
        record = await store.run(user, run)
    if record is None and not events:
        return None
    return assemble(user, run, record, events)


def _beginning(record: RunRecord | None) -> EntryId:
    fields = {} if record is None else record.fields
    begun = [int(fields[name]) for name in ("requested_ms", "started_ms") if fields.get(name)]
    return EntryId(f"{max(0, min(begun) - _MARGIN_MS)}-0") if begun else ENTRY_ZERO
