"""One connection of a session: from the socket's messages to the delivery machine, and from its effects to the socket
and Redis.

A session is a handler of callbacks and owns no task. What must wait (the attach, the store) is handed to its `Host`,
which calls back. The order of a life: `on_open` -> `hello` -> `attached` -> frames and reads -> `close` -> `on_close`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol, assert_never

from eventbus import moves, wire
from eventbus.clock import Clock, new_connection_id, new_session_id
from eventbus.delivery import Delivery, Phase
from eventbus.errors import AuthError, BadFrame, CloseCode, EventBusError, Forbidden, UnknownOp
from eventbus.event import EventHead
from eventbus.ids import ENTRY_ZERO, ConnectionId, EntryId, Epoch, NodeName, SessionId, UserId
from eventbus.redelivery import RedeliveryPolicy
from eventbus.store import (
    Attach,
    Attached,
    AttachMode,
    AttachRefused,
    Beat,
    BeatState,
    Fence,
    ReleaseReason,
    Start,
)
from eventbus.tiers import Tier
from gateway.auth import Identity, Scope, require_scope
from gateway.counters import Counters
from gateway.handshake import Subprotocol
from gateway.limits import FrameLimit, FrameVerdict
from gateway.liveness import Liveness, LivenessRules
from gateway.outbox import binary_frame, text_frame
from gateway.payload import event_frames
from gateway.websocket import Connection
from gateway.wheel import NEVER_MS

__all__ = ["Host", "Session", "SessionSettings", "State"]

_FORMATS: Final = {Subprotocol.JSON: wire.Format.JSON, Subprotocol.MSGPACK: wire.Format.MSGPACK}


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionSettings:
    """What every session of a node works with."""

    node: NodeName
    policy: RedeliveryPolicy
    liveness: LivenessRules
    hello_timeout_ms: int
    store_wait_ms: int
    max_frame_bytes: int
    window_default: int
    window_max: int


class State(StrEnum):
    """Where a connection stands."""

    HELLO = "hello"
    ATTACHING = "attaching"
    OPEN = "open"
    CLOSED = "closed"


class Host(Protocol):
    """What a session asks of its node."""

    settings: SessionSettings
    counters: Counters
    clock: Clock

    def authenticate(self, token: str) -> Identity:
        """Verifies a token. Raises: AuthError."""

    def tier(self, name: str) -> Tier:
        """The settings of a tier."""

    def seat(self, session: Session) -> None:
        """From now on wake-ups reach the session."""

    def unseat(self, session: Session) -> None:
        """The session is over: no wake-up, no clock."""

    def attach(self, session: Session) -> None:
        """Attaches the session (`session.attach_request()`), again and again until it answers; calls
        `session.attached`.
        """

    def want_read(self, session: Session) -> None:
        """The session wants to read."""

    def acknowledge(self, session: Session, ids: Sequence[EntryId], ref: wire.Ref | None) -> None:
        """Puts acks on their way; calls `session.acks_stored`."""

    def step(self, session: Session, effect: moves.Release | moves.Redeliver | moves.GiveUp) -> None:
        """Carries out what only Redis can; calls `session.apply` with the answer."""

    def leave_session(self, session: Session) -> None:
        """The session's connection is gone: what it acked is stored, then its hold is given up."""

    def place(self, session: Session) -> None:
        """The session's due time changed."""


