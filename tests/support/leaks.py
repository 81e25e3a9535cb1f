"""Leak checks: no test leaves a task, a socket, a pipe, a child process or a key without a TTL behind.

They are on for every test. Each can fail: see tests/unit/test_support.py.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import re
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import redis

from tests.support.waiting import until_blocking

# A task that was cancelled, or a socket that was closed, may need some turns of the loop to be gone. The time is given
# in pieces: a process that stands still loses one of them, and not the turns.
_GRACE_MS = 500
_PIECES = 25
_FD_DIRECTORY = Path("/proc/self/fd")
# The table of keys gives these two a life without end.
_ENDLESS_KEY = re.compile(rb"[^:]+:\{\d+\}:(e|due)")


@pytest.fixture(autouse=True)
def no_leaked_sockets() -> Iterator[None]:
    """Fails a test that leaves a socket, pipe or poll descriptor open."""
    if not _FD_DIRECTORY.exists():
        yield
        return
    before = open_descriptors()
    yield
    leaked = leaked_descriptors(before)
    assert not leaked, "the test left these open: " + ", ".join(leaked)


@pytest.fixture(autouse=True)
def no_leaked_tasks(request: pytest.FixtureRequest) -> None:
    """Fails an asynchronous test that leaves a task running."""
    if inspect.iscoroutinefunction(getattr(request, "function", None)):
        request.getfixturevalue("watch_tasks")


@pytest.fixture
async def watch_tasks() -> AsyncIterator[None]:
    yield
    leaked = await leaked_tasks()
    assert not leaked, "the test left these tasks running: " + ", ".join(leaked)


async def leaked_tasks() -> list[str]:
    """The names of the tasks of this loop, but the caller's, that do not end by themselves at once."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    if not others:
        return []
    alive = others
    for _ in range(_PIECES):
        _, alive = await asyncio.wait(alive, timeout=_GRACE_MS / _PIECES / 1000)
        if not alive:
            break
    return sorted(f"{task.get_name()} ({task.get_coro()!r})" for task in alive)


def open_descriptors() -> dict[int, str]:
    """The sockets, pipes and poll descriptors of this process: descriptor -> what the kernel calls it."""
    found: dict[int, str] = {}
    for name in os.listdir(_FD_DIRECTORY):
        try:
            target = os.readlink(_FD_DIRECTORY / name)
        except OSError:
            continue  # the descriptor of the listing itself
        if target.startswith(("socket:", "pipe:", "anon_inode:")):
            found[int(name)] = target
    return found


def leaked_descriptors(before: dict[int, str]) -> list[str]:
    """What is open now and was not before, told with the addresses of sockets."""

    def new() -> list[tuple[int, str]]:
        return [(number, what) for number, what in open_descriptors().items() if before.get(number) != what]

    try:
        until_blocking(lambda: not new(), _GRACE_MS)
    except AssertionError:
        return [f"{what} {_addresses(number)}".rstrip() for number, what in new()]
    return []


def _addresses(descriptor: int) -> str:
    try:
        with socket.socket(fileno=os.dup(descriptor)) as copy:
            local = copy.getsockname()
            try:
                return f"{local} -> {copy.getpeername()}"
            except OSError:
                return f"{local}"
    except OSError:
        return ""


def check_keys(url: str) -> None:
    """Fails when the server holds a key of the bus without a TTL that should have one."""
    with redis.Redis.from_url(url) as client:
        endless = endless_keys(client)
    assert not endless, f"keys without a TTL: {', '.join(key.decode(errors='replace') for key in endless)}"


def endless_keys(client: redis.Redis) -> list[bytes]:
    """The keys of the bus that have no TTL and should have one."""
    keys: list[bytes] = [key for key in client.scan_iter(match="eb:*", count=1000) if not _ENDLESS_KEY.fullmatch(key)]
    with client.pipeline(transaction=False) as pipeline:
        for key in keys:
            pipeline.pttl(key)
        lives = pipeline.execute()
    return sorted(key for key, life_ms in zip(keys, lives, strict=True) if life_ms == -1)
