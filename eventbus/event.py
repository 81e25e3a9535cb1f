"""The event, where it is made and as it travels: the envelope in MessagePack, and its JSON. Pure.

`make_event` and `event_from_object` judge an event where it is made, to the letter of docs/protocol.md, section 3.
`decode_envelope` and `event_of_fields` read what others made: fields that are unknown here are kept and passed on.
`peek` is the hot path of a node.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import msgpack
import orjson

from eventbus.errors import InvalidEvent, InvalidField
from eventbus.fields import (
    READERS,
    Deliver,
    Level,
    Require,
    parse_deliver,
    parse_event_type,
    parse_integer,
    parse_object,
    parse_require,
    parse_trace,
    refuse_missing,
)
from eventbus.ids import (
    EventId,
    RunId,
    ThreadId,
    UserId,
    parse_event_id,
    parse_run_id,
    parse_thread_id,
    parse_user_id,
)
from eventbus.jsonvalue import parsed_object, plain_object, plain_value, unpack
from eventbus.schemas import Schemas, check_critical

__all__ = [
    "ENVELOPE_VERSION",
    "MAX_AHEAD_MS",
    "MAX_ENVELOPE_BYTES",
    "MAX_EVENT_BYTES",
    "Deliver",
    "Event",
    "EventHead",
    "Level",
    "Require",
    "decode_envelope",
    "encode_envelope",
    "envelope_json",
    "event_fields",
    "event_from_object",
    "event_of_fields",
    "make_event",
    "parse_event_type",
    "peek",
]

ENVELOPE_VERSION: Final = 1
MAX_EVENT_BYTES: Final = 262_144
"""The default of the setting `max_event_bytes`: what `data` may take as MessagePack."""
MAX_ENVELOPE_BYTES: Final = 16 * 1024 * 1024
"""No envelope above this is decoded, whatever the setting of the publisher was."""
MAX_AHEAD_MS: Final = 300_000
"""So far ahead of the store's clock may `time_ms` be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """What a publisher gave, with all its fields. Made by `make_event`; the class itself judges nothing.

    Attributes:
        id: the publisher's event id and idempotency key.
        type: what kind of event it is.
        user: the only thing that routes it.
        time_ms: when the publisher made it, Unix milliseconds.
        data: a JSON object.
        thread, run: where it belongs.
        seq: its number in its run, from 1.
        require: a demanded confirmation.
        deliver: whom it is for.
        expires_ms: Unix milliseconds from which it is not delivered any more.
        trace: a W3C traceparent.
        v: version of the envelope.
        extra: fields that this version does not know; they are passed on.
    """

    id: EventId
    type: str
    user: UserId
    time_ms: int
    data: Mapping[str, Any]
    thread: ThreadId | None = None
    run: RunId | None = None
    seq: int | None = None
    require: Require | None = None
    deliver: Deliver = Deliver.EACH
    expires_ms: int | None = None
    trace: str | None = None
    v: int = ENVELOPE_VERSION
    extra: Mapping[str, Any] = field(default_factory=dict)


class EventHead(NamedTuple):
    """What a node needs of an event to route, filter, expire and send it.

    A named tuple, for it is made for each entry read: it costs a third of a frozen dataclass.
    """

    id: EventId
    type: str
    user: UserId
    time_ms: int
    thread: ThreadId | None
    run: RunId | None
    deliver: Deliver
    expires_ms: int | None
    json: bytes
    """The whole event as JSON, without blanks, the keys in the envelope's order."""
    demanded: bool = False
    """Whether a confirmation is demanded."""
    trace: str | None = None


# --- where an event is made -----------------------------------------------------------------------------------------


