"""The half of a bus that asks: what became of what was published."""

from __future__ import annotations

from eventbus.awaiting import Awaiting
from eventbus.bus_base import NOT_OPEN, BusBase
from eventbus.config import ConfirmationRecords
from eventbus.confirmation import Confirmation, Sessions, parse_goal
from eventbus.errors import EventBusError, InvalidField
from eventbus.event import Event, Level
from eventbus.ids import parse_user_id
from eventbus.lookup import confirmations_of, confirmations_of_entry
from eventbus.receipt import Receipt

__all__ = ["BusAnswers"]


class BusAnswers(BusBase):
    """What a bus answers about events, runs, sessions and threads of its users."""

    async def wait(
        self, receipt: Receipt, level: Level | str, *, sessions: Sessions = "any", timeout_ms: int = 30_000
    ) -> list[Confirmation]:
        """Wait until the user's sessions have confirmed an event: `Receipt.wait`, for a receipt from anywhere."""
        awaiting = self._awaits()
        goal = parse_goal(level, sessions)
        if type(timeout_ms) is not int or timeout_ms < 1:
            raise InvalidField("timeout_ms", f"must be a whole number of milliseconds above 0, not {timeout_ms!r}")
        if self.settings.store.confirmation_records is not ConfirmationRecords.ALL:
            raise EventBusError("no confirmations are recorded: set EVENTBUS_CONFIRMATION_RECORDS to `all`")
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

    def _awaits(self) -> Awaiting:
        self._opened()
        if self._awaiting is None:
            raise EventBusError(NOT_OPEN)
        return self._awaiting
