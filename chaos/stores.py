"""The three topologies of the store: how each is made, harmed and mended, and what it says in the end.

What blocks for long runs in a thread, so that the proxies in this loop go on.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

from eventbus.embedded import EmbeddedServer, ServerBinary
from eventbus.ids import UserId
from eventbus.store.keys import Keys
from eventbus.store.topology import slot_of
from tests.support.clusters import Cluster, Member
from tests.support.proxy import Proxy
from tests.support.resp import Refused, ask
from tests.support.sentinels import SentinelSet
from tests.support.servers import freeze, thaw

__all__ = ["ClusterStore", "ReplicatedStore", "SentinelStore", "SingleStore", "Store", "TOPOLOGIES", "make_store"]

T = TypeVar("T")

_log = logging.getLogger("chaos")

KEYS: Final = Keys("eb", 1024)
TOPOLOGIES: Final = ("single", "sentinel", "cluster")
_TRIES: Final = 200
_START_MS: Final = 60_000  # a machine that is busy takes its time to read the file


class Store(ABC):
    """What every topology has.

    Attributes:
        topology: its name.
    """

    topology: str

    @abstractmethod
    async def start(self, stack: contextlib.AsyncExitStack) -> None:
        """Starts it; it is ended with the stack."""

    @abstractmethod
    def url(self, process: str) -> str:
        """Where a process finds it."""

    @abstractmethod
    def ask(self, user: str, key: str, *words: str | int) -> Any:
        """A command to whoever has the user's key; blocking."""

    @abstractmethod
    def ports(self) -> Sequence[int]:
        """The ports of the primaries."""

    @abstractmethod
    async def restart(self, chance: random.Random, away_ms: int) -> None:
        """SIGKILL to one primary, which comes back with its file."""

    @abstractmethod
    async def restart_all(self, away_ms: int) -> None:
        """SIGKILL to every server at once; they come back with their files."""

    @abstractmethod
    async def freeze(self, chance: random.Random, away_ms: int) -> None:
        """One primary stands still."""

    @abstractmethod
    async def healed(self) -> None:
        """Returns when everything is in order again."""

    async def cut(self) -> None:
        """Every connection of clients to the primaries is closed by them."""

        def kill() -> None:
            for port in self.ports():
                for kind in ("normal", "pubsub"):
                    with contextlib.suppress(OSError, Refused):
                        ask(port, "CLIENT", "KILL", "TYPE", kind)

        await asyncio.to_thread(kill)

    # --- looking ------------------------------------------------------------------------------------------------------

    def waiting(self, users: Iterable[str], stays: Callable[[str], bool]) -> dict[str, int]:
        """Entries that are unread or wait for an ack, by `user/session`; blocking."""
        found: dict[str, int] = {}
        for user in users:
            groups = self.ask(user, KEYS.user(UserId(user)).stream, "XINFO", "GROUPS") or []
            for group in groups:
                told = {name.decode(): value for name, value in zip(group[::2], group[1::2], strict=True)}
                session = told["name"].decode()
                if stays(session) and told["pending"]:
                    found[f"{user}/{session}"] = told["pending"]
        return found

    def dead_letters(self, users: Iterable[str]) -> list[dict[str, str]]:
        """All dead letters of the users; blocking."""
        homes = {KEYS.user(UserId(user)).partition.dead: user for user in users}
        found = []
        for key, user in homes.items():
            for _, fields in self.ask(user, key, "XRANGE", "-", "+"):
                told = dict(zip(fields[::2], fields[1::2], strict=True))
                found.append({name.decode(): value.decode(errors="replace") for name, value in told.items()})
        return found


class ReplicatedStore(Store):
    """What the topologies have in which a replica takes over."""

    @abstractmethod
    async def fail_over(self, chance: random.Random) -> None:
        """A replica takes over, by command."""

    @abstractmethod
    async def kill_primary(self, chance: random.Random) -> None:
        """SIGKILL to a primary, which stays away until its replica has taken over."""

    @abstractmethod
    async def roll_back(self, chance: random.Random, away_ms: int) -> None:
        """A replica is cut off, the primary takes writes alone, dies, and the replica takes over without them."""


