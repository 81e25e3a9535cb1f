"""Nodes, their channels and tickets in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from eventbus.ids import NodeName
from eventbus.store import (
    Listener,
    Listening,
    NodeRecord,
    Ticket,
)
from eventbus.testing.memory_base import MemoryBase
from eventbus.testing.memory_state import Seen

__all__ = ["MemoryNodes"]

NODE_LIFE_MS: Final = 15_000


class _Listening:
    """A subscription of one listener; the store calls it until it is closed."""

    __slots__ = ("_forget",)

    def __init__(self, forget: Callable[[], object]) -> None:
        self._forget = forget

    async def aclose(self) -> None:
        self._forget()


class MemoryNodes(MemoryBase):
    """The part of a `MemoryStore` that nodes tell of themselves, and are told by."""

    async def put_ticket(self, ticket: Ticket) -> None:
        async with self._call():
            self._tickets[ticket.ticket] = ticket.claims, self.clock.now_ms() + ticket.life_ms

    async def take_ticket(self, ticket: str) -> str | None:
        async with self._call():
            claims, until_ms = self._tickets.pop(ticket, ("", 0))
            return claims if self.clock.now_ms() < until_ms else None

    async def beat_node(self, record: NodeRecord) -> None:
        async with self._call():
            self._nodes[record.node] = Seen(record, self.clock.now_ms())

    async def leave_node(self, node: NodeName) -> None:
        async with self._call():
            self._nodes.pop(node, None)

    async def nodes(self) -> Sequence[NodeRecord]:
        async with self._call():
            since_ms = self.clock.now_ms() - NODE_LIFE_MS
            return [seen.record for _, seen in sorted(self._nodes.items()) if seen.stamp_ms > since_ms]

    async def listen(self, node: NodeName, listener: Listener) -> Listening:
        """`Listener.subscribed` is called in the next turn of the loop; the subscription never breaks by itself."""
        async with self._call():
            listeners = self._listeners.setdefault(node, [])
            listeners.append(listener)
            asyncio.get_running_loop().call_soon(listener.subscribed)

            def forget() -> None:
                if listener in listeners:
                    listeners.remove(listener)

            return _Listening(forget)

    async def probe(self, node: NodeName, token: str) -> None:
        async with self._call():
            self._tell(node, lambda listener: listener.probed(token))
