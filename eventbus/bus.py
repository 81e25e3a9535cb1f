"""The bus: how an agent publishes events to its users."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Any, Final, Self, cast

from eventbus.awaiting import Awaiting
from eventbus.breaker import BreakerState
from eventbus.clock import Clock, SystemClock, new_event_id
from eventbus.config import ConfirmationRecords, Settings
from eventbus.confirmation import Confirmation, Sessions, parse_goal
from eventbus.errors import EventBusError, InvalidEvent, InvalidField, PartialPublish
from eventbus.event import Deliver, Event, Level, Require, encode_envelope, make_event
from eventbus.ids import parse_user_id
from eventbus.lines import Future
from eventbus.lookup import confirmations_of, confirmations_of_entry
from eventbus.publisher import Publisher
from eventbus.receipt import PublishStatistics, Receipt
from eventbus.runline import RunLine
from eventbus.runs import PublicError, Run, RunContext
from eventbus.schemas import Schemas
from eventbus.store import Append, Durability, Store
from eventbus.timers import LoopTimers, Timers

__all__ = ["Bus"]


_FIELDS: Final = frozenset(
    ("user", "type", "data", "id", "thread", "run", "deliver", "require", "expires_ms", "trace", "time_ms")
)
_REQUIRED: Final = ("user", "type", "data")
_NOT_OPEN: Final = "the bus is not open: use it inside `async with Bus(...) as bus:`"


class Bus:
    """Publishes events, and owns the connections to the store. Use it as `async with Bus(url) as bus:`.

    A bus belongs to the event loop in which it was opened. For threads there is `eventbus.blocking.Bus`.

    Args:
        url: where Redis or Valkey is; that of the settings when absent.
        settings: everything else; the defaults when absent. `Bus.from_env` takes them from the environment.
        store: another store than Redis, as a rule `eventbus.testing.MemoryStore`; whoever made it closes it.
        clock: where the time comes from; waits follow it when it can call back (`eventbus.testing.ManualClock`).
        schemas: what the data of the application's own types must hold.
        on_breaker: called in the event loop when the circuit breaker has moved.
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
        settings = settings or Settings()
        self.settings: Final = settings if url is None else replace(settings, redis_url=url)
        self.schemas: Final = schemas or Schemas()
        self._given_store = store
        self._clock: Clock = clock or SystemClock()
        self._on_breaker = on_breaker
        self._max_event_bytes = self.settings.publish.max_event_bytes
        self._durability = self.settings.publish.durability
        self._deadline_ms = self.settings.publish.publish_deadline_ms
        self._store: Store | None = None
        self._publisher: Publisher | None = None
        self._awaiting: Awaiting | None = None
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
        """Open it. The store is not waited for: a publish connects, and retries within its deadline."""
        if self._publisher is not None:
            raise EventBusError("this bus was opened before; make a new one")
        self._loop = asyncio.get_running_loop()
        self._store = self._given_store or self._redis_store()
        timers = self._clock if isinstance(self._clock, Timers) else LoopTimers()
        self._awaiting = Awaiting(self._store, self._clock, timers)
        self._publisher = Publisher(
            self._store, self.settings.publish, clock=self._clock, timers=timers, on_breaker=self._on_breaker
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self, timeout_ms: int | None = None) -> None:
        """Close it: nothing more is taken, what waits is stored or fails, the connections are closed. May be repeated.

        Args:
            timeout_ms: the longest wait for what waits; the publish deadline when absent.

        A cancelled call fails what waits at once, and closes all the same.
        """
        if self._publisher is None or self._store is None or self._awaiting is None:
            return
        try:
            await self._publisher.aclose(self._deadline_ms if timeout_ms is None else timeout_ms)
        finally:
            await self._awaiting.aclose()
            if self._given_store is None:
                await self._store.aclose()

    def statistics(self) -> PublishStatistics:
        """What was published, what waits, how the breaker stands. Raises: EventBusError when the bus is not open."""
        if self._publisher is None:
            raise EventBusError(_NOT_OPEN)
        return self._publisher.statistics()

    # As many arguments as an event has fields, and two about the call itself.
    async def publish(
        self,
        *,
        user: str,
        type: str,
        data: Mapping[str, Any],
        id: str | None = None,
        thread: str | None = None,
        run: str | None = None,
        deliver: Deliver | str = Deliver.EACH,
        require: Require | Mapping[str, Any] | None = None,
        expires_ms: int | None = None,
        trace: str | None = None,
        time_ms: int | None = None,
        durability: Durability | str | None = None,
        deadline_ms: int | None = None,
    ) -> Receipt:
        """Store an event for a user: each of the user's sessions will get it.

        Args:
            user: the user id, the only thing that routes; the id of a run or of a thread is refused here.
            type: what kind of event, `[a-z][a-z0-9_.]{0,63}`.
            data: a JSON object.
            id: the event id and idempotency key; repeated within `dedupe_ms` it is stored once. Made when absent.
            thread: the thread in which the event belongs.
            run: the run in which it belongs.
            deliver: `each` session of the user, or `any` one of them.
            require: a demanded confirmation: `{"level": "displayed", "within_ms": 5000}`.
            expires_ms: Unix milliseconds from which it is not delivered any more.
            trace: a W3C traceparent.
            time_ms: when it was made, Unix milliseconds; now when absent.
            durability: what the return promises; that of the settings when absent.
            deadline_ms: the call returns or raises within this time; that of the settings when absent.

        Returns:
            The receipt: the event is stored.

        Raises:
            InvalidEvent: `field` is wrong; nothing was sent.
            PublishTimeout, BreakerOpen, StoreBusy, StoreFull, StreamFull: not known to be stored; `retryable`: publish
                it again under the same id.
            NotReplicated: stored, but too few replicas have it; `retryable` as well.
            StoreMisconfigured: trying again is of no use.

        A cancelled call leaves open whether the event is stored; the order of the others is not disturbed.
        Source: docs/publishing.md.
        """
        event = self._made(
            user=user,
            type=type,
            data=data,
            id=id,
            thread=thread,
            run=run,
            deliver=deliver,
            require=require,
            expires_ms=expires_ms,
            trace=trace,
            time_ms=time_ms,
        )
        publisher = self._opened()
        body = encode_envelope(event)
        durable, deadline = self._durable(durability), self._deadline(deadline_ms)
        publisher.check_room(1, len(body))
        future = publisher.submit(Append(user=event.user, event=event.id, body=body), durable, deadline)
        answer, attempts = await future
        return Receipt(
            event=event.id,
            user=event.user,
            entry=answer.entry,
            duplicate=answer.duplicate,
            attempts=attempts,
            bus=self,
        )

    def run(
        self,
        *,
        user: str,
        agent: str,
        thread: str | None = None,
        run: str | None = None,
        public_error: PublicError | None = None,
    ) -> Run:
        """A run of an agent: `async with bus.run(user="ada", agent="planner") as run:`. What it owes always comes.

        Args:
            user: whose run it is.
            agent: the agent's name, not blank.
            thread: the thread in which the run belongs.
            run: the run id; made when absent.
            public_error: what the user is told when the agent raises, words or a function of the exception. Without it
                "the agent failed"; the exception itself goes into the log and never into an event.

        Raises:
            InvalidEvent: `field` names what is wrong.
        Source: docs/publishing.md.
        """
        line = RunLine(
            self._opened(),
            self._clock,
            durability=self._durability,
            deadline_ms=self._deadline_ms,
            receipt=partial(Receipt, bus=self),
        )
        context = RunContext.of(
            line,
            clock=self._clock,
            schemas=self.schemas,
            max_event_bytes=self._max_event_bytes,
            user=user,
            thread=thread,
        )
        return Run(context, agent=agent, run=run, public_error=public_error)

    async def publish_many(
        self,
        events: Sequence[Mapping[str, Any] | Event],
        *,
        durability: Durability | str | None = None,
        deadline_ms: int | None = None,
    ) -> list[Receipt]:
        """Store several events, of one user or of many; those of one user in the order given.

        Args:
            events: the fields of each as `publish` takes them, or an `Event` that `make_event` made.
            durability: as for `publish`, for all of them.
            deadline_ms: as for `publish`, for all of them.

        Returns:
            A receipt for each, in the order given.

        Raises:
            InvalidEvent: with `index` and `field` of the first that is wrong; nothing was sent.
            StoreBusy: they do not fit beside what already waits; nothing was sent.
            PartialPublish: some failed; `results` has a receipt or an error for each.
            PublishTimeout, BreakerOpen, ...: all failed, and all for this reason.

        A cancelled call leaves open which of them are stored.
        """
        publisher = self._opened()
        durable, deadline = self._durable(durability), self._deadline(deadline_ms)
        appends = [self._append(event, index) for index, event in enumerate(events)]
        publisher.check_room(len(appends), sum([len(append.body) for append in appends]))
        futures: list[Future | EventBusError] = []
        for append in appends:
            try:
                futures.append(publisher.submit(append, durable, deadline))
            except EventBusError as error:
                futures.append(error)
        return _receipts(
            [await _result(self, append, future, futures) for append, future in zip(appends, futures, strict=True)]
        )

    # --- what became of it --------------------------------------------------------------------------------------------

    async def wait(
        self, receipt: Receipt, level: Level | str, *, sessions: Sessions = "any", timeout_ms: int = 30_000
    ) -> list[Confirmation]:
        """Wait until the user's sessions have confirmed an event: `Receipt.wait`, for a receipt from anywhere."""
        awaiting = self._awaits()
        goal = parse_goal(level, sessions)
        if type(timeout_ms) is not int or timeout_ms < 1:
            raise InvalidField("timeout_ms", f"must be a whole number of milliseconds above 0, not {timeout_ms!r}")
        if self.settings.store.confirmation_records is not ConfirmationRecords.ALL:
            raise EventBusError("no confirmations are recorded: set EVENTBUS_CONFIRMATION_RECORDS to `all`")
        return await awaiting.wait(receipt.user, receipt.entry, goal, timeout_ms)

    async def confirmations(self, event: Receipt | Event | str, *, user: str | None = None) -> list[Confirmation]:
        """Which sessions confirmed an event, how far and when, as it stands now.

        Args:
            event: a receipt, an event, or an event id with its user.
            user: the user id, for an event id alone.

        Returns:
            One for each session and level that it reached, oldest first; none as well when nothing is known of the
            event (any more).

        Raises:
            InvalidField: the user is missing, or not of the right form.
            StoreError: the store does not answer.
        Source: docs/publishing.md.
        """
        self._awaits()
        store = self._store
        if store is None:
            raise EventBusError(_NOT_OPEN)
        if isinstance(event, Receipt):
            return await confirmations_of_entry(store, event.user, event.entry)
        if isinstance(event, Event):
            return await confirmations_of(store, event.user, event.id) or []
        if user is None:
            raise InvalidField("user", "is missing: an event id is looked for among the events of its user")
        return await confirmations_of(store, parse_user_id(user), event) or []

    def _awaits(self) -> Awaiting:
        self._opened()
        if self._awaiting is None:
            raise EventBusError(_NOT_OPEN)
        return self._awaiting

    def _append(self, event: Mapping[str, Any] | Event, index: int) -> Append:
        if not isinstance(event, Event):
            try:
                event = self._made_of(event)
            except InvalidField as error:
                raise error.at(index) from None
        return Append(user=event.user, event=event.id, body=encode_envelope(event))

    def _made_of(self, fields: object) -> Event:
        if not isinstance(fields, Mapping):
            raise InvalidEvent("event", f"must be an Event or an object of its fields, not {type(fields).__name__}")
        for name in fields:
            if name not in _FIELDS:
                raise InvalidEvent(str(name)[:40], "is no field of an event")
        for name in _REQUIRED:
            if name not in fields:
                raise InvalidEvent(name, "is missing")
        return self._made(**fields)

    def _made(
        self,
        *,
        user: str,
        type: str,
        data: Mapping[str, Any],
        id: str | None = None,
        thread: str | None = None,
        run: str | None = None,
        deliver: Deliver | str = Deliver.EACH,
        require: Require | Mapping[str, Any] | None = None,
        expires_ms: int | None = None,
        trace: str | None = None,
        time_ms: int | None = None,
    ) -> Event:
        return make_event(
            id=new_event_id(self._clock) if id is None else id,
            type=type,
            user=user,
            time_ms=self._clock.now_ms() if time_ms is None else time_ms,
            data=data,
            thread=thread,
            run=run,
            require=_require(require),
            deliver=cast(Deliver, deliver),  # make_event judges it
            expires_ms=expires_ms,
            trace=trace,
            max_event_bytes=self._max_event_bytes,
            schemas=self.schemas,
        )

    def _durable(self, durability: Durability | str | None) -> Durability:
        if durability is None:
            return self._durability
        try:
            return Durability(durability)
        except ValueError:
            raise InvalidField("durability", f"must be one of {', '.join(Durability)}, not {durability!r}") from None

    def _deadline(self, deadline_ms: int | None) -> int:
        if deadline_ms is None:
            return self._deadline_ms
        if type(deadline_ms) is not int or deadline_ms < 1:
            raise InvalidField("deadline_ms", f"must be a whole number of milliseconds above 0, not {deadline_ms!r}")
        return deadline_ms

    def _opened(self) -> Publisher:
        if self._publisher is None:
            raise EventBusError(_NOT_OPEN)
        if asyncio.get_running_loop() is not self._loop:
            raise EventBusError(
                "this bus belongs to another event loop; make one in each loop, or use eventbus.blocking.Bus in threads"
            )
        return self._publisher

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


