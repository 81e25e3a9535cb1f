"""What misbehaving clients, bursts and outages cost, measured on real processes: bounded, and nobody else pays.

docs/limits.md says what the bounds are.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import orjson
import pytest

from eventbus import Bus, Subscriber
from eventbus.clock import SystemClock
from eventbus.errors import CloseCode, EventBusError, StoreBusy
from eventbus.ids import UserId
from eventbus.publishing.publisher import QUEUE_BYTES
from eventbus.subscriber import Delivery
from eventbus.tokens import make_token
from tests.support.bench import Bench
from tests.support.load.world import SECRET, Clients, NewWorld, Node, Publishing, World
from tests.support.raw_websocket import client_frame, upgrade_head
from tests.support.stalls import Stalls
from tests.support.subscribing import background
from tests.support.waiting import until

pytestmark = pytest.mark.requirement("R9")

OTHERS = [f"user{number}" for number in range(10)]
WINDOW = 256


def resident_bytes(pid: int | str = "self") -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"no VmRSS of {pid}")


def unsent_bytes(port: int) -> list[int]:
    """What the kernel holds of each connection of a local port that was written and not taken by the other side."""
    found = []
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if int(fields[1].rpartition(":")[2], 16) == port and fields[3] == "01":
            found.append(int(fields[4].partition(":")[0], 16))
    return found


def token(user: str) -> str:
    return make_token(user=user, secret=SECRET.encode(), now_ms=SystemClock().now_ms(), ttl_ms=3_600_000)


@contextmanager
def stalled(node: Node, users: Sequence[str]) -> Iterator[list[socket.socket]]:
    """Connections that have read their `welcome` and read nothing more, with as little room as a kernel gives."""
    made = []
    try:
        for user in users:
            client = socket.socket()
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.settimeout(10)
            client.connect(("127.0.0.1", node.port))
            made.append(client)
            client.sendall(upgrade_head(authorization=f"Bearer {token(user)}"))
            client.sendall(client_frame(1, orjson.dumps({"op": "hello", "session": "tab", "window": WINDOW})))
            told = b""
            while b'"op":"caught_up"' not in told:
                told += client.recv(4096)
        yield made
    finally:
        for client in made:
            client.close()


def late_ms(publishing: Publishing, clients: Clients) -> list[int]:
    """How long each event took from the store to a client, the quickest first."""
    stamps = publishing.log.entries
    return sorted(
        sighting.time_ms - int(stamps[sighting.received.event].partition("-")[0])
        for seen in clients.log.sessions.values()
        for sighting in seen.deliveries
        if sighting.received.event in stamps and sighting.received.delivery == 1
    )


def assert_nobody_waited(waits_ms: Sequence[int], machine: Stalls) -> None:
    """Who waits for another's buffers waits for seconds. A machine that others use too is late by less than that, and
    by what it stood still.
    """
    lost_ms = 1_000 * machine.lost_s
    assert waits_ms[len(waits_ms) // 2] < 500 + lost_ms, (waits_ms[:: len(waits_ms) // 10], lost_ms)
    assert waits_ms[int(len(waits_ms) * 0.99)] < 2_000 + lost_ms, (waits_ms[-20:], lost_ms)


async def delivered(world: World, clients: Clients, count: int) -> None:
    await world.wait(
        lambda: sum(len(seen.events) for seen in clients.log.read().sessions.values()) >= count,
        30_000,
        lambda: f"{count} events: {sum(len(seen.events) for seen in clients.log.sessions.values())}",
    )


@pytest.mark.slow
@pytest.mark.parametrize("event_bytes, events", [(300, 8_000), pytest.param(10_000, 2_000, marks=pytest.mark.soak)])
async def test_a_client_that_stalls_costs_its_window_at_most_and_nobody_waits_for_it(
    new_world: NewWorld, event_bytes: int, events: int
) -> None:
    """What an hour brings, in seconds, for 20 clients that read nothing. Measured: 450 KB each of small events (of
    about 2 KB in memory, with all three encodings), 350 KB of large ones, and 16 KB in the kernel.
    """
    world = new_world()
    (node,) = await world.start_nodes("one")
    others = await world.start_clients(OTHERS)
    await world.start_publisher(OTHERS, 200)
    await world.published()
    users = [f"stalled{number}" for number in range(20)]
    with stalled(node, users), Stalls() as machine:
        before = resident_bytes(node.child.pid)
        await world.start_publisher(users, events, bytes=event_bytes, under_way=100)
        beside = await world.start_publisher(OTHERS, 1_000, rate=300, first=200)
        await world.published()
        await delivered(world, others, 1_200)
        each = (resident_bytes(node.child.pid) - before) // len(users)
        assert each < 700_000, f"{each} bytes for each of {len(users)} stalled clients"
        in_kernel = sorted(unsent_bytes(node.port))
        assert len(in_kernel) >= len(users)
        assert in_kernel[-1] < 40_000, in_kernel
        waits_ms = late_ms(beside, others)
        assert len(waits_ms) == 1_000
        assert_nobody_waited(waits_ms, machine)
        # Nothing was read for them beyond what was on its way: it waits in Redis, and comes.
        pending = await world.redis.xpending(world.keys.user(UserId(users[0])).stream, "tab")
        assert 0 < pending["pending"] <= WINDOW
    await world.start_clients(users)
    world.assert_good(await world.settled())


@pytest.mark.requirement("R3")
async def test_a_stalled_client_is_closed_after_its_time_and_costs_nothing_from_then_on() -> None:
    """An hour, by a clock that the test moves. It answers no ping either: pings stand behind what it does not read."""
    async with Bench() as bench:
        client = await bench.open()
        client.socket.writable = False
        passed_ms = 0
        while client.socket.closed is None and passed_ms < 3_600_000:
            await bench.publish()
            await bench.pass_time(1_000)
            passed_ms += 1_000
        # Two and a half heartbeats of 20 s: longer than the 40 s of its tier.
        assert client.close_code() == CloseCode.HEARTBEAT_TIMEOUT
        assert 50_000 < passed_ms < 62_000
        client.hang_up()
        await bench.settle()
        assert (client.session.held_bytes, len(bench.node.hub), bench.node.reader.is_busy) == (0, 0, False)


async def test_a_client_that_answers_pings_and_reads_nothing_costs_what_its_buffers_hold_for_an_hour() -> None:
    """No client of ours can do that. It costs a backlog, and events of others who share its user do not wait for it."""
    async with Bench() as bench:
        client = await bench.open()
        other = await bench.open(session="phone")
        client.socket.writable = False
        held = []
        for _ in range(360):
            await bench.publish(data={"text": "x" * 200})
            await bench.pass_time(10_000, step_ms=10_000)
            client.alive()
            other.say("ack", upto=other.events()[-1][0])
            client.socket.buffered_bytes = sum(len(frame) for frame in client.socket.raw)
            held.append(client.session.held_bytes)
        assert client.socket.closed is None
        assert max(held) < 10_000
        assert len(other.events()) == 360
        # It reads again.
        client.socket.writable = True
        client.session.on_writable()
        await bench.settle()
        while client.session.delivery.in_flight:
            client.say("ack", upto=client.events()[-1][0])
            await bench.settle()
        assert len({entry for entry, _ in client.events()}) == 360


@pytest.mark.slow
@pytest.mark.requirement("R33")
async def test_10_000_unread_events_are_attached_in_pages_and_others_do_not_wait(new_world: NewWorld) -> None:
    """Each comes once and in order; the node never holds more than a window of them. Measured: 3 MB more."""
    world = new_world(max_stream_entries=20_000)
    (node,) = await world.start_nodes("one")
    others = await world.start_clients(OTHERS)
    away = await world.start_clients(["ann"])
    await world.start_publisher([*OTHERS, "ann"], 220)
    await world.settled()
    away.child.kill()
    await world.start_publisher(["ann"], 10_000, first=1_000, bytes=300)
    await world.published()
    before = resident_bytes(node.child.pid)
    with Stalls() as machine:
        beside = await world.start_publisher(OTHERS, 1_000, rate=300, first=10_000)
        await world.published_at_least(beside, 100)
        back = await world.start_clients(["ann"])
        report = await world.settled()
    assert len(back.seen("ann").events) == 10_000
    world.assert_good(report)
    assert report.repeated == 0
    grown = resident_bytes(node.child.pid) - before
    assert grown < 12_000_000, f"the node has grown by {grown} bytes"
    assert_nobody_waited(late_ms(beside, others), machine)


@pytest.mark.soak
@pytest.mark.requirement("R33")
async def test_a_burst_for_1_000_users_at_once_is_delivered_whole_in_bounded_memory(new_world: NewWorld) -> None:
    world = new_world()
    (node,) = await world.start_nodes("one")
    users = [f"burst{number}" for number in range(1_000)]
    # A busy machine is no reason for a client to give its connection up.
    clients = await world.start_clients(users, silence_ms=20_000, hello_ms=20_000)
    before = resident_bytes(node.child.pid)
    await world.start_publisher(users, 10_000, under_way=5_000)
    await world.published()
    report = await world.settled(60_000)
    world.assert_good(report)
    assert not clients.closes
    grown = resident_bytes(node.child.pid) - before
    # A thousand sessions that have delivered weigh some kilobytes each; 10,000 events at once would be 20 MB.
    assert grown < 30_000_000, f"the node has grown by {grown} bytes"


async def test_a_publisher_whose_server_is_away_holds_a_bounded_number_of_bytes_and_refuses_beyond() -> None:
    """The error says what waits, what may, and that nothing of this was sent."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens there
        url = f"redis://127.0.0.1:{taken.getsockname()[1]}/0"
        text = "x" * 50_000
        async with Bus(url) as bus:
            before = resident_bytes()
            publishes = [
                asyncio.create_task(bus.publish(user=f"user{number % 50}", type="note", data={"text": text}))
                for number in range(2_500)
            ]
            await until(lambda: sum(task.done() for task in publishes) + bus.statistics().queued_events == 2_500)
            waiting = [task for task in publishes if not task.done()]
            refused = [task.exception() for task in publishes if task.done()]
            assert refused
            assert {type(error) for error in refused} == {StoreBusy}
            assert "nothing of this was sent" in str(refused[0])
            statistics = bus.statistics()
            assert QUEUE_BYTES - 60_000 < statistics.queued_bytes <= QUEUE_BYTES
            assert statistics.queued_events == len(waiting)
            grown = resident_bytes() - before
            assert grown < 2 * QUEUE_BYTES, f"{grown} bytes for {statistics.queued_bytes} that wait"
            for task in publishes:
                task.cancel()
            await asyncio.gather(*publishes, return_exceptions=True)
            # What its callers have left makes room, as soon as somebody needs it.
            assert type(await _outcome(bus)) is not StoreBusy