class SingleStore(Store):
    """One server. Every process reaches it by a network of its own.

    Attributes:
        links: process -> its network.
    """

    topology = "single"

    def __init__(self, directory: Path, binary: ServerBinary, settings: Mapping[str, Any]) -> None:
        self.server = EmbeddedServer(directory / "server", binary=binary, **settings)
        self.links: dict[str, Proxy] = {}
        self._stack = contextlib.AsyncExitStack()

    async def start(self, stack: contextlib.AsyncExitStack) -> None:
        stack.callback(self.server.kill)
        self.server.start()
        self._stack = stack

    async def link(self, process: str) -> None:
        """Makes the network of a process; before `url`."""
        if process not in self.links:
            self.links[process] = await self._stack.enter_async_context(Proxy(self.server.port))

    def url(self, process: str) -> str:
        return self.links[process].redis_url if process in self.links else self.server.url

    def ask(self, user: str, key: str, *words: str | int) -> Any:
        return ask(self.server.port, *_command(words, key))

    def ports(self) -> Sequence[int]:
        return [self.server.port]

    async def healed(self) -> None:
        """It answers as soon as it is started."""

    async def restart(self, chance: random.Random, away_ms: int) -> None:
        self.server.kill()
        await asyncio.sleep(away_ms / 1000)
        await asyncio.to_thread(self.server.start, _START_MS)

    async def restart_all(self, away_ms: int) -> None:
        await self.restart(random.Random(0), away_ms)

    async def freeze(self, chance: random.Random, away_ms: int) -> None:
        await _frozen(self.server, away_ms)


class SentinelStore(ReplicatedStore):
    """A primary, a replica, three Sentinels."""

    topology = "sentinel"

    def __init__(self, directory: Path, binary: ServerBinary, settings: Mapping[str, Any]) -> None:
        self._set = SentinelSet(directory / "sentinel", binary, extra=_extra(settings))

    async def start(self, stack: contextlib.AsyncExitStack) -> None:
        stack.callback(self._set.kill_all)
        await asyncio.to_thread(self._set.start)

    def url(self, process: str) -> str:
        return self._set.url

    def ask(self, user: str, key: str, *words: str | int) -> Any:
        return ask(self._set.primary.port, *_command(words, key))

    def ports(self) -> Sequence[int]:
        return [self._set.primary.port]

    async def healed(self) -> None:
        await asyncio.to_thread(self._set.wait_ok, 60_000)

    async def restart(self, chance: random.Random, away_ms: int) -> None:
        primary = self._set.primary
        primary.kill()
        await asyncio.sleep(away_ms / 1000)
        await asyncio.to_thread(primary.start, _START_MS)

    async def restart_all(self, away_ms: int) -> None:
        for server in self._set.servers:
            server.kill()
        await asyncio.sleep(away_ms / 1000)
        for server in self._set.servers:
            await asyncio.to_thread(server.start, _START_MS)

    async def freeze(self, chance: random.Random, away_ms: int) -> None:
        await _frozen(self._set.primary, away_ms)

    async def fail_over(self, chance: random.Random) -> None:
        await _tried(self._set.fail_over)

    async def kill_primary(self, chance: random.Random) -> None:
        primary, replica = self._set.primary, self._set.replica
        primary.kill()
        await asyncio.to_thread(self._set.promoted, replica, 60_000)
        await asyncio.to_thread(primary.start, _START_MS)

    async def roll_back(self, chance: random.Random, away_ms: int) -> None:
        primary, replica = self._set.primary, self._set.replica
        await asyncio.to_thread(self._set.refuse_replicas)
        await asyncio.sleep(away_ms / 1000)
        primary.kill()
        await asyncio.to_thread(self._set.promoted, replica, 60_000)
        await asyncio.to_thread(primary.start, _START_MS)


