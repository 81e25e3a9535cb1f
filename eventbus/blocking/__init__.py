"""The bus for threads: `from eventbus.blocking import Bus`, for Celery, Django and other synchronous workers.

One event loop runs in a daemon thread of the process, and all blocking buses of the process share it. It is started by
the first use, so a worker that forks before it publishes has nothing to mind; after a fork the child starts its own.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import threading
import weakref
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Any, Final, Self, TypeVar, Unpack, cast, overload

from eventbus.blocking.answers import BlockingAnswers
from eventbus.blocking.commands import Commands
from eventbus.blocking.runs import Run
from eventbus.breaker import BreakerState
from eventbus.bus import Bus as AsyncBus
from eventbus.clock import Clock, seconds
from eventbus.commands.reader import Commands as AsyncCommands
from eventbus.config import Settings
from eventbus.confirmation import Confirmation, Sessions
from eventbus.errors import EventBusError, PartialPublish
from eventbus.event import Event, Level
from eventbus.ids import RunId
from eventbus.publishing.making import EventFields, recipients
from eventbus.publishing.receipt import PublishStatistics, Receipts
from eventbus.publishing.receipt import Receipt as AsyncReceipt
from eventbus.runs import PublicError
from eventbus.runs import Run as AsyncRun
from eventbus.runs.inbound import OnCancel
from eventbus.runs.timeout import OnTimeout
from eventbus.schemas import Schemas
from eventbus.store import Durability, Store

__all__ = ["Bus", "Receipt", "shutdown"]

_log = logging.getLogger("eventbus.blocking")

T = TypeVar("T")

EXIT_MS: Final = 5_000
"""At the end of the process, buses that were not closed have this long to store what waits."""
GRACE_MS: Final = 2_000
"""And this long, beyond what a call to `close` allows, to close their connections."""


class _Runner:
    """The event loop of this process and its thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def run(self, work: Coroutine[Any, Any, T], *, limit_ms: int | None = None) -> T:
        """Run a coroutine in the loop and wait for it, as a rule as long as it takes: what is given has a deadline.

        Whatever interrupts the wait cancels the coroutine.

        Raises:
            EventBusError: `limit_ms` is over, or the call comes from the loop's own thread.
        """
        if self._thread is threading.current_thread():
            work.close()
            raise EventBusError("a callback of the bus must not wait for the bus: it runs in the bus's own thread")
        future: Future[T] = asyncio.run_coroutine_threadsafe(work, self._started())
        try:
            return future.result(None if limit_ms is None else seconds(limit_ms))
        except TimeoutError:
            if future.done():
                raise
            future.cancel()
            raise EventBusError(f"the bus was not closed within {limit_ms} ms") from None
        except BaseException:
            # KeyboardInterrupt, or an exception that a signal handler raised: nobody waits any more.
            future.cancel()
            raise

    def begin(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Have a coroutine run in the loop, if there is one. Called when a bus is collected as garbage: never waits."""
        loop = self._loop
        if loop is not None and not loop.is_closed():
            asyncio.run_coroutine_threadsafe(work(), loop)

    def _started(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=_forever, args=(loop,), name="eventbus", daemon=True)
                self._thread.start()
                self._loop = loop
            return self._loop

    def stop(self) -> None:
        """End the loop and its thread; the next use starts them anew."""
        with self._lock:
            loop, thread, self._loop, self._thread = self._loop, self._thread, None, None
        if loop is None or thread is None:
            return
        loop.call_soon_threadsafe(loop.stop)
        thread.join(seconds(GRACE_MS))
        if not thread.is_alive():
            loop.close()


def _forever(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    loop.run_forever()


_runner = _Runner()
_buses: weakref.WeakSet[Bus] = weakref.WeakSet()
# What a forked child has of its parent's loop and connections. They share file descriptors with the parent's (also the
# one that says what the loop waits for), so the child must not touch them, not even by collecting them as garbage.
_left_to_the_parent: list[object] = []


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt(AsyncReceipt):
    """An event is stored: `eventbus.Receipt`, with a `wait` that blocks."""

    blocking_bus: Bus | None = field(default=None, repr=False, compare=False)

    # Nobody awaits here, so this is another call than that of the class above.
    def wait(  # type: ignore[override]
        self, level: Level | str, *, sessions: Sessions = "any", timeout_ms: int | None = None
    ) -> list[Confirmation]:
        """Wait until the user's sessions have confirmed the event: as `eventbus.Receipt.wait`, with its errors."""
        if self.blocking_bus is None:
            raise EventBusError("this receipt knows no bus: use `bus.wait(receipt, ...)`")
        return self.blocking_bus.wait(self, level, sessions=sessions, timeout_ms=timeout_ms)


class Bus(BlockingAnswers):
    """`eventbus.Bus` with calls that wait, safe to use from many threads at once and after a fork.

    A `with` statement closes it. Without one, make it once (at module level, say), and the end of the process closes
    it: then what other threads are publishing has a few seconds to be stored.

    Args: as `eventbus.Bus`. `on_breaker` is called in the bus's own thread.
    """

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
        self.schemas: Final = schemas or Schemas()
        self._make = partial(
            AsyncBus, url, settings=settings, store=store, clock=clock, schemas=self.schemas, on_breaker=on_breaker
        )
        self.settings: Final = self._make().settings
        self._lock = threading.Lock()
        self._bus: AsyncBus | None = None
        self._forgotten: weakref.finalize[Any, Any] | None = None
        self._closed = False
        _buses.add(self)

    @classmethod
    def from_env(cls, **overrides: object) -> Self:
        """Make a bus with the settings of the environment.

        Args:
            overrides: settings that stand above the environment, by name (`redis_url=...`).

        Raises:
            ConfigError: a variable has a value that is not allowed.
        """
        return cls(settings=Settings.from_env(os.environ, **overrides))

    def __repr__(self) -> str:
        return f"<blocking Bus, {'closed' if self._closed else 'not used yet' if self._bus is None else 'open'}>"

    def __enter__(self) -> Self:
        """Nothing happens: the first call connects."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it as `close` does; an exception passes on."""
        self.close()

    @overload
    def publish(self, *, user: str, users: None = None, **event: Unpack[EventFields]) -> Receipt: ...
    @overload
    def publish(
        self, *, user: None = None, users: Iterable[str], **event: Unpack[EventFields]
    ) -> Receipts[Receipt]: ...

    def publish(
        self, *, user: str | None = None, users: Iterable[str] | None = None, **event: Unpack[EventFields]
    ) -> Receipt | Receipts[Receipt]:
        """Store an event for a user, or for each of `users`, and wait until it is: as `eventbus.Bus.publish`, with its
        arguments and errors.

        Interrupted (KeyboardInterrupt), it leaves open whether the event is stored.
        """
        many = recipients(user, users)
        if many is None:
            return self._receipt(_runner.run(self._opened().publish(user=cast(str, user), **event)))
        with self._told():
            receipts = _runner.run(self._opened().publish(users=many, **event))
            return Receipts(self._receipt(receipt) for receipt in receipts.values())

    @contextmanager
    def _told(self) -> Iterator[None]:
        """The receipts in an error of a batch become those of this bus."""
        try:
            yield
        except PartialPublish as error:
            error.results = tuple(
                self._receipt(result) if isinstance(result, AsyncReceipt) else result for result in error.results
            )
            raise

    def run(
        self,
        *,
        user: str,
        agent: str,
        thread: str | None = None,
        run: str | None = None,
        public_error: PublicError | None = None,
        tier: str | None = None,
        requested_ms: int | None = None,
        resume: bool = False,
        on_timeout: OnTimeout | str = OnTimeout.MARK,
    ) -> Run[Receipt]:
        """A run of an agent: `with bus.run(user="ada", agent="planner") as run:`, else as `eventbus.Bus.run`, with its
        arguments (but `on_cancel`) and errors.

        Nothing interrupts a thread: with `on_timeout="cancel"` its next call raises `RunTimeout`.
        """
        begun = _begun(
            self._opened(),
            user=user,
            agent=agent,
            thread=thread,
            run=run,
            public_error=public_error,
            tier=tier,
            requested_ms=requested_ms,
            resume=resume,
            on_timeout=on_timeout,
        )
        return Run(_runner.run(begun), _call, self._receipt)

    def request_run(
        self,
        *,
        user: str,
        agent: str,
        thread: str | None = None,
        run: str | None = None,
        tier: str | None = None,
        requested_ms: int | None = None,
    ) -> RunId:
        """Write down that a run is asked for, before a worker has it, and return its run id: as
        `eventbus.Bus.request_run`, with its arguments and errors.
        """
        asked = self._opened().request_run(
            user=user, agent=agent, thread=thread, run=run, tier=tier, requested_ms=requested_ms
        )
        return _runner.run(asked)

    def commands(self, *, user: str, group: str = "inbox") -> Commands:
        """What a user sends to no run in particular: `for command in bus.commands(user="ada"): ...`, else as
        `eventbus.Bus.commands`, with its arguments and errors.
        """
        return Commands(partial(_commands_of, self._opened(), user, group), _call)

    def publish_many(
        self,
        events: Sequence[Mapping[str, Any] | Event],
        *,
        durability: Durability | str | None = None,
        deadline_ms: int | None = None,
    ) -> list[Receipt]:
        """Store several events and wait until they are: as `eventbus.Bus.publish_many`, with its errors."""
        work = self._opened().publish_many(events, durability=durability, deadline_ms=deadline_ms)
        with self._told():
            return [self._receipt(receipt) for receipt in _runner.run(work)]

    def _wait_for(self, work: Coroutine[Any, Any, T]) -> T:
        return _runner.run(work)

    def _receipt(self, receipt: AsyncReceipt) -> Receipt:
        return Receipt(
            event=receipt.event,
            user=receipt.user,
            entry=receipt.entry,
            duplicate=receipt.duplicate,
            attempts=receipt.attempts,
            blocking_bus=self,
        )

    def statistics(self) -> PublishStatistics:
        """What was published, what waits, how the breaker stands, in this process. Raises: EventBusError: closed."""
        return _runner.run(_statistics(self._opened()))

    def close(self, timeout_ms: int | None = None) -> None:
        """Take nothing more, wait until what other threads publish is stored or has failed, close the connections.

        Args:
            timeout_ms: the longest wait; the publish deadline when absent. Two seconds more are for the connections.

        Raises:
            EventBusError: it took longer all the same.
        """
        with self._lock:
            self._closed = True
            bus, self._bus = self._bus, None
        _buses.discard(self)
        if self._forgotten is not None:
            self._forgotten.detach()
        if bus is not None:
            wait_ms = self.settings.publish.publish_deadline_ms if timeout_ms is None else timeout_ms
            _runner.run(bus.aclose(wait_ms), limit_ms=wait_ms + GRACE_MS)

    def _opened(self) -> AsyncBus:
        with self._lock:
            if self._closed:
                raise EventBusError("the bus is closed: make a new one")
            if self._bus is None:
                bus = self._make()
                _runner.run(bus.__aenter__())
                self._bus = bus
                # A bus that is dropped without being closed must not keep its connections until the process ends.
                self._forgotten = weakref.finalize(self, _runner.begin, bus.aclose)
                self._forgotten.atexit = False
            return self._bus

    def _after_fork(self) -> None:
        _left_to_the_parent.append(self._bus)
        self._lock = threading.Lock()
        self._bus = None
        if self._forgotten is not None:
            self._forgotten.detach()


def _call(work: Coroutine[Any, Any, T], /) -> T:
    return _runner.run(work)


async def _begun(bus: AsyncBus, **about: Any) -> AsyncRun:
    # Each call is a task of its own, so there is none that a cancel could end.
    return bus.run(**about, on_cancel=OnCancel.FLAG)


async def _commands_of(bus: AsyncBus, user: str, group: str) -> AsyncCommands:
    return bus.commands(user=user, group=group)


async def _statistics(bus: AsyncBus) -> PublishStatistics:
    return bus.statistics()


def _after_fork_in_child() -> None:
    """The child has neither the thread nor, perhaps, the locks that another thread held: it begins anew."""
    global _runner
    _left_to_the_parent.append(_runner)
    _left_to_the_parent.append(_runner._loop)
    _runner = _Runner()
    for bus in list(_buses):
        bus._after_fork()


def shutdown() -> None:
    """Close every blocking bus of this process and end their thread, as the end of the process does by itself.

    For hooks of workers that end without it, and for tests. A bus that is made afterwards starts the thread anew.
    """
    for bus in list(_buses):
        try:
            bus.close(EXIT_MS)
        except Exception:
            _log.exception("a bus could not be closed at the end of the process")
    _runner.stop()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
atexit.register(shutdown)
