"""Token streams in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from eventbus.clock import Clock
from eventbus.config import StoreSettings
from eventbus.errors import StoreError
from eventbus.ids import RunId, UserId, entry_order
from eventbus.store import Listener
from eventbus.store.texts import (
    TEXT_LIFE_MS,
    OpenText,
    TextAnswer,
    TextDelta,
    TextOutcome,
    TextPage,
    TextPiece,
    TextRead,
)
from eventbus.testing.memory_base import MemoryBase
from eventbus.testing.memory_stream import Order, entry_id

__all__ = ["MemoryTexts"]


@dataclass(slots=True)
class _Log:
    """The pieces of a run."""

    deltas: list[TextDelta] = field(default_factory=list)
    last: Order = (0, 0)
    until_ms: int = 0

    def add(self, piece: TextPiece, now_ms: int) -> TextDelta:
        self.last = (now_ms, 0) if now_ms > self.last[0] else (self.last[0], self.last[1] + 1)
        delta = TextDelta(
            id=entry_id(self.last),
            stream=piece.stream,
            offset=piece.offset,
            text=piece.text,
            last=piece.last,
            thread=piece.thread if piece.offset == 0 else None,
        )
        self.deltas.append(delta)
        return delta


class MemoryTexts(MemoryBase):
    """The part of a `MemoryStore` for `eventbus.store.texts`."""

    def __init__(self, settings: StoreSettings | None = None, clock: Clock | None = None) -> None:
        super().__init__(settings, clock)
        self._logs: dict[tuple[UserId, RunId], _Log] = {}
        self._streaming: dict[UserId, dict[tuple[RunId, str], OpenText]] = {}
        self._streaming_until: dict[UserId, int] = {}

    def flush(self) -> None:
        super().flush()
        self._logs.clear()
        self._streaming.clear()

    async def append_text(self, piece: TextPiece) -> TextAnswer:
        async with self._call():
            return self._append_text(piece)

    def _append_text(self, piece: TextPiece) -> TextAnswer:
        now_ms = self.clock.now_ms()
        streams = self._streams(piece.user, now_ms)
        known = streams.get((piece.run, piece.stream))
        length = known.length if known is not None else 0
        end = piece.offset + len(piece.text)
        if known is not None and known.ended:
            return TextAnswer(TextOutcome.DUPLICATE if end <= length else TextOutcome.ENDED, length)
        if known is not None and end <= length and not piece.last:
            return TextAnswer(TextOutcome.DUPLICATE, length)
        if piece.offset != length:
            return TextAnswer(TextOutcome.ELSEWHERE, length)
        if self._is_completed(piece.user, piece.run):
            return TextAnswer(TextOutcome.RUN_CLOSED, length)
        if not piece.text and not piece.last:
            return TextAnswer(TextOutcome.DUPLICATE, length)
        log = self._log(piece.user, piece.run, now_ms)
        if known is None and not any(run == piece.run for run, _ in streams):
            log.deltas = [delta for delta in log.deltas if entry_order(delta.id)[0] >= now_ms - TEXT_LIFE_MS]
        delta = log.add(piece, now_ms)
        streams[piece.run, piece.stream] = OpenText(
            run=piece.run, stream=piece.stream, length=end, entry=delta.id, ended=piece.last
        )
        self._logs[piece.user, piece.run] = log
        self._streaming[piece.user] = streams
        log.until_ms = self._streaming_until[piece.user] = now_ms + self.settings.retention_ms
        self._tell_of_text(piece.user, piece.run)
        return TextAnswer(TextOutcome.STORED, end)

    async def close_texts(self, user: UserId, run: RunId, streams: Sequence[str] | None = None) -> int:
        async with self._call():
            now_ms = self.clock.now_ms()
            known = self._streams(user, now_ms)
            names = [name for of, name in known if of == run] if streams is None else streams
            closed = ended = 0
            log = self._log(user, run, now_ms)
            for name in names:
                found = known.pop((run, name), None)
                if found is None:
                    continue
                closed += 1
                if not found.ended:
                    ended += 1
                    piece = TextPiece(
                        user=user, run=run, stream=name, thread=None, offset=found.length, text="", last=True
                    )
                    log.add(piece, now_ms)
            if closed and not any(of == run for of, _ in known):
                log.until_ms = now_ms + TEXT_LIFE_MS
            if ended:
                self._tell_of_text(user, run)
            return closed

    async def read_texts(self, reads: Sequence[TextRead]) -> Sequence[TextPage | StoreError]:
        try:
            async with self._call():
                return [self._page(read) for read in reads]
        except StoreError as error:
            return [error] * len(reads)

    def _page(self, read: TextRead) -> TextPage:
        log = self._log(read.user, read.run, self.clock.now_ms())
        after = entry_order(read.after)
        found = [delta for delta in log.deltas if entry_order(delta.id) > after][: read.count]
        return TextPage(deltas=tuple(replace(delta) for delta in found), more=len(found) >= read.count)

    async def open_texts(self, users: Sequence[UserId]) -> Sequence[Sequence[OpenText] | StoreError]:
        try:
            async with self._call():
                now_ms = self.clock.now_ms()
                return [list(self._streams(user, now_ms).values()) for user in users]
        except StoreError as error:
            return [error] * len(users)

    # --- within -----------------------------------------------------------------------------------------------------

    def _log(self, user: UserId, run: RunId, now_ms: int) -> _Log:
        log = self._logs.get((user, run))
        if log is not None and now_ms < log.until_ms:
            return log
        self._logs.pop((user, run), None)
        return _Log()

    def _streams(self, user: UserId, now_ms: int) -> dict[tuple[RunId, str], OpenText]:
        if user in self._streaming and now_ms >= self._streaming_until[user]:
            del self._streaming[user]
        return self._streaming.get(user, {})

    def _tell_of_text(self, user: UserId, run: RunId) -> None:
        def tell(listener: Listener) -> None:
            listener.text_came(user, run)

        for node in dict.fromkeys(live.node for live in self._user(user).live.values()):
            self._tell(node, tell)

    def _is_completed(self, user: UserId, run: RunId) -> bool:
        """Whether the run's state says that it is over."""
        known = self._user(user).runs.get(run)
        return known is not None and known.fields.get("state") == "completed"
