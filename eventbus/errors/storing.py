"""The store refuses, or does not answer; and what of a publish is stored all the same."""

from __future__ import annotations

from collections.abc import Sequence

from eventbus.errors.root import CloseCode, EventBusError

__all__ = [
    "BreakerOpen",
    "NotReplicated",
    "OutOfOrder",
    "PartialPublish",
    "PublishTimeout",
    "RunClosed",
    "StoreBusy",
    "StoreError",
    "StoreFull",
    "StoreMisconfigured",
    "StoreMoved",
    "StoreTimeout",
    "StoreUnavailable",
    "StreamFull",
    "TooManyRevocations",
    "TypePaused",
]


class StoreError(EventBusError):
    """The store answered with an error or did not answer."""

    code = "store_error"
    close_code = CloseCode.STORE_UNAVAILABLE


class StoreUnavailable(StoreError):
    """No connection to the store, or it was lost before the answer came; whether the call took effect is unknown."""

    code = "store_unavailable"
    retryable = True


class StoreTimeout(StoreUnavailable):
    """The store did not answer in time; whether the call took effect is unknown."""

    code = "store_timeout"


class StoreBusy(StoreUnavailable):
    """The store refuses for now: it loads its data, runs a script, has no primary, or the queue before it is full."""

    code = "store_busy"


class StoreMoved(StoreError):
    """The part of the data that the call is about has another primary now; nothing was done, and the same call may
    succeed there.
    """

    code = "store_moved"
    retryable = True


class StoreFull(StoreError):
    """The store is at its memory limit (OOM): reading and acking go on, publishing waits."""

    code = "store_full"
    retryable = True


class StoreMisconfigured(StoreError):
    """The store answers, and can never do what is asked: wrong version, missing rights, wrong type of key."""

    code = "store_misconfigured"


class TooManyRevocations(StoreError):
    """As many revocations as the nodes keep have not ended yet: this one was not made."""

    code = "too_many_revocations"


class StreamFull(StoreError):
    """The user's stream is at its hard cap with entries that somebody still needs, and the policy is `reject`."""

    code = "stream_full"
    retryable = True


class TypePaused(StoreError):
    """An operator has paused the events of this type: nothing was stored, and it is not tried again by itself."""

    code = "type_paused"


class OutOfOrder(StoreError):
    """An event of a run came with another `seq` than the last plus one: one before it is not stored yet, or is lost.

    Attributes:
        last: the number of the last event that the store has.
    """

    code = "out_of_order"
    retryable = True

    def __init__(self, message: str, *, last: int = 0) -> None:
        super().__init__(message)
        self.last = last


class RunClosed(StoreError):
    """The run is completed, or belongs to another owner: nothing of this owner follows any more."""

    code = "run_closed"


class NotReplicated(StoreError):
    """The event is stored on the primary, and too few replicas confirmed it in time."""

    code = "not_replicated"
    retryable = True


class BreakerOpen(StoreUnavailable):
    """The circuit breaker is open: the store kept failing and is left alone until the next probe."""

    code = "breaker_open"


class PublishTimeout(StoreUnavailable):
    """A publish did not succeed within its deadline; publishing the same event id again makes no second entry."""

    code = "publish_timeout"


class PartialPublish(StoreUnavailable):
    """Some events of a batch are stored and others not.

    Attributes:
        results: one per event in the order given: a receipt, or the error of that event.
        users: of one event to many users: whose each result is, in the same order; else empty.
        event: of one event to many users: its id, to publish it again for those who have not got it; else empty.
    """

    code = "partial_publish"

    def __init__(self, message: str, results: Sequence[object], users: Sequence[str] = (), event: str = "") -> None:
        super().__init__(message)
        self.results = tuple(results)
        self.users = tuple(users)
        self.event = event

    @property
    def by_user(self) -> dict[str, object]:
        """Of one event to many users: the receipt or the error of each."""
        return dict(zip(self.users, self.results, strict=False))

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (*self.args, self.results, self.users, self.event)
