"""`eventbus-gateway dev`: starts from nothing, guards its buttons, and leaves nothing behind."""

from __future__ import annotations

import json
import re
import socket
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from tests.support.processes import Child, Processes
from tests.support.waiting import until

_PID = re.compile(r"\bpid (\d+)")
_TOKEN = re.compile(r'name="control-token" content="([^"]+)"')


async def start(processes: Processes, data: Path, *options: str) -> tuple[Child, str]:
    child = processes.gateway("dev", "--data-dir", data, "--no-open", *options)
    line = await child.line(r"^Open http://")
    await child.line(r"^Ctrl-C stops everything")
    return child, line.removeprefix("Open ")


def pids(child: Child) -> list[int]:
    found = [int(pid) for pid in _PID.findall(child.stdout)]
    assert len(found) == 4  # two nodes, the agent, the server
    return found


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(timeout=20, trust_env=False) as made:
        yield made


async def control_headers(client: httpx.AsyncClient, url: str) -> dict[str, str]:
    found = _TOKEN.search((await client.get(url)).text)
    assert found is not None
    return {"X-Demo-Token": found[1]}


@pytest.mark.slow
async def test_ctrl_c_ends_everything_and_the_data_is_there_at_the_next_start(
    processes: Processes, tmp_path: Path, client: httpx.AsyncClient
) -> None:
    data = tmp_path / "data"
    first, url = await start(processes, data, "--port", "0", "--run", "Where is the cat?")
    log = data / "published.jsonl"
    await until(lambda: log.read_bytes().count(b"\n") >= 3, 10_000, "the run has begun")
    started = pids(first)
    first.interrupt()
    assert await first.wait() == 0
    assert not [pid for pid in started if alive(pid)]
    # The run was told that it ends, while the server still took its last event.
    *published, last = (json.loads(line) for line in log.read_text().splitlines())
    assert last["ended"] == "cancelled"
    assert stat.S_IMODE(data.stat().st_mode) == 0o700
    assert stat.S_IMODE((data / "jwt-secret").stat().st_mode) == 0o600

    second, url = await start(processes, data, "--port", "0", "--nodes", "2")
    headers = await control_headers(client, url)
    token = (await client.post(f"{url}/demo/token", headers=headers)).json()["token"]
    history = await client.get(f"{url}/v1/events", headers={"Authorization": f"Bearer {token}"})
    assert [item["id"] for item in history.json()["events"]] == [line["entry"] for line in published]
    second.terminate()
    assert await second.wait() == 0


@pytest.mark.slow
async def test_nothing_outlives_a_kill_of_the_command(processes: Processes, tmp_path: Path) -> None:
    child, _ = await start(processes, tmp_path / "data", "--port", "0")
    started = pids(child)
    child.kill()
    await until(lambda: not [pid for pid in started if alive(pid)], 10_000, "all processes are gone")
    # And the data can be used at once.
    again, _ = await start(processes, tmp_path / "data", "--port", "0")
    again.interrupt()
    assert await again.wait() == 0


@pytest.mark.slow
async def test_only_the_page_itself_can_press_its_buttons(
    processes: Processes, tmp_path: Path, client: httpx.AsyncClient
) -> None:
    child, url = await start(processes, tmp_path / "data", "--port", "0", "--nodes", "1")
    page = await client.get(url)
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    headers = await control_headers(client, url)
    kill = f"{url}/demo/nodes/node-1/kill"
    assert (await client.post(kill)).status_code == 403
    assert (await client.post(kill, headers={"X-Demo-Token": "guessed"})).status_code == 403
    assert (await client.get(f"{url}/demo/state")).status_code == 403
    # A name of another site that was made to point to this machine.
    assert (await client.get(url, headers={"Host": "evil.example"})).status_code == 400
    assert (await client.post(kill, headers={**headers, "Host": "evil.example"})).status_code == 400
    assert (await client.get(f"{url}/page/../../control.py")).status_code == 404
    assert (await client.get(f"{url}/page/..%2fcontrol.py")).status_code == 404

    too_much = await client.post(f"{url}/demo/files?name=a", headers=headers, content=b"a" * (1024 * 1024 + 1))
    assert (too_much.status_code, too_much.json()["error"]["code"]) == (413, "too_large")
    named = await client.post(f"{url}/demo/files?name=../../etc/pass%20wd.txt", headers=headers, content=b"a text")
    assert (named.status_code, named.json()["name"]) == (201, "pass wd.txt")
    bad = await client.post(f"{url}/demo/runs", headers=headers, json={"file": "garden.txt", "question": " "})
    assert (bad.status_code, bad.json()["error"]["code"]) == (400, "bad_question")
    unknown = await client.post(f"{url}/demo/runs", headers=headers, json={"file": "/etc/passwd", "question": "?"})
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "no_file")

    assert (await client.post(kill, headers=headers)).status_code == 200
    assert (await client.post(kill, headers=headers)).status_code == 409
    state = (await client.get(f"{url}/demo/state", headers=headers)).json()
    assert [(node["state"], node["ended"]) for node in state["nodes"]] == [("ended", "killed by SIGKILL")]
    child.interrupt()
    assert await child.wait() == 0


