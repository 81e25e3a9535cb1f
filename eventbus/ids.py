"""Identifiers, each a type of its own, and the checks that keep them apart.

Only a `UserId` routes. A run id or thread id given where a user id belongs is an error at the call, for run ids begin
with `run_`, thread ids may begin with `thread_`, and a user id may begin with neither. Pure: time and random bytes are
arguments.
"""

from __future__ import annotations

import re
from typing import Final, NewType

from eventbus.errors import InvalidField

__all__ = [
    "ENTRY_ZERO",
    "ConnectionId",
    "EntryId",
    "Epoch",
    "EventId",
    "NodeName",
    "RunId",
    "SessionId",
    "ThreadId",
    "UserId",
    "connection_id_from",
    "entry_order",
    "event_id_from",
    "event_id_time_ms",
    "parse_entry_id",
    "parse_event_id",
    "parse_node_name",
    "parse_run_id",
    "parse_session_id",
    "parse_thread_id",
    "parse_user_id",
    "run_id_from",
    "session_id_from",
]

UserId = NewType("UserId", str)
SessionId = NewType("SessionId", str)
ThreadId = NewType("ThreadId", str)
RunId = NewType("RunId", str)
ConnectionId = NewType("ConnectionId", str)
EventId = NewType("EventId", str)
EntryId = NewType("EntryId", str)
Epoch = NewType("Epoch", str)
NodeName = NewType("NodeName", str)

ENTRY_ZERO: Final = EntryId("0-0")

_USER = re.compile(r"[A-Za-z0-9_.@:|+-]{1,128}")
_SESSION = re.compile(r"[A-Za-z0-9_-]{1,64}")
_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
_EVENT = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
_NODE = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_ENTRY = re.compile(r"(0|[1-9][0-9]{0,19})-(0|[1-9][0-9]{0,19})")
_UUID7 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
_ENTRY_PART_MAX: Final = 2**64 - 1


def _matched(pattern: re.Pattern[str], value: object, field: str, form: str) -> str:
    if not isinstance(value, str):
        raise InvalidField(field, f"must be a string, not {type(value).__name__}")
    if not pattern.fullmatch(value):
        shown = value if len(value) <= 40 else value[:40] + "..."
        raise InvalidField(field, f"{shown!r} does not match {form}")
    return value


def parse_user_id(value: object, field: str = "user") -> UserId:
    """Check a user id, the only thing that routes an event.

    Raises:
        InvalidField: not of the form, or a run's or thread's id.
    Source: docs/protocol.md, section 3.
    """
    text = _matched(_USER, value, field, "[A-Za-z0-9_.@:|+-]{1,128}")
    if text.startswith(("run_", "thread_")):
        kind = "run" if text.startswith("run_") else "thread"
        raise InvalidField(
            field, f"{text[:40]!r} looks like a {kind} id; give the user's id here and the {kind} as `{kind}`"
        )
    return UserId(text)


def parse_session_id(value: object, field: str = "session") -> SessionId:
    """Check a session id. Raises: InvalidField. Source: docs/protocol.md, section 2."""
    return SessionId(_matched(_SESSION, value, field, "[A-Za-z0-9_-]{1,64}"))


def parse_thread_id(value: object, field: str = "thread") -> ThreadId:
    """Check a thread id; a run's id is refused. Raises: InvalidField. Source: docs/protocol.md, section 3."""
    text = _matched(_NAME, value, field, "[A-Za-z0-9_.:-]{1,128}")
    if text.startswith("run_"):
        raise InvalidField(field, f"{text[:40]!r} looks like a run id; give it as `run`")
    return ThreadId(text)


def parse_run_id(value: object, field: str = "run") -> RunId:
    """Check a run id; a thread's id is refused. Raises: InvalidField. Source: docs/protocol.md, section 3."""
    text = _matched(_NAME, value, field, "[A-Za-z0-9_.:-]{1,128}")
    if text.startswith("thread_"):
        raise InvalidField(field, f"{text[:40]!r} looks like a thread id; give it as `thread`")
    return RunId(text)


def parse_event_id(value: object, field: str = "id") -> EventId:
    """Check an event id, the publisher's idempotency key. Raises: InvalidField. Source: docs/protocol.md, section 3."""
    return EventId(_matched(_EVENT, value, field, "[A-Za-z0-9_.:-]{1,64}"))


def parse_node_name(value: object, field: str = "node") -> NodeName:
    """Check a node's name. Raises: InvalidField."""
    return NodeName(_matched(_NODE, value, field, "[A-Za-z0-9_.-]{1,64}"))


def parse_entry_id(value: object, field: str = "id") -> EntryId:
    """Check an entry id `<ms>-<n>`, both parts below 2**64 and without leading zeros. Raises: InvalidField. Redis:
    stream ids.
    """
    text = _matched(_ENTRY, value, field, "an entry id like 1732190000000-0")
    if max(entry_order(EntryId(text))) > _ENTRY_PART_MAX:
        raise InvalidField(field, f"{text!r} is beyond the largest entry id")
    return EntryId(text)


def entry_order(entry: EntryId) -> tuple[int, int]:
    """The sort key of an entry id: (milliseconds, sequence). As strings, entry ids do not sort."""
    ms, _, seq = entry.partition("-")
    return int(ms), int(seq)


def event_id_from(now_ms: int, random: bytes) -> EventId:
    """Make a UUIDv7: 48 bits of Unix milliseconds, then 74 random bits.

    Args:
        now_ms: Unix milliseconds.
        random: at least 10 bytes.
    Source: RFC 9562, section 5.7.
    """
    time, rest = f"{now_ms & 0xFFFF_FFFF_FFFF:012x}", random[:10].hex()
    variant = "89ab"[random[2] >> 4 & 0x3]
    return EventId(f"{time[:8]}-{time[8:]}-7{rest[1:4]}-{variant}{rest[5:8]}-{rest[8:]}")


def event_id_time_ms(event: EventId) -> int | None:
    """The Unix milliseconds inside a UUIDv7 event id; None for an id of another form."""
    if not _UUID7.fullmatch(event):
        return None
    return int(event[:8] + event[9:13], 16)


def run_id_from(now_ms: int, random: bytes) -> RunId:
    """Make a run id: `run_` and a UUIDv7 without dashes."""
    return RunId("run_" + event_id_from(now_ms, random).replace("-", ""))


def connection_id_from(random: bytes) -> ConnectionId:
    """Make a connection id, the fencing token of a session: 128 random bits as 32 hex digits."""
    return ConnectionId(random[:16].hex())


def session_id_from(random: bytes) -> SessionId:
    """Make a session id for a client that brought none: 128 random bits as 32 hex digits."""
    return SessionId(random[:16].hex())
