"""The command `eventbus-gateway serve` with real processes and a real server: ready, drained, refused, with workers."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from eventbus.clock import SystemClock
from eventbus.tokens import make_token
from tests.support.processes import Child, Processes
from tests.support.servers import NewServer, freeze, thaw
from tests.support.waiting import until

SECRET = "s" * 40
QUICK = {"EVENTBUS_READY_PROBE_MS": "100", "EVENTBUS_REDIS_TIMEOUT_MS": "500"}


@pytest.fixture
def secret_file(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_text(SECRET + "\n")
    return path


@dataclass
class Served:
    """A command that is ready."""

    child: Child
    node: str
    url: str
    admin: str

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    async def metrics(self) -> dict[tuple[str, tuple[str, ...]], float]:
        """What its admin port says: name and label values -> value."""
        async with httpx.AsyncClient() as client:
            text = (await client.get(f"{self.admin}/metrics")).text
        return {
            (sample.name, tuple(sample.labels.values())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    async def processes(self) -> dict[str, dict[str, Any]]:
        """The processes behind it, by node."""
        async with httpx.AsyncClient() as client:
            found = (await client.get(f"{self.admin}/healthz")).json()["processes"]
        return {one["node"]: one for one in found}

    async def all_ready(self) -> bool:
        return {one["state"] for one in (await self.processes()).values()} == {"ready"}

    async def status(self, path: str = "/readyz") -> int:
        """The status of a request on the port for clients; 0 when it refuses connections."""
        try:
            async with httpx.AsyncClient() as client:
                return (await client.get(f"{self.url}{path}")).status_code
        except httpx.ConnectError:
            return 0


async def serve(processes: Processes, url: str, secret: Path, *more: str, **env: str) -> Served:
    """Starts the command on free ports and waits until it is ready."""
    child = start(processes, url, secret, *more, **env)
    match = re.fullmatch(r"ready node=(\S+) url=(\S+) admin=(\S+)", await child.line(r"^ready "))
    assert match is not None
    return Served(child, *match.groups())


def start(processes: Processes, url: str, secret: Path, *more: str, **env: str) -> Child:
    words = ["--redis-url", url, "--port", "0", "--admin-port", "0", "--jwt-secret-file", str(secret)]
    return processes.gateway("serve", *words, *more, env={**QUICK, **env})


@asynccontextmanager
async def client(served: Served, user: str = "ada") -> AsyncIterator[tuple[ClientConnection, dict[str, Any]]]:
    """A session of its own on the node, and its welcome."""
    token = make_token(user=user, secret=SECRET.encode(), now_ms=SystemClock().now_ms())
    address = f"{served.url.replace('http', 'ws')}/v1/connect"
    async with connect(address, additional_headers={"Authorization": f"Bearer {token}"}, proxy=None) as opened:
        await opened.send(json.dumps({"op": "hello"}))
        welcome = json.loads(await opened.recv())
        assert welcome["op"] == "welcome", welcome
        yield opened, welcome


async def is_served(connection: ClientConnection) -> bool:
    """Whether the node behind a connection answers."""
    await connection.send('{"op":"ping","ref":"r"}')
    async with asyncio.timeout(5):
        while json.loads(await connection.recv())["op"] != "pong":
            pass
    return True


async def closed_with(connection: ClientConnection) -> tuple[list[str], int]:
    """The ops of the frames until the close, and its code."""
    ops: list[str] = []

    async def read() -> None:
        async with asyncio.timeout(10):
            while True:
                ops.append(json.loads(await connection.recv())["op"])

    with pytest.raises(ConnectionClosed) as closed:
        await read()
    assert closed.value.rcvd is not None
    return ops, closed.value.rcvd.code


# --- one node ---------------------------------------------------------------------------------------------------------
@pytest.mark.requirement("R10")
async def test_it_says_ready_serves_and_ends_with_0_after_a_drain(
    processes: Processes, server_url: str, secret_file: Path
) -> None:
    served = await serve(processes, server_url, secret_file, "--node", "n7")
    assert served.node == "n7"
    assert served.child.stdout.count("\n") == 1
    assert await served.status() == 200
    async with client(served) as (connection, welcome):
        assert welcome["node"] == "n7"
        served.child.terminate()
        ops, code = await closed_with(connection)
    assert "goaway" in ops
    assert code == 4001
    assert await served.child.wait() == 0
    assert served.child.stdout.count("\n") == 1


async def test_ctrl_c_drains_too(processes: Processes, server_url: str, secret_file: Path) -> None:
    served = await serve(processes, server_url, secret_file)
    served.child.interrupt()
    assert await served.child.wait() == 0
    assert "Traceback" not in served.child.stderr


async def test_a_second_signal_ends_it_at_once(processes: Processes, server_url: str, secret_file: Path) -> None:
    served = await serve(processes, server_url, secret_file, "--drain-ms", "60000")
    async with client(served) as (connection, _):
        connection.transport.pause_reading()  # a client that does not answer the close holds the drain up
        served.child.terminate()
        await served.child.line("drains")
        served.child.terminate()
        assert await served.child.wait(5_000) == 1
        connection.transport.abort()
    assert "Traceback" not in served.child.stderr


async def test_a_signal_ends_the_wait_for_a_store_that_is_not_there(processes: Processes, secret_file: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"redis://127.0.0.1:{closed.getsockname()[1]}/0"
        child = start(processes, url, secret_file, EVENTBUS_LOG_LEVEL="debug")
        await child.line("refused|unavailable|cannot|can not|Connect")
        child.terminate()
        assert await child.wait(5_000) == 0
    assert child.stdout == ""
    assert "Traceback" not in child.stderr


async def test_bad_settings_end_with_2_and_a_sentence(processes: Processes, secret_file: Path) -> None:
    child = start(processes, "redis://127.0.0.1:1/0", secret_file, EVENTBUS_ACK_TIMEOUT_MS="soon")
    assert await child.wait() == 2
    assert child.stdout == ""
    assert child.stderr.startswith("eventbus-gateway: EVENTBUS_ACK_TIMEOUT_MS is 'soon': it must be a whole number")
    assert child.stderr.count("\n") == 1


@pytest.mark.requirement("R29")
async def test_metrics_of_a_node_are_scraped_on_the_admin_port(
    processes: Processes, server_url: str, secret_file: Path
) -> None:
    served = await serve(processes, server_url, secret_file, "--node", "n")
    async with client(served), client(served, "bob"):
        figures = await served.metrics()
        assert figures["eventbus_connections", ()] == 2
        assert figures["eventbus_sessions", ()] == 2
        assert figures["eventbus_users", ()] == 2
        assert figures["eventbus_ready", ("n",)] == 1
        assert figures["eventbus_sessions_attached_total", ("new",)] == 2
        assert figures["eventbus_loop_lag_max_seconds", ("n",)] < 5
        assert "eventbus_worker_up" not in {name for name, _ in figures}


@pytest.mark.requirement("R30")
async def test_a_node_alone_that_is_not_ready_goes_on_answering(
    processes: Processes, new_server: NewServer, secret_file: Path
) -> None:
    server = new_server(appendonly=False)
    served = await serve(processes, server.url, secret_file)
    freeze(server.pid)
    await until(lambda: _status_is(served, 503), 10_000)
    figures = await served.metrics()
    assert figures["eventbus_ready", (served.node,)] == 0
    thaw(server.pid)
    await until(lambda: _status_is(served, 200), 10_000)


async def _status_is(served: Served, status: int) -> bool:
    return await served.status() == status


# --- several workers --------------------------------------------------------------------------------------------------
async def on_both(served: Served, stack: AsyncExitStack) -> dict[str, list[ClientConnection]]:
    """Connections on each of two workers; the kernel deals them out."""
    by_node: dict[str, list[ClientConnection]] = {}
    for number in range(64):
        connection, welcome = await stack.enter_async_context(client(served, f"u{number}"))
        by_node.setdefault(welcome["node"], []).append(connection)
        if number >= 7 and len(by_node) == 2:
            break
    return by_node


@pytest.mark.slow
@pytest.mark.requirement("R29")
async def test_two_workers_share_the_port_and_their_metrics_are_added(
    processes: Processes, server_url: str, secret_file: Path
) -> None:
    served = await serve(processes, server_url, secret_file, "--workers", "2", "--node", "n")
    assert served.node == "n"
    assert set(await served.processes()) == {"n-1", "n-2"}
    async with AsyncExitStack() as stack:
        by_node = await on_both(served, stack)
        assert set(by_node) == {"n-1", "n-2"}
        count = sum(len(connections) for connections in by_node.values())
        figures = await served.metrics()
        assert figures["eventbus_connections", ()] == count
        assert figures["eventbus_connections_opened_total", ()] == count
        assert figures["eventbus_ready", ("n-1",)] == figures["eventbus_ready", ("n-2",)] == 1
        assert figures["eventbus_worker_up", ("n-1",)] == figures["eventbus_worker_up", ("n-2",)] == 1
        assert figures["eventbus_cpu_seconds_total", ("n-2",)] > 0
        served.child.terminate()
        for connections in by_node.values():
            assert (await closed_with(connections[0]))[1] == 4001
    assert await served.child.wait() == 0
    assert served.child.stdout.count("\n") == 1


@pytest.mark.slow
@pytest.mark.requirement("R2")
async def test_a_killed_worker_is_replaced_while_the_other_goes_on_serving(
    processes: Processes, server_url: str, secret_file: Path
) -> None:
    served = await serve(processes, server_url, secret_file, "--workers", "2", "--node", "n")
    async with AsyncExitStack() as stack:
        by_node = await on_both(served, stack)
        await served.metrics()
        opened = sum(len(connections) for connections in by_node.values())
        victim = (await served.processes())["n-1"]["pid"]
        os.kill(victim, signal.SIGKILL)
        assert await is_served(by_node["n-2"][0])
        await served.child.line(r"worker n-1 was ended by SIGKILL; another starts in \d+ ms")
        await until(served.all_ready, 15_000)
        assert (await served.processes())["n-1"]["pid"] != victim
        assert await is_served(by_node["n-2"][0])
        assert set(await on_both(served, stack)) == {"n-1", "n-2"}
        figures = await served.metrics()
        assert figures["eventbus_worker_starts_total", ("n-1",)] == 2
        assert figures["eventbus_worker_starts_total", ("n-2",)] == 1
        assert figures["eventbus_connections_opened_total", ()] > opened
    served.child.terminate()
    assert await served.child.wait() == 0


@pytest.mark.slow
@pytest.mark.requirement("R30")
async def test_a_worker_that_is_not_ready_closes_its_port_and_opens_it_again(
    processes: Processes, new_server: NewServer, secret_file: Path
) -> None:
    server = new_server(appendonly=False)
    served = await serve(processes, server.url, secret_file, "--workers", "2")
    async with client(served) as (connection, _):
        freeze(server.pid)
        await until(lambda: _status_is(served, 0), 10_000)
        assert await is_served(connection)
        assert {one["state"] for one in (await served.processes()).values()} == {"not_ready"}
        thaw(server.pid)
        await until(served.all_ready, 10_000)
        assert await served.status() == 200
        assert await is_served(connection)


@pytest.mark.slow
async def test_workers_end_when_their_parent_was_killed_and_leave_the_port(
    processes: Processes, server_url: str, secret_file: Path
) -> None:
    served = await serve(processes, server_url, secret_file, "--workers", "2")
    pids = [one["pid"] for one in (await served.processes()).values()]
    os.kill(served.child.pid, signal.SIGKILL)
    await until(lambda: not any(_runs(pid) for pid in pids), 10_000)
    with socket.socket() as again:
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind(("127.0.0.1", served.port))


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
async def test_ctrl_c_in_a_terminal_reaches_all_processes_and_drains_each_once(
    processes: Processes, server_url: str, secret_file: Path
) -> None:
    served = await serve(processes, server_url, secret_file, "--workers", "2")
    os.killpg(served.child.pid, signal.SIGINT)
    assert await served.child.wait() == 0
    assert "Traceback" not in served.child.stderr
    assert served.child.stderr.count("the node drains") == 2


@pytest.mark.slow
async def test_a_service_manager_that_signals_every_process_gets_a_drain(
    processes: Processes, server_url: str, secret_file: Path
) -> None:
    served = await serve(processes, server_url, secret_file, "--workers", "2")
    async with client(served) as (connection, _):
        os.killpg(served.child.pid, signal.SIGTERM)
        ops, code = await closed_with(connection)
    assert ("goaway" in ops, code) == (True, 4001)
    assert await served.child.wait() == 0


@pytest.mark.slow
async def test_a_frozen_worker_hides_no_metrics_and_is_killed_by_the_second_signal(
    processes: Processes, server_url: str, secret_file: Path
) -> None:
    served = await serve(processes, server_url, secret_file, "--workers", "2", "--node", "n")
    frozen = (await served.processes())["n-2"]["pid"]
    freeze(frozen)
    figures = await served.metrics()
    assert figures["eventbus_worker_up", ("n-1",)] == 1
    assert figures["eventbus_worker_up", ("n-2",)] == 0
    served.child.terminate()
    await served.child.line("the node drains")
    served.child.terminate()
    assert await served.child.wait(5_000) == 1
    assert not _runs(frozen)


@pytest.mark.slow
async def test_workers_that_can_not_start_end_the_command_with_1(
    processes: Processes, server_url: str, secret_file: Path, tmp_path: Path
) -> None:
    """The parent finds its settings good; what each worker dies of is one of its own modules, which is not there."""
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "sitecustomize.py").write_text(
        "import sys\nif 'gateway.processes.worker' in sys.orig_argv:\n    sys.exit('no worker today')\n"
    )
    child = start(processes, server_url, secret_file, "--workers", "2", PYTHONPATH=f"{broken}{os.pathsep}{Path.cwd()}")
    assert await child.wait() == 1
    assert child.stdout == ""
    assert "5 times before it was ready" in child.stderr
