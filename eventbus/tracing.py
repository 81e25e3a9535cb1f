"""What a trace is told of an event: its publish, and each delivery of it until the client's ack.

The words between the bus and whatever records spans; `eventbus.otel` is the one that does, with OpenTelemetry. The
context travels in the envelope, as the field `trace`. Token streams have no spans: only events do.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from enum import StrEnum
from functools import partial
from importlib import import_module
from typing import Protocol

from eventbus.config import Traces
from eventbus.errors import ConfigError
from eventbus.event import Event, EventHead
from eventbus.ids import EntryId, NodeName, RunId, SessionId, UserId
from eventbus.store import Appended

__all__ = ["DeliverySpan", "Outcome", "PublishSpan", "RunSpan", "Tracing", "follow", "load_tracing", "traced"]


class Outcome(StrEnum):
    """How a delivery ended, on this node."""

    ACKED = "acked"
    RELEASED = "released"
    DEAD_LETTERED = "dead_lettered"
    EXPIRED = "expired"
    LEFT = "left"
    """The connection is over; the event is pending and goes on with the session's next one."""


class PublishSpan(Protocol):
    """A publish, from the call to the store's answer."""

    trace: str
    """The traceparent that the event carries."""

    def stored(self, entry: EntryId, *, duplicate: bool, attempts: int) -> None:
        """The event is stored. Ends the span."""

    def failed(self, error: BaseException | None) -> None:
        """It is not known to be stored; None: the caller gave it up. Ends the span."""


class DeliverySpan(Protocol):
    """One event on its way to one session over one connection, from the node's read to the ack that is stored."""

    def sent(self, delivery: int) -> None:
        """It was written to the socket, for the `delivery`th time."""

    def ended(self, outcome: Outcome) -> None:
        """Ends the span."""


class RunSpan(Protocol):
    """A run of an agent: the spans of its events are below it."""

    def ended(self, outcome: str) -> None:
        """Ends the span; `success` is the outcome of a run that went well."""


class Tracing(Protocol):
    """What records spans."""

    def running(self, agent: str, user: UserId, run: RunId, above: RunSpan | None) -> RunSpan:
        """A run begins. It is below the run `above`, else below what the caller's task is doing."""

    def publishing(self, event: Event, run: RunSpan | None) -> PublishSpan:
        """A publish begins. Its parent is the event's own `trace`, else `run`, else what the caller's task is doing."""

    def delivering(self, head: EventHead, user: UserId, session: SessionId, node: NodeName) -> DeliverySpan | None:
        """A delivery begins; None when the event's trace is not recorded."""


def traced(tracing: Tracing | None, event: Event, run: RunSpan | None = None) -> tuple[Event, PublishSpan | None]:
    """The event with the context of its publish, and the span of it; as it was where nothing is recorded."""
    if tracing is None:
        return event, None
    span = tracing.publishing(event, run)
    return replace(event, trace=span.trace), span


def follow(span: PublishSpan, stored: asyncio.Future[tuple[Appended, int]]) -> None:
    """Have a span end with the publish that it is of."""
    stored.add_done_callback(partial(_answered, span))


def _answered(span: PublishSpan, stored: asyncio.Future[tuple[Appended, int]]) -> None:
    if stored.cancelled():
        span.failed(None)
    elif (error := stored.exception()) is not None:
        span.failed(error)
    else:
        answer, attempts = stored.result()
        span.stored(answer.entry, duplicate=answer.duplicate, attempts=attempts)


def load_tracing(traces: Traces) -> Tracing | None:
    """What the setting `EVENTBUS_TRACES` asks for.

    Raises:
        ConfigError: OpenTelemetry is not installed.
    """
    if traces is Traces.OFF:
        return None
    try:
        made: Tracing = import_module("eventbus.otel").OpenTelemetry()
    except ImportError as error:
        raise ConfigError(
            f"EVENTBUS_TRACES is otel, and OpenTelemetry can not be loaded ({error}): `pip install 'eventbus[otel]'`,"
            " or turn it off",
            field="traces",
        ) from None
    return made
