"""What a deadline that has passed means, and what operators are told of it. Pure.

A deadline is a member of what is due (`eventbus.watch` has the names). One that is still there when its time has come
was missed: a step that is in time takes its deadline away in the script that stores its event, a late one leaves it.
What is done about it is a `Settlement`, carried out by whichever node is first (D22).

Source: docs/escalation.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Any, Final

from eventbus.confirmation import Standing
from eventbus.event import Event
from eventbus.fields import Level
from eventbus.ids import EntryId, UserId
from eventbus.store import ConfirmationRecord
from eventbus.store.running import DueRecord, OperatorEvent, RunRecord, Settlement
from eventbus.watch import LEASE, RunPhase, breaches_of, call_name

__all__ = [
    "Deadline",
    "OperatorKind",
    "abandoned",
    "deadline_of",
    "is_closed",
    "missed_confirmation",
    "missed_deadline",
    "operator_event_name",
    "operator_object",
    "reached_by",
    "webhook_failed",
]

AGAIN_MS: Final = 10_000
"""A run whose lease is over is looked at again after so long, until it is closed."""


class OperatorKind(StrEnum):
    """What operators are told of."""

    MISSED_DEADLINE = "missed_deadline"
    RUN_ABANDONED = "run_abandoned"
    MISSED_CONFIRMATION = "missed_confirmation"
    WEBHOOK_FAILED = "webhook_failed"


class Deadline(StrEnum):
    """The deadlines of a run, as operators and metrics name them."""

    STARTED = "started"
    THINKING = "thinking"
    EXECUTING = "executing"
    COMPLETED = "completed"
    AGENT = "agent"


MAX_MARKS: Final = 1_000
"""So many breaches of a run are marked one by one: the hash is read for each deadline."""

_OF_CALLS: Final = {"call": Deadline.COMPLETED, "executing": Deadline.EXECUTING}


def deadline_of(name: str) -> tuple[Deadline, str] | None:
    """Which deadline a name stands for, and of which call of a tool (empty for none); None for a name of no deadline
    (a lease, or of a later version).
    """
    head, _, call = name.partition(":")
    if head in _OF_CALLS:
        return _OF_CALLS[head], call
    return (Deadline(head), "") if head in tuple(Deadline) and not call else None


def is_closed(record: RunRecord) -> bool:
    """Whether a run is over."""
    return record.fields.get("state") == RunPhase.COMPLETED


# --- runs -------------------------------------------------------------------------------------------------------------


def missed_deadline(due: DueRecord, name: str, record: RunRecord | None, *, posted: bool) -> Settlement:
    """A run was late: it is marked and counted in its own hash, and operators are told. Of one that has `MAX_MARKS`
    marks the further breaches are counted and told, and not marked.

    A run of which nothing is known any more has no timeline to mark: its deadline only goes.

    Args:
        due: the deadline.
        name: which of the run's.
        record: the run.
        posted: whether the webhook is told too.
    """
    which = deadline_of(name)
    if record is None or which is None:
        return Settlement(due=due)
    deadline, call = which
    told = {"deadline": deadline.value}
    if call:
        told["call"] = call
        _, _, tool = record.fields.get(call_name(call), "").partition(" ")
        if tool:  # a call that is over by now has left the hash
            told["tool"] = tool
    return Settlement(
        due=due,
        run=(record.user, record.run),
        fields={f"breach:{name}": str(due.due_ms)} if len(breaches_of(record)) < MAX_MARKS else {},
        counts={"breaches": 1},
        announce=_told(OperatorKind.MISSED_DEADLINE, due, _run_words(record) | told),
        webhook=posted,
    )


def abandoned(due: DueRecord, record: RunRecord | None, *, posted: bool) -> Settlement:
    """The lease of a run is over: nobody works on it. Operators are told once; the lease stays due until it is closed.

    Who carries this out has `AGAIN_MS` to close the run (`eventbus.runs.closing`), before another node may try. A
    crash in between tells nobody twice, for the mark is in the run's hash.

    Args:
        due: the deadline.
        record: the run.
        posted: whether the webhook is told too.
    """
    if record is None or is_closed(record):
        return Settlement(due=due)
    if LEASE in breaches_of(record):
        return Settlement(due=due, watch={due.member: AGAIN_MS})
    return Settlement(
        due=due,
        watch={due.member: AGAIN_MS},
        run=(record.user, record.run),
        fields={f"breach:{LEASE}": str(due.due_ms)},
        counts={"breaches": 1},
        announce=_told(OperatorKind.RUN_ABANDONED, due, _run_words(record)),
        webhook=posted,
    )


def _run_words(record: RunRecord) -> dict[str, str]:
    fields = record.fields
    words = {"user": record.user, "run": record.run, "agent": fields.get("agent", "")}
    return words | {name: fields[name] for name in ("thread", "parent", "tier") if fields.get(name)}


# --- demands ----------------------------------------------------------------------------------------------------------


def reached_by(records: Iterable[ConfirmationRecord], entry: EntryId, due_ms: int) -> Level | None:
    """The highest level to which any session had confirmed an entry at a moment; a node's own release is none (D19)."""
    standing = Standing(entry)
    for record in records:
        standing.add(record)
    levels = [one.level for one in standing.all() if one.time_ms <= due_ms]
    return max(levels, default=None)


