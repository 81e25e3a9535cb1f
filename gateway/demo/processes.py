"""The demo's child processes: nodes and the agent, each of which can be killed and started again under its name."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Final

from eventbus.clock import seconds
from eventbus.embedded import tied
from gateway.demo.jobs import Job

__all__ = ["AgentProcess", "Bell", "Child", "NodeProcess", "State"]

START_MS: Final = 20_000
CHECK_MS: Final = 500
CHECK_TIMEOUT_MS: Final = 1_000
OUTPUT_MAX_BYTES: Final = 64 * 1024
LOG_TAIL_CHARACTERS: Final = 600

_READY: Final = re.compile(rb"^ready .*\burl=http://[^ ]+:(\d+)\b")


class Bell:
    """Wakes all who wait, whenever something has changed. Between a look at the state and `wait` nothing is missed as
    long as nothing is awaited between.
    """

    def __init__(self) -> None:
        self._waiting: set[asyncio.Future[None]] = set()

    def ring(self) -> None:
        """Something has changed."""
        for future in self._waiting:
            if not future.done():
                future.set_result(None)
        self._waiting.clear()

    async def wait(self) -> None:
        """Wait for the next change."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.add(future)
        try:
            await future
        finally:
            self._waiting.discard(future)


class State(StrEnum):
    """How a child stands."""

    STARTING = "starting"
    READY = "ready"
    NOT_READY = "not_ready"
    ENDED = "ended"


class Child:
    """A process with a name. It dies with this one, also when this one is killed (Linux).

    Args:
        name: what it is called.
        arguments: those of the Python interpreter.
        log: the file that its stderr goes to.
        env: its whole environment.

    Attributes:
        pid: of the process that runs, or ran last; 0 before the first.
        state: how it stands; the subclass knows when it is ready.
        ended: how it ended last, in words; empty while it runs.
    """

    def __init__(self, name: str, arguments: Sequence[str], *, log: Path, env: Mapping[str, str]) -> None:
        self.name = name
        self.pid = 0
        self.state = State.ENDED
        self.ended = "not started"
        self._command = [sys.executable, *arguments]
        self._log = log
        self._env = env
        self._process: Process | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name} pid={self.pid} {self.state}>"

    @property
    def running(self) -> bool:
        """Whether there is a process, ready or not."""
        return self._process is not None and self._process.returncode is None

    async def _spawn(self, *, stdin: int, stdout: int) -> Process:
        self.state, self.ended = State.STARTING, ""
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *tied(self._command, signal.SIGKILL),
                stdin=stdin,
                stdout=stdout,
                stderr=log,
                env=self._env,
                limit=OUTPUT_MAX_BYTES,
                # A group of its own: Ctrl-C in a terminal reaches this process alone, which ends the others in order.
                process_group=0,
            )
        self.pid = self._process.pid
        return self._process

    def kill(self) -> bool:
        """Kill it with SIGKILL, as it stands. Returns whether it ran."""
        if self._process is None or self._process.returncode is not None:
            return False
        self._process.kill()
        return True

    async def stop(self, timeout_ms: int) -> None:
        """End it with SIGTERM and wait for that; after the time, or when the wait is cancelled, with SIGKILL."""
        process = self._process
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(seconds(timeout_ms)):
                await process.wait()
        except TimeoutError:
            pass
        finally:
            self.kill()
        await process.wait()

    def _note_end(self, status: int) -> None:
        self.state = State.ENDED
        self.ended = f"killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"

    def last_words(self) -> str:
        """The end of its log."""
        with contextlib.suppress(OSError):
            return self._log.read_text(errors="replace")[-LOG_TAIL_CHARACTERS:].strip()
        return ""


class NodeProcess(Child):
    """A gateway node.

    Args:
        name: the node's.
        redis_url: its store.
        secret_file: the key of the tokens.
        log: the file that its stderr goes to.
        env: its whole environment.
        drain_ms: longest time of its drain.
        bell: rung whenever its state has changed.

    Attributes:
        port: where it takes connections; 0 until it has said so.
    """

    def __init__(
        self,
        name: str,
        *,
        redis_url: str,
        secret_file: Path,
        log: Path,
        env: Mapping[str, str],
        drain_ms: int,
        bell: Bell,
    ) -> None:
        given = {
            "--redis-url": redis_url,
            "--host": "127.0.0.1",
            "--port": "0",
            "--admin-port": "0",
            "--jwt-secret-file": str(secret_file),
            "--node": name,
            "--drain-ms": str(drain_ms),
        }
        options = [word for option in given.items() for word in option]
        super().__init__(name, ["-m", "gateway", "serve", *options], log=log, env=env)
        self.port = 0
        self._bell = bell
        self._watch: asyncio.Task[None] | None = None

    async def start(self) -> bool:
        """Start it, and wait until it takes connections.

        Returns:
            Whether it does; False when it ended instead, or runs already.
        """
        if self.running or (self._watch is not None and not self._watch.done()):
            return False
        self._set(State.STARTING)
        self._watch = asyncio.create_task(self._run(), name=f"demo:{self.name}")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds(START_MS)):
                while self.state is State.STARTING:
                    await self._bell.wait()
        return self.state is State.READY

    async def gone(self) -> None:
        """Wait until the process that runs has ended; at once when none does."""
        if self._watch is not None:
            await asyncio.wait([self._watch])

    async def stop(self, timeout_ms: int) -> None:
        await super().stop(timeout_ms)
        await self.gone()

    def _set(self, state: State) -> None:
        self.state = state
        self._bell.ring()

    async def _run(self) -> None:
        """One life of the node."""
        process = await self._spawn(stdin=DEVNULL, stdout=PIPE)
        checks: asyncio.Task[None] | None = None
        try:
            while process.stdout is not None and (line := await process.stdout.readline()):
                if ready := _READY.match(line):
                    self.port = int(ready[1])
                    self._set(State.READY)
                    checks = asyncio.create_task(self._check(), name=f"demo:{self.name}:check")
            self._note_end(await process.wait())
        finally:
            if checks is not None:
                checks.cancel()
                await asyncio.wait([checks])
            self._set(State.ENDED)

    async def _check(self) -> None:
        """Asks now and then whether connections may go there."""
        while True:
            await asyncio.sleep(seconds(CHECK_MS))
            state = State.READY if await _answers_ready(self.port) else State.NOT_READY
            if state is not self.state:
                self._set(state)


class AgentProcess(Child):
    """The demo agent: it takes jobs through its stdin."""

    def __init__(self, *, redis_url: str, published: Path, log: Path, env: Mapping[str, str]) -> None:
        arguments = ["-m", "gateway.demo.agent", "--redis-url", redis_url, "--published", str(published)]
        super().__init__("agent", arguments, log=log, env=env)

    async def start(self) -> None:
        """Start it; jobs may be given at once."""
        await self._spawn(stdin=PIPE, stdout=DEVNULL)
        self.state = State.READY

    async def wait(self) -> None:
        """Wait for its end."""
        if self._process is not None:
            self._note_end(await self._process.wait())

    def submit(self, job: Job) -> None:
        """Give it a job.

        Raises:
            ConnectionError: it has died.
        """
        if self._process is None or self._process.stdin is None or self._process.returncode is not None:
            raise ConnectionError("the agent does not run")
        self._process.stdin.write(job.to_json())


async def _answers_ready(port: int) -> bool:
    """Whether the node on a port of this machine says that it is ready."""
    try:
        async with asyncio.timeout(seconds(CHECK_TIMEOUT_MS)):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(b"GET /readyz HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
                return b" 200 " in await reader.readline()
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return False
