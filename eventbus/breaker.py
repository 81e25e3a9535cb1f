"""A circuit breaker: it leaves a store or a target that keeps failing alone, probes it, and closes again by itself.

Pure: a table of moves, given `now_ms` of a monotonic clock. Who makes a call asks first (`ask`) and reports with the
permit what became of it. Only failures of the target as a whole count, and in a row; a refusal of one event is an
answer.
"""

from __future__ import annotations

from enum import Enum, StrEnum
from typing import Final

__all__ = ["MOVES", "Breaker", "BreakerInput", "BreakerState", "Permit"]


class BreakerState(StrEnum):
    """`CLOSED`: calls flow. `OPEN`: none is made until the next probe. `HALF_OPEN`: one probe is under way."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Permit(Enum):
    """The answer to `Breaker.ask`: `CALL` freely, make this one call as a `PROBE`, or `WAIT`."""

    CALL = "call"
    PROBE = "probe"
    WAIT = "wait"


class BreakerInput(Enum):
    """What happens to a breaker. `LIMIT_REACHED` is the failure that is one too many in a row."""

    CALL_SUCCEEDED = "call succeeded"
    CALL_FAILED = "call failed"
    LIMIT_REACHED = "limit reached"
    PROBE_BEGUN = "probe begun"
    PROBE_SUCCEEDED = "probe succeeded"
    PROBE_FAILED = "probe failed"
    PROBE_WITHDRAWN = "probe withdrawn"


_State, _Input = BreakerState, BreakerInput

MOVES: Final = {
    (_State.CLOSED, _Input.CALL_SUCCEEDED): _State.CLOSED,
    (_State.CLOSED, _Input.CALL_FAILED): _State.CLOSED,
    (_State.CLOSED, _Input.LIMIT_REACHED): _State.OPEN,
    (_State.OPEN, _Input.PROBE_BEGUN): _State.HALF_OPEN,
    # Calls that began before it opened come back late. A good answer is as good as a probe's; a failure is no news.
    (_State.OPEN, _Input.CALL_SUCCEEDED): _State.CLOSED,
    (_State.OPEN, _Input.CALL_FAILED): _State.OPEN,
    (_State.HALF_OPEN, _Input.CALL_SUCCEEDED): _State.CLOSED,
    (_State.HALF_OPEN, _Input.CALL_FAILED): _State.HALF_OPEN,
    (_State.HALF_OPEN, _Input.PROBE_SUCCEEDED): _State.CLOSED,
    (_State.HALF_OPEN, _Input.PROBE_FAILED): _State.OPEN,
    (_State.HALF_OPEN, _Input.PROBE_WITHDRAWN): _State.OPEN,
    # The probe of a breaker that a late answer has closed meanwhile: it counts as any call.
    (_State.CLOSED, _Input.PROBE_SUCCEEDED): _State.CLOSED,
    (_State.CLOSED, _Input.PROBE_WITHDRAWN): _State.CLOSED,
    # ... and which opened again before that probe came back.
    (_State.OPEN, _Input.PROBE_SUCCEEDED): _State.CLOSED,
    (_State.OPEN, _Input.PROBE_FAILED): _State.OPEN,
    (_State.OPEN, _Input.PROBE_WITHDRAWN): _State.OPEN,
}
"""Every move; a missing key is a move that cannot happen."""


class Breaker:
    """One circuit breaker.

    Args:
        failures: how many failures in a row open it, at least 1.
        open_ms: from the opening to the first probe; doubles with each probe that fails.
        open_max_ms: the longest time between two probes.

    Attributes:
        state: where it stands.
        failures: failures in a row so far.
        opened: how often it has opened.
        next_probe_ms: when the next probe may be made; of meaning only while it is `OPEN`.
    """

    __slots__ = ("_limit", "_open_max_ms", "_open_ms", "_wait_ms", "failures", "next_probe_ms", "opened", "state")

    def __init__(self, *, failures: int, open_ms: int, open_max_ms: int) -> None:
        self._limit = failures
        self._open_ms = open_ms
        self._open_max_ms = open_max_ms
        self._wait_ms = open_ms
        self.state = BreakerState.CLOSED
        self.failures = 0
        self.opened = 0
        self.next_probe_ms = 0

    def __repr__(self) -> str:
        return f"<Breaker {self.state} failures={self.failures}/{self._limit} next_probe_ms={self.next_probe_ms}>"

    def ask(self, now_ms: int) -> Permit:
        """Say whether a call may be made now. A `PROBE` is given to one caller, who must report what became of it."""
        if self.state is BreakerState.CLOSED:
            return Permit.CALL
        if self.state is BreakerState.OPEN and now_ms >= self.next_probe_ms:
            self._move(BreakerInput.PROBE_BEGUN)
            return Permit.PROBE
        return Permit.WAIT

    def succeeded(self, permit: Permit) -> None:
        """Note that a call was answered."""
        self._move(BreakerInput.PROBE_SUCCEEDED if permit is Permit.PROBE else BreakerInput.CALL_SUCCEEDED)
        self.failures = 0
        self._wait_ms = self._open_ms

    def failed(self, permit: Permit, now_ms: int) -> None:
        """Note that a call was not answered."""
        self.failures += 1
        if self.state is BreakerState.CLOSED:
            if self.failures < self._limit:
                self._move(BreakerInput.CALL_FAILED)
                return
            self._move(BreakerInput.LIMIT_REACHED)
            self.opened += 1
            self._wait_ms = self._open_ms
            self.next_probe_ms = now_ms + self._wait_ms
        elif self.state is BreakerState.HALF_OPEN and permit is Permit.PROBE:
            self._move(BreakerInput.PROBE_FAILED)
            self._wait_ms = min(self._wait_ms * 2, self._open_max_ms)
            self.next_probe_ms = now_ms + self._wait_ms
        else:
            self._move(BreakerInput.PROBE_FAILED if permit is Permit.PROBE else BreakerInput.CALL_FAILED)

    def seems_back(self, now_ms: int) -> None:
        """Note a sign that the target is there again: the next probe is due, however long it was to wait."""
        if self.state is BreakerState.OPEN:
            self.next_probe_ms = min(self.next_probe_ms, now_ms)

    def withdrawn(self) -> None:
        """Note that a probe proved nothing, because it was not made or was cancelled: the next who asks gets it."""
        self._move(BreakerInput.PROBE_WITHDRAWN)

    def _move(self, happened: BreakerInput) -> None:
        self.state = MOVES[self.state, happened]
