"""How the harness talks to the processes that it starts: a line of JSON for each order, a line for each answer."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from eventbus.embedded import tied

__all__ = ["HarnessError", "Order", "Role", "ROOT", "follow_orders"]

ROOT = Path(__file__).resolve().parents[1]

Order = Callable[..., Awaitable[Mapping[str, Any]]]


class HarnessError(Exception):
    """A process of the harness failed; the message has what it said."""


class Role:
    """A process of the harness, as its parent sees it.

    Args:
        module: what it runs, a module of this package.
    """

    def __init__(self, module: str) -> None:
        command = [sys.executable, "-m", f"benchmarks.{module}"]
        self._process = subprocess.Popen(
            tied(command, signal.SIGKILL), cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self._module = module
        self._buffer = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def tell(self, order: str, **arguments: object) -> None:
        """Give an order; `answer` has what it says."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"order": order, **arguments}).encode() + b"\n")
        self._process.stdin.flush()

    def answer(self, timeout_s: float = 60.0) -> dict[str, Any]:
        """Wait for the answer to the oldest order.

        Raises:
            HarnessError: the order failed, the process ended, or the time passed.
        """
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([descriptor], [], [], timeout_s)
            data = os.read(descriptor, 65536) if ready else b""
            if not data:
                what = "ended" if ready else f"did not answer within {timeout_s} s"
                raise HarnessError(f"the {self._module} {what}")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise HarnessError(f"the {self._module} failed: {answer['error']}")
        return answer

    def ask(self, order: str, *, timeout_s: float = 60.0, **arguments: object) -> dict[str, Any]:
        """Give an order and wait for its answer. Raises: HarnessError."""
        self.tell(order, **arguments)
        return self.answer(timeout_s)


def follow_orders(orders: Callable[[], Mapping[str, Order]]) -> None:
    """The life of a role: carries out orders, one after the other, until its parent is gone.

    Args:
        orders: makes the orders by name; called in the running loop.
    """
    import uvloop

    gc.disable()  # of what is measured beside it nothing must depend on when the harness collects
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_follow(orders))


async def _follow(orders: Callable[[], Mapping[str, Order]]) -> None:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=1 << 26)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    known = orders()
    while line := await reader.readline():
        order = json.loads(line)
        try:
            answer = dict(await known[order.pop("order")](**order))
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
