"""The steps of delivery that only the store can take: releases, redeliveries that are counted, dead letters."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from eventbus import moves
from eventbus.errors import StoreError
from eventbus.ids import EventId
from eventbus.store import LOST, DeadLetter, DeadOutcome, Store
from gateway.counters import Counters
from gateway.delivery.refused import put_off
from gateway.sessions.session import Session
from gateway.transport.payload import Payload, facts_of

__all__ = ["Step", "Steps"]

logger = logging.getLogger(__name__)

STEPS_MAX: Final = 128
"""Most steps under way in one cycle."""

Step = moves.Release | moves.Redeliver | moves.GiveUp


class Steps:
    """The steps of many sessions.

    Args:
        store: takes them.
        counters: what the node counts.
        failed: told of each error of the store.
        wanted: called when there is a step to take again.
    """

    def __init__(
        self,
        store: Store,
        counters: Counters,
        *,
        failed: Callable[[StoreError], None],
        wanted: Callable[[], None],
    ) -> None:
        self._store = store
        self._counters = counters
        self._failed = failed
        self._wanted = wanted
        self._waiting: list[tuple[Session, Step]] = []

    def __len__(self) -> int:
        """How many wait."""
        return len(self._waiting)

    def add(self, session: Session, step: Step) -> None:
        """Puts a step on its way."""
        self._waiting.append((session, step))

    def take(self) -> list[tuple[Session, Step]]:
        """The steps of one cycle, to be carried out."""
        taken, self._waiting = self._waiting[:STEPS_MAX], self._waiting[STEPS_MAX:]
        return taken

    async def carry_out(self, session: Session, step: Step) -> bool:
        """Takes one step and tells its session. Returns whether the store answered; what it missed comes again."""
        try:
            match step:
                case moves.Release():
                    await self._release(session, step)
                case moves.Redeliver():
                    await self._redeliver(session, step)
                case moves.GiveUp():
                    await self._give_up(session, step)
        except StoreError as error:
            self._failed(error)
            answered = not error.retryable
            if session.is_closed:
                return answered  # nobody waits for it any more: the next connection of the session takes it up
            if isinstance(step, moves.Release):
                self._release_again(session, step, error)
            elif isinstance(step, moves.Redeliver):
                session.apply(moves.StepFailed([entry.id for entry in step.entries]))
            else:
                session.apply(moves.StepFailed([step.id]))
            return answered
        return True

    def _release_again(self, session: Session, step: moves.Release, error: StoreError) -> None:
        def again() -> None:
            self.add(session, step)
            self._wanted()

        if error.retryable:
            self.add(session, step)
        else:
            put_off(again)

    async def _release(self, session: Session, step: moves.Release) -> None:
        released = await self._store.release(session.fence, step.ids, step.reason, facts_of(step.payloads))
        if released is LOST:
            # What is still pending comes with the pages of the next attach, and is released then.
            session.apply(moves.Stored(step.ids))
            session.disowned()
        else:
            self._counters.events_released[step.reason] += released
            session.apply(moves.Stored(step.ids))

    async def _redeliver(self, session: Session, step: moves.Redeliver) -> None:
        outcomes = await self._store.redeliver(session.fence, step.entries)
        if outcomes is LOST:
            session.apply(moves.StepFailed([entry.id for entry in step.entries]))
            session.disowned()
            return
        pairs = [(entry.id, outcome) for entry, outcome in zip(step.entries, outcomes, strict=True)]
        session.apply(moves.Redelivered(pairs))

    async def _give_up(self, session: Session, step: moves.GiveUp) -> None:
        payload = step.payload
        known = isinstance(payload, Payload)
        letter = DeadLetter(
            id=step.id,
            event=payload.head.id if known else EventId(""),
            type=payload.head.type if known else "",
            reason=step.reason,
            attempts=step.attempts,
            body=payload.body if known else b"",
        )
        outcome = await self._store.dead_letter(session.fence, letter)
        if outcome is LOST:
            session.apply(moves.StepFailed([step.id]))
            session.disowned()
            return
        if outcome is DeadOutcome.DEAD:
            # What makes an entry unreadable stands behind the colon: a label must not hold it.
            self._counters.events_dead_lettered[step.reason.partition(":")[0]] += 1
            logger.warning(
                "an event is given up and becomes a dead letter",
                extra={
                    "user": session.user,
                    "session": session.session_id,
                    "entry": step.id,
                    "event": letter.event,
                    "reason": step.reason,
                    "deliveries": step.attempts,
                },
            )
        session.apply(moves.GivenUp(step.id, dead=outcome is DeadOutcome.DEAD))
