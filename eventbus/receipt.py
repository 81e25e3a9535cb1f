"""What a publish returns, and what a bus says of itself."""

from __future__ import annotations

from dataclasses import dataclass

from eventbus.breaker import BreakerState
from eventbus.ids import EntryId, EventId, UserId, entry_order

__all__ = ["PublishStatistics", "Receipt"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """An event is stored.

    Attributes:
        event: its id, the given one or the one that was made.
        user: whose it is.
        entry: its entry id in the user's stream; of the first publish when `duplicate`.
        duplicate: the store had it already, from a repeated publish or from a try whose answer was lost.
        attempts: how often it was sent.
    """

    event: EventId
    user: UserId
    entry: EntryId
    duplicate: bool
    attempts: int

    @property
    def stored_ms(self) -> int:
        """When it was stored, in Unix milliseconds of the store's clock."""
        return entry_order(self.entry)[0]


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
