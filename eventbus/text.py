"""Token streams: their names, the text on its way to the store, and what a follower makes of what comes. Pure.

Lengths and offsets count Unicode code points, which is what `len` of a string is. Source: docs/texts.md.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final

from eventbus.errors import InvalidEvent
from eventbus.ids import RunId

__all__ = [
    "DEFAULT_STREAM",
    "TEXT_EVENT",
    "Chunk",
    "Outgoing",
    "Piece",
    "Texts",
    "free_name",
    "parse_stream",
    "text_data",
]

DEFAULT_STREAM: Final = "text"
TEXT_EVENT: Final = "agent_text"
"""The type of the durable event that carries the whole text of a stream."""

AROUND_BYTES: Final = 160
"""What stands around the text in the data of its event: keys, the name, headers."""
KNOWN_STREAMS: Final = 4_096
"""Most streams of which a follower knows how much it has; the longest untouched is forgotten first."""
PENDING_CODE_POINTS: Final = 8 * 1024 * 1024
"""Most text that waits for an application that is slower than what comes."""

_STREAM: Final = re.compile(r"[A-Za-z0-9_.:-]{1,64}").fullmatch


def parse_stream(value: object) -> str:
    """Check the name of a token stream. Raises: InvalidEvent."""
    if not isinstance(value, str) or not _STREAM(value):
        raise InvalidEvent("stream", f"must match [A-Za-z0-9_.:-]{{1,64}}, not {str(value)[:80]!r}")
    return value


def free_name(wanted: str, taken: Collection[str]) -> str:
    """The name, with a number behind it where the run has such a stream already: `text`, `text_2`, `text_3`."""
    number, name = 1, wanted
    while name in taken:
        number += 1
        end = f"_{number}"
        name = wanted[: 64 - len(end)] + end
    return name


def text_data(stream: str, text: str, *, partial: bool) -> dict[str, Any]:
    """The data of the event with the whole text; `partial` where the agent ended before its time."""
    data: dict[str, Any] = {"stream": stream, "text": text}
    if partial:
        data["partial"] = True
    return data


# --- the publisher's side ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Piece:
    """What is to be stored next: `text` from `offset` on; nothing follows the `last`."""

    offset: int
    text: str
    last: bool


class Outgoing:
    """The text of one stream on its way to the store. All of it is kept: the store may ask for any of it again.

    Args:
        stream: its name.
        flush_ms: so long the first character of a piece waits for more.
        flush_bytes: a piece of so many bytes waits for nothing.
        max_bytes: most that the whole text may have in UTF-8.

    Attributes:
        stored: up to where the store has it, in code points.
    """

    __slots__ = (
        "_bytes",
        "_closed",
        "_done",
        "_first_ms",
        "_flush_bytes",
        "_flush_ms",
        "_length",
        "_max_bytes",
        "_parts",
        "_unsent_bytes",
        "stored",
        "stream",
    )

    def __init__(self, stream: str, *, flush_ms: int, flush_bytes: int, max_bytes: int) -> None:
        self.stream = stream
        self.stored = 0
        self._flush_ms = flush_ms
        self._flush_bytes = flush_bytes
        self._max_bytes = max_bytes
        self._parts: list[str] = []
        self._length = 0
        self._bytes = 0
        self._unsent_bytes = 0
        self._first_ms: int | None = None
        self._closed = False
        self._done = False

    def __len__(self) -> int:
        return self._length

    def __repr__(self) -> str:
        state = "done" if self._done else "closed" if self._closed else "open"
        return f"<Outgoing {self.stream!r} {state} stored={self.stored} of {self._length}>"

    @property
    def text(self) -> str:
        """All of it."""
        if len(self._parts) > 1:
            self._parts = ["".join(self._parts)]
        return self._parts[0] if self._parts else ""

    @property
    def is_full(self) -> bool:
        """Whether a whole piece waits."""
        return self._unsent_bytes >= self._flush_bytes

    @property
    def is_done(self) -> bool:
        """Whether the store has everything, the end too. A stream in which nothing was written has nothing to store."""
        return self._done or (self._closed and self._length == 0)

    def write(self, text: str, now_ms: int) -> None:
        """Take text, all or nothing.

        Args:
            text: any, but no half of a surrogate pair.
            now_ms: monotonic.

        Raises:
            InvalidEvent: it is no text, or the whole would not fit into the stream's event.
        """
        unchecked: object = text
        if not isinstance(unchecked, str):
            raise InvalidEvent("text", f"must be a string, not {type(unchecked).__name__}")
        if not text:
            return
        try:
            size = len(text) if text.isascii() else len(text.encode())
        except UnicodeEncodeError as error:
            raise InvalidEvent("text", f"has half of a surrogate pair at {error.start}, which is no text") from None
        if self._bytes + size > self._max_bytes:
            raise InvalidEvent(
                "text",
                f"the stream {self.stream!r} has {self._bytes} bytes, {size} more are above the {self._max_bytes} that"
                " its event may carry: leave it, and go on in another stream",
            )
        self._parts.append(text)
        self._length += len(text)
        self._bytes += size
        self._unsent_bytes += size
        if self._first_ms is None:
            self._first_ms = now_ms

    def close(self) -> None:
        """Nothing more is written."""
        self._closed = True

    def due_ms(self, now_ms: int) -> int | None:
        """In how many milliseconds the next piece is due, None when there is none."""
        if self.is_done:
            return None
        if self._closed or self.is_full:
            return 0
        if self.stored >= self._length:
            return None
        if self._first_ms is None:
            return 0  # the store wants it again
        return max(0, self._first_ms + self._flush_ms - now_ms)

    def take(self) -> Piece:
        """What is to be stored now: all that the store has not."""
        self._first_ms = None
        self._unsent_bytes = 0
        return Piece(self.stored, self.text[self.stored :], self._closed)

    def has_stored(self, piece: Piece, length: int) -> None:
        """The store has the piece, and is so long now."""
        self.stored = min(length, self._length)
        self._done = piece.last and self.stored == self._length

    def wanted_from(self, length: int) -> None:
        """The store has only so much (it lost its end, say), or more than was known here."""
        self.stored = min(length, self._length)


# --- the follower's side ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Text of a token stream, as an application gets it: chunks of a stream, put together, are its whole text.

    Attributes:
        run: the run that streams.
        stream: the name of the stream.
        offset: where `text` begins, in code points: at the end of the chunk before.
        text: it may be empty in the last chunk.
        final: nothing of the stream follows.
    """

    run: RunId
    stream: str
    offset: int
    text: str
    final: bool = False