def _require(require: Require | Mapping[str, Any] | None) -> Require | None:
    if require is None or isinstance(require, Require):
        return require
    if not isinstance(require, Mapping):
        raise InvalidEvent("require", f"must be an object, not {type(require).__name__}")
    if unknown := [name for name in require if name not in ("level", "within_ms")]:
        raise InvalidEvent(f"require.{unknown[0]}", "is no field of a demand")
    for name in ("level", "within_ms"):
        if name not in require:
            raise InvalidEvent(f"require.{name}", "is missing")
    return Require(level=cast(Level, require["level"]), within_ms=require["within_ms"])  # make_event judges both


async def _result(
    bus: Bus, append: Append, future: Future | EventBusError, all_of_them: Sequence[Future | EventBusError]
) -> Receipt | EventBusError:
    """One result of a batch. When the call is cancelled, so are all the others."""
    if isinstance(future, EventBusError):
        return future
    try:
        answer, attempts = await future
    except EventBusError as error:
        return error
    except asyncio.CancelledError:
        for other in all_of_them:
            if not isinstance(other, EventBusError) and not other.cancel() and not other.cancelled():
                other.exception()  # nobody will ask for it any more
        raise
    return Receipt(
        event=append.event,
        user=append.user,
        entry=answer.entry,
        duplicate=answer.duplicate,
        attempts=attempts,
        bus=bus,
    )


def _receipts(results: Sequence[Receipt | EventBusError]) -> list[Receipt]:
    receipts = [result for result in results if isinstance(result, Receipt)]
    errors = [result for result in results if isinstance(result, EventBusError)]
    if not errors:
        return receipts
    if not receipts and len({type(error) for error in errors}) == 1:
        raise errors[0]
    raise PartialPublish(
        f"{len(receipts)} of {len(results)} events are stored; the first of {len(errors)} errors: {errors[0]}."
        " `results` has a receipt or an error for each; publish those that failed again under the same ids",
        results,
    ) from errors[0]
