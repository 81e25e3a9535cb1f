"""Whether and when a call to the store is tried again: tenacity's strategies, asked for one decision at a time.

A publish has no retry loop of its own, for it waits in a line with others of its user. So tenacity decides (which
errors, how long) and the publisher waits. The wait before retry n is `base * 2**(n-1)`, at most `max`; one half of it
is certain and one half left to chance (`wait_exponential + wait_random_exponential`): it grows, and publishers keep
no step.
"""

from __future__ import annotations

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, wait_exponential, wait_random_exponential

from eventbus.breaker import Breaker, BreakerState
from eventbus.clock import seconds
from eventbus.errors import BreakerOpen, EventBusError, PublishTimeout, StoreError, StoreUnavailable
from eventbus.publishing.lines import Item

__all__ = ["RetryPolicy", "final_error"]


def _retryable(error: BaseException) -> bool:
    return isinstance(error, EventBusError) and error.retryable


class RetryPolicy:
    """Exponentially growing, jittered waits for errors that are `retryable`.

    Args:
        base_ms: the first wait.
        max_ms: the longest.
    """

    __slots__ = ("_retrying",)

    def __init__(self, *, base_ms: int, max_ms: int) -> None:
        base, longest = seconds(base_ms) / 2, seconds(max_ms) / 2
        self._retrying = AsyncRetrying(
            retry=retry_if_exception(_retryable),
            wait=wait_exponential(multiplier=base, max=longest) + wait_random_exponential(multiplier=base, max=longest),
        )

    def wait_ms(self, error: BaseException, failures: int) -> int | None:
        """Say how long to wait after a failure.

        Args:
            error: what the last try ended with.
            failures: how many tries in a row have failed, from 1.

        Returns:
            Milliseconds, at least 1; None when trying again is of no use.
        """
        state = RetryCallState(self._retrying, None, (), {})
        state.set_exception((type(error), error, error.__traceback__))
        if not self._retrying.retry(state):
            return None
        state.attempt_number = failures
        return max(1, round(self._retrying.wait(state) * 1000))


def final_error(item: Item, breaker: Breaker, now_ms: int) -> EventBusError:
    """What the caller of a publish is told when no further try is made; a new object for each.

    Args:
        item: the publish, with its last error.
        breaker: that of the store.
        now_ms: monotonic time.
    """
    error = item.error
    tries = {0: "not tried", 1: "tried once"}.get(item.attempts, f"tried {item.attempts} times")
    reason = error or ("no answer has come" if item.attempts else "earlier events of its user were not through")
    what = f"event {item.append.event!r} was {tries} in {now_ms - item.queued_ms} ms ({reason})"
    same_id = "Publish it again under the same id: it is stored once"
    told: EventBusError
    if isinstance(error, StoreError) and not isinstance(error, StoreUnavailable):
        # What became of it is known (refused, or stored and not replicated); its class says whether to try again.
        told = type(error)(f"{what}. {same_id}" if error.retryable else what)
    elif error is not None and not isinstance(error, EventBusError):
        told = StoreError(what)
    elif breaker.state is not BreakerState.CLOSED:
        told = BreakerOpen(
            f"{what}; the store failed {breaker.failures} times in a row and is left alone until the next probe,"
            f" in {max(0, breaker.next_probe_ms - now_ms)} ms. {same_id}"
        )
    else:
        told = PublishTimeout(f"{what}; it may be stored. {same_id}")
    told.__cause__ = error
    return told
