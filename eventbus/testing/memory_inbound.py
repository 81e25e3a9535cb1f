"""Commands and questions in memory."""

from __future__ import annotations

from eventbus.testing.memory_base import MemoryBase

__all__ = ["MemoryInbound"]


class MemoryInbound(MemoryBase):
    """The part of a `MemoryStore` for `eventbus.store.inbound`."""
