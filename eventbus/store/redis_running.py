"""Runs, leases and deadlines on Redis."""

from __future__ import annotations

from eventbus.store.linked import Linked

__all__ = ["RedisRuns"]


class RedisRuns(Linked):
    """The part of a `RedisStore` for `eventbus.store.running`."""
