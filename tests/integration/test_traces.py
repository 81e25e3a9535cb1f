"""One trace goes from the publish over Redis and the node to the client's ack."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from eventbus import Bus
from eventbus.config import Settings, Traces, TraceSettings
from eventbus.errors import ConfigError
from eventbus.testing import MemoryStore
from eventbus.tracing import load_tracing
from tests.support.waiting import until
from tests.support.wire_client import Nodes, opened

pytestmark = pytest.mark.requirement("R29")


@pytest.fixture(scope="module")
def exporter() -> InMemorySpanExporter:
    """Where the spans of this process go. A process has one provider for good."""
    memory = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(memory))
    trace.set_tracer_provider(provider)
    assert trace.get_tracer_provider() is provider, "another test has set a provider of its own"
    return memory


@pytest.fixture
def spans(exporter: InMemorySpanExporter) -> Iterator[InMemorySpanExporter]:
    exporter.clear()
    yield exporter
    exporter.clear()


def named(spans: Sequence[ReadableSpan], name: str) -> list[ReadableSpan]:
    return [span for span in spans if span.name.startswith(name)]


def parent_of(span: ReadableSpan) -> int | None:
    return None if span.parent is None else span.parent.span_id


def settings(url: str) -> Settings:
    return replace(Settings(redis_url=url), trace=TraceSettings(traces=Traces.OTEL))


async def test_the_publish_is_the_parent_of_each_delivery_and_those_end_with_the_ack(
    nodes: Nodes, server_url: str, spans: InMemorySpanExporter
) -> None:
    node = await nodes.start(traces="otel")
    async with Bus(settings=settings(server_url)) as bus, opened(node, session="tab") as client:
        await client.expect("caught_up")
        with trace.get_tracer("agent").start_as_current_span("the agent's own work") as own:
            receipt = await bus.publish(user="alice", type="note", data={"text": "a secret of alice's"})
        (event,) = await client.events(1)
        client.send("nack", id=event["id"], delay_ms=1)
        (again,) = await client.events(1)
        assert again["delivery"] == 2
        client.send("ack", ids=[event["id"]])
        await until(lambda: named(spans.get_finished_spans(), "deliver"))
    (published,) = named(spans.get_finished_spans(), "publish")
    (delivered,) = named(spans.get_finished_spans(), "deliver")
    assert parent_of(published) == own.get_span_context().span_id
    assert published.context is not None
    assert parent_of(delivered) == published.context.span_id
    assert event["event"]["trace"].split("-")[1:3] == [
        f"{published.context.trace_id:032x}",
        f"{published.context.span_id:016x}",
    ]
    assert published.attributes is not None
    assert delivered.attributes is not None
    assert published.attributes["messaging.message.id"] == delivered.attributes["messaging.message.id"] == receipt.event
    assert published.attributes["eventbus.entry"] == event["id"]
    assert delivered.attributes["eventbus.outcome"] == "acked"
    assert delivered.attributes["messaging.consumer.group.name"] == "tab"
    assert [dict(one.attributes or {}) for one in delivered.events] == [
        {"eventbus.delivery": 1},
        {"eventbus.delivery": 2},
    ]
    assert "a secret" not in "".join(span.to_json() for span in spans.get_finished_spans())


async def test_the_events_of_a_run_and_of_its_child_are_below_its_span_and_tokens_have_none(
    nodes: Nodes, server_url: str, spans: InMemorySpanExporter
) -> None:
    async with Bus(settings=settings(server_url)) as bus, bus.run(user="alice", agent="planner") as run:
        async with run.child(agent="helper") as child:
            await child.thinking("hm")
        async with run.stream() as stream:
            for word in ("one ", "two ", "three"):
                await stream.write(word)
        run.result = 1
    ended = spans.get_finished_spans()
    (above,) = named(ended, "invoke_agent planner")
    (below,) = named(ended, "invoke_agent helper")
    assert above.context is not None
    assert below.context is not None
    assert parent_of(below) == above.context.span_id
    of = {
        span.context.span_id: [
            str(one.attributes["eventbus.event.type"])
            for one in named(ended, "publish")
            if one.attributes and parent_of(one) == span.context.span_id
        ]
        for span in (above, below)
        if span.context is not None
    }
    assert of[above.context.span_id] == ["agent_started", "agent_text", "agent_completed"]
    assert of[below.context.span_id] == ["agent_started", "agent_thinking", "agent_completed"]
    assert len(ended) == 8


async def test_what_is_not_sampled_is_delivered_and_not_recorded(nodes: Nodes, spans: InMemorySpanExporter) -> None:
    node = await nodes.start(traces="otel")
    async with Bus(node.node_settings.redis_url) as bus, opened(node, session="tab") as client:
        await client.expect("caught_up")
        unsampled = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"
        await bus.publish(user="alice", type="note", data={}, trace=unsampled)
        await bus.publish(user="alice", type="note", data={})
        first, second = await client.events(2)
        client.send("ack", ids=[first["id"], second["id"]], ref="r")
        await client.expect("acked", count=2)
        assert node.spans is not None
        assert len(node.spans) == 0
    assert not spans.get_finished_spans()


async def test_a_publish_that_fails_ends_its_span_with_the_reason(spans: InMemorySpanExporter) -> None:
    store = MemoryStore()
    async with Bus(store=store, settings=settings("redis://127.0.0.1:1")) as bus:
        store.fail()
        with pytest.raises(Exception, match=r".") as raised:
            await bus.publish(user="alice", type="note", data={}, deadline_ms=50)
        await until(lambda: spans.get_finished_spans())
        store.heal()
    (span,) = spans.get_finished_spans()
    assert span.attributes is not None
    assert span.attributes["error.type"] == getattr(raised.value, "code", None)
    assert not span.status.is_ok


def test_traces_without_opentelemetry_are_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "eventbus.otel", None)
    with pytest.raises(ConfigError, match=r"pip install 'eventbus\[otel\]'"):
        load_tracing(Traces.OTEL)