class ClusterStore(ReplicatedStore):
    """Three primaries with a replica each."""

    topology = "cluster"

    def __init__(self, directory: Path, binary: ServerBinary, settings: Mapping[str, Any]) -> None:
        self._cluster = Cluster(directory / "cluster", binary, extra=_extra(settings))
        self._atomic = binary.kind == "valkey" and binary.version_info >= (9,)

    async def start(self, stack: contextlib.AsyncExitStack) -> None:
        stack.callback(self._cluster.kill_all)
        await asyncio.to_thread(self._cluster.start)

    def url(self, process: str) -> str:
        return self._cluster.url

    def ask(self, user: str, key: str, *words: str | int) -> Any:
        return self._cluster.ask_owner(key, *_command(words, key))

    def ports(self) -> Sequence[int]:
        return [member.port for member in self._cluster.primaries]

    async def healed(self) -> None:
        await asyncio.to_thread(self._cluster.wait_ok, 60_000)

    async def _one(self, chance: random.Random) -> tuple[Member, Member]:
        """A primary and its replica."""
        primary = chance.choice(await asyncio.to_thread(lambda: self._cluster.primaries))
        return primary, await asyncio.to_thread(self._cluster.replica, primary)

    async def restart(self, chance: random.Random, away_ms: int) -> None:
        primary, _ = await self._one(chance)
        primary.server.kill()
        await asyncio.sleep(away_ms / 1000)
        await asyncio.to_thread(primary.server.start, _START_MS)

    async def restart_all(self, away_ms: int) -> None:
        self._cluster.kill_all()
        await asyncio.sleep(away_ms / 1000)
        for member in self._cluster.members:
            await asyncio.to_thread(member.server.start, _START_MS)

    async def freeze(self, chance: random.Random, away_ms: int) -> None:
        primary, _ = await self._one(chance)
        await _frozen(primary.server, away_ms)

    async def fail_over(self, chance: random.Random) -> None:
        _, replica = await self._one(chance)
        await _tried(lambda: self._cluster.fail_over(replica))

    async def kill_primary(self, chance: random.Random) -> None:
        primary, replica = await self._one(chance)
        primary.server.kill()
        await asyncio.to_thread(self._cluster.promoted, replica, 60_000)
        await asyncio.to_thread(primary.server.start, _START_MS)

    async def roll_back(self, chance: random.Random, away_ms: int) -> None:
        primary, replica = await self._one(chance)
        await asyncio.to_thread(primary.refuse_replicas)
        await asyncio.sleep(away_ms / 1000)
        primary.server.kill()
        await asyncio.to_thread(self._cluster.promoted, replica, 60_000)
        await asyncio.to_thread(primary.server.start, _START_MS)

    async def move_slot(self, chance: random.Random, users: Sequence[str]) -> None:
        """A slot that is in use moves to another primary."""
        slot = slot_of(KEYS.user(UserId(chance.choice(users))).stream)

        def move() -> None:
            owner = self._cluster.map().owner(slot)
            target = chance.choice([member for member in self._cluster.primaries if member.address != owner])
            if self._atomic and chance.random() < 0.5:
                self._cluster.move_atomically(slot, slot, target)
            else:
                self._cluster.move_slot(slot, target)

        await asyncio.to_thread(move)


def make_store(
    topology: str, directory: Path, binary: ServerBinary, *, appendfsync: str
) -> SingleStore | SentinelStore | ClusterStore:
    """Makes the store of a topology; `start` it."""
    settings = {"appendfsync": appendfsync}
    match topology:
        case "single":
            return SingleStore(directory, binary, settings)
        case "sentinel":
            return SentinelStore(directory, binary, settings)
        case "cluster":
            return ClusterStore(directory, binary, settings)
    raise ValueError(f"{topology} is none of {', '.join(TOPOLOGIES)}")


def _extra(settings: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(word for name, value in settings.items() for word in (f"--{name}", str(value)))


def _command(words: Sequence[str | int], key: str) -> list[str | int]:
    """The key is the second word, but for `XINFO GROUPS`, where it is the third."""
    head = 2 if words[0] == "XINFO" else 1
    return [*words[:head], key, *words[head:]]


async def _frozen(server: EmbeddedServer, away_ms: int) -> None:
    await asyncio.to_thread(freeze, server.pid)
    try:
        await asyncio.sleep(away_ms / 1000)
    finally:
        thaw(server.pid)


async def _tried(action: Callable[[], object]) -> None:
    """A failover that is refused for now ("in progress", a replica that is behind) is asked for again. One that the
    servers do not carry out all the same, in the midst of other faults, harms nobody: the mix goes on without it.
    """
    for _ in range(_TRIES):
        try:
            await asyncio.to_thread(action)
            return
        except Refused:
            await asyncio.sleep(0.1)
        except AssertionError as error:
            _log.error("a failover did not come about: %s", error)
            return
    raise AssertionError("the failover is refused again and again")


async def until(
    condition: Callable[[], bool | Awaitable[bool]], timeout_ms: int, what: Callable[[], str] | str
) -> None:
    """Waits for a condition at a pace that leaves the machine to the processes.

    Raises:
        AssertionError: It does not come.
    """
    deadline = time.monotonic() + timeout_ms / 1000
    while True:
        answer = condition()
        if await answer if isinstance(answer, Awaitable) else answer:
            return
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_ms} ms: {what() if callable(what) else what}")
        await asyncio.sleep(0.1)
