"""A process that has loaded the commands, and from which tests fork theirs: a node starts in a twentieth of the time.

To load a node's modules costs most of a second of CPU, and the tests start hundreds of nodes. What is forked is a
process like any other, with its own pid, group, environment, output and end; only its modules are there already.
The server says when it is ready. It is asked in lines of JSON on its standard input, one answer a line: it forks, and
says how a child ended.
Linux alone has what it takes (`pidfd_open`); elsewhere, and with `EVENTBUS_TEST_NO_FORK=1`, commands are executed.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import pytest

COMMANDS = {"gateway": "gateway.__main__", "eventbus": "eventbus.cli"}
"""The commands that can be forked, and the modules that have their `main`."""

_LOADED = (
    *COMMANDS.values(),
    "gateway.processes.process",
    "gateway.processes.serving",
    "gateway.processes.supervisor",
    "gateway.traces",
    "eventbus.client",
    "eventbus.inspection",
    "uvloop",
)
_FORKS = hasattr(os, "pidfd_open") and not os.environ.get("EVENTBUS_TEST_NO_FORK")


class Forked:
    """A forked process, with what `subprocess.Popen` offers of it."""

    def __init__(self, server: ForkServer, pid: int) -> None:
        self.pid = pid
        self._server = server
        self._ended = os.pidfd_open(pid)
        self._code: int | None = None

    def poll(self) -> int | None:
        """The exit status, minus the signal's number when a signal ended it, or None while it runs."""
        return self._told(0)

    def wait(self) -> int:
        """Waits for its end; the exit status."""
        code = self._told(None)
        assert code is not None
        return code

    def send_signal(self, number: int) -> None:
        """Sends a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _told(self, timeout_s: float | None) -> int | None:
        if self._code is None and select.select([self._ended], [], [], timeout_s)[0]:
            os.close(self._ended)
            self._code = self._server.reap(self.pid)
        return self._code


class ForkServer:
    """The side of the tests."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.fork_server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).resolve().parents[2],
        )
        # Loading takes seconds: they pass here, and not while a test's own loop waits for its first child.
        self._told()

    def fork(
        self, command: str, arguments: list[str], env: Mapping[str, str], stdout: Path, stderr: Path, cwd: Path
    ) -> Forked:
        """Starts a command in a process group of its own; output goes to new files."""
        for path in (stdout, stderr):
            path.touch()  # they can be read from now on
        request = {
            "command": command,
            "arguments": arguments,
            "env": dict(env),
            "stdout": str(stdout),
            "stderr": str(stderr),
            "cwd": str(cwd),
        }
        return Forked(self, self._ask(request))

    def reap(self, pid: int) -> int:
        """The exit status of a child that has ended."""
        return os.waitstatus_to_exitcode(self._ask({"reap": pid}))

    def close(self) -> None:
        """Ends the server; its children live on."""
        with self._process:  # closes both pipes, which ends it, and waits
            pass

    def _ask(self, request: Mapping[str, Any]) -> int:
        question = self._process.stdin
        assert question is not None
        question.write(json.dumps(request).encode() + b"\n")
        question.flush()
        return self._told()

    def _told(self) -> int:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the fork server has ended; its words are in the output of the tests"
        return int(line)


@pytest.fixture(scope="session")
def fork_server() -> Iterator[ForkServer | None]:
    """The server of this process, None where there can be none."""
    if not _FORKS:
        yield None
        return
    server = ForkServer()
    yield server
    server.close()


# --- the server's side ------------------------------------------------------------------------------------------------


def _become(request: Mapping[str, Any]) -> None:
    """The forked process becomes the command; it ends as any interpreter does, with what `main` raises."""
    os.setpgid(0, 0)
    os.chdir(request["cwd"])
    files = ((os.devnull, os.O_RDONLY), (request["stdout"], os.O_WRONLY), (request["stderr"], os.O_WRONLY))
    for number, (path, how) in enumerate(files):
        opened = os.open(path, how)
        os.dup2(opened, number)
        os.close(opened)
    os.environ.clear()
    os.environ.update(request["env"])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115 - these three live as long as the process
    sys.stdout = open(1, "w", buffering=1, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    sys.argv = [request["command"], *request["arguments"]]
    importlib.import_module(COMMANDS[request["command"]]).main()


def _serve(questions: IO[str], answers: IO[str]) -> None:
    for name in _LOADED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    print(os.getpid(), file=answers, flush=True)  # it is ready
    for line in questions:
        request = json.loads(line)
        if "reap" in request:
            answer = os.waitpid(request["reap"], 0)[1]
        elif not (answer := os.fork()):
            _become(request)
            return
        else:
            with contextlib.suppress(OSError):  # it has done so itself already, and may even have ended
                os.setpgid(answer, answer)
        print(answer, file=answers, flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the tests, which end what they have started
    _serve(sys.stdin, sys.stdout)