class Texts:
    """What a follower has of each stream, and the chunks that its application has not taken yet.

    Frames may repeat, overlap, leave something out, and come from one node after another; the event with the whole text
    settles everything. What is handed out never overlaps and has no hole.
    """

    __slots__ = ("_known", "_pending", "_pending_points")

    def __init__(self) -> None:
        # How much of each, -1 when it has ended; the longest untouched first.
        self._known: dict[tuple[RunId, str], int] = {}
        self._pending: dict[tuple[RunId, str], Chunk] = {}
        self._pending_points = 0

    def __bool__(self) -> bool:
        return bool(self._pending)

    def came(self, run: RunId, stream: str, offset: int, text: str, *, final: bool) -> bool:
        """Take a frame. Returns False for one that leaves a hole behind what is known: it is not taken."""
        key = run, stream
        length = self._known.pop(key, 0)
        if length < 0 or offset > length:
            self._known[key] = length
            return length < 0
        end = offset + len(text)
        if end > length or final:
            self._hand_out(Chunk(run=run, stream=stream, offset=length, text=text[length - offset :], final=final))
        self._known[key] = -1 if final else max(length, end)
        if len(self._known) > KNOWN_STREAMS:
            self._forget()
        return True

    def completed(self, run: RunId, data: Any) -> bool:
        """The event with the whole text came: what was missing is handed out. Returns False where it is none."""
        stream, text = data.get("stream"), data.get("text")
        if not isinstance(stream, str) or not isinstance(text, str):
            return False
        return self.came(run, stream, 0, text, final=True)

    def take(self) -> Chunk | None:
        """The next chunk for the application, with all that has come of its stream; None when there is none."""
        for key in self._pending:
            chunk = self._pending.pop(key)
            self._pending_points -= len(chunk.text)
            return chunk
        return None

    def overflowing(self) -> Chunk | None:
        """Where too much waits for the application: text that is let go. Its event may still bring it."""
        if self._pending_points <= PENDING_CODE_POINTS:
            return None
        chunk = self.take()
        if chunk is not None:
            self._known[chunk.run, chunk.stream] = -1 if chunk.final else chunk.offset
        return chunk

    def _hand_out(self, chunk: Chunk) -> None:
        key = chunk.run, chunk.stream
        before = self._pending.get(key)
        self._pending_points += len(chunk.text)
        if before is not None:
            chunk = Chunk(
                run=chunk.run,
                stream=chunk.stream,
                offset=before.offset,
                text=before.text + chunk.text,
                final=chunk.final,
            )
        self._pending[key] = chunk

    def _forget(self) -> None:
        for key in self._known:
            if key not in self._pending:
                del self._known[key]
                return
