"""The way of one event: when it was made and stored, what each session did with it and when, and why one has it not.

Source: docs/cli.md, "event".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from eventbus.errors import InvalidEvent
from eventbus.event import EventHead, peek
from eventbus.ids import ENTRY_ZERO, EntryId, EventId, RunId, SessionId, ThreadId, UserId, entry_order, event_id_time_ms
from eventbus.inspection.lookup import EventReport, entry_or_none, fate, partition_of, records_of
from eventbus.inspection.verdicts import Fate, SessionFate, Timing, Verdict, why_of
from eventbus.inspection.waiting import pending_of_user
from eventbus.store import Store

__all__ = ["Absence", "AbsenceReason", "EventWay", "SessionWay", "WayStep", "absence", "way_of"]

_PAGE: Final = 500
_LOOKED_MAX: Final = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class WayStep:
    """Something that happened to an event.

    Attributes:
        time_ms: Unix milliseconds; of Redis's clock, but for `made`, which is by the publisher's.
        what: `made`, `stored`, a level (`received`, ...), a release (`filtered`, ...), `dead_lettered`, or the kind of
            an event for operators (`missed_confirmation`, ...).
        session: which did it; None where it is none's.
        detail: in a few words; may be empty.
    """

    time_ms: int
    what: str
    session: SessionId | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionWay:
    """What became of the event for one session: its fate, why something waits for the session (None when nothing does),
    and a sentence.
    """

    fate: SessionFate
    verdict: Verdict | None
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EventWay:
    """The way of an event.

    Attributes:
        report: what became of it.
        made_ms: when its publisher made it, by the publisher's clock; None when that is not known any more.
        stored_ms: when it was stored, by Redis's.
        agent: who ran the run that it is of, where that is known.
        sessions: one for each session that the user has, or that did something with it.
        steps: what happened, in the order of time.
    """

    report: EventReport
    made_ms: int | None
    stored_ms: int
    thread: ThreadId | None
    run: RunId | None
    agent: str
    sessions: Sequence[SessionWay]
    steps: Sequence[WayStep]


async def way_of(
    store: Store,
    user: UserId,
    event_or_entry: str,
    *,
    partitions: int,
    timing: Timing,
    records_kept: bool = True,
) -> EventWay | None:
    """The way of an event; None when nothing knows of it (any more): `absence` says why.

    Args:
        store: where it is.
        user: whose event it is.
        event_or_entry: its event id, or its entry id.
        partitions: of the installation.
        timing: of nodes that do not tell theirs.
        records_kept: whether acks are recorded (`EVENTBUS_CONFIRMATION_RECORDS`).
    """
    report = await fate(store, user, event_or_entry, partitions=partitions, records_kept=records_kept)
    if report is None:
        return None
    head = _head(report.body)
    known = {record.session for record in await store.sessions(user)}
    verdicts = {row.session: row.verdict for row in await pending_of_user(store, user, timing)}
    waits = (Fate.PENDING, Fate.NOT_READ)
    sessions = [
        SessionWay(
            fate=one,
            verdict=(verdict := verdicts.get(one.session) if one.state in waits else None),
            why=why_of(one, verdict, is_known=one.session in known),
        )
        for one in report.fates
    ]
    run = None if head is None or head.run is None else await store.run(user, head.run)
    return EventWay(
        report=report,
        made_ms=None if head is None else head.time_ms,
        stored_ms=entry_order(report.entry)[0],
        thread=None if head is None else head.thread,
        run=None if head is None else head.run,
        agent="" if run is None else run.fields.get("agent", ""),
        sessions=sessions,
        steps=await _steps(store, user, report, head, partition_of(user, partitions)),
    )


def _head(body: bytes) -> EventHead | None:
    try:
        return peek(body)
    except InvalidEvent:
        return None


async def _steps(
    store: Store, user: UserId, report: EventReport, head: EventHead | None, partition: int
) -> list[WayStep]:
    steps = [] if head is None else [WayStep(time_ms=head.time_ms, what="made")]
    steps.append(WayStep(time_ms=entry_order(report.entry)[0], what="stored", detail=report.entry))
    for session, records in (await records_of(store, user, report.entry)).items():
        steps += [
            WayStep(time_ms=one.time_ms, what=one.level, session=session, detail=one.note or "") for one in records
        ]
    steps += [
        WayStep(time_ms=one.time_ms or 0, what="dead_lettered", session=one.session, detail=one.reason or "")
        for one in report.fates
        if one.state is Fate.DEAD_LETTERED
    ]
    steps += await _told(store, user, report, partition)
    return sorted(steps, key=lambda step: step.time_ms)


async def _told(store: Store, user: UserId, report: EventReport, partition: int) -> list[WayStep]:
    """What operators were told of it."""
    after, found = EntryId(f"{max(0, entry_order(report.entry)[0] - 1)}-0"), list[WayStep]()
    for _ in range(0, _LOOKED_MAX, _PAGE):
        page = await store.operator_events(partition, after, _PAGE)
        for one in page:
            fields = one.fields
            about = report.entry == fields.get("entry") or (report.event and report.event == fields.get("event"))
            if fields.get("user") == user and about:
                detail = ", ".join(f"{name} {fields[name]}" for name in ("level", "reached") if fields.get(name))
                found.append(WayStep(time_ms=one.time_ms, what=fields.get("kind", ""), detail=detail))
        if len(page) < _PAGE:
            break
        after = page[-1].id
    return found


# --- an event that nothing knows of -----------------------------------------------------------------------------------


class AbsenceReason(StrEnum):
    """Why nothing knows of an event."""

    TOO_OLD = "too_old"
    TRIMMED = "trimmed"
    PAUSED = "paused"
    NEVER_STORED = "never_stored"


@dataclass(frozen=True, slots=True, kw_only=True)
class Absence:
    """Why nothing knows of an event, as far as can be told, and a sentence about it."""

    reason: AbsenceReason
    why: str


async def absence(store: Store, user: UserId, event_or_entry: str, *, retention_ms: int, max_entries: int) -> Absence:
    """Why nothing knows of an event. What was trimmed and what was never stored are told apart by the time in its id.

    Args:
        store: where it is not.
        user: whose event it should be.
        event_or_entry: its event id, or its entry id.
        retention_ms: of the installation.
        max_entries: of the installation.
    """
    entry = entry_or_none(event_or_entry)
    made_ms = event_id_time_ms(EventId(event_or_entry)) if entry is None else entry_order(entry)[0]
    now_ms = await store.ping()
    if made_ms is not None and made_ms < now_ms - retention_ms:
        return Absence(
            reason=AbsenceReason.TOO_OLD,
            why=f"it is older than the retention (EVENTBUS_RETENTION_MS, {retention_ms} ms): it is forgotten",
        )
    first = await store.history(user, ENTRY_ZERO, 1)
    oldest_ms = entry_order(first.entries[0].id)[0] if first.entries else None
    tail_ms = entry_order(first.tail)[0]
    gone = tail_ms if oldest_ms is None else oldest_ms
    if made_ms is not None and first.tail != ENTRY_ZERO and made_ms < gone:
        return Absence(
            reason=AbsenceReason.TRIMMED,
            why=f"it left the stream before its time: {user}'s oldest event is newer. The stream is capped"
            f" (EVENTBUS_MAX_STREAM_ENTRIES {max_entries}, EVENTBUS_MAX_STREAM_BYTES); sessions that had not read it"
            " are told of a gap",
        )
    paused = await store.paused_types()
    if first.tail == ENTRY_ZERO and not paused:
        return Absence(
            reason=AbsenceReason.NEVER_STORED,
            why=f"nothing was ever stored for {user}, or all of it is older than the retention: is that the user of the"
            " publisher's receipt, and is EVENTBUS_NAMESPACE the installation's? `eventbus pending` shows users that it"
            " has",
        )
    if paused:
        names = ", ".join(one.type for one in paused)
        return Absence(
            reason=AbsenceReason.PAUSED,
            why=f"it was never stored for {user}. Events of these types are paused, and their publishers were told so:"
            f" {names}; `eventbus paused` says by whom",
        )
    return Absence(
        reason=AbsenceReason.NEVER_STORED,
        why=f"it was never stored for {user}: published for another user or namespace, refused, or not"
        " at all; or, where its id tells no time, it is older than the retention (EVENTBUS_RETENTION_MS). The"
        " publisher's receipt has its id",
    )