async def _outcome(bus: Bus) -> BaseException | None:
    try:
        await bus.publish(user="ann", type="note", data={}, deadline_ms=100)
    except EventBusError as error:
        return error
    return None


@pytest.mark.soak
@pytest.mark.requirement("R8")
async def test_a_subscriber_whose_application_hangs_holds_its_window_and_then_has_everything(
    new_world: NewWorld,
) -> None:
    world = new_world()
    (node,) = await world.start_nodes("one")
    got: list[Delivery] = []
    goes_on = asyncio.Event()
    hangs = asyncio.Event()

    async def consume() -> None:
        async for delivery in subscriber:
            got.append(delivery)
            if len(got) == 1:
                hangs.set()
                await goes_on.wait()

    async with (
        Subscriber(f"http://{node.address}", token("ann"), session="desk", start="earliest") as subscriber,
        background(consume),
    ):
        before = resident_bytes()
        publishing = await world.start_publisher(["ann"], 3_000, bytes=5_000)
        await hangs.wait()
        await world.published()
        stream = world.keys.user(UserId("ann")).stream

        async def holds() -> bool:
            return bool((await world.redis.xpending(stream, "desk"))["pending"])

        await world.wait_async(holds, 10_000, "something is pending")
        assert (await world.redis.xpending(stream, "desk"))["pending"] <= WINDOW
        grown = resident_bytes() - before
        assert grown < 10_000_000, f"{grown} bytes of the 15 MB that wait"
        goes_on.set()
        await world.wait(lambda: len(got) >= 3_000, 30_000, lambda: f"{len(got)} came")
    assert [delivery.event.id for delivery in got] == publishing.log.answered["ann"]
