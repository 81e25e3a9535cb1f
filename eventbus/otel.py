"""Spans with OpenTelemetry, named as its messaging conventions want. The one module that knows OpenTelemetry.

Spans go to the provider that the process has set up; a node's own is set up by `gateway.otel`. Payloads are in no span.
Source: https://opentelemetry.io/docs/specs/semconv/messaging/messaging-spans/, docs/tracing.md.
"""

from __future__ import annotations

from typing import Final

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from eventbus.event import Event, EventHead
from eventbus.ids import EntryId, NodeName, RunId, SessionId, UserId
from eventbus.tracing import Outcome, RunSpan

__all__ = ["OpenTelemetry"]

DESTINATION: Final = "user/{user}"
"""The low-cardinality name of where events go; `messaging.destination.name` has the user."""

_PROPAGATOR: Final = TraceContextTextMapPropagator()
_KEY: Final = "traceparent"
_FAILURES: Final = frozenset((Outcome.DEAD_LETTERED, Outcome.EXPIRED))


class _Run:
    """A run's span and the context that the spans below it take."""

    __slots__ = ("context", "span")

    def __init__(self, span: Span) -> None:
        self.span = span
        self.context = trace.set_span_in_context(span)

    def ended(self, outcome: str) -> None:
        self.span.set_attribute("eventbus.outcome", outcome)
        if outcome != "success":
            self.span.set_attribute("error.type", outcome)
            self.span.set_status(Status(StatusCode.ERROR))
        self.span.end()


class _Publish:
    __slots__ = ("_span", "trace")

    def __init__(self, span: Span) -> None:
        self._span = span
        carrier: dict[str, str] = {}
        _PROPAGATOR.inject(carrier, trace.set_span_in_context(span))
        self.trace = carrier.get(_KEY, "")

    def stored(self, entry: EntryId, *, duplicate: bool, attempts: int) -> None:
        self._span.set_attributes(
            {"eventbus.entry": entry, "eventbus.duplicate": duplicate, "eventbus.attempts": attempts}
        )
        self._span.end()

    def failed(self, error: BaseException | None) -> None:
        reason = "cancelled" if error is None else getattr(error, "code", type(error).__qualname__)
        self._span.set_attribute("error.type", str(reason))
        self._span.set_status(Status(StatusCode.ERROR))
        self._span.end()


class _Delivery:
    __slots__ = ("_span",)

    def __init__(self, span: Span) -> None:
        self._span = span

    def sent(self, delivery: int) -> None:
        self._span.add_event("sent", {"eventbus.delivery": delivery})

    def ended(self, outcome: Outcome) -> None:
        self._span.set_attribute("eventbus.outcome", outcome.value)
        if outcome in _FAILURES:
            self._span.set_attribute("error.type", outcome.value)
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.end()


class OpenTelemetry:
    """An `eventbus.tracing.Tracing` over the provider of the process.

    Args:
        provider: another one.
    """

    def __init__(self, provider: trace.TracerProvider | None = None) -> None:
        self._tracer = trace.get_tracer("eventbus", tracer_provider=provider)

    def running(self, agent: str, user: UserId, run: RunId, above: RunSpan | None) -> _Run:
        """See `Tracing.running`."""
        attributes = {
            "gen_ai.operation.name": "invoke_agent",
            "gen_ai.agent.name": agent,
            "gen_ai.conversation.id": run,
            "enduser.id": user,
        }
        span = self._tracer.start_span(
            f"invoke_agent {agent}", _below(above), kind=SpanKind.INTERNAL, attributes=attributes
        )
        return _Run(span)

    def publishing(self, event: Event, run: RunSpan | None) -> _Publish:
        """See `Tracing.publishing`."""
        context = _context_of(event.trace) if event.trace else _below(run)
        attributes = _message(event.id, event.type, event.user, event.run)
        attributes["messaging.operation.name"] = "publish"
        attributes["messaging.operation.type"] = "send"
        span = self._tracer.start_span(f"publish {DESTINATION}", context, kind=SpanKind.PRODUCER, attributes=attributes)
        return _Publish(span)

    def delivering(self, head: EventHead, user: UserId, session: SessionId, node: NodeName) -> _Delivery | None:
        """See `Tracing.delivering`."""
        if head.trace is None:
            return None
        context = _context_of(head.trace)
        if not trace.get_current_span(context).get_span_context().trace_flags.sampled:
            return None
        attributes = _message(head.id, head.type, user, head.run)
        attributes["messaging.operation.name"] = "deliver"
        attributes["messaging.operation.type"] = "process"
        attributes["messaging.consumer.group.name"] = session
        attributes["eventbus.node"] = node
        span = self._tracer.start_span(f"deliver {DESTINATION}", context, kind=SpanKind.CONSUMER, attributes=attributes)
        return _Delivery(span)


def _below(run: RunSpan | None) -> Context | None:
    return run.context if isinstance(run, _Run) else None


def _context_of(traceparent: str) -> Context:
    # An empty context: what the task is doing beside is nobody's parent here.
    return _PROPAGATOR.extract({_KEY: traceparent}, Context())


def _message(event: str, type: str, user: UserId, run: RunId | None) -> dict[str, str]:
    attributes = {
        "messaging.system": "eventbus",
        "messaging.destination.name": user,
        "messaging.destination.template": DESTINATION,
        "messaging.message.id": event,
        "eventbus.event.type": type,
    }
    if run is not None:
        attributes["messaging.message.conversation_id"] = run
    return attributes
