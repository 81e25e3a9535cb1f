"""What becomes of deadlines when the node that watches them is killed, or stands still."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from eventbus import watched
from eventbus.event import Require
from eventbus.fields import Level
from eventbus.ids import UserId
from eventbus.store.redis_store import RedisStore
from eventbus.store.running import OperatorEvent
from tests.support.installation import Installation, NewInstallation
from tests.support.receiver import Receiver
from tests.support.waiting import until

USERS = [f"user{number}" for number in range(25)]
ROUNDS = 4
ALL = len(USERS) * ROUNDS

pytestmark = [pytest.mark.timeout(120)]


def _hooked(receiver: Receiver) -> dict[str, Any]:
    return {
        "watch_ms": 100,
        "node_heartbeat_ms": 500,
        "webhook_url": receiver.url,
        "webhook_secret": "a secret of the webhook, of 32 bytes",
        "webhook_timeout_ms": 1_000,
        "webhook_retry_base_ms": 100,
        "webhook_retry_max_ms": 500,
    }


async def _demand(installation: Installation) -> set[tuple[str, str]]:
    """Demands that nobody meets, of every user, due over some seconds. Returns user and entry of each."""
    asked = set()
    for turn in range(ROUNDS):
        for user in USERS:
            require = Require(level=Level.DISPLAYED, within_ms=300 + 600 * turn)
            receipt = await installation.bus.publish(user=user, type="note", data={}, require=require)
            asked.add((user, str(receipt.entry)))
    return asked


async def _told(installation: Installation) -> list[OperatorEvent]:
    store = RedisStore(installation.server.url)
    try:
        return await watched.operator_events(store, limit=10_000)
    finally:
        await store.aclose()


async def _all_posted(receiver: Receiver) -> None:
    await until(
        lambda: len(set(receiver.accepted)) == ALL,
        40_000,
        lambda: f"{ALL} demands are posted; were: {len(set(receiver.accepted))}",
    )


@pytest.mark.slow
@pytest.mark.requirement("R13")
@pytest.mark.requirement("R17")
async def test_every_demand_is_escalated_once_when_a_node_that_watches_is_killed(
    new_installation: NewInstallation,
) -> None:
    """D22: told once, posted at least once under one name, so that the receiver's count is exact."""
    async with Receiver() as receiver:
        installation = await new_installation(**_hooked(receiver))
        await installation.start_nodes("one", "two")
        first = installation.nodes[0]
        await until(lambda: first.ready())
        # Some posts of both nodes hang, so that the killed one has claims that nobody will settle.
        receiver.script = ["hang", 204, 500, 204, "hang", 204, "close", 204] * 4
        asked = await _demand(installation)
        await until(lambda: len(receiver.accepted) >= 10, 20_000, "the first escalations")
        first.child.kill()
        assert len(set(receiver.accepted)) < ALL, "all was over before the kill"

        await _all_posted(receiver)
        events = await _told(installation)
        assert Counter((one.fields["user"], one.fields["entry"]) for one in events) == Counter(asked)
        named = {f"{one.partition}:{one.id}" for one in events}
        assert set(receiver.keys) == named
        assert len(receiver.keys) > ALL, "some were posted again: at least once"


@pytest.mark.slow
@pytest.mark.requirement("R13")
async def test_a_node_that_stood_still_tells_of_nothing_that_another_has_told(
    new_installation: NewInstallation,
) -> None:
    async with Receiver() as receiver:
        installation = await new_installation(**_hooked(receiver))
        await installation.start_nodes("one", "two")
        frozen = installation.nodes[0]
        await until(lambda: frozen.ready())
        asked = await _demand(installation)
        await until(lambda: len(receiver.accepted) >= 10, 20_000, "the first escalations")
        frozen.child.freeze()
        try:
            await _all_posted(receiver)
        finally:
            frozen.child.thaw()
        await until(lambda: frozen.ready(), 20_000)
        later = await installation.bus.publish(
            user=UserId("later"), type="note", data={}, require=Require(level=Level.RECEIVED, within_ms=500)
        )
        await until(lambda: len(set(receiver.accepted)) == ALL + 1, 20_000, "the thawed node and its peer go on")
        events = await _told(installation)
        told = Counter((one.fields["user"], one.fields["entry"]) for one in events)
        assert told == Counter(asked | {("later", str(later.entry))})


@pytest.mark.slow
@pytest.mark.requirement("R13")
@pytest.mark.requirement("R5")
async def test_a_receiver_that_is_away_for_a_while_gets_everything_when_it_is_back(
    new_installation: NewInstallation,
) -> None:
    async with Receiver() as receiver:
        receiver.always = 503
        # Nothing hangs here: a post that took longer than this was none of a receiver that stood still for a moment.
        more = {"webhook_retries": 100, "webhook_timeout_ms": 15_000}
        installation = await new_installation(**_hooked(receiver) | more)
        await installation.start_nodes("one", "two")
        await _demand(installation)

        async def all_told() -> bool:
            return len(await _told(installation)) == ALL

        await until(all_told, 20_000)
        asked_then = len(receiver.received)
        assert asked_then < ALL * 3, "the circuit breaker leaves a failing receiver alone"
        receiver.always = 204
        await _all_posted(receiver)
        assert len(receiver.accepted) == ALL
