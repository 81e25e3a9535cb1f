"""What operators do, on Redis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import orjson

from eventbus.config import StoreSettings
from eventbus.errors import StoreError
from eventbus.ids import ENTRY_ZERO, EntryId, NodeName, SessionId, UserId
from eventbus.store.answers import nothing, scan_page, whole
from eventbus.store.command import Argument, Command
from eventbus.store.keys import Keys
from eventbus.store.mending import (
    AUDIT_LIFE_MS,
    AUDIT_MAX,
    HELD_LIFE_MS,
    AuditRecord,
    Hold,
    KeyRecord,
    Pause,
    PutBack,
    SentAgain,
    TakeOff,
)
from eventbus.store.operating import Operating
from eventbus.store.scripts import script

__all__ = ["RedisMending", "audit_call", "forget_call", "put_back_call", "send_again_call", "take_off_call"]

_SCAN_COUNT: Final = 1_000
_FORGET_PAGE: Final = 500


class RedisMending(Operating):
    """The part of a `RedisStore` for `eventbus.store.mending`."""

    async def take_off(self, request: TakeOff) -> Sequence[EntryId]:
        if not request.entries:
            return []
        return await self._call(take_off_call(self.keys, self.settings, request))

    async def send_again(self, user: UserId, session: SessionId, entries: Sequence[EntryId]) -> SentAgain:
        return await self._call(send_again_call(self.keys, self.settings, user, session, entries))

    async def put_back(self, user: UserId, session: SessionId, letter: EntryId, entry: EntryId) -> PutBack:
        return await self._call(put_back_call(self.keys, self.settings, user, session, letter, entry))

    async def drop_dead(self, partition: int, ids: Sequence[EntryId]) -> int:
        return await self._call(Command(("XDEL", self.keys.partition(partition).dead, *ids), whole)) if ids else 0

    # --- types ------------------------------------------------------------------------------------------------------

    async def pause_type(self, type: str, by: str, reason: str) -> None:
        raw = orjson.dumps({"by": by, "reason": reason, "since_ms": await self.ping()})
        await self._everywhere("HSETNX", type, raw)
        await self._everywhere("PEXPIRE", HELD_LIFE_MS)

    async def resume_type(self, type: str) -> bool:
        return await self._everywhere("HDEL", type) > 0

    async def _everywhere(self, verb: str, *words: Argument) -> int:
        """A command on each partition's paused types: a script looks at its own partition alone."""
        numbers = range(self.keys.partitions)
        answers: list[int | StoreError] = await self.link.execute_all(
            [Command((verb, self.keys.partition(number).paused, *words), whole) for number in numbers]
        )
        done = 0
        for answer in answers:
            if isinstance(answer, StoreError):
                raise answer
            done += answer
        return done

    async def paused_types(self) -> Sequence[Pause]:
        numbers = range(self.keys.partitions)
        answers: list[list[bytes] | StoreError] = await self.link.execute_all(
            [Command(("HGETALL", self.keys.partition(number).paused), _raw) for number in numbers]
        )
        found: dict[str, tuple[dict[str, Any], int]] = {}
        for answer in answers:
            if isinstance(answer, StoreError):
                raise answer
            for name, raw in zip(answer[::2], answer[1::2], strict=True):
                told, count = found.get(name.decode(), (orjson.loads(raw), 0))
                found[name.decode()] = told, count + 1
        return [Pause(type=name, partitions=count, **told) for name, (told, count) in sorted(found.items())]

    # --- nodes ------------------------------------------------------------------------------------------------------

    async def hold_node(self, node: NodeName, by: str, reason: str) -> None:
        raw = orjson.dumps({"by": by, "reason": reason, "since_ms": await self.ping()})
        await self._call(Command(("HSETNX", self.keys.held_nodes, node, raw), whole))
        await self._call(Command(("PEXPIRE", self.keys.held_nodes, HELD_LIFE_MS), whole))
        await self._tell_held(node)

    async def free_node(self, node: NodeName) -> bool:
        freed = await self._call(Command(("HDEL", self.keys.held_nodes, node), whole))
        await self._tell_held(node)
        return freed > 0

    async def _tell_held(self, node: NodeName) -> None:
        # A node that misses it looks by itself before long.
        await self._call(Command(("SPUBLISH", self.keys.partition(0).channel + node, "%held"), nothing))

    async def held_nodes(self) -> Sequence[Hold]:
        raw = await self._call(Command(("HGETALL", self.keys.held_nodes), _raw))
        pairs = sorted(zip(raw[::2], raw[1::2], strict=True))
        return [_hold(NodeName(name.decode()), told) for name, told in pairs]

    # --- a user's data ----------------------------------------------------------------------------------------------

    async def keys_of_user(self, user: UserId) -> Sequence[KeyRecord]:
        names = sorted({*self.keys.of_user(user), *await self._keys_of_runs(user)})
        types = await self.link.execute_all([Command(("TYPE", name), _text) for name in names])
        records = []
        for name, kind in zip(names, types, strict=True):
            if isinstance(kind, StoreError):
                raise kind
            if kind != "none":
                records.append(KeyRecord(key=name, type=kind))
        return records

    async def _keys_of_runs(self, user: UserId) -> set[str]:
        """There is no list of them."""
        found: set[str] = set()
        at, pattern = "0", self.keys.runs_pattern_of(user)
        while True:
            # On the server that has the user: everything of one is there.
            words = ("SCAN", at, "MATCH", pattern, "COUNT", _SCAN_COUNT)
            at, page = await self._call(Command(words, scan_page, key=self.keys.user(user).stream))
            found.update(key for key in page if self.keys.is_of(user, key))
            if at == "0":
                return found

    async def erase_keys(self, user: UserId, keys: Sequence[str]) -> int:
        if foreign := [key for key in keys if not self.keys.is_of(user, key)]:
            raise ValueError(f"{foreign[0]} is no key of {user} alone")
        erased = 0
        for answer in await self.link.execute_all([Command(("UNLINK", key), whole) for key in keys]):
            if isinstance(answer, StoreError):
                raise answer
            erased += answer
        return erased

    async def forget_user(self, user: UserId) -> int:
        taken, letter, event = 0, ENTRY_ZERO, ENTRY_ZERO
        while True:
            count, last_letter, last_event = await self._call(forget_call(self.keys, user, letter, event))
            taken += count
            if not last_letter and not last_event:
                return taken
            letter, event = EntryId(last_letter or letter), EntryId(last_event or event)

    # --- audit ------------------------------------------------------------------------------------------------------

    async def audit(self, what: Mapping[str, object]) -> EntryId:
        return await self._call(audit_call(self.keys, what))

    async def audits(self, before: EntryId | None, count: int) -> Sequence[AuditRecord]:
        highest = "+" if before is None else f"({before}"
        return await self._call(Command(("XREVRANGE", self.keys.audit, highest, "-", "COUNT", count), _audits))


