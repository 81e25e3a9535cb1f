"""The table of open delivery spans: each ends once, by what became of the delivery, and there are only so many."""

from __future__ import annotations

import pytest

from eventbus.event import EventHead, encode_envelope, make_event, peek
from eventbus.ids import ConnectionId, EntryId, NodeName, RunId, SessionId, UserId
from eventbus.moves import Sending
from eventbus.tracing import Outcome, PublishSpan, RunSpan
from gateway.sessions.tracing import DeliverySpans
from gateway.transport.payload import Payload

pytestmark = pytest.mark.requirement("R29")

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
CONNECTION, USER, SESSION = ConnectionId("c1"), UserId("ann"), SessionId("tab")


class Recorder:
    """A `Tracing` that writes down what it is told."""

    def __init__(self) -> None:
        self.spans: list[list[object]] = []

    def running(self, agent: str, user: UserId, run: RunId, above: RunSpan | None) -> RunSpan:
        raise AssertionError("a node runs no agent")

    def publishing(self, event: object, run: RunSpan | None) -> PublishSpan:
        raise AssertionError("a delivery is no publish")

    def delivering(self, head: EventHead, user: UserId, session: SessionId, node: NodeName) -> Span:
        said: list[object] = [head.id, session, node]
        self.spans.append(said)
        return Span(said)


class Span:
    def __init__(self, said: list[object]) -> None:
        self._said = said

    def sent(self, delivery: int) -> None:
        self._said.append(delivery)

    def ended(self, outcome: Outcome) -> None:
        self._said.append(outcome)


def sending(number: int, delivery: int = 1, trace: str | None = TRACE) -> Sending:
    event = make_event(id=f"e{number}", type="note", user=USER, time_ms=1, data={}, trace=trace)
    body = encode_envelope(event)
    entry = EntryId(f"1-{number}")
    return Sending(entry, delivery, Payload(entry, body, peek(body)))


def spans(most: int = 10) -> tuple[DeliverySpans, Recorder]:
    recorder = Recorder()
    return DeliverySpans(recorder, NodeName("n1"), spans_max=most), recorder


def test_a_delivery_is_one_span_over_all_its_attempts_until_the_ack() -> None:
    table, recorder = spans()
    table.sent(CONNECTION, USER, SESSION, [sending(1)])
    table.sent(CONNECTION, USER, SESSION, [sending(1, 2)])
    table.ended(CONNECTION, [EntryId("1-1")], Outcome.ACKED)
    table.ended(CONNECTION, [EntryId("1-1")], Outcome.ACKED)
    assert recorder.spans == [["e1", "tab", "n1", 1, 2, Outcome.ACKED]]
    assert len(table) == 0


def test_what_has_no_context_is_not_recorded() -> None:
    table, recorder = spans()
    table.sent(CONNECTION, USER, SESSION, [sending(1, trace=None)])
    table.ended(CONNECTION, [EntryId("1-1")], Outcome.ACKED)
    assert recorder.spans == []


def test_what_is_open_when_a_connection_ends_has_left_and_that_of_others_stays() -> None:
    table, recorder = spans()
    table.sent(CONNECTION, USER, SESSION, [sending(1), sending(2)])
    table.sent(ConnectionId("c2"), USER, SessionId("phone"), [sending(1)])
    table.ended(CONNECTION, [EntryId("1-2")], Outcome.DEAD_LETTERED)
    table.left(CONNECTION)
    table.left(CONNECTION)
    assert recorder.spans == [
        ["e1", "tab", "n1", 1, Outcome.LEFT],
        ["e2", "tab", "n1", 1, Outcome.DEAD_LETTERED],
        ["e1", "phone", "n1", 1],
    ]
    assert len(table) == 1


@pytest.mark.requirement("R9")
def test_beyond_the_bound_deliveries_are_counted_and_not_recorded() -> None:
    table, recorder = spans(2)
    table.sent(CONNECTION, USER, SESSION, [sending(number) for number in range(5)])
    assert (len(table), len(recorder.spans), table.left_out) == (2, 2, 3)
    table.left(CONNECTION)
    table.sent(CONNECTION, USER, SESSION, [sending(7)])
    assert (len(table), table.left_out) == (1, 3)