# As many arguments as an event has fields: an object to gather them in would be the event itself.
def make_event(
    *,
    id: str,
    type: str,
    user: str,
    time_ms: int,
    data: Mapping[str, Any],
    thread: str | None = None,
    run: str | None = None,
    seq: int | None = None,
    require: Require | None = None,
    deliver: Deliver = Deliver.EACH,
    expires_ms: int | None = None,
    trace: str | None = None,
    max_event_bytes: int = MAX_EVENT_BYTES,
    schemas: Schemas | None = None,
) -> Event:
    """Judge every field and make an event. `data` is copied: what happens to the caller's object later does not matter.

    Args:
        id: the event id; `eventbus.clock` makes one for a caller that has none.
        type: what kind of event it is.
        user: the only thing that routes it.
        time_ms: when it was made, Unix milliseconds.
        data: a JSON object.
        thread: the thread it belongs to.
        run: the run it belongs to.
        seq: its number in the run, from 1.
        require: a demanded confirmation.
        deliver: whom it is for.
        expires_ms: Unix milliseconds from which it is not delivered any more.
        trace: a W3C traceparent.
        max_event_bytes: the most `data` may take as MessagePack.
        schemas: the application's schemas; None for those of the five critical events alone.

    Raises:
        InvalidEvent: `field` is the path of the part that is wrong (`data.text`, `require.within_ms`).
    Source: docs/protocol.md, section 3.
    """
    try:
        event = Event(
            id=parse_event_id(id),
            type=parse_event_type(type),
            user=parse_user_id(user),
            time_ms=parse_integer(time_ms, "time_ms"),
            data=plain_object(data, "data", max_bytes=max_event_bytes),
            thread=None if thread is None else parse_thread_id(thread),
            run=None if run is None else parse_run_id(run),
            seq=None if seq is None else parse_integer(seq, "seq", 1),
            require=None
            if require is None
            else parse_require({"level": require.level, "within_ms": require.within_ms}),
            deliver=parse_deliver(deliver, "deliver"),
            expires_ms=None if expires_ms is None else parse_integer(expires_ms, "expires_ms"),
            trace=None if trace is None else parse_trace(trace),
        )
    except InvalidField as error:
        raise InvalidEvent(error.field, error.problem) from None
    return _judged(event, schemas)


def event_from_object(
    obj: object,
    *,
    default_id: str,
    default_time_ms: int,
    now_ms: int | None = None,
    index: int | None = None,
    max_event_bytes: int = MAX_EVENT_BYTES,
    schemas: Schemas | None = None,
) -> Event:
    """Make an event from a parsed JSON object, as it comes over HTTP or from the command line.

    Args:
        obj: the object.
        default_id: the event id of one that has none.
        default_time_ms: the time of one that has none, Unix milliseconds.
        now_ms: the store's clock: a `time_ms` more than 5 minutes ahead of it is refused. None: any time is good.
        index: its place in a batch, for the error.
        max_event_bytes: the most `data` may take as MessagePack.
        schemas: the application's schemas; None for those of the five critical events alone.

    Raises:
        InvalidEvent: with `field`, and `index` when one was given. Unknown fields and nulls are refused.
    Source: docs/protocol.md, sections 3 and 6.
    """
    try:
        fields = parse_object(obj, "event")
        _refuse_unknown(fields)
        refuse_missing(fields, ("type", "user", "data"))
        if fields.get("v", ENVELOPE_VERSION) != ENVELOPE_VERSION or isinstance(fields.get("v"), bool | float):
            raise InvalidEvent("v", f"must be {ENVELOPE_VERSION}")
        data = parsed_object(fields["data"], "data", max_bytes=max_event_bytes)
        event = _known_fields({"id": default_id, "time_ms": default_time_ms, **fields}, data, {})
        if now_ms is not None and event.time_ms > now_ms + MAX_AHEAD_MS:
            ahead_ms = event.time_ms - now_ms
            raise InvalidEvent("time_ms", f"is {ahead_ms} ms ahead of now, and {MAX_AHEAD_MS} are allowed")
        return _judged(event, schemas)
    except InvalidField as error:
        raise InvalidEvent(error.field, error.problem, index=index) from None


def _judged(event: Event, schemas: Schemas | None) -> Event:
    """What is judged over more than one field."""
    if event.seq is not None and event.run is None:
        raise InvalidEvent("seq", "numbers the events of a run; give `run` too")
    if schemas is None:
        check_critical(event.type, event.data)
    else:
        schemas.check(event.type, event.data)
    return event


# --- as it travels --------------------------------------------------------------------------------------------------


def event_fields(event: Event) -> dict[str, Any]:
    """The event as an object: keys in the order of the event table, optional fields left out, unknown ones last."""
    fields: dict[str, Any] = {"id": event.id, "type": event.type, "user": event.user}
    if event.thread is not None:
        fields["thread"] = event.thread
    if event.run is not None:
        fields["run"] = event.run
    if event.seq is not None:
        fields["seq"] = event.seq
    fields["time_ms"] = event.time_ms
    fields["data"] = event.data
    if event.require is not None:
        fields["require"] = {"level": event.require.level.value, "within_ms": event.require.within_ms}
    if event.deliver is not Deliver.EACH:
        fields["deliver"] = event.deliver.value
    if event.expires_ms is not None:
        fields["expires_ms"] = event.expires_ms
    if event.trace is not None:
        fields["trace"] = event.trace
    fields["v"] = event.v
    fields.update(event.extra)
    return fields


def encode_envelope(event: Event) -> bytes:
    """The event as it stands in the stream: one MessagePack map. Source: docs/protocol.md, section 3."""
    body: bytes = msgpack.packb(event_fields(event))
    return body


