"""The half of the blocking bus that asks: as `eventbus.bus_answers`, with calls that wait."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Coroutine, Generator, Iterable
from typing import Any, TypeVar

from eventbus.blocking.runs import Run, each
from eventbus.bus import Bus as AsyncBus
from eventbus.confirmation import Confirmation, Sessions
from eventbus.event import Event, Level
from eventbus.history import EventPage, ThreadList
from eventbus.ids import ENTRY_ZERO
from eventbus.presence import Presence
from eventbus.publishing.receipt import Receipt
from eventbus.rates import Rates
from eventbus.runs import Run as AsyncRun
from eventbus.runs.confirmations import RunConfirmation
from eventbus.store.figures import OnlineRecord

__all__ = ["BlockingAnswers"]

T = TypeVar("T")


class BlockingAnswers(ABC):
    """What a blocking bus answers about events, runs, sessions and threads of its users."""

    @abstractmethod
    def _opened(self) -> AsyncBus:
        """The bus itself. Raises: EventBusError: it is not open."""

    @abstractmethod
    def _wait_for(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the bus's event loop and wait for it."""

    def wait(
        self, receipt: Receipt, level: Level | str, *, sessions: Sessions = "any", timeout_ms: int | None = None
    ) -> list[Confirmation]:
        """Wait until the user's sessions have confirmed an event: `Receipt.wait`, for a receipt from anywhere, with its
        arguments and errors.
        """
        return self._wait_for(self._opened().wait(receipt, level, sessions=sessions, timeout_ms=timeout_ms))

    def confirmations(self, event: Receipt | Event | str, *, user: str | None = None) -> list[Confirmation]:
        """Which sessions confirmed an event, how far and when: as `eventbus.Bus.confirmations`, with its errors."""
        return self._wait_for(self._opened().confirmations(event, user=user))

    def run_confirmations(
        self,
        run: Run[Any] | AsyncRun | Receipt | Iterable[Receipt] | str,
        *,
        user: str | None = None,
        level: Level | str = Level.RECEIVED,
        sessions: Sessions = "any",
        timeout_ms: int = 60_000,
    ) -> Generator[RunConfirmation, None, None]:
        """The confirmations of a run's events as they come: `for one in bus.run_confirmations(run): ...`, else as
        `eventbus.Bus.run_confirmations`, with its arguments and errors.
        """
        bus, subject = self._opened(), run.inner if isinstance(run, Run) else run

        async def made() -> AsyncIterator[RunConfirmation]:
            return bus.run_confirmations(subject, user=user, level=level, sessions=sessions, timeout_ms=timeout_ms)

        return each(self._wait_for, self._wait_for(made()))

    def online(self, user: str) -> list[OnlineRecord]:
        """The sessions of a user that are live now: as `eventbus.Bus.online`, with its errors."""
        return self._wait_for(self._opened().online(user))

    def presence(self, user: str) -> Generator[Presence, None, None]:
        """The sessions of a user as they come and go: `for change in bus.presence("ada"): ...`, else as
        `eventbus.Bus.presence`. Who leaves the loop early closes what was returned, or drops it.
        """
        bus = self._opened()

        async def made() -> AsyncIterator[Presence]:
            return bus.presence(user)

        return each(self._wait_for, self._wait_for(made()))

    def threads(self, user: str, *, before: str | None = None, limit: int = 100) -> ThreadList:
        """The threads of which events are retained: as `eventbus.Bus.threads`, with its errors."""
        return self._wait_for(self._opened().threads(user, before=before, limit=limit))

    def history(
        self,
        user: str,
        *,
        thread: str | None = None,
        run: str | None = None,
        type: str | None = None,
        after: str = ENTRY_ZERO,
        limit: int = 100,
    ) -> EventPage:
        """The retained events of a user, a page at a time: as `eventbus.Bus.history`, with its errors."""
        work = self._opened().history(user, thread=thread, run=run, type=type, after=after, limit=limit)
        return self._wait_for(work)

    def rates(
        self, *, user: str | None = None, event: str | None = None, run: str | None = None, type: str | None = None
    ) -> Rates:
        """How many deliveries succeeded: as `eventbus.Bus.rates`, with its errors."""
        return self._wait_for(self._opened().rates(user=user, event=event, run=run, type=type))
