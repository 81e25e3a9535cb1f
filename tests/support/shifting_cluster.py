"""A Cluster in memory for publishers under test: servers that are promoted without the last writes, others that
have not heard of it and go on storing, maps that go back and forth, connections that end with answers under way.

It keeps the promises of `eventbus.store.links` towards a publisher, and no others: `lost` is told before a call goes to
another server than the one before, `stands` before the first call over a connection; a call that was made over a
connection is answered over it or fails; one that was made over none waits for the one to the server that the map names.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence

from eventbus.errors import StoreError, StoreMoved, StoreUnavailable
from eventbus.ids import EntryId, EventId, UserId
from eventbus.store import Append, Appended, Durability
from eventbus.store.running import StepOrder, out_of_order
from eventbus.testing import MemoryStore

__all__ = ["Server", "ShiftingCluster"]

Answer = Appended | StoreError | None
"""None: the server has not, or not any more, what the call is about."""


class Server:
    """One process. `owns`: whose primary it is in its own eyes."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.life = 0
        self.owns: set[UserId] = set()
        self.logs: dict[UserId, list[Append]] = {}
        self.late: deque[Append] = deque()
        """What came over connections that have ended, and was not done yet."""

    def __repr__(self) -> str:
        return f"<{self.run} {[[event.event for event in log] for log in self.logs.values()]}>"

    @property
    def run(self) -> str:
        """Which server this is, and since which promotion."""
        return f"{self.name}.{self.life}"

    def copy(self, other: Server) -> None:
        """Have what another has."""
        self.logs = {user: list(log) for user, log in other.logs.items()}

    def do(self, event: Append, run: str) -> Answer:
        """Store an event, once, as append.lua and append_run.lua do."""
        if event.user not in self.owns:
            return None
        log = self.logs.setdefault(event.user, [])
        stored = Appended(entry=EntryId(f"{len(log) + 1}-0"), duplicate=False, primary=run)
        if any(known.event == event.event for known in log):
            return Appended(entry=stored.entry, duplicate=True, primary=run)
        if (step := event.step) is not None:
            last = max([known.step.seq for known in log if known.step is not None], default=0)
            if step.seq <= last or (step.order is StepOrder.NEXT and step.seq != last + 1):
                return out_of_order(step, last)
        log.append(event)
        return stored

    def do_late(self) -> None:
        """Do what came over connections that are no more."""
        while self.late:
            self.do(self.late.popleft(), self.run)


class _Call:
    """An event on its way."""

    def __init__(self, event: Append, to: Server) -> None:
        self.event = event
        self.to = to
        self.future: asyncio.Future[Appended | StoreError] = asyncio.get_running_loop().create_future()

    def end(self, result: Appended | StoreError) -> None:
        if not self.future.done():
            self.future.set_result(result)


