"""The loop of a subscriber that connects again and again. `eventbus.client.state` decides when, and when not."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final, NoReturn

from eventbus.client.callbacks import State, StateDetail
from eventbus.client.connection import ABNORMAL, Connection, Ended, SocketClosed
from eventbus.client.core import Core
from eventbus.client.state import STABLE_MS, Backoff, final_error, http_error
from eventbus.client.websocket import Door, TurnedAway
from eventbus.errors import CloseCode, NodeFault, TokenFailed

__all__ = ["Connecting"]

# One name for the whole subscriber: an application sets one level for it.
logger = logging.getLogger("eventbus.subscriber")

INTERNAL_ERROR: Final = 1011


class Connecting:
    """One connection after another, with waits between.

    Args:
        core: of the subscriber.
        door: opens the sockets.
        random: from 0 to 1, for the jitter of the waits.
    """

    def __init__(self, core: Core, door: Door, random: Callable[[], float]) -> None:
        self.connection: Connection | None = None
        """The one that is open, None in between."""
        self._core = core
        self._door = door
        self._random = random
        self._backoff = Backoff()
        self._count = 0
        self._late_hellos = 0

    async def forever(self) -> NoReturn:
        """Connect, and again when a connection has ended. Cancellation closes the connection that there is.

        Raises:
            EventBusError: there is no point in another one.
        """
        while True:
            ended = await self._attempt()
            goaway_ms = None if ended.come_back_ms is None else ended.come_back_ms - self._now()
            wait_ms = self._backoff.wait_ms(self._random(), goaway_ms=goaway_ms, retry_ms=ended.retry_ms)
            logger.info("connecting again in %d ms: %s %s", wait_ms, ended.code or "", ended.reason)
            self._core.callbacks.set_state(
                State.WAITING, StateDetail(code=ended.code, reason=ended.reason, wait_ms=wait_ms)
            )
            await self._sleep(wait_ms)

    async def _attempt(self) -> Ended:
        """One connection, from the token to its end. Raises: EventBusError, when there is no point in another."""
        core = self._core
        core.callbacks.set_state(State.CONNECTING)
        try:
            socket = await self._door.open(await core.tokens.get())
        except TokenFailed as error:
            core.callbacks.report(error, error.__cause__)
            return Ended(reason=str(error))
        except TurnedAway as answer:
            return self._turned_away(answer)
        except SocketClosed as error:
            return Ended(code=error.code, reason=error.reason)
        self._count += 1
        self.connection = connection = Connection(core, socket, self._count)
        try:
            ended = await connection.serve()
        finally:
            self.connection = None
            if connection.link.welcome is not None:
                self._late_hellos = 0
            if connection.link.lived_ms(self._now()) >= STABLE_MS:
                self._backoff.good()
            core.inbox.disconnected()
        return self._judge(ended)

    def _turned_away(self, answer: TurnedAway) -> Ended:
        status, message = answer.status, answer.message
        if status == 401:
            self._core.tokens.refused()
        final = http_error(status, message, fresh_token=self._core.tokens.fresh)
        if final is not None:
            raise final
        if status not in (401, 429, 503):
            self._core.callbacks.report(NodeFault(f"the node answered HTTP {status}: {message}", closed_with=status))
        return Ended(code=status, reason=message, retry_ms=answer.retry_ms)

    def _judge(self, ended: Ended) -> Ended:
        code = ended.code or ABNORMAL
        if code == CloseCode.UNAUTHENTICATED:
            self._core.tokens.refused()
        if code == CloseCode.HELLO_TIMEOUT:
            self._late_hellos += 1
        final = final_error(code, ended.reason, fresh_token=self._core.tokens.fresh, late_hellos=self._late_hellos)
        if final is not None:
            raise final
        if code == INTERNAL_ERROR:  # a defect of the node: worth a line, and worth another try
            self._core.callbacks.report(NodeFault(f"the node closed with 1011: {ended.reason}", closed_with=code))
        return ended

    async def _sleep(self, ms: int) -> None:
        rung = asyncio.Event()
        timer = self._core.timers.call_later(ms, rung.set)
        try:
            await rung.wait()
        finally:
            timer.cancel()

    def _now(self) -> int:
        return self._core.clock.monotonic_ms()
