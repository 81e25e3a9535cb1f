"""One connection of a subscriber, from the open socket to its end: what to send, and what to do when. Pure.

The shell tells it what came and what time it is; it answers with frames (`next_frame`) and, at `due_ms`, with acts
(`on_clock`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from eventbus.client.confirms import AGAIN_MS, Confirms
from eventbus.client.inbox import Inbox
from eventbus.client.sends import Sends
from eventbus.client.state import MAX_REASON_CHARACTERS, Outbox, Pacer, ids_a_frame, refresh_delay_ms
from eventbus.frames import ClientFrame, GoAway, Hello, Nack, Ping, Ref, Refresh, Welcome, Working
from eventbus.ids import EntryId, Epoch, SessionId
from eventbus.store import Start
from eventbus.wire import Filter

__all__ = ["Act", "Link", "Lost", "make_hello"]

WELCOME_TIMEOUT_MS: Final = 40_000
"""A node whose store is away holds a `hello` for up to 30 s before it gives up by itself."""
PONG_TIMEOUT_MS: Final = 10_000
MAX_WAITING_FRAMES: Final = 64
"""A node that reads nothing is told no more than this; the next `working` has all that is overdue."""
LATE_MS: Final = 1_000
"""A look that comes later than this says that the process was busy, not that the node was silent."""


class Act(Enum):
    """What the shell has to do besides sending frames."""

    LEAVE = auto()
    """Send what waits and close: a `goaway` has run out."""
    FETCH_TOKEN = auto()
    """Get a token and give it to `Link.refresh`."""


@dataclass(frozen=True, slots=True)
class Lost:
    """Give the socket up without waiting for its close, which a dead peer never answers."""

    reason: str


class _Duty(Enum):
    WELCOME = auto()
    WATCH = auto()
    WORKING = auto()
    CONFIRM = auto()
    REFRESH = auto()
    LEAVE = auto()
    FLUSH = auto()


def make_hello(
    *,
    session: SessionId | None,
    start: Start | None,
    cursor: EntryId | None,
    epoch: Epoch | None,
    window: int | None,
    filter: Filter | None,
) -> Hello:
    """The first frame of a connection.

    A session that had a `welcome` (`epoch` is known) sends where it stands and no `start`; a new one starts at the
    application's cursor or at the earliest, never in between.

    Source: docs/protocol.md, sections 2 and 7.
    """
    begin: Start | None
    if epoch is not None:
        begin = Start.EARLIEST if cursor is None else None  # a cursor without `start` means `start: cursor`
    else:
        begin = start or (Start.EARLIEST if cursor is None else Start.CURSOR)
        cursor = cursor if begin is Start.CURSOR else None
    return Hello(session=session, start=begin, cursor=cursor, epoch=epoch, window=window, filter=filter)


class Link:
    """One connection.

    Args:
        number: of the connection, counted by the subscriber.
        hello: its first frame.
        now_ms: monotonic time.
        confirms: what the session has said beyond `received`; none when absent.
        sends: what it has sent to agents; nothing when absent.
    """

    def __init__(
        self,
        number: int,
        hello: Hello,
        now_ms: int,
        confirms: Confirms | None = None,
        sends: Sends | None = None,
    ) -> None:
        self.number = number
        self.welcome: Welcome | None = None
        self.come_back_ms: int | None = None
        self.paused = False
        self._welcomed_ms = now_ms
        self._heard_ms = now_ms
        self._asked = False
        self._looked_twice = False
        self._frames: deque[ClientFrame] = deque([hello])
        self._outbox: Outbox | None = None
        self._confirms = Confirms() if confirms is None else confirms
        self._sends = Sends("s") if sends is None else sends
        self._pacer = Pacer(now_ms)
        self._due: dict[_Duty, int] = {_Duty.WELCOME: now_ms + WELCOME_TIMEOUT_MS}

    # --- what came ----------------------------------------------------------------------------------------------------

    def heard(self, now_ms: int) -> None:
        """Bytes came, whichever."""
        self._heard_ms = now_ms
        self._asked = False

    def welcomed(self, welcome: Welcome, now_ms: int) -> None:
        """The session is open."""
        self.welcome = welcome
        self._welcomed_ms = now_ms
        self._outbox = Outbox(welcome.max_frame_bytes)
        self._confirms.reconnected()
        self._sends.reconnected(now_ms)
        self._pacer = Pacer(now_ms)
        del self._due[_Duty.WELCOME]
        self._due[_Duty.WATCH] = now_ms + welcome.heartbeat_ms
        self._due[_Duty.WORKING] = now_ms + self._renewal_ms

    def token_lives(self, life_ms: int, now_ms: int) -> None:
        """The token is good for `life_ms` more, and a callback can give another."""
        delay_ms = refresh_delay_ms(life_ms)
        self._due.pop(_Duty.REFRESH, None)
        if delay_ms is not None:
            self._due[_Duty.REFRESH] = now_ms + delay_ms

    def confirm_refused(self, ref: Ref | None, code: str, now_ms: int) -> None:
        """The node refused something; a confirmation that it could not store goes out again a little later."""
        if self._confirms.refused(ref, code):
            self._due.setdefault(_Duty.CONFIRM, now_ms + AGAIN_MS)

    def goaway(self, frame: GoAway, now_ms: int) -> None:
        """The node asks to be left, and to come back at a time of its own choice."""
        self.come_back_ms = now_ms + frame.reconnect_after_ms
        self._due[_Duty.LEAVE] = self.come_back_ms

    # --- what is to be sent -------------------------------------------------------------------------------------------

    def acknowledge(self, entries: Collection[EntryId]) -> None:
        """Acks for these; without a welcome nothing: the node sends them again, and they are acked then."""
        if self._outbox is not None:
            self._outbox.received(entries)

    def nack(self, entry: EntryId, reason: str | None, delay_ms: int | None) -> None:
        """A request for redelivery; without a welcome nothing, for the node delivers again anyway."""
        if self._outbox is not None and self.welcome is not None:
            # A character is at most 6 bytes of JSON.
            most = min(MAX_REASON_CHARACTERS, max(0, (self.welcome.max_frame_bytes - 160) // 6))
            # An exception's words may hold halves of characters, a file's name for one, which no frame can.
            words = reason[:most].encode(errors="replace").decode() if reason else None
            self._outbox.nack(Nack(id=entry, reason=words, delay_ms=delay_ms))

    def refresh(self, token: str) -> None:
        """A new token."""
        self._frames.append(Refresh(token=token))

    def next_frame(self, now_ms: int) -> ClientFrame | None:
        """The next frame that may be sent now; for one that must wait, `due_ms` says how long."""
        if self._frames:
            return self._frames.popleft()
        if self._outbox is None or not (self._outbox or self._confirms or self._sends) or _Duty.FLUSH in self._due:
            return None
        wait_ms = self._pacer.take(now_ms)
        if wait_ms > 0:
            self._due[_Duty.FLUSH] = now_ms + wait_ms
            return None
        return self._next_confirming(now_ms)

    def last_frame(self, now_ms: int) -> ClientFrame | None:
        """As `next_frame` on the way out: nothing waits for its pace any more."""
        if self._frames:
            return self._frames.popleft()
        return self._next_confirming(now_ms)

    def _next_confirming(self, now_ms: int) -> ClientFrame | None:
        """Acks and nacks first: the later levels are of what is handled."""
        if self._outbox is None or self.welcome is None:
            return None
        most = ids_a_frame(self.welcome.max_frame_bytes)
        return self._outbox.next() or self._confirms.next(most) or self._sends.next(now_ms)

    # --- time ---------------------------------------------------------------------------------------------------------

    @property
    def due_ms(self) -> int | None:
        """When `on_clock` is wanted."""
        return min(self._due.values(), default=None)

    def on_clock(self, now_ms: int, inbox: Inbox) -> list[Act | Lost]:
        """Do what is due; frames that it makes are had by `next_frame`.

        Args:
            now_ms: monotonic time.
            inbox: what is held is asked for the events that the application is still at.
        """
        acts: list[Act | Lost] = []
        for duty in [duty for duty, due_ms in self._due.items() if due_ms <= now_ms]:
            due_ms = self._due.pop(duty)
            match duty:
                case _Duty.WELCOME:
                    acts.append(Lost("no welcome came"))
                case _Duty.WATCH:
                    acts += self._watch(due_ms, now_ms)
                case _Duty.WORKING:
                    self._renew(inbox, now_ms)
                    self._due[_Duty.WORKING] = now_ms + self._renewal_ms
                case _Duty.CONFIRM:
                    self._confirms.again()
                case _Duty.REFRESH:
                    acts.append(Act.FETCH_TOKEN)
                case _Duty.LEAVE:
                    acts.append(Act.LEAVE)
                case _Duty.FLUSH:
                    pass
        return acts

    def lived_ms(self, now_ms: int) -> int:
        """Since its welcome; 0 when none came."""
        return now_ms - self._welcomed_ms if self.welcome is not None else 0

    @property
    def _renewal_ms(self) -> int:
        # Named at an age of one to two thirds of the time-out, whenever it came.
        return max(1, self.welcome.ack_timeout_ms // 3) if self.welcome is not None else 1

    def _renew(self, inbox: Inbox, now_ms: int) -> None:
        if len(self._frames) >= MAX_WAITING_FRAMES:
            return
        ids = inbox.overdue(self._renewal_ms, now_ms)
        most = ids_a_frame(self.welcome.max_frame_bytes) if self.welcome is not None else 1
        for begin in range(0, len(ids), most):
            self._frames.append(Working(ids=ids[begin : begin + most]))

    def _watch(self, due_ms: int, now_ms: int) -> list[Act | Lost]:
        """Ask a silent node, and give it up when nothing comes. Source: docs/protocol.md, section 7."""
        heartbeat_ms = self.welcome.heartbeat_ms if self.welcome is not None else 0
        if self.paused:
            self.heard(now_ms)  # nothing is read, so nothing can be heard
        if self._asked:
            if self._looked_twice or now_ms - due_ms <= LATE_MS:
                return [Lost("the node does not answer")]
            # This look came late, and may have overtaken bytes that wait to be read: one more look after them.
            self._looked_twice = True
            self._due[_Duty.WATCH] = now_ms + LATE_MS
        elif now_ms - self._heard_ms < heartbeat_ms:
            self._due[_Duty.WATCH] = self._heard_ms + heartbeat_ms
        else:
            self._asked, self._looked_twice = True, False
            self._frames.append(Ping())
            self._due[_Duty.WATCH] = now_ms + PONG_TIMEOUT_MS
        return []
