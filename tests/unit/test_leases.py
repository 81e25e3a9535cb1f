"""The renewing of leases goes on, whatever one round of it meets."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from eventbus import Bus
from eventbus.errors import StoreError
from eventbus.store.running import Lease
from eventbus.testing import ManualClock, MemoryStore


class FailingStore(MemoryStore):
    """Its first renewal ends in a defect."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(clock=clock)
        self.renewals = 0

    async def renew_leases(self, leases: Sequence[Lease]) -> Sequence[bool | StoreError]:
        self.renewals += 1
        if self.renewals == 1:
            raise RuntimeError("a defect")
        return await super().renew_leases(leases)


@pytest.mark.requirement("R16")
async def test_a_defect_in_one_round_costs_no_run_its_lease(caplog: pytest.LogCaptureFixture) -> None:
    clock = ManualClock()
    store = FailingStore(clock)
    async with Bus(store=store, clock=clock) as bus, bus.run(user="ada", agent="planner") as run:
        await run.flush()
        for _ in range(40):
            await clock.pass_time(2_000)
        await run.thinking("still here")
        await run.flush()
    assert store.renewals > 2
    assert "could not be renewed" in caplog.text
    caplog.clear()
