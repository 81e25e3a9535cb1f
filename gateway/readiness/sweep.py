"""What a deaf node does for its sessions: it asks Redis for each of them about once a second, until it hears again.

A node that is deaf takes nobody new, but those who are here need not be sent away: their sockets are good, and so is
the data connection. Where all nodes are deaf at once there would be nowhere to send them to.
"""

from __future__ import annotations

import asyncio
from typing import Final

from eventbus.clock import seconds
from gateway.delivery.keeper import Keeper
from gateway.delivery.lanes import Keepers
from gateway.readiness.probes import Readiness
from gateway.sessions.hub import Hub
from gateway.sessions.session import Session

__all__ = ["Sweep"]

TICK_MS: Final = 250

SESSIONS_A_TICK: Final = 500
"""Above 2,000 sessions a round takes longer than a second: 10,000 are looked after every five seconds."""

_TICKS_A_ROUND: Final = 4


class Sweep:
    """The rounds through a node's sessions.

    Args:
        hub: the sessions.
        keeper: asks Redis for them; what is unread is read then (`Session.beaten`).
        readiness: knows whether the node is deaf.
    """

    def __init__(self, hub: Hub[Session], keeper: Keeper | Keepers, readiness: Readiness) -> None:
        self._hub = hub
        self._keeper = keeper
        self._readiness = readiness
        self._waiting: list[Session] = []
        self._ticks = _TICKS_A_ROUND

    async def run(self) -> None:
        """Looks after the sessions whenever the node is deaf, until it is cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + seconds(TICK_MS)
            await asyncio.sleep(seconds(TICK_MS))
            if loop.time() - due > seconds(TICK_MS):
                # The loop is behind: what is not heard may lie unread in a socket, and this would put it off further.
                continue
            if self._readiness.is_deaf:
                self.tick()
            else:
                self._waiting, self._ticks = [], _TICKS_A_ROUND

    def tick(self) -> int:
        """Asks for the next sessions of the round, or begins the next round. Returns for how many it asked."""
        if not self._waiting and self._ticks >= _TICKS_A_ROUND:
            # A copy: sessions come and go between two ticks.
            self._waiting, self._ticks = list(self._hub), 0
        self._ticks += 1
        now, self._waiting = self._waiting[:SESSIONS_A_TICK], self._waiting[SESSIONS_A_TICK:]
        open_now = [session for session in now if session.is_open]
        for session in open_now:
            self._keeper.beat(session)
        return len(open_now)
