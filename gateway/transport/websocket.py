"""The socket: an asyncio.Protocol around websockets' Sans-I/O `ServerProtocol`, known to `gateway.transport.rfc6455`.

What a client sends is cut into whole frames here. Small and middle-sized data frames, which is what acks are, are
unmasked and handed on directly; everything else (control frames, fragments, what is illegal) goes to a `FrameParser`
that is made for the frame and kept only while a fragmented message is under way: kept for a connection's life it
costs 8 KB, and so 1.4 KB.

What is sent waits in an `Outbox` until the end of the loop's turn and leaves in one write. A connection has no task
and, but for its close, no timer. A peer that breaks the rules gets its close code, and 1011 is never sent.
"""

from __future__ import annotations

import asyncio
import logging
from enum import Enum
from typing import Final

from eventbus.clock import seconds
from eventbus.errors import CloseCode, EventBusError
from gateway.transport.framing import SOCKET, Framing
from gateway.transport.handshake import (
    Accept,
    AcceptThenClose,
    Decision,
    Gatekeeper,
    Reject,
    Subprotocol,
    UpgradeRequest,
)
from gateway.transport.outbox import TOO_LARGE, Backlog, Outbox, close_frame, frame_size, ping_frame, pong_frame
from gateway.transport.rfc6455 import EMPTY_CLOSE, Broken, Frame, FrameParser, Opcode, PeerClose, unmask
from gateway.transport.sockets import NOBODY, Handler, Sockets, SocketSettings

__all__ = [
    "Accept",
    "AcceptThenClose",
    "Connection",
    "Decision",
    "Gatekeeper",
    "Handler",
    "Reject",
    "SocketSettings",
    "Sockets",
    "Subprotocol",
    "UpgradeRequest",
]

_log: Final = logging.getLogger(__name__)
_PING: Final = ping_frame()
_INTERNAL_ERROR: Final = 1011


class _State(Enum):
    OPEN = "open"
    CLOSING = "closing"  # a close frame is sent, the peer's is awaited
    ENDED = "ended"  # the transport is closing or gone


