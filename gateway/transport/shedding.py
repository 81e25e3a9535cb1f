"""Keeps what a node holds for its clients within a bound.

Each session has bounds of its own: a window of entries and of bytes, an outbox. Those of fifty thousand sessions that
all stop reading at the same moment are more than a machine has, so the sum has a bound too. Beyond it the sessions that
weigh most are closed as slow consumers. They lose nothing by that: what they had not acked is pending, and their next
connection, here or on another node, is sent it again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Final, Protocol, TypeVar

from eventbus.clock import seconds
from eventbus.errors import CloseCode

__all__ = ["Shedding", "heaviest"]

logger = logging.getLogger(__name__)

LOOK_MS: Final = 2_000
"""How often the sessions are weighed."""

AT_ONCE: Final = 2_000
"""After so many others have their turn of the loop."""

LEFT_PERCENT: Final = 90
"""How much of the bound may be left when it was passed: not one close for each event that comes."""


class Heavy(Protocol):
    """What is known of a session here."""

    @property
    def held_bytes(self) -> int:
        """What the node holds for its client, about."""

    def close(self, code: CloseCode, reason: str) -> None:
        """Ends it on this connection."""


H = TypeVar("H", bound=Heavy)


def heaviest(weights: Iterable[tuple[int, H]], most_bytes: int) -> list[H]:
    """Who has to go, the heaviest first; nobody while the sum is within the bound.

    Args:
        weights: each with the bytes that it weighs.
        most_bytes: the bound.
    """
    heavy = list(weights)
    left = sum([weight for weight, _ in heavy])
    if left <= most_bytes:
        return []
    heavy.sort(key=lambda one: one[0], reverse=True)
    chosen = []
    for weight, one in heavy:
        if left * 100 <= most_bytes * LEFT_PERCENT:
            break
        left -= weight
        chosen.append(one)
    return chosen


class Shedding:
    """Weighs the sessions of a node again and again.

    Args:
        sessions: all of them.
        most_bytes: what may be held for all together.
        look_ms: how often they are weighed.

    Attributes:
        held_bytes: what was held at the last look.
        shed: how many were closed so far.
    """

    def __init__(self, sessions: Callable[[], Iterable[Heavy]], *, most_bytes: int, look_ms: int = LOOK_MS) -> None:
        self._sessions = sessions
        self._most_bytes = most_bytes
        self._look_ms = look_ms
        self.held_bytes = 0
        self.shed = 0

    def __repr__(self) -> str:
        return f"<Shedding {self.held_bytes} of {self._most_bytes} bytes held, {self.shed} sessions closed>"

    async def run(self) -> None:
        """Weighs until it is cancelled."""
        while True:
            await asyncio.sleep(seconds(self._look_ms))
            await self.look()

    async def look(self) -> None:
        """Weighs all, and closes those that have to go. A cancelled look closes nobody."""
        weights: list[tuple[int, Heavy]] = []
        for number, session in enumerate(list(self._sessions()), 1):
            held_bytes = session.held_bytes
            if held_bytes:
                weights.append((held_bytes, session))
            if number % AT_ONCE == 0:
                await asyncio.sleep(0)
        self.held_bytes = sum([weight for weight, _ in weights])
        gone = heaviest(weights, self._most_bytes)
        for session in gone:
            session.close(CloseCode.SLOW_CONSUMER, "too much waits on this node, most of it for this client")
        if gone:
            self.shed += len(gone)
            logger.warning(
                "%d bytes are held for clients, %d may be: the %d sessions that weigh most are closed, and come back",
                self.held_bytes, self._most_bytes, len(gone),
            )  # fmt: skip
