"""How each field of each frame is read: the tables of the wire protocol. Pure.

Source: docs/protocol.md, sections 2 and 3.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any, Final, TypeVar

from eventbus.errors import InvalidField
from eventbus.event import MAX_EVENT_BYTES, event_of_fields
from eventbus.fields import Level, parse_event_type, parse_integer, parse_object, parse_seq, parse_word
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
from eventbus.ids import EntryId, parse_entry_id, parse_run_id, parse_session_id, parse_thread_id
from eventbus.jsonvalue import MAX_INTEGER, plain_object
from eventbus.moves import DropReason
from eventbus.store import GapReason, Start

__all__ = [
    "CLIENT_SPECS",
    "MAX_DELAY_MS",
    "MAX_FILTER_ITEMS",
    "MAX_FRAME_IDS",
    "MAX_NOTE_CHARACTERS",
    "MAX_REF_CHARACTERS",
    "MAX_WINDOW",
    "REQUIRED",
    "SERVER_SPECS",
    "Spec",
    "parse_entry_ids",
    "parse_ref",
]

MAX_FRAME_IDS: Final = 4096
"""Entry ids in one `ack` or `working`: more than a frame of the default size holds."""
MAX_FILTER_ITEMS: Final = 256
MAX_WINDOW: Final = 1024
MAX_NOTE_CHARACTERS: Final = 256
MAX_REF_CHARACTERS: Final = 128
MAX_DELAY_MS: Final = 3_600_000

Reader = Callable[[Any, str], Any]

# Every id of this form is below 2**64 in both parts, so the common one needs no arithmetic.
_ENTRY: Final = re.compile(r"(?:0|[1-9][0-9]{0,18})-(?:0|[1-9][0-9]{0,18})").fullmatch


def _text(most: int | None = None) -> Reader:
    def read(value: object, name: str) -> str:
        if not isinstance(value, str):
            raise InvalidField(name, f"must be a string, not {type(value).__name__}")
        if most is not None and len(value) > most:
            raise InvalidField(name, f"has {len(value)} characters, and {most} are allowed")
        return value

    return read


def _between(least: int, most: int) -> Reader:
    def read(value: object, name: str) -> int:
        if type(value) is not int:
            raise InvalidField(name, f"must be an integer, not {type(value).__name__}")
        if not least <= value <= most:
            raise InvalidField(name, f"must be from {least} to {most}")
        return value

    return read


def parse_ref(value: object, name: str) -> Ref:
    """Check a `ref`: a string of at most `MAX_REF_CHARACTERS`, or an integer within 2**53. Raises: InvalidField."""
    if type(value) is int:
        return _any_integer(value, name)  # type: ignore[no-any-return]
    if not isinstance(value, str):
        raise InvalidField(name, f"must be a string or an integer, not {type(value).__name__}")
    return _ref_text(value, name)  # type: ignore[no-any-return]


_any_integer: Final = _between(-MAX_INTEGER, MAX_INTEGER)
_ref_text: Final = _text(MAX_REF_CHARACTERS)


def _flag(value: object, name: str) -> bool:
    if not isinstance(value, bool):
        raise InvalidField(name, f"must be true or false, not {type(value).__name__}")
    return value


def _listed(value: object, name: str, most: int) -> list[Any]:
    if not isinstance(value, list):
        raise InvalidField(name, f"must be a list, not {type(value).__name__}")
    if len(value) > most:
        raise InvalidField(name, f"has {len(value)} items, and {most} are allowed")
    return value


def parse_entry_ids(value: object, name: str) -> tuple[EntryId, ...]:
    """Check a client's list of entry ids, at most `MAX_FRAME_IDS`. Raises: InvalidField, `field` being `ids[3]`."""
    ids = _listed(value, name, MAX_FRAME_IDS)
    for index, item in enumerate(ids):
        if type(item) is not str or not _ENTRY(item):
            parse_entry_id(item, f"{name}[{index}]")
    return tuple(ids)


def _many_entry_ids(value: object, name: str) -> tuple[EntryId, ...]:
    return tuple(parse_entry_id(item, name) for item in _listed(value, name, MAX_INTEGER))


def _send_data(value: object, name: str) -> dict[str, Any]:
    return plain_object(value, name, max_bytes=MAX_EVENT_BYTES)


_FILTER_READERS: Final[Mapping[str, Reader]] = {
    "types": parse_event_type,
    "threads": parse_thread_id,
    "runs": parse_run_id,
}


