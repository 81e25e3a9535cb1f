"""The composition root: one gateway node, from its settings to its last word. Everything is made and owned here.

All parts meet here, and little is decided: what sessions ask goes to `gateway.hosting`, what the store tells to
`gateway.hearing`, who loses a right to `gateway.sessions.striking`; whether the node is well is known to
`gateway.readiness.health`, and what a part has to know of the settings is in `gateway.derived`.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

from starlette.types import ASGIApp

from eventbus.bus import Bus
from eventbus.clock import Clock, SystemClock, seconds
from eventbus.errors import CloseCode
from eventbus.ids import NodeName
from eventbus.runs.closing import close_run
from eventbus.store import Listening, NodeRecord, Store
from eventbus.store.redis_store import RedisStore
from eventbus.store.revoking import Revocation
from eventbus.store.running import RunRecord
from eventbus.tracing import load_tracing
from gateway.access.revocations import Revocations
from gateway.announcing import Announcing
from gateway.config import NodeSettings, load_authenticator
from gateway.counters import Counters
from gateway.deadlines.watching import Watcher
from gateway.deadlines.webhook import Webhook
from gateway.delivery.lanes import Keepers, Readers, Senders
from gateway.delivery.texting import Texting
from gateway.derived import listener_settings, session_settings, tls_context
from gateway.drain import drain
from gateway.hearing import Hearing
from gateway.holding import Holding
from gateway.hosting import Hosting
from gateway.readiness.cut_off import CutOff
from gateway.readiness.health import Health
from gateway.readiness.moving import Moving
from gateway.readiness.probes import Readiness, StoreClock
from gateway.readiness.sweep import Sweep
from gateway.rotation import Rotation
from gateway.sessions.clockwork import TICK_MS, Clockwork
from gateway.sessions.gatekeeper import Doorkeeper
from gateway.sessions.hub import Hub
from gateway.sessions.session import Session
from gateway.sessions.striking import Striking
from gateway.sessions.tracing import DeliverySpans
from gateway.sessions.wheel import Wheel
from gateway.tally import Tally
from gateway.transport.listener import Listener, serve
from gateway.transport.shedding import Shedding
from gateway.transport.sockets import Sockets
from gateway.web.quotas import Quotas
from gateway.web.routes import make_app

__all__ = ["Node"]

logger = logging.getLogger(__name__)

FIRST_PROOF_MS: Final = 10_000
"""How long a start waits for the store before it says that it is not there; the node goes on trying."""


class Node(Hosting):
    """One node. Listens to the store's channels, serves sockets and HTTP, ends by a drain.

    Args:
        settings: all of it.
        store: instead of the Redis that the settings name.
        clock: instead of the machine's.
    """

    def __init__(self, settings: NodeSettings, *, store: Store | None = None, clock: Clock | None = None) -> None:
        self.node_settings = settings
        self.clock = clock or SystemClock()
        self.store: Store = store or RedisStore(settings.redis_url, settings.store)
        self.name: NodeName = settings.node_name
        self.counters = Counters()
        self.hub: Hub[Session] = Hub()
        self.drain_ms = settings.liveness.drain_ms
        self.is_ending = False
        self.started_ms = self.clock.now_ms()
        self.settings = session_settings(settings)
        self.authenticator = load_authenticator(settings)
        self._make_delivery()
        self._make_judges()
        self._make_door()
        self._make_watch()
        self.announcing = Announcing(self)
        if isinstance(self.store, RedisStore):
            self.store.link.watchers.on_change(self._primary_changed)
        self._watching: asyncio.Task[None] | None = None
        self.listener: Listener | None = None
        self._listening: Listening | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self.failed = asyncio.Event()

    def _make_delivery(self) -> None:
        """What sessions are served by."""
        settings = self.node_settings
        tracing = load_tracing(settings.trace.traces)
        self.spans = None if tracing is None else DeliverySpans(tracing, self.name)
        self.wheel: Wheel[Session] = Wheel(tick_ms=TICK_MS, now_ms=self.clock.monotonic_ms())
        self.clockwork = Clockwork(self.clock, self.wheel, due=self._due, stalled=self._stalled)
        self.readiness = Readiness(self.store, self.name, self.clock, probe_ms=settings.liveness.ready_probe_ms)
        # Whether an event is past its time all nodes must see alike, whatever their machines' clocks say.
        self._store_clock = StoreClock(self.clock, self.readiness)
        wait_ms = settings.liveness.store_wait_ms
        self.reader = Readers(self.store, self._store_clock, self.counters, store_wait_ms=wait_ms)
        self.sending = Senders(self.store, self._store_clock, self.counters, store_wait_ms=wait_ms)
        self.texting = Texting(self.store, self.counters, held_bytes=settings.limits.text_held_bytes)
        self.keeper = Keepers(self.store, self.name, self.counters)

    def _make_judges(self) -> None:
        """What says who may stay, and whether the node can do its work."""
        settings = self.node_settings
        self.striking = Striking(self.hub, self.authenticator, self.clock)
        self.revocations = Revocations(self.store, self.clock, self.counters, struck=self._struck)
        self.rotation = Rotation(settings, [self.authenticator], self.counters, gone=self.striking.keys_gone)
        self.holding = Holding(
            self.store,
            self.name,
            self.hub,
            self.counters,
            lambda: self.close_sockets(CloseCode.DRAINING, "the node is draining"),
        )
        self.shedding = Shedding(lambda: self.hub, most_bytes=settings.limits.held_bytes)
        self.sweep = Sweep(self.hub, self.keeper, self.readiness)
        self.moving = Moving(self.hub, self.readiness, others=self.others)
        self.cut_off = CutOff(self.readiness, others=self.others)
        self.health = Health(
            self.hub,
            self.clock,
            readiness=self.readiness,
            reader=self.reader,
            revocations=self.revocations,
            cut_off=self.cut_off,
            store_down_ms=settings.liveness.store_down_ms,
        )
        self.hearing = Hearing(
            self.hub,
            self.clock,
            self.counters,
            keeper=self.keeper,
            texting=self.texting,
            readiness=self.readiness,
            revocations=self.revocations,
            holding=self.holding,
        )

    def _make_door(self) -> None:
        """What comes from outside, and the node's own publisher."""
        settings = self.node_settings
        self.quotas = Quotas(self.store, settings.limits, settings.listen, self.clock, self.counters)
        self.doorkeeper = Doorkeeper(
            settings,
            host=self,
            openness=self,
            store=self.store,
            authenticator=self.authenticator,
            clock=self.clock,
            counters=self.counters,
        )
        self.bus = Bus(settings=settings.for_agents(), store=self.store, clock=self.clock)

    def _make_watch(self) -> None:
        """What looks after deadlines and counts."""
        settings = self.node_settings
        self.webhook = Webhook(self.store, settings.watch, self.clock, self.counters)
        self.watcher = Watcher(
            self.store,
            self.name,
            settings=settings.store,
            clock=self.clock,
            counters=self.counters,
            close=self._close_run,
            posting=self.webhook,
            watch_ms=settings.watch.watch_ms,
            nodes_ms=settings.liveness.node_heartbeat_ms,
        )
        # A node that drains is counted for by others.
        self.tally = Tally(
            self.store,
            self.hub,
            lambda: () if self.draining else self.watcher.partitions,
            self._store_clock,
            self.counters,
            every_ms=settings.watch.tally_ms,
        )

    def __repr__(self) -> str:
        state = "draining" if self.draining else "open"
        return f"<Node {self.name} {state} sessions={len(self.hub)} {self.readiness!r} {self.reader!r}>"

    # --- life -------------------------------------------------------------------------------------------------------

    @property
    def port(self) -> int:
        """The port that it accepts on."""
        return self.listener.port if self.listener else 0

    async def start(
        self,
        *,
        app: ASGIApp | None = None,
        sockets: Sequence[socket.socket] | None = None,
        proof_wait_ms: int = FIRST_PROOF_MS,
    ) -> None:
        """Starts everything; returns when the node accepts connections, whether Redis is there or not.

        Args:
            app: instead of the node's own routes.
            sockets: bound ones to accept on, instead of the address in the settings; the node closes them.
            proof_wait_ms: how long the store is waited for before connections are accepted without it.

        Raises:
            OSError: the port is taken.
            ConfigError: a file of the settings can not be read.

        Cancellation, like an error, ends what was started; the node can not be started again.
        """
        try:
            await self._start(app, sockets, proof_wait_ms)
        except BaseException:
            await self.aclose()
            raise

    async def _start(self, app: ASGIApp | None, sockets: Sequence[socket.socket] | None, proof_wait_ms: int) -> None:
        await self.bus.__aenter__()
        self._listening = await self.store.listen(self.name, self.hearing)
        for run in (
            self.reader.run,
            self.sending.run,
            self.texting.run,
            self.texting.run_sweep,
            self.keeper.run_attaches,
            self.keeper.run_beats,
            self.sweep.run,
            self.moving.run,
            self.readiness.run,
            self.cut_off.run,
            self.revocations.run,
            self.holding.run,
            self.rotation.run,
            self.shedding.run,
            self.tally.run,
            self.clockwork.run,
            self.health.run,
        ):
            self._own(run)
        try:
            async with asyncio.timeout(seconds(proof_wait_ms)):
                await self.readiness.first.wait()
                await self.revocations.loaded.wait()
        except TimeoutError:
            logger.warning("the store is not there yet: %s", self.health.problem())
        listen = self.node_settings.listen
        self.listener = await serve(
            app or make_app(self),
            self.doorkeeper,
            host=listen.host,
            port=listen.port,
            sockets=sockets,
            ssl=tls_context(listen.tls_cert_file, listen.tls_key_file),
            settings=listener_settings(self.node_settings, self.doorkeeper),
            clock=self.clock,
        )
        # Only now is there an address to tell of.
        self._own(self.announcing.run)
        self._watching = self._own(self.watcher.run)

    def _own(self, run: Callable[[], Awaitable[None]]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(run())
        task.set_name(f"node:{getattr(run, '__qualname__', run)}")
        task.add_done_callback(self._task_ended)
        self._tasks.append(task)
        return task

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.critical("%s ended: the node ends too, another will take over", task.get_name(), exc_info=error)
            self.failed.set()

    async def drain(self) -> None:
        """Ends the node in good order, within the drain's time."""
        self.is_ending = True
        if self._watching is not None:
            self._watching.cancel()
        await drain(self)
        await self.aclose()

    async def aclose(self) -> None:
        """Ends the node at once; what a drain has not done is left to the sessions' next attach."""
        self.is_ending = True
        if self.listener is not None:
            # First: what a request without an end is answered with would hold the listener up.
            self.listener.close_port()
            self._abort_sockets(self.listener)
            await self.listener.stop()
            self._abort_sockets(self.listener)
            self.listener = None
        if self._listening is not None:
            await self._listening.aclose()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        await self.webhook.aclose()
        await self.bus.aclose(0)
        await self.store.aclose()

    def _abort_sockets(self, listener: Listener) -> None:
        for connection in list(listener.sockets.connections):
            connection.abort()

    def close_sockets(self, code: CloseCode, reason: str) -> None:
        """Closes every socket that is still open, also those without a session."""
        for session in self.hub:
            session.end(code)
        if self.listener is not None:
            for connection in list(self.listener.sockets.connections):
                connection.close(int(code), reason)

    # --- what a drain needs -----------------------------------------------------------------------------------------

    async def announce(self, state: str) -> None:
        """Writes what the node is and does to `eb:nodes`. Raises: StoreError."""
        await self.announcing.announce(state)

    async def others(self) -> Sequence[NodeRecord]:
        """The other nodes, as they tell of themselves. Raises: StoreError."""
        return await self.announcing.others()

    async def wait_closed(self, timeout_ms: int) -> bool:
        """Waits until no socket is left."""
        return self.listener is None or await self.listener.sockets.wait_closed(timeout_ms)

    async def leave(self) -> None:
        """Ends the listener and takes the node off `eb:nodes`."""
        if self.listener is not None:
            await self.listener.stop()
        await self.announcing.leave()

    # --- openness ---------------------------------------------------------------------------------------------------

    @property
    def sockets(self) -> Sockets:
        """The open connections, once the node accepts any."""
        if self.listener is None:
            raise RuntimeError("the node does not accept connections")
        return self.listener.sockets

    @property
    def connections(self) -> int:
        """Sockets that are open, and responses that stand for one."""
        return len(self.listener.sockets.connections) if self.listener else 0

    @property
    def attaching(self) -> int:
        """Sessions that wait for Redis to open them; not those whose part of it is away, for they would keep all others
        from coming.
        """
        return self.keeper.waiting_in(self.readiness.proven)

    @property
    def store_is_down(self) -> bool:
        """Whether the store is away for so long that nobody is let in."""
        return self.health.store_is_down

    @property
    def store_ahead_ms(self) -> int:
        """How far the store's clock is ahead of this machine's, as last seen."""
        return self.readiness.store_ahead_ms

    def not_ready(self) -> str | None:
        """Why no new connection should come here; None when it may."""
        return "the node is draining" if self.draining else self.health.problem()

    @property
    def draining(self) -> bool:
        """Whether it takes no connections: it ends, or an operator holds it."""
        return self.is_ending or self.holding.hold is not None

    # --- the store ---------------------------------------------------------------------------------------------------

    def _primary_changed(self) -> None:
        self.counters.primary_changes += 1

    def link_statistics(self) -> Mapping[str, int]:
        """How the connections to Redis stand; nothing where the store has none."""
        return self.store.link.statistics() if isinstance(self.store, RedisStore) else {}

    # --- loops ------------------------------------------------------------------------------------------------------

    def _due(self, session: Session, now_ms: int) -> None:
        if session.on_clock(now_ms):
            self.keeper.beat(session)

    def _stalled(self, by_ms: int) -> None:
        self.counters.stalls += 1
        self.readiness.stood_still(by_ms)
        self.revocations.stood_still(by_ms)
        for session in self.hub:
            session.stalled(by_ms)

    def _struck(self, fresh: Sequence[Revocation]) -> None:
        self.striking.revoked(fresh, self.revocations.known)

    async def _close_run(self, record: RunRecord) -> bool:
        return await close_run(self.store, self.clock, record)
