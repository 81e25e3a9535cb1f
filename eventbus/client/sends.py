"""What a subscriber sends to agents, kept until the node says that it is stored. Pure.

Nothing else brings a lost one back. So these outlive connections, and each connection sends again, under the same
`ref`, what was not answered: the node stores it once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any, Final

from eventbus.commands.command import check_command, plain_command_data
from eventbus.errors import (
    AlreadyAnswered,
    AnswerRefused,
    BadAnswer,
    CommandRefused,
    EventBusError,
    InvalidCommand,
    QuestionClosed,
    SubscriberError,
    UnknownQuestion,
)
from eventbus.fields import parse_event_type
from eventbus.frames import ErrorFrame, Ref, Send, Sent
from eventbus.ids import EntryId, parse_run_id, parse_thread_id

__all__ = ["MAX_UNANSWERED", "Sends", "make_send"]

MAX_UNANSWERED: Final = 256
"""Most commands that wait for their answer; one more is refused."""
REPEAT_MS: Final = 110_000
"""How long after it was first sent a command may be sent again: a node knows its ref for two minutes, and would later
store it once more."""

_REFUSED: Final[Mapping[str, type[AnswerRefused]]] = {
    kind.code: kind for kind in (AlreadyAnswered, BadAnswer, QuestionClosed, UnknownQuestion)
}


def make_send(type: str, data: Mapping[str, Any], *, ref: Ref, run: str | None, thread: str | None) -> Send:
    """Judge a command as the node will.

    Raises:
        InvalidField: `field` names what is wrong.
    """
    plain = plain_command_data(data)
    check_command(parse_event_type(type, "type"), plain)
    return Send(
        type=type,
        data=plain,
        ref=ref,
        run=None if run is None else parse_run_id(run),
        thread=None if thread is None else parse_thread_id(thread),
    )


class Sends:
    """The commands of a session that are not known to be stored.

    Args:
        prefix: what their refs begin with: another for each process, for a node knows a ref for a while.
    """

    __slots__ = ("_first_ms", "_frames", "_number", "_prefix", "_results", "_unsent")

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._number = 0
        self._frames: dict[Ref, Send] = {}
        self._first_ms: dict[Ref, int] = {}
        self._results: dict[Ref, EntryId | EventBusError] = {}
        self._unsent: deque[Ref] = deque()

    def __bool__(self) -> bool:
        """Whether something is to be sent."""
        return bool(self._unsent)

    def __len__(self) -> int:
        return len(self._frames)

    def next_ref(self) -> Ref:
        """The ref of the next command."""
        self._number += 1
        return f"{self._prefix}-{self._number}"

    def add(self, frame: Send) -> None:
        """One more.

        Raises:
            SubscriberError: too many wait already.
        """
        if len(self._frames) >= MAX_UNANSWERED:
            raise SubscriberError(f"{len(self._frames)} commands wait for the node already; send this one later")
        # Those that nobody waits for any more: without a connection nobody else takes them off.
        while self._unsent and self._unsent[0] not in self._frames:
            self._unsent.popleft()
        self._frames[frame.ref] = frame
        self._unsent.append(frame.ref)

    def next(self, now_ms: int) -> Send | None:
        """The next frame to send, at this monotonic time."""
        while self._unsent:
            frame = self._frames.get(self._unsent.popleft())
            if frame is not None:
                self._first_ms.setdefault(frame.ref, now_ms)
                return frame
        return None

    def answered(self, frame: Sent | ErrorFrame) -> bool:
        """The node has answered. Returns whether it was one of these that it answered."""
        if frame.ref is None or frame.ref not in self._frames:
            return False
        del self._frames[frame.ref]
        self._first_ms.pop(frame.ref, None)
        self._results[frame.ref] = EntryId(frame.id) if isinstance(frame, Sent) else _refusal(frame)
        return True

    def result(self, ref: Ref) -> EntryId | EventBusError | None:
        """What became of a command, once; None while that is not known."""
        return self._results.pop(ref, None)

    def forget(self, ref: Ref) -> None:
        """Nobody waits for it any more; what was sent may be stored all the same."""
        self._frames.pop(ref, None)
        self._first_ms.pop(ref, None)
        self._results.pop(ref, None)

    def reconnected(self, now_ms: int) -> None:
        """What was sent on another connection is sent again, in its order; not what no node may know any more, whose
        sender waits until its time is over.
        """
        first = self._first_ms
        self._unsent = deque(ref for ref in self._frames if now_ms - first.get(ref, now_ms) < REPEAT_MS)


def _refusal(frame: ErrorFrame) -> EventBusError:
    if frame.code == InvalidCommand.code:
        field, _, problem = frame.message.partition(": ")
        return InvalidCommand(field, problem)
    kind = _REFUSED.get(frame.code)
    if kind is not None:
        return kind(frame.message)
    return CommandRefused(f"the node refused it: {frame.code}: {frame.message}", refused_with=frame.code)
