"""What is watched of a run: the names of deadlines and of the fields of its hash, and what each event changes. Pure.

A deadline is a member of the partition's sorted set of what is due. It goes when the step that meets it is stored in
time; one that is found due was missed (`eventbus.breach`). Members are

- `run <user> <run> <name>` with the name `started`, `thinking`, `executing:<call id>`, `call:<call id>` (the call is to
  be completed), `agent` (the run is to be completed) or `lease` (its process is to say that it lives);
- `demand <user> <entry> <level>`;
- `webhook <operator event id> <attempt>`.

The fields of a run's hash: `user`, `thread`, `agent`, `parent`, `tier`, `state` (`requested`, `running`, `completed`),
`outcome`, `seq` (the number of its last event), `entry` (where that is), `owner`, `lease_ms`, `requested_ms`,
`started_ms`, `thinking_ms` (of its first thought), `ended_ms`, `call:<call id>` = `<ms> <tool>` of each open call,
`breach:<name>` = when a missed deadline was due, `breaches` = how many. Times are Unix milliseconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Final

from eventbus.events import CallId
from eventbus.fields import Level
from eventbus.ids import EntryId, RunId, ThreadId, UserId
from eventbus.store.running import RunRecord, RunStep

__all__ = [
    "AGENT",
    "LEASE",
    "MAX_CALL_ID",
    "STARTED",
    "THINKING",
    "DemandMember",
    "RunAbout",
    "RunLimits",
    "RunMember",
    "RunPhase",
    "Watch",
    "WebhookMember",
    "breaches_of",
    "call_name",
    "demand_member",
    "executing_name",
    "open_calls",
    "parse_member",
    "request_fields",
    "run_member",
    "seq_of",
    "step_of",
    "watch_of",
    "webhook_member",
]

STARTED: Final = "started"
THINKING: Final = "thinking"
AGENT: Final = "agent"
LEASE: Final = "lease"
MAX_CALL_ID: Final = 128
"""The most characters of a call id in a run, for it names a deadline."""

_CALL: Final = "call:"
_EXECUTING: Final = "executing:"
_BREACH: Final = "breach:"


class RunPhase(StrEnum):
    """The field `state`."""

    REQUESTED = "requested"
    RUNNING = "running"
    COMPLETED = "completed"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunLimits:
    """The deadlines of a run, in milliseconds (R17).

    Attributes:
        started_ms: from the request to `agent_started`.
        thinking_ms: from `agent_started` to the first `agent_thinking`.
        executing_ms: from the entering of a tool to its stored `tool_executing`.
        completed_ms: from `tool_executing` to `tool_completed`.
        run_ms: from `agent_started` to `agent_completed`.
    """

    started_ms: int = 1_000
    thinking_ms: int = 2_000
    executing_ms: int = 3_000
    completed_ms: int = 5_000
    run_ms: int = 30_000


# --- members of what is due -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RunMember:
    """A deadline of a run."""

    user: UserId
    run: RunId
    name: str


@dataclass(frozen=True, slots=True)
class DemandMember:
    """A demanded confirmation."""

    user: UserId
    entry: EntryId
    level: Level


@dataclass(frozen=True, slots=True)
class WebhookMember:
    """A webhook that is to be called, for the `attempt`th time."""

    event: EntryId
    attempt: int


def run_member(user: UserId, run: RunId, name: str) -> str:
    """The member of a deadline of a run."""
    return f"run {user} {run} {name}"


def demand_member(user: UserId, entry: EntryId, level: Level) -> str:
    """The member of a demanded confirmation."""
    return f"demand {user} {entry} {level.value}"


def webhook_member(event: EntryId, attempt: int) -> str:
    """The member of a webhook."""
    return f"webhook {event} {attempt}"


def parse_member(member: str) -> RunMember | DemandMember | WebhookMember | None:
    """Read a member; None for one that a later version may have written."""
    kind, _, rest = member.partition(" ")
    if kind == "run" and rest.count(" ") >= 2:
        user, run, name = rest.split(" ", 2)
        return RunMember(UserId(user), RunId(run), name)
    words = rest.split(" ")
    if kind == "demand" and len(words) == 3 and words[2] in tuple(Level):
        return DemandMember(UserId(words[0]), EntryId(words[1]), Level(words[2]))
    if kind == "webhook" and len(words) == 2 and words[1].isascii() and words[1].isdigit():
        return WebhookMember(EntryId(words[0]), int(words[1]))
    return None


def call_name(call_id: str) -> str:
    """The deadline of a call's completion, and the field of an open call."""
    return _CALL + call_id


