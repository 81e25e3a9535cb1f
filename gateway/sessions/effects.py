"""What the delivery machine of a session says, carried out: towards its client, and towards the store.

Functions, and no object for each session: a node holds tens of thousands of those.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, assert_never

from eventbus import moves, wire
from eventbus.ids import EntryId
from eventbus.tracing import Outcome
from gateway.sessions.host import Host

if TYPE_CHECKING:
    from gateway.sessions.session import Session

__all__ = ["carry_out", "confirm", "ended", "send_again"]


def carry_out(session: Session, host: Host, effects: Iterable[moves.Effect]) -> None:
    """Does what the machine says, in its order."""
    counters = host.counters
    for effect in effects:
        match effect:
            case moves.Send():
                again = sum([event.delivery > 1 for event in effect.events])
                counters.events_delivered += len(effect.events) - again
                counters.events_redelivered += again
                for data in session.framing.events(effect.events):
                    session.connection.send(data)
                if host.spans is not None:
                    host.spans.sent(session.connection_id, session.user, session.session_id, effect.events)
            case moves.Acknowledge():
                host.acknowledge(session, effect, None)
            case moves.Release() | moves.Redeliver() | moves.GiveUp():
                _step(session, host, effect)
            case moves.AnnounceGap():
                gap = effect.gap
                counters.gaps[gap.reason] += 1
                session.send(wire.Gap(reason=gap.reason, after=gap.after, before=gap.before, count=gap.count))
            case moves.Dropped():
                ended(session, host, effect.ids, Outcome(effect.reason.value))
                session.send(wire.Dropped(ids=effect.ids, reason=effect.reason))
            case moves.Withdrawn():
                ended(session, host, effect.ids, Outcome.RELEASED)
                session.send(wire.Released(ids=effect.ids))
            case moves.CaughtUp():
                session.send(wire.CaughtUp(cursor=effect.cursor))
                host.caught_up(session)
            case _:
                assert_never(effect)


def _step(session: Session, host: Host, effect: moves.Release | moves.Redeliver | moves.GiveUp) -> None:
    connection, most_bytes = session.connection, host.settings.liveness.backlog_bytes
    unread = not connection.writable or connection.buffered_bytes > most_bytes
    if unread and isinstance(effect, moves.Redeliver):
        # The client has not even read the copies before: another one would only pile up, and count against it.
        session.apply(moves.StepFailed([entry.id for entry in effect.entries]))
    else:
        host.step(session, effect)


def confirm(session: Session, host: Host, ack: wire.Ack, effects: Iterable[moves.Effect]) -> bool:
    """Has the level of an ack recorded, also of what was acked before.

    Args:
        session: whose client acks.
        host: its node.
        ack: of a level above `received`.
        effects: what the machine said to it.

    Returns:
        False when it is only to be released: too many wait, and the client is told.
    """
    known: dict[EntryId, object] = dict.fromkeys(ack.ids or ())
    for effect in effects:
        if isinstance(effect, moves.Acknowledge):
            known.update(zip(effect.ids, effect.payloads, strict=True))
    if host.confirm(session, moves.Acknowledge(tuple(known), tuple(known.values())), ack):
        return True
    message = "too many confirmations wait for the store; these are taken as received"
    session.send(wire.ErrorFrame(code="overloaded", message=message, ref=ack.ref))
    return False


def send_again(session: Session, host: Host, again: Sequence[moves.Sending]) -> None:
    """Sends events beside the machine: their time goes on, and no attempt is counted."""
    if again:
        host.counters.events_redelivered += len(again)
        for data in session.framing.events(again):
            session.connection.send(data)


def ended(session: Session, host: Host, ids: Iterable[EntryId], outcome: Outcome) -> None:
    """The traces of these entries end."""
    if host.spans is not None:
        host.spans.ended(session.connection_id, ids, outcome)
