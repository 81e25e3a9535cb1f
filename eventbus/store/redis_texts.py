"""Token streams on Redis."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from eventbus.config import StoreSettings
from eventbus.errors import StoreError
from eventbus.ids import EntryId, RunId, ThreadId, UserId
from eventbus.store.command import Argument, Command
from eventbus.store.keys import Keys
from eventbus.store.linked import Linked
from eventbus.store.scripts import script
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

__all__ = ["RedisTexts", "text_append", "text_close"]

T = TypeVar("T")


class RedisTexts(Linked):
    """The part of a `RedisStore` for `eventbus.store.texts`."""

    async def append_text(self, piece: TextPiece) -> TextAnswer:
        return await self._call(text_append(self.keys, self.settings, piece))

    async def close_texts(self, user: UserId, run: RunId, streams: Sequence[str] | None = None) -> int:
        return await self._call(text_close(self.keys, self.settings, user, run, streams))

    async def read_texts(self, reads: Sequence[TextRead]) -> Sequence[TextPage | StoreError]:
        futures = [self.link.execute(self._text_range(read)) for read in reads]
        return [await future for future in futures]

    async def open_texts(self, users: Sequence[UserId]) -> Sequence[Sequence[OpenText] | StoreError]:
        futures = [self.link.execute(Command(("HGETALL", self.keys.user(user).texts), _open_texts)) for user in users]
        return [await future for future in futures]

    def _text_range(self, read: TextRead) -> Command[TextPage]:
        def parse(reply: Any, _primary: str) -> TextPage:
            return TextPage(deltas=tuple(_delta(raw) for raw in reply), more=len(reply) >= read.count)

        key = self.keys.text(read.user, read.run)
        return Command(("XRANGE", key, f"({read.after}", "+", "COUNT", read.count), parse)


def text_append(keys: Keys, settings: StoreSettings, piece: TextPiece) -> Command[TextAnswer]:
    """The call of text_append.lua."""
    used = keys.user(piece.user)
    return _scripted(
        "text_append",
        (keys.text(piece.user, piece.run), used.texts, used.live, keys.run(piece.user, piece.run)),
        (
            piece.user,
            piece.run,
            piece.stream,
            piece.thread or "",
            used.partition.channel,
            settings.retention_ms,
            TEXT_LIFE_MS,
            settings.live_ttl_ms,
            piece.offset,
            len(piece.text),
            piece.text,
            "last" if piece.last else "more",
        ),
        lambda reply, _primary: TextAnswer(TextOutcome(reply[0].decode()), int(reply[1])),
    )


def text_close(
    keys: Keys, settings: StoreSettings, user: UserId, run: RunId, streams: Sequence[str] | None
) -> Command[int]:
    """The call of text_close.lua."""
    used = keys.user(user)
    arguments: list[Argument] = [user, run, used.partition.channel, TEXT_LIFE_MS, settings.live_ttl_ms]
    arguments += ("all",) if streams is None else ("named", *streams)
    return _scripted(
        "text_close",
        (keys.text(user, run), used.texts, used.live),
        arguments,
        lambda reply, _primary: int(reply),
    )


def _scripted(
    name: str, keys: Sequence[str], arguments: Sequence[Argument], parse: Callable[[Any, str], T]
) -> Command[T]:
    return Command(("EVALSHA", script(name).sha, len(keys), *keys, *arguments), parse, scripted=True)


def _delta(raw: Any) -> TextDelta:
    entry, words = raw
    named = dict(zip(words[::2], words[1::2], strict=True))
    thread = named.get(b"h")
    return TextDelta(
        id=EntryId(entry.decode()),
        stream=named[b"s"].decode(),
        offset=int(named[b"o"]),
        text=named[b"d"].decode(),
        last=b"f" in named,
        thread=ThreadId(thread.decode()) if thread else None,
    )


def _open_texts(reply: Any, _primary: str) -> list[OpenText]:
    found = []
    for field, value in zip(reply[::2], reply[1::2], strict=True):
        run, stream = field.decode().split(" ")
        length, entry, state = value.decode().split(" ")
        found.append(
            OpenText(run=RunId(run), stream=stream, length=int(length), entry=EntryId(entry), ended=state == "ended")
        )
    return found
