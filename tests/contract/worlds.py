"""A world is a store and power over what lies under it: time, losses, trims. One kind for each store of the suite."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, Protocol, TypeVar
from zlib import crc32

import redis

from eventbus.config import StoreSettings
from eventbus.errors import StoreError
from eventbus.ids import ENTRY_ZERO, ConnectionId, EntryId, Epoch, EventId, NodeName, SessionId, UserId
from eventbus.store import (
    LOST,
    Append,
    Appended,
    Attach,
    Attached,
    AttachMode,
    AttachRefused,
    Fence,
    Lost,
    NewRead,
    PendingPage,
    ReadRequest,
    ReadState,
    Start,
    Store,
)
from eventbus.testing import ManualClock, MemoryStore
from tests.support.places import Place
from tests.support.waiting import until

T = TypeVar("T")

ALICE: Final = UserId("alice")
PHONE: Final = SessionId("phone")
NODE: Final = NodeName("node-1")
OTHER_NODE: Final = NodeName("node-2")


def fence_of(connection: str, user: UserId = ALICE, session: SessionId = PHONE) -> Fence:
    """The fence of a connection with a short name."""
    return Fence(user=user, session=session, connection=ConnectionId(connection.ljust(32, "0")))


class Power(Protocol):
    """What only the world can do."""

    async def pass_time(self, ms: int) -> None:
        """Returns when the store's clock has moved on by at least `ms`."""

    async def flush(self) -> None:
        """The data is gone."""

    async def trim(self, user: UserId, keep: int) -> None:
        """Exactly `keep` of the user's newest entries stay."""

    async def lose_group(self, user: UserId, session: SessionId) -> None:
        """The session's group is gone, the stream is not."""

    async def misplace_group(self, user: UserId, session: SessionId, position: EntryId) -> None:
        """The session's group stands at `position`, wherever it read."""

    async def lose_live(self, user: UserId) -> None:
        """The hash of live sessions is gone."""

    async def snapshot(self, user: UserId) -> object:
        """What `roll_back` brings back."""

    async def roll_back(self, user: UserId, snapshot: Any) -> None:
        """The user's stream and the event ids of the partition are again what they were, as after a failover."""


class World:
    """A store, its settings and its power, with the steps that most tests are made of.

    Attributes:
        passed_ms: how much time it was told to let pass.
    """

    def __init__(self, store: Store, settings: StoreSettings, power: Power) -> None:
        self.store = store
        self.settings = settings
        self.power = power
        self.passed_ms = 0
        self._published = 0

    async def pass_time(self, ms: int) -> None:
        self.passed_ms += ms
        await self.power.pass_time(ms)

    async def append(self, *events: Append) -> Sequence[Appended | StoreError]:
        return await self.store.append(events)

    async def publish(self, *names: str, user: UserId = ALICE) -> list[EntryId]:
        """Stores new events whose bodies are their names. Returns their entry ids."""
        events = []
        for name in names:
            self._published += 1
            events.append(Append(user=user, event=EventId(f"{name}-{self._published}"), body=name.encode()))
        return [stored(result).entry for result in await self.append(*events)]

    async def attach(
        self,
        fence: Fence,
        *,
        node: NodeName = NODE,
        mode: AttachMode = AttachMode.OPEN,
        start: Start = Start.EARLIEST,
        cursor: EntryId | None = None,
        epoch: Epoch | None = None,
        live_limit: int = 10,
        known_limit: int = 40,
    ) -> Attached | AttachRefused:
        request = Attach(
            fence=fence,
            node=node,
            mode=mode,
            start=start,
            cursor=cursor,
            epoch=epoch,
            live_limit=live_limit,
            known_limit=known_limit,
        )
        return await self.store.attach(request)

    async def open(self, fence: Fence, **request: Any) -> Attached:
        """As `attach`, and it must not be refused."""
        attached = await self.attach(fence, **request)
        assert isinstance(attached, Attached), attached
        return attached

    async def reattach(self, fence: Fence, **request: Any) -> Attached:
        """What a node does with its socket open."""
        return await self.open(fence, mode=AttachMode.REATTACH, **request)

    async def read(self, fence: Fence, count: int = 100, verify: EntryId | None = None) -> NewRead:
        (result,) = await self.store.read_new([ReadRequest(fence=fence, count=count, verify=verify)])
        assert isinstance(result, NewRead), result
        return result

    async def received(self, fence: Fence, count: int = 100) -> list[str]:
        """The names of the events of one read, which must succeed and find no gap."""
        result = await self.read(fence, count)
        assert (result.state, result.gap) == (ReadState.OK, None)
        return [entry.body.decode() for entry in result.entries]

    async def page(self, fence: Fence, after: EntryId = ENTRY_ZERO, count: int = 100) -> PendingPage:
        page = held(await self.store.read_pending(fence, after, count))
        return PendingPage(entries=tuple(page.entries), last=page.last)

    async def ack(self, fence: Fence, *entries: EntryId) -> int:
        return await self.store.ack(fence.user, fence.session, entries)

    async def retained(self, user: UserId = ALICE) -> list[str]:
        """The names of the events in the user's stream."""
        page = await self.store.history(user, ENTRY_ZERO, 1000)
        return [entry.body.decode() for entry in page.entries]

    async def waiting(self, fence: Fence) -> list[tuple[EntryId, int]]:
        """The session's pending entries as operators see them: id and attempts."""
        records = await self.store.pending(fence.user, fence.session, ENTRY_ZERO, 1000)
        return [(record.id, record.attempts) for record in records]


