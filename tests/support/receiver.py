"""A real HTTP server that gets webhooks and behaves as a test says: answers, fails, hangs, closes, recovers."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import orjson

HANG, CLOSE = "hang", "close"
Behaviour = int | str
"""A status, `HANG`, or `CLOSE`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """One post. `headers` have lower-case names."""

    target: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def key(self) -> str:
        """Its name, which stays the same over attempts."""
        return self.headers["idempotency-key"]

    @property
    def content(self) -> dict[str, Any]:
        content: dict[str, Any] = orjson.loads(self.body)
        return content


class Receiver:
    """The server.

    Attributes:
        received: everything that came, whatever the answer.
        script: what is done with the next posts, first in first out; after it `always`.
        always: what is done when the script is over.
        extra: further header lines of the answers.
        answer: their body.
    """

    def __init__(self, port: int = 0) -> None:
        self.received: list[Received] = []
        self.script: list[Behaviour] = []
        self.always: Behaviour = 204
        self.extra: list[str] = []
        self.answer = b""
        self.accepted: list[str] = []
        self._port = port
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def url(self) -> str:
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/hook"

    @property
    def keys(self) -> list[str]:
        """The names of the posts, in order, repeated ones too."""
        return [one.key for one in self.received]

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while await self._answer_one(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _answer_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        self.received.append(Received(target=head[0].split(" ")[1], headers=headers, body=body))
        how = self.script.pop(0) if self.script else self.always
        if how == CLOSE:
            return False
        if how == HANG:
            await asyncio.get_running_loop().create_future()
        self.accepted += [headers["idempotency-key"]] if 200 <= int(how) < 300 else []
        lines = [f"HTTP/1.1 {how} x", f"Content-Length: {len(self.answer)}", *self.extra, "", ""]
        writer.write("\r\n".join(lines).encode() + self.answer)
        await writer.drain()
        return True
