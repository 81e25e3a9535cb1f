"""R9, R23, R25: who only wants to harm costs a node a bounded amount, gives it back, and disturbs nobody."""

from __future__ import annotations

import asyncio
import socket
import sys
from contextlib import AsyncExitStack
from pathlib import Path

import httpx
import pytest

from tests.integration.test_serve_command import SECRET as SERVED_SECRET
from tests.integration.test_serve_command import Served, client, is_served
from tests.support.garbage import KINDS, Attack, descriptors, resident_bytes
from tests.support.load.world import NewWorld, Node, World
from tests.support.processes import Processes
from tests.support.raw_websocket import RawClient, connected
from tests.support.stalls import within
from tests.support.waiting import until

pytestmark = [
    pytest.mark.requirement("R9"),
    pytest.mark.requirement("R23"),
    pytest.mark.requirement("R25"),
    pytest.mark.timeout(120),
    pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc"),
]

USERS = [f"user{number}" for number in range(20)]
MIB = 1024 * 1024


async def _back_to(node: Node, before: int, timeout_ms: int = 20_000) -> None:
    """Waits until a node has as many descriptors as before, but for a few of the machine's own."""
    pid = node.child.pid
    await until(lambda: descriptors(pid) <= before + 3, timeout_ms, lambda: f"{descriptors(pid)}, before {before}")


async def _garbage(new_world: NewWorld, first: int, count: int, at_a_time: int, seconds: int) -> None:
    """Attacks a node that has clients to serve: nobody is disturbed, and what the attack took is given back."""
    world: World = new_world(connections_per_address=0)
    (node,) = await world.start_nodes("one")
    victims = await world.start_clients(USERS, silence_ms=20_000, hello_ms=20_000)
    before = descriptors(node.child.pid)
    attack = Attack(node.port)
    # What a process takes for the first time (buffers, code) it keeps; the rest of the attack must add nothing.
    await attack.run(first, at_a_time)
    await _back_to(node, before)
    warm_bytes = resident_bytes(node.child.pid)

    publishing = await world.start_publisher(USERS, 50 * seconds, rate=50)
    ready: list[str] = []

    async def look() -> None:
        async with httpx.AsyncClient(base_url=f"http://{node.address}", timeout=10) as http:
            while True:
                answer = await http.get("/readyz")
                ready.append("" if answer.status_code == 200 else answer.text)
                await asyncio.sleep(0.5)  # real time: how a load balancer looks

    looking = asyncio.create_task(look())
    try:
        await attack.run(count, at_a_time)
    finally:
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)
    report = await world.settled(60_000)

    world.assert_good(report)
    assert report.repeated == 0
    assert publishing.log.read().count == 50 * seconds
    assert not victims.closes, "a client was disturbed"
    assert len(ready) >= 2
    assert set(ready) == {""}, "the attack took the node out of the load balancer"
    assert attack.ends.total() == first + count
    assert set(attack.ends) <= {"hung_up", "held"}, f"the port stayed open: {attack.ends}"
    async with connected(node.port) as raw:  # a busy node hangs up later than those were held
        raw.write(KINDS["a long frame"]())
        await raw.read_all()
    await _back_to(node, before)
    grown = resident_bytes(node.child.pid) - warm_bytes
    assert grown < 16 * MIB, f"{grown} bytes for {count} connections, which have all gone"
    assert "Traceback" not in node.child.stderr


@pytest.mark.slow
async def test_thousands_of_garbage_connections_disturb_nobody_and_leave_nothing(new_world: NewWorld) -> None:
    await _garbage(new_world, 1_000, 3_000, 200, 8)


@pytest.mark.soak
@pytest.mark.timeout(1_200)
async def test_a_hundred_thousand_garbage_connections_disturb_nobody_and_leave_nothing(new_world: NewWorld) -> None:
    await _garbage(new_world, 3_000, 97_000, 1_000, 60)


@pytest.mark.slow
async def test_slow_requests_take_the_places_of_slow_requests_and_of_nobody_else(new_world: NewWorld) -> None:
    world: World = new_world(max_http_connections=100, connections_per_address=0)
    (node,) = await world.start_nodes("one")
    victims = await world.start_clients(USERS, silence_ms=20_000, hello_ms=20_000)
    await world.start_publisher(USERS, 400, rate=100)
    before = descriptors(node.child.pid)
    most = 0
    async with AsyncExitStack() as stack:
        slow: list[RawClient] = []
        for _ in range(600):
            raw = await stack.enter_async_context(connected(node.port))
            raw.write(b"GET /v1/events HTTP/1.1\r\nHost: x\r\n")
            slow.append(raw)
        for number in range(30):
            for raw in slow:
                if not raw.writer.transport.is_closing():
                    raw.write(b"X-%d: y\r\n" % number)
            most = max(most, descriptors(node.child.pid))
            async with within(2), httpx.AsyncClient(base_url=f"http://{node.address}", timeout=20) as http:
                assert (await http.get("/healthz")).status_code == 200
    assert most <= before + 100 + 30, "a bounded number of those who are slow, and a few who come and go"
    await _back_to(node, before)
    report = await world.settled()
    world.assert_good(report)
    assert not victims.closes


def _flood(port: int, count: int) -> list[socket.socket]:
    return [socket.create_connection(("127.0.0.1", port)) for _ in range(count)]


@pytest.mark.slow
async def test_a_node_without_a_descriptor_left_serves_whom_it_has_and_takes_new_ones_when_the_flood_is_over(
    processes: Processes, server_url: str, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_text(SERVED_SECRET)
    words = ["--redis-url", server_url, "--port", "0", "--admin-port", "0", "--jwt-secret-file", str(secret)]
    gateway = [sys.executable, "-m", "gateway", "serve", *words, "--node", "few", "--hello-timeout-ms", "60000"]
    child = processes.start("prlimit", "--nofile=120:120", *gateway, name="few", env={"EVENTBUS_LOG_LEVEL": "warning"})
    line = await child.line(r"^ready ")
    served = Served(child, "few", line.split("url=")[1].split()[0], line.split("admin=")[1].split()[0])
    async with client(served) as (connection, _):
        async with AsyncExitStack() as stack:
            for flooding in await asyncio.to_thread(_flood, served.port, 300):
                stack.callback(flooding.close)
            await until(lambda: descriptors(child.pid) >= 115)
            for _ in range(5):
                assert await is_served(connection)
        await until(lambda: descriptors(child.pid) < 60)
        async with client(served, "bob") as (other, _):
            assert await is_served(other)
        assert await is_served(connection)
    assert child.running
    assert child.stderr.count("\n") < 200, "an attack does not write the log full"
