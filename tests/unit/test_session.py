"""A connection of a session, against a store in memory and a clock by hand: its life, and the races in it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from eventbus import moves
from eventbus.ids import ConnectionId, EntryId, NodeName, SessionId, UserId
from eventbus.store import (
    Attach,
    Attached,
    AttachMode,
    AttachRefused,
    Beat,
    BeatState,
    Fence,
    PendingPage,
    ReadRequest,
    Start,
)
from eventbus.store import Lost as LostType
from eventbus.testing import ManualClock, MemoryStore
from eventbus.tokens import make_token
from gateway.sessions.session import Session, State
from gateway.sessions.wheel import NEVER_MS
from tests.support.bench import SECRET, Bench, BenchClient, identity_of
from tests.support.waiting import until

ALICE, TAB = UserId("alice"), SessionId("tab")


class GatedStore(MemoryStore):
    """A store of which single calls can be held: attaches before they take effect, answers of others after."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(clock=clock)
        self.attaching, self.beating, self.paging = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.release_all()

    def release_all(self) -> None:
        for gate in (self.attaching, self.beating, self.paging):
            gate.set()

    async def attach(self, request: Attach) -> Attached | AttachRefused:
        await self.attaching.wait()
        return await super().attach(request)

    async def heartbeat(self, fences: Sequence[Fence], node: NodeName) -> Any:
        answers = await super().heartbeat(fences, node)
        await self.beating.wait()
        return answers

    async def read_pending(self, fence: Fence, after: EntryId, count: int) -> PendingPage | LostType:
        page = await super().read_pending(fence, after, count)
        await self.paging.wait()
        return page


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    clock = ManualClock()
    async with Bench(GatedStore(clock), clock) as made:
        yield made


def gates(bench: Bench) -> GatedStore:
    assert isinstance(bench.store, GatedStore)
    return bench.store


async def take_over(bench: Bench, connection: str = "f" * 32) -> None:
    """Another node opens the session, and this node hears nothing of it."""
    await bench.deafen()
    fence = Fence(user=ALICE, session=TAB, connection=ConnectionId(connection))
    answer = await bench.store.attach(
        Attach(
            fence=fence,
            node=NodeName("n2"),
            mode=AttachMode.OPEN,
            start=Start.NEW,
            cursor=None,
            epoch=None,
            live_limit=10,
            known_limit=40,
        )
    )
    assert isinstance(answer, Attached)


# --- opening --------------------------------------------------------------------------------------------------------


async def test_a_session_is_seated_before_its_attach_is_written(bench: Bench) -> None:
    gates(bench).attaching.clear()
    client = bench.connect()
    client.say("hello", session="tab")
    assert list(bench.node.hub.of_user(ALICE)) == [client.session]
    # A wake-up that comes before the answer is not lost, and nothing is read from the client meanwhile.
    await bench.publish()
    assert not client.socket.reading
    gates(bench).attaching.set()
    await bench.settle()
    assert client.socket.reading


async def test_what_is_said_behind_hello_is_answered_after_the_welcome_in_order(bench: Bench) -> None:
    client = bench.connect()
    client.say("hello", session="tab")
    for number in range(3):
        client.say("ping", ref=number)
    assert client.ops() == []
    await bench.settle()
    assert client.ops()[0] == "welcome"
    assert [frame["ref"] for frame in client.of("pong")] == [0, 1, 2]


@pytest.mark.requirement("R25")
async def test_no_hello_in_time_is_4503_and_never_early(bench: Bench) -> None:
    client = bench.connect()
    await bench.pass_time(4_999)
    assert client.close_code() is None
    await bench.pass_time(100)
    assert client.close_code() == 4503


@pytest.mark.requirement("R25")
async def test_a_store_that_does_not_answer_the_attach_in_30_seconds_is_an_error_and_4005(bench: Bench) -> None:
    gates(bench).attaching.clear()
    client = bench.connect()
    await bench.pass_time(4_000)
    client.say("hello")
    await bench.pass_time(29_900)
    assert client.close_code() is None, "the time for `hello` is not that for the store"
    await bench.pass_time(200)
    assert client.of("error")[0]["code"] == "store_unavailable"
    assert client.close_code() == 4005


