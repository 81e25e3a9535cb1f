"""Sets up where the spans of a node's process go: over OTLP, as OpenTelemetry's own variables say."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from eventbus.config import Traces
from eventbus.errors import ConfigError
from gateway.config import NodeSettings

__all__ = ["exported"]


@contextmanager
def exported(settings: NodeSettings) -> Iterator[None]:
    """While it is open, spans of this process are exported; leaving it sends what is left, for some seconds at most.

    What was set up before, by `opentelemetry-instrument` as a rule, stays as it is. The variables are those of the
    OpenTelemetry specification: `OTEL_EXPORTER_OTLP_ENDPOINT`, `OTEL_SERVICE_NAME`, `OTEL_TRACES_SAMPLER` and so on.

    Raises:
        ConfigError: OpenTelemetry's SDK or its exporter is not installed.
    """
    if settings.trace.traces is Traces.OFF:
        yield
        return
    try:
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise ConfigError(
            f"EVENTBUS_TRACES is otel, and {error.name} is not installed: `pip install 'eventbus[gateway,otel]'`",
            field="traces",
        ) from None
    if not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        yield
        return
    # What stands in OTEL_SERVICE_NAME or OTEL_RESOURCE_ATTRIBUTES counts before the name given here.
    named = Resource({SERVICE_NAME: "eventbus-gateway", SERVICE_INSTANCE_ID: settings.node_name})
    environment = Resource.create()
    told = {key: value for key, value in environment.attributes.items() if value != "unknown_service"}
    provider = TracerProvider(resource=named.merge(Resource(told)))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    try:
        yield
    finally:
        provider.shutdown()