def stored(result: Appended | StoreError) -> Appended:
    """The result of an append that must have succeeded."""
    assert isinstance(result, Appended), repr(result)
    return result


def held(result: T | Lost) -> T:
    """The result of a fenced call that must not be lost."""
    assert result is not LOST
    return result


class MemoryPower:
    """Power over a `MemoryStore`: its own switches and its clock."""

    def __init__(self, store: MemoryStore, clock: ManualClock) -> None:
        self._store = store
        self._clock = clock

    async def pass_time(self, ms: int) -> None:
        await self._clock.pass_time(ms)

    async def flush(self) -> None:
        self._store.flush()

    async def trim(self, user: UserId, keep: int) -> None:
        self._store.trim(user, keep)

    async def lose_group(self, user: UserId, session: SessionId) -> None:
        self._store.lose_group(user, session)

    async def misplace_group(self, user: UserId, session: SessionId, position: EntryId) -> None:
        self._store.misplace_group(user, session, position)

    async def lose_live(self, user: UserId) -> None:
        self._store.lose_live(user)

    async def snapshot(self, user: UserId) -> EntryId:
        entry, _ = await self._store.tail(user)
        return entry

    async def roll_back(self, user: UserId, snapshot: EntryId) -> None:
        self._store.roll_back(user, snapshot)


class RedisPower:
    """Power over servers: commands of an administrator, with the key names of docs/keys.md."""

    def __init__(self, place: Place, store: Store, settings: StoreSettings) -> None:
        self._place = place
        self._store = store
        self._settings = settings

    @contextmanager
    def _client(self, user: UserId) -> Iterator[Any]:
        with redis.Redis.from_url(self._place.owner(self._key("s", user))) as client:
            yield client

    def _key(self, kind: str, user: UserId) -> str:
        partition = crc32(user.encode()) % self._settings.partitions
        return f"{self._settings.namespace}:{{{partition}}}:{kind}:{user}"

    async def pass_time(self, ms: int) -> None:
        since_ms = await self._store.ping()

        async def reached() -> bool:
            return await self._store.ping() >= since_ms + ms

        await until(reached, ms + 5_000, f"the server's clock moves by {ms} ms")

    async def flush(self) -> None:
        for url in self._place.primaries():
            with redis.Redis.from_url(url) as client:
                client.flushall()

    async def trim(self, user: UserId, keep: int) -> None:
        with self._client(user) as client:
            client.xtrim(self._key("s", user), maxlen=keep, approximate=False)

    async def lose_group(self, user: UserId, session: SessionId) -> None:
        with self._client(user) as client:
            assert client.xgroup_destroy(self._key("s", user), session) == 1

    async def misplace_group(self, user: UserId, session: SessionId, position: EntryId) -> None:
        with self._client(user) as client:
            client.xgroup_setid(self._key("s", user), session, position)

    async def lose_live(self, user: UserId) -> None:
        with self._client(user) as client:
            assert client.delete(self._key("l", user)) == 1

    def _rolled_back(self, user: UserId) -> list[str]:
        partition = crc32(user.encode()) % self._settings.partitions
        buckets = [f"{self._settings.namespace}:{{{partition}}}:i:{bucket}" for bucket in (0, 1)]
        with self._client(user) as client:
            runs = [key.decode() for key in client.scan_iter(match=self._key("r", user) + "/*")]
        return [self._key("s", user), self._key("a", user), *buckets, *runs]

    async def snapshot(self, user: UserId) -> dict[str, tuple[bytes, int]]:
        with self._client(user) as client:
            keys = [key for key in self._rolled_back(user) if client.exists(key)]
            return {key: (client.dump(key), client.pttl(key)) for key in keys}

    async def roll_back(self, user: UserId, snapshot: dict[str, tuple[bytes, int]]) -> None:
        with self._client(user) as client:
            client.delete(*self._rolled_back(user))
            for key, (value, life_ms) in snapshot.items():
                client.restore(key, max(0, life_ms), value)
