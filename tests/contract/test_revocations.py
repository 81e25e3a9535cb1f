"""What is revoked, over every store."""

from __future__ import annotations

import pytest

from eventbus.errors import TooManyRevocations
from eventbus.ids import NodeName, SessionId, UserId
from eventbus.store import NodeRecord
from eventbus.store.revoking import (
    NOTHING_SEEN,
    Revocation,
    RevocationMark,
    RevocationPage,
    Revoke,
    Subject,
)
from tests.contract.conftest import MakeWorld
from tests.contract.test_channels import Ear
from tests.contract.worlds import ALICE, NODE, OTHER_NODE, World
from tests.support.waiting import until

BOB = UserId("bob")
MINUTE_MS = 60_000
pytestmark = pytest.mark.requirement("R23")


class Told(Ear):
    """Counts what a node is told of revocations."""

    def __init__(self) -> None:
        super().__init__()
        self.times = 0

    def revoked(self) -> None:
        self.times += 1


def named(page: RevocationPage) -> list[str]:
    return [one.subject.name for one in page.revocations]


async def revoke(world: World, **subject: str) -> Revocation:
    return await world.store.revoke(Revoke(subject=Subject(**subject)))  # type: ignore[arg-type]


async def everything(world: World, count: int = 100) -> list[Revocation]:
    """All, read page by page."""
    mark = NOTHING_SEEN
    found: list[Revocation] = []
    while True:
        page = await world.store.revocations(mark, count)
        assert len(page.revocations) <= count
        found += page.revocations
        mark = page.mark
        if not page.more:
            return found


async def test_a_revocation_comes_back_as_it_was_made(world: World) -> None:
    before_ms = await world.store.ping()
    subjects = [
        Subject(jti="a token, with blanks and a \N{SNOWMAN}"),
        Subject(user=ALICE),
        Subject(user=ALICE, session=SessionId("phone")),
    ]
    made = [await world.store.revoke(Revoke(subject=one, reason="stolen", by="ops")) for one in subjects]
    after_ms = await world.store.ping()

    assert await everything(world) == made
    assert [one.subject for one in made] == subjects
    assert [one.number for one in made] == [1, 2, 3]
    for one in made:
        assert (one.reason, one.by) == ("stolen", "ops")
        assert before_ms <= one.revoked_ms <= after_ms
        assert one.until_ms == one.revoked_ms + world.settings.revocation_ttl_ms


async def test_a_token_that_says_when_it_expires_is_remembered_until_then_and_a_minute_at_least(world: World) -> None:
    now_ms = await world.store.ping()
    late, past = now_ms + 10 * MINUTE_MS, now_ms - MINUTE_MS
    kept = await world.store.revoke(Revoke(subject=Subject(jti="late"), until_ms=late))
    brief = await world.store.revoke(Revoke(subject=Subject(jti="past"), until_ms=past))
    assert kept.until_ms == late
    assert brief.until_ms == brief.revoked_ms + MINUTE_MS


async def test_a_reader_gets_only_what_is_new(world: World) -> None:
    await revoke(world, jti="one")
    first = await world.store.revocations(NOTHING_SEEN, 100)
    assert (named(first), first.more) == (["jti one"], False)
    nothing = await world.store.revocations(first.mark, 100)
    assert (named(nothing), nothing.mark) == ([], first.mark)
    await revoke(world, jti="two")
    assert named(await world.store.revocations(first.mark, 100)) == ["jti two"]


async def test_pages_hold_everything_once_and_in_order(world: World) -> None:
    for number in range(7):
        await revoke(world, jti=f"t{number}")
    for count in (1, 3, 7, 8):
        assert [one.subject.jti for one in await everything(world, count)] == [f"t{number}" for number in range(7)]


async def test_what_is_revoked_again_counts_from_then_on_and_never_ends_earlier(world: World) -> None:
    first = await revoke(world, user=ALICE)
    await revoke(world, user=BOB)
    seen = (await world.store.revocations(NOTHING_SEEN, 100)).mark
    await world.pass_time(2)

    again = await world.store.revoke(Revoke(subject=Subject(user=ALICE), until_ms=first.revoked_ms + MINUTE_MS))

    assert again.revoked_ms > first.revoked_ms
    assert again.until_ms == first.until_ms
    assert named(await world.store.revocations(seen, 100)) == ["user alice"]
    assert [one.subject.name for one in await everything(world)] == ["user bob", "user alice"]


async def test_a_list_that_was_lost_is_read_from_its_beginning(world: World) -> None:
    """Also when the new list has as many revocations as the old one had."""
    await revoke(world, jti="before")
    mark = (await world.store.revocations(NOTHING_SEEN, 100)).mark
    await world.power.flush()
    assert named(await world.store.revocations(mark, 100)) == []
    await revoke(world, jti="after")
    assert named(await world.store.revocations(mark, 100)) == ["jti after"]


async def test_what_another_server_has_is_read_from_the_beginning(world: World) -> None:
    """D4: after a failover another revocation may stand under a number that was read."""
    await revoke(world, jti="one")
    mark = (await world.store.revocations(NOTHING_SEEN, 100)).mark
    elsewhere = RevocationMark(epoch=mark.epoch, number=mark.number, primary="another")
    page = await world.store.revocations(elsewhere, 100)
    assert (named(page), page.mark) == (["jti one"], mark)


async def test_every_listed_node_is_told(world: World) -> None:
    told = {NODE: Told(), OTHER_NODE: Told(), NodeName("unlisted"): Told()}
    listening = [await world.store.listen(node, one) for node, one in told.items()]
    await until(lambda: all(one.subscriptions for one in told.values()))
    for node in (NODE, OTHER_NODE):
        record = NodeRecord(node=node, address="a", version="1", state="ready", started_ms=1, figures={})
        await world.store.beat_node(record)

    await revoke(world, jti="one")

    await until(lambda: told[NODE].times == told[OTHER_NODE].times == 1)
    assert told[NodeName("unlisted")].times == 0
    for one in listening:
        await one.aclose()


async def test_more_than_nodes_keep_is_refused_but_what_is_known_can_be_revoked_again(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("eventbus.store.redis_revoking", "eventbus.testing.memory_revoking"):
        monkeypatch.setattr(f"{module}.REVOCATIONS_MAX", 2)
    world = await make_world()
    await revoke(world, jti="one")
    await revoke(world, user=ALICE)
    with pytest.raises(TooManyRevocations):
        await revoke(world, jti="two")
    await revoke(world, jti="one")
    assert len(await everything(world)) == 2
