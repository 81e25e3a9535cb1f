"""The Store on Redis or Valkey: one server, behind Sentinels, or a Cluster."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Sequence
from typing import Any, Final, Self, TypeVar

from eventbus.config import StoreSettings
from eventbus.errors import StoreError, StoreMisconfigured, StoreMoved
from eventbus.ids import EntryId, Epoch, NodeName, SessionId, UserId
from eventbus.store import (
    AckRequest,
    Append,
    Appended,
    Attach,
    Attached,
    AttachRefused,
    Beat,
    Confirmed,
    ConfirmRequest,
    DeadLetter,
    DeadOutcome,
    Durability,
    EntryFacts,
    Fence,
    HistoryPage,
    Listener,
    Listening,
    Lost,
    NewRead,
    PendingPage,
    ReadRequest,
    Redelivery,
    RedeliveryOutcome,
    ReleaseReason,
    StoredEntry,
    Ticket,
)
from eventbus.store.answers import nothing, read_entries, text_or_none
from eventbus.store.command import Command
from eventbus.store.commands import Commands
from eventbus.store.durability import Durable
from eventbus.store.following import Followers
from eventbus.store.inbound import POLL_MS
from eventbus.store.keys import Keys
from eventbus.store.links import Links
from eventbus.store.listening import Subscription
from eventbus.store.operating import Operating
from eventbus.store.redis_allowing import RedisAllowances
from eventbus.store.redis_figures import RedisFigures
from eventbus.store.redis_inbound import RedisInbound
from eventbus.store.redis_mending import RedisMending
from eventbus.store.redis_revoking import RedisRevocations
from eventbus.store.redis_running import RedisRuns
from eventbus.store.redis_texts import RedisTexts
from eventbus.store.redis_waiting import RedisWaiting
from eventbus.store.topology import lane_of, slot_of

__all__ = ["RedisStore"]

ITEMS_A_CALL: Final = 16
"""Most sessions that one call reads or acks for, and most events that it stores: what a call costs is shared, and
nobody waits long for the server."""
APPEND_BYTES: Final = 256 * 1024
"""Most bytes of bodies in a call that stores several events."""

T = TypeVar("T")
R = TypeVar("R")


class RedisStore(
    RedisRuns,
    RedisTexts,
    RedisInbound,
    RedisFigures,
    RedisRevocations,
    RedisAllowances,
    RedisWaiting,
    RedisMending,
    Operating,
):
    """An `eventbus.store.Store` over one server, behind Sentinels or over a Cluster.

    Making one needs no server: it connects when it is first used, and again whenever the connection is lost.

    Args:
        url: `redis://`, `rediss://`, `unix://`, `redis+sentinel://` or `redis+cluster://`, see
            `eventbus.store.endpoint`.
        settings: names, lives and caps; all processes of an installation must agree on them.
        command_timeout_ms: longest wait for a connection and for an answer; the setting `redis_timeout_ms` when absent.
        replicas: how many replicas must have an event before an append with `Durability.REPLICATED` succeeds.
        replicated_timeout_ms: longest wait for them.
        ping_ms: how often a subscription is tried.
        silence_ms: how long it may be silent before it is given up.

    Raises:
        StoreMisconfigured: the URL makes no sense.
    """

    def __init__(
        self,
        url: str,
        settings: StoreSettings | None = None,
        *,
        command_timeout_ms: int | None = None,
        replicas: int = 1,
        replicated_timeout_ms: int = 1_000,
        ping_ms: int = 2_000,
        silence_ms: int = 3_000,
    ) -> None:
        settings = settings or StoreSettings()
        timeout_ms = settings.redis_timeout_ms if command_timeout_ms is None else command_timeout_ms
        keys = Keys(settings.namespace, settings.partitions)
        link = Links(url, timeout_ms=timeout_ms)
        super().__init__(link, keys, Commands(keys, settings))
        self._timeout_ms = timeout_ms
        self._durable = Durable(
            url, link, keys, timeout_ms=timeout_ms, replicas=replicas, replicated_timeout_ms=replicated_timeout_ms
        )
        self._subscription_ms = (ping_ms, silence_ms)
        self._subscriptions: list[Subscription] = []
        self.followers = Followers(link, timeout_ms=timeout_ms, ping_ms=ping_ms, silence_ms=silence_ms, poll_ms=POLL_MS)

    @classmethod
    async def connect(cls, url: str, settings: StoreSettings | None = None, **options: Any) -> Self:
        """Make a store and see that the server answers.

        Raises:
            StoreError: it does not.
        """
        store = cls(url, settings, **options)
        try:
            await store.ping()
        except BaseException:
            await store.aclose()
            raise
        return store

    def __repr__(self) -> str:
        return f"<RedisStore {self.link!r} subscriptions={len(self._subscriptions)}>"

    @property
    def primary(self) -> str:
        """Who answers over the last connection (in a Cluster over one of them), see `Link.primary`; empty before it."""
        return self.link.primary

    @property
    def connected(self) -> bool:
        """Whether all connections stand: if one does not, the next call makes it, perhaps to another server."""
        return self.link.connected

    def primary_of(self, user: UserId) -> str:
        """The primary that has the user now, as its answers name it; empty when no connection to it stands."""
        return self.link.primary_of(self.keys.user(user).partition.epoch)

    def lane_of(self, user: UserId) -> int:
        """The lane of a user, see `eventbus.store.topology.lane_of`; 0 unless the store is a Cluster."""
        if not self.link.scattered:
            return 0
        return lane_of(slot_of(self.keys.user(user).partition.epoch))

    def watch_primaries(self, lost: Callable[[], object], stands: Callable[[], object]) -> Callable[[], None]:
        """Have someone told, in the event loop, of each primary that is lost and of each that stands.

        Returns:
            What ends it. See `Watchers.watch`.
        """
        return self.link.watchers.watch(lost, stands)

    async def aclose(self) -> None:
        await asyncio.gather(*(subscription.aclose() for subscription in self._subscriptions))
        self._subscriptions.clear()
        await self.followers.aclose()
        await self._durable.aclose()
        await self.link.aclose()

    # --- publishing -------------------------------------------------------------------------------------------------

    async def append(
        self, events: Sequence[Append], durability: Durability = Durability.MEMORY
    ) -> Sequence[Appended | StoreError]:
        if durability == Durability.FSYNC:
            partitions = sorted({self.keys.partition_of(event.user) for event in events})
            if not self._durable.is_fsync_known(partitions):
                before = [self.primary_of(event.user) for event in events]
                if missing := await self._durable.fsync_missing(partitions):
                    return [missing] * len(events)
                # The caller made sure of who has the users when it called, and not of another (D6).
                if any(was not in ("", self.primary_of(event.user)) for was, event in zip(before, events, strict=True)):
                    return [StoreMoved("not sent: a primary has changed meanwhile")] * len(events)
        results = await self._append(events)
        if durability == Durability.REPLICATED:
            return await self._replicated(events, results)
        return results

    async def _append(self, events: Sequence[Append]) -> list[Appended | StoreError]:
        """One write a server, in the order given; up to sixteen events in a call, each step of a run in its own."""
        scattered, partition_of = self.link.scattered, self.keys.partition_of
        calls: list[list[int]] = []
        open_calls: dict[int, list[int]] = {}  # by partition, where the keys of a call must be of one slot
        sizes: dict[int, int] = {}
        for place, event in enumerate(events):
            home = partition_of(event.user) if scattered else 0
            call = None if event.step is not None else open_calls.get(home)
            size = sizes.get(home, 0) + len(event.body)
            if call is None or len(call) >= ITEMS_A_CALL or size > APPEND_BYTES:
                call, size = [], len(event.body)
                calls.append(call)
            call.append(place)
            sizes[home] = size
            if event.step is None:
                open_calls[home] = call
            else:
                open_calls.pop(home, None)  # what comes behind the step must not go before it
        commands = self._commands
        answers: list[Any] = await self.link.execute_all(
            [
                commands.append(events[call[0]])
                if len(call) == 1
                else commands.append_many([events[place] for place in call])
                for call in calls
            ]
        )
        results: list[Any] = [None] * len(events)
        for call, answer in zip(calls, answers, strict=True):
            if len(call) == 1:
                results[call[0]] = answer
            else:
                for place, result in zip(call, _answers_for(call, answer), strict=True):
                    results[place] = result
        return results

    async def _replicated(
        self, events: Sequence[Append], results: Sequence[Appended | StoreError]
    ) -> Sequence[Appended | StoreError]:
        """The results, with an error in the place of each event that not enough replicas have."""
        stored = [
            (self.keys.partition_of(event.user), result.primary)
            for event, result in zip(events, results, strict=True)
            if isinstance(result, Appended)
        ]
        missing = iter(await self._durable.replicas_missing(stored))
        return [(next(missing) or result) if isinstance(result, Appended) else result for result in results]

    # --- sessions ---------------------------------------------------------------------------------------------------

    async def attach(self, request: Attach) -> Attached | AttachRefused:
        return await self._call(self._commands.attach(request, _fresh_epoch()))

    async def heartbeat(self, fences: Sequence[Fence], node: NodeName) -> Sequence[Beat | StoreError]:
        return await self._by_user(
            fences, lambda fence: fence.user, lambda user, some: self._commands.heartbeat(user, some, node)
        )

    async def detach(self, fence: Fence, cursor: EntryId) -> bool | Lost:
        return await self._call(self._commands.detach(fence, cursor))

    async def end_session(self, user: UserId, session: SessionId) -> int:
        return await self._call(self._commands.end_session(user, session))

    # --- delivering -------------------------------------------------------------------------------------------------

    async def read_pending(self, fence: Fence, after: EntryId, count: int) -> PendingPage | Lost:
        return await self._call(self._commands.read_pending(fence, after, count))

    async def read_new(self, requests: Sequence[ReadRequest]) -> Sequence[NewRead | StoreError]:
        return await self._by_sixteen(requests, lambda request: request.fence.user, self._commands.read_new)

    async def ack(self, user: UserId, session: SessionId, entries: Sequence[EntryId]) -> int:
        if not entries:
            return 0
        (released,) = await self.ack_many((AckRequest(user=user, session=session, entries=entries),))
        if isinstance(released, StoreError):
            raise released
        return released

    async def ack_many(self, requests: Sequence[AckRequest]) -> Sequence[int | StoreError]:
        some = [request for request in requests if request.entries]
        answers = await self._by_sixteen(some, lambda request: request.user, self._commands.ack)
        if len(some) == len(requests):
            return answers
        found = iter(answers)
        return [next(found) if request.entries else 0 for request in requests]

    async def confirm_many(self, requests: Sequence[ConfirmRequest]) -> Sequence[Confirmed | StoreError]:
        futures = [
            self.link.execute(self._commands.confirm(request)) if request.entries else None for request in requests
        ]
        return [Confirmed(0, 0) if future is None else await future for future in futures]

    async def release(
        self,
        fence: Fence,
        entries: Sequence[EntryId],
        reason: ReleaseReason,
        facts: Sequence[EntryFacts | None] = (),
    ) -> int | Lost:
        return await self._call(self._commands.release(fence, entries, reason, facts))

    async def redeliver(self, fence: Fence, entries: Sequence[Redelivery]) -> Sequence[RedeliveryOutcome] | Lost:
        return await self._call(self._commands.redeliver(fence, entries))

    async def dead_letter(self, fence: Fence, letter: DeadLetter) -> DeadOutcome | Lost:
        return await self._call(self._commands.dead_letter(fence, letter))

    async def _by_sixteen(
        self,
        items: Sequence[T],
        user_of: Callable[[T], UserId],
        command: Callable[[Sequence[T]], Command[list[R | StoreError]]],
    ) -> Sequence[R | StoreError]:
        """Script calls for items of any users, in one write a server; the results in the order of the items."""
        if self.link.scattered:
            return await self._by_partition(items, user_of, command)
        parts = [items[start : start + ITEMS_A_CALL] for start in range(0, len(items), ITEMS_A_CALL)]
        answers = await self.link.execute_all([command(part) for part in parts])
        results: list[R | StoreError] = []
        for part, answer in zip(parts, answers, strict=True):
            results += _answers_for(part, answer)
        return results

    async def _by_partition(
        self,
        items: Sequence[T],
        user_of: Callable[[T], UserId],
        command: Callable[[Sequence[T]], Command[list[R | StoreError]]],
    ) -> Sequence[R | StoreError]:
        """As `_by_sixteen`, where the partitions are on several servers: a call has the items of one of them."""
        together: dict[int, list[int]] = {}
        for place, item in enumerate(items):
            together.setdefault(self.keys.partition_of(user_of(item)), []).append(place)
        parts = [
            found[at : at + ITEMS_A_CALL] for found in together.values() for at in range(0, len(found), ITEMS_A_CALL)
        ]
        answers = await self.link.execute_all([command([items[place] for place in part]) for part in parts])
        results: dict[int, R | StoreError] = {}
        for part, answer in zip(parts, answers, strict=True):
            results.update(zip(part, _answers_for(part, answer), strict=True))
        return [results[place] for place in range(len(items))]

    async def _by_user(
        self, items: Sequence[T], user_of: Callable[[T], UserId], command: Callable[[UserId, list[T]], Command[list[R]]]
    ) -> Sequence[R | StoreError]:
        """One script call a user, all in one write; the results in the order of the items."""
        places: dict[UserId, list[int]] = {}
        for place, item in enumerate(items):
            places.setdefault(user_of(item), []).append(place)
        answers = await self.link.execute_all(
            [command(user, [items[place] for place in found]) for user, found in places.items()]
        )
        results: dict[int, R | StoreError] = {}
        for found, answer in zip(places.values(), answers, strict=True):
            if isinstance(answer, StoreError):
                results.update((place, answer) for place in found)
            elif len(answer) != len(found):
                error = StoreMisconfigured(f"{len(answer)} answers for {len(found)} sessions of one user")
                results.update((place, error) for place in found)
            else:
                results.update(zip(found, answer, strict=True))
        return [results[place] for place in range(len(items))]

    # --- reading what there is --------------------------------------------------------------------------------------

    async def tail(self, user: UserId) -> tuple[EntryId, Epoch]:
        page = await self._call(self._commands.history(user, EntryId("0-0"), 0, _fresh_epoch()))
        return page.tail, page.epoch

    async def history(self, user: UserId, after: EntryId, count: int) -> HistoryPage:
        return await self._call(self._commands.history(user, after, count, _fresh_epoch()))

    async def entry(self, user: UserId, entry: EntryId) -> StoredEntry | None:
        found = await self._call(Command(("XRANGE", self.keys.user(user).stream, entry, entry), read_entries))
        return found[0] if found else None

    # --- tickets ----------------------------------------------------------------------------------------------------

    async def put_ticket(self, ticket: Ticket) -> None:
        await self._call(
            Command(("SET", self.keys.ticket(ticket.ticket), ticket.claims, "PX", ticket.life_ms), nothing)
        )

    async def take_ticket(self, ticket: str) -> str | None:
        return await self._call(Command(("GETDEL", self.keys.ticket(ticket)), text_or_none))

    # --- listening --------------------------------------------------------------------------------------------------

    async def listen(self, node: NodeName, listener: Listener) -> Listening:
        ping_ms, silence_ms = self._subscription_ms
        subscription = Subscription(
            self.link,
            self.keys.channels(node),
            self.keys.partition_of,
            listener,
            timeout_ms=self._timeout_ms,
            ping_ms=ping_ms,
            silence_ms=silence_ms,
        )
        subscription.start()
        self._subscriptions = [other for other in self._subscriptions if not other.closed] + [subscription]
        return subscription


def _fresh_epoch() -> str:
    return secrets.token_hex(8)


def _answers_for(asked: Sequence[Any], answer: list[R | StoreError] | StoreError) -> Sequence[R | StoreError]:
    """The answers of one call, one for each item."""
    if not isinstance(answer, StoreError) and len(answer) != len(asked):
        answer = StoreMisconfigured(f"{len(answer)} answers for {len(asked)} sessions")
    return [answer] * len(asked) if isinstance(answer, StoreError) else answer
