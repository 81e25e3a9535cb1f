"""Revocations in memory."""

from __future__ import annotations

import secrets

from eventbus.errors import TooManyRevocations
from eventbus.store.revoking import REVOCATIONS_MAX, Revocation, RevocationMark, RevocationPage, Revoke
from eventbus.testing.memory_base import MemoryBase

__all__ = ["MemoryRevocations"]

_MARGIN_MS = 60_000


class MemoryRevocations(MemoryBase):
    """The part of a `MemoryStore` for `eventbus.store.revoking`."""

    async def revoke(self, request: Revoke) -> Revocation:
        async with self._call():
            now_ms = self.clock.now_ms()
            self._forget_ended(now_ms)
            subject = request.subject
            until_ms = max(request.until_ms or now_ms + self.settings.revocation_ttl_ms, now_ms + _MARGIN_MS)
            known = self._revoked.get(subject.name)
            if known is not None:
                until_ms = max(until_ms, known.until_ms)
            elif len(self._revoked) >= REVOCATIONS_MAX:
                raise TooManyRevocations(f"{REVOCATIONS_MAX} revocations have not ended yet")
            if not self._revoked:
                self._revoked_epoch, self._revoked_number = secrets.token_hex(8), 0
            self._revoked_number += 1
            made = Revocation(
                subject=subject,
                reason=request.reason,
                by=request.by,
                number=self._revoked_number,
                revoked_ms=now_ms,
                until_ms=until_ms,
            )
            self._revoked.pop(subject.name, None)
            self._revoked[subject.name] = made
            for node in self._nodes:
                self._tell(node, lambda listener: listener.revoked())
            return made

    async def revocations(self, mark: RevocationMark, count: int) -> RevocationPage:
        async with self._call():
            self._forget_ended(self.clock.now_ms())
            same = bool(self._revoked) and (mark.epoch, mark.primary) == (self._revoked_epoch, self._primary)
            after = mark.number if same else 0
            found = [one for one in self._revoked.values() if one.number > after]
            newest = self._revoked_number if self._revoked else 0
            more = len(found) > count
            return RevocationPage(
                revocations=found[:count],
                mark=RevocationMark(
                    epoch=self._revoked_epoch if self._revoked else "",
                    number=found[count - 1].number if more else newest,
                    primary=self._primary,
                ),
                more=more,
            )

    def _forget_ended(self, now_ms: int) -> None:
        for name, one in list(self._revoked.items()):
            if one.until_ms <= now_ms:
                del self._revoked[name]
