"""A client that says what it should not, and keeps every frame that it hears."""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any

from eventbus.tokens import make_token
from tests.support.load.link import Link
from tests.support.load.world import SECRET, Node
from tests.support.waiting import until


class Hostile:
    """A client that says what it should not, and keeps every frame that it hears."""

    def __init__(self, hello: dict[str, Any]) -> None:
        self._hello = hello
        self.frames: list[dict[str, Any]] = []
        self.open = asyncio.Event()
        self.over = asyncio.Event()
        self.code = 0
        self.link: Link | None = None

    async def connect(self, node: Node, token: str) -> None:
        """Returns when its session is open, or was refused."""
        link = self.link = Link(self, token)
        await asyncio.get_running_loop().create_connection(lambda: link, "127.0.0.1", node.port)
        async with asyncio.timeout(10):
            done = [asyncio.ensure_future(event.wait()) for event in (self.open, self.over)]
            await asyncio.wait(done, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.cancel()

    def link_open(self, link: Link) -> None:
        link.send(self._hello)

    def link_frame(self, link: Link, frame: dict[str, Any]) -> None:
        self.frames.append(frame)
        if frame["op"] == "welcome":
            self.open.set()

    def link_over(self, link: Link, code: int, reason: str) -> None:
        self.code = code
        self.over.set()

    @property
    def events(self) -> list[dict[str, Any]]:
        return [item for frame in self.frames if frame["op"] == "events" for item in frame["events"]]

    async def ask(self, frame: dict[str, Any], answer: str) -> dict[str, Any]:
        """Sends a frame with a `ref` and waits for what answers it."""
        assert self.link is not None
        ref = f"r{random.getrandbits(60)}"
        self.link.send({**frame, "ref": ref})
        return await until(
            lambda: next((f for f in self.frames if f.get("ref") == ref and f["op"] in (answer, "error")), None) or {},
            10_000,
            f"an answer to {frame['op']}",
        )

    async def close(self) -> None:
        if self.link is not None:
            self.link.abort()
            await self.over.wait()


def token_of(user: str, **claims: Any) -> str:
    return make_token(
        user=user, secret=SECRET.encode(), now_ms=int(time.time() * 1000), **{"tier": "enterprise", **claims}
    )