def missed_confirmation(
    due: DueRecord,
    user: UserId,
    entry: EntryId,
    level: Level,
    *,
    reached: Level | None,
    event: Event | None,
    posted: bool,
) -> Settlement:
    """A demand's time is over: it goes when it was met, else operators are told.

    Args:
        due: the deadline.
        user: who was to confirm.
        entry: what.
        level: how far.
        reached: how far it is confirmed, None for not at all.
        event: what stands in the entry, None when that is gone.
        posted: whether the webhook is told too.
    """
    if reached is not None and reached >= level:
        return Settlement(due=due)
    told = {
        "user": user,
        "event": "" if event is None else event.id,
        "entry": entry,
        "level": level.value,
        "reached": "" if reached is None else reached.value,
    }
    if event is not None:
        told["type"] = event.type
        told |= {name: value for name in ("run", "thread") if (value := getattr(event, name))}
        if event.require is not None:
            told["within_ms"] = str(event.require.within_ms)
    return Settlement(due=due, announce=_told(OperatorKind.MISSED_CONFIRMATION, due, told), webhook=posted)


# --- what operators read ----------------------------------------------------------------------------------------------


def webhook_failed(due: DueRecord, event: str, attempts: int, reason: str) -> Settlement:
    """A post was given up: operators find it in their list alone, for the webhook does not work.

    Args:
        due: the post's turn.
        event: the name of the operator event that was to be posted.
        attempts: how often it was tried.
        reason: what became of the last one.
    """
    told = {"kind": OperatorKind.WEBHOOK_FAILED.value, "event": event, "attempts": str(attempts), "reason": reason}
    return Settlement(due=due, announce=told)


def _told(kind: OperatorKind, due: DueRecord, words: Mapping[str, str]) -> dict[str, str]:
    return {"kind": kind.value, **words, "due_ms": str(due.due_ms), "late_ms": str(max(0, due.now_ms - due.due_ms))}


def operator_event_name(partition: int, event: EntryId) -> str:
    """The name of an operator event in the installation: its id is unique in its partition alone."""
    return f"{partition}:{event}"


def operator_object(event: OperatorEvent) -> dict[str, Any]:
    """An operator event as JSON has it: its name first, times and counts as numbers."""
    numbers = {
        name: int(value) if (name.endswith("_ms") or name == "attempts") and value.isdecimal() else value
        for name, value in event.fields.items()
    }
    return {"id": operator_event_name(event.partition, event.id), "time_ms": event.time_ms, **numbers}
