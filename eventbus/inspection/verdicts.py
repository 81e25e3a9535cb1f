"""Why entries wait, and what became of one: the decisions of `eventbus.inspection`. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from eventbus.ids import EntryId, NodeName, SessionId, entry_order
from eventbus.store import (
    ConfirmationRecord,
    DeadLetterRecord,
    PendingRecord,
    ReleaseReason,
    SessionRecord,
)

__all__ = [
    "EXPLANATIONS",
    "FATE_EXPLANATIONS",
    "Fate",
    "SessionFate",
    "SessionState",
    "Timing",
    "Verdict",
    "Waiting",
    "WaitingState",
    "fate_of",
    "level_rank",
    "release_unread",
    "why_of",
    "state_of",
    "verdict_of",
]


class SessionState(StrEnum):
    """Where a session is."""

    LIVE = "live"
    AWAY = "away"
    NODE_GONE = "node_gone"
    """Its hold is still written down, and the node that wrote it has not told of itself for 15 s."""


class Verdict(StrEnum):
    """Why something waits for a session, in one word."""

    OFFLINE = "offline"
    NODE_GONE = "node_gone"
    NODE_NOT_READY = "node_not_ready"
    NACKING = "nacking"
    NOT_ACKING = "not_acking"
    SLOW = "slow"
    IN_FLIGHT = "in_flight"
    ARRIVING = "arriving"
    NOT_READ = "not_read"
    EXPIRED = "expired"
    TRIMMED = "trimmed"


EXPLANATIONS: Final[Mapping[Verdict, str]] = {
    Verdict.OFFLINE: "nobody is connected; nothing to do, it all comes when the client does, within the retention",
    Verdict.NODE_GONE: "the node that holds the session is silent; the client connects to another by itself: see that"
    " one is `ready` in `eventbus nodes`",
    Verdict.NODE_NOT_READY: "the node that holds the session waits for Redis, or is deaf; `eventbus doctor`, then its"
    " /readyz and its log",
    Verdict.NACKING: "the client refuses events; look into its log, or for the event in `eventbus dead`",
    Verdict.NOT_ACKING: "the client is connected and does not ack; its handler hangs or fails without a word: look into"
    " its log, `eventbus redeliver` sends it again now",
    Verdict.SLOW: "the client acks more slowly than events come; it catches up, or needs a faster handler",
    Verdict.IN_FLIGHT: "sent a moment ago, and the time for the ack is not over; look again in a minute",
    Verdict.ARRIVING: "stored a moment ago; look again in a minute",
    Verdict.NOT_READ: "the node does not read what is stored; look at its log and its /readyz, restart it",
    Verdict.EXPIRED: "all that waits is past its `expires_ms`; nothing to do, it is released when the session is back",
    Verdict.TRIMMED: "all that waits is no longer in the stream; the client is told of a gap when it is back: publish"
    " again what it must have, and see EVENTBUS_MAX_STREAM_ENTRIES",
}
"""What each verdict means; what to do."""


class WaitingState(StrEnum):
    """Whether what waits can still be delivered."""

    DELIVERABLE = "deliverable"
    EXPIRED = "expired"
    TRIMMED = "trimmed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """The times by which a verdict tells the late from the young.

    Attributes:
        ack_timeout_ms: wait for the first ack; doubles with each delivery.
        max_wait_ms: no wait is longer, but for jitter and the first.
        jitter: the largest part of a wait that is added to it.
        sweep_ms: a node reads each live session at least this often.
        grace_ms: what a busy machine is granted on top of each.
    """

    ack_timeout_ms: int = 30_000
    max_wait_ms: int = 300_000
    jitter: float = 0.2
    sweep_ms: int = 30_000
    grace_ms: int = 2_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """What waits for one session.

    Attributes:
        state: where the session is.
        sent: its pending entries (the oldest of them when there are many).
        unread: how many entries it has not read.
        oldest_unread_ms: the age of the oldest of those; 0 when there is none.
        deliverable: whether any of it can still be delivered.
        node_ready: whether the node that holds the session says that it is ready, or ends in good order.
    """

    state: SessionState
    sent: Sequence[PendingRecord]
    unread: int
    oldest_unread_ms: int
    deliverable: WaitingState
    node_ready: bool = True


def state_of(session: SessionRecord, nodes: Iterable[NodeName]) -> SessionState:
    """Where a session is, given the nodes that tell of themselves."""
    if session.live is None:
        return SessionState.AWAY
    return SessionState.LIVE if session.live.node in nodes else SessionState.NODE_GONE


def verdict_of(waiting: Waiting, now_ms: int, timing: Timing) -> Verdict:
    """Why that waits: the first answer that holds, from what no client can change to what will pass by itself.

    Args:
        waiting: what waits, at least one entry.
        now_ms: Redis's clock, Unix milliseconds.
        timing: of the installation.
    """
    if waiting.deliverable is WaitingState.EXPIRED:
        return Verdict.EXPIRED
    if waiting.deliverable is WaitingState.TRIMMED:
        return Verdict.TRIMMED
    if waiting.state is SessionState.AWAY:
        return Verdict.OFFLINE
    if waiting.state is SessionState.NODE_GONE:
        return Verdict.NODE_GONE
    if not waiting.node_ready:
        return Verdict.NODE_NOT_READY
    if any(_was_nacked(record, now_ms, timing) for record in waiting.sent):
        return Verdict.NACKING
    late_ms = int(timing.ack_timeout_ms * (1 + timing.jitter)) + timing.grace_ms
    if any(record.attempts > 1 or record.idle_ms > late_ms for record in waiting.sent):
        return Verdict.NOT_ACKING
    if waiting.sent:
        return Verdict.SLOW if waiting.unread and waiting.oldest_unread_ms > timing.grace_ms else Verdict.IN_FLIGHT
    late = waiting.oldest_unread_ms > timing.sweep_ms + timing.grace_ms
    return Verdict.NOT_READ if late else Verdict.ARRIVING


def _was_nacked(record: PendingRecord, now_ms: int, timing: Timing) -> bool:
    """Whether a nack must have been among its deliveries: they came faster than ack time-outs allow.

    Only a time-out and a nack on a live connection count a delivery (D8), and time-outs take their time. An entry that
    lay around before its first delivery hides a nack; then the verdict is the weaker `not_acking`.
    """
    if record.attempts < 2:
        return False
    took_ms = now_ms - record.idle_ms - entry_order(record.id)[0]
    return took_ms < _least_ms(record.attempts - 1, timing)


def _least_ms(timeouts: int, timing: Timing) -> int:
    """The least time in which so many ack time-outs of one entry can pass."""
    wait_ms, most_ms, sum_ms = timing.ack_timeout_ms, max(timing.max_wait_ms, timing.ack_timeout_ms), 0
    while timeouts and wait_ms < most_ms:
        sum_ms, wait_ms, timeouts = sum_ms + wait_ms, 2 * wait_ms, timeouts - 1
    return sum_ms + timeouts * most_ms


# --- what became of one event -----------------------------------------------------------------------------------------


class Fate(StrEnum):
    """What became of an event for one session."""

    NOT_READ = "not_read"
    PENDING = "pending"
    ACKED = "acked"
    FILTERED = "filtered"
    EXPIRED = "expired"
    DEAD_LETTERED = "dead_lettered"
    SKIPPED = "skipped"
    """An operator took it off the session."""
    TRIMMED = "trimmed"
    RELEASED = "released"
    BEFORE_SESSION = "before_session"
    """It was stored before the session began, and the session began with what was new."""
    UNKNOWN = "unknown"
    """It is gone from the stream and from the session's pending list, and no record says why."""


