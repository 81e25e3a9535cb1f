"""What a node holds of token streams, and what it owes to each follower. Pure.

A run is read once, however many sessions follow it. A follower is nothing but how much it was sent of each stream, so
one who comes late, lags or changes its filter is owed the text from there on, in one part. Text that is held no longer
is read again for whoever lags behind it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from eventbus.ids import ENTRY_ZERO, EntryId, RunId, ThreadId, UserId, entry_order
from eventbus.store.texts import OpenText, TextDelta

__all__ = ["Part", "RunTexts", "StreamText", "Texts"]

RUNS_A_USER: Final = 32
"""So many runs without an open stream are remembered for a user, so that their next stream is read from there on."""
RECENT_MS: Final = 2_000
"""A stream that had ended when a node first saw it is sent only if it ended so shortly before the newest piece."""

ALL: Final = -1
"""How much was sent when the end was."""

F = TypeVar("F")


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What a follower is sent: the text of a stream from `offset` on, and perhaps its end."""

    run: RunId
    stream: str
    offset: int
    text: str
    final: bool


class StreamText:
    """One token stream as far as it was read.

    Attributes:
        thread: of its run.
        base: text before this is not held.
        length: in code points.
        ended: it has had its last piece.
        ended_ms: when, by the store's clock.
        whole: it was read from its beginning without a hole; else it is left to its event.
    """

    __slots__ = ("_pieces", "_starts", "base", "ended", "ended_ms", "length", "thread", "whole")

    def __init__(self, thread: ThreadId | None) -> None:
        self.thread = thread
        self.base = 0
        self.length = 0
        self.ended = False
        self.ended_ms = 0
        self.whole = True
        self._starts: list[int] = []
        self._pieces: list[str] = []

    def __repr__(self) -> str:
        return f"<StreamText {self.base}..{self.length}{' ended' if self.ended else ''}{'' if self.whole else ' torn'}>"

    @property
    def held_bytes(self) -> int:
        """What it takes, about."""
        return sum([size_of(piece) for piece in self._pieces])

    def take(self, delta: TextDelta) -> int:
        """Take a piece. Returns how many bytes are held more by it."""
        if delta.offset > self.length:
            self.whole = False
        if self.ended or not self.whole:
            return 0
        text = delta.text[self.length - delta.offset :]  # of one that is stored again what is new
        if delta.last:
            self.ended = True
            self.ended_ms = entry_order(delta.id)[0]
        if not text:
            return 0
        self._starts.append(self.length)
        self._pieces.append(text)
        self.length += len(text)
        return size_of(text)

    def since(self, offset: int) -> str:
        """The text from there on, which must be held."""
        if offset >= self.length:
            return ""
        first = bisect_right(self._starts, offset) - 1
        text = "".join(self._pieces[first:]) if first < len(self._pieces) - 1 else self._pieces[first]
        return text[offset - self._starts[first] :]

    def let_go(self) -> None:
        """Hold no text any more."""
        self.base = self.length
        self._starts.clear()
        self._pieces.clear()


@dataclass(slots=True, eq=False)
class RunTexts:
    """The streams of one run.

    Attributes:
        cursor: the entry up to which its log was read.
        begun: how often it was read from the beginning: a page that was asked for before is none of the new reading.
        from_start: what is being read was there before the node looked.
        closed: the index names no stream of it any more.
        is_over: and it was read to its end since.
        held_bytes: what its text takes, about.
    """

    user: UserId
    run: RunId
    cursor: EntryId = ENTRY_ZERO
    begun: int = 0
    from_start: bool = True
    closed: bool = False
    is_over: bool = False
    held_bytes: int = 0
    streams: dict[str, StreamText] = field(default_factory=dict)

    def again(self) -> None:
        """Read it from the beginning."""
        self.cursor = ENTRY_ZERO
        self.begun += 1
        self.from_start = True
        self.held_bytes = 0
        self.streams.clear()

    def let_go(self) -> None:
        """Hold no text any more."""
        self.held_bytes = 0
        for stream in self.streams.values():
            stream.let_go()


