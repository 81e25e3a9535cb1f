"""What a subscriber says beyond `received`, kept until the node says that it is stored. Pure.

Nothing else brings a lost one back: the event itself is acked and does not come again. So these outlive connections,
and each connection sends again what was not answered.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from eventbus.errors import BreakerOpen, RateLimited, StoreBusy, StoreFull, StoreTimeout, StoreUnavailable
from eventbus.fields import Level
from eventbus.frames import Ack
from eventbus.ids import EntryId
from eventbus.wire import Ref

__all__ = ["AGAIN_MS", "MAX_UNANSWERED", "Confirms"]

MAX_UNANSWERED: Final = 4_096
"""Most frames that wait for their answer; the oldest is forgotten for one more."""
AGAIN_MS: Final = 4_000
"""After a refusal that passes, those that were refused are sent again."""

_PASSING: Final = frozenset(
    kind.code for kind in (BreakerOpen, RateLimited, StoreBusy, StoreFull, StoreTimeout, StoreUnavailable)
)


class Confirms:
    """The confirmations of a session that are not known to be stored.

    Attributes:
        forgotten: how many frames went because too many waited.
    """

    __slots__ = ("_displayed", "_frames", "_number", "_refused", "_unsent", "forgotten")

    def __init__(self) -> None:
        self._displayed: deque[EntryId] = deque()
        self._frames: dict[Ref, Ack] = {}
        self._unsent: deque[Ref] = deque()
        self._refused: set[Ref] = set()
        self._number = 0
        self.forgotten = 0

    def __bool__(self) -> bool:
        """Whether something is to be sent."""
        return bool(self._displayed or self._unsent)

    def add(self, entry: EntryId, level: Level, note: str | None) -> None:
        """One more. Those without a note go together."""
        if level is Level.DISPLAYED and len(self._displayed) < MAX_UNANSWERED:
            self._displayed.append(entry)
        else:
            self._keep((entry,), level, note)

    def _keep(self, entries: tuple[EntryId, ...], level: Level, note: str | None) -> None:
        self._number += 1
        ref = f"c{self._number}"
        self._frames[ref] = Ack(ids=entries, level=level, note=note, ref=ref)
        self._unsent.append(ref)
        if len(self._frames) > MAX_UNANSWERED:
            oldest = next(iter(self._frames))
            del self._frames[oldest]
            self._refused.discard(oldest)
            self.forgotten += 1
            # It may be among the unsent, first: without a connection nobody else takes it off.
            while self._unsent[0] not in self._frames:
                self._unsent.popleft()

    def next(self, most: int) -> Ack | None:
        """The next frame to send, with `most` entries at most."""
        if self._displayed:
            count = min(most, len(self._displayed))
            self._keep(tuple(self._displayed.popleft() for _ in range(count)), Level.DISPLAYED, None)
        while self._unsent:
            frame = self._frames.get(self._unsent.popleft())
            if frame is not None:
                return frame
        return None

    def answered(self, ref: Ref) -> None:
        """The node has stored it."""
        self._frames.pop(ref, None)
        self._refused.discard(ref)

    def refused(self, ref: Ref | None, code: str) -> bool:
        """The node could not store it. What it will never store is forgotten.

        Returns:
            Whether it is one of these, and is to be sent again by `again`.
        """
        if ref is None or ref not in self._frames:
            return False
        if code not in _PASSING:
            self.answered(ref)
            return False
        self._refused.add(ref)
        return True

    def again(self) -> None:
        """What was refused is sent once more: the connection may last for days, and the event does not come again."""
        self._unsent.extend(ref for ref in self._frames if ref in self._refused)
        self._refused.clear()

    def reconnected(self) -> None:
        """What was sent on another connection is sent again."""
        self._refused.clear()
        self._unsent = deque(self._frames)