FATE_EXPLANATIONS: Final[Mapping[Fate, str]] = {
    Fate.NOT_READ: "stored, and the session has not read it",
    Fate.PENDING: "sent, and not acked",
    Fate.ACKED: "the client acked it; if its user does not see it, look into the client",
    Fate.FILTERED: "the session's filter does not want it; the client asks for other types, threads or runs in its"
    " `hello`",
    Fate.EXPIRED: "it was past its `expires_ms` before it was delivered; publish it again if it still matters",
    Fate.DEAD_LETTERED: "given up; mend the client, then `eventbus replay` gives it to the session again",
    Fate.SKIPPED: "an operator took it off the session; `eventbus audit` says who and why",
    Fate.TRIMMED: "it left the stream undelivered; the client is told of a gap, see EVENTBUS_MAX_STREAM_ENTRIES",
    Fate.RELEASED: "another session of the user acked it (`deliver: any`); nothing to do, one was to have it",
    Fate.BEFORE_SESSION: "it was stored before the session began, and that began with what was new; a client that wants"
    " what is older says `start: earliest`, or reads the history",
    Fate.UNKNOWN: "it left the stream, and nothing recorded what this session did with it; records need"
    " EVENTBUS_CONFIRMATION_RECORDS=all, the newest 10,000 of a user are kept",
}
"""What each fate means; what to do, where no verdict says it."""