class Texts(Generic[F]):
    """The streams and the followers of a node.

    Args:
        wants: whether a follower's filter takes the text of a run in a thread.
        may_want: whether it does for some thread.
        is_ready: whether a follower can be sent something now.
    """

    def __init__(
        self,
        *,
        wants: Callable[[F, RunId, ThreadId | None], bool],
        may_want: Callable[[F, RunId], bool],
        is_ready: Callable[[F], bool],
    ) -> None:
        self._wants = wants
        self._may_want = may_want
        self._is_ready = is_ready
        self._followers: dict[UserId, dict[F, dict[tuple[RunId, str], int]]] = {}
        self._runs: dict[UserId, dict[RunId, RunTexts]] = {}
        self._by_use: dict[RunTexts, None] = {}  # the longest untouched first
        self.held_bytes = 0

    def __repr__(self) -> str:
        return f"<Texts users={len(self._followers)} runs={len(self._by_use)} held_bytes={self.held_bytes}>"

    @property
    def users(self) -> Iterator[UserId]:
        """The users who have followers."""
        return iter(self._followers)

    @property
    def runs(self) -> Iterator[RunTexts]:
        """The runs that are followed."""
        return iter(self._by_use)

    @property
    def open_streams(self) -> int:
        """How many streams are held that have not ended."""
        return sum([not stream.ended for run in self._by_use for stream in run.streams.values()])

    def run(self, user: UserId, run: RunId) -> RunTexts | None:
        """What is held of a run."""
        return self._runs.get(user, {}).get(run)

    # --- who follows --------------------------------------------------------------------------------------------------

    def join(self, user: UserId, follower: F) -> None:
        """A follower comes: it is owed all that is open, and nothing that has ended."""
        self._followers.setdefault(user, {})[follower] = {
            (run.run, name): ALL
            for run in self._runs.get(user, {}).values()
            for name, stream in run.streams.items()
            if stream.ended
        }

    def leave(self, user: UserId, follower: F) -> None:
        """A follower goes; with the last one of a user go the user's runs."""
        followers = self._followers.get(user)
        if followers is None or followers.pop(follower, None) is None or followers:
            return
        del self._followers[user]
        for run in list(self._runs.get(user, {}).values()):
            self.forget(run)

    def follow(self, user: UserId, run: RunId) -> RunTexts | None:
        """A stream of the run has grown. Returns the run, to be read; None when nobody here may want it."""
        if not any(self._may_want(follower, run) for follower in self._followers.get(user, ())):
            return None
        runs = self._runs.setdefault(user, {})
        followed = runs.get(run)
        if followed is None:
            followed = runs[run] = RunTexts(user, run)
            self._forget_quiet(runs)
        self._touch(followed)
        followed.closed = followed.is_over = False
        return followed

    def opened(self, user: UserId, streams: Sequence[OpenText]) -> list[RunTexts]:
        """What the index says is open. Returns the runs to be read, also those that are followed and not in it."""
        if user not in self._followers:
            return []
        named = dict.fromkeys(stream.run for stream in streams)
        wanted = []
        for run in list(self._runs.get(user, {}).values()):
            if run.run not in named and run.streams:
                run.closed = True
                wanted.append(run)
        for name in named:
            run_texts = self.follow(user, name)
            if run_texts is not None:
                wanted.append(run_texts)
        return wanted

    def forget(self, run: RunTexts) -> None:
        """Hold nothing of a run any more."""
        runs = self._runs.get(run.user, {})
        if runs.get(run.run) is not run:
            return
        del runs[run.run]
        if not runs:
            del self._runs[run.user]
        del self._by_use[run]
        self.held_bytes -= run.held_bytes
        for sent in self._followers.get(run.user, {}).values():
            for name in run.streams:
                sent.pop((run.run, name), None)

    def again(self, run: RunTexts) -> None:
        """Read a run from the beginning; what was sent of it stays known."""
        self.held_bytes -= run.held_bytes
        run.again()

    def shrink(self, most_bytes: int) -> None:
        """Let text go until at most so much is held, that of the longest untouched runs first. A run that is in the
        midst of its first reading keeps what it has: it would be read from the beginning again, and never to its end.
        """
        for run in list(self._by_use):
            if self.held_bytes <= most_bytes:
                return
            if run.from_start:
                continue
            self.held_bytes -= run.held_bytes
            run.let_go()

    # --- what is read -------------------------------------------------------------------------------------------------

    def took(self, run: RunTexts, deltas: Sequence[TextDelta], *, more: bool) -> bool:
        """Take what was read of a run behind its cursor.

        Args:
            run: the run.
            deltas: in the order of the log.
            more: others may follow at once.

        Returns:
            Whether it is to be read again from the beginning: a piece is missing that may have come later.
        """
        self._touch(run)
        for delta in deltas:
            stream = run.streams.get(delta.stream)
            if stream is None:
                stream = run.streams[delta.stream] = StreamText(delta.thread)
            was_whole = stream.whole
            grown = stream.take(delta)
            run.held_bytes += grown
            self.held_bytes += grown
            if was_whole and not stream.whole and not run.from_start:
                return True
        if deltas:
            run.cursor = deltas[-1].id
        if not more and run.from_start:
            run.from_start = False
            self._leave_out_ended(run)
        run.is_over = run.closed and not more
        return False

    def _leave_out_ended(self, run: RunTexts) -> None:
        """After the first reading: what had ended before, and nobody was in the midst of, is left to its event."""
        newest_ms = entry_order(run.cursor)[0]
        followers = self._followers.get(run.user, {})
        for name, stream in list(run.streams.items()):
            key = run.run, name
            followed = any(sent.get(key, 0) > 0 for sent in followers.values())
            if stream.ended and not followed and stream.ended_ms < newest_ms - RECENT_MS:
                self._remove(run, name, stream)

    # --- what is owed -------------------------------------------------------------------------------------------------

    def owed(self, run: RunTexts, only: F | None = None) -> tuple[list[tuple[F, Part]], bool]:
        """What followers are to be sent now of a run; it counts as sent.

        Args:
            run: the run.
            only: one follower alone.

        Returns:
            Who gets what, and whether somebody lags behind the text that is held, so that the run has to be read again.
        """
        parts: list[tuple[F, Part]] = []
        missing = False
        if run.from_start:
            return parts, missing  # what has ended in it is not known yet
        followers = self._followers.get(run.user, {})
        for name, stream in list(run.streams.items()):
            if not stream.whole:
                continue
            made: dict[int, Part] = {}
            all_sent = stream.ended
            for follower, sent in followers.items():
                offset = sent.get((run.run, name), 0)
                if offset == ALL or (offset >= stream.length and not stream.ended):
                    continue
                if not self._wants(follower, run.run, stream.thread):
                    continue
                if (only is not None and follower is not only) or not self._is_ready(follower):
                    all_sent = False
                elif offset < stream.base:
                    all_sent, missing = False, True
                else:
                    part = made.get(offset)
                    if part is None:
                        part = made[offset] = Part(
                            run=run.run, stream=name, offset=offset, text=stream.since(offset), final=stream.ended
                        )
                    parts.append((follower, part))
                    sent[run.run, name] = ALL if stream.ended else stream.length
            if all_sent:
                self._remove(run, name, stream)
        if run.is_over and not any(stream.ended for stream in run.streams.values()):
            self.forget(run)
        return parts, missing

    def of_user(self, user: UserId) -> list[RunTexts]:
        """The user's runs."""
        return list(self._runs.get(user, {}).values())

    # --- within -------------------------------------------------------------------------------------------------------

    def _touch(self, run: RunTexts) -> None:
        self._by_use.pop(run, None)
        self._by_use[run] = None

    def _remove(self, run: RunTexts, name: str, stream: StreamText) -> None:
        held = stream.held_bytes
        run.held_bytes -= held
        self.held_bytes -= held
        del run.streams[name]
        for sent in self._followers.get(run.user, {}).values():
            sent.pop((run.run, name), None)

    def _forget_quiet(self, runs: dict[RunId, RunTexts]) -> None:
        if len(runs) <= RUNS_A_USER:
            return
        for run in list(runs.values()):
            if not run.streams and not run.from_start:
                self.forget(run)
                return


def size_of(text: str) -> int:
    """What a text takes in memory, about."""
    return len(text) if text.isascii() else 2 * len(text)
