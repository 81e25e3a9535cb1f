"""The test support can fail: leak checks see leaks, a skip is a failure where it must be, processes are reaped."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from pathlib import Path

import pytest
import redis

from tests.support import needs
from tests.support.leaks import check_keys, endless_keys, leaked_descriptors, leaked_tasks, open_descriptors
from tests.support.ports import free_port
from tests.support.processes import ROOT, Processes
from tests.support.stalls import Stalls, within
from tests.support.waiting import until, until_blocking


async def test_a_task_left_running_is_seen() -> None:
    async with asyncio.TaskGroup() as group:
        task = group.create_task(asyncio.Event().wait(), name="left-over")
        leaked = await leaked_tasks()
        task.cancel()
    assert len(leaked) == 1
    assert leaked[0].startswith("left-over")
    assert await leaked_tasks() == []


def test_a_socket_left_open_is_seen_with_its_address() -> None:
    before = open_descriptors()
    with socket.create_server(("127.0.0.1", 0)) as left_open:
        leaked = leaked_descriptors(before)
        port = left_open.getsockname()[1]
    assert len(leaked) == 1
    assert str(port) in leaked[0]
    assert leaked_descriptors(before) == []


def test_a_key_without_a_ttl_is_seen(server_url: str) -> None:
    with redis.Redis.from_url(server_url) as client:
        client.set("eb:{1}:s:ann", "x")
        client.set("eb:{1}:l:ann", "x", px=100_000)
        client.set("eb:{1}:e", "x")
        client.set("eb:{1}:due", "x")
        client.set("somebody:elses", "x")
        assert endless_keys(client) == [b"eb:{1}:s:ann"]
        with pytest.raises(AssertionError, match=r"keys without a TTL: eb:\{1\}:s:ann"):
            check_keys(server_url)
        client.delete("eb:{1}:s:ann")


def test_each_test_begins_with_an_empty_server(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        assert client.dbsize() == 0
        client.set("left:over", "x")


def test_each_test_begins_with_an_empty_server_also_the_second(redis_url: str) -> None:
    test_each_test_begins_with_an_empty_server(redis_url)


async def test_waiting_returns_the_value_and_tells_the_last_one_when_it_was_in_vain() -> None:
    assert await until(lambda: 7) == 7
    assert until_blocking(lambda: "x") == "x"

    async def asked() -> int:
        return 0

    with pytest.raises(AssertionError, match=r"not within 20 ms: rain \(last value: 0\)"):
        await until(asked, 20, "rain")
    with pytest.raises(AssertionError, match=r"not within 20 ms: snow \(last value: None\)"):
        until_blocking(lambda: None, 20, lambda: "snow")


_TEST_FILE = """
import pytest

def test_passes():
    pass

def test_skips():
    pytest.skip("needs the package nonsense")

@pytest.mark.skip(reason="no time")
def test_is_skipped():
    pass

@pytest.mark.xfail(reason="known")
def test_fails_as_known():
    assert False
"""
_MODULE = 'import pytest\npytest.skip("needs the package elsewhere", allow_module_level=True)\n'


async def _pytest(processes: Processes, directory: Path, text: str, value: str | None) -> tuple[int, str]:
    """Runs pytest on one file under the project's settings; returns its exit code and output."""
    (directory / "test_some.py").write_text(text)
    options = ["-q", "-p", "tests.conftest", "-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml")]
    env = {} if value is None else {"EVENTBUS_TEST_NO_SKIP": value}
    run = processes.python("-m", "pytest", *options, "--rootdir", directory, directory, env=env)
    return await run.wait(timeout_ms=90_000), run.stdout


async def test_a_skip_is_a_failure_where_everything_is_installed(tmp_path: Path, processes: Processes) -> None:
    code, output = await _pytest(processes, tmp_path, _TEST_FILE, "1")
    assert code == 1
    assert "1 failed, 1 passed, 1 xfailed, 1 error" in output
    assert "needs the package nonsense" in output
    assert "no time" in output


async def test_a_skipped_module_is_a_failure_where_everything_is_installed(
    tmp_path: Path, processes: Processes
) -> None:
    code, output = await _pytest(processes, tmp_path, _MODULE, "1")
    assert code != 0
    assert "needs the package elsewhere" in output
    assert "1 error" in output


@pytest.mark.parametrize("value", [None, "0", ""])
async def test_a_skip_is_a_skip_elsewhere(tmp_path: Path, processes: Processes, value: str | None) -> None:
    code, output = await _pytest(processes, tmp_path, _TEST_FILE, value)
    assert code == 0
    assert "1 passed, 2 skipped, 1 xfailed" in output


