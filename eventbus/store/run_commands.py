"""The scripts of runs and deadlines as typed functions: what goes in, and what the answer means."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from eventbus.config import StoreSettings
from eventbus.errors import OutOfOrder, RunClosed
from eventbus.ids import EntryId, EventId, RunId, UserId, entry_order
from eventbus.store.answers import whole
from eventbus.store.command import Argument, Command
from eventbus.store.keys import Keys
from eventbus.store.running import (
    OPERATOR_EVENTS_LIFE_MS,
    DueRecord,
    Lease,
    OperatorEvent,
    RunRecord,
    RunRequest,
    RunStep,
    Settlement,
    out_of_order,
    run_completed,
    run_taken,
)
from eventbus.store.scripts import script

__all__ = [
    "claim_run",
    "due",
    "operator_event",
    "record_of",
    "renew_lease",
    "request_run",
    "settle",
    "step_arguments",
    "step_refused",
]


def _evalsha(name: str, *words: Argument) -> tuple[Argument, ...]:
    found = script(name)
    return ("EVALSHA", found.sha, len(found.keys), *words)


def _changes(kind: str, values: Mapping[str, Any]) -> list[Argument]:
    return [word for name, value in values.items() for word in (kind, name, value)]


def step_arguments(step: RunStep, event: EventId) -> list[Argument]:
    """What append_run.lua is given beyond the arguments of append.lua."""
    return [
        step.run,
        step.seq,
        step.owner,
        step.lease_ms,
        step.order.value,
        event,
        OPERATOR_EVENTS_LIFE_MS,
        *_changes("set", step.fields),
        *_changes("gone", dict.fromkeys(step.gone, "")),
        *_changes("watch", step.watch),
        *_changes("unwatch", dict.fromkeys(step.unwatch, "")),
        *_changes("by", step.by),
    ]


def step_refused(step: RunStep, reply: Any) -> OutOfOrder | RunClosed:
    """Why a step was not taken."""
    if reply[0] == b"out_of_order":
        return out_of_order(step, int(reply[1]))
    return run_completed(step) if reply[1] == b"completed" else run_taken(step)


def request_run(keys: Keys, settings: StoreSettings, request: RunRequest) -> Command[bool]:
    """Write down a run that is asked for."""
    changes = [*_changes("set", request.fields), *_changes("watch", request.watch)]
    words = (request.user, request.run, settings.retention_ms, *changes)
    due_key = keys.user(request.user).partition.due
    return Command(
        _evalsha("request_run", keys.run(request.user, request.run), due_key, *words),
        lambda reply, _primary: reply == 1,
        scripted=True,
    )


def renew_lease(keys: Keys, settings: StoreSettings, lease: Lease) -> Command[bool]:
    """Renew one lease."""
    words = (lease.user, lease.run, lease.owner, lease.lease_ms, settings.retention_ms)
    due_key = keys.user(lease.user).partition.due
    return Command(
        _evalsha("renew_lease", keys.run(lease.user, lease.run), due_key, *words),
        lambda reply, _primary: reply == 1,
        scripted=True,
    )


def claim_run(keys: Keys, settings: StoreSettings, lease: Lease, held_by: str) -> Command[RunRecord | None]:
    """Take a run over."""
    words = (lease.user, lease.run, held_by, lease.owner, lease.lease_ms, settings.retention_ms)
    due_key = keys.user(lease.user).partition.due
    return Command(
        _evalsha("claim_run", keys.run(lease.user, lease.run), due_key, *words),
        lambda reply, _primary: record_of(lease.user, lease.run, reply),
        scripted=True,
    )


def record_of(user: UserId, run: RunId, reply: Any) -> RunRecord | None:
    """A run of the answer of HGETALL, None for no such hash."""
    if not reply:
        return None
    words = [word.decode() for word in reply]
    return RunRecord(user=user, run=run, fields=dict(zip(words[::2], words[1::2], strict=True)))


def due(keys: Keys, partition: int, count: int) -> Command[list[DueRecord]]:
    """What is due in a partition."""

    def parse(reply: Any, _primary: str) -> list[DueRecord]:
        now_ms, flat = reply
        return [
            DueRecord(partition=partition, member=member.decode(), due_ms=int(at), now_ms=now_ms)
            for member, at in zip(flat[::2], flat[1::2], strict=True)
        ]

    return Command(_evalsha("due", keys.partition(partition).due, count), parse, scripted=True)


def settle(keys: Keys, settlement: Settlement) -> Command[int]:
    """Carry a settlement out."""
    partition = keys.partition(settlement.due.partition)
    run = settlement.run
    changes = [
        *_changes("watch", settlement.watch),
        *_changes("set", settlement.fields),
        *_changes("count", settlement.counts),
        *_changes("announce", settlement.announce or {}),
    ]
    return Command(
        _evalsha(
            "settle",
            partition.due,
            partition.operators,
            partition.due if run is None else keys.run(*run),
            settlement.due.member,
            settlement.due.due_ms,
            "" if run is None else run[1],
            OPERATOR_EVENTS_LIFE_MS,
            "webhook" if settlement.webhook else "",
            *changes,
        ),
        whole,
        scripted=True,
    )


def operator_event(partition: int, raw: Any) -> OperatorEvent:
    """An event for the operators, as XRANGE answers it."""
    entry = EntryId(raw[0].decode())
    words = [word.decode() for word in raw[1]]
    fields = dict(zip(words[::2], words[1::2], strict=True))
    return OperatorEvent(id=entry, partition=partition, time_ms=entry_order(entry)[0], fields=fields)