def executing_name(call_id: str) -> str:
    """The deadline of a call's `tool_executing`."""
    return _EXECUTING + call_id


# --- what an event changes --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class RunAbout:
    """What stays the same in a run.

    Attributes:
        requested_ms: when it was asked for, Unix milliseconds, where its publisher knows.
    """

    user: UserId
    run: RunId
    agent: str
    owner: str
    lease_ms: int
    limits: RunLimits
    thread: ThreadId | None = None
    parent: RunId | None = None
    tier: str | None = None
    requested_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Watch:
    """The deadlines of a run that its next events may meet, but for its lease."""

    names: frozenset[str] = field(default_factory=frozenset)


def request_fields(about: RunAbout) -> dict[str, str]:
    """The fields of a run that is asked for, beside those that the store writes itself."""
    given = {"agent": about.agent, "thread": about.thread, "parent": about.parent, "tier": about.tier}
    fields = {name: value for name, value in given.items() if value is not None}
    return fields if about.requested_ms is None else {**fields, "requested_ms": str(about.requested_ms)}


def step_of(
    watch: Watch,
    about: RunAbout,
    seq: int,
    type: str,
    data: Mapping[str, Any],
    time_ms: int,
    *,
    made_ms: int | None = None,
) -> tuple[Watch, RunStep]:
    """What an event of a run changes in the store.

    Args:
        watch: the deadlines before it.
        about: the run.
        seq: the number of the event.
        type: its type.
        data: its data.
        time_ms: its time.
        made_ms: the same by the store's clock, which deadlines hold by; where it is not known `time_ms` must do.

    Returns:
        The deadlines behind it, and the step.
    """
    step = RunStep(run=about.run, seq=seq, owner=about.owner, lease_ms=about.lease_ms)
    limits = about.limits
    match type:
        case "agent_started":
            fields = {**request_fields(about), "state": RunPhase.RUNNING.value, "started_ms": str(time_ms)}
            watched = {THINKING: limits.thinking_ms, AGENT: limits.run_ms}
            late = {} if about.requested_ms is None else {STARTED: about.requested_ms + limits.started_ms}
            step = replace(step, fields=fields, watch=watched, unwatch=(STARTED,), by=late)
            return Watch(frozenset(watched)), step
        case "agent_thinking" if THINKING in watch.names:
            fields = {"thinking_ms": str(time_ms)}
            return Watch(watch.names - {THINKING}), replace(step, fields=fields, unwatch=(THINKING,))
        case "tool_executing":
            call_id, name = data["call_id"], call_name(data["call_id"])
            step = replace(
                step,
                fields={name: f"{time_ms} {data['tool']}"},
                watch={name: limits.completed_ms},
                by={executing_name(call_id): (time_ms if made_ms is None else made_ms) + limits.executing_ms},
            )
            return Watch(watch.names | {name}), step
        case "tool_completed":
            name = call_name(data["call_id"])
            return Watch(watch.names - {name}), replace(step, gone=(name,), unwatch=(name,))
        case "agent_completed":
            fields = {"state": RunPhase.COMPLETED.value, "outcome": str(data["outcome"]), "ended_ms": str(time_ms)}
            return Watch(), replace(step, lease_ms=0, fields=fields, unwatch=tuple(sorted(watch.names)))
    return watch, step


# --- a run as the store has it ----------------------------------------------------------------------------------------


def seq_of(record: RunRecord) -> int:
    """The number of the last event that is stored, 0 before the first."""
    return int(record.fields.get("seq", "0"))


def open_calls(record: RunRecord) -> dict[CallId, str]:
    """The open calls and the names of their tools, oldest first."""
    found = []
    for name, value in record.fields.items():
        if name.startswith(_CALL):
            ms, _, tool = value.partition(" ")
            found.append((int(ms), name.removeprefix(_CALL), tool))
    return {CallId(call_id): tool for _, call_id, tool in sorted(found)}


def watch_of(record: RunRecord) -> Watch:
    """The deadlines that the next events of a run may meet."""
    if record.fields.get("state") != RunPhase.RUNNING:
        return Watch()
    names = {AGENT, *(call_name(call_id) for call_id in open_calls(record))}
    return Watch(frozenset(names if "thinking_ms" in record.fields else names | {THINKING}))


def breaches_of(record: RunRecord) -> dict[str, int]:
    """The missed deadlines by name, each with the time when it was due."""
    return {
        name.removeprefix(_BREACH): int(value)
        for name, value in record.fields.items()
        if name.startswith(_BREACH) and value.isdigit()
    }
