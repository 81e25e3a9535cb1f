"""Connections on which Redis tells of what happens: one to each primary, with the shard channels that live there.

An `Ears` is told which channels are wanted; it finds out where each of them lives, subscribes, and does so again
wherever a connection ends or a slot moves. Messages are lost while a subscription is: what stands anew is told.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Collection, Iterable
from typing import Any, Final, Protocol

from eventbus.errors import StoreError, StoreUnavailable
from eventbus.store.command import pack
from eventbus.store.connection import Connection, connect
from eventbus.store.endpoint import Endpoint
from eventbus.store.links import Links
from eventbus.store.topology import Address, slot_of
from eventbus.store.translate import Refused, translate

__all__ = ["Ears", "Hearer"]

_log = logging.getLogger("eventbus.store")

_FIRST_WAIT_S: Final = 0.02
_LONGEST_WAIT_S: Final = 1.0
_ASK_AGAIN_S: Final = 0.2
# One command for this many channels: a thousand at once are no problem for a server, and one write carries them all.
_CHANNELS_A_COMMAND: Final = 256
_PING: Final = pack(("PING",))


class Hearer(Protocol):
    """Who is told. Called in the event loop; must not block or raise."""

    def heard(self, channel: str, message: bytes) -> None:
        """A message came."""

    def standing(self, channels: Collection[str]) -> None:
        """These channels are subscribed, for the first time or again."""

    def fallen(self, channels: Collection[str], reason: StoreError) -> None:
        """These channels were subscribed and are not any more; empty when a subscription did not even come about."""


class _Ear:
    """The connection to one primary."""

    def __init__(self, ears: Ears, endpoint: Endpoint) -> None:
        self._ears = ears
        self.endpoint = endpoint
        self.wanted: set[str] = set()
        self.standing: set[str] = set()
        self._asked: set[str] = set()
        self._order: deque[set[str]] = deque()
        self._leaving: deque[str] = deque()
        self._connection: Connection | None = None
        self._ended: asyncio.Future[StoreError] | None = None
        self._heard = self._pinged = 0.0
        self._fresh: list[str] = []
        self._loop = asyncio.get_running_loop()
        self.task = self._loop.create_task(self._run(), name=f"{ears.name}-ear")

    async def aclose(self) -> None:
        """End it; safe to call twice."""
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)

    async def _run(self) -> None:
        wait_s = _FIRST_WAIT_S
        while True:
            try:
                await self._listen()
            except StoreError as error:
                fallen, self.standing = self.standing, set()
                wait_s = _FIRST_WAIT_S if fallen else wait_s
                self._ears.fell(self, fallen, error)
            await asyncio.sleep(wait_s * random.uniform(0.5, 1.0))  # noqa: S311
            wait_s = min(2 * wait_s, _LONGEST_WAIT_S)

    async def _listen(self) -> None:
        """Raises: StoreError, when it can not go on."""
        loop = asyncio.get_running_loop()
        greeting = (("CLIENT", "SETNAME", self._ears.name),)
        connection, _ = await connect(self.endpoint, greeting, timeout_s=self._ears.timeout_s)
        try:
            self._asked, self._order, self._leaving, self._fresh = set(), deque(), deque(), []
            self._ended = loop.create_future()
            self._heard = self._pinged = loop.time()
            self._connection = connection
            connection.take_over(self._take, self._lost)
            self.say()
            await self._watch()
            raise self._ended.result()
        finally:
            self._connection = None
            connection.drop()

    def _lost(self, error: StoreError) -> None:
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(error)

    def say(self) -> None:
        """Subscribe to what is wanted, and leave what is not."""
        if self._connection is None:
            return
        new = sorted(self.wanted - self._asked)
        old = sorted(self._asked - self.wanted)
        groups = self._ears.together(new)
        words = [pack(("SSUBSCRIBE", *some)) for some in groups]
        words += [pack(("SUNSUBSCRIBE", channel)) for channel in old]
        self._order += map(set, groups)
        self._leaving += old
        self._asked = set(self.wanted)
        self.standing -= set(old)
        if words:
            self._connection.write(b"".join(words))

    def _take(self, message: Any) -> None:
        self._heard = self._loop.time()
        if message.__class__ is Refused:
            self._refused(message)
            return
        if len(message) != 3 or message.__class__ is not list:
            return  # the answer to a ping
        kind, channel = message[0], message[1].decode()
        if kind == b"smessage":
            self._ears.heard(channel, message[2])
        elif kind == b"ssubscribe":
            if self._order:
                self._order[0].discard(channel)
                if not self._order[0]:
                    self._order.popleft()
            if channel in self.wanted:
                self.standing.add(channel)
                self._fresh.append(channel)
            self._tell_standing()
        elif kind == b"sunsubscribe":
            if channel in self._leaving:
                self._leaving.remove(channel)
            elif channel in self._asked:
                # The slot has moved to another server.
                self._without({channel}, StoreUnavailable(f"Redis ended the subscription of {channel}"))

    def _tell_standing(self) -> None:
        if not self._order and self._fresh:
            fresh, self._fresh = self._fresh, []
            self._ears.stood(self, fresh)

    def _refused(self, error: Refused) -> None:
        # Answers come in order, and nothing else that is asked here is ever refused.
        if self._order and self._ears.one_by_one:
            self._without(self._order.popleft(), translate(error))
            # The map may be the one that is behind, and then it will not change.
            asyncio.get_running_loop().call_later(_ASK_AGAIN_S, self.say)
        else:
            self._lost(translate(error))

    def _without(self, channels: set[str], error: StoreError) -> None:
        """Channels are not, or not any more, subscribed here: they are asked for again when the map has been read."""
        fallen = self.standing & channels
        self.standing -= fallen
        self._asked -= channels
        self._ears.fell(self, fallen, error)
        self._tell_standing()

    async def _watch(self) -> None:
        """Asks a silent connection, until it has ended."""
        loop = asyncio.get_running_loop()
        ping_s, silence_s = self._ears.ping_s, self._ears.silence_s
        tick_s = min(ping_s, silence_s - ping_s) / 2
        due = loop.time()
        ended = self._ended
        while ended is not None and not ended.done() and self._connection is not None:
            due += tick_s
            await asyncio.wait((ended,), timeout=max(0.0, due - loop.time()))
            now = loop.time()
            if now - due > tick_s:
                # The loop itself stood still: what came meanwhile has not been read yet.
                due = self._heard = now
            if now - self._heard > silence_s:
                self._lost(StoreUnavailable(f"Redis was silent on the subscription for {now - self._heard:.1f} s"))
            elif now - self._pinged >= ping_s:
                self._pinged = now
                self._connection.write(_PING)
                self.say()


class Ears:
    """All subscriptions of one listener.

    Args:
        links: know where the channels live.
        hearer: is told.
        name: how the connections call themselves in CLIENT LIST.
        timeout_ms: longest wait for a connection.
        ping_ms: how often a connection is tried.
        silence_ms: without a byte for so long it is given up: a half-open connection loses messages without a word.
    """

    def __init__(
        self, links: Links, hearer: Hearer, *, name: str, timeout_ms: int, ping_ms: int, silence_ms: int
    ) -> None:
        self._links = links
        self._hearer = hearer
        self.name = name
        self.timeout_s = timeout_ms / 1000
        self.ping_s = ping_ms / 1000
        self.silence_s = silence_ms / 1000
        self._wanted: set[str] = set()
        self._ears: dict[Address, _Ear] = {}
        self._leaving: set[asyncio.Task[None]] = set()
        self._planned = False
        self._closed = False
        self._unwatch = links.watchers.on_change(self._plan_soon)

    @property
    def one_by_one(self) -> bool:
        """Whether one command may name only channels of one slot."""
        return self._links.scattered

    @property
    def standing(self) -> int:
        """How many channels are subscribed."""
        return sum(len(ear.standing) for ear in self._ears.values())

    def stands(self, channel: str) -> bool:
        """Whether a channel is subscribed."""
        return any(channel in ear.standing for ear in self._ears.values())

    def want(self, channels: Iterable[str]) -> None:
        """Have these channels subscribed from now on, and no others. Call it in the event loop."""
        self._wanted = set(channels)
        self._plan_soon()

    async def aclose(self) -> None:
        """End it; safe to call twice."""
        self._closed = True
        self._unwatch()
        self._wanted.clear()
        ears = list(self._ears.values())
        self._ears.clear()
        await asyncio.gather(*(ear.aclose() for ear in ears), *self._leaving, return_exceptions=True)

    def together(self, channels: list[str]) -> list[list[str]]:
        """Channels in groups that one command may name."""
        if not self.one_by_one:
            return [channels[at : at + _CHANNELS_A_COMMAND] for at in range(0, len(channels), _CHANNELS_A_COMMAND)]
        groups: dict[int, list[str]] = {}
        for channel in channels:
            groups.setdefault(slot_of(channel), []).append(channel)
        return list(groups.values())

    # --- planning ---------------------------------------------------------------------------------------------------

    def _plan_soon(self) -> None:
        if not self._planned and not self._closed:
            self._planned = True
            asyncio.get_running_loop().call_soon(self._plan)

    def _plan(self) -> None:
        """Each channel is wanted from the connection to its primary, and from no other."""
        self._planned = False
        if self._closed:
            return
        homes: dict[Address, set[str]] = {}
        for channel in self._wanted:
            home = self._links.home_of(channel)
            if home is None:
                self._links.seek()
                continue
            if home.address not in self._ears:
                self._ears[home.address] = _Ear(self, home)
            homes.setdefault(home.address, set()).add(channel)
        for address, ear in list(self._ears.items()):
            wanted = homes.get(address, set())
            if gone := ear.standing - wanted:
                moved = gone & self._wanted
                ear.standing -= gone
                if moved:
                    self._hearer.fallen(moved, StoreUnavailable(f"the primary of {len(moved)} channels has moved"))
            ear.wanted = wanted
            if wanted or self._links.serves(address):
                ear.say()
            else:
                del self._ears[address]
                task = asyncio.get_running_loop().create_task(ear.aclose(), name=f"{self.name}-leaving")
                self._leaving.add(task)
                task.add_done_callback(self._leaving.discard)

    # --- what the connections tell ----------------------------------------------------------------------------------

    def heard(self, channel: str, message: bytes) -> None:
        """See `Hearer.heard`."""
        self._hearer.heard(channel, message)

    def stood(self, ear: _Ear, channels: list[str]) -> None:
        """Channels are subscribed."""
        if self._ears.get(ear.endpoint.address) is ear:
            self._hearer.standing(channels)

    def fell(self, ear: _Ear, channels: set[str], error: StoreError) -> None:
        """Channels are not subscribed any more, or could not be."""
        if self._ears.get(ear.endpoint.address) is ear:
            self._hearer.fallen(channels, error)
            if self._links.replaceable:
                self._links.seek()
