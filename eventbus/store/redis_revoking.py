"""Revocations on Redis."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

import orjson

from eventbus.errors import StoreError, TooManyRevocations
from eventbus.ids import SessionId, UserId
from eventbus.store.command import Argument, Command
from eventbus.store.keys import Keys
from eventbus.store.operating import Operating
from eventbus.store.revoking import (
    REVOCATIONS_MAX,
    Revocation,
    RevocationMark,
    RevocationPage,
    Revoke,
    Subject,
)
from eventbus.store.scripts import script

__all__ = ["RedisRevocations", "revocations_call", "revoke_call"]


class RedisRevocations(Operating):
    """The part of a `RedisStore` for `eventbus.store.revoking`."""

    async def revoke(self, request: Revoke) -> Revocation:
        # A node that is not listed (it is frozen, or has just begun) reads the list by itself.
        channels = [self.keys.revoked.channel + record.node for record in await self.nodes()]
        life_ms = self.settings.revocation_ttl_ms
        return await self._call(revoke_call(self.keys, request, channels, life_ms, secrets.token_hex(8)))

    async def revocations(self, mark: RevocationMark, count: int) -> RevocationPage:
        page = await self._call(revocations_call(self.keys, mark, count))
        if mark.number and page.mark.primary != mark.primary:
            # After a failover other revocations may stand under the numbers that were read.
            fresh = RevocationMark(epoch="", number=0, primary=page.mark.primary)
            page = await self._call(revocations_call(self.keys, fresh, count))
        return page


def revoke_call(
    keys: Keys, request: Revoke, channels: Sequence[str], life_ms: int, fresh_epoch: str
) -> Command[Revocation]:
    """The call of revoke.lua."""
    revoked, subject = keys.revoked, request.subject
    record = {"jti": subject.jti, "user": subject.user, "session": subject.session}
    record |= {"reason": request.reason, "by": request.by}
    words: tuple[Argument, ...] = (
        fresh_epoch,
        subject.name,
        orjson.dumps({name: value for name, value in record.items() if value}),
        request.until_ms or 0,
        life_ms,
        REVOCATIONS_MAX,
        *channels,
    )
    used = (revoked.records, revoked.order, revoked.ends)
    return Command(("EVALSHA", script("revoke").sha, len(used), *used, *words), _revoked, scripted=True)


def revocations_call(keys: Keys, mark: RevocationMark, count: int) -> Command[RevocationPage]:
    """The call of revocations.lua."""
    used = (keys.revoked.records, keys.revoked.order)
    words = (mark.epoch, mark.number, count)

    def parse(reply: Any, primary: str) -> RevocationPage:
        epoch, newest, *records = reply
        found = [_revocation(record) for record in records]
        more = len(found) >= count and found[-1].number < newest
        number = found[-1].number if more else newest
        return RevocationPage(
            revocations=found, mark=RevocationMark(epoch=epoch.decode(), number=number, primary=primary), more=more
        )

    return Command(("EVALSHA", script("revocations").sha, len(used), *used, *words), parse, scripted=True)


def _revoked(reply: Any, _primary: str) -> Revocation | StoreError:
    if reply == b"full":
        return TooManyRevocations(
            f"{REVOCATIONS_MAX} revocations have not ended yet: revoke users and not single tokens, or change the key"
        )
    return _revocation(reply)


def _revocation(raw: bytes) -> Revocation:
    number, revoked_ms, until_ms, text = raw.split(b" ", 3)
    record = orjson.loads(text)
    user, session = record.get("user"), record.get("session")
    return Revocation(
        subject=Subject(
            jti=record.get("jti"),
            user=None if user is None else UserId(user),
            session=None if session is None else SessionId(session),
        ),
        reason=record.get("reason", ""),
        by=record.get("by", ""),
        number=int(number),
        revoked_ms=int(revoked_ms),
        until_ms=int(until_ms),
    )