# --- the calls of the scripts -----------------------------------------------------------------------------------------


def take_off_call(keys: Keys, settings: StoreSettings, request: TakeOff) -> Command[list[EntryId]]:
    """The call of take_off.lua."""
    named = keys.user(request.user)
    used = (named.stream, named.live, named.records, named.partition.counts, named.partition.dead)
    words: tuple[Argument, ...] = (
        request.how.value,
        request.user,
        request.session,
        named.partition.channel,
        settings.live_ttl_ms,
        settings.retention_ms,
        settings.dead_letter_ttl_ms,
        request.reason,
        *request.entries,
    )
    return Command(("EVALSHA", script("take_off").sha, len(used), *used, *words), _ids, scripted=True)


def send_again_call(
    keys: Keys, settings: StoreSettings, user: UserId, session: SessionId, entries: Sequence[EntryId]
) -> Command[SentAgain]:
    """The call of send_again.lua."""
    named = keys.user(user)
    words: tuple[Argument, ...] = (user, session, named.partition.channel, settings.live_ttl_ms, *entries)

    def parse(reply: Any, _primary: str) -> SentAgain:
        node, *ids = (raw.decode() for raw in reply)
        return SentAgain(node=NodeName(node) if node else None, entries=[EntryId(one) for one in ids])

    return Command(("EVALSHA", script("send_again").sha, 2, named.stream, named.live, *words), parse, scripted=True)


# As many arguments as it takes to name a dead letter.
def put_back_call(
    keys: Keys, settings: StoreSettings, user: UserId, session: SessionId, letter: EntryId, entry: EntryId
) -> Command[PutBack]:
    """The call of put_back.lua."""
    named = keys.user(user)
    used = (named.stream, named.live, named.partition.dead, named.partition.waiting)
    words = (
        letter,
        entry,
        user,
        session,
        named.partition.channel,
        settings.live_ttl_ms,
        settings.retention_ms,
    )
    return Command(
        ("EVALSHA", script("put_back").sha, len(used), *used, *words),
        lambda reply, _primary: PutBack(reply.decode()),
        scripted=True,
    )


def forget_call(keys: Keys, user: UserId, letter: EntryId, event: EntryId) -> Command[tuple[int, str, str]]:
    """The call of forget_user.lua."""
    named = keys.user(user).partition
    used = (named.dead, named.operators, named.due, named.waiting)
    return Command(
        ("EVALSHA", script("forget_user").sha, len(used), *used, user, letter, event, _FORGET_PAGE),
        lambda reply, _primary: (int(reply[0]), reply[1].decode(), reply[2].decode()),
        scripted=True,
    )


def audit_call(keys: Keys, what: Mapping[str, object]) -> Command[EntryId]:
    """The call of audit.lua."""
    words: tuple[Argument, ...] = (AUDIT_LIFE_MS, AUDIT_MAX, orjson.dumps(what))
    return Command(
        ("EVALSHA", script("audit").sha, 1, keys.audit, *words),
        lambda reply, _primary: EntryId(reply.decode()),
        scripted=True,
    )


def _ids(reply: Any, _primary: str) -> list[EntryId]:
    return [EntryId(raw.decode()) for raw in reply]


def _raw(reply: Any, _primary: str) -> list[bytes]:
    return list(reply)


def _text(reply: Any, _primary: str) -> str:
    return reply.decode() if isinstance(reply, bytes) else str(reply)


def _hold(node: NodeName, raw: bytes) -> Hold:
    """A hold as it was written. One that can not be read is one all the same: every node reads the whole list, and
    what a later release or a slip of the hand wrote there must not end them.
    """
    try:
        told = orjson.loads(raw)
        return Hold(node=node, by=str(told["by"]), reason=str(told["reason"]), since_ms=int(told["since_ms"]))
    except (ValueError, TypeError, KeyError):
        return Hold(node=node, by="", reason="what is written of it can not be read", since_ms=0)


def _audits(reply: Any, _primary: str) -> list[AuditRecord]:
    return [
        AuditRecord(id=EntryId(raw[0].decode()), time_ms=int(raw[0].partition(b"-")[0]), what=orjson.loads(raw[1][1]))
        for raw in reply
    ]
