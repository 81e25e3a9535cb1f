"""Counts, threads and presence on Redis."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from eventbus.errors import StoreError
from eventbus.ids import NodeName, SessionId, ThreadId, UserId
from eventbus.store.command import Argument, Command
from eventbus.store.figures import Counts, OnlinePage, OnlineRecord, ThreadPage, ThreadRecord
from eventbus.store.linked import Linked
from eventbus.store.scripts import script

__all__ = ["RedisFigures", "online_call", "threads_call"]

T = TypeVar("T")


class RedisFigures(Linked):
    """The part of a `RedisStore` for `eventbus.store.figures`."""

    async def threads(self, user: UserId, before: ThreadRecord | None, count: int) -> ThreadPage:
        keys = self.keys.user(user)
        return await self._call(threads_call(keys.stream, keys.threads, before, count))

    async def counts(self, partitions: Sequence[int]) -> Sequence[Counts | StoreError]:
        futures = [
            self.link.execute(Command(("HGETALL", self.keys.partition(number).counts), _counts))
            for number in partitions
        ]
        return [await future for future in futures]

    async def online(self, user: UserId) -> OnlinePage:
        return await self._call(online_call(self.keys.user(user).live, self.settings.live_ttl_ms))


def threads_call(stream: str, threads: str, before: ThreadRecord | None, count: int) -> Command[ThreadPage]:
    """The call of threads.lua."""
    mark: tuple[Argument, ...] = (-1, "") if before is None else (before.place, before.thread)
    return _scripted("threads", (stream, threads), (*mark, count), _threads)


def online_call(live: str, live_ttl_ms: int) -> Command[OnlinePage]:
    """The call of online.lua."""
    return _scripted("online", (live,), (live_ttl_ms,), _online)


def _scripted(
    name: str, keys: Sequence[str], arguments: Sequence[Argument], parse: Callable[[Any, str], T | StoreError]
) -> Command[T]:
    return Command(("EVALSHA", script(name).sha, len(keys), *keys, *arguments), parse, scripted=True)


def _threads(reply: Any, _primary: str) -> ThreadPage:
    more, *flat = reply
    return ThreadPage(
        threads=[
            ThreadRecord(thread=ThreadId(name.decode()), place=int(place))
            for name, place in zip(flat[::2], flat[1::2], strict=True)
        ],
        more=more == b"more",
    )


def _online(reply: Any, _primary: str) -> OnlinePage:
    now_ms, *flat = reply
    sessions = [
        OnlineRecord(session=SessionId(session.decode()), node=NodeName(node.decode()), last_seen_ms=seen_ms)
        for session, node, seen_ms in zip(flat[::3], flat[1::3], flat[2::3], strict=True)
    ]
    return OnlinePage(sessions=sorted(sessions, key=lambda one: one.session), time_ms=now_ms)


def _counts(reply: Any, _primary: str) -> Counts:
    counts: dict[tuple[str, str], int] = {}
    for name, count in zip(reply[::2], reply[1::2], strict=True):
        state, _, event_type = name.decode().partition(":")
        counts[state, event_type] = int(count)
    return counts
