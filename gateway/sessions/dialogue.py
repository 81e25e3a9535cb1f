"""What a client says, and when it may: bytes become frames at the rate of its tier, and frames become calls of the
session. What the client got wrong is answered here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, assert_never

from eventbus import moves, wire
from eventbus.errors import AuthError, BadFrame, CloseCode, EventBusError, Forbidden, UnknownOp
from gateway.access.limits import FrameLimit, FrameVerdict
from gateway.sessions.host import Host
from gateway.sessions.wheel import NEVER_MS
from gateway.transport.handshake import Subprotocol

if TYPE_CHECKING:
    from gateway.sessions.session import Session

__all__ = ["Dialogue"]

_FORMATS: Final = {Subprotocol.JSON: wire.Format.JSON, Subprotocol.MSGPACK: wire.Format.MSGPACK}


class Dialogue:
    """The client's side of one connection. A frame above the tier's rate is held, and nothing more is read from the
    socket until it may be handled; while the session is attached for the first time nothing is read either.

    Args:
        session: whose client it is.
        host: the node.
        subprotocol: how its frames are encoded.

    Attributes:
        resume_due_ms: when the held frames may be handled; monotonic.
    """

    __slots__ = ("_held", "_host", "_limit", "_session", "format", "resume_due_ms")

    def __init__(self, session: Session, host: Host, subprotocol: Subprotocol) -> None:
        self._session = session
        self._host = host
        self._limit: FrameLimit | None = None
        self._held: list[bytes] = []
        self.format = _FORMATS[subprotocol]
        self.resume_due_ms = NEVER_MS

    @property
    def held(self) -> int:
        """How many messages wait."""
        return len(self._held)

    def end(self) -> None:
        """Forgets what waits: the connection is over."""
        self._held.clear()

    def take(self, payload: bytes) -> None:
        """Handles a message, or holds it."""
        if self._held or self._session.is_attaching_first:
            self._held.append(payload)
        elif not self._held_back(payload):
            self._handle(payload)

    def resume(self) -> None:
        """Handles what is held, until something holds it back again."""
        self.resume_due_ms = NEVER_MS
        held, self._held = self._held, []
        for index, payload in enumerate(held):
            if not self._session.is_open:
                return
            if self._held_back(payload):
                self._held += held[index + 1 :]
                return
            self._handle(payload)
        if self._session.is_open:
            self._session.connection.resume_reading()

    def _held_back(self, payload: bytes) -> bool:
        """Whether the client's rate keeps a message from being handled now."""
        session = self._session
        if not session.is_open:
            return False  # a client that has no session yet sends `hello` and nothing else
        now_ms = self._host.clock.monotonic_ms()
        limit = self._limit
        if limit is None:
            tier = session.opening.tier
            limit = self._limit = FrameLimit(
                tier.frames_per_second,
                now_ms,
                bytes_per_second=tier.bytes_per_second,
                max_frame_bytes=self._host.settings.max_frame_bytes,
            )
        verdict = limit.take(now_ms, len(payload))
        if verdict is FrameVerdict.READ:
            return False
        if verdict is FrameVerdict.CLOSE:
            session.close(CloseCode.RATE_LIMITED, "more frames than the tier allows for 30 s")
            return True
        self._held.append(payload)
        self.resume_due_ms = now_ms + limit.resume_in_ms(now_ms, len(payload))
        session.connection.pause_reading()
        self._host.place(session)
        return True

    def _handle(self, payload: bytes) -> None:
        self._host.counters.frames_received += 1
        session = self._session
        try:
            frame = wire.decode_client(payload, self.format)
            if session.is_open:
                self._answer(frame)
            elif isinstance(frame, wire.Hello):
                session.open(frame)
            else:
                raise BadFrame("op", "the first frame must be `hello`")
        except UnknownOp as error:
            self._refuse(error, error.ref)
            if not session.is_open:
                session.close(CloseCode.PROTOCOL_VIOLATION, "the first frame must be `hello`")
        except (AuthError, BadFrame, Forbidden) as error:
            self._refuse(error, None)
            session.close(error.close_code or CloseCode.PROTOCOL_VIOLATION, str(error))

    def _refuse(self, error: EventBusError, ref: wire.Ref | None) -> None:
        self._host.counters.frames_refused[error.code] += 1
        self._session.send(wire.ErrorFrame(code=error.code, message=str(error), ref=ref))

    def _answer(self, frame: wire.ClientFrame) -> None:
        session = self._session
        match frame:
            case wire.Ack():
                session.acked(frame)
            case wire.Nack():
                self._host.counters.events_nacked += 1
                session.apply(moves.Nacked(frame.id, frame.delay_ms))
            case wire.Working():
                session.apply(moves.Working(frame.ids))
            case wire.Ping():
                session.send(wire.Pong(ref=frame.ref))
            case wire.SetFilter():
                session.filter = frame.filter
                session.send(wire.Filtered(ref=frame.ref))
                self._host.filtered(session)
            case wire.Refresh():
                session.refresh(frame)
            case wire.Hello():
                session.send(wire.ErrorFrame(code="unexpected_hello", message="the session is open already"))
            case wire.Send():
                self._host.take_command(session, frame)
            case _:
                assert_never(frame)
