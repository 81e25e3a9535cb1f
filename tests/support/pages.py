"""The small server of an application's own: test pages, and tokens for the one user that it knows."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

_TYPES = {".html": "text/html", ".js": "text/javascript"}
_HEAD_MAX_BYTES = 32_768

Answer = Callable[[], str | None]
"""Makes the body of an answer; None is the status 500."""


class PageServer:
    """Serves the files of a directory, and what `routes` say.

    Args:
        directory: its files are at `/pages/NAME`.

    Attributes:
        routes: path -> what answers it, whatever the method.
        requests: the paths that were asked for, in order.
    """

    def __init__(self, directory: Path) -> None:
        self.routes: dict[str, Answer] = {}
        self.requests: list[str] = []
        self._directory = directory
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=_HEAD_MAX_BYTES)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    @property
    def origin(self) -> str:
        """The origin of its pages."""
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            path = head.split(" ")[1].partition("?")[0]
            self.requests.append(path)
            status, media_type, body = self._answer(path)
            # A page that may not be stored (`no-store`) is not kept for the way back either.
            writer.write(
                f"HTTP/1.1 {status} -\r\nContent-Type: {media_type}; charset=utf-8\r\nContent-Length: {len(body)}\r\n"
                "Cache-Control: no-cache\r\nConnection: close\r\n\r\n".encode("latin-1")
                + body
            )
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # a connection that was opened ahead and never used, or the end of the test
        finally:
            self._tasks.discard(task)
            writer.close()

    def _answer(self, path: str) -> tuple[int, str, bytes]:
        if path in self.routes:
            body = self.routes[path]()
            return (500, "text/plain", b"") if body is None else (200, _type(body), body.encode())
        file = self._directory / path.removeprefix("/pages/")
        if path.startswith("/pages/") and file.parent == self._directory and file.is_file():
            return 200, _TYPES[file.suffix], file.read_bytes()
        return 404, "text/plain", b""


def _type(body: str) -> str:
    if body.startswith("<"):
        return "text/html"
    return "text/javascript" if body.startswith("/*") else "text/plain"