class _Connection:
    """A connection and what is under way on it, in order."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.run = server.run
        self.sent: deque[_Call] = deque()
        self.answers: deque[tuple[_Call, Answer]] = deque()

    def serve(self, count: int = 1 << 30) -> None:
        """The server does what has come."""
        for _ in range(min(count, len(self.sent))):
            call = self.sent.popleft()
            self.answers.append((call, self.server.do(call.event, self.run)))

    def end(self) -> None:
        """What is under way gets no answer; what is not done yet may be done at any time."""
        self.server.late.extend(call.event for call in self.sent)
        for call in [*self.sent, *(call for call, _ in self.answers)]:
            call.end(StoreUnavailable("the connection was lost"))
        self.sent.clear()
        self.answers.clear()


class ShiftingCluster(MemoryStore):
    """Two shards of two servers, and what one client knows of them.

    Args:
        users: with the number of the shard that each begins in.

    Attributes:
        sent: the events that were sent, in order.
    """

    def __init__(self, users: dict[UserId, int]) -> None:
        super().__init__()
        self.shards = [(Server("a"), Server("b")), (Server("c"), Server("d"))]
        self.owner = {user: self.shards[number][0] for user, number in users.items()}
        for user, server in self.owner.items():
            server.owns.add(user)
        self.map = dict(self.owner)
        self.sent: list[EventId] = []
        self._migrated: set[UserId] = set()
        self._maps = [self.map]  # all that there ever were
        self._connections: dict[Server, _Connection] = {}
        self._retired: list[_Connection] = []
        self._waiting: deque[_Call] = deque()
        self._watchers: list[tuple[Callable[[], object], Callable[[], object]]] = []

    # --- what the publisher sees ------------------------------------------------------------------------------------

    def primary_of(self, user: UserId) -> str:
        connection = self._connections.get(self.map[user])
        return "" if connection is None else connection.run

    def lane_of(self, user: UserId) -> int:
        return sorted(self.map).index(user) % 2

    def watch_primaries(self, lost: Callable[[], object], stands: Callable[[], object]) -> Callable[[], None]:
        watcher = (lost, stands)
        self._watchers.append(watcher)
        return lambda: self._watchers.remove(watcher) if watcher in self._watchers else None

    async def append(
        self, events: Sequence[Append], durability: Durability = Durability.MEMORY
    ) -> Sequence[Appended | StoreError]:
        self.sent += [event.event for event in events]
        calls = [_Call(event, self.map[event.user]) for event in events]
        for call in calls:
            connection = self._connections.get(call.to)
            (self._waiting if connection is None else connection.sent).append(call)
        return await asyncio.gather(*(call.future for call in calls))

    def tell(self, *, lost: bool) -> None:
        """Someone says that a primary is lost, or stands; it need not be true."""
        for watcher in list(self._watchers):
            watcher[0 if lost else 1]()

    # --- what happens to the client ---------------------------------------------------------------------------------

    def connect(self) -> None:
        """Connections are made to all that the map names and that say they are primaries."""
        for server in dict.fromkeys(self.map.values()):
            if server.owns and server not in self._connections:
                connection = self._connections[server] = _Connection(server)
                self.tell(lost=False)
                mine = [call for call in self._waiting if call.to is server]
                self._waiting = deque(call for call in self._waiting if call.to is not server)
                connection.sent.extend(mine)

    def cut(self, number: int) -> None:
        """A connection ends."""
        if self._connections:
            server = list(self._connections)[number % len(self._connections)]
            self._cut(server)

    def _cut(self, server: Server) -> None:
        if (connection := self._connections.pop(server, None)) is not None:
            connection.end()
            self.tell(lost=True)

    def adopt(self, fresh: dict[UserId, Server]) -> None:
        """The client has a new map."""
        if fresh == self.map:
            return
        self.map = dict(fresh)
        self.tell(lost=True)
        for server in [server for server in self._connections if server not in fresh.values()]:
            self._retired.append(self._connections.pop(server))
        for call in [call for call in self._waiting if call.to not in fresh.values()]:
            self._waiting.remove(call)
            call.end(StoreMoved("it is no primary any more"))
        self.tell(lost=False)

    def learn(self) -> None:
        """The map is read from a server that knows."""
        self.adopt(self.owner)

    def mislead(self, number: int) -> None:
        """The map is read from a server that has not heard of the latest changes."""
        self.adopt(self._maps[-1 - number % len(self._maps)])

    def serve(self, count: int) -> None:
        """The servers do some of what has come, and keep the answers back."""
        for connection in [*self._connections.values(), *self._retired]:
            connection.serve(count)

    def arrive(self, count: int = 1 << 30) -> None:
        """Answers arrive."""
        for connection in [*self._connections.values(), *self._retired]:
            for _ in range(min(count, len(connection.answers))):
                call, answer = connection.answers.popleft()
                if answer is None:
                    self._refused(connection, call.event.user)
                    answer = StoreMoved("it is elsewhere now")
                call.end(answer)
                if not connection.answers:
                    break

    def _refused(self, connection: _Connection, user: UserId) -> None:
        if self.map[user] is connection.server:
            self.adopt({**self.map, user: self.owner[user]})

    def farewell(self) -> None:
        """Connections to servers that are no primaries any more are at their end."""
        for connection in self._retired:
            connection.end()
        self._retired.clear()

    # --- what happens to the servers --------------------------------------------------------------------------------

    def _shard(self, number: int) -> tuple[Server, Server]:
        """The primary and the other one."""
        one, other = self.shards[number % len(self.shards)]
        return (one, other) if one.life >= other.life else (other, one)

    def replicate(self, number: int) -> None:
        """The replica has all that its primary has."""
        primary, other = self._shard(number)
        if not other.owns:
            other.copy(primary)

    def promote(self, number: int) -> None:
        """The replica takes over with what it has; the primary has not heard of it."""
        primary, other = self._shard(number)
        if other.owns:
            return
        other.life = primary.life + 1
        other.owns = {user for user, server in self.owner.items() if server is primary}
        self._own(dict.fromkeys(other.owns, other))

    def hear(self, number: int) -> None:
        """A primary that was replaced learns of it, and takes over what the other has."""
        primary, other = self._shard(number)
        if other.owns:
            self._finish(other)
            other.owns = set()
            other.copy(primary)
            self._cut(other)

    def migrate(self, number: int) -> None:
        """The slot of a user moves to the other shard, with all that is in it.

        Once: a slot that comes back with less than it left with, unnoticed, is to a client as if it had never left.
        """
        user = sorted(self.owner)[number % len(self.owner)]
        if user in self._migrated:
            return
        self._migrated.add(user)
        source = self.owner[user]
        target = next(self._shard(shard)[0] for shard in range(2) if source not in self.shards[shard])
        self._finish(source)
        self._finish(target)
        target.logs[user] = source.logs.pop(user, [])
        source.owns.discard(user)
        target.owns.add(user)
        self._own({user: target})

    def late(self) -> None:
        """What came over connections that are no more is done."""
        for server in (server for shard in self.shards for server in shard):
            server.do_late()

    def _finish(self, server: Server) -> None:
        """A server does all that has come, before it is another's turn."""
        server.do_late()
        for connection in [*self._connections.values(), *self._retired]:
            if connection.server is server:
                connection.serve()

    def _own(self, changes: dict[UserId, Server]) -> None:
        self.owner = {**self.owner, **changes}
        self._maps.append(self.owner)

    # --- at the end -------------------------------------------------------------------------------------------------

    def calm(self) -> None:
        """Everybody knows who has what, and all that is under way arrives."""
        for number in range(len(self.shards)):
            self.hear(number)
        self.late()
        self.learn()
        self.farewell()
        self.connect()
        self.serve(1 << 30)
        self.arrive()

    def stored(self, user: UserId) -> list[EventId]:
        """The events of a user where the user is, in their order."""
        return [event.event for event in self.owner[user].logs.get(user, [])]
