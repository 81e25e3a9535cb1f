"""The subscription of a node: one connection on which Redis tells it of wake-ups, takeovers and acks.

| message | meaning |
|---|---|
| `<user>` | something was stored for the user |
| `!<session> <connection> <user>` | the session belongs to that connection from now on |
| `*<session> <user> <id>,...` | entries of the session were acked through another door |
| `=<session> <user> <id>,...` | `deliver: any` events that another session acked |
| `~<run> <user>` | a token stream of the run has grown or ended |
| `^` | something was revoked |
| `?<token>` | a probe |

A user id begins with none of these signs. Messages are lost while the subscription is; the listener is told of
that, and looks after everything itself when the subscription stands again.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
from typing import Any, Final

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import RedisError

from eventbus.errors import StoreError, StoreUnavailable
from eventbus.ids import ConnectionId, EntryId, RunId, SessionId, UserId
from eventbus.store import Listener
from eventbus.store.batcher import Connector, drop, pack
from eventbus.store.translate import translate

__all__ = ["Subscription", "acked_message", "displaced_message", "probe_message"]

_log = logging.getLogger("eventbus.store")

_FIRST_WAIT_S: Final = 0.02
_LONGEST_WAIT_S: Final = 1.0
# One command for this many channels: a thousand at once are no problem for a server, and one write carries them all.
_CHANNELS_A_COMMAND: Final = 256


def displaced_message(session: SessionId, connection: ConnectionId, user: UserId) -> str:
    """Tells a node that a session is another's. Source: attach.lua."""
    return f"!{session} {connection} {user}"


def acked_message(session: SessionId, user: UserId, entries: list[EntryId]) -> str:
    """Tells a node that entries were acked elsewhere."""
    return f"*{session} {user} {','.join(entries)}"


def probe_message(token: str) -> str:
    """What a node sends to itself."""
    return f"?{token}"


class Subscription:
    """Keeps a node subscribed until it is closed.

    Args:
        url: the server.
        channels: the node's channels.
        listener: who is told.
        timeout_ms: longest wait for a connection.
        ping_ms: how often the connection is tried.
        silence_ms: without a byte for so long it is given up: a half-open connection loses wake-ups without a word.
    """

    def __init__(
        self,
        url: str,
        channels: list[str],
        listener: Listener,
        *,
        timeout_ms: int,
        ping_ms: int,
        silence_ms: int,
    ) -> None:
        self._connector = Connector(url, timeout_ms=timeout_ms)
        self._channels = channels
        self._listener = listener
        self._ping_s = ping_ms / 1000
        self._silence_s = silence_ms / 1000
        self._heard = 0.0
        self._silence: StoreError | None = None
        self._stands = False
        self._task: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<Subscription channels={len(self._channels)} {'stands' if self._stands else 'is being renewed'}>"

    @property
    def closed(self) -> bool:
        """Whether it was ended."""
        return self._task is None

    def start(self) -> None:
        """Begin; call it in the event loop."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name="eventbus-listening")

    async def aclose(self) -> None:
        """End it; safe to call twice."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _run(self) -> None:
        wait_s = _FIRST_WAIT_S
        while True:
            try:
                await self._subscribe_and_listen()
            except StoreError as error:
                if self._stands:
                    self._stands = False
                    wait_s = _FIRST_WAIT_S
                    _log.warning("wake-ups are missed: %s", error)
                    self._listener.unsubscribed(str(error))
                else:
                    _log.info("no subscription yet: %s", error)
            await asyncio.sleep(wait_s * random.uniform(0.5, 1.0))  # noqa: S311
            wait_s = min(2 * wait_s, _LONGEST_WAIT_S)

    async def _subscribe_and_listen(self) -> None:
        connection, _ = await self._connector.connect(("CLIENT", "SETNAME", "eventbus-listen"))
        loop = asyncio.get_running_loop()
        self._heard = loop.time()
        self._silence = None
        watch = loop.create_task(self._watch(connection), name="eventbus-listening-watch")
        try:
            await self._listen(connection)
        except (RedisError, OSError) as error:
            raise self._why(error) from error
        finally:
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)
            await drop(connection)

    def _why(self, error: Exception) -> StoreError:
        return self._silence or translate(error)

    async def _listen(self, connection: AbstractConnection) -> None:
        commands = [
            pack(("SSUBSCRIBE", *self._channels[start : start + _CHANNELS_A_COMMAND]))
            for start in range(0, len(self._channels), _CHANNELS_A_COMMAND)
        ]
        await connection.send_packed_command(b"".join(commands), check_health=False)
        missing = len(self._channels)
        loop = asyncio.get_running_loop()
        while True:
            message: Any = await connection.read_response(disconnect_on_error=False, timeout=math.inf)
            self._heard = loop.time()
            kind = message[0]
            if kind == b"smessage":
                self._dispatch(message[2])
            elif kind == b"ssubscribe":
                missing -= 1
                if missing == 0:
                    self._stands = True
                    self._listener.subscribed()
            elif kind == b"sunsubscribe":
                # The slot moved to another server.
                raise StoreUnavailable(f"Redis ended the subscription of {message[1].decode()}")

    async def _watch(self, connection: AbstractConnection) -> None:
        loop = asyncio.get_running_loop()
        ping = pack(("PING",))
        tick_s = min(self._ping_s, self._silence_s - self._ping_s) / 2
        pinged = due = loop.time()
        while True:
            await asyncio.sleep(tick_s)
            due += tick_s
            now = loop.time()
            if now - due > tick_s:
                # The loop itself stood still: what came meanwhile has not been read yet.
                due = self._heard = now
            if now - self._heard > self._silence_s:
                # The reader ends with the connection, and says why.
                self._silence = StoreUnavailable(f"Redis was silent on the subscription for {now - self._heard:.1f} s")
                await drop(connection)
                return
            if now - pinged >= self._ping_s:
                pinged = now
                await connection.send_packed_command(ping, check_health=False)

    def _dispatch(self, raw: bytes) -> None:
        try:
            text = raw.decode()
            match text[:1]:
                case "!":
                    session, connection, user = text[1:].split(" ")
                    self._listener.displaced(UserId(user), SessionId(session), ConnectionId(connection))
                case "*":
                    session, user, ids = text[1:].split(" ")
                    self._listener.acked_elsewhere(
                        UserId(user), SessionId(session), [EntryId(entry) for entry in ids.split(",")]
                    )
                case "=":
                    session, user, ids = text[1:].split(" ")
                    self._listener.released(
                        UserId(user), SessionId(session), [EntryId(entry) for entry in ids.split(",")]
                    )
                case "~":
                    run, user = text[1:].split(" ")
                    self._listener.text_came(UserId(user), RunId(run))
                case "^":
                    self._listener.revoked()
                case "?":
                    self._listener.probed(text[1:])
                case _:
                    self._listener.woken(UserId(text))
        except Exception:
            # A message that makes no sense, or a listener that breaks its promise, must not make the node deaf.
            _log.exception("a message on a node's channel was not understood")
