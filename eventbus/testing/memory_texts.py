"""Token streams in memory."""

from __future__ import annotations

from eventbus.testing.memory_base import MemoryBase

__all__ = ["MemoryTexts"]


class MemoryTexts(MemoryBase):
    """The part of a `MemoryStore` for `eventbus.store.texts`."""
