"""The leases of a bus's open runs: renewed three times within each, all in one batch.

A run whose process dies renews nothing, and a node closes it as failed once its lease is over. A lease that turns out
to be another's is told to its run, which cancels nothing: its agent's next call raises.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Final, Protocol

from eventbus.errors import RunClosed, StoreError
from eventbus.ids import RunId, UserId
from eventbus.store.running import Lease, RunStore
from eventbus.timers import Cancellable, Timers

__all__ = ["Holder", "Leases"]

_log = logging.getLogger("eventbus.runs")

PER_LEASE: Final = 3
"""So often a lease is renewed before it is over."""
PER_LEASE_IN_DOUBT: Final = 12
"""And so often while the store does not answer."""


class Holder(Protocol):
    """A run that holds a lease."""

    @property
    def user(self) -> UserId:
        """Whose run it is."""

    @property
    def id(self) -> RunId:
        """The run."""

    @property
    def owner(self) -> str:
        """What its lease is held by."""

    def closed(self, error: RunClosed) -> None:
        """The lease is another's now, or the run is over."""


class Leases:
    """Renews leases while a bus is open.

    Args:
        store: where they are.
        timers: where waits go.
        lease_ms: how long a lease is.
    """

    def __init__(self, store: RunStore, timers: Timers, lease_ms: int) -> None:
        self.lease_ms: Final = lease_ms
        self._store = store
        self._timers = timers
        self._held: dict[int, Holder] = {}
        self._timer: Cancellable | None = None
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    def __len__(self) -> int:
        return len(self._held)

    def hold(self, holder: Holder) -> None:
        """Renew a run's lease from now on. The step with which it began has taken it."""
        self._held[id(holder)] = holder
        self._arm(self.lease_ms // PER_LEASE)

    def release(self, holder: Holder) -> None:
        """Renew it no more; the run's last event gives the lease up. May be repeated."""
        self._held.pop(id(holder), None)

    async def aclose(self) -> None:
        """Renew nothing any more. What is still held runs out, and nodes close those runs."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _arm(self, delay_ms: int) -> None:
        if self._timer is None and self._task is None and self._held and not self._closed:
            self._timer = self._timers.call_later(max(1, delay_ms), self._ring)

    def _ring(self) -> None:
        self._timer = None
        if self._held and not self._closed:
            self._task = asyncio.get_running_loop().create_task(self._renew(), name="eventbus-leases")

    async def _renew(self) -> None:
        holders = list(self._held.values())
        answers: Sequence[bool | StoreError]
        try:
            answers = await self._store.renew_leases(
                [
                    Lease(user=holder.user, run=holder.id, owner=holder.owner, lease_ms=self.lease_ms)
                    for holder in holders
                ]
            )
        except StoreError as error:
            answers = [error] * len(holders)
        except Exception as error:  # a defect must not cost every run of the process its lease
            _log.exception("leases of runs could not be renewed")
            answers = [StoreError(repr(error))] * len(holders)
        finally:
            self._task = None
        doubts = [answer for answer in answers if isinstance(answer, StoreError)]
        if doubts:
            _log.warning("%d of %d leases of runs could not be renewed: %s", len(doubts), len(holders), doubts[0])
        for holder, answer in zip(holders, answers, strict=True):
            # One that was released meanwhile has said its last word itself.
            if answer is False and id(holder) in self._held:
                self.release(holder)
                holder.closed(
                    RunClosed(f"the lease of run {holder.id} is lost: a node closed it, or another process resumed it")
                )
        self._arm(self.lease_ms // (PER_LEASE_IN_DOUBT if doubts else PER_LEASE))
