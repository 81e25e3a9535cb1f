"""Token streams on Redis."""

from __future__ import annotations

from eventbus.store.linked import Linked

__all__ = ["RedisTexts"]


class RedisTexts(Linked):
    """The part of a `RedisStore` for `eventbus.store.texts`."""
