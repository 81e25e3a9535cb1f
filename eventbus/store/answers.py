"""What the answers of Redis mean: one function for each form. Each takes the answer and who gave it."""

from __future__ import annotations

from typing import Any, Final

from eventbus.errors import StoreError, StoreMisconfigured
from eventbus.ids import ConnectionId, EntryId, Epoch, EventId, NodeName, SessionId, UserId
from eventbus.store import (
    LOST,
    Attached,
    AttachRefused,
    Beat,
    BeatState,
    ConfirmationRecord,
    DeadLetterRecord,
    GapReason,
    HistoryPage,
    LiveRecord,
    Lost,
    NewRead,
    PendingEntry,
    PendingPage,
    ReadState,
    RedeliveryOutcome,
    SessionRecord,
    StoredEntry,
    StoreGap,
)
from eventbus.store.translate import translate

__all__ = [
    "attach_answer",
    "beats",
    "confirmation",
    "dead_letter",
    "entry_of",
    "facts_of",
    "history_page",
    "new_reads",
    "nothing",
    "whole",
    "whole_numbers",
    "outcomes",
    "pending_page",
    "primary_named",
    "read_entries",
    "scan_page",
    "server_of",
    "session_record",
    "settings_of",
    "text_or_none",
    "time_ms_of",
]


def entry_of(raw: Any) -> StoredEntry:
    """An entry as XRANGE and XREADGROUP answer it."""
    return StoredEntry(EntryId(raw[0].decode()), raw[1][1])


def read_entries(reply: Any, _primary: str = "") -> list[StoredEntry]:
    """The entries of an XRANGE."""
    return [entry_of(raw) for raw in reply]


def whole(reply: Any, _primary: str) -> int:
    """A whole number."""
    return int(reply)


def whole_numbers(reply: Any, _primary: str) -> list[int | StoreError]:
    """Whole numbers, with errors in the places of those that failed."""
    return [translate(raw) if isinstance(raw, Exception) else int(raw) for raw in reply]


def entry_or_none(raw: bytes) -> EntryId | None:
    """An entry id, None for an empty word."""
    return EntryId(raw.decode()) if raw else None


def read_gap(reason: bytes, after: bytes, before: bytes, count: int) -> StoreGap | None:
    """What is lost, None when nothing is."""
    if not reason:
        return None
    return StoreGap(
        reason=GapReason(reason.decode()),
        after=entry_or_none(after),
        before=entry_or_none(before),
        count=count if count >= 0 else None,
    )


def attach_answer(reply: Any, primary: str) -> Attached | AttachRefused:
    """The answer of attach.lua."""
    if reply[0] != b"attached":
        return AttachRefused(reply[0].decode())
    _, resumed, epoch, position, tail, pending, first_pending, displaced, *gap = reply
    return Attached(
        resumed=resumed == b"resumed",
        epoch=Epoch(epoch.decode()),
        position=EntryId(position.decode()),
        tail=EntryId(tail.decode()),
        pending=pending,
        gap=read_gap(*gap),
        displaced=ConnectionId(displaced.decode()) if displaced else None,
        first_pending=entry_or_none(first_pending),
        primary=primary,
    )


def pending_page(reply: Any, primary: str) -> PendingPage | Lost:
    """The answer of pending.lua."""
    state, *entries = reply
    if state == b"lost":
        return LOST
    return PendingPage(
        entries=tuple(PendingEntry(EntryId(raw[0].decode()), raw[2], raw[1], len(raw) > 3) for raw in entries),
        last=state == b"last",
        primary=primary,
    )


_READ_LOST: Final = NewRead(state=ReadState.LOST)
_READ_NO_GROUP: Final = NewRead(state=ReadState.NO_GROUP)


def new_reads(reply: Any, primary: str) -> list[NewRead | StoreError]:
    """The answer of read.lua."""
    found: list[NewRead | StoreError] = []
    words = iter(reply)
    for word in words:
        if word.__class__ is int:  # nearly always: how many entries, and then their ids and bodies
            entries = tuple([StoredEntry(EntryId(next(words).decode()), next(words)) for _ in range(word)])
            found.append(NewRead(state=ReadState.OK, entries=entries, primary=primary))
        else:
            found.append(_uncommon_read(word, primary))
    return found


def _uncommon_read(raw: Any, primary: str) -> NewRead | StoreError:
    if isinstance(raw, Exception):
        return translate(raw)
    state = raw[0]
    if state == b"ok":
        entries = tuple([entry_of(entry) for entry in raw[1]])
        released = tuple(EntryId(entry.decode()) for entry in raw[6:])
        gap = read_gap(*raw[2:6])
        return NewRead(state=ReadState.OK, entries=entries, gap=gap, released=released, primary=primary)
    if state == b"lost":
        return _READ_LOST
    if state == b"no_group":
        return _READ_NO_GROUP
    raise StoreMisconfigured(f"read.lua answered {state!r}")