def why_of(fate: SessionFate, verdict: Verdict | None, *, is_known: bool) -> str:
    """Why a session has an event, or has not: one sentence for an operator, and what to do.

    Args:
        fate: what became of it.
        verdict: why something waits for the session; None when nothing does.
        is_known: whether the session is still there.
    """
    text = FATE_EXPLANATIONS[fate.state]
    match fate.state:
        case Fate.PENDING | Fate.NOT_READ if verdict is not None:
            return f"{text}: {EXPLANATIONS[verdict]}"
        case Fate.PENDING | Fate.NOT_READ if not is_known:
            return f"{text}, and is over; a session that begins anew with `earliest` gets it"
        case Fate.PENDING | Fate.NOT_READ:
            return f"{text}; look again in a moment, it changed while we looked"
        case Fate.EXPIRED if not is_known:
            return (
                "its session was over with it pending: ended, one too many, or away for longer than it is remembered"
                " (EVENTBUS_SESSION_TTL_MS); a new session that begins with `earliest` gets it"
            )
        case Fate.DEAD_LETTERED:
            times = "once" if fate.deliveries == 1 else f"{fate.deliveries} times"
            return (
                f"given up, delivered {times} ({fate.reason}); mend the client, then `eventbus replay` gives it again"
            )
        case Fate.ACKED if fate.level == "received":
            return (
                "delivered: its handler returned and acked it; the client never said that it was displayed: look into"
                " the page"
            )
        case Fate.ACKED if fate.level is not None:
            return f"delivered, and {fate.level}; its user had it"
    return text


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionFate:
    """What became of an event for one session, and how that is known.

    Attributes:
        deliveries: the delivery count while it is pending or dead-lettered, else None.
        node: where it is pending, or was given up.
        time_ms: when it was acked, released or given up, if that is recorded.
        level: the highest confirmation, of an acked one.
        reason: why it was given up.
        note: what the application wrote beside its confirmation.
    """

    session: SessionId
    state: Fate
    deliveries: int | None = None
    node: NodeName | None = None
    time_ms: int | None = None
    level: str | None = None
    reason: str | None = None
    note: str | None = None


_RELEASES: Final = {
    ReleaseReason.FILTERED: Fate.FILTERED,
    ReleaseReason.EXPIRED: Fate.EXPIRED,
    ReleaseReason.TRIMMED: Fate.TRIMMED,
    ReleaseReason.RELEASED: Fate.RELEASED,
}
_LEVELS: Final = ("received", "displayed", "confirmed")


def level_rank(level: str) -> int:
    """How much a confirmation says; -1 for what is none."""
    return _LEVELS.index(level) if level in _LEVELS else -1


def fate_of(
    entry: EntryId,
    *,
    session: SessionId,
    known: SessionRecord | None,
    pending: PendingRecord | None,
    records: Sequence[ConfirmationRecord],
    dead: DeadLetterRecord | None,
    waiting: WaitingState,
    records_kept: bool,
) -> SessionFate:
    """What became of an entry for one session.

    It takes as many arguments as there are places in which the answer can stand.

    Args:
        entry: the entry.
        session: the session.
        known: the session as it is stored; None when it is over.
        pending: the entry in its pending list; None when it is not there.
        records: what is recorded that this session did with the entry, oldest first.
        dead: the entry among the dead letters of this session.
        waiting: whether the entry is still stored and not past its time.
        records_kept: whether acks are recorded at all.
    """
    if pending is not None:
        gone = {WaitingState.TRIMMED: Fate.TRIMMED, WaitingState.EXPIRED: Fate.EXPIRED}
        node = known.live.node if known is not None and known.live is not None else None
        state = gone.get(waiting, Fate.PENDING)
        return SessionFate(session=session, state=state, deliveries=pending.attempts, node=node)
    if dead is not None:
        return SessionFate(
            session=session,
            state=Fate.DEAD_LETTERED,
            deliveries=dead.attempts,
            node=dead.node,
            time_ms=dead.time_ms,
            reason=dead.reason,
        )
    if records:
        return _recorded(session, records)
    if known is None or entry_order(known.position) < entry_order(entry):
        gone = {WaitingState.TRIMMED: Fate.TRIMMED, WaitingState.EXPIRED: Fate.EXPIRED}
        return SessionFate(session=session, state=gone.get(waiting, Fate.NOT_READ))
    if records_kept and known.created_ms > entry_order(entry)[0]:
        return SessionFate(session=session, state=Fate.BEFORE_SESSION)
    if waiting is WaitingState.TRIMMED:
        # Acked and its record trimmed too, or trimmed unread and announced as a gap.
        return SessionFate(session=session, state=Fate.UNKNOWN)
    return SessionFate(session=session, state=Fate.ACKED)


def release_unread(fates: Sequence[SessionFate]) -> list[SessionFate]:
    """The fates of a `deliver: any` event: once a session has acked it, those that have not read it will not get it."""
    acked = any(fate.state is Fate.ACKED for fate in fates)
    return [replace(fate, state=Fate.RELEASED) if acked and fate.state is Fate.NOT_READ else fate for fate in fates]


def _recorded(session: SessionId, records: Sequence[ConfirmationRecord]) -> SessionFate:
    best = max(records, key=lambda record: level_rank(record.level))
    if level_rank(best.level) >= 0:
        return SessionFate(session=session, state=Fate.ACKED, time_ms=best.time_ms, level=best.level, note=best.note)
    last = records[-1]
    if last.level == Fate.SKIPPED:
        return SessionFate(session=session, state=Fate.SKIPPED, time_ms=last.time_ms)
    return SessionFate(session=session, state=_RELEASES[ReleaseReason(last.level)], time_ms=last.time_ms)