async def test_the_end_before_hello_leaves_nothing(bench: Bench) -> None:
    client = bench.connect()
    client.hang_up()
    client.hang_up()
    await bench.settle()
    assert client.session.state is State.CLOSED
    assert client.session.due_ms == NEVER_MS
    assert len(bench.node.wheel) == len(bench.node.hub) == 0
    assert not bench.node.reader.is_busy
    assert "unnamed" in repr(client.session)


async def test_a_handler_whose_client_left_during_the_handshake_is_told_and_leaves_nothing(bench: Bench) -> None:
    left = []
    Session(bench.node, identity_of(), left=lambda: left.append(1)).on_close(1006, "")
    assert left == [1]
    assert len(bench.node.wheel) == 0


# --- the end while something is under way ---------------------------------------------------------------------------


async def test_a_session_that_closes_while_its_attach_is_under_way_is_not_live_for_ever(bench: Bench) -> None:
    """The attach takes effect after the hold was given up: it is given up again."""
    gates(bench).attaching.clear()
    client = bench.connect()
    client.say("hello", session="tab")
    await bench.settle()
    client.hang_up()
    await bench.settle()
    gates(bench).attaching.set()
    await bench.settle()
    assert await bench.live() is None
    assert len(bench.node.hub) == 0


async def test_a_session_that_closes_while_it_is_attached_again_is_not_live_for_ever(bench: Bench) -> None:
    client = await bench.open()
    gates(bench).attaching.clear()
    client.session.reattach("test")
    await bench.settle()
    client.hang_up()
    await bench.settle()
    assert await bench.live() is None
    gates(bench).attaching.set()
    await bench.settle()
    assert await bench.live() is None


async def test_a_session_that_closes_before_its_attach_is_written_never_attaches(bench: Bench) -> None:
    client = bench.connect()
    client.say("hello", session="tab")
    client.hang_up()
    await bench.settle()
    assert await bench.store.sessions(ALICE) == []
    assert bench.node.keeper.waiting == 0


async def test_a_superseded_session_gives_up_nothing_that_is_not_its_own(bench: Bench) -> None:
    first = await bench.open()
    second = await bench.open()
    await bench.settle()
    assert first.close_code() == 4504
    first.hang_up()
    await bench.settle()
    live = await bench.live()
    assert live is not None
    assert live.connection == second.session.connection_id


async def test_what_comes_after_the_end_is_ignored(bench: Bench) -> None:
    client = await bench.open()
    (entry,) = await bench.publish()
    client.say("ack", ids=[entry])
    client.hang_up()
    frames = len(client.socket.frames)
    client.say("ping")
    client.session.acks_stored([entry], 1, "ref")
    client.session.ack_is_late("ref")
    client.session.acked_elsewhere([entry])
    client.session.stalled(10_000)
    client.session.reattach("test")
    client.session.beaten(Beat(state=BeatState.LOST), (0, 0))
    assert client.session.on_clock(bench.clock.monotonic_ms()) is False
    await bench.settle()
    assert len(client.socket.frames) == frames
    assert await bench.pending() == []


async def test_the_end_is_told_once(bench: Bench) -> None:
    client = await bench.open()
    client.say("ack")
    assert client.close_code() == 4500
    client.hang_up()
    assert client.left == 1
    assert bench.node.counters.connections_closed == {4500: 1}


# --- the hold -------------------------------------------------------------------------------------------------------


@pytest.mark.requirement("R2")
async def test_a_reattach_never_takes_a_session_back_but_closes_with_4504(bench: Bench) -> None:
    """D3."""
    client = await bench.open()
    await take_over(bench)
    client.session.reattach("test")
    await bench.settle()
    assert client.close_code() == 4504
    live = await bench.live()
    assert live is not None
    assert live.connection == "f" * 32


@pytest.mark.requirement("R2")
async def test_a_session_that_the_store_gives_to_another_after_trouble_is_told_to_come_back(bench: Bench) -> None:
    """A failover can take an attach back, and the session is a past connection's again: 4504 would keep the client away
    for good, though nobody else has opened its session.
    """
    client = await bench.open()
    await take_over(bench)
    bench.node.hearing.unsubscribed("the primary is another")
    client.session.reattach("subscribed")
    await bench.settle()
    assert client.close_code() == 4005


@pytest.mark.requirement("R2")
async def test_a_session_whose_hold_an_attach_of_a_gone_connection_took_late_is_told_to_come_back(bench: Bench) -> None:
    """The connection to the store that carried it was given up; the server reads it after the next one's attach."""
    gone = bench.connect()
    bench.store.fail(calls=1)
    gone.say("hello", session="tab")
    await bench.settle()
    gone.hang_up()
    client = await bench.open()
    await take_over(bench)
    client.session.reattach("test")
    await bench.settle()
    assert client.close_code() == 4005


