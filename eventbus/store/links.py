"""All data connections of a store, one to each primary, and which of them a command takes.

With one server, or behind Sentinels, there is one primary. In a Cluster a command goes by the slot of its first key; a
server that is the wrong one says so before it does anything, and the call goes on where it belongs. While a primary is
replaced, calls wait for the new one, up to `timeout_ms`; only those that are pinned come back (`StoreMoved`), for what
their caller stored before may have to go first (D6).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from functools import partial
from typing import Final, TypeVar

from eventbus.errors import StoreBusy, StoreError, StoreMoved, StoreUnavailable
from eventbus.store.answers import facts_of
from eventbus.store.calls import Call, Results
from eventbus.store.command import Command, key_of, nothing_of
from eventbus.store.endpoint import Endpoint, Mode, parse_target
from eventbus.store.finding import read_map
from eventbus.store.held import Held
from eventbus.store.link import Link
from eventbus.store.refusals import Refusals
from eventbus.store.returning import Returning
from eventbus.store.seeking import Seeker
from eventbus.store.succession import Succession
from eventbus.store.topology import Address, Redirect, SlotMap, Step, decide
from eventbus.store.translate import Refused, translate
from eventbus.store.whereabouts import Watchers, Whereabouts

__all__ = ["Links"]

T = TypeVar("T")

_log = logging.getLogger("eventbus.store")

_LONGEST_WAIT_S: Final = 1.0
# While a primary is sought, it is sought often: a failover is over when the map says so, and delivery goes on then.
_SEEKING_WAIT_S: Final = 0.25
_AGAIN_S: Final = 0.05


class Links:
    """Carries commands to the primaries of an installation.

    Args:
        url: where it is, see `eventbus.store.endpoint`.
        timeout_ms: longest wait for a connection, for an answer, and for a new primary.
        max_calls: most calls that wait for the answer of one primary; one more ends with `StoreBusy`.
        max_bytes: most bytes that wait to be written to one; beyond that calls end with `StoreBusy`.
        name: how the connections call themselves in CLIENT LIST.
        refresh_ms: how often Sentinels or the Cluster are asked when nothing seems wrong.
        ping_ms: how often a connection is tried over which nothing goes.
        eager: connections are made to all primaries, and again when they are lost; else when a call needs one.

    Raises:
        StoreMisconfigured: the URL makes no sense.

    Results are values, errors too: a future never raises, so nothing is lost when a caller went away.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout_ms: int,
        max_calls: int = 100_000,
        max_bytes: int = 256 * 1024 * 1024,
        name: str = "eventbus-data",
        refresh_ms: int = 10_000,
        ping_ms: int = 2_000,
        eager: bool = True,
    ) -> None:
        self._where = Whereabouts(parse_target(url))
        self.watchers = Watchers()
        """Who is told of primaries."""
        self._timeout_s = timeout_ms / 1000
        self._max_calls = max_calls
        self._max_bytes = max_bytes
        self._name = name
        self._ping_s = ping_ms / 1000
        self._eager = eager
        self._only: Link | None = None
        self._links: dict[Address, Link] = {}
        self._trouble: StoreError = StoreUnavailable("no connection to Redis yet")
        self._held = Held(timeout_s=self._timeout_s, max_calls=max_calls, trouble=lambda: self._trouble)
        self._refusals = Refusals(self, self._held)
        self._seeker = Seeker(self, name=f"{name}-seeking", refresh_s=refresh_ms / 1000, longest_wait_s=_SEEKING_WAIT_S)
        self._succession = Succession(
            self._where, moved=self._moved, seek=self.seek, name=f"{name}-sentinel", timeout_s=self._timeout_s
        )
        self._returning = Returning()
        self._past_connections = 0
        self._closed = False

    def __repr__(self) -> str:
        state = "closed" if self._closed else "connected" if self.connected else "not connected"
        return f"<Links {self._name} {self._where.mode} {state} {list(self._links.values()) or self._only}>"

    # --- what is known ----------------------------------------------------------------------------------------------

    @property
    def connected(self) -> bool:
        """Whether all connections stand: if one does not, the next call makes it, perhaps to another server."""
        return bool(links := self._all()) and all(link.connected for link in links)

    @property
    def primary(self) -> str:
        """`Link.primary` of the last connection, of any of them in a Cluster; empty before the first."""
        return next((link.primary for link in self._all() if link.primary), "")

    @property
    def scattered(self) -> bool:
        """Whether the keys of two partitions may be on two servers, as far as is known."""
        mode, only = self._where.mode, self._only  # asked for each wake-up and each ack of a node
        if mode is Mode.SINGLE and only is not None:
            return not only.primary
        return mode is not Mode.SENTINEL

    @property
    def replaceable(self) -> bool:
        """Whether another server may take the place of a primary, as far as is known."""
        return self._where.mode is not Mode.SINGLE or not self.primary

    def primary_of(self, key: str) -> str:
        """`Link.primary` of the server to which a command with this key goes now, empty when no connection stands."""
        link = self.link_of(key)
        return link.primary if link is not None and link.connected else ""

    def home_of(self, key: str) -> Endpoint | None:
        """Where the primary of a key is, None when that is not known now."""
        found = self._where.home_of(key)
        return None if found is None else self._where.endpoint(found)

    def serves(self, address: Address) -> bool:
        """Whether a primary is there, as far as is known."""
        return address in self._where.places()

    def statistics(self) -> dict[str, int]:
        """Whole numbers for metrics: connections made, answers that sent a call to another server, calls waiting, calls
        unanswered; and those of `Whereabouts.reach`.
        """
        links = self._all()
        return {
            **self._where.reach(self._answers),
            "connections": self._past_connections + sum(link.connections for link in links),
            "redirects": self._refusals.redirects,
            "waiting": len(self._held) + sum(link.waiting for link in links),
            "unanswered": sum(link.unanswered for link in links),
        }

    def _answers(self, primary: Address) -> bool:
        link = self._links.get(primary) if self._only is None else self._only
        return link is not None and link.answers

    async def primaries(self) -> Sequence[Address]:
        """Where all primaries are now, in a stable order.

        Raises:
            StoreUnavailable: that could not be found out in time.
        """
        until = asyncio.get_running_loop().time() + self._timeout_s
        if self._where.mode is Mode.SINGLE and not self.primary:
            # Whether it is one server or a Cluster shows with the first connection.
            answer = await self.execute(Command(("PING",), lambda reply, _primary: bool(reply)))
            if isinstance(answer, StoreError):
                raise answer
        while not (found := self._where.places()):
            if asyncio.get_running_loop().time() > until:
                raise self._trouble
            self.seek()
            await asyncio.sleep(_AGAIN_S)
        return found

    # --- taking calls in --------------------------------------------------------------------------------------------

    def execute(self, command: Command[T], at: Address | None = None) -> asyncio.Future[T | StoreError]:
        """Send a command with the next write.

        Args:
            command: it goes by its key.
            at: a primary to which it is to go instead.

        Returns:
            A future that ends with the parsed answer, or with an error as its value. It may be cancelled at any time;
            the command is sent all the same.
        """
        future: asyncio.Future[T | StoreError] = asyncio.get_running_loop().create_future()
        call = Call(command, future)
        only = self._only
        if only is not None:
            only.put(call)
        elif at is not None and (link := self._links.get(at)) is not None:
            link.put(call)
        elif at is not None and self._where.mode is Mode.CLUSTER:
            call.resolve(StoreUnavailable(f"{at} is no primary of the Cluster any more"))
        else:
            self.route(call)
        return future

    def execute_all(self, commands: Sequence[Command[T]]) -> asyncio.Future[list[T | StoreError]]:
        """Send commands with the next write, in their order: a future for each would cost more than to pack it.

        Returns:
            A future that ends with the parsed answers, an error in the place of each that failed. It may be cancelled
            at any time; the commands are sent all the same.
        """
        future: asyncio.Future[list[T | StoreError]] = asyncio.get_running_loop().create_future()
        if not commands:
            future.set_result([])
            return future
        results = Results(future, len(commands))
        calls = [Call(command, None, results, place) for place, command in enumerate(commands)]
        if self._only is not None:
            self._only.put_all(calls)
        else:
            for call in calls:
                self.route(call)
        return future

    async def aclose(self) -> None:
        """Close all connections; calls under way end with `StoreUnavailable`. Safe to call twice."""
        self._closed = True
        await self._seeker.aclose()
        await self._succession.aclose()
        self._held.end(StoreUnavailable("the store was closed"))
        await asyncio.gather(*(link.aclose() for link in self._all()))

    # --- routing ----------------------------------------------------------------------------------------------------

    def _all(self) -> list[Link]:
        return [self._only] if self._only is not None else list(self._links.values())

    def link_of(self, key: str | None) -> Link | None:
        """See `Routes.link_of`."""
        if self._only is not None:
            return self._only
        if key is None and (standing := next((link for link in self._links.values() if link.connected), None)):
            return standing
        home = self._where.home_of(key)
        return None if home is None else self._links.get(home)

    def route(self, call: Call) -> None:
        """See `Routes.route`."""
        if self._closed:
            call.resolve(StoreUnavailable("the store is closed"))
            return
        if self._only is None and self._where.mode is not Mode.CLUSTER:
            self._only = self._new_link()
            if self._where.mode is Mode.SENTINEL:
                self._seeker.start()
                self._succession.start()
        link = self._only if self._only is not None else self.link_of(key_of(call.command))
        if link is None:
            self.hold(call)
        else:
            link.put(call)

    def _new_link(self) -> Link:
        return Link(
            self,
            name=self._name,
            timeout_s=self._timeout_s,
            max_calls=self._max_calls,
            max_bytes=self._max_bytes,
            ping_s=self._ping_s,
            eager=self._eager,
            longest_wait_s=_LONGEST_WAIT_S if self._where.mode is Mode.SINGLE else _SEEKING_WAIT_S,
        )

    def hold(self, call: Call) -> None:
        """See `Routes.hold`."""
        if self._held.put(call):
            self.seek()

    def link_to(self, address: Address) -> Link:
        """See `Routes.link_to`; of a Cluster."""
        link = self._links.get(address)
        if link is None:
            link = self._links[address] = self._new_link()
            if self._eager:
                link.connect_soon()
        return link

    # --- the links' owner -------------------------------------------------------------------------------------------

    async def locate(self, link: Link) -> Endpoint:
        """See `Owner.locate`."""
        if self._where.mode is Mode.CLUSTER:
            address = next((address for address, known in self._links.items() if known is link), None)
            if address is None:
                raise StoreUnavailable("the server is no primary any more")
            return self._where.endpoint(address)
        if self._where.mode is Mode.SENTINEL:
            return self._where.endpoint(await self._succession.find())
        return self._where.target.servers[0]

    def greeted(self, link: Link, endpoint: Endpoint, facts: dict[str, str]) -> StoreError | None:
        """See `Owner.greeted`."""
        if self._where.mode is Mode.SINGLE and "cluster" in (facts.get("redis_mode"), facts.get("server_mode")):
            self._where.mode, self._only = Mode.CLUSTER, None
            self._seek_soon(link)
            return StoreBusy("Redis can not answer now: the map of the Cluster is not known yet")
        if self._where.mode is not Mode.SINGLE and facts.get("role") != "master":
            self._where.distrust()
            self.seek()
            return StoreBusy(f"Redis can not answer now: {link!r} reached a server that is no primary")
        if self._where.mode is Mode.SENTINEL and endpoint.address != self._where.located:
            # Found while the connection was made; the old primary may say for a while that it is one.
            return StoreBusy(f"Redis can not answer now: {endpoint} was replaced by {self._where.located}")
        return None

    def _seek_soon(self, link: Link) -> None:
        for call in link.take_back():
            self.hold(call)
        self._past_connections += link.connections
        link.retire(StoreUnavailable("the server is a part of a Cluster"))
        self.seek()

    def unreachable(self, link: Link, error: StoreError) -> None:
        """See `Owner.unreachable`. A single server is given up at once: nobody will take its place."""
        self._trouble = error
        if self._where.mode is Mode.SINGLE:
            link.give_up(error)
            return
        if not isinstance(error, StoreBusy):
            self._where.distrust()
        for call in link.take_back():
            self.hold(call)
        self.seek()

    def refused(self, link: Link, call: Call, error: Refused) -> bool:
        """See `Owner.refused`. The table of what to do is `eventbus.store.topology.decide`."""
        if self._where.mode is Mode.SINGLE or link.endpoint is None:
            return False
        decision = decide(str(error), link.endpoint.address)
        if decision.step in (Step.FAIL, Step.LOAD):
            return False
        self._trouble = translate(error)
        self._refusals.take(link, call, error, decision, self._trouble)
        return True

    def correct(self, redirect: Redirect, said_by: Address) -> None:
        """See `Routes.correct`. Only who has the slot on our map is believed: what comes late from a server that was
        replaced would lead back to those before it.
        """
        known = self._where.map
        if known is not None and known.owner(redirect.slot) == said_by:
            self._adopt(known.moved(redirect.slot, redirect.address))

    def stands(self, link: Link) -> None:
        """See `Owner.stands`."""
        self.watchers.stands()

    def lost(self, link: Link, error: StoreError) -> None:
        """See `Owner.lost`."""
        self._trouble = error
        self.watchers.lost()
        if self._where.mode is not Mode.SINGLE:
            self.seek()
            for call in link.take_back():
                self.hold(call)

    def slow(self, link: Link) -> None:
        """See `Owner.slow`."""
        if self._where.mode is not Mode.SINGLE:
            self.seek()

    # --- seeking ----------------------------------------------------------------------------------------------------

    def seek(self) -> None:
        """See `Routes.seek`. A single server is asked something, to see whether it is one."""
        if self._closed:
            return
        if self._where.mode is Mode.SINGLE:
            if not self.statistics()["waiting"]:
                self.route(Call(Command(("PING",), nothing_of)))
            return
        self._seeker.soon()

    def _release(self) -> None:
        """What waits for a server goes where it belongs now, as far as that is known."""
        for call in self._held.take():
            self.route(call)

    async def look(self) -> None:
        """See `Sought.look`."""
        try:
            if self._where.mode is Mode.SENTINEL:
                await self._succession.find()
            else:
                await self._read_map()
        except StoreError as error:
            self._trouble = error
            self._seeker.soon()
        self._release()

    @property
    def is_wanting(self) -> bool:
        """See `Sought.is_wanting`."""
        return bool(self._held)

    def _moved(self, before: Address | None) -> None:
        """Behind Sentinels: the primary is another one than before."""
        found, service = self._where.located, self._where.target.service
        if before is not None:
            _log.warning("the primary of %s is %s, no longer %s", service, found, before)
        if self._only is not None:
            if self._only.endpoint is not None and self._only.endpoint.address != found:
                self._only.lose(StoreUnavailable(f"the primary of {service} is {found} now"))
            self._only.connect_anew()
        self.watchers.changed()

    async def _read_map(self) -> None:
        servers = self._where.servers(self._links)
        epoch, fresh, known = await read_map(servers, timeout_s=self._timeout_s)
        now_s = asyncio.get_running_loop().time()
        if fresh != self._where.map and self._where.is_late(epoch, now_s):
            raise StoreUnavailable(f"the map of the Cluster is of change {epoch}, {self._where.epoch} was seen already")
        self._where.known = known
        self._where.confirm(epoch, now_s)
        self._adopt(fresh)
        self._returning.keep(fresh)
        for address, link in self._links.items():
            if link.connected:
                asked = self.execute(Command(("CLUSTER", "INFO"), facts_of), at=address)
                asked.add_done_callback(partial(self._told_number, address, link, fresh))

    def _told_number(
        self, address: Address, link: Link, slots: SlotMap, asked: asyncio.Future[dict[str, str] | StoreError]
    ) -> None:
        """A primary of the Cluster has told its number."""
        facts = None if asked.cancelled() else asked.result()
        if not isinstance(facts, dict) or "cluster_my_epoch" not in facts or self._links.get(address) is not link:
            return
        if self._returning.note(address, link.primary, int(facts["cluster_my_epoch"]), slots):
            _log.warning("slots of %s were elsewhere between two looks, and may lack what was written last", address)
            self.watchers.lost()
            link.rename()
            self.watchers.stands()

    def _adopt(self, fresh: SlotMap) -> None:
        before, self._where.map = self._where.map, fresh
        if before == fresh:
            return
        _log.info("the map of the Cluster is %r", fresh)
        if before is not None:
            self.watchers.lost()
        for address in [address for address in self._links if address not in fresh.primaries]:
            link = self._links.pop(address)
            self._past_connections += link.connections
            error = StoreMoved(f"{address} is no primary any more, nothing was sent there")
            for call in link.take_back():
                if call.command.pinned:
                    call.resolve(error)
                else:
                    self.hold(call)
            link.retire(StoreUnavailable(f"{address} is no primary any more"))
        for address in fresh.primaries:
            self.link_to(address)
        self.watchers.changed()
