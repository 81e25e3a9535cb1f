"""Counts, threads and presence in memory."""

from __future__ import annotations

from eventbus.testing.memory_base import MemoryBase

__all__ = ["MemoryFigures"]


class MemoryFigures(MemoryBase):
    """The part of a `MemoryStore` for `eventbus.store.figures`."""