@pytest.mark.requirement("R2")
async def test_a_read_after_a_takeover_takes_nothing_and_closes_with_4504(bench: Bench) -> None:
    """D2."""
    client = await bench.open()
    await take_over(bench)
    await bench.publish()
    client.session.apply(moves.Woken())
    await bench.settle()
    assert client.close_code() == 4504
    assert client.events() == []
    assert await bench.pending() == []


@pytest.mark.requirement("R2")
async def test_a_missing_live_field_is_a_cause_to_attach_again_with_the_socket_open(bench: Bench) -> None:
    client = await bench.open()
    bench.store.lose_live(ALICE)
    (entry,) = await bench.publish()
    client.session.apply(moves.Woken())
    await bench.settle()
    assert client.close_code() is None
    assert client.events() == [(entry, 1)]
    assert await bench.live() is not None


@pytest.mark.requirement("R1")
async def test_a_heartbeat_finds_what_no_wake_up_told_of(bench: Bench) -> None:
    client = await bench.open()
    await bench.deafen()
    (entry,) = await bench.publish()
    assert client.events() == []
    await bench.pass_time(15_000)
    assert client.events() == [(entry, 1)]
    assert not bench.node.counters.reattaches


async def test_a_heartbeat_finds_a_missing_field(bench: Bench) -> None:
    client = await bench.open()
    bench.store.lose_live(ALICE)
    (entry,) = await bench.publish()
    await bench.pass_time(15_000)
    assert client.events() == [(entry, 1)]
    assert bench.node.counters.reattaches["missing"] == 1


@pytest.mark.requirement("R2")
async def test_a_takeover_of_which_no_message_came_shows_within_15_seconds(bench: Bench) -> None:
    """D17."""
    client = await bench.open()
    await take_over(bench)
    await bench.pass_time(15_000)
    assert client.close_code() == 4504


@pytest.mark.requirement("R2")
async def test_more_pending_than_in_flight_is_found_by_the_sweep_and_delivered(bench: Bench) -> None:
    """D1: somebody read with this session's fence, and the reply is lost."""
    client = await bench.open()
    fence = client.session.fence
    bench.node.hub.remove(client.session)
    entries = await bench.publish(2)
    bench.node.hub.add(client.session)
    await bench.store.read_new([ReadRequest(fence=fence, count=10)])
    await bench.pass_time(15_000)
    assert bench.node.counters.reattaches["sweep"] == 1
    assert client.events() == [(entry, 1) for entry in entries]


async def test_acks_that_are_stored_while_a_heartbeat_is_answered_are_no_cause_to_attach_again(bench: Bench) -> None:
    client = await bench.open()
    entries = await bench.publish(3)
    gates(bench).beating.clear()
    bench.node.keeper.beat(client.session)
    await bench.settle()
    client.say("ack", ids=entries)
    await bench.settle()
    gates(bench).beating.set()
    await bench.settle()
    assert await bench.pending() == []
    assert not bench.node.counters.reattaches


async def test_a_takeover_that_is_told_before_the_own_attach_is_answered_shows_at_once(bench: Bench) -> None:
    gates(bench).attaching.clear()
    client = bench.connect()
    client.say("hello", session="tab")
    await bench.settle()
    bench.node.hearing.displaced(ALICE, TAB, ConnectionId("f" * 32))
    gates(bench).attaching.set()
    await bench.settle()
    await take_over(bench)
    await bench.pass_time(100)
    assert client.close_code() == 4504


async def test_an_old_message_of_a_takeover_does_not_end_the_connection_that_has_the_session_now(
    bench: Bench,
) -> None:
    client = await bench.open()
    bench.node.hearing.displaced(ALICE, TAB, ConnectionId("f" * 32))
    await bench.settle()
    assert client.close_code() is None


