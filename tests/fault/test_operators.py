"""R28: an operator's process that is killed in the middle of its work; saying it again does the rest, once."""

from __future__ import annotations

import pytest

from eventbus.config import StoreSettings
from eventbus.ids import ENTRY_ZERO, EntryId, SessionId, UserId
from eventbus.store import Attach, Attached, AttachMode, Fence, ReadRequest, Start
from eventbus.store.mending import TakenHow, TakeOff
from eventbus.store.redis_store import RedisStore
from tests.support.processes import Processes
from tests.support.redis_stores import NODE, event_of, fence_of, publish
from tests.support.waiting import until

pytestmark = [pytest.mark.requirement("R28"), pytest.mark.fault, pytest.mark.slow]

ALICE, PHONE, LETTERS = UserId("alice"), SessionId("phone"), 2_000


async def given_up(store: RedisStore) -> list[EntryId]:
    """As many dead letters of one session."""
    fence = Fence(user=ALICE, session=PHONE, connection=fence_of().connection)
    request = Attach(
        fence=fence,
        node=NODE,
        mode=AttachMode.OPEN,
        start=Start.EARLIEST,
        cursor=None,
        epoch=None,
        live_limit=10,
        known_limit=40,
    )
    assert isinstance(await store.attach(request), Attached)
    entries = [one.entry for one in await publish(store, *(event_of(f"e{number}") for number in range(LETTERS)))]
    await store.read_new([ReadRequest(fence=fence, count=LETTERS)])
    await store.take_off(TakeOff(user=ALICE, session=PHONE, entries=entries, how=TakenHow.DEAD))
    await store.detach(fence, ENTRY_ZERO)
    return entries


async def test_a_replay_that_is_killed_is_finished_by_saying_it_again(processes: Processes, server_url: str) -> None:
    store = RedisStore(server_url, StoreSettings())
    try:
        entries = await given_up(store)
        partition = store.keys.partition_of(ALICE)

        async def left() -> int:
            return (await store.partition_figures([partition]))[0].dead_letters  # type: ignore[union-attr]

        assert await left() == LETTERS
        words = ("replay", "--user", "alice", "--yes", "--redis-url", server_url)
        first = processes.eventbus(*words)

        async def is_at_work() -> bool:
            return await left() < LETTERS

        await until(is_at_work, 30_000)
        first.kill()
        await first.wait()
        assert 0 < await left() < LETTERS
        second = processes.eventbus(*words)
        assert await second.wait() == 0, second.stderr
        assert await left() == 0
        waiting = []
        after = ENTRY_ZERO
        while page := await store.pending(ALICE, PHONE, after, 500):
            waiting += [(one.id, one.attempts) for one in page]
            after = page[-1].id
        assert waiting == [(entry, 1) for entry in entries]
        states = [one.what["state"] for one in await store.audits(None, 10)]
        assert states == ["done", "begun", "begun"]
    finally:
        await store.aclose()
