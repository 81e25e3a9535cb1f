"""Before a store: its breaker, who is told when it moves, and the probe when nothing waits that could serve as one."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from eventbus.breaker import Breaker, BreakerState, Permit
from eventbus.clock import Clock

__all__ = ["Guard"]

_log = logging.getLogger("eventbus.publishing")


class Guard:
    """Says whether a call may be made, and makes a probe of its own where it must. Made in a running event loop.

    Args:
        breaker: decides.
        ping: probes the store.
        clock: monotonic time.
        on_breaker: called in the event loop whenever the breaker has moved; what it raises is logged.
        on_open: called with now and with the time of the next probe when nothing may be sent before that.
        on_close: called when the store answers again.
        on_probed: called when a probe is over.
    """

    def __init__(
        self,
        breaker: Breaker,
        ping: Callable[[], Awaitable[object]],
        *,
        clock: Clock,
        on_breaker: Callable[[BreakerState], object] | None,
        on_open: Callable[[int, int], object],
        on_close: Callable[[], object],
        on_probed: Callable[[], object],
    ) -> None:
        self.breaker = breaker
        self.probe: asyncio.Task[None] | None = None
        """The probe under way."""
        self._ping = ping
        self._clock = clock
        self._on_breaker = on_breaker
        self._on_open = on_open
        self._on_close = on_close
        self._on_probed = on_probed
        self._told = BreakerState.CLOSED

    @property
    def next_probe_ms(self) -> int:
        """Before this nothing is sent; 0 when it may be."""
        return self.breaker.next_probe_ms if self.breaker.state is BreakerState.OPEN else 0

    def succeeded(self, permit: Permit) -> None:
        """Note that a call was answered."""
        was_closed = self.breaker.state is BreakerState.CLOSED
        self.breaker.succeeded(permit)
        if not was_closed:
            self._on_close()

    def failed(self, permit: Permit, now_ms: int) -> None:
        """Note that a call was not answered."""
        self.breaker.failed(permit, now_ms)
        if next_probe_ms := self.next_probe_ms:
            self._on_open(now_ms, next_probe_ms)

    def proved_nothing(self, permit: Permit) -> None:
        """Note that a call was not made, or that its answer says nothing of the store."""
        if permit is Permit.PROBE:
            self.breaker.withdrawn()

    def tell(self) -> None:
        """Tell of a move of the breaker since the last time."""
        state = self.breaker.state
        if state is self._told:
            return
        self._told = state
        _log.warning("the circuit breaker of the store is %s", state)
        if self._on_breaker is not None:
            try:
                self._on_breaker(state)
            except Exception:
                _log.exception("on_breaker raised")

    def probe_if_due(self, now_ms: int) -> None:
        """Probe the store, if its time has come: nothing waits that could serve as the probe."""
        if self.breaker.state is not BreakerState.CLOSED and self.breaker.ask(now_ms) is Permit.PROBE:
            self.probe = asyncio.get_running_loop().create_task(self._probe(), name="eventbus-probe")
            self.tell()

    async def _probe(self) -> None:
        try:
            await self._ping()
        except asyncio.CancelledError:
            self.breaker.withdrawn()
            raise
        except Exception:
            self.failed(Permit.PROBE, self._clock.monotonic_ms())
        else:
            self.succeeded(Permit.PROBE)
        finally:
            self.probe = None
            self._on_probed()
            self.tell()
