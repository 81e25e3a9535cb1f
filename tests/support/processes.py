"""Child processes of tests: started, frozen, killed, and always reaped when the test ends.

Output goes to files, so that nothing blocks on a full pipe and a failed test can show it.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.support.fork_server import COMMANDS, Forked, ForkServer
from tests.support.servers import freeze, thaw
from tests.support.waiting import until

ROOT = Path(__file__).resolve().parents[2]


class Child:
    """A running process and what it has printed."""

    def __init__(self, name: str, process: subprocess.Popen[bytes] | Forked, stdout: Path, stderr: Path) -> None:
        self.name = name
        self._process = process
        self._stdout = stdout
        self._stderr = stderr

    def __repr__(self) -> str:
        state = "running" if self.running else f"exit {self.exit_code}"
        return f"<Child {self.name} pid={self.pid} {state}>"

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it has not ended; a frozen process runs."""
        return self._process.poll() is None

    @property
    def exit_code(self) -> int | None:
        """The exit status, minus the signal's number when a signal ended it, or None while it runs."""
        return self._process.poll()

    @property
    def stdout(self) -> str:
        return self._stdout.read_text(errors="replace")

    @property
    def stderr(self) -> str:
        return self._stderr.read_text(errors="replace")

    async def line(self, pattern: str, timeout_ms: int = 30_000) -> str:
        """Waits for a line of its output (either stream) that the pattern is found in, and returns it.

        Raises:
            AssertionError: The process ended, or the time passed, before; the message has its output.
        """
        wanted = re.compile(pattern)

        def look() -> str | None:
            ended = not self.running  # before the output is read, so that its last words are seen
            for line in (self.stdout + "\n" + self.stderr).splitlines():
                if wanted.search(line):
                    return line
            assert not ended, f"{self!r} ended before it printed {pattern!r}. {self._told()}"
            return None

        found = await until(look, timeout_ms, lambda: f"{self!r} prints {pattern!r}. {self._told()}")
        assert found is not None
        return found

    async def wait(self, timeout_ms: int = 30_000) -> int:
        """Waits for its end and returns the exit code.

        Raises:
            AssertionError: It still runs after `timeout_ms`; the message has its output.
        """
        await until(lambda: not self.running, timeout_ms, lambda: f"{self!r} ends. {self._told()}")
        code = self.exit_code
        assert code is not None
        return code

    def freeze(self) -> None:
        """SIGSTOP: it holds its sockets and does nothing."""
        freeze(self.pid)

    def thaw(self) -> None:
        """SIGCONT."""
        thaw(self.pid)

    def terminate(self) -> None:
        """SIGTERM."""
        self._process.terminate()

    def interrupt(self) -> None:
        """SIGINT, as Ctrl-C in a terminal."""
        self._process.send_signal(signal.SIGINT)

    def kill(self) -> None:
        """SIGKILL, and waits for its end."""
        self._process.kill()
        self._process.wait()

    def reap(self) -> None:
        """Ends it and every process of its group, whatever state they are in."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()

    def _told(self) -> str:
        return f"stdout:\n{self.stdout[-4000:]}\nstderr:\n{self.stderr[-4000:]}"


class Processes:
    """Starts processes and remembers them.

    Args:
        directory: for the files of their output.
        fork_server: from which the project's commands are forked, when there is one; else they are executed.
    """

    def __init__(self, directory: Path, fork_server: ForkServer | None = None) -> None:
        self._directory = directory
        self._fork_server = fork_server
        self._children: list[Child] = []

    def start(self, *command: str | Path, name: str | None = None, env: Mapping[str, str] | None = None) -> Child:
        """Starts a command in the checkout's directory, in a process group of its own, with `EVENTBUS_*` from `env`
        alone.
        """
        stdout, stderr = self._files(name := name or Path(command[0]).name)
        with stdout.open("wb") as out, stderr.open("wb") as err:
            process = subprocess.Popen(
                [str(word) for word in command],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                cwd=ROOT,
                env=_environment(env or {}),
                process_group=0,
            )
        return self._keep(Child(name, process, stdout, stderr))

    def python(self, *arguments: str | Path, name: str | None = None, env: Mapping[str, str] | None = None) -> Child:
        """Starts this interpreter: `python("-m", "gateway", "serve", ...)`, `python(script, ...)`."""
        return self.start(sys.executable, *arguments, name=name or "python", env=env)

    def gateway(self, *arguments: str | Path, name: str | None = None, env: Mapping[str, str] | None = None) -> Child:
        """Starts the command `eventbus-gateway`."""
        return self._command("gateway", *arguments, name=name, env=env)

    def eventbus(self, *arguments: str | Path, name: str | None = None, env: Mapping[str, str] | None = None) -> Child:
        """Starts the command `eventbus`."""
        return self._command("eventbus", *arguments, name=name, env=env)

    def reap(self) -> None:
        """Ends all of them."""
        for child in self._children:
            child.reap()

    def _command(self, command: str, *arguments: str | Path, name: str | None, env: Mapping[str, str] | None) -> Child:
        if self._fork_server is None or not all(key.startswith("EVENTBUS_") for key in env or {}):
            # Another setting may be one that is read before any module is loaded.
            call = f"import sys; from {COMMANDS[command]} import main; sys.exit(main())"
            return self.python("-c", call, *arguments, name=name or command, env=env)
        stdout, stderr = self._files(name := name or command)
        words = [str(word) for word in arguments]
        process = self._fork_server.fork(command, words, _environment(env or {}), stdout, stderr, ROOT)
        return self._keep(Child(name, process, stdout, stderr))

    def _files(self, name: str) -> tuple[Path, Path]:
        """Where the output of the next process goes; a name may be given again, to a process that comes back."""
        number = len(self._children)
        return self._directory / f"{number}-{name}.stdout", self._directory / f"{number}-{name}.stderr"

    def _keep(self, child: Child) -> Child:
        self._children.append(child)
        return child


def _environment(extra: Mapping[str, str]) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("EVENTBUS_")}
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return {**kept, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **extra}


@pytest.fixture
def processes(tmp_path: Path, fork_server: ForkServer | None) -> Iterator[Processes]:
    """Starts child processes; all are ended with the test, also when they are frozen."""
    directory = tmp_path / "processes"
    directory.mkdir()
    keeper = Processes(directory, fork_server)
    yield keeper
    keeper.reap()