def test_a_missing_program_is_named_by_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(needs.PACKAGES, "no-such-program", "no-such-package")
    with pytest.raises(pytest.skip.Exception, match="needs the package no-such-package"):
        needs.program("no-such-program")


async def test_a_childs_output_and_end_can_be_waited_for(processes: Processes) -> None:
    child = processes.python("-c", "import sys; print('ready at 7'); print('oh', file=sys.stderr); sys.exit(3)")
    assert await child.line(r"^ready") == "ready at 7"
    assert await child.wait() == 3
    assert (child.stdout, child.stderr) == ("ready at 7\n", "oh\n")
    with pytest.raises(AssertionError, match="ended before it printed 'never'"):
        await child.line("never")


async def test_the_port_of_a_server_that_comes_back_is_looked_for_by_nobody_else(processes: Processes) -> None:
    """It may be dead just now, and free for whoever asks: another test of this process, or another process."""
    script = "from tests.support.ports import free_port; print(*(free_port() for _ in range(100)))"
    children = [processes.python("-c", script) for _ in range(2)]
    given = [free_port() for _ in range(100)]
    for child in children:
        assert await child.wait() == 0, child.stderr
        given += map(int, child.stdout.split())
    own = set(given[:100])
    assert len(own) == 100
    assert not own & set(given[100:])


async def test_a_child_sees_no_settings_but_those_given(processes: Processes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVENTBUS_REDIS_URL", "redis://elsewhere")
    child = processes.python(
        "-c", "import os; print(sorted(k for k in os.environ if 'EVENTBUS' in k))", env={"EVENTBUS_NAMESPACE": "x"}
    )
    await child.wait()
    assert child.stdout == "['EVENTBUS_NAMESPACE']\n"


async def test_children_are_reaped_frozen_or_not_with_their_own_children(tmp_path: Path) -> None:
    processes = Processes(tmp_path)
    script = (
        "import subprocess as s, time; p = s.Popen(['sleep', '60']); print('ready', p.pid, flush=True); time.sleep(60)"
    )
    frozen, running = (processes.python("-c", script) for _ in range(2))
    pids = [child.pid for child in (frozen, running)]
    for child in (frozen, running):
        pids.append(int((await child.line("ready")).split()[1]))
    frozen.freeze()
    assert frozen.running
    processes.reap()

    def gone(pid: int) -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except FileNotFoundError:
            return True

    await until(lambda: all(map(gone, pids)), message="the processes end")
    with pytest.raises(ChildProcessError):
        os.waitpid(pids[0], os.WNOHANG)


class _Looks:
    """A clock that shows these seconds, one at a look; then the watch is over."""

    def __init__(self, *seconds: float) -> None:
        self._seconds = list(seconds)

    def now(self) -> float:
        return self._seconds.pop(0) if len(self._seconds) > 1 else self._seconds[0]

    def over(self, _pause_s: float) -> bool:
        return len(self._seconds) == 1


def test_the_longest_time_for_which_the_process_stood_still_is_told() -> None:
    looks = _Looks(0.0, 0.0, 0.5, 1.0, 3.5, 4.0, 4.0)
    stalls = Stalls(look_s=0.5, now=looks.now, pause=looks.over)
    stalls.watch()
    assert stalls.standing_s == 2.0
    assert stalls.lost_s >= 2.0


def test_a_process_that_stands_still_now_has_lost_that_too() -> None:
    looks = _Looks(0.0, 0.0, 7.5)
    stalls = Stalls(look_s=0.5, now=looks.now, pause=looks.over)
    stalls.watch()
    assert stalls.standing_s == 7.0


def test_a_loop_that_is_held_up_is_no_stall_of_the_machine() -> None:
    """The thread that looks goes on: what a product's own call takes counts against the product."""
    looked = threading.Semaphore(0)

    def pause(_pause_s: float) -> bool:
        looked.release()
        return over.wait(0.001)

    over = threading.Event()
    with Stalls(pause=pause):
        for _ in range(5):  # this thread does nothing else, and the loop of a test runs in it
            assert looked.acquire(timeout=10)
        over.set()


def test_what_comes_after_the_watch_is_no_stall() -> None:
    looks = _Looks(0.0, 0.0, 0.5, 9.0, 90.0, 900.0)
    with Stalls(look_s=0.5, now=looks.now, pause=lambda _pause_s: True) as stalls:
        pass
    before = stalls.lost_s
    assert looks.now() > 9.0
    assert stalls.lost_s == before


async def test_a_bound_is_held_and_one_that_is_not_says_by_how_much() -> None:
    async with within(10.0):
        await asyncio.sleep(0)
    with pytest.raises(AssertionError, match=r"it took 0\.\d\d s; the bound is -30\.0 s, and the machine took \d"):
        async with within(-30.0):
            pass
