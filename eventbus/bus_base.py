"""What a bus is made of: its settings, the connections to the store, and the parts that live as long as it is open."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import replace
from types import TracebackType
from typing import Final, Protocol, Self, TypeVar

from eventbus.awaiting import Awaiting
from eventbus.breaker import BreakerState
from eventbus.clock import Clock, SystemClock
from eventbus.commands.commanding import Commanding
from eventbus.config import Settings
from eventbus.errors import EventBusError
from eventbus.looks import Looks
from eventbus.publishing.making import EventMaker
from eventbus.publishing.publisher import Publisher
from eventbus.publishing.receipt import PublishStatistics
from eventbus.publishing.retries import RetryPolicy
from eventbus.runs.confirmations import RunConfirmations
from eventbus.runs.hold import RunServices
from eventbus.runs.leases import Leases
from eventbus.schemas import Schemas
from eventbus.store import Store
from eventbus.streaming import TextWay
from eventbus.timers import LoopTimers, Timers
from eventbus.tracing import load_tracing

__all__ = ["BusBase", "Part"]

NOT_OPEN: Final = "the bus is not open: use it inside `async with Bus(...) as bus:`"


class Part(Protocol):
    """Something that works while a bus is open. It is made in the running loop, and owns its tasks."""

    async def aclose(self) -> None:
        """End it, for good: whoever waits for it is told. May be repeated."""


P = TypeVar("P", bound=Part)


class BusBase:
    """Opens and closes a bus. See `eventbus.bus.Bus` for the arguments."""

    def __init__(
        self,
        url: str | None = None,
        *,
        settings: Settings | None = None,
        store: Store | None = None,
        clock: Clock | None = None,
        schemas: Schemas | None = None,
        on_breaker: Callable[[BreakerState], object] | None = None,
    ) -> None:
        settings = settings or Settings()
        self.settings: Final = settings if url is None else replace(settings, redis_url=url)
        self.schemas: Final = schemas or Schemas()
        self._given_store = store
        self._clock: Clock = clock or SystemClock()
        self._on_breaker = on_breaker
        self._tracing = load_tracing(self.settings.trace.traces)
        self._maker = EventMaker(self.settings.publish, self._clock, self.schemas, self.settings.store)
        self._store: Store | None = None
        self._publisher: Publisher | None = None
        self._timers: Timers | None = None
        self._awaiting: Awaiting | None = None
        self._services: RunServices | None = None
        self._looks: Looks | None = None
        self._parts: list[Part] = []
        self._loop: asyncio.AbstractEventLoop | None = None

    @classmethod
    def from_env(cls, **overrides: object) -> Self:
        """Make a bus with the settings of the environment.

        Args:
            overrides: settings that stand above the environment, by name (`redis_url=...`, `publish_deadline_ms=...`).

        Raises:
            ConfigError: a variable has a value that is not allowed.
        Source: docs/configuration.md.
        """
        return cls(settings=Settings.from_env(os.environ, **overrides))

    def __repr__(self) -> str:
        if self._publisher is None:
            return "<Bus, not open>"
        now = self._publisher.statistics()
        return f"<Bus published={now.published} queued={now.queued_events} failed={now.failed} breaker={now.breaker}>"

    async def __aenter__(self) -> Self:
        """Open it. The store is not waited for, so nothing is there to cancel: a publish connects, and retries within
        its deadline.

        Raises:
            EventBusError: it was opened before.
        """
        if self._publisher is not None:
            raise EventBusError("this bus was opened before; make a new one")
        self._loop = asyncio.get_running_loop()
        store = self._store = self._given_store or self._redis_store()
        timers = self._timers = self._clock if isinstance(self._clock, Timers) else LoopTimers()
        self._publisher = Publisher(
            store, self.settings.publish, clock=self._clock, timers=timers, on_breaker=self._on_breaker
        )
        self._awaiting = self._add_part(Awaiting(store, self._clock, timers))
        self._looks = self._add_part(Looks(timers))
        self._services = self._run_services(store, timers)
        return self

    def _add_part(self, part: P) -> P:
        """Have a part closed with the bus: the last one first, all of them after the last publish and before the
        store.
        """
        self._parts.append(part)
        return part

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it as `aclose` does, whatever ends the block; an exception passes on."""
        await self.aclose()

    async def aclose(self, timeout_ms: int | None = None) -> None:
        """Close it: nothing more is taken, what waits is stored or fails, the connections are closed. May be repeated.

        Args:
            timeout_ms: the longest wait for what waits; the publish deadline when absent.

        A cancelled call fails what waits at once, and closes all the same.
        """
        if self._publisher is None or self._store is None:
            return
        try:
            await self._publisher.aclose(self._maker.deadline(None) if timeout_ms is None else timeout_ms)
        finally:
            try:
                for part in reversed(self._parts):
                    await part.aclose()
            finally:
                if self._given_store is None:
                    await self._store.aclose()

    def statistics(self) -> PublishStatistics:
        """What was published, what waits, how the breaker stands. Raises: EventBusError when the bus is not open."""
        if self._publisher is None:
            raise EventBusError(NOT_OPEN)
        return self._publisher.statistics()

    def _run_services(self, store: Store, timers: Timers) -> RunServices:
        publish = self.settings.publish
        policy = RetryPolicy(base_ms=publish.retry_base_ms, max_ms=publish.retry_max_ms)
        commanding = self._add_part(Commanding(store, self._clock, timers, policy, publish.publish_deadline_ms))
        return RunServices(
            store=store,
            leases=self._add_part(Leases(store, timers, publish.run_lease_ms)),
            clock=self._clock,
            timers=timers,
            policy=policy,
            deadline_ms=publish.publish_deadline_ms,
            commanding=commanding,
            texts=self._text_way(lambda: commanding.is_closed),
            schemas=self.schemas,
            max_event_bytes=publish.max_event_bytes,
            check_demand=self._maker.check_demand,
            tracing=self._tracing,
            confirmations=self._run_confirmations(),
        )

    def _run_confirmations(self) -> Callable[..., RunConfirmations] | None:
        """How a run asks for the confirmations of its events: the half of the class that answers says how."""
        return None

    def _opened_looks(self) -> Looks:
        self._opened()
        if self._looks is None:
            raise EventBusError(NOT_OPEN)
        return self._looks

    def _opened_services(self) -> RunServices:
        self._opened()
        if self._services is None:
            raise EventBusError(NOT_OPEN)
        return self._services

    def _text_way(self, is_closed: Callable[[], bool]) -> TextWay:
        if self._store is None or self._timers is None:
            raise EventBusError(NOT_OPEN)
        publish = self.settings.publish
        return TextWay(
            store=self._store,
            clock=self._clock,
            timers=self._timers,
            policy=RetryPolicy(base_ms=publish.retry_base_ms, max_ms=publish.retry_max_ms),
            flush_ms=publish.text_flush_ms,
            flush_bytes=publish.text_flush_bytes,
            deadline_ms=publish.publish_deadline_ms,
            is_closed=is_closed,
        )

    def _opened(self) -> Publisher:
        if self._publisher is None:
            raise EventBusError(NOT_OPEN)
        if asyncio.get_running_loop() is not self._loop:
            raise EventBusError(
                "this bus belongs to another event loop; make one in each loop, or use eventbus.blocking.Bus in threads"
            )
        return self._publisher

    def _opened_store(self) -> Store:
        self._opened()
        if self._store is None:
            raise EventBusError(NOT_OPEN)
        return self._store

    def _redis_store(self) -> Store:
        # Imported here: a process that brings a store of its own does without redis-py.
        from eventbus.store.redis_store import RedisStore

        publish = self.settings.publish
        return RedisStore(
            self.settings.redis_url,
            self.settings.store,
            replicas=publish.replicas,
            replicated_timeout_ms=publish.replicated_timeout_ms,
        )
