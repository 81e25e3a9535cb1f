"""The subscription of an agent to its users: what Redis tells of commands, answers and presence.

A user's channel is subscribed while somebody follows the user. A message is one of the signs of `Told`; messages are
lost while the subscription is, so every follower is told to look when it stands again, and every few seconds anyway.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection

from eventbus.errors import StoreError
from eventbus.ids import UserId
from eventbus.store.ears import Ears
from eventbus.store.inbound import Follower, Told
from eventbus.store.links import Links

__all__ = ["Followed", "Followers"]

_log = logging.getLogger("eventbus.store")


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
    """All followers of a store; connections are made for the first of them.

    Args:
        links: know where the channels live.
        timeout_ms: longest wait for a connection.
        ping_ms: how often a connection is tried.
        silence_ms: without a byte for so long it is given up.
        poll_ms: how often followers are told to look.
    """

    def __init__(self, links: Links, *, timeout_ms: int, ping_ms: int, silence_ms: int, poll_ms: int) -> None:
        self._ears = Ears(
            links, self, name="eventbus-follow", timeout_ms=timeout_ms, ping_ms=ping_ms, silence_ms=silence_ms
        )
        self._poll_s = poll_ms / 1000
        self._users: dict[str, tuple[UserId, list[Follower]]] = {}
        self._task: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<Followers users={len(self._users)} subscribed={self._ears.standing}>"

    def follow(self, user: UserId, channel: str, follower: Follower) -> Followed:
        """Have a follower told; call it in the event loop."""
        loop = asyncio.get_running_loop()
        if self._task is None:
            self._task = loop.create_task(self._poll(), name="eventbus-following-poll")
        followers = self._users.get(channel)
        if followers is None:
            self._users[channel] = (user, [follower])
            self._ears.want(self._users)
        else:
            followers[1].append(follower)
        if self._ears.stands(channel):
            # Of the follower before, who has left just now, too.
            loop.call_soon(follower.told, user, Told.ANYTHING)
        return Followed(self, channel, follower)

    def leave(self, channel: str, follower: Follower) -> None:
        """Nobody is told any more."""
        _, followers = self._users.get(channel, ("", []))
        if follower in followers:
            followers.remove(follower)
            if not followers:
                del self._users[channel]
                self._ears.want(self._users)

    async def aclose(self) -> None:
        """End it; safe to call twice."""
        task, self._task = self._task, None
        self._users.clear()
        await self._ears.aclose()
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    # --- what the ears tell -----------------------------------------------------------------------------------------

    def heard(self, channel: str, message: bytes) -> None:
        """See `Hearer.heard`."""
        try:
            self._tell(channel, Told(message.decode()))
        except ValueError:
            _log.warning("a message on a user's channel was not understood: %r", message[:80])

    def standing(self, channels: Collection[str]) -> None:
        """See `Hearer.standing`."""
        for channel in channels:
            self._tell(channel, Told.ANYTHING)

    def fallen(self, channels: Collection[str], reason: StoreError) -> None:
        """See `Hearer.fallen`."""
        _log.log(logging.WARNING if channels else logging.INFO, "commands may come late: %s", reason)

    def _tell(self, channel: str, what: Told) -> None:
        user, followers = self._users.get(channel, (UserId(""), []))
        for follower in list(followers):
            try:
                follower.told(user, what)
            except Exception:
                # A follower that breaks its promise must not make the others deaf.
                _log.exception("a follower of a user failed")

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(self._poll_s)
            for channel in list(self._users):
                self._tell(channel, Told.ANYTHING)
