"""What the bus and the nodes ask of the store for token streams: records and a Protocol.

A token stream is text that a run gives piece by piece. Its pieces (deltas) stand in a log of the run, in order and
without a hole; an index of the user says which streams are open. Lengths and offsets count Unicode code points.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol

from eventbus.errors import StoreError
from eventbus.ids import EntryId, RunId, ThreadId, UserId

__all__ = [
    "TEXT_LIFE_MS",
    "OpenText",
    "TextAnswer",
    "TextDelta",
    "TextOutcome",
    "TextPage",
    "TextPiece",
    "TextRead",
    "TextStore",
]

TEXT_LIFE_MS: Final = 600_000
"""So long the pieces of a run are kept after its last open stream was closed: who follows it reads to the end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextPiece:
    """The next piece of a token stream.

    Attributes:
        thread: the run's, which sessions may filter by.
        offset: where it begins, in code points.
        text: it may be empty when it is the last.
        last: nothing follows; the stream stays open until `close_texts`, for its event is not stored yet.
    """

    user: UserId
    run: RunId
    stream: str
    thread: ThreadId | None
    offset: int
    text: str
    last: bool = False


class TextOutcome(StrEnum):
    """What became of a piece."""

    STORED = "stored"
    DUPLICATE = "duplicate"
    """It was stored before."""
    ELSEWHERE = "elsewhere"
    """It does not begin where the stream ends: the text from there on is wanted."""
    ENDED = "ended"
    """The stream has had its last piece."""
    RUN_CLOSED = "run_closed"
    """The run is completed: nothing of it follows any more."""


@dataclass(frozen=True, slots=True)
class TextAnswer:
    """The answer to a piece; `length` is that of the stream now, in code points."""

    outcome: TextOutcome
    length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TextRead:
    """Read what a run has streamed after an entry of its log; `0-0` is the beginning."""

    user: UserId
    run: RunId
    after: EntryId
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TextDelta:
    """A piece as it is stored. `thread` is told with the piece at offset 0."""

    id: EntryId
    stream: str
    offset: int
    text: str
    last: bool
    thread: ThreadId | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TextPage:
    """Pieces of a run in order; `more` when others may follow at once."""

    deltas: Sequence[TextDelta]
    more: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenText:
    """A token stream that is open.

    Attributes:
        length: in code points.
        entry: of its newest piece.
        ended: it has had its last piece, and the event with the whole text is not known to be stored.
    """

    run: RunId
    stream: str
    length: int
    entry: EntryId
    ended: bool


class TextStore(Protocol):
    """Token deltas of runs."""

    async def append_text(self, piece: TextPiece) -> TextAnswer:
        """Stores a piece, in order and once: it may be repeated. Tells the nodes with live sessions of the user.

        Raises:
            StoreError: as every call; of `StoreUnavailable` the outcome is unknown.
        Redis: EVALSHA text_append.lua.
        """

    async def close_texts(self, user: UserId, run: RunId, streams: Sequence[str] | None = None) -> int:
        """Takes streams of a run off the index, all that are open when none is named; those that had no last piece get
        one. Returns how many were open. Redis: EVALSHA text_close.lua.
        """

    async def read_texts(self, reads: Sequence[TextRead]) -> Sequence[TextPage | StoreError]:
        """Pieces of several runs in one write; one result for each read, in order. Redis: XRANGE."""

    async def open_texts(self, users: Sequence[UserId]) -> Sequence[Sequence[OpenText] | StoreError]:
        """The open streams of several users in one write; one result for each user, in order. Redis: HGETALL."""
