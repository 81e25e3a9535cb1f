"""The subscription of an agent to its users: one connection on which Redis tells of commands, answers and presence.

A user's channel is subscribed while somebody follows the user. A message is one of the signs of `Told`; messages are
lost while the subscription is, so every follower is told to look when it stands again, and every few seconds anyway.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections import Counter
from typing import Any, Final

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import RedisError

from eventbus.errors import StoreError, StoreUnavailable
from eventbus.ids import UserId
from eventbus.store.batcher import Connector, drop, pack
from eventbus.store.inbound import Follower, Told
from eventbus.store.translate import translate

__all__ = ["Followed", "Followers"]

_log = logging.getLogger("eventbus.store")

_FIRST_WAIT_S: Final = 0.02
_LONGEST_WAIT_S: Final = 1.0


class Followed:
    """That a follower is told what happens to a user."""

    __slots__ = ("_channel", "_follower", "_followers")

    def __init__(self, followers: Followers, channel: str, follower: Follower) -> None:
        self._followers = followers
        self._channel = channel
        self._follower = follower

    def close(self) -> None:
        """See `Following.close`."""
        self._followers.leave(self._channel, self._follower)

    async def aclose(self) -> None:
        """See `Following.aclose`."""
        self.close()


class Followers:
    """All followers of a store, and the one connection that serves them; it is made for the first of them.

    Args:
        url: the server.
        timeout_ms: longest wait for a connection.
        ping_ms: how often the connection is tried.
        silence_ms: without a byte for so long it is given up.
        poll_ms: how often followers are told to look.
    """

    def __init__(self, url: str, *, timeout_ms: int, ping_ms: int, silence_ms: int, poll_ms: int) -> None:
        self._connector = Connector(url, timeout_ms=timeout_ms)
        self._ping_s = ping_ms / 1000
        self._silence_s = silence_ms / 1000
        self._poll_s = poll_ms / 1000
        self._users: dict[str, tuple[UserId, list[Follower]]] = {}
        self._asked: set[str] = set()
        self._standing: set[str] = set()
        self._leaving: Counter[str] = Counter()
        self._changed = asyncio.Event()
        self._heard = 0.0
        self._silence: StoreError | None = None
        self._tasks: list[asyncio.Task[None]] = []

    def __repr__(self) -> str:
        return f"<Followers users={len(self._users)} subscribed={len(self._standing)}>"

    def follow(self, user: UserId, channel: str, follower: Follower) -> Followed:
        """Have a follower told; call it in the event loop."""
        loop = asyncio.get_running_loop()
        if not self._tasks:
            self._tasks = [
                loop.create_task(self._run(), name="eventbus-following"),
                loop.create_task(self._poll(), name="eventbus-following-poll"),
            ]
        self._users.setdefault(channel, (user, []))[1].append(follower)
        if channel in self._standing:
            loop.call_soon(follower.told, user, Told.ANYTHING)
        self._changed.set()
        return Followed(self, channel, follower)

    def leave(self, channel: str, follower: Follower) -> None:
        """Nobody is told any more."""
        _, followers = self._users.get(channel, ("", []))
        if follower in followers:
            followers.remove(follower)
            if not followers:
                del self._users[channel]
                self._changed.set()

    async def aclose(self) -> None:
        """End it; safe to call twice."""
        tasks, self._tasks = self._tasks, []
        self._users.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- the connection ---------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        wait_s = _FIRST_WAIT_S
        while True:
            while not self._users:
                self._changed.clear()
                await self._changed.wait()
            try:
                await self._subscribe_and_listen()
            except StoreError as error:
                stood = bool(self._standing)
                wait_s = _FIRST_WAIT_S if stood else wait_s
                _log.log(logging.WARNING if stood else logging.INFO, "commands may come late: %s", error)
            finally:
                self._asked.clear()
                self._standing.clear()
                self._leaving.clear()
            await asyncio.sleep(wait_s * random.uniform(0.5, 1.0))  # noqa: S311
            wait_s = min(2 * wait_s, _LONGEST_WAIT_S)

    async def _subscribe_and_listen(self) -> None:
        connection, _ = await self._connector.connect(("CLIENT", "SETNAME", "eventbus-follow"))
        loop = asyncio.get_running_loop()
        self._heard = loop.time()
        self._silence = None
        # One writer: a connection is not to be written to by two tasks at once.
        writer = loop.create_task(self._write(connection), name="eventbus-following-write")
        try:
            while True:
                self._take(await connection.read_response(disconnect_on_error=False, timeout=math.inf))
        except (RedisError, OSError) as error:
            raise self._why(error) from error
        finally:
            writer.cancel()
            await asyncio.gather(writer, return_exceptions=True)
            await drop(connection)

    def _why(self, error: Exception) -> StoreError:
        return self._silence or translate(error)

    def _take(self, message: Any) -> None:
        self._heard = asyncio.get_running_loop().time()
        if len(message) != 3:
            return  # the answer to a ping
        kind, channel = message[0], message[1].decode()
        if kind == b"smessage":
            try:
                self._tell(channel, Told(message[2].decode()))
            except ValueError:
                _log.warning("a message on a user's channel was not understood: %r", message[2][:80])
        elif kind == b"ssubscribe" and channel in self._asked:
            self._standing.add(channel)
            self._tell(channel, Told.ANYTHING)
        elif kind == b"sunsubscribe":
            if not self._leaving[channel]:
                # The slot moved to another server.
                raise StoreUnavailable(f"Redis ended the subscription of {channel}")
            self._leaving[channel] -= 1
            if not self._leaving[channel]:
                del self._leaving[channel]

    def _tell(self, channel: str, what: Told) -> None:
        user, followers = self._users.get(channel, (UserId(""), []))
        for follower in list(followers):
            try:
                follower.told(user, what)
            except Exception:
                # A follower that breaks its promise must not make the others deaf.
                _log.exception("a follower of a user failed")

    async def _write(self, connection: AbstractConnection) -> None:
        """Subscribes and leaves as followers come and go, and asks a silent connection."""
        loop = asyncio.get_running_loop()
        tick_s = min(self._ping_s, self._silence_s - self._ping_s) / 2
        pinged = due = loop.time()
        ping = pack(("PING",))
        try:
            while True:
                if words := self._to_say():
                    await connection.send_packed_command(b"".join(words), check_health=False)
                try:
                    async with asyncio.timeout(max(0.0, due + tick_s - loop.time())):
                        await self._changed.wait()
                    self._changed.clear()
                    continue
                except TimeoutError:
                    due += tick_s
                now = loop.time()
                if now - due > tick_s:
                    # The loop itself stood still: what came meanwhile has not been read yet.
                    due = self._heard = now
                if now - self._heard > self._silence_s:
                    self._silence = StoreUnavailable(
                        f"Redis was silent on a subscription for {now - self._heard:.1f} s"
                    )
                    break
                if now - pinged >= self._ping_s:
                    pinged = now
                    await connection.send_packed_command(ping, check_health=False)
        except (RedisError, OSError) as error:
            self._silence = translate(error)
        # The reader ends with the connection, and says why.
        await drop(connection)

    def _to_say(self) -> list[bytes]:
        self._changed.clear()
        wanted = self._users.keys()
        words = [pack(("SSUBSCRIBE", channel)) for channel in wanted - self._asked]
        for channel in self._asked - wanted:
            words.append(pack(("SUNSUBSCRIBE", channel)))
            self._leaving[channel] += 1
            self._standing.discard(channel)
        self._asked = set(wanted)
        return words

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(self._poll_s)
            for channel in list(self._users):
                self._tell(channel, Told.ANYTHING)
