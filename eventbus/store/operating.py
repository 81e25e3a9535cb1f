"""What nodes and operators ask of Redis beside the delivery itself."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from eventbus.errors import StoreError, StoreUnavailable
from eventbus.ids import EntryId, NodeName, SessionId, UserId
from eventbus.store import (
    ConfirmationRecord,
    DeadLetterRecord,
    NodeRecord,
    PendingRecord,
    SessionRecord,
    StoreInfo,
)
from eventbus.store.answers import (
    confirmation,
    dead_letter,
    facts_of,
    nothing,
    primary_named,
    settings_of,
    time_ms_of,
    whole,
)
from eventbus.store.command import Command
from eventbus.store.linked import Linked
from eventbus.store.listening import probe_message
from eventbus.store.topology import Address

__all__ = ["Operating"]

# Rounds of SCAN in one call: most keys are no streams, and a page without a user is of no use.
_SCAN_ROUNDS: Final = 100
_DOCTOR_SETTINGS: Final = (
    "maxmemory",
    "maxmemory-policy",
    "appendonly",
    "appendfsync",
    "save",
    "stream-node-max-bytes",
    "stream-node-max-entries",
    "client-output-buffer-limit",
    "min-replicas-to-write",
    "min-slaves-to-write",
    "cluster-enabled",
    "timeout",
    "maxclients",
)
_DOCTOR_FACTS: Final = (
    "loading",
    "role",
    "redis_mode",
    "maxmemory",
    "maxclients",
    "connected_clients",
    "aof_enabled",
    "aof_last_write_status",
    "aof_last_bgrewrite_status",
    "rdb_last_bgsave_status",
)


class Operating(Linked):
    """The part of a `RedisStore` that looks at nodes, sessions, dead letters and the server."""

    # --- nodes ------------------------------------------------------------------------------------------------------

    async def beat_node(self, record: NodeRecord) -> None:
        """See `Store.beat_node`."""
        await self._call(self._commands.beat_node(record))

    async def leave_node(self, node: NodeName) -> None:
        """See `Store.leave_node`."""
        await self._call(Command(("HDEL", self.keys.nodes, node), nothing))

    async def nodes(self) -> Sequence[NodeRecord]:
        """See `Store.nodes`."""
        return await self._call(self._commands.nodes())

    async def probe(self, node: NodeName, token: str) -> None:
        """See `Store.probe`. Tokens spread over the partitions, so that over time each channel is tried."""
        read = await self._call(self._commands.probe(node, token, probe_message(token)))
        if read != token:
            raise StoreUnavailable(f"Redis gave back {read!r} for the probe {token!r} that was just written")

    # --- sessions ---------------------------------------------------------------------------------------------------

    async def sessions(self, user: UserId) -> Sequence[SessionRecord]:
        """See `Store.sessions`."""
        found = await self._call(self._commands.sessions(user))
        return sorted(found, key=lambda record: record.session)

    async def pending(self, user: UserId, session: SessionId, after: EntryId, count: int) -> Sequence[PendingRecord]:
        """See `Store.pending`."""
        return await self._call(self._commands.waiting(user, session, after, count))

    async def users(self, cursor: str, count: int) -> tuple[Sequence[UserId], str]:
        """See `Store.users`."""
        at, users = cursor, list[UserId]()
        for _ in range(_SCAN_ROUNDS):
            keys, at = await self._scan(
                at, "MATCH", self.keys.stream_pattern(), "COUNT", max(10, count), "TYPE", "stream"
            )
            users += [user for key in keys if (user := self.keys.user_of_stream(key)) is not None]
            if users or not at:
                break
        return users, at

    async def confirmations(
        self, user: UserId, after: EntryId, count: int
    ) -> Sequence[tuple[EntryId, ConfirmationRecord]]:
        """See `Store.confirmations`."""
        key = self.keys.user(user).records
        return await self._call(
            Command(
                ("XRANGE", key, f"({after}", "+", "COUNT", count),
                lambda reply, _primary: [confirmation(raw) for raw in reply],
            )
        )

    # --- dead letters -----------------------------------------------------------------------------------------------

    async def dead_letters(self, partition: int, after: EntryId, count: int) -> Sequence[DeadLetterRecord]:
        """See `Store.dead_letters`."""
        key = self.keys.partition(partition).dead
        return await self._call(
            Command(
                ("XRANGE", key, f"({after}", "+", "COUNT", count),
                lambda reply, _primary: [dead_letter(partition, raw) for raw in reply],
            )
        )

    async def dead_letter_partitions(self) -> Sequence[int]:
        """See `Store.dead_letter_partitions`. One XLEN a partition, all in one write."""
        futures: list[asyncio.Future[int | StoreError]] = [
            self.link.execute(Command(("XLEN", self.keys.partition(number).dead), whole))
            for number in range(self.keys.partitions)
        ]
        found: list[int] = []
        for number, future in enumerate(futures):
            length = await future
            if isinstance(length, StoreError):
                raise length
            if length:
                found.append(number)
        return found

    # --- the server -------------------------------------------------------------------------------------------------

    async def info(self) -> StoreInfo:
        """See `Store.info`. Of a Cluster: the first primary, with the memory of all and the fewest replicas of any."""
        first, *others = await self.infos()
        return replace(
            first,
            memory_bytes=first.memory_bytes + sum(other.memory_bytes for other in others),
            replicas=min([first.replicas, *(other.replicas for other in others)]),
        )

    async def infos(self) -> Sequence[StoreInfo]:
        """The server behind it, of a Cluster each primary. Settings that the user may not read are left out."""
        return await asyncio.gather(*(self._info(place) for place in await self.link.primaries()))

    async def _info(self, at: Address) -> StoreInfo:
        facts = self.link.execute(Command(("INFO",), facts_of), at)
        clock = self.link.execute(Command(("TIME",), time_ms_of), at)
        config = self.link.execute(Command(("CONFIG", "GET", *_DOCTOR_SETTINGS), settings_of), at)
        known, time_ms, settings = await facts, await clock, await config
        if isinstance(known, StoreError):
            raise known
        if isinstance(time_ms, StoreError):
            raise time_ms
        kind = known.get("server_name", "redis")
        return StoreInfo(
            kind=kind,
            version=known.get("valkey_version") or known.get("redis_version", ""),
            primary=primary_named(known),
            time_ms=time_ms,
            memory_bytes=int(known.get("used_memory", "0")),
            replicas=int(known.get("connected_slaves", "0")),
            settings={} if isinstance(settings, StoreError) else settings,
            facts={name: known[name] for name in _DOCTOR_FACTS if name in known},
            address=str(at),
        )

    async def ping(self) -> int:
        """See `Store.ping`."""
        return await self._call(Command(("TIME",), time_ms_of))
