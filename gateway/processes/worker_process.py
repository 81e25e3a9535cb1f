"""A worker as its parent sees it: a child process, and a channel to it."""

from __future__ import annotations

import asyncio
import base64
import itertools
import os
import pickle
import signal
import socket
import sys
from enum import StrEnum
from pathlib import Path

from eventbus.clock import seconds
from gateway.config import NodeSettings
from gateway.metrics import Snapshot, unpack
from gateway.processes.channel import Channel

__all__ = ["WorkerProcess", "WorkerState", "start_worker"]


class WorkerState(StrEnum):
    """What a worker is doing, as its parent knows it."""

    STARTING = "starting"
    READY = "ready"
    NOT_READY = "not_ready"
    DRAINING = "draining"
    ENDED = "ended"


class WorkerProcess:
    """A worker as a child process."""

    def __init__(self, process: asyncio.subprocess.Process, channel: Channel) -> None:
        self._process = process
        self._channel = channel
        self._numbers = itertools.count(1)
        self._asked: dict[int, asyncio.Future[Snapshot]] = {}

    @property
    def pid(self) -> int:
        return self._process.pid

    async def next_state(self) -> WorkerState | None:
        while (message := await self._channel.receive()) is not None:
            if "state" in message:
                return WorkerState(message["state"])
            waiting = self._asked.pop(message.get("answer", 0), None)
            if waiting is not None and not waiting.done():
                waiting.set_result(unpack(message["figures"]))
        return None

    async def figures(self, timeout_ms: int) -> Snapshot | None:
        number = next(self._numbers)
        future: asyncio.Future[Snapshot] = asyncio.get_running_loop().create_future()
        self._asked[number] = future
        self._channel.send({"ask": number})
        try:
            async with asyncio.timeout(seconds(timeout_ms)):
                return await future
        except TimeoutError:
            return None
        finally:
            self._asked.pop(number, None)

    async def wait(self) -> int:
        code = await self._process.wait()
        await self._channel.aclose()
        return code

    def terminate(self) -> None:
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        try:
            self._process.send_signal(number)
        except ProcessLookupError:
            return


async def start_worker(settings: NodeSettings) -> WorkerProcess:
    """Start the process of a worker.

    Raises:
        OSError: the system has no room for it.
    """
    ours, theirs = socket.socketpair()
    try:
        with theirs:
            process = await asyncio.create_subprocess_exec(
                # -P: a directory `gateway` where the command was called from is not ours.
                *(sys.executable, "-P", "-m", "gateway.processes.worker", settings.listen.node),
                stdin=theirs.fileno(),
                stdout=2,
                env=_environment(),
            )
        channel = await Channel.over(ours)
    except BaseException:
        ours.close()
        raise
    # By this way and not by the environment: nobody else can read it.
    channel.send({"settings": base64.b64encode(pickle.dumps(settings)).decode()})
    return WorkerProcess(process, channel)


def _environment() -> dict[str, str]:
    """The parent's, with the place from which this package was loaded."""
    home = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, (home, os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path}
