"""The wire protocol in its two formats: frames from and to bytes, hostile bytes included. Pure.

Source: docs/protocol.md, sections 2 and 3. The records are in `eventbus.frames` and can be had from here. A node sends
events by the prebuilt path at the end: what an event is encoded to is made once and spliced into every frame.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from typing import Any, Final, cast

import msgpack
import orjson

from eventbus.errors import BadFrame, InvalidField, InvalidUtf8, UnknownOp
from eventbus.event import event_fields
from eventbus.fields import Level
from eventbus.frames import (
    Ack,
    Acked,
    CaughtUp,
    ClientFrame,
    Delivered,
    Dropped,
    ErrorFrame,
    Events,
    Filter,
    Filtered,
    Gap,
    GoAway,
    GoAwayReason,
    Hello,
    Nack,
    Ping,
    Pong,
    Ref,
    Refresh,
    Refreshed,
    Released,
    Send,
    Sent,
    ServerFrame,
    SetFilter,
    Text,
    Welcome,
    Working,
)
from eventbus.framespecs import (
    CLIENT_SPECS,
    MAX_DELAY_MS,
    MAX_FILTER_ITEMS,
    MAX_FRAME_IDS,
    MAX_NOTE_CHARACTERS,
    MAX_REF_CHARACTERS,
    MAX_WINDOW,
    REQUIRED,
    SERVER_SPECS,
    Spec,
    parse_entry_ids,
    parse_ref,
)
from eventbus.ids import EntryId
from eventbus.jsonvalue import unpack
from eventbus.moves import DropReason
from eventbus.store import GapReason, Start

__all__ = [
    "MAX_DELAY_MS",
    "MAX_FILTER_ITEMS",
    "MAX_FRAME_IDS",
    "MAX_ITEMS_BYTES",
    "MAX_NOTE_CHARACTERS",
    "MAX_REF_CHARACTERS",
    "MAX_WINDOW",
    "Ack",
    "Acked",
    "CaughtUp",
    "ClientFrame",
    "Delivered",
    "DropReason",
    "Dropped",
    "ErrorFrame",
    "Events",
    "Filter",
    "Filtered",
    "Format",
    "Gap",
    "GapReason",
    "GoAway",
    "GoAwayReason",
    "Hello",
    "Level",
    "Nack",
    "Ping",
    "Pong",
    "Ref",
    "Refresh",
    "Refreshed",
    "Released",
    "Send",
    "Sent",
    "ServerFrame",
    "SetFilter",
    "Start",
    "Text",
    "Welcome",
    "Working",
    "decode_client",
    "decode_server",
    "encode_client",
    "encode_server",
    "event_item",
    "events_payload",
    "split_items",
]

MAX_ITEMS_BYTES: Final = 1024 * 1024
"""One `events` frame is at most this, unless a single event is more."""


class Format(Enum):
    """A format, by the name of its WebSocket subprotocol."""

    JSON = "eventbus.v1.json"
    MSGPACK = "eventbus.v1.msgpack"

    @property
    def subprotocol(self) -> str:
        """The name that a client offers and the node echoes."""
        return self.value


# --- decoding ---------------------------------------------------------------------------------------------------------


def decode_client(payload: bytes, format: Format) -> ClientFrame:
    """Read a client's frame, from whatever bytes.

    Args:
        payload: a whole message, already bounded by `max_frame_bytes`.
        format: the format of the connection.

    Raises:
        InvalidUtf8: a JSON text is not UTF-8; the socket is closed with 1007.
        BadFrame: it is no frame, or a field has a wrong type or range; `field` names it.
        UnknownOp: a frame of an op that is not known here.
    Source: docs/protocol.md, section 2.
    """
    fields = _load(payload, format)
    if len(fields) == 2 and fields.get("op") == "ack" and "ids" in fields:
        # By far the commonest frame.
        try:
            return Ack(ids=parse_entry_ids(fields["ids"], "ids"))
        except InvalidField as error:
            raise BadFrame(error.field, error.problem) from None
    frame = _decode(fields, CLIENT_SPECS)
    if isinstance(frame, Ack) and (frame.ids is None) == (frame.upto is None):
        raise BadFrame("ids", "exactly one of `ids` and `upto` must be given")
    if isinstance(frame, Hello) and frame.start is Start.CURSOR and frame.cursor is None:
        raise BadFrame("cursor", "is missing, and `start` is `cursor`")
    return cast(ClientFrame, frame)


def decode_server(payload: bytes, format: Format) -> ServerFrame:
    """Read a node's frame.

    Raises:
        BadFrame: it is no frame, or a field has a wrong type or range.
        UnknownOp: a frame of a later version; a client ignores it.
    Source: docs/protocol.md, section 3.
    """
    return cast(ServerFrame, _decode(_load(payload, format), SERVER_SPECS))


def _load(payload: bytes, format: Format) -> dict[str, Any]:
    try:
        fields = orjson.loads(payload) if format is Format.JSON else unpack(payload)
    except ValueError as error:
        if format is Format.JSON:
            _refuse_invalid_utf8(payload)
            raise BadFrame("frame", f"is no JSON: {error}") from None
        # FormatError and StackError come without a text.
        raise BadFrame("frame", f"is no MessagePack: {str(error) or type(error).__name__}") from None
    if not isinstance(fields, dict):
        raise BadFrame("frame", f"must be an object, not {type(fields).__name__}")
    return fields


def _refuse_invalid_utf8(payload: bytes) -> None:
    try:
        payload.decode()
    except UnicodeDecodeError as error:
        raise InvalidUtf8("frame", f"is not UTF-8 at byte {error.start}") from None


def _decode(fields: dict[str, Any], specs: Mapping[str, Spec]) -> Any:
    op = fields.get("op")
    if not isinstance(op, str):
        raise BadFrame("op", "is missing" if "op" not in fields else f"must be a string, not {type(op).__name__}")
    spec = specs.get(op)
    if spec is None:
        ref = fields.get("ref")
        raise UnknownOp(f"the op {op[:40]!r} is unknown", ref=ref if _is_ref(ref) else None)
    record, readers = spec
    values: dict[str, Any] = {}
    try:
        for name, read, default in readers:
            if name in fields:
                value = fields[name]
                if value is None:
                    raise BadFrame(name, "must not be null; leave it out")
                values[name] = read(value, name)
            elif default is REQUIRED:
                raise BadFrame(name, "is missing")
    except InvalidField as error:
        raise BadFrame(error.field, error.problem) from None
    return record(**values)


def _is_ref(value: object) -> bool:
    try:
        parse_ref(value, "ref")
    except InvalidField:
        return False
    return True


# --- encoding ---------------------------------------------------------------------------------------------------------


def encode_client(frame: ClientFrame, format: Format) -> bytes:
    """Write a client's frame, the keys in the protocol's order. Source: docs/protocol.md, section 2."""
    return _dump(_object_of(frame, CLIENT_SPECS), format)


def encode_server(frame: ServerFrame, format: Format) -> bytes:
    """Write a node's frame, JSON without blanks, keys in the protocol's order. Source: docs/protocol.md, section 3."""
    return _dump(_object_of(frame, SERVER_SPECS), format)


def _dump(fields: Mapping[str, Any], format: Format) -> bytes:
    if format is Format.JSON:
        return orjson.dumps(fields)
    return cast(bytes, msgpack.packb(fields))


def _object_of(frame: ClientFrame | ServerFrame, specs: Mapping[str, Spec]) -> dict[str, Any]:
    fields: dict[str, Any] = {"op": frame.op}
    for name, _, default in specs[frame.op][1]:
        value = getattr(frame, name)
        if value is not default:
            fields[name] = _PLAIN[name](value) if name in _PLAIN else value
    return fields


def _plain_filter(wanted: Filter) -> dict[str, list[str]]:
    lists = {"types": wanted.types, "threads": wanted.threads, "runs": wanted.runs}
    return {name: sorted(items) for name, items in lists.items() if items is not None}


def _plain_events(events: Iterable[Delivered]) -> list[dict[str, Any]]:
    return [{"id": item.id, "delivery": item.delivery, "event": event_fields(item.event)} for item in events]


_PLAIN: Final[Mapping[str, Callable[[Any], Any]]] = {"filter": _plain_filter, "events": _plain_events, "data": dict}


# --- events, prebuilt -------------------------------------------------------------------------------------------------


def event_item(entry_id: EntryId, delivery: int, encoded: bytes, format: Format) -> bytes:
    """One `{id, delivery, event}`, around an event that is encoded already.

    Args:
        entry_id: the entry id.
        delivery: 1 the first time.
        encoded: the event in this format: its JSON (`EventHead.json`), or its envelope as it stands in the stream.
        format: the format of the connection.
    """
    if format is Format.JSON:
        return b'{"id":"%b","delivery":%d,"event":%b}' % (entry_id.encode(), delivery, encoded)
    return b"\x83\xa2id%b\xa8delivery%b\xa5event%b" % (msgpack.packb(entry_id), msgpack.packb(delivery), encoded)


def events_payload(items: Sequence[bytes], format: Format) -> bytes:
    """A whole `events` frame of items that `event_item` made."""
    if format is Format.JSON:
        return b'{"op":"events","events":[%b]}' % b",".join(items)
    count = len(items)
    if count < 16:
        header = bytes((0x90 | count,))
    elif count < 1 << 16:
        header = b"\xdc" + count.to_bytes(2, "big")
    else:
        header = b"\xdd" + count.to_bytes(4, "big")
    return b"\x82\xa2op\xa6events\xa6events" + header + b"".join(items)


def split_items(items: Sequence[bytes], max_bytes: int = MAX_ITEMS_BYTES) -> list[Sequence[bytes]]:
    """Cut items into runs of which each makes a frame of at most `max_bytes`; a single larger one goes alone."""
    room = max_bytes - _AROUND_BYTES
    parts: list[Sequence[bytes]] = []
    begin = size = 0
    for index, item in enumerate(items):
        item_bytes = len(item) + 1  # the comma
        if index > begin and size + item_bytes > room:
            parts.append(items[begin:index])
            begin, size = index, 0
        size += item_bytes
    if begin < len(items):
        parts.append(items[begin:] if begin else items)
    return parts


_AROUND_BYTES: Final = len(b'{"op":"events","events":[]}')
"""What stands around the items; in MessagePack less, and an item needs no comma there."""