@pytest.mark.requirement("R1")
async def test_a_page_that_an_attach_overtook_is_not_taken_for_the_new_ones(bench: Bench) -> None:
    first = await bench.open(window=4)
    entries = await bench.publish(4)
    first.hang_up()
    await bench.settle()
    client = await bench.open(window=2)
    assert client.events() == [(entry, 2) for entry in entries[:2]]
    # The page behind the first two is under way when the pending list is begun anew.
    gates(bench).paging.clear()
    client.say("ack", ids=entries[:1])
    await bench.settle()
    client.session.reattach("test")
    await bench.settle()
    assert client.session.attaches == 2
    gates(bench).paging.set()
    await bench.settle()
    client.say("ack", ids=entries[2:])
    await bench.settle()
    client.say("ack", ids=entries[2:])
    await bench.settle()
    assert await bench.pending() == entries[1:2]
    # The second is still held: it comes again when its time is over.
    client.alive()
    await bench.pass_time(37_000)
    assert client.events()[-1] == (entries[1], 3)


async def test_reattaching_twice_at_once_attaches_once(bench: Bench) -> None:
    client = await bench.open()
    client.session.reattach("test")
    client.session.reattach("test")
    await bench.settle()
    assert client.session.attaches == 2


@pytest.mark.requirement("R7")
async def test_an_open_session_is_told_of_a_reset_and_goes_on(bench: Bench) -> None:
    client = await bench.open()
    (entry,) = await bench.publish()
    client.say("ack", ids=[entry])
    await bench.settle()
    bench.store.flush()
    await bench.pass_time(15_000)
    assert [gap["reason"] for gap in client.of("gap")] == ["reset"]
    (new,) = await bench.publish()
    assert client.events()[1:] == [(new, 1)]
    assert client.ops().count("caught_up") == 1


# --- time -----------------------------------------------------------------------------------------------------------


@pytest.mark.requirement("R24")
async def test_a_client_that_answers_pings_is_kept_for_ten_quiet_minutes(bench: Bench) -> None:
    client = await bench.open()
    for _ in range(120):
        pings = client.socket.pings
        await bench.pass_time(5_000)
        if client.socket.pings > pings:
            client.alive()
    assert client.close_code() is None
    assert 29 <= client.socket.pings <= 31


@pytest.mark.requirement("R24")
@pytest.mark.parametrize("tier, silence_ms", [("free", 50_000), ("pro", 60_000), ("enterprise", 180_000)])
async def test_silence_is_4003_after_the_longer_of_the_tiers_time_and_two_and_a_half_heartbeats(
    bench: Bench, tier: str, silence_ms: int
) -> None:
    client = bench.connect(tier=tier)
    client.say("hello")
    await bench.settle()
    await bench.pass_time(silence_ms - 1_000)
    assert client.close_code() is None
    await bench.pass_time(9_000)
    assert client.close_code() == 4003


@pytest.mark.requirement("R24")
async def test_an_event_after_a_run_of_37_quiet_seconds_finds_the_connection_open(bench: Bench) -> None:
    client = await bench.open()
    await bench.pass_time(37_000)
    await bench.publish()
    assert len(client.events()) == 1


@pytest.mark.requirement("R23")
async def test_a_token_ends_its_connection_when_it_expires_and_a_refreshed_one_when_that_does(bench: Bench) -> None:
    start_ms = bench.clock.now_ms()
    first = bench.connect(expires_ms=start_ms + 10_000)
    second = bench.connect("bob", expires_ms=start_ms + 10_000)
    for client in (first, second):
        client.say("hello", session="tab")
    await bench.settle()
    second.say("refresh", token=make_token(user="bob", secret=SECRET.encode(), now_ms=start_ms, ttl_ms=25_000))
    assert second.of("refreshed") == [{"op": "refreshed", "token_expires_ms": start_ms + 25_000}]
    await bench.pass_time(9_900)
    assert first.close_code() is None
    await bench.pass_time(200)
    assert first.close_code() == 4004
    await bench.pass_time(14_800)
    assert second.close_code() is None
    await bench.pass_time(200)
    assert second.close_code() == 4004


@pytest.mark.requirement("R9")
async def test_a_client_that_owes_nothing_and_stands_still_is_4002_and_one_that_reads_slowly_is_kept(
    bench: Bench,
) -> None:
    still, slow = await bench.open("ann"), await bench.open("bob")
    for client in (still, slow):
        client.socket.buffered_bytes = 2_000_000
    for _ in range(5):
        still.socket.stalled_ms += 7_000
        slow.socket.stalled_ms = 7_000
        for client in (still, slow):
            client.alive()
        await bench.pass_time(7_000)
    await bench.pass_time(8_000)
    assert still.close_code() == 4002
    assert slow.close_code() is None