@pytest.mark.slow
@pytest.mark.requirement("R16")
async def test_an_agent_that_is_killed_comes_back_and_a_node_ends_the_run_that_it_left(
    processes: Processes, tmp_path: Path, client: httpx.AsyncClient
) -> None:
    data = tmp_path / "data"
    child, url = await start(processes, data, "--port", "0", "--nodes", "1", "--run", "Where is the cat?")
    headers = await control_headers(client, url)
    log = data / "published.jsonl"
    await until(lambda: log.read_bytes().count(b"\n") >= 2, 10_000, "the run has begun")
    before = (await client.get(f"{url}/demo/state", headers=headers)).json()["agent"]["pid"]
    assert (await client.post(f"{url}/demo/agent/kill")).status_code == 403
    assert (await client.post(f"{url}/demo/agent/kill", headers=headers)).json() == {"killed": before}

    async def pid_now() -> int:
        state: dict[str, int | str] = (await client.get(f"{url}/demo/state", headers=headers)).json()["agent"]
        return int(state["pid"]) if state["state"] == "ready" else before

    async def last_event() -> dict[str, object]:
        token = (await client.post(f"{url}/demo/token", headers=headers)).json()["token"]
        history = await client.get(f"{url}/v1/events", headers={"Authorization": f"Bearer {token}"})
        event: dict[str, object] = history.json()["events"][-1]["event"]
        return event

    async def has_ended() -> bool:
        return (await last_event())["type"] == "agent_completed"

    await until(has_ended, 15_000, "a node has ended the run after its lease")
    assert (await last_event())["data"] == {"outcome": "failed", "error": "the agent stopped before it was done"}
    assert b"ended" not in log.read_bytes()
    assert await pid_now() != before
    child.interrupt()
    assert await child.wait() == 0


async def test_a_port_that_was_asked_for_and_is_taken_is_said_so(processes: Processes, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        child = processes.gateway("dev", "--data-dir", tmp_path / "data", "--no-open", "--port", str(port))
        assert await child.wait() == 2
        assert "is taken" in child.stderr
        assert "Traceback" not in child.stderr


@pytest.mark.slow
async def test_a_data_directory_in_use_is_refused_in_a_sentence(processes: Processes, tmp_path: Path) -> None:
    first, _ = await start(processes, tmp_path / "data", "--port", "0", "--nodes", "1")
    second = processes.gateway("dev", "--data-dir", tmp_path / "data", "--no-open", "--port", "0")
    assert await second.wait() == 2
    assert "is in use by another server" in second.stderr
    first.interrupt()
    assert await first.wait() == 0


@pytest.mark.slow
async def test_without_any_server_one_sentence_says_what_to_install(processes: Processes, tmp_path: Path) -> None:
    call = (
        "import eventbus.embedded.programs as programs; programs.find_servers = lambda path=None: []\n"
        "from gateway.__main__ import main; main()"
    )
    child = processes.python("-c", call, "dev", "--data-dir", tmp_path / "data", "--no-open")
    assert await child.wait() == 2
    assert child.stderr.count("\n") == 1
    assert "eventbus[local]" in child.stderr
    assert "redis-server" in child.stderr
