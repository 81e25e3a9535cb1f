"""One connection of a session: from the socket's messages to the delivery machine, and from its effects to the socket
and Redis.

A session is a handler of callbacks and owns no task. What must wait (the attach, the store) is handed to its `Host`,
which calls back. The order of a life: `on_open` -> `open` (the client's `hello`) -> `attached` -> frames and reads ->
`close` -> `on_close`. What the client says goes through its `Dialogue`, what it asked for at first is its `Opening`,
and what its machine says is carried out in `gateway.sessions.effects`.

The class is long on purpose: a node holds tens of thousands of them, and each object more would cost memory in all.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Final

from eventbus import moves, wire
from eventbus.delivery import Delivery, Phase
from eventbus.errors import CloseCode, EventBusError
from eventbus.event import EventHead
from eventbus.fields import Level
from eventbus.ids import ENTRY_ZERO, ConnectionId, EntryId, SessionId, UserId
from eventbus.store import Attach, Attached, AttachRefused, Beat, BeatState, Fence, ReleaseReason
from eventbus.store.revoking import RevocationKind
from eventbus.tracing import Outcome
from gateway.access.auth import Identity
from gateway.sessions.dialogue import Dialogue
from gateway.sessions.effects import carry_out, confirm, ended, send_again
from gateway.sessions.host import Host, SessionSettings
from gateway.sessions.liveness import Liveness
from gateway.sessions.opening import Opening, check_refreshed, token_of
from gateway.sessions.wheel import NEVER_MS
from gateway.transport.framing import Framing
from gateway.transport.payload import Payload
from gateway.transport.sockets import ClientConnection

__all__ = ["Host", "Session", "SessionSettings", "State"]

logger = logging.getLogger(__name__)

_WOKEN: Final = moves.Woken()


class State(StrEnum):
    """Where a connection stands."""

    HELLO = "hello"
    ATTACHING = "attaching"
    OPEN = "open"
    CLOSED = "closed"


class Session:
    """A connection and its delivery machine.

    Args:
        host: the node.
        identity: who it is, when the handshake told; else `hello` must.
        left: called once when the connection is over.

    Attributes:
        connection: the socket, or what stands for it; there from `on_open` on.
        framing: how what it is sent becomes bytes; there from `on_open` on.
        dialogue: what the client says; there from `on_open` on.
        opening: what the client asked for; there from `open` on.
        delivery: the machine; there from `open` on.
        filter: what the client wants of what is read from here on; None is everything.
        attaching: an attach is under way.
        attaches: how many were answered: what was read before the last one may not fit any more.
        primary: the server that answered the last one.
    """

    __slots__ = (
        "_close_code",
        "_doubted",
        "_host",
        "_last_cursor",
        "_left",
        "_liveness",
        "_reads",
        "_silence_due_ms",
        "attaches",
        "attaching",
        "connection",
        "connection_id",
        "delivery",
        "dialogue",
        "filter",
        "framing",
        "identity",
        "opened_ms",
        "opening",
        "primary",
        "state",
        "user",
        "wheel_slot",
    )

    def __init__(self, host: Host, identity: Identity | None, *, left: Callable[[], None] = lambda: None) -> None:
        self._host = host
        self._left = left
        self.identity = identity
        self.state = State.HELLO
        self.user = UserId("")
        self.connection_id = ConnectionId("")
        self.wheel_slot = -1
        self.attaching = False
        self.attaches = 0
        self.primary = ""
        self.filter: wire.Filter | None = None
        self._doubted = False
        self._reads = 0
        self._close_code: CloseCode | None = None
        self._last_cursor = ENTRY_ZERO
        # Until the session is open: when the client (`hello`) or the store (the attach) was silent for too long.
        self._silence_due_ms = NEVER_MS

    def __repr__(self) -> str:
        name = f"{self.user}/{self.session_id}" if self.user else "unnamed"
        return f"<Session {name} {self.state} {getattr(self, 'delivery', None)!r}>"

    @property
    def is_open(self) -> bool:
        """Whether it is attached and its socket is there."""
        return self.state is State.OPEN

    @property
    def is_attaching_first(self) -> bool:
        """Whether `hello` was taken and the store has not answered yet."""
        return self.state is State.ATTACHING

    @property
    def is_closed(self) -> bool:
        """Whether its life is over."""
        return self.state is State.CLOSED

    @property
    def held_bytes(self) -> int:
        """What is held for its client, about: the entries of its window, and what waits to be written."""
        if not self.user or self.state is State.CLOSED:
            return 0
        return self.delivery.held_bytes + self.connection.buffered_bytes

    @property
    def session_id(self) -> SessionId:
        """The session's id, empty before `hello`."""
        return self.opening.fence.session if self.user else SessionId("")

    @property
    def fence(self) -> Fence:
        """For whom it acts."""
        return self.opening.fence

    # --- the socket's callbacks -------------------------------------------------------------------------------------

    def on_open(self, connection: ClientConnection) -> None:
        """The handshake is through: `hello` must come in time."""
        now_ms = self._host.clock.monotonic_ms()
        self.connection = connection
        self.framing: Framing = connection.framing
        self.dialogue = Dialogue(self, self._host, connection.subprotocol)
        self.opened_ms = now_ms
        self._silence_due_ms = now_ms + self._host.settings.hello_timeout_ms
        self._host.counters.connections_opened += 1
        self._host.place(self)

    def on_message(self, payload: bytes) -> None:
        """A whole message came."""
        if self.state is not State.CLOSED:
            self.dialogue.take(payload)

    def on_writable(self) -> None:
        """The peer reads again; what waited goes out by itself."""
        if self.state is State.OPEN:
            self._host.writable(self)
            self._after_input()

    def on_close(self, code: int, reason: str) -> None:
        """The socket is gone, whoever closed it."""
        self._host.counters.connections_closed[int(self._close_code or code)] += 1
        self._end()
        self._left()

    # --- opening ----------------------------------------------------------------------------------------------------

    def open(self, hello: wire.Hello) -> None:
        """Takes the client's `hello`; the store's answer to the attach is `attached`.

        Raises:
            AuthError: there is no good token.
            Forbidden: the token does not allow it, or the session was revoked.
        """
        host = self._host
        if self.identity is None and hello.token is not None:
            self.identity = host.authenticate(hello.token)
        identity = token_of(self.identity)
        opening = Opening(hello, identity, host.tier(identity.tier), host.settings)
        # The handshake was a moment ago, and did not know the session.
        host.check_revoked(identity, opening.fence.session)
        self.opening = opening
        self.user = opening.fence.user
        self.connection_id = opening.fence.connection
        self.filter = hello.filter
        self.delivery = Delivery(host.settings.policy, window=opening.window, cursor=opening.cursor or ENTRY_ZERO)
        self._last_cursor = opening.cursor or ENTRY_ZERO
        self.state = State.ATTACHING
        self.attaching = True
        self._silence_due_ms = host.clock.monotonic_ms() + host.settings.store_wait_ms
        host.place(self)
        self.connection.pause_reading()
        # Seated before the attach is written: a wake-up may come before its answer.
        host.seat(self)
        host.attach(self)

    def attach_request(self) -> Attach:
        """The attach to make now: the first one takes over, a later one never does (D3)."""
        if self.delivery.phase is Phase.ATTACHING:
            return self.opening.first_attach()
        return self.opening.attach_again(self.delivery.furthest)

    def reattach(self, cause: str) -> None:
        """Entries may be pending that nobody holds: attaches again with the socket open (D1)."""
        if self.state is State.OPEN and not self.attaching:
            self.attaching = True
            self._host.counters.reattaches[cause] += 1
            self.apply(moves.ReattachStarted())
            self._host.attach(self)

    def attached(self, answer: Attached | AttachRefused) -> None:
        """The store answered an attach."""
        try:
            self._attached(answer)
        except Exception as error:
            self._failed(error)

    def unanswered(self) -> None:
        """The store did not answer an attach; it is tried again."""
        self._host.attach_unanswered()

    def _attached(self, answer: Attached | AttachRefused) -> None:
        self.attaching = False
        if self.state is State.CLOSED:
            if isinstance(answer, Attached):
                # The hold may have been written after it had been given up: a session that is gone would count as live.
                self._host.leave_session(self)
            return
        if isinstance(answer, AttachRefused):
            self._refused(answer)
            return
        self.attaches += 1
        self.primary = answer.primary
        self.opening.answered(answer)
        if self.state is State.ATTACHING:
            self._opened(answer)
        self.apply(moves.Opened(position=answer.position, tail=answer.tail, pending=answer.pending, gap=answer.gap))
        if self.dialogue.held:
            self.dialogue.resume()

    def _refused(self, answer: AttachRefused) -> None:
        if answer is AttachRefused.LOST:
            self.lost()
            return
        tier = self.opening.tier
        message = f"the tier {tier.name!r} allows {tier.live_sessions} live sessions"
        self.send(wire.ErrorFrame(code="too_many_sessions", message=message))
        self.close(CloseCode.RATE_LIMITED, "too_many_sessions")

    def _opened(self, answer: Attached) -> None:
        host = self._host
        now_ms = host.clock.monotonic_ms()
        self.state = State.OPEN
        self._silence_due_ms = NEVER_MS
        host.counters.sessions_attached["resumed" if answer.resumed else "new"] += 1
        self._liveness = Liveness(
            host.settings.liveness,
            connection_timeout_ms=self.opening.tier.connection_timeout_ms,
            now_ms=now_ms,
            spread=int(self.connection_id[:6], 16),
        )
        self._liveness.token_ends(now_ms, self._token_left_ms())
        if self._doubted:
            self._liveness.beat_due_ms = now_ms
        self.send(self.opening.welcome(answer, token_of(self.identity).expires_ms))
        self.connection.resume_reading()
        host.place(self)

    def disowned(self) -> None:
        """Redis says that the session is not this connection's: another has it, or nobody, for its field in the live
        hash has aged out while the node stood still. The attach finds out which, and takes it from nobody (D2, D3).
        """
        self.reattach("disowned")

    def lost(self) -> None:
        """Another connection has the session (D2).

        It may be one of the past when the store was in trouble a moment ago: a failover has taken this one's attach
        back, or the attach of a connection that is gone came late. Then the client, whose socket is this one, comes
        back and takes its session; "superseded" would keep it away for good.
        """
        if self._host.store_was_in_trouble:
            self.close(CloseCode.STORE_UNAVAILABLE, "the store does not know who has the session: open it again")
        else:
            self.close(CloseCode.SUPERSEDED, "the session was opened elsewhere")

    # --- what the client says ---------------------------------------------------------------------------------------

    def acked(self, ack: wire.Ack) -> None:
        """The client acks; every level releases, and the later ones imply it."""
        event: moves.Input = moves.Acked(ack.ids) if ack.ids is not None else moves.AckedUpTo(ack.upto or ENTRY_ZERO)
        effects = self.delivery.handle(event, self._host.clock.monotonic_ms())
        if ack.level is not Level.RECEIVED and confirm(self, self._host, ack, effects):
            self._after_input()
            return
        if not effects and ack.ref is not None:
            # Everything was acked before; the answer still waits for those acks to be stored.
            self._host.acknowledge(self, moves.Acknowledge(()), ack.ref)
        for effect in effects:
            if isinstance(effect, moves.Acknowledge):
                self._host.acknowledge(self, effect, ack.ref)
        self._after_input()

    def refresh(self, frame: wire.Refresh) -> None:
        """The client brings a new token.

        Raises:
            AuthError: it is not good.
            Forbidden: it is not of this user, or not for this session.
        """
        identity = self._host.authenticate(frame.token)
        check_refreshed(identity, self.fence)
        self._host.check_revoked(identity, self.fence.session)
        self.identity = identity
        self._liveness.token_ends(self._host.clock.monotonic_ms(), self._token_left_ms())
        self._host.place(self)
        self.send(wire.Refreshed(token_expires_ms=identity.expires_ms))

    # --- delivering -------------------------------------------------------------------------------------------------

    def apply(self, event: moves.Input) -> None:
        """Gives the machine an input and carries out what it says."""
        if self.state is State.CLOSED:
            return
        try:
            effects = self.delivery.handle(event, self._host.clock.monotonic_ms())
            if effects:
                carry_out(self, self._host, effects)
            self._after_input()
        except Exception as error:
            self._failed(error)

    def woken(self) -> None:
        """Something was stored for the user. Under load most wake-ups come before the read that the first asked for."""
        if not self.delivery.dirty:
            self.apply(_WOKEN)

    def _after_input(self) -> None:
        delivery = self.delivery
        if delivery.wants_read and self.connection.writable:
            # For a client that does not read nothing is fetched: in Redis it waits for less.
            self._host.want_read(self)
        if self.state is State.OPEN:
            due_ms, liveness = delivery.due_ms, self._liveness
            if due_ms < liveness.beat_due_ms and due_ms < liveness.look_due_ms:
                self._host.place(self)
            if delivery.reattach_wanted and not self.attaching:
                self.reattach("read_failed")

    def acks_stored(self, ids: Sequence[EntryId], released: int, ref: wire.Ref | None) -> None:
        """Acks are in Redis."""
        self._host.counters.events_acked += released
        try:
            ended(self, self._host, ids, Outcome.ACKED)
            self.apply(moves.Stored(ids))
            if ref is not None and self.state is not State.CLOSED:
                self.send(wire.Acked(ref=ref, count=released))
        except Exception as error:
            self._failed(error)

    def ack_is_late(self, ref: wire.Ref) -> None:
        """An ack that the client waits for can not be stored since 30 s; it is still kept and tried."""
        if self.state is State.OPEN:
            message = "the ack is kept and not stored yet"
            self.send(wire.ErrorFrame(code="store_unavailable", message=message, ref=ref))

    def acked_elsewhere(self, ids: Sequence[EntryId]) -> None:
        """Entries of this session were acked through another door (D11)."""
        ended(self, self._host, ids, Outcome.ACKED)
        if self.state is State.OPEN:
            self.apply(moves.AckedElsewhere(ids))

    def dead_lettered_elsewhere(self, ids: Sequence[EntryId]) -> None:
        """An operator made these entries of the session dead letters (D21)."""
        if self.state is State.OPEN:
            self.apply(moves.DeadLetteredElsewhere(ids))

    def released_elsewhere(self, ids: Sequence[EntryId]) -> None:
        """Another session of the user acked these `deliver: any` events (D19)."""
        if self.state is State.OPEN:
            self.apply(moves.ReleasedElsewhere(ids))

    def remind(self, items: Sequence[tuple[EntryId, Payload]], now_wall_ms: int) -> None:
        """Sends events again that were acked before, on whichever connection and by whichever session: the client drops
        what it has handled. What is in flight, filtered, not read yet or expired at `now_wall_ms` (Unix milliseconds of
        the store's clock) is left out; no ack is waited for.
        """
        if self.state is not State.OPEN:
            return
        again = [
            moves.Sending(entry, 2, payload)
            for entry, payload in items
            if self.delivery.may_remind(entry) and self.skip_of(payload.head, now_wall_ms) is None
        ]
        send_again(self, self._host, again)

    def send_again(self, ids: Sequence[EntryId]) -> None:
        """An operator wants these to be sent again at once, as far as they are in flight. Their time goes on, and no
        attempt is counted.
        """
        if self.state is not State.OPEN:
            return
        again = [sending for entry in ids if (sending := self.delivery.again(entry)) is not None]
        send_again(self, self._host, again)

    def skip_of(self, head: EventHead, now_wall_ms: int) -> ReleaseReason | None:
        """Why an entry is not for this session; None when it is."""
        if head.expires_ms is not None and head.expires_ms <= now_wall_ms:
            return ReleaseReason.EXPIRED
        if self.filter is not None and not self.filter.matches(head.type, head.thread, head.run):
            return ReleaseReason.FILTERED
        return None

    def send(self, frame: wire.ServerFrame) -> None:
        """Sends a frame of the protocol."""
        self.connection.send(self.framing.frame(frame))

    # --- time -------------------------------------------------------------------------------------------------------

    @property
    def due_ms(self) -> int:
        """When `on_clock` is wanted next."""
        if self.state is State.OPEN:
            return min(self._liveness.due_ms, self.delivery.due_ms, self.dialogue.resume_due_ms)
        return self._silence_due_ms if self.state is not State.CLOSED else NEVER_MS

    def on_clock(self, now_ms: int) -> bool:
        """Does what is due. Returns whether a heartbeat in Redis is wanted."""
        try:
            return self._on_clock(now_ms)
        except Exception as error:
            self._failed(error)
            return False

    def _on_clock(self, now_ms: int) -> bool:
        if self.state is not State.OPEN:
            if self.state is not State.CLOSED and self._silence_due_ms <= now_ms:
                self._too_late()
            return False
        liveness = self._liveness
        wants_beat = False
        if liveness.look_due_ms <= now_ms:
            self._look(now_ms)
        if self.dialogue.resume_due_ms <= now_ms:
            self.dialogue.resume()
        if liveness.beat_due_ms <= now_ms:
            liveness.beat_due_ms = now_ms + self._host.settings.liveness.beat_ms
            wants_beat = not self.attaching
        if self.delivery.due_ms <= now_ms:
            self.apply(moves.Clock())
        if not self.is_open:
            return False
        self._host.place(self)
        return wants_beat

    def _too_late(self) -> None:
        if self.state is State.HELLO:
            self.close(CloseCode.HELLO_TIMEOUT, "no hello in time")
        else:
            message = "the store does not answer"
            self.send(wire.ErrorFrame(code="store_unavailable", message=message))
            self.close(CloseCode.STORE_UNAVAILABLE, message)

    def _look(self, now_ms: int) -> None:
        found = self._liveness.look(
            now_ms,
            silent_ms=now_ms - self.connection.last_received_ms,
            token_left_ms=self._token_left_ms(),
            owes=self.delivery.in_flight > 0,
            backlog=self.connection.backlog(now_ms),
        )
        if found.close is not None:
            self.close(found.close, found.reason)
        elif found.ping:
            self.connection.ping()

    def _token_left_ms(self) -> int:
        return token_of(self.identity).expires_ms - self._host.clock.now_ms()

    def stalled(self, by_ms: int) -> None:
        """The node stood still: nobody is late for that (D23)."""
        if self.state is State.OPEN:
            self._liveness.stood_still(self._host.clock.monotonic_ms())
            self.apply(moves.Stalled(by_ms))

    # --- the hold in Redis ------------------------------------------------------------------------------------------

    @property
    def belief(self) -> tuple[int, int]:
        """What this side believes of its pending entries: how often it has read, and how many are pending at most."""
        return self._reads, self.delivery.outstanding

    def doubted(self) -> bool:
        """Another connection says that it took the session. Returns whether a heartbeat can tell now; while the first
        attach is under way it can not, and Redis is asked as soon as the session is open.
        """
        self._doubted = self.state is State.ATTACHING
        return self.state is State.OPEN

    def count_read(self) -> None:
        """A read was written or answered: two equal counts mean that none was under way between them."""
        self._reads += 1

    def beaten(self, beat: Beat, belief: tuple[int, int]) -> None:
        """Redis answered a heartbeat; `belief` is what it was when Redis was asked."""
        if self.state is not State.OPEN:
            return
        reads, outstanding = belief
        if beat.state is BeatState.LOST:
            self.lost()
        elif beat.state is BeatState.MISSING:
            self.reattach("missing")
        elif beat.pending > outstanding and self._reads == reads:
            # More is pending than was held here then, and nothing was read since: the reply of a read was lost (D1).
            self.reattach("sweep")
        elif beat.unread:
            self.apply(moves.Woken())

    # --- the end ----------------------------------------------------------------------------------------------------

    def close(self, code: CloseCode, reason: str) -> None:
        """Ends the session on this connection, and the connection. Acks that came before are still stored."""
        if self.state is not State.CLOSED:
            self.end(code)
            self.connection.close(int(code), reason)

    def _failed(self, error: Exception) -> None:
        """Something was raised that nobody expected, in a loop that serves all sessions of the node. One connection
        ends by it, as by a frame that its socket can not handle; what was pending comes with the next.
        """
        logger.error(
            "a session failed, and its connection ends",
            exc_info=error,
            extra={"user": self.user, "session": self.session_id},
        )
        code = error.close_code if isinstance(error, EventBusError) else None
        self.close(code or CloseCode.OVERLOADED, "internal error" if code is None else str(error))

    def revoked(self, kind: RevocationKind) -> None:
        """Its token, or the session itself, was revoked."""
        if kind is RevocationKind.SESSION:
            self.close(CloseCode.SESSION_ENDED, "the session was revoked")
        else:
            self.close(CloseCode.UNAUTHENTICATED, "the token was revoked")

    def end(self, code: CloseCode) -> None:
        """Ends the session on this connection, which the caller closes for the reason `code` when the hold is given
        up.
        """
        if self.state is not State.CLOSED:
            self._close_code = code
            self._end()

    def _end(self) -> None:
        if self.state is State.CLOSED:
            return
        seated = self.state in (State.ATTACHING, State.OPEN)
        self.state = State.CLOSED
        self._host.unseat(self)
        if seated:
            self.dialogue.end()
            if self._host.spans is not None:
                self._host.spans.left(self.connection_id)
            self._last_cursor = self.delivery.cursor
            self.delivery.handle(moves.Closed(), 0)
            if self._close_code is not CloseCode.SUPERSEDED:
                self._host.leave_session(self)

    @property
    def last_cursor(self) -> EntryId:
        """Where it stood when it ended."""
        return self._last_cursor
