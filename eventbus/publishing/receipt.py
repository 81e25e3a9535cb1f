"""What a publish returns, and what a bus says of itself."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from eventbus.breaker import BreakerState
from eventbus.confirmation import Confirmation, Sessions
from eventbus.errors import EventBusError
from eventbus.fields import Level
from eventbus.ids import EntryId, EventId, UserId, entry_order

__all__ = ["PublishStatistics", "Receipt", "Receipts"]


class Waits(Protocol):
    """The bus that gave a receipt, or another that is open."""

    async def wait(
        self, receipt: Receipt, level: Level | str, *, sessions: Sessions, timeout_ms: int | None
    ) -> list[Confirmation]:
        """See `Receipt.wait`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """An event is stored.

    Attributes:
        event: its id, the given one or the one that was made.
        user: whose it is.
        entry: its entry id in the user's stream; of the first publish when `duplicate`.
        duplicate: the store had it already, from a repeated publish or from a try whose answer was lost.
        attempts: how often it was sent.
        bus: where it came from; a receipt that was pickled has none, and goes to `Bus.wait`.
    """

    event: EventId
    user: UserId
    entry: EntryId
    duplicate: bool
    attempts: int
    bus: Waits | None = field(default=None, repr=False, compare=False)

    def __reduce__(self) -> tuple[object, ...]:
        return _restored, (type(self), self.event, self.user, self.entry, self.duplicate, self.attempts)

    @property
    def stored_ms(self) -> int:
        """When it was stored, in Unix milliseconds of the store's clock."""
        return entry_order(self.entry)[0]

    async def wait(
        self, level: Level | str, *, sessions: Sessions = "any", timeout_ms: int | None = None
    ) -> list[Confirmation]:
        """Wait until the user's sessions have confirmed the event.

        Args:
            level: `received`, `displayed` or `confirmed`; what is beyond it counts as well.
            sessions: `any` one of them; so many of them; or `all_live`: those that were there when the event was stored
                and live when the wait began, as long as they are live and want the event, and one at the least.
            timeout_ms: the longest wait; the confirmation time-out of the default tier when absent.

        Returns:
            A confirmation of that level for each session that gave it, oldest first.

        Raises:
            ConfirmationTimeout: too few came in time; `confirmations` has those that did.
            InvalidField: an argument is wrong.
            StoreBusy: 10,000 calls wait already.
            EventBusError: the bus is closed, or its installation records no confirmations.

        A store that is away is waited for, within the time. A cancelled call leaves nothing behind.
        """
        if self.bus is None:
            raise EventBusError("this receipt knows no bus: use `bus.wait(receipt, ...)`")
        return await self.bus.wait(self, level, sessions=sessions, timeout_ms=timeout_ms)


def _restored(
    kind: type[Receipt], event: EventId, user: UserId, entry: EntryId, duplicate: bool, attempts: int
) -> Receipt:
    return kind(event=event, user=user, entry=entry, duplicate=duplicate, attempts=attempts)


R = TypeVar("R", bound=Receipt)


class Receipts(Mapping[str, R], Generic[R]):
    """An event is stored for many users: the receipt of each by user id, in the order given.

    Args:
        receipts: one of each user, all of one event.
    """

    __slots__ = ("_by_user",)

    def __init__(self, receipts: Iterable[R]) -> None:
        self._by_user: dict[str, R] = {receipt.user: receipt for receipt in receipts}

    def __getitem__(self, user: str) -> R:
        return self._by_user[user]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_user)

    def __len__(self) -> int:
        return len(self._by_user)

    def __repr__(self) -> str:
        return f"<Receipts {self.event} users={len(self)}>"

    @property
    def event(self) -> EventId:
        """The id of the event: the same for all of them."""
        return next(iter(self._by_user.values())).event


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishStatistics:
    """What a publisher has done, and how it stands. Counts are since its start.

    Attributes:
        published: events stored for a caller, duplicates included.
        duplicates: those of them that the store knew: a retry whose first try had taken effect, or a repeated id.
        failed: publishes that raised, or whose time was over.
        retries: how often an event was put back to be tried again.
        resent: events that were sent again because a primary may have changed.
        recovered: those of them that the store had lost.
        resend_failed: those that could not be stored again in time.
        queued_events, queued_bytes: what waits for the store or is under way.
        calls: calls to the store under way.
        kept_events, kept_bytes: what could be sent again now.
        kept_overflow: how many kept events went before their time, because there were too many.
        breaker: `closed`, `open` or `half_open`.
        breaker_failures: failures of the store in a row.
        breaker_opened: how often the breaker has opened.
    """

    published: int
    duplicates: int
    failed: int
    retries: int
    resent: int
    recovered: int
    resend_failed: int
    queued_events: int
    queued_bytes: int
    calls: int
    kept_events: int
    kept_bytes: int
    kept_overflow: int
    breaker: BreakerState
    breaker_failures: int
    breaker_opened: int
