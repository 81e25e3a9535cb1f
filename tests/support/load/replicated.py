"""The installation of `world.py` over a Cluster or a Sentinel set: who is primary changes while it runs."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, TypeVar

import pytest
import redis

from eventbus.ids import UserId
from tests.support.clusters import Cluster, NewCluster
from tests.support.load.world import Clients, Publishing, World, fresh_directory, settings_of
from tests.support.processes import Processes
from tests.support.sentinels import NewSentinels, SentinelSet

Set = TypeVar("Set", bound=Cluster | SentinelSet)

_UNKNOWN = "unknown"


class ReplicatedWorld(World, Generic[Set]):
    """Starts and harms the parts.

    Attributes:
        servers: the Cluster or the Sentinel set.
    """

    def __init__(self, directory: Path, processes: Processes, servers: Set, env: Mapping[str, object]) -> None:
        self.servers: Set = servers
        super().__init__(directory, processes, servers, env)  # type: ignore[arg-type] # of it the URL alone is used

    def connected(self) -> None:
        """No client stays: the primary of tomorrow is another."""

    async def aclose(self) -> None:
        """Nothing is held."""

    @contextmanager
    def client(self, user: str) -> Iterator[Any]:
        """A client to the primary that holds a user's keys now."""
        url = self.servers.place.owner(self.keys.user(UserId(user)).stream)
        with redis.Redis.from_url(url, decode_responses=True, encoding_errors="replace") as client:
            yield client

    async def pending(self) -> Counter[str]:
        """As `World.pending`; while a primary can not say, something is pending."""
        return await asyncio.to_thread(self._pending)

    def _pending(self) -> Counter[str]:
        found: Counter[str] = Counter()
        for user, session in self.sessions:
            keys = self.keys.user(UserId(user))
            try:
                with self.client(user) as client:
                    waiting, live = client.xpending(keys.stream, session), client.hget(keys.live, session)
            except redis.ResponseError as error:
                if str(error).startswith("NOGROUP"):
                    continue
                waiting, live = {"pending": 1}, _UNKNOWN
            except (redis.RedisError, OSError, AssertionError):
                waiting, live = {"pending": 1}, _UNKNOWN
            if waiting["pending"]:
                found[live.split()[0] if live else ""] += waiting["pending"]
        return found

    async def running(self, users: Sequence[str], events: int, rate: int) -> tuple[Clients, Publishing]:
        """Starts two nodes, a session for each user and a publisher; returns when a fifth of its events is out."""
        await self.start_nodes("one", "two")
        clients = await self.start_clients(users, ack_delay_ms=(20, 100), silence_ms=10_000)
        publishing = await self.start_publisher(users, events, rate=rate)
        await self.published_at_least(publishing, events // 5)
        return clients, publishing

    async def assert_nothing_lost(self, *, gaps: Sequence[str] = ()) -> None:
        """Waits until all is published, has arrived and is acked; then fails if anything went wrong: a publish raised,
        a socket was closed, the checker found something, or another gap was told.
        """
        report = await self.settled(60_000)
        print(report)  # noqa: T201 - figures for who runs it by hand
        self.assert_good(report, gaps=gaps)
        errors = [error for publishing in self.publishers for error in publishing.log.errors]
        assert not errors, f"{len(errors)} publishes raised: {errors[:3]}"
        assert not [clients.closes for clients in self.clients if clients.closes], "sockets stay open"

    def users_of(self, url: str, users: Sequence[str]) -> list[str]:
        """Those of the users whose keys a primary holds."""
        owner = self.servers.place.owner
        return [user for user in users if owner(self.keys.user(UserId(user)).stream) == url]

    async def published_on(self, publishing: Publishing, more: int) -> None:
        """Waits until so many more publishes have returned than had at the call, or all that are planned have."""
        wanted = publishing.log.read().count + more
        await self.published_at_least(publishing, min(wanted, publishing.plan.events))

    def came_after(self, users: Sequence[str], wall_ms: int) -> int | None:
        """How long after a moment the first event came to one of these users; None while none has.

        Args:
            users: whose.
            wall_ms: the moment, Unix milliseconds of this machine, which the clients share.
        """
        wanted = set(users)
        times = [
            sighting.time_ms - wall_ms
            for clients in self.clients
            for (user, _), seen in clients.log.read().sessions.items()
            if user in wanted
            for sighting in seen.deliveries
            if sighting.time_ms >= wall_ms
        ]
        return min(times, default=None)

    async def resumed(self, users: Sequence[str], promoted_ms: int, timeout_ms: int = 20_000) -> int:
        """Waits until events come to these users after a promotion. Returns how many milliseconds later they did.

        Args:
            users: whose primary is new.
            promoted_ms: when it was promoted, `time.monotonic_ns` in milliseconds.
            timeout_ms: the longest wait.
        """
        wall_ms = time.time_ns() // 1_000_000 - (time.monotonic_ns() // 1_000_000 - promoted_ms)
        await self.wait(
            lambda: self.came_after(users, wall_ms) is not None, timeout_ms, "events come after the promotion"
        )
        found = self.came_after(users, wall_ms)
        assert found is not None
        return found


NewClusterWorld = Callable[..., ReplicatedWorld[Cluster]]
NewSentinelWorld = Callable[..., ReplicatedWorld[SentinelSet]]


@pytest.fixture
def new_cluster_world(tmp_path: Path, processes: Processes, new_cluster: NewCluster) -> NewClusterWorld:
    """Makes the parts of a test over a Cluster: `new_cluster_world(cluster={"kind": "redis"}, ack_timeout_ms=500)`."""

    def make(*, cluster: Mapping[str, Any] | None = None, **env: object) -> ReplicatedWorld[Cluster]:
        return ReplicatedWorld(fresh_directory(tmp_path), processes, new_cluster(**(cluster or {})), settings_of(env))

    return make


@pytest.fixture
def new_sentinel_world(tmp_path: Path, processes: Processes, new_sentinels: NewSentinels) -> NewSentinelWorld:
    """Makes the parts of a test over a Sentinel set, as `new_cluster_world`."""

    def make(*, sentinels: Mapping[str, Any] | None = None, **env: object) -> ReplicatedWorld[SentinelSet]:
        return ReplicatedWorld(
            fresh_directory(tmp_path), processes, new_sentinels(**(sentinels or {})), settings_of(env)
        )

    return make
