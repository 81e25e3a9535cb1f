"""The JavaScript client in Node, against real nodes and a real server, over a network that fails."""

from __future__ import annotations

import pytest

from tests.support.installation import NewInstallation, Storm
from tests.support.reader import start_reader

pytestmark = pytest.mark.fault

SEED = 20_261_121


@pytest.mark.requirement("R2")
@pytest.mark.requirement("R7")
@pytest.mark.requirement("R8")
@pytest.mark.requirement("R10")
async def test_every_event_once_and_in_order_whatever_happens_to_connections_and_nodes(
    new_installation: NewInstallation,
) -> None:
    bus = await new_installation(nodes=2)
    reader = start_reader(bus, speed=5)
    await reader.live()
    storm = Storm(bus, SEED, 2_000, lambda: len(reader.look().events))

    await storm.run(*["cut"] * 6, *["torn"] * 5, *["lossy"] * 3, "refused", "half_open", "frozen", "killed", "drained")

    await reader.has(bus.published)
    await bus.all_acked()
    assert len(bus.published) >= 2_000
    assert storm.struck >= 15
    assert (reader.of("gap"), reader.errors) == ([], [])
    reader.check()
