"""The half of a bus that asks: what became of what was published."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable
from zlib import crc32

from eventbus.awaiting import Awaiting
from eventbus.bus_base import NOT_OPEN, BusBase
from eventbus.config import ConfirmationRecords
from eventbus.confirmation import Confirmation, Sessions, parse_goal, parse_timeout
from eventbus.counting import overall_rates, user_rates
from eventbus.errors import EventBusError, InvalidField
from eventbus.event import Event, Level, parse_event_type
from eventbus.history import EventPage, ThreadList, Wanted, event_page, parse_limit, read_history, read_threads
from eventbus.ids import ENTRY_ZERO, parse_entry_id, parse_event_id, parse_run_id, parse_thread_id, parse_user_id
from eventbus.inspection.lookup import confirmations_of, confirmations_of_entry
from eventbus.presence import Presence, follow_presence
from eventbus.publishing.receipt import Receipt
from eventbus.rates import Rates
from eventbus.runs import Run
from eventbus.runs.confirmations import RunConfirmations, subject_of
from eventbus.store.figures import OnlineRecord

__all__ = ["BusAnswers"]


class BusAnswers(BusBase):
    """What a bus answers about events, runs, sessions and threads of its users."""

    async def wait(
        self, receipt: Receipt, level: Level | str, *, sessions: Sessions = "any", timeout_ms: int | None = None
    ) -> list[Confirmation]:
        """Wait until the user's sessions have confirmed an event: `Receipt.wait`, for a receipt from anywhere.

        Args:
            receipt: of the event; also one that was pickled, or another bus's.
            level: how far they have to come, as for `Receipt.wait`.
            sessions: how many of them.
            timeout_ms: the longest wait; the confirmation time-out of the default tier when absent.

        Returns, Raises: as `Receipt.wait`. A cancelled call leaves nothing behind.
        Source: docs/publishing.md.
        """
        awaiting = self._awaits()
        goal = parse_goal(level, sessions)
        if timeout_ms is None:
            tiers = self.settings.tiers
            timeout_ms = tiers[tiers.default_tier].confirmation_timeout_ms
        parse_timeout(timeout_ms)
        self._check_records()
        return await awaiting.wait(receipt.user, receipt.entry, goal, timeout_ms)

    async def confirmations(self, event: Receipt | Event | str, *, user: str | None = None) -> list[Confirmation]:
        """Which sessions confirmed an event, how far and when, as it stands now.

        Args:
            event: a receipt, an event, or an event id with its user.
            user: the user id, for an event id alone.

        Returns:
            One for each session and level that it reached, oldest first; none as well when nothing is known of the
            event (any more).

        Raises:
            InvalidField: the user is missing, or not of the right form.
            StoreError: the store does not answer.
        Safe to cancel.
        Source: docs/publishing.md.
        """
        store = self._opened_store()
        if isinstance(event, Receipt):
            return await confirmations_of_entry(store, event.user, event.entry)
        if isinstance(event, Event):
            return await confirmations_of(store, event.user, event.id) or []
        if user is None:
            raise InvalidField("user", "is missing: an event id is looked for among the events of its user")
        return await confirmations_of(store, parse_user_id(user), event) or []

    def run_confirmations(
        self,
        run: Run | Receipt | Iterable[Receipt] | str,
        *,
        user: str | None = None,
        level: Level | str = Level.RECEIVED,
        sessions: Sessions = "any",
        timeout_ms: int = 60_000,
    ) -> RunConfirmations:
        """The confirmations of a run's events as they come: `async for one in bus.run_confirmations(run): ...`.

        Each session and level of each event comes once, those before the call too. It ends when the run has completed
        and each of its events has what was asked for.

        Args:
            run: the run, a run id with its `user`, or receipts of one user: then it ends when those events have it.
            user: the user id, for a run id.
            level: what each event has to reach before it ends; all levels are told.
            sessions: `any` one session has to reach it, or so many.
            timeout_ms: the longest wait, from the first one that is asked for on.

        Returns:
            An asynchronous iterator of `RunConfirmation`; asking it for the next one is safe to cancel.

        Raises:
            InvalidField: an argument is wrong.
            EventBusError: the installation records no confirmations.
            ConfirmationTimeout: while iterating, when the time is over; `confirmations` has all that came.
        Source: docs/publishing.md.
        """
        store, looks = self._opened_store(), self._opened_looks()
        goal = parse_goal(level, sessions)
        if goal.all_live:
            raise InvalidField("sessions", "must be `any` or a whole number: who is live changes while a run lasts")
        parse_timeout(timeout_ms)
        self._check_records()
        subject = subject_of(run, user)
        return RunConfirmations(store, self._clock, looks, subject, goal=goal, timeout_ms=timeout_ms)

    def _run_confirmations(self) -> Callable[..., RunConfirmations]:
        return self.run_confirmations

    # --- who is there -------------------------------------------------------------------------------------------------

    async def online(self, user: str) -> list[OnlineRecord]:
        """The sessions of a user that are live now, each with its node; none: the user is offline.

        A session counts until it is left, ended, or its node has been silent for `EVENTBUS_LIVE_TTL_MS`.

        Args:
            user: whose.

        Raises:
            InvalidField: the user id has not its form.
            StoreError: the store does not answer.
        Safe to cancel.
        Source: docs/publishing.md.
        """
        return list((await self._opened_store().online(parse_user_id(user))).sessions)

    def presence(self, user: str) -> AsyncGenerator[Presence, None]:
        """The sessions of a user as they come and go: `async for change in bus.presence("ada"): ...`, without end.

        First come those that are live now. That another node or connection takes a session over is no change. A store
        that is away is waited for. Who leaves the loop early closes the iterator (`contextlib.aclosing`); asking it for
        the next change is safe to cancel, and ends it.

        Raises:
            InvalidField: the user id has not its form.
            EventBusError: while iterating: the bus was closed.
        Source: docs/publishing.md.
        """
        store, looks = self._opened_store(), self._opened_looks()
        poll_ms = max(1, self.settings.store.live_ttl_ms // 4)
        return follow_presence(store, looks, parse_user_id(user), poll_ms=poll_ms)

    # --- what there is ------------------------------------------------------------------------------------------------

    async def threads(self, user: str, *, before: str | None = None, limit: int = 100) -> ThreadList:
        """The threads of which events are retained, the one with the newest event first.

        Args:
            user: whose.
            before: `next` of the page before; the first page when absent.
            limit: how many at most, 1 to 500.

        Returns:
            A page: `threads`, each with the time of its last event, and `next`, None at the end.

        Raises:
            InvalidField: an argument is wrong.
            StoreError: the store does not answer.
        Safe to cancel.
        Source: docs/publishing.md.
        """
        store = self._opened_store()
        return await read_threads(store, parse_user_id(user), before=before, limit=parse_limit(limit))

    async def history(
        self,
        user: str,
        *,
        thread: str | None = None,
        run: str | None = None,
        type: str | None = None,
        after: str = ENTRY_ZERO,
        limit: int = 100,
    ) -> EventPage:
        """The retained events of a user, oldest first, a page at a time.

        Args:
            user: whose.
            thread: only events of this thread.
            run: only events of this run.
            type: only events of this type.
            after: only what is stored after this entry id; `cursor` of the page before.
            limit: how many at most, 1 to 500. A page may hold fewer, and none, while `more` says that others follow:
                so much of the stream is looked at for one call and no more.

        Returns:
            A page: `events`, each with its entry id, the `cursor` behind them, and `more`.

        Raises:
            InvalidField: an argument is wrong.
            StoreError: the store does not answer.
        Safe to cancel.
        Source: docs/publishing.md.
        """
        store = self._opened_store()
        wanted = Wanted(
            user=parse_user_id(user),
            type=None if type is None else parse_event_type(type),
            thread=None if thread is None else parse_thread_id(thread),
            run=None if run is None else parse_run_id(run),
        )
        after = parse_entry_id(after, "after")
        return event_page(await read_history(store, wanted, after=after, limit=parse_limit(limit)))

    async def rates(
        self, *, user: str | None = None, event: str | None = None, run: str | None = None, type: str | None = None
    ) -> Rates:
        """How many events were stored, received, given up ..., and the rate of deliveries that succeeded.

        With a `user` it is counted from the retained events and what the user's sessions did with them, exactly.
        Without one it is what was counted over all users when it happened, in the last 30 days and more.

        Args:
            user: only this user's events.
            event: with `user`: only the event with this id.
            run: with `user`: only events of this run.
            type: only events of this type.

        Raises:
            InvalidField: an argument is wrong, or `event` or `run` without their user.
            EventBusError: for a user, in an installation that records no confirmations.
            StoreError: the store does not answer.
        Safe to cancel.
        Source: docs/publishing.md.
        """
        store, partitions = self._opened_store(), self.settings.store.partitions
        wanted = None if type is None else parse_event_type(type)
        if user is None:
            if event is not None or run is not None:
                raise InvalidField("user", "is missing: an event and a run are looked for among those of their user")
            return await overall_rates(store, partitions=partitions, type=wanted)
        self._check_records()
        owner = parse_user_id(user)
        return await user_rates(
            store,
            owner,
            partition=crc32(owner.encode()) % partitions,
            event=None if event is None else parse_event_id(event, "event"),
            run=None if run is None else parse_run_id(run),
            type=wanted,
        )

    def _check_records(self) -> None:
        if self.settings.store.confirmation_records is not ConfirmationRecords.ALL:
            raise EventBusError("no confirmations are recorded: set EVENTBUS_CONFIRMATION_RECORDS to `all`")

    def _awaits(self) -> Awaiting:
        self._opened()
        if self._awaiting is None:
            raise EventBusError(NOT_OPEN)
        return self._awaiting
