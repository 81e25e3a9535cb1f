"""Closing a run whose process is gone: what it owes its user comes all the same, as failed.

A node does this when a run's lease is over (`gateway.deadlines.watching`). It claims the run first: its old process
stores nothing any more, should it come back. The ids of the events follow from the run and their numbers: two nodes
that close one run store each event once, and whichever claimed it last goes on.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from hashlib import blake2b
from typing import Final

from eventbus.clock import Clock
from eventbus.errors import OutOfOrder, RunClosed, StoreError
from eventbus.event import Event, make_event
from eventbus.events import Outcome
from eventbus.ids import EventId, RunId, ThreadId, UserId
from eventbus.publishing.making import append_of
from eventbus.run import Complete, Owed, Phase, RunState, step
from eventbus.store import Append, Appended, Store
from eventbus.store.running import Lease, RunRecord
from eventbus.streaming import texts_left
from eventbus.text import TEXT_EVENT, text_data
from eventbus.watch import RunAbout, RunLimits, RunPhase, open_calls, seq_of, step_of, watch_of

__all__ = ["AGENT_LOST", "close_run", "closing_event_id", "owed_by_record"]

AGENT_LOST: Final = "the agent stopped before it was done"
"""What the user is told of a run whose process is gone."""
LEASE_MS: Final = 10_000
"""So long whoever closes a run has it; then another node tries."""
_TEXT_BYTES: Final = 1 << 25
"""More than any installation allows: the process that wrote the text had to keep to its own limit."""


def owed_by_record(record: RunRecord, error: str = AGENT_LOST) -> tuple[Owed, ...]:
    """What a run owes that nobody works on any more: the ends of its open calls, then its own. Pure.

    Args:
        record: the run as it stands; what has not begun, or is completed, owes nothing.
        error: words for the user.
    """
    if record.fields.get("state") != RunPhase.RUNNING:
        return ()
    state = RunState(phase=Phase.STARTED, seq=seq_of(record), open=open_calls(record))
    return step(state, Complete(outcome=Outcome.FAILED, error=error))[1]


def closing_event_id(user: UserId, run: RunId, place: int | str) -> EventId:
    """The id of an event that closes a run, by its number or by the stream whose text it has: the same whoever makes
    it.
    """
    return EventId("closing-" + blake2b(f"{user}\0{run}\0{place}".encode(), digest_size=16).hexdigest())


async def close_run(store: Store, clock: Clock, record: RunRecord, error: str = AGENT_LOST) -> bool:
    """Store what a run owes and nobody will send. Safe to repeat, and to do twice at once.

    Args:
        store: where it stands.
        clock: for the times of the events.
        record: the run as it was read when its lease was over.
        error: words for the user.

    Returns:
        Whether the run is completed now; False when another has claimed it meanwhile, or it has not begun.

    Raises:
        StoreError: the store did not take all of it; the lease runs out again, and the run is closed then.
    A cancelled call leaves open what is stored; the next one goes on.
    """
    if record.fields.get("state") != RunPhase.RUNNING:
        return record.fields.get("state") == RunPhase.COMPLETED
    lease = Lease(user=record.user, run=record.run, owner=secrets.token_hex(8), lease_ms=LEASE_MS)
    claimed = await store.claim_run(lease, record.fields.get("owner", ""))
    if claimed is None:
        return await _is_completed(store, record)
    left = await texts_left(store, record.user, record.run)
    now_ms = clock.now_ms()
    results = await store.append([*_texts(record, left, now_ms), *_appends(claimed, now_ms, error)])
    for result in results:
        if isinstance(result, Appended):
            continue
        if isinstance(result, RunClosed | OutOfOrder):
            # Another goes on with it, or the store has lost events meanwhile: the lease tells when it is time again.
            return await _is_completed(store, record)
        raise result
    with suppress(StoreError):  # they stay on the index then, and whoever comes late is sent them beside their events
        await store.close_texts(record.user, record.run)
    with suppress(StoreError):  # they count as the user's then until the retention is over, and nobody is asked again
        await store.close_inbound(record.user, record.run)
    return True


async def _is_completed(store: Store, record: RunRecord) -> bool:
    found = await store.run(record.user, record.run)
    return found is not None and found.fields.get("state") == RunPhase.COMPLETED


def _appends(record: RunRecord, now_ms: int, error: str) -> Sequence[Append]:
    fields = record.fields
    about = RunAbout(
        user=record.user,
        run=record.run,
        agent=fields.get("agent", ""),
        owner=fields["owner"],
        lease_ms=int(fields["lease_ms"]),
        limits=RunLimits(),  # nothing that closes a run has a deadline of its own
    )
    watch, appends = watch_of(record), []
    for owed in owed_by_record(record, error):
        event = _event(record, owed, now_ms)
        watch, made = step_of(watch, about, owed.seq, owed.type, owed.data, now_ms)
        appends.append(append_of(event, made))
    return appends


def _texts(record: RunRecord, left: Mapping[str, str], now_ms: int) -> Sequence[Append]:
    """What the process wrote and could not send whole. Without numbers: whoever closes the run next does not count
    them.
    """
    return [
        append_of(
            make_event(
                id=closing_event_id(record.user, record.run, stream),
                type=TEXT_EVENT,
                user=record.user,
                time_ms=now_ms,
                data=text_data(stream, text, partial=True),
                thread=_thread(record),
                run=record.run,
                max_event_bytes=_TEXT_BYTES,
            )
        )
        for stream, text in left.items()
    ]


def _thread(record: RunRecord) -> ThreadId | None:
    thread = record.fields.get("thread")
    return None if thread is None else ThreadId(thread)


def _event(record: RunRecord, owed: Owed, now_ms: int) -> Event:
    return make_event(
        id=closing_event_id(record.user, record.run, owed.seq),
        type=owed.type,
        user=record.user,
        time_ms=now_ms,
        data=owed.data,
        thread=_thread(record),
        run=record.run,
        seq=owed.seq,
    )
