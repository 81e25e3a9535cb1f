"""Counts, threads and presence on Redis."""

from __future__ import annotations

from eventbus.store.linked import Linked

__all__ = ["RedisFigures"]


class RedisFigures(Linked):
    """The part of a `RedisStore` for `eventbus.store.figures`."""
