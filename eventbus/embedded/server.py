"""One server as a child process: its life, its configuration and its log."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from eventbus.embedded.address import Address, Listen, Port, UnixSocket, free_port
from eventbus.embedded.lock import POLL_MS, lock_directory, monotonic_ms
from eventbus.embedded.programs import EmbeddedServerError, ServerBinary, first_supported
from eventbus.embedded.tying import tied

__all__ = ["EmbeddedServer"]

AppendFsync = Literal["always", "everysec", "no"]

_LOG_NAME = "server.log"
_SOCKET_NAME = "server.sock"
_LOG_TAIL_LINES = 8
_PORT_ATTEMPTS = 5


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
        self.binary = binary if binary is not None else first_supported()
        if not self.binary.supported:
            raise EmbeddedServerError(
                f"{self.binary} is too old: Redis 7.0 or Valkey 8 is the least. Install a newer one."
            )
        if listen is Listen.UNIX_SOCKET and port is not None:
            raise EmbeddedServerError("A server on a Unix socket has no port: leave out `port`.")
        # Chosen by the caller or by the first start; from then on clients may know it, and it is never exchanged.
        self._address: Address | None = None if port is None else Port(port)
        if listen is Listen.UNIX_SOCKET:
            self._address = UnixSocket(self.socket_path)
        self._appendonly = appendonly
        self._appendfsync = appendfsync
        self._extra = tuple(extra)
        self._process: subprocess.Popen[bytes] | None = None

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
        if not isinstance(self._address, Port):
            raise EmbeddedServerError(
                "The server has no port yet (it was never started, or it listens on a Unix socket)."
            )
        return self._address.number

    @property
    def url(self) -> str:
        """The address for clients, as in `redis://127.0.0.1:6379/0` or `unix:///run/bus/server.sock?db=0`.

        Raises:
            EmbeddedServerError: It listens on a port, and was never started.
        """
        return (self._address or Port(self.port)).url

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
        deadline_ms = monotonic_ms() + timeout_ms
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = lock_directory(self.directory)
        try:
            for attempt in range(1, _PORT_ATTEMPTS + 1):
                address = self._address or Port(free_port())
                try:
                    self._process = self._launch(address, lock, deadline_ms, timeout_ms)
                except _PortTakenError as taken:
                    # Between choosing a free port and the server's bind another process may take it.
                    if self._address is not None or attempt == _PORT_ATTEMPTS:
                        where = f"Port {address.number} of 127.0.0.1" if isinstance(address, Port) else address.url
                        raise EmbeddedServerError(f"{where} is taken: choose another.") from taken
                else:
                    self._address = address
                    return
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

    def _command(self, address: Address) -> list[str]:
        return [
            str(self.binary.path),
            *address.words,
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

    def _launch(self, address: Address, lock: int, deadline_ms: int, timeout_ms: int) -> subprocess.Popen[bytes]:
        """One attempt: starts the process and waits until it answers; nothing is left running when it raises."""
        command = tied(self._command(address), signal.SIGTERM)
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
            self._wait_until_ready(address, process, log_start, deadline_ms, timeout_ms)
        except BaseException:
            process.kill()
            process.wait()
            raise
        return process

    def _wait_until_ready(
        self,
        address: Address,
        process: subprocess.Popen[bytes],
        log_start: int,
        deadline_ms: int,
        timeout_ms: int,
    ) -> None:
        while True:
            if process.poll() is not None:
                self._explain_exit(process, log_start)
            if address.answers(process.pid):
                return
            if monotonic_ms() >= deadline_ms:
                raise EmbeddedServerError(
                    f"{self.binary} did not answer within {timeout_ms} ms. The end of {self.log_path}:\n"
                    f"{self._log_tail(log_start)}"
                )
            time.sleep(POLL_MS / 1000)

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
