"""From the arguments of a publish to what the store takes, and from its answers to receipts."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, Required, TypedDict, cast

from eventbus.clock import Clock, new_event_id
from eventbus.config import ConfirmationRecords, PublishSettings, StoreSettings
from eventbus.errors import EventBusError, InvalidEvent, InvalidField, PartialPublish
from eventbus.event import Deliver, Event, Level, Require, encode_envelope, make_event
from eventbus.ids import UserId, parse_user_id
from eventbus.publishing.lines import Future
from eventbus.publishing.publisher import Publisher
from eventbus.publishing.receipt import Receipt, Waits
from eventbus.schemas import Schemas
from eventbus.store import Append, Demand, Durability, RunStep
from eventbus.tracing import PublishSpan, Tracing, follow, traced

__all__ = [
    "EventFields",
    "EventMaker",
    "append_of",
    "demand_of",
    "receipts_of",
    "recipients",
    "store_all",
    "submit",
    "to_each",
]

_FIELDS: Final = frozenset(
    ("user", "type", "data", "id", "thread", "run", "deliver", "require", "expires_ms", "trace", "time_ms")
)
_REQUIRED: Final = ("user", "type", "data")


class EventFields(TypedDict, total=False):
    """The arguments of a publish beside whom it is for, as `Bus.publish` explains them."""

    type: Required[str]
    data: Required[Mapping[str, Any]]
    id: str | None
    thread: str | None
    run: str | None
    deliver: Deliver | str
    require: Require | Mapping[str, Any] | None
    expires_ms: int | None
    trace: str | None
    time_ms: int | None
    durability: Durability | str | None
    deadline_ms: int | None


def append_of(event: Event, step: RunStep | None = None) -> Append:
    """What the store is given for an event.

    Args:
        event: the event.
        step: of an event of a run: what it changes there.
    """
    require = event.require
    return Append(
        user=event.user,
        event=event.id,
        body=encode_envelope(event),
        type=event.type,
        thread=event.thread,
        demand=None if require is None else Demand(level=require.level, within_ms=require.within_ms),
        step=step,
    )


def recipients(user: str | None, users: Iterable[str] | None) -> list[UserId] | None:
    """For whom an event is: each of `users` once, in the order given; None for one `user` alone.

    Raises:
        InvalidEvent: both or neither are given, nobody is named, or a user id is none.
    """
    if users is None:
        if user is None:
            raise InvalidEvent("user", "is missing: give `user`, or `users` for one event to many")
        return None
    if user is not None:
        raise InvalidEvent("users", "is given beside `user`; give one of the two")
    if isinstance(users, str | bytes):
        raise InvalidEvent("users", "must be a list of user ids, not one string; for one user give `user`")
    try:
        found = {parse_user_id(one, f"users[{index}]"): None for index, one in enumerate(users)}
    except InvalidField as error:
        raise InvalidEvent(error.field, error.problem) from None
    if not found:
        raise InvalidEvent("users", "names nobody")
    return list(found)


def to_each(event: Event, users: Iterable[UserId]) -> list[Event]:
    """One event to many users: judged once, under the same id for each."""
    return [replace(event, user=user) for user in users]


class EventMaker:
    """Makes events of arguments, by the settings of a bus.

    Args:
        settings: bounds and defaults.
        clock: for ids and times that were not given.
        schemas: what data must hold.
        store: which confirmations the store records and how long: a demand that nothing can meet is refused.
    """

    __slots__ = ("_clock", "_deadline_ms", "_durability", "_max_event_bytes", "_schemas", "_store")

    def __init__(
        self,
        settings: PublishSettings,
        clock: Clock,
        schemas: Schemas,
        store: StoreSettings,
    ) -> None:
        self._clock = clock
        self._store = store
        self._schemas = schemas
        self._max_event_bytes = settings.max_event_bytes
        self._durability = settings.durability
        self._deadline_ms = settings.publish_deadline_ms

    # As many arguments as an event has fields.
    def made(
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
        """An event of the arguments of `Bus.publish`. Raises: InvalidEvent."""
        event = make_event(
            id=new_event_id(self._clock) if id is None else id,
            type=type,
            user=user,
            time_ms=self._clock.now_ms() if time_ms is None else time_ms,
            data=data,
            thread=thread,
            run=run,
            require=demand_of(require),
            deliver=cast(Deliver, deliver),  # make_event judges it
            expires_ms=expires_ms,
            trace=trace,
            max_event_bytes=self._max_event_bytes,
            schemas=self._schemas,
        )
        self.check_demand(event)
        return event

    def check_demand(self, event: Event) -> None:
        """Refuse a demand that nothing can meet. Raises: InvalidEvent, naming `require` or `require.within_ms`."""
        if event.require is None:
            return
        if self._store.confirmation_records is ConfirmationRecords.OFF:
            raise InvalidEvent(
                "require", "can not be met, for no confirmations are recorded; set EVENTBUS_CONFIRMATION_RECORDS"
            )
        kept_ms = self._store.retention_ms
        if event.require.within_ms > kept_ms:
            raise InvalidEvent(
                "require.within_ms",
                f"is {event.require.within_ms}, and confirmations are kept for {kept_ms} ms (EVENTBUS_RETENTION_MS):"
                " demand it sooner",
            )

    def checked(self, event: Mapping[str, Any] | Event, index: int) -> Event:
        """An event of a batch, or of the fields of one. Raises: InvalidEvent."""
        try:
            if not isinstance(event, Event):
                event = self._made_of(event)
            self.check_demand(event)
        except InvalidField as error:
            raise error.at(index) from None
        return event

    def _made_of(self, fields: object) -> Event:
        if not isinstance(fields, Mapping):
            raise InvalidEvent("event", f"must be an Event or an object of its fields, not {type(fields).__name__}")
        for name in fields:
            if name not in _FIELDS:
                raise InvalidEvent(str(name)[:40], "is no field of an event")
        for name in _REQUIRED:
            if name not in fields:
                raise InvalidEvent(name, "is missing")
        return self.made(**fields)

    def durable(self, durability: Durability | str | None) -> Durability:
        """What a call promises: that of the settings when it does not say. Raises: InvalidField."""
        if durability is None:
            return self._durability
        try:
            return Durability(durability)
        except ValueError:
            raise InvalidField("durability", f"must be one of {', '.join(Durability)}, not {durability!r}") from None

    def deadline(self, deadline_ms: int | None) -> int:
        """How long a call may take: as the settings say when it does not. Raises: InvalidField."""
        if deadline_ms is None:
            return self._deadline_ms
        if type(deadline_ms) is not int or deadline_ms < 1:
            raise InvalidField("deadline_ms", f"must be a whole number of milliseconds above 0, not {deadline_ms!r}")
        return deadline_ms


def submit(
    publisher: Publisher, append: Append, span: PublishSpan | None, durability: Durability, deadline_ms: int
) -> Future:
    """Hand an event to the publisher; the span of its publish ends with it. Raises: EventBusError."""
    try:
        future = publisher.submit(append, durability, deadline_ms)
    except EventBusError as error:
        if span is not None:
            span.failed(error)
        raise
    if span is not None:
        follow(span, future)
    return future


async def store_all(
    publisher: Publisher,
    events: Sequence[Event],
    durability: Durability,
    deadline_ms: int,
    bus: Waits,
    tracing: Tracing | None = None,
) -> list[Receipt | EventBusError]:
    """Hand a batch to the publisher and wait for all of it.

    Returns:
        A receipt or an error for each, in the order given.

    Raises:
        StoreBusy: they do not fit beside what already waits; nothing was sent.
    A cancelled call gives all of them up; which of them are stored is left open.
    """
    made = [traced(tracing, event) for event in events]
    appends = [append_of(event) for event, _ in made]
    try:
        publisher.check_room(len(appends), sum([len(append.body) for append in appends]))
    except EventBusError as error:
        for _, span in made:
            if span is not None:
                span.failed(error)
        raise
    futures: list[Future | EventBusError] = []
    for append, (_, span) in zip(appends, made, strict=True):
        try:
            futures.append(submit(publisher, append, span, durability, deadline_ms))
        except EventBusError as error:
            futures.append(error)
    return [await _result(bus, append, future, futures) for append, future in zip(appends, futures, strict=True)]


def receipts_of(
    results: Sequence[Receipt | EventBusError], users: Sequence[UserId] = (), event: str = ""
) -> list[Receipt]:
    """The receipts of a batch.

    Args:
        results: what became of each event.
        users: of one event to many users: whose each result is.
        event: of one event to many users: its id.

    Raises:
        PartialPublish: some failed.
        EventBusError: all failed, for one reason.
    """
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
        users,
        event,
    ) from errors[0]


async def _result(
    bus: Waits, append: Append, future: Future | EventBusError, all_of_them: Sequence[Future | EventBusError]
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


def demand_of(require: Require | Mapping[str, Any] | None) -> Require | None:
    """Read a demanded confirmation; `make_event` judges its values. Raises: InvalidEvent."""
    if require is None or isinstance(require, Require):
        return require
    if not isinstance(require, Mapping):
        raise InvalidEvent("require", f"must be an object, not {type(require).__name__}")
    if unknown := [name for name in require if name not in ("level", "within_ms")]:
        raise InvalidEvent(f"require.{unknown[0]}", "is no field of a demand")
    for name in ("level", "within_ms"):
        if name not in require:
            raise InvalidEvent(f"require.{name}", "is missing")
    return Require(level=cast(Level, require["level"]), within_ms=require["within_ms"])