class Connection(asyncio.Protocol):
    """One open WebSocket. Made by the handshake; told of by `Handler.on_open`.

    Attributes:
        subprotocol: how its frames are encoded.
        peer: the address that the connection came from.
        client: the client's address behind trusted proxies.
        last_received_ms: when the last bytes came, of whatever kind; monotonic. It stands still while reading is
            paused.
    """

    __slots__ = (
        "_closing",
        "_control_frames",
        "_control_since_ms",
        "_fast",
        "_fragments",
        "_halted",
        "_handler",
        "_held",
        "_outbox",
        "_owed_pong",
        "_parser",
        "_sockets",
        "_state",
        "_timer",
        "_transport",
        "_wanted",
        "_write_paused",
        "client",
        "last_received_ms",
        "peer",
        "subprotocol",
    )

    def __init__(
        self, sockets: Sockets, transport: asyncio.Transport, handler: Handler, request: UpgradeRequest
    ) -> None:
        now_ms = sockets.clock.monotonic_ms()
        self.subprotocol = request.subprotocol
        self.peer = request.peer
        self.client = request.client
        self.last_received_ms = now_ms
        self._sockets = sockets
        self._transport = transport
        self._handler = handler
        self._state = _State.OPEN
        self._outbox = Outbox(now_ms)
        self._write_paused = False
        self._owed_pong: bytes | None = None
        # First byte of a whole data frame of the right type: FIN, no reserved bit, opcode.
        self._fast = 0x81 if request.subprotocol is Subprotocol.JSON else 0x82
        self._held: bytearray | None = None  # bytes that no frame was made of yet
        self._wanted = 0  # how many of them make one
        self._halted = False  # parse nothing: reading is paused, or the peer broke the rules
        self._parser: FrameParser | None = None
        self._fragments: bytearray | None = None
        self._control_frames = 0
        self._control_since_ms = now_ms
        self._closing: tuple[int, str] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        where = self.client if self.client == self.peer else f"{self.client} by {self.peer}"
        state = (
            self._state.value + (", not reading" if self._write_paused else "") + (", paused" if self._halted else "")
        )
        return f"<Connection {where} {self.subprotocol.name.lower()} {state}, {self.buffered_bytes} bytes waiting>"

    # What the handler and the node call.

    @property
    def framing(self) -> Framing:
        """How what is sent becomes bytes."""
        return SOCKET[self.subprotocol]

    @property
    def is_open(self) -> bool:
        """Whether frames can be sent: no close was sent or received, and the transport is there."""
        return self._state is _State.OPEN

    @property
    def writable(self) -> bool:
        """Whether it makes sense to send more now; `Handler.on_writable` tells when it does again."""
        return not self._write_paused and self._state is _State.OPEN

    @property
    def buffered_bytes(self) -> int:
        """What waits to be written, here and in the transport."""
        if self._state is _State.ENDED:
            return 0
        return self._outbox.queued_bytes + self._transport.get_write_buffer_size()

    def send(self, frame: bytes) -> None:
        """Queue a prebuilt frame (`gateway.transport.outbox`) for the end of this turn of the loop; dropped when
        no longer open.
        """
        if self._state is not _State.OPEN:
            return
        outbox = self._outbox
        if not outbox and not self._write_paused:
            self._sockets.mark(self)
        outbox.append(frame)
        if outbox.queued_bytes > self._sockets.settings.max_queued_bytes:
            self.close(CloseCode.SLOW_CONSUMER, f"{outbox.drop()} bytes waiting")

    def ping(self) -> None:
        """Queue a ping; the answer shows in `last_received_ms`."""
        self.send(_PING)

    def flush(self) -> None:
        """Write what is queued now, and not at the end of the turn; nothing while the peer does not read."""
        if self._outbox and not self._write_paused and self._state is not _State.ENDED:
            self._transport.write(self._outbox.take())

    def backlog(self, now_ms: int) -> Backlog:
        """Look how much waits and since when nothing went away; called regularly for a true `stalled_ms`."""
        held = 0 if self._state is _State.ENDED else self._transport.get_write_buffer_size()
        return self._outbox.observe(held, now_ms)

    def pause_reading(self) -> None:
        """Take nothing more from the client, not even what has arrived; idempotent."""
        if self._state is _State.OPEN and not self._halted:
            self._halted = True
            if not self._transport.is_closing():
                self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Go on after `pause_reading`, with what had arrived first; idempotent."""
        if self._state is _State.OPEN and self._halted:
            self._resume()

    def close(self, code: int, reason: str = "") -> None:
        """Send what is queued and a close frame, and wait for the peer's, a bounded time; without effect when closing.

        What is queued for a peer that does not read is dropped: the close comes first then.
        """
        if self._state is not _State.OPEN:
            return
        if self._write_paused:
            self._outbox.drop()
        self._state = _State.CLOSING
        self._closing = (code, reason)
        self._outbox.append(close_frame(code, reason))
        self._transport.write(self._outbox.take())
        self._arm()
        if self._halted:  # the peer's close frame has to be seen
            self._resume()

    def abort(self) -> None:
        """Drop the connection without a word; `on_close` gets 1006 unless a close frame went before."""
        if self._state is not _State.ENDED:
            self._state = _State.ENDED
            self._transport.abort()

    # What the transport and the handshake call.

    def open(self, early: bytes) -> None:
        """Take the transport over, after the 101 was written.

        Args:
            early: bytes that came behind the request.
        """
        self._transport.set_write_buffer_limits(high=self._sockets.settings.write_buffer_bytes)
        self._transport.set_protocol(self)
        self._sockets.connections.add(self)
        try:
            self._handler.on_open(self)
        except Exception as error:
            self._defect(error)
        if early:
            self.data_received(early)

    def data_received(self, data: bytes) -> None:
        self.last_received_ms = self._sockets.clock.monotonic_ms()
        if self._halted and self._state is not _State.OPEN:
            return  # behind a violation nothing is read
        held = self._held
        if held is not None:
            held += data
            if self._halted or len(held) < self._wanted:
                return
            data, self._held = bytes(held), None
        elif self._halted:
            self._held = bytearray(data)
            return
        self._parse(data)

    def pause_writing(self) -> None:
        self._write_paused = True

    def resume_writing(self) -> None:
        self._write_paused = False
        if self._state is not _State.OPEN:
            return
        if self._owed_pong is not None:
            self._outbox.append(pong_frame(self._owed_pong))
            self._owed_pong = None
        self.flush()
        if self.writable:
            try:
                self._handler.on_writable()
            except Exception as error:
                self._defect(error)

    def connection_lost(self, exc: Exception | None) -> None:
        self._state = _State.ENDED
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._outbox.drop()
        self._held = self._parser = self._fragments = None
        handler, self._handler = self._handler, NOBODY
        code, reason = self._closing or (int(CloseCode.ABNORMAL), "")
        try:
            handler.on_close(code, reason)
        except Exception:
            _log.exception("on_close of %r failed", self)
        self._sockets.forget(self)

    # Frames.

    def _parse(self, data: bytes) -> None:
        """Handle the whole frames in `data`, and hold what is left."""
        fast, limit = self._fast, self._sockets.settings.max_frame_bytes
        start, end, wanted = 0, len(data), 0
        while start < end and not self._halted and self._state is not _State.ENDED:
            plain = data[start] == fast and self._fragments is None
            # The usual case, an ack, first: a whole data frame of less than 126 bytes, masked.
            if plain and end - start >= 6 and 0x80 <= (second := data[start + 1]) < 0xFE:
                stop = start + second - 0x80 + 6
                if stop <= end:
                    self._deliver(unmask(data[start + 6 : stop], data[start + 2 : start + 6]))
                    start = stop
                    continue
            size = frame_size(data, start, limit)
            if size == TOO_LARGE:
                self._violation(CloseCode.FRAME_TOO_LARGE, f"a frame is longer than {limit} bytes")
                return
            stop = start + size
            if not size or stop > end:
                wanted = size
                break
            if plain and data[start + 1] >= 0xFE:
                body = start + (8 if data[start + 1] == 0xFE else 14)
                self._deliver(unmask(data[body:stop], data[body - 4 : body]))
            else:
                self._receive(data[start:stop])
            start = stop
        if start < end and self._state is not _State.ENDED:
            self._held = bytearray(data[start:])
            self._wanted = wanted

    def _receive(self, data: bytes) -> None:
        """Hand one whole frame to the parser, made for it unless a fragmented message is under way."""
        parser = self._parser or FrameParser(self._sockets.settings.max_frame_bytes)
        for found in parser.receive(data):
            if isinstance(found, Broken):
                self._violation(found.code, found.reason)
                return
            if isinstance(found, PeerClose):
                self._peer_closes(found.code, found.reason)
            elif self._state is _State.OPEN:
                self._slow_frame(found)
        self._parser = parser if self._fragments is not None else None

    def _slow_frame(self, frame: Frame) -> None:
        opcode = frame.opcode
        if not frame.fin or opcode is Opcode.PING or opcode is Opcode.PONG:
            self._count_control_frame()
        if opcode is Opcode.PING:
            if self._write_paused:
                # RFC 6455, 5.5.3: an endpoint MAY answer only the most recent ping; else a deaf peer fills the memory.
                self._owed_pong = bytes(frame.data)
            else:
                self.send(pong_frame(bytes(frame.data)))
        elif opcode is Opcode.CONT:
            self._continue_message(frame)
        elif opcode is not Opcode.PONG:
            if opcode != self._fast & 0x0F:
                wanted = "text" if self._fast == 0x81 else "binary"
                self._violation(CloseCode.UNSUPPORTED_DATA, f"only {wanted} frames on {self.subprotocol}")
            elif frame.fin:
                self._deliver(bytes(frame.data))
            else:
                self._fragments = bytearray(frame.data)

    def _continue_message(self, frame: Frame) -> None:
        fragments = self._fragments
        if fragments is None:  # the parser refuses a continuation of nothing
            return
        fragments += frame.data
        limit = self._sockets.settings.max_frame_bytes
        if len(fragments) > limit:
            self._violation(CloseCode.FRAME_TOO_LARGE, f"a message is longer than {limit} bytes")
        elif frame.fin:
            self._fragments = None
            self._deliver(bytes(fragments))

    def _deliver(self, payload: bytes) -> None:
        if self._state is not _State.OPEN:
            return
        if self._fast == 0x81 and not payload.isascii():
            try:
                payload.decode()
            except UnicodeDecodeError as error:
                self._violation(CloseCode.INVALID_DATA, f"invalid UTF-8 at byte {error.start}")
                return
        try:
            self._handler.on_message(payload)
        except Exception as error:
            self._defect(error)

    def _count_control_frame(self) -> None:
        if self.last_received_ms - self._control_since_ms >= 1_000:
            self._control_since_ms, self._control_frames = self.last_received_ms, 0
        self._control_frames += 1
        if self._control_frames > self._sockets.settings.max_control_frames:
            self._violation(CloseCode.RATE_LIMITED, "too many control frames and fragments")

    # The end.

    def _violation(self, code: CloseCode, reason: str) -> None:
        """Close for what the peer did, and read nothing more: what follows cannot be trusted to be frames."""
        self._held = self._parser = self._fragments = None
        if self._state is not _State.OPEN:
            self._end()
            return
        self.close(code, reason)
        self._halted = True
        if self._transport.can_write_eof():  # tells the peer that nothing comes behind the close frame
            self._transport.write_eof()

    def _peer_closes(self, code: int, reason: str) -> None:
        """Answer the peer's close frame with its own code, and hang up, which is the server's part."""
        if self._state is _State.OPEN:
            self._closing = (code, reason)
            answer = {EMPTY_CLOSE: None, _INTERNAL_ERROR: int(CloseCode.NORMAL)}.get(code, code)
            if self._write_paused:
                self._outbox.drop()
            self._outbox.append(close_frame(answer))
            self._transport.write(self._outbox.take())
            self._arm()
        self._end()

    def _end(self) -> None:
        self._state = _State.ENDED
        self._transport.close()

    def _defect(self, error: Exception) -> None:
        """Close for what the handler raised."""
        code = error.close_code if isinstance(error, EventBusError) else None
        if code is None:
            _log.error("the handler of %r failed", self, exc_info=error)
            self.close(CloseCode.OVERLOADED, "internal error")
        else:
            self.close(code, str(error))

    def _resume(self) -> None:
        self._halted = False
        if not self._transport.is_closing():
            self._transport.resume_reading()
        if self._held is not None:
            # Not from here: the handler may be in the middle of a message.
            self._sockets.loop.call_soon(self._parse_held)

    def _parse_held(self) -> None:
        if self._held is not None and not self._halted and self._state is not _State.ENDED:
            data, self._held = bytes(self._held), None
            self._parse(data)

    def _arm(self) -> None:
        """Bound the close: `connection_lost` cancels it."""
        if self._timer is None:
            delay = seconds(self._sockets.settings.close_timeout_ms)
            self._timer = self._sockets.loop.call_later(delay, self._transport.abort)