def outcomes(reply: Any, _primary: str) -> list[RedeliveryOutcome] | Lost:
    """The answer of redeliver.lua."""
    state, *outcomes = reply
    return LOST if state == b"lost" else [RedeliveryOutcome(raw.decode()) for raw in outcomes]


def beats(reply: Any, _primary: str) -> list[Beat]:
    """The answer of heartbeat.lua."""
    return [
        Beat(state=BeatState(raw[0].decode()))
        if len(raw) == 1
        else Beat(state=BeatState.HELD, pending=raw[1], unread=raw[2] == b"unread")
        for raw in reply
    ]


def history_page(reply: Any, _primary: str) -> HistoryPage:
    """The answer of history.lua."""
    epoch, tail, more, *entries = reply
    return HistoryPage(
        entries=tuple(map(entry_of, entries)),
        tail=EntryId(tail.decode()),
        epoch=Epoch(epoch.decode()),
        more=more == b"more",
    )


def session_record(user: UserId, raw: Any) -> SessionRecord:
    """One session in the answer of sessions.lua."""
    session, created, seen, cursor, position, pending, unread, oldest, attempts, node, connection, stamp = raw
    live = None
    if node:
        live = LiveRecord(
            node=NodeName(node.decode()), connection=ConnectionId(connection.decode()), last_seen_ms=stamp
        )
    return SessionRecord(
        user=user,
        session=SessionId(session.decode()),
        created_ms=created,
        last_seen_ms=seen,
        cursor=EntryId(cursor.decode()),
        position=EntryId(position.decode()),
        pending=pending,
        unread=unread == b"unread",
        live=live,
        oldest_pending=entry_or_none(oldest),
        max_attempts=attempts,
    )


def nothing(_reply: Any, _primary: str) -> None:
    """An answer that says nothing."""
    return None


def text_or_none(reply: Any, _primary: str) -> str | None:
    """A text, None when there is none."""
    return None if reply is None else str(reply.decode())


def time_ms_of(reply: Any, _primary: str) -> int:
    """The answer of TIME, in Unix milliseconds."""
    return int(reply[0]) * 1000 + int(reply[1]) // 1000


def settings_of(reply: Any, _primary: str) -> dict[str, str]:
    """The answer of CONFIG GET."""
    texts = [raw.decode() for raw in reply]
    return dict(zip(texts[::2], texts[1::2], strict=True))


def facts_of(reply: Any, _primary: str) -> dict[str, str]:
    """The answer of INFO."""
    lines = reply.decode().splitlines()
    return {name: value for name, colon, value in (line.partition(":") for line in lines) if colon}


def primary_named(facts: dict[str, str]) -> str:
    """What a primary is called, by its INFO: the `run_id` of the server, and its replication id.

    The latter is another after each promotion: a server that was demoted and is a primary again has lost what it had
    not shared, and is another primary. Redis: INFO, `master_replid`.
    """
    return ":".join(filter(None, map(facts.get, ("run_id", "master_replid"))))


def server_of(primary: str) -> str:
    """The `run_id` of what `primary_named` calls a primary: its replication id may change while it is one."""
    return primary.partition(":")[0]


def scan_page(reply: Any, _primary: str) -> tuple[str, list[str]]:
    """The answer of SCAN: the next cursor, and keys."""
    return reply[0].decode(), [raw.decode() for raw in reply[1]]


def _fields(raw: Any) -> dict[str, bytes]:
    return {name.decode(): value for name, value in zip(raw[::2], raw[1::2], strict=True)}


def confirmation(raw: Any) -> tuple[EntryId, ConfirmationRecord]:
    """A record of what a session did with entries, and its own entry id."""
    entry, fields = EntryId(raw[0].decode()), _fields(raw[1])
    note = fields.get("note")
    return entry, ConfirmationRecord(
        session=SessionId(fields["session"].decode()),
        level=fields["level"].decode(),
        time_ms=int(entry.partition("-")[0]),
        entries=tuple(EntryId(part) for part in fields["ids"].decode().split(",")),
        note=None if note is None else note.decode(),
    )


def dead_letter(partition: int, raw: Any) -> DeadLetterRecord:
    """A dead letter."""
    entry, fields = EntryId(raw[0].decode()), _fields(raw[1])
    text = {name: value.decode() for name, value in fields.items() if name != "body"}
    return DeadLetterRecord(
        id=entry,
        partition=partition,
        user=UserId(text["user"]),
        session=SessionId(text["session"]),
        entry=EntryId(text["entry"]),
        event=EventId(text["event"]),
        type=text["type"],
        reason=text["reason"],
        attempts=int(text["attempts"]),
        node=NodeName(text["node"]),
        time_ms=int(entry.partition("-")[0]),
        body=fields["body"],
    )
