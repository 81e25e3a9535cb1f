"""A demand that nothing can meet is refused where it is made."""

from __future__ import annotations

from typing import Any

import pytest

from eventbus import Bus
from eventbus.config import ConfirmationRecords, Settings, StoreSettings
from eventbus.errors import InvalidEvent
from eventbus.testing import MemoryStore


def bus(records: ConfirmationRecords) -> Bus:
    settings = Settings(store=StoreSettings(confirmation_records=records))
    return Bus(settings=settings, store=MemoryStore(settings.store))


@pytest.mark.requirement("R13")
async def test_a_demand_is_refused_where_no_confirmations_are_recorded() -> None:
    note: dict[str, Any] = {"user": "ada", "type": "note", "data": {}}
    demand = note | {"require": {"level": "displayed", "within_ms": 1000}}
    async with bus(ConfirmationRecords.OFF) as off:
        with pytest.raises(InvalidEvent, match="EVENTBUS_CONFIRMATION_RECORDS") as refused:
            await off.publish(**demand)
        assert refused.value.field == "require"
        with pytest.raises(InvalidEvent, match="no confirmations are recorded") as refused:
            await off.publish_many([note, demand])
        assert refused.value.index == 1
        await off.publish(**note)
    for records in (ConfirmationRecords.ALL, ConfirmationRecords.REQUIRED):
        async with bus(records) as on:
            await on.publish(**demand)
