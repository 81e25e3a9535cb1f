"""The timeline of a run: its events with their times, its deadlines and what is wrong with its order.

`assemble` is pure; `run_timeline` reads what it needs, bounded by the user's stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from eventbus.errors import InvalidEvent
from eventbus.event import Event, decode_envelope
from eventbus.ids import ENTRY_ZERO, EntryId, EventId, RunId, ThreadId, UserId, entry_order
from eventbus.ordering import OrderChecker, OrderProblem
from eventbus.store import Store
from eventbus.store.running import RunRecord
from eventbus.watch import RunPhase, breaches_of, open_calls

__all__ = ["RunTimeline", "TimelineBreach", "TimelineEvent", "assemble", "run_timeline"]

_PAGE: Final = 500
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
    if record is None and not events:
        return None
    return assemble(user, run, record, events)


def _beginning(record: RunRecord | None) -> EntryId:
    fields = {} if record is None else record.fields
    begun = [int(fields[name]) for name in ("requested_ms", "started_ms") if fields.get(name)]
    return EntryId(f"{max(0, min(begun) - _MARGIN_MS)}-0") if begun else ENTRY_ZERO
