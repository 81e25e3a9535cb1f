"""What Sentinels tell by themselves: that they change a primary.

A primary that is replaced by command goes on for seconds, and whatever it takes in them is lost: nothing is wrong with
it until it is told. The Sentinel that replaces it says whom it has just told to be the primary, and up to a second
later, when it has asked, that the other is one: only from then on it names the other to whoever asks.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Sequence
from typing import Any, Final

from eventbus.errors import StoreError
from eventbus.store.command import pack
from eventbus.store.connection import connect
from eventbus.store.endpoint import Endpoint
from eventbus.store.topology import Address

__all__ = ["Heralds", "promised_to"]

_PROMISE: Final = "+failover-state-wait-promotion"
# Of the first two, the first comes from the Sentinel that leads the failover, when the replica is promoted; the other
# from each of them, when it has heard of it. From then on it names the new primary. The promise is asked for by itself:
# a user may lack the right to hear it.
_SUBSCRIBE: Final = pack(("SUBSCRIBE", "+promoted-slave", "+switch-master")) + pack(("SUBSCRIBE", _PROMISE))
_FIRST_WAIT_S: Final = 0.1
_LONGEST_WAIT_S: Final = 5.0


def promised_to(message: bytes, service: str) -> Address | None:
    """Whom a Sentinel has told to be the primary of a service, by its message; None when it speaks of another service.

    Redis: Sentinel, Pub/Sub messages, `slave <name> <host> <port> @ <service> <host> <port>`.
    """
    words = message.decode(errors="replace").split(" ")
    if len(words) < 6 or words[4:6] != ["@", service] or not words[3].isdigit():
        return None
    return Address(host=words[2], port=int(words[3]))


class Heralds:
    """Listens to Sentinels, over a connection to each. One that does not answer is tried again and again.

    What is missed costs time and nothing else: they are asked now and then, and whenever something seems wrong.

    Args:
        sentinels: whom; none where there are none.
        service: under which name they know the primary.
        tell: called in the event loop with the Sentinel that tells of a change, perhaps of another service, and with
            the server that it has told to be the primary, if it tells of that.
        name: how the connections call themselves in CLIENT LIST.
        timeout_s: longest wait for a connection.
    """

    def __init__(
        self,
        sentinels: Sequence[Endpoint],
        service: str,
        tell: Callable[[Endpoint, Address | None], object],
        *,
        name: str,
        timeout_s: float,
    ) -> None:
        self._sentinels = sentinels
        self._service = service
        self._tell = tell
        self._name = name
        self._timeout_s = timeout_s
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Listen; call it in the event loop."""
        if not self._tasks:
            loop = asyncio.get_running_loop()
            self._tasks = [loop.create_task(self._run(one), name=self._name) for one in self._sentinels]

    async def aclose(self) -> None:
        """End it; safe to call twice."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _run(self, sentinel: Endpoint) -> None:
        wait_s = _FIRST_WAIT_S
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            with contextlib.suppress(StoreError):
                await self._listen(sentinel)
            lasted = loop.time() - began > _LONGEST_WAIT_S
            wait_s = _FIRST_WAIT_S if lasted else min(2 * wait_s, _LONGEST_WAIT_S)
            await asyncio.sleep(wait_s * random.uniform(0.5, 1.0))  # noqa: S311

    async def _listen(self, sentinel: Endpoint) -> None:
        """Returns when the connection has ended. Raises: StoreError, when none comes about."""
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def heard(message: Any) -> None:
            if isinstance(message, list) and message[0] == b"message":
                is_promise = message[1] == _PROMISE.encode()
                self._tell(sentinel, promised_to(message[2], self._service) if is_promise else None)

        def lost(_error: StoreError) -> None:
            if not ended.done():
                ended.set_result(None)

        greeting = (("CLIENT", "SETNAME", self._name),)
        connection, _ = await connect(sentinel, greeting, timeout_s=self._timeout_s)
        try:
            connection.take_over(heard, lost)
            connection.write(_SUBSCRIBE)
            self._tell(sentinel, None)  # it may have told of something before
            await ended
        finally:
            connection.drop()
