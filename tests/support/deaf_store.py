"""A store in memory that some calls do not reach for a while."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from eventbus.errors import StoreError, StoreUnavailable
from eventbus.store import AckRequest, Confirmed, ConfirmRequest
from eventbus.testing import MemoryStore


class DeafStore(MemoryStore):
    """All else works.

    Args:
        to: what it is deaf to.

    Attributes:
        refusals: how many of these calls it will still refuse.
    """

    def __init__(self, to: Literal["acks", "confirmations"]) -> None:
        super().__init__()
        self.refusals = 3
        self._to = to

    def _hear(self, what: str) -> None:
        if self.refusals and what == self._to:
            self.refusals -= 1
            raise StoreUnavailable(f"the {what} did not reach the store (a fault of the test)")

    async def ack_many(self, requests: Sequence[AckRequest]) -> Sequence[int | StoreError]:
        self._hear("acks")
        return await super().ack_many(requests)

    async def confirm_many(self, requests: Sequence[ConfirmRequest]) -> Sequence[Confirmed | StoreError]:
        self._hear("confirmations")
        return await super().confirm_many(requests)