def _filter(value: object, name: str) -> Filter:
    fields = parse_object(value, name)
    wanted: dict[str, frozenset[str]] = {}
    for key, read in _FILTER_READERS.items():
        if key in fields:
            path = f"{name}.{key}"
            items = _listed(fields[key], path, MAX_FILTER_ITEMS)
            wanted[key] = frozenset(read(item, f"{path}[{index}]") for index, item in enumerate(items))
    return Filter(**wanted)


def _delivered(value: object, name: str) -> tuple[Delivered, ...]:
    result = []
    for index, item in enumerate(_listed(value, name, MAX_INTEGER)):
        path = f"{name}[{index}]"
        fields = parse_object(item, path)
        for part in ("id", "delivery", "event"):
            if part not in fields:
                raise InvalidField(f"{path}.{part}", "is missing")
        try:
            event = event_of_fields(fields["event"])
        except InvalidField as error:
            inside = "" if error.field == "event" else f".{error.field}"
            raise InvalidField(f"{path}.event{inside}", error.problem) from None
        entry = parse_entry_id(fields["id"], f"{path}.id")
        result.append(Delivered(id=entry, delivery=parse_seq(fields["delivery"], f"{path}.delivery"), event=event))
    return tuple(result)


# --- the frames as tables --------------------------------------------------------------------------------------------


def _word_of(kind: type[StrEnum]) -> Reader:
    return lambda value, name: parse_word(kind, value, name)


_string: Final = _text()
_note: Final = _text(MAX_NOTE_CHARACTERS)

_CLIENT: Final[Mapping[type[ClientFrame], Mapping[str, Reader]]] = {
    Hello: {
        "token": _string,
        "session": parse_session_id,
        "start": _word_of(Start),
        "cursor": parse_entry_id,
        "epoch": _text(MAX_REF_CHARACTERS),
        "window": _between(1, MAX_WINDOW),
        "filter": _filter,
    },
    Ack: {"ids": parse_entry_ids, "upto": parse_entry_id, "level": _word_of(Level), "note": _note, "ref": parse_ref},
    Nack: {"id": parse_entry_id, "reason": _note, "delay_ms": _between(0, MAX_DELAY_MS)},
    Refresh: {"token": _string},
    Send: {
        "type": parse_event_type,
        "data": _send_data,
        "ref": parse_ref,
        "run": parse_run_id,
        "thread": parse_thread_id,
    },
    SetFilter: {"filter": _filter, "ref": parse_ref},
    Working: {"ids": parse_entry_ids},
    Ping: {"ref": parse_ref},
}

_SERVER: Final[Mapping[type[ServerFrame], Mapping[str, Reader]]] = {
    Welcome: {
        "protocol": parse_seq,
        "node": _string,
        "connection": _string,
        "session": parse_session_id,
        "resumed": _flag,
        "cursor": parse_entry_id,
        "pending": parse_integer,
        "window": parse_seq,
        "heartbeat_ms": parse_seq,
        "ack_timeout_ms": parse_seq,
        "max_frame_bytes": parse_seq,
        "token_expires_ms": parse_integer,
        "epoch": _string,
    },
    Events: {"events": _delivered},
    CaughtUp: {"cursor": parse_entry_id},
    Gap: {"reason": _word_of(GapReason), "after": parse_entry_id, "before": parse_entry_id, "count": parse_integer},
    Acked: {"ref": parse_ref, "count": parse_integer},
    Sent: {"ref": parse_ref, "id": _string},
    Released: {"ids": _many_entry_ids},
    Filtered: {"ref": parse_ref},
    Dropped: {"ids": _many_entry_ids, "reason": _word_of(DropReason)},
    Text: {"run": parse_run_id, "stream": _string, "offset": parse_integer, "text": _string, "final": _flag},
    Refreshed: {"token_expires_ms": parse_integer},
    Pong: {"ref": parse_ref},
    GoAway: {"reason": _word_of(GoAwayReason), "reconnect_after_ms": parse_integer},
    ErrorFrame: {"code": _string, "message": _string, "ref": parse_ref},
}

FrameT = TypeVar("FrameT", ClientFrame, ServerFrame)
Spec = tuple[type[Any], tuple[tuple[str, Reader, Any], ...]]
REQUIRED: Final = dataclasses.MISSING


def _specs(table: Mapping[type[FrameT], Mapping[str, Reader]]) -> dict[str, Spec]:
    """By op: the record and its fields, each with its reader and what is taken when it is left out."""
    result: dict[str, Spec] = {}
    for record, readers in table.items():
        defaults = {field.name: field.default for field in dataclasses.fields(record)}
        result[record.op] = (record, tuple((name, readers[name], default) for name, default in defaults.items()))
    return result


CLIENT_SPECS: Final = _specs(_CLIENT)
SERVER_SPECS: Final = _specs(_SERVER)