class Session:
    """A connection and its delivery machine.

    Args:
        host: the node.
        identity: who it is, when the handshake told; else `hello` must.
        left: called once when the connection is over.
    """

    __slots__ = (
        "_close_code",
        "_cursor_said",
        "_epoch",
        "_filter",
        "_frames",
        "_hello_due_ms",
        "_host",
        "_left",
        "_liveness",
        "_reads",
        "_start",
        "_tier",
        "_waiting_refs",
        "attaching",
        "connection",
        "connection_id",
        "delivery",
        "identity",
        "opened_ms",
        "paused_frames",
        "queued_acks",
        "session_id",
        "state",
        "user",
        "wheel_slot",
        "window",
        "wire_format",
    )

    def __init__(self, host: Host, identity: Identity | None, *, left: Callable[[], None] = lambda: None) -> None:
        self._host = host
        self._left = left
        self.identity = identity
        self.state = State.HELLO
        self.user = UserId("")
        self.session_id = SessionId("")
        self.connection_id = ConnectionId("")
        self.wheel_slot = -1
        self.paused_frames: deque[bytes] = deque()
        self.queued_acks = 0
        self.attaching = False
        self.window = 0
        self._cursor_said: EntryId | None = None
        self._epoch: Epoch | None = None
        self._start = Start.NEW
        self._filter: wire.Filter | None = None
        self._reads = 0
        self._close_code: CloseCode | None = None
        self._hello_due_ms = NEVER_MS

    def __repr__(self) -> str:
        return f"<Session {self.user}/{self.session_id} {self.state} {getattr(self, 'delivery', None)!r}>"

    @property
    def is_open(self) -> bool:
        """Whether it is attached and its socket is there."""
        return self.state is State.OPEN

    @property
    def fence(self) -> Fence:
        """For whom it acts."""
        return Fence(user=self.user, session=self.session_id, connection=self.connection_id)

    # --- the socket's callbacks -------------------------------------------------------------------------------------

    def on_open(self, connection: Connection) -> None:
        """The handshake is through: `hello` must come in time."""
        now_ms = self._host.clock.monotonic_ms()
        self.connection = connection
        self.wire_format = _FORMATS[connection.subprotocol]
        self.opened_ms = now_ms
        self._hello_due_ms = now_ms + self._host.settings.hello_timeout_ms
        self._host.counters.connections_opened += 1
        self._host.place(self)

    def on_message(self, payload: bytes) -> None:
        """A whole message came; handled at once, or held while the client's rate or the attach says so."""
        if self.state is State.CLOSED:
            return
        if self.paused_frames or self.state is State.ATTACHING:
            self.paused_frames.append(payload)
        else:
            self._take(payload)

    def on_writable(self) -> None:
        """The peer reads again; what waited goes out by itself."""

    def on_close(self, code: int, reason: str) -> None:
        """The socket is gone, whoever closed it."""
        self._host.counters.connections_closed[int(self._close_code or code)] += 1
        self._end()
        self._left()

    # --- frames -------------------------------------------------------------------------------------------------------

    def _take(self, payload: bytes) -> None:
        now_ms = self._host.clock.monotonic_ms()
        if self.state is State.OPEN and self._held_back(payload, now_ms):
            return
        self._host.counters.frames_received += 1
        try:
            frame = wire.decode_client(payload, self.wire_format)
            self._handle(frame, now_ms)
        except BadFrame as error:
            self._refuse(error, close=True)
        except UnknownOp as error:
            self._refuse(error, close=self.state is State.HELLO, ref=error.ref)
        except (AuthError, Forbidden) as error:
            self._host.counters.frames_refused[error.code] += 1
            self.close(error.close_code or CloseCode.UNAUTHENTICATED, str(error))

    def _held_back(self, payload: bytes, now_ms: int) -> bool:
        """Whether the client's rate keeps this frame from being handled now."""
        verdict = self._frames.take(now_ms)
        if verdict is FrameVerdict.READ:
            return False
        if verdict is FrameVerdict.CLOSE:
            self.close(CloseCode.RATE_LIMITED, "more frames than the tier allows for 30 s")
            return True
        self.paused_frames.appendleft(payload)
        self.connection.pause_reading()
        self._liveness.resume_due_ms = now_ms + self._frames.resume_in_ms(now_ms)
        self._host.place(self)
        return True

    def _handle_paused(self) -> None:
        """Handles what was held back, until something holds it back again."""
        frames, self.paused_frames = self.paused_frames, deque()
        while frames and self.state is State.OPEN:
            self._take(frames.popleft())
            if self.paused_frames:
                self.paused_frames.extend(frames)
                return
        if self.state is State.OPEN:
            self.connection.resume_reading()

    def _refuse(self, error: EventBusError, *, close: bool, ref: wire.Ref | None = None) -> None:
        self._host.counters.frames_refused[error.code] += 1
        self.send(wire.ErrorFrame(code=error.code, message=str(error), ref=ref))
        if close:
            self.close(error.close_code or CloseCode.PROTOCOL_VIOLATION, str(error))

    def _handle(self, frame: wire.ClientFrame, now_ms: int) -> None:
        if self.state is State.HELLO:
            if not isinstance(frame, wire.Hello):
                raise BadFrame("op", "the first frame must be `hello`")
            self._hello(frame)
            return
        match frame:
            case wire.Hello():
                self.send(wire.ErrorFrame(code="unexpected_hello", message="the session is open already"))
            case wire.Ack():
                self._ack(frame, now_ms)
            case wire.Nack():
                self._host.counters.events_nacked += 1
                self.apply(moves.Nacked(frame.id, frame.delay_ms))
            case wire.Working():
                self.apply(moves.Working(frame.ids))
            case wire.Ping():
                self.send(wire.Pong(ref=frame.ref))
            case wire.SetFilter():
                self._filter = frame.filter
                self.send(wire.Filtered(ref=frame.ref))
            case wire.Refresh():
                self._refresh(frame)
            case wire.Send():
                raise UnknownOp("commands are not taken by this node")
            case _:
                assert_never(frame)

    def _hello(self, hello: wire.Hello) -> None:
        if self.identity is None and hello.token is not None:
            self.identity = self._host.authenticate(hello.token)
        identity = self._token()
        require_scope(identity, Scope.SUBSCRIBE)
        if identity.session is not None and hello.session not in (None, identity.session):
            raise Forbidden(f"the token is pinned to session {identity.session!r}")
        if hello.start is Start.CURSOR and hello.cursor is None:
            raise BadFrame("cursor", "`start: cursor` needs a cursor")
        settings = self._host.settings
        self.user = identity.user
        self.session_id = identity.session or hello.session or new_session_id()
        self.connection_id = new_connection_id()
        self._tier = self._host.tier(identity.tier)
        self._frames = FrameLimit(self._tier.frames_per_second, self._host.clock.monotonic_ms())
        self._start = hello.start or (Start.CURSOR if hello.cursor is not None else Start.NEW)
        self._cursor_said = hello.cursor
        self._epoch = hello.epoch
        self._filter = hello.filter
        self.window = min(hello.window or settings.window_default, settings.window_max)
        self.delivery = Delivery(settings.policy, window=self.window, cursor=hello.cursor or ENTRY_ZERO)
        self.state = State.ATTACHING
        self.attaching = True
        self._hello_due_ms = self._host.clock.monotonic_ms() + settings.store_wait_ms
        self.connection.pause_reading()
        # Seated before the attach is written: a wake-up may come before its answer.
        self._host.seat(self)
        self._host.attach(self)

    def _ack(self, ack: wire.Ack, now_ms: int) -> None:
        event: moves.Input = moves.Acked(ack.ids) if ack.ids is not None else moves.AckedUpTo(ack.upto or ENTRY_ZERO)
        effects = self.delivery.handle(event, now_ms)
        if not effects and ack.ref is not None:
            # Everything was acked before; the answer still waits for those acks to be stored.
            self._host.acknowledge(self, (), ack.ref)
        for effect in effects:
            if isinstance(effect, moves.Acknowledge):
                self._acknowledge(effect.ids, ack.ref)
        self._after_input()

    def _refresh(self, frame: wire.Refresh) -> None:
        identity = self._host.authenticate(frame.token)
        if identity.user != self.user:
            raise Forbidden("a refreshed token must be of the same user")
        require_scope(identity, Scope.SUBSCRIBE)
        if identity.session not in (None, self.session_id):
            raise Forbidden(f"the token is pinned to session {identity.session!r}")
        self.identity = identity
        self._liveness.token_ends(self._host.clock.monotonic_ms(), self._token_left_ms())
        self._host.place(self)
        self.send(wire.Refreshed(token_expires_ms=identity.expires_ms))

    # --- attaching ----------------------------------------------------------------------------------------------------

    def attach_request(self) -> Attach:
        """The attach to make now: the first one takes over, a later one never does (D3)."""
        first = self.delivery.phase is Phase.ATTACHING
        return Attach(
            fence=self.fence,
            node=self._host.settings.node,
            mode=AttachMode.OPEN if first else AttachMode.REATTACH,
            start=self._start if first else Start.CURSOR,
            cursor=self._cursor_said if first else self.delivery.cursor,
            epoch=self._epoch,
            live_limit=self._tier.live_sessions,
            known_limit=4 * self._tier.live_sessions,
        )

    def reattach(self, cause: str) -> None:
        """Entries may be pending that nobody holds: attaches again with the socket open (D1)."""
        if self.state is State.OPEN and not self.attaching:
            self.attaching = True
            self._host.counters.reattaches[cause] += 1
            self.apply(moves.ReattachStarted())
            self._host.attach(self)

    def attached(self, answer: Attached | AttachRefused) -> None:
        """The store answered an attach."""
        self.attaching = False
        if self.state is State.CLOSED:
            return
        if isinstance(answer, AttachRefused):
            if answer is AttachRefused.LOST:
                self.lost()
            else:
                live = self._tier.live_sessions
                message = f"the tier {self._tier.name!r} allows {live} live sessions"
                self.send(wire.ErrorFrame(code="too_many_sessions", message=message))
                self.close(CloseCode.RATE_LIMITED, "too_many_sessions")
            return
        self._epoch = answer.epoch
        if self.state is State.ATTACHING:
            self._open(answer)
        if answer.gap:
            self._host.counters.gaps[answer.gap.reason] += 1
        self.apply(moves.Opened(position=answer.position, tail=answer.tail, pending=answer.pending, gap=answer.gap))
        if self.paused_frames and self.state is State.OPEN:
            self._handle_paused()

    def _open(self, answer: Attached) -> None:
        host = self._host
        now_ms = host.clock.monotonic_ms()
        self.state = State.OPEN
        self._hello_due_ms = NEVER_MS
        host.counters.sessions_attached["resumed" if answer.resumed else "new"] += 1
        self._liveness = Liveness(
            host.settings.liveness,
            connection_timeout_ms=self._tier.connection_timeout_ms,
            now_ms=now_ms,
            spread=int(self.connection_id[:6], 16),
        )
        self._liveness.token_ends(now_ms, self._token_left_ms())
        # With entries pending, nothing but what the client said itself is known to be handled.
        cursor = answer.position if not answer.pending else self._cursor_said or ENTRY_ZERO
        self.send(
            wire.Welcome(
                protocol=1,
                node=host.settings.node,
                connection=self.connection_id,
                session=self.session_id,
                resumed=answer.resumed,
                cursor=cursor,
                pending=answer.pending,
                window=self.window,
                heartbeat_ms=host.settings.liveness.heartbeat_ms,
                ack_timeout_ms=host.settings.policy.ack_timeout_ms,
                max_frame_bytes=host.settings.max_frame_bytes,
                token_expires_ms=self._token().expires_ms,
                epoch=answer.epoch,
            )
        )
        self.connection.resume_reading()
        host.place(self)

    def acked_elsewhere(self, ids: Sequence[EntryId]) -> None:
        """Entries of this session were acked through another door (D11)."""
        if self.state is State.OPEN:
            self.apply(moves.AckedElsewhere(ids))

    def stalled(self, by_ms: int) -> None:
        """The node stood still: nobody is late for that (D23)."""
        if self.state is State.OPEN:
            self.apply(moves.Stalled(by_ms))

    def disowned(self) -> None:
        """Redis says that the session is not this connection's: another has it, or nobody, for its field in the live
        hash has aged out while the node stood still. The attach finds out which, and takes it from nobody (D2, D3).
        """
        self.reattach("disowned")

    def lost(self) -> None:
        """Another connection has the session (D2)."""
        self.close(CloseCode.SUPERSEDED, "the session was opened elsewhere")

    # --- delivering
    # -----------------------------------------------------------------------------------------------------

    def apply(self, event: moves.Input) -> None:
        """Gives the machine an input and carries out what it says."""
        if self.state is State.CLOSED:
            return
        effects = self.delivery.handle(event, self._host.clock.monotonic_ms())
        if effects:
            self._carry_out(effects)
        self._after_input()

    def _after_input(self) -> None:
        delivery = self.delivery
        if delivery.wants_read:
            self._host.want_read(self)
        if self.state is State.OPEN:
            if delivery.due_ms < self._liveness.due_ms:
                self._host.place(self)
            if delivery.reattach_wanted and not self.attaching:
                self.reattach("read_failed")

    def _carry_out(self, effects: Iterable[moves.Effect]) -> None:
        counters = self._host.counters
        for effect in effects:
            match effect:
                case moves.Send():
                    again = sum(1 for event in effect.events if event.delivery > 1)
                    counters.events_delivered += len(effect.events) - again
                    counters.events_redelivered += again
                    for data in event_frames(effect.events, self.wire_format):
                        self.connection.send(data)
                case moves.Acknowledge():
                    self._acknowledge(effect.ids, None)
                case moves.Release() | moves.Redeliver() | moves.GiveUp():
                    self._step(effect)
                case moves.AnnounceGap():
                    gap = effect.gap
                    self.send(wire.Gap(reason=gap.reason, after=gap.after, before=gap.before, count=gap.count))
                case moves.Dropped():
                    self.send(wire.Dropped(ids=effect.ids, reason=effect.reason))
                case moves.CaughtUp():
                    self.send(wire.CaughtUp(cursor=effect.cursor))
                case _:
                    assert_never(effect)

    def _step(self, effect: moves.Release | moves.Redeliver | moves.GiveUp) -> None:
        if (
            isinstance(effect, moves.Redeliver)
            and self.connection.buffered_bytes > self._host.settings.liveness.backlog_bytes
        ):
            # The client has not even read the copies before: another one would only pile up, and count against it.
            self.apply(moves.StepFailed([entry.id for entry in effect.entries]))
        else:
            self._host.step(self, effect)

    def _acknowledge(self, ids: Sequence[EntryId], ref: wire.Ref | None) -> None:
        self.queued_acks += len(ids)
        self._host.acknowledge(self, ids, ref)

    def acks_stored(self, ids: Sequence[EntryId], released: int, ref: wire.Ref | None) -> None:
        """Acks are in Redis."""
        self._host.counters.events_acked += released
        if self.state is State.CLOSED:
            return
        self.queued_acks -= len(ids)
        self.delivery.handle(moves.Stored(ids), self._host.clock.monotonic_ms())
        if ref is not None:
            self.send(wire.Acked(ref=ref, count=released))

    def ack_is_late(self, ref: wire.Ref) -> None:
        """An ack that the client waits for can not be stored since 30 s; it is still kept and tried."""
        self.send(wire.ErrorFrame(code="store_unavailable", message="the ack is kept and not stored yet", ref=ref))

    def skip_of(self, head: EventHead, now_wall_ms: int) -> ReleaseReason | None:
        """Why an entry is not for this session; None when it is."""
        if head.expires_ms is not None and head.expires_ms <= now_wall_ms:
            return ReleaseReason.EXPIRED
        if self._filter is not None and not self._filter.matches(head.type, head.thread, head.run):
            return ReleaseReason.FILTERED
        return None

    def send(self, frame: wire.ServerFrame) -> None:
        """Sends a frame of the protocol."""
        payload = wire.encode_server(frame, self.wire_format)
        self.connection.send(text_frame(payload) if self.wire_format is wire.Format.JSON else binary_frame(payload))

    # --- time
    # -----------------------------------------------------------------------------------------------------------

    @property
    def due_ms(self) -> int:
        """When `on_clock` is wanted next."""
        if self.state is State.OPEN:
            return min(self._liveness.due_ms, self.delivery.due_ms)
        return self._hello_due_ms if self.state is not State.CLOSED else NEVER_MS

    def on_clock(self, now_ms: int) -> bool:
        """Does what is due. Returns whether a heartbeat in Redis is wanted."""
        if self.state is State.CLOSED:
            return False
        if self.state is not State.OPEN:
            self._too_late()
            return False
        liveness = self._liveness
        wants_beat = False
        if liveness.look_due_ms <= now_ms:
            self._look(now_ms)
        if liveness.resume_due_ms <= now_ms:
            liveness.resume_due_ms = NEVER_MS
            self._handle_paused()
        if liveness.beat_due_ms <= now_ms:
            liveness.beat_due_ms = now_ms + self._host.settings.liveness.beat_ms
            wants_beat = not self.attaching
        if self.delivery.due_ms <= now_ms:
            self.apply(moves.Clock())
        if self.is_open:
            self._host.place(self)
        return wants_beat and self.is_open

    def _too_late(self) -> None:
        if self.state is State.HELLO:
            self.close(CloseCode.HELLO_TIMEOUT, "no hello in time")
        else:
            self.close(CloseCode.STORE_UNAVAILABLE, "the store does not answer")

    def _look(self, now_ms: int) -> None:
        found = self._liveness.look(
            now_ms,
            silent_ms=now_ms - self.connection.last_received_ms,
            token_left_ms=self._token_left_ms(),
            owes=self.delivery.in_flight > 0,
            waiting_bytes=self.connection.buffered_bytes,
        )
        if found.close is not None:
            self.close(found.close, found.reason)
        elif found.ping:
            self.connection.ping()

    def _token(self) -> Identity:
        if self.identity is None:
            raise AuthError("no token: give it in the handshake or in `hello`", reason="no_token")
        return self.identity

    def _token_left_ms(self) -> int:
        return self._token().expires_ms - self._host.clock.now_ms()

    def beaten(self, beat: Beat, reads_then: int) -> None:
        """Redis answered a heartbeat; `reads_then` is `reads` when it was asked."""
        if self.state is not State.OPEN:
            return
        if beat.state is BeatState.LOST:
            self.lost()
        elif beat.state is BeatState.MISSING:
            self.reattach("missing")
        elif beat.pending > self.delivery.outstanding and self._reads == reads_then:
            # More is pending than is held here: the reply of a read was lost (D1).
            self.reattach("sweep")
        elif beat.unread:
            self.apply(moves.Woken())

    @property
    def reads(self) -> int:
        """Counts every read that was written or answered: two equal counts mean that none was under way between
        them.
        """
        return self._reads

    def count_read(self) -> None:
        """A read was written or answered."""
        self._reads += 1

    # --- the end
    # --------------------------------------------------------------------------------------------------------

    def close(self, code: CloseCode, reason: str) -> None:
        """Ends the session on this connection, and the connection. Acks that came before are still stored."""
        if self.state is State.CLOSED:
            return
        self._close_code = code
        connection = self.connection
        self._end()
        connection.close(int(code), reason)

    def _end(self) -> None:
        if self.state is State.CLOSED:
            return
        seated = self.state in (State.ATTACHING, State.OPEN)
        self.state = State.CLOSED
        self.paused_frames.clear()
        self._host.unseat(self)
        if seated:
            cursor = self.delivery.cursor
            self.delivery.handle(moves.Closed(), 0)
            self._cursor_said = cursor
            if self._close_code is not CloseCode.SUPERSEDED:
                self._host.leave_session(self)

    @property
    def last_cursor(self) -> EntryId:
        """Where it stood when it ended."""
        return self._cursor_said or ENTRY_ZERO
