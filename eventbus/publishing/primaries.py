"""What a store says of its primaries, for those who keep something that a primary may lose.

A store over a network says when a primary is lost and when another stands, also while nothing is published
(`watch_primaries`). One that does not may still say whether it is connected.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from eventbus.store import Store
from eventbus.timers import Cancellable, Timers

__all__ = ["Primaries"]

_LOOK_MS: Final = 20  # from the word that a primary stands to the look: a Cluster that moves its slots tells of each


class Primaries:
    """Watches the primaries of a store. Made and used in one event loop.

    Args:
        store: whose.
        timers: where waits go.
        on_lost: called at once whenever a primary may be another from now on.
        on_look: called a little after one stands, perhaps another.
    """

    def __init__(
        self, store: Store, timers: Timers, on_lost: Callable[[], object], on_look: Callable[[], object]
    ) -> None:
        self._store = store
        self._timers = timers
        self._on_look = on_look
        self._look: Cancellable | None = None
        self._was_connected = False
        watch: Callable[[Callable[[], object], Callable[[], object]], Callable[[], None]] | None
        watch = getattr(store, "watch_primaries", None)
        self._unwatch = None if watch is None else watch(on_lost, self._stands)

    def has_lost_connection(self) -> bool:
        """Whether the store's connection has gone since the last call, and nobody said so: no call has failed, it went
        between two of them, and who answers next may be another.
        """
        if self._unwatch is not None:
            return False
        if getattr(self._store, "connected", True):
            self._was_connected = True
            return False
        lost, self._was_connected = self._was_connected, False
        return lost

    def look_now(self) -> None:
        """Do not wait with a look that is due."""
        if self._look is not None:
            self._look.cancel()
            self._looked()

    def end(self) -> None:
        """Watch no more; safe to call twice."""
        if self._unwatch is not None:
            self._unwatch()
        if self._look is not None:
            self._look.cancel()
            self._look = None

    def _stands(self) -> None:
        if self._look is None:
            self._look = self._timers.call_later(_LOOK_MS, self._looked)

    def _looked(self) -> None:
        self._look = None
        self._on_look()
