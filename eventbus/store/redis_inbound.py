"""Commands and questions on Redis."""

from __future__ import annotations

from eventbus.store.linked import Linked

__all__ = ["RedisInbound"]


class RedisInbound(Linked):
    """The part of a `RedisStore` for `eventbus.store.inbound`."""
