"""Keys change while the node runs: the files that hold them are looked at, and what they hold counts from then on.

A file that can not be read, or holds no usable key, changes nothing: whoever writes it is perhaps not done.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Sequence
from typing import Final

from eventbus.clock import seconds
from eventbus.errors import ConfigError
from gateway.access.auth import Authenticator
from gateway.config import NodeSettings, key_files, load_auth
from gateway.counters import Counters

__all__ = ["Rotation"]

logger = logging.getLogger(__name__)

_Looks = tuple[tuple[int, int, int] | None, ...]

FULL_LOOKS: Final = 60
"""After so many looks the files are read even if they look the same: a clock may stand still between two writes."""


class Rotation:
    """Keeps authenticators as the key files are.

    Args:
        settings: the node's.
        authenticators: those to renew.
        counters: for what happened.
        gone: called when a key has gone, after the authenticators know.
    """

    def __init__(
        self,
        settings: NodeSettings,
        authenticators: Sequence[Authenticator],
        counters: Counters,
        *,
        gone: Callable[[], None] = lambda: None,
    ) -> None:
        self._settings = settings
        self._authenticators = tuple(authenticators)
        self._counters = counters
        self._gone = gone
        self._files = key_files(settings.jwt)
        self._seen = self._look()
        self._looks = 0

    def __repr__(self) -> str:
        return f"<Rotation of {len(self._files)} files>"

    async def run(self) -> None:
        """Looks until it is cancelled; a key that was given by value never changes."""
        while True:
            await asyncio.sleep(seconds(self._settings.jwt.jwt_reload_ms))
            self.look()

    def look(self) -> None:
        """Looks at the files, which are small and on this machine, and takes over what they hold."""
        self._looks += 1
        seen = self._look()
        if not self._files or (seen == self._seen and self._looks % FULL_LOOKS):
            return
        same = seen == self._seen
        try:
            fresh = load_auth(self._settings)
        except ConfigError as error:
            # Tried again with the next look: the file may be half written.
            self._counters.key_reloads["failed"] += 1
            logger.error("the keys stay as they are: %s", error)
            return
        self._seen = seen
        gone = [authenticator.renew(fresh) for authenticator in self._authenticators]
        if not same:
            self._counters.key_reloads["done"] += 1
            logger.info("%d keys verify tokens now", len(fresh.keys))
        if any(gone):
            self._gone()

    def _look(self) -> _Looks:
        return tuple(_look_at(file) for file in self._files)


def _look_at(file: str) -> tuple[int, int, int] | None:
    try:
        found = os.stat(file)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
