"""Runs, leases and deadlines in memory."""

from __future__ import annotations

from eventbus.testing.memory_base import MemoryBase

__all__ = ["MemoryRuns"]


class MemoryRuns(MemoryBase):
    """The part of a `MemoryStore` for `eventbus.store.running`."""
