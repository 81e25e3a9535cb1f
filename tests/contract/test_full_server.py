"""A server at its memory limit refuses what is new and can be drained (D14)."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import redis

from eventbus.config import StoreSettings
from eventbus.errors import StoreError, StoreFull
from eventbus.ids import ENTRY_ZERO, EventId, RunId
from eventbus.store import (
    Append,
    Attached,
    Beat,
    BeatState,
    DeadLetter,
    DeadOutcome,
    Redelivery,
    RedeliveryOutcome,
    ReleaseReason,
    RunStep,
    Store,
    Ticket,
)
from eventbus.store.inbound import Ask, NewCommand, QuestionState, TakeCommands, run_group
from eventbus.store.keys import Keys
from eventbus.store.redis_store import RedisStore
from eventbus.store.revoking import NOTHING_SEEN, Revoke, Subject
from eventbus.store.running import DueRecord, Lease, RunRequest, Settlement
from eventbus.store.texts import TextPiece
from tests.contract.conftest import SERVERS
from tests.contract.worlds import ALICE, NODE, PHONE, RedisPower, World, fence_of
from tests.support.places import Place
from tests.support.servers import NewServer
from tests.support.waiting import until

pytestmark = pytest.mark.corner("D14")

RUN, OTHER_RUN = RunId("run_1"), RunId("run_2")
FENCE, NEXT = fence_of("c1"), fence_of("c2")


@pytest.fixture(params=SERVERS)
async def full(request: pytest.FixtureRequest, new_server: NewServer) -> AsyncIterator[World]:
    """A server that holds five events for a live session, three of them delivered, and a run with a question, a command
    and a token stream; it takes no byte more.
    """
    server = new_server(kind=request.param, appendonly=False)
    settings = StoreSettings()
    store: Store = RedisStore(server.url, settings)
    world = World(store, settings, RedisPower(Place.single(server.url), store, settings))
    await world.open(FENCE)
    await world.publish("e0", "e1", "e2", "e3", "e4")
    await world.read(FENCE, count=3)
    await store.put_ticket(Ticket(ticket="t1", claims="{}", life_ms=60_000))
    await store.request_run(RunRequest(user=ALICE, run=RUN, fields={}, watch={}))
    assert await store.claim_run(Lease(user=ALICE, run=RUN, owner="me", lease_ms=60_000), "") is not None
    await store.ask(Ask(user=ALICE, run=RUN, question="q1", body=b"asked", timeout_ms=60_000))
    await store.send_command(_command("c1"))
    await store.append_text(
        TextPiece(user=ALICE, run=RUN, stream="text", thread=None, offset=0, text="words", last=False)
    )
    with redis.Redis.from_url(server.url) as client:
        client.config_set("maxmemory", "1")
    yield world
    await store.aclose()


@pytest.mark.requirement("R2")
async def test_full_server_refuses_publishes_with_a_reason_that_says_try_again(full: World) -> None:
    (result,) = await full.append(Append(user=ALICE, event=EventId("more"), body=b"more"))

    assert isinstance(result, StoreFull)
    assert result.retryable
    with pytest.raises(StoreFull):
        await full.store.put_ticket(Ticket(ticket="t2", claims="{}", life_ms=60_000))


async def test_full_server_is_drained_by_a_session_that_comes_back(full: World) -> None:
    attached = await full.open(NEXT)
    page = await full.page(NEXT)
    unread = await full.read(NEXT)
    everything = [entry.id for entry in page.entries] + [entry.id for entry in unread.entries]

    assert isinstance(attached, Attached)
    assert len(everything) == 5
    assert await full.ack(NEXT, *everything) == 5
    assert await full.store.heartbeat([NEXT], NODE) == [Beat(state=BeatState.HELD)]
    assert await full.store.detach(NEXT, everything[-1]) is True


@pytest.mark.requirement("R23")
async def test_full_server_still_revokes(full: World) -> None:
    made = await full.store.revoke(Revoke(subject=Subject(user=ALICE)))

    assert (await full.store.revocations(NOTHING_SEEN, 10)).revocations == [made]


async def test_full_server_still_redelivers_releases_and_gives_up(full: World) -> None:
    first, second, third = [entry.id for entry in (await full.page(FENCE)).entries]
    letter = DeadLetter(id=second, event=EventId("e1"), type="t", reason="ack_timeout", attempts=5, body=b"e1")

    assert await full.store.redeliver(FENCE, [Redelivery(id=first, attempts=2)]) == [RedeliveryOutcome.READY]
    assert await full.store.dead_letter(FENCE, letter) is DeadOutcome.DEAD
    assert await full.store.release(FENCE, [third], ReleaseReason.EXPIRED) == 1
    assert await full.store.end_session(ALICE, PHONE) == 1


async def test_full_server_still_answers_questions(full: World) -> None:
    assert len((await full.store.history(ALICE, ENTRY_ZERO, 10)).entries) == 5
    assert (await full.store.tail(ALICE))[0] != ENTRY_ZERO
    assert len(await full.store.sessions(ALICE)) == 1
    assert await full.store.take_ticket("t1") == "{}"
    assert await full.store.take_ticket("t1") is None


async def test_full_server_takes_nothing_new_of_a_run_and_says_try_again(full: World) -> None:
    store = full.store
    first = RunStep(run=OTHER_RUN, seq=1, owner="me", lease_ms=60_000)
    (result,) = await full.append(Append(user=ALICE, event=EventId("more"), body=b"more", step=first))
    assert isinstance(result, StoreFull)
    asked = Ask(user=ALICE, run=RUN, question="q2", body=b"asked", timeout_ms=60_000)
    piece = TextPiece(user=ALICE, run=RUN, stream="text", thread=None, offset=5, text="more", last=False)
    for refused in (
        store.request_run(RunRequest(user=ALICE, run=OTHER_RUN, fields={}, watch={})),
        store.send_command(_command("c2")),
        store.ask(asked),
        store.append_text(piece),
    ):
        with pytest.raises(StoreFull) as error:
            await refused
        assert error.value.retryable


async def test_full_server_still_watches_runs_and_tells_operators(full: World) -> None:
    store = full.store
    assert await store.renew_leases([Lease(user=ALICE, run=RUN, owner="me", lease_ms=1)]) == [True]
    number = Keys("eb", full.settings.partitions).partition_of(ALICE)
    found: list[DueRecord] = []

    async def is_due() -> bool:
        (page,) = await store.due([number], 10)
        assert not isinstance(page, StoreError)
        found[:] = page
        return bool(found)

    await until(is_due, message="the lease is over")
    settlement = Settlement(due=found[0], run=(ALICE, RUN), counts={"breaches": 1}, announce={"kind": "run_abandoned"})
    (settled,) = await store.settle([settlement])
    assert not isinstance(settled, StoreError)
    assert settled > 0
    assert [event.fields["kind"] for event in await store.operator_events(number, ENTRY_ZERO, 10)] == ["run_abandoned"]
    claimed = await store.claim_run(Lease(user=ALICE, run=RUN, owner="node", lease_ms=60_000), "me")
    assert claimed is not None
    assert claimed.fields["breaches"] == "1"


async def test_full_server_still_hands_out_commands_and_ends_what_is_open(full: World) -> None:
    store = full.store
    group = run_group(RUN)
    request = TakeCommands(user=ALICE, group=group, run=RUN, count=10, idle_ms=30_000, max_deliveries=5)
    (command,) = await store.take_commands(request)
    await store.hold_commands(ALICE, group, [command.id], 0)
    assert await store.ack_commands(ALICE, group, [command.id]) == 1
    await store.question_published(ALICE, RUN, "q1", command.id)
    assert [one.question for one in await store.questions(ALICE)] == ["q1"]
    assert await store.close_texts(ALICE, RUN) == 1
    await store.close_inbound(ALICE, RUN)
    assert [one.state for one in await store.questions(ALICE)] == [QuestionState.CLOSED]
    assert len((await store.online(ALICE)).sessions) == 1


def _command(ref: str) -> NewCommand:
    return NewCommand(user=ALICE, session=PHONE, type="message", data=b"hello", ref=ref, run=RUN)