def decode_envelope(body: bytes) -> Event:
    """Read an envelope, from whatever bytes.

    Raises:
        InvalidEvent: it is no envelope, or a field that is known here has the wrong form.
    """
    return event_of_fields(_unpack(body))


def event_of_fields(fields: object) -> Event:
    """Make an event of the object that a decoder gave. Fields that are unknown here are kept in `extra`.

    Raises:
        InvalidEvent: it is no object, or a field that is known here is missing or has the wrong form.
    """
    try:
        known = parse_object(fields, "event")
        refuse_missing(known, _REQUIRED)
        data = plain_object(known["data"], "data", max_bytes=MAX_ENVELOPE_BYTES)
        extra = {
            key: plain_value(value, key, max_bytes=MAX_ENVELOPE_BYTES)
            for key, value in known.items()
            if key not in READERS and key != "data"
        }
        return _known_fields(known, data, extra)
    except InvalidField as error:
        raise InvalidEvent(error.field, error.problem) from None


def peek(body: bytes) -> EventHead:
    """Read what a node needs of an envelope, and its JSON. About 3 us for an event of 300 bytes.

    What passes here can be sent in every format; the forms of ids are not judged again.

    Raises:
        InvalidEvent: it is no envelope.
    """
    fields = _unpack(body)
    # A copy of the right size: orjson's own stands in a buffer of 4 KiB or a multiple of its length, and is held.
    json = bytes(memoryview(_json(fields)))
    try:
        get = fields.get
        head = EventHead(
            fields["id"],
            fields["type"],
            fields["user"],
            fields["time_ms"],
            get("thread"),
            get("run"),
            _DELIVER[get("deliver", "each")],
            get("expires_ms"),
            json,
            "require" in fields,
            get("trace"),
        )
        data = fields["data"]
    except (AttributeError, KeyError, TypeError):
        raise InvalidEvent("event", _NO_ENVELOPE) from None
    if not (
        type(head.id) is type(head.type) is type(head.user) is str
        and type(data) is dict
        and type(head.time_ms) is int
        and (head.thread is None or type(head.thread) is str)
        and (head.run is None or type(head.run) is str)
        and (head.expires_ms is None or type(head.expires_ms) is int)
        and (head.trace is None or type(head.trace) is str)
    ):
        raise InvalidEvent("event", _NO_ENVELOPE)
    return head


def envelope_json(body: bytes) -> bytes:
    """The JSON of an envelope: no blanks, the keys in the envelope's order.

    Raises:
        InvalidEvent: it is no envelope, or holds what JSON does not know.
    """
    fields = _unpack(body)
    if not isinstance(fields, dict):
        raise InvalidEvent("event", f"must be an object, not {type(fields).__name__}")
    return _json(fields)


_NO_ENVELOPE: Final = (
    "is no envelope: id, type, user, time_ms, data, thread, run, deliver, expires_ms or trace is missing or has a"
    " wrong type"
)

_DELIVER: Final[Mapping[object, Deliver]] = {deliver.value: deliver for deliver in Deliver}


def _unpack(body: bytes) -> Any:
    if len(body) > MAX_ENVELOPE_BYTES:
        raise InvalidEvent("event", f"takes {len(body)} bytes, and {MAX_ENVELOPE_BYTES} are the most that is read")
    try:
        return unpack(body)
    except ValueError as error:
        # FormatError and StackError come without a text.
        raise InvalidEvent("event", f"is no MessagePack: {str(error) or type(error).__name__}") from None


def _json(fields: object) -> bytes:
    try:
        return orjson.dumps(fields)
    except TypeError as error:  # of which orjson's own error is a subclass
        raise InvalidEvent("event", f"holds what JSON does not know: {error}") from None


_REQUIRED: Final = ("id", "type", "user", "time_ms", "data")


def _known_fields(fields: Mapping[str, Any], data: Mapping[str, Any], extra: Mapping[str, Any]) -> Event:
    values: dict[str, Any] = {}
    for name, read in READERS.items():
        if name in fields:
            value = fields[name]
            if value is None:
                raise InvalidField(name, "must not be null; leave it out")
            values[name] = read(value, name)
    return Event(data=data, extra=extra, **values)


def _refuse_unknown(fields: Mapping[str, Any]) -> None:
    for name in fields:
        if name == "seq":
            raise InvalidField(name, "is given by a run, not by its callers; leave it out")
        if name not in READERS and name != "data":
            raise InvalidField(ascii(name)[1:-1][:60] or '""', "is unknown; leave it out")
    require = fields.get("require")
    if isinstance(require, dict):
        for name in require:
            if name not in ("level", "within_ms"):
                raise InvalidField(f"require.{ascii(name)[:60].strip(chr(39))}", "is unknown; leave it out")
