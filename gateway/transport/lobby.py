"""Where handshakes wait for their turn: the loop is never held up by more of them than the node's pace allows."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from dataclasses import dataclass
from typing import Final, Protocol

from eventbus.clock import seconds
from gateway.access.admission import Entry
from gateway.transport.handshake import Decision, Reject, UpgradeRequest
from gateway.transport.upgrade import Route, Upgrades

__all__ = ["Door", "Lobby"]

TICK_MS: Final = 10

WAIT_MAX_MS: Final = 5_000
"""Who has waited for longer is told to come back: a client does not wait without end."""


class Door(Protocol):
    """Who says whose turn it is.

    Attributes:
        waits_of_one: most handshakes of one address that wait; 0 is no limit.
    """

    waits_of_one: int

    def row(self, head: bytes, peer: str) -> str | None:
        """For whom a request is counted, by its bytes and where it came from; None where nobody can be limited."""

    def enters(self, waiting: int) -> Entry:
        """What becomes of one that comes when so many wait."""

    def next_enters(self) -> bool:
        """Whether the first of those who wait is let in now."""

    def away(self, head: bytes) -> Reject | None:
        """The refusal of a request by its bytes; None for a browser, which has to be told by a close."""

    def away_request(self, request: UpgradeRequest) -> Decision:
        """The refusal of a request that was read."""


@dataclass(slots=True, kw_only=True)
class _Waiting:
    transport: asyncio.Transport
    head: bytes
    early: bytes
    route: Route
    row: str | None
    until: float


class Lobby:
    """The handshakes of a listener that wait.

    Args:
        upgrades: takes those whose turn has come.
        door: says whose it is; without one everybody's.
    """

    def __init__(self, upgrades: Upgrades, door: Door | None) -> None:
        self._upgrades = upgrades
        self._door = door
        self._loop = upgrades.sockets.loop
        self._waiting: deque[_Waiting] = deque()
        self._of: Counter[str] = Counter()
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    def enter(self, transport: asyncio.Transport, head: bytes, early: bytes, route: Route) -> None:
        """Takes an upgrade request; what it becomes is decided now or within the time of a wait.

        Args:
            transport: that of the connection.
            head: the request with the empty line that ends it.
            early: what came behind it.
            route: how the connection came here.
        """
        door = self._door
        entry = Entry.NOW if door is None else door.enters(len(self._waiting))
        if door is None or entry is Entry.NOW:
            self._upgrades.begin(transport, head, early, route)
            return
        one = _Waiting(
            transport=transport,
            head=head,
            early=early,
            route=route,
            row=door.row(head, route.peer),
            until=self._loop.time() + seconds(WAIT_MAX_MS),
        )
        # One address that floods must not take the places of all others.
        if entry is Entry.AWAY or (one.row is not None and 0 < door.waits_of_one <= self._of[one.row]):
            self._away(one)
            return
        # What it says meanwhile stays in the kernel.
        transport.pause_reading()
        self._waiting.append(one)
        if one.row is not None:
            self._of[one.row] += 1
        self._arm()

    def stop(self) -> None:
        """Nobody's turn comes any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._waiting:
            self._away(self._next())

    def _next(self) -> _Waiting:
        """Takes the first of those who wait."""
        one = self._waiting.popleft()
        if one.row is not None:
            self._of[one.row] -= 1
            if not self._of[one.row]:
                del self._of[one.row]
        return one

    def _arm(self) -> None:
        if self._timer is None and self._waiting:
            self._timer = self._loop.call_later(seconds(TICK_MS), self._turn)

    def _turn(self) -> None:
        self._timer = None
        try:
            self._let_in()
        finally:
            # Also when one of them could not be taken: the others wait for their turn.
            self._arm()

    def _let_in(self) -> None:
        now = self._loop.time()
        while self._waiting:
            first = self._waiting[0]
            if first.transport.is_closing():
                self._next()
            elif now >= first.until:
                self._away(self._next())
            elif self._door is None or self._door.next_enters():
                self._next()
                first.transport.resume_reading()
                self._upgrades.begin(first.transport, first.head, first.early, first.route)
            else:
                break

    def _away(self, one: _Waiting) -> None:
        if one.transport.is_closing() or self._door is None:
            return
        one.transport.resume_reading()
        reject = self._door.away(one.head)
        if reject is not None:
            self._upgrades.refuse(one.transport, reject)
        else:
            self._upgrades.begin(one.transport, one.head, one.early, one.route, decide=self._door.away_request)