@pytest.mark.requirement("R9")
@pytest.mark.requirement("R3")
async def test_an_event_is_not_sent_again_while_its_first_copy_has_not_been_read(bench: Bench) -> None:
    client = await bench.open()
    (entry,) = await bench.publish()
    client.socket.buffered_bytes = 2_000_000
    for _ in range(10):
        client.alive()
        await bench.pass_time(20_000)
    assert client.events() == [(entry, 1)]
    client.socket.buffered_bytes = 0
    await bench.pass_time(2_000)
    assert client.events() == [(entry, 1), (entry, 2)]


@pytest.mark.requirement("R3")
async def test_a_node_that_stood_still_gives_its_clients_their_time_back(bench: Bench) -> None:
    """D23."""
    client = await bench.open()
    (entry,) = await bench.publish()
    bench.clock.advance(60_000)
    client.session.stalled(60_000)
    bench.node.clockwork.turn()
    await bench.settle()
    assert client.events() == [(entry, 1)]
    assert client.close_code() is None
    client.alive()
    await bench.pass_time(29_000)
    assert client.events() == [(entry, 1)]
    client.alive()
    await bench.pass_time(8_000)
    assert client.events() == [(entry, 1), (entry, 2)]


async def test_heartbeats_of_a_storm_of_sessions_are_spread(bench: Bench) -> None:
    clients = [await bench.open(f"u{number}") for number in range(50)]
    dues = {client.session.due_ms for client in clients}
    assert len(dues) > 40


# --- the client's rate ----------------------------------------------------------------------------------------------


@pytest.mark.requirement("R23")
async def test_frames_above_the_rate_are_held_and_nothing_is_read_until_they_may_be_handled(bench: Bench) -> None:
    client = await bench.open()
    for number in range(205):
        client.say("ping", ref=number)
    assert len(client.of("pong")) == 200
    assert not client.socket.reading
    assert client.session.dialogue.held == 5
    await bench.pass_time(1_100)
    assert [frame["ref"] for frame in client.of("pong")] == list(range(205))
    assert client.socket.reading


@pytest.mark.requirement("R23")
async def test_a_client_that_stays_above_its_rate_for_30_seconds_is_4006(bench: Bench) -> None:
    client = await bench.open()

    async def flood(ms: int) -> None:
        for _ in range(ms // 500):
            while client.socket.reading and client.close_code() is None:
                client.say("ping")
            await bench.pass_time(500)

    await flood(29_000)
    assert client.close_code() is None
    await flood(3_000)
    assert client.close_code() == 4006
    assert client.session.dialogue.held == 0


async def test_a_burst_now_and_then_is_no_offence(bench: Bench) -> None:
    client = await bench.open()
    for _ in range(5):
        for _ in range(210):
            client.say("ping")
        client.alive()
        await bench.pass_time(12_000)
    assert client.close_code() is None
    assert len(client.of("pong")) == 1_050


async def test_a_reattach_does_not_let_held_frames_through_before_their_time(bench: Bench) -> None:
    client = await bench.open()
    for number in range(205):
        client.say("ping", ref=number)
    client.session.reattach("test")
    await bench.settle()
    assert len(client.of("pong")) == 200


# --- what the store cannot take -------------------------------------------------------------------------------------


@pytest.mark.requirement("R2")
async def test_an_ack_is_answered_only_when_it_is_stored_and_told_to_be_late_after_30_seconds(bench: Bench) -> None:
    client = await bench.open()
    (entry,) = await bench.publish()
    bench.store.fail()
    client.say("ack", ids=[entry], ref="r")
    await bench.settle()
    assert client.of("acked") == []
    bench.clock.advance(30_001)
    await _cycles(bench)
    assert client.of("error") == [
        {
            "op": "error",
            "code": "store_unavailable",
            "message": "the ack is kept and not stored yet",
            "ref": "r",
        }
    ]
    bench.store.heal()
    await _cycles(bench, lambda: not bench.node.reader.is_busy)
    assert await bench.pending() == []
    assert client.of("acked") == []


async def _cycles(bench: Bench, done: Any = None) -> None:
    """Waits for the reader to try again, which it does every 100 ms of real time after a failure."""
    calls = bench.store.calls
    await until(done or (lambda: bench.store.calls >= calls + 3))
    await bench.settle()


def test_a_session_says_what_it_is() -> None:
    bench = Bench()
    client = BenchClient(bench, identity_of())
    assert repr(client.session) == "<Session unnamed hello None>"
