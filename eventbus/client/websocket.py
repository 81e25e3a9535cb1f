"""Opens the socket of a subscriber. It alone imports websockets."""

from __future__ import annotations

import ssl as tls
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, cast

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.typing import Subprotocol

from eventbus.client.callbacks import told
from eventbus.client.connection import ABNORMAL, CLOSE_TIMEOUT_MS, Socket, SocketClosed
from eventbus.client.state import refusal_text, retry_after_ms
from eventbus.clock import seconds
from eventbus.wire import Format

__all__ = ["Door", "TurnedAway"]

OPEN_TIMEOUT_MS: Final = 15_000
MAX_MESSAGE_BYTES: Final = 32 * 1024 * 1024
"""A frame is at most 1 MiB, unless a single event is more; none that a node takes is larger than this."""


class TurnedAway(Exception):
    """The node, or what stands before it, answered with a status instead of a socket.

    Args:
        status: of HTTP.
        message: what its body says.
        retry_ms: what `Retry-After` asked for.
    """

    def __init__(self, status: int, message: str, retry_ms: int | None) -> None:
        super().__init__(status, message, retry_ms)
        self.status = status
        self.message = message
        self.retry_ms = retry_ms


@dataclass(frozen=True, slots=True, kw_only=True)
class Door:
    """Where sockets are opened, and how."""

    url: str
    format: Format
    ssl: tls.SSLContext | None
    proxy: str | None

    async def open(self, token: str) -> Socket:
        """Open one. A cancelled call leaves none behind.

        Raises:
            TurnedAway: there was an answer, and it was no.
            SocketClosed: there was none.
        """
        more: dict[str, Any] = {} if self.ssl is None else {"ssl": self.ssl}
        try:
            # `create_connection` decides the class, which the declared result does not know.
            return cast(
                _Socket,
                await connect(
                    self.url,
                    additional_headers={"Authorization": f"Bearer {token}"},
                    subprotocols=[Subprotocol(self.format.subprotocol)],
                    compression=None,
                    proxy=self.proxy,
                    open_timeout=seconds(OPEN_TIMEOUT_MS),
                    ping_interval=None,
                    close_timeout=seconds(CLOSE_TIMEOUT_MS),
                    max_size=MAX_MESSAGE_BYTES,
                    create_connection=_Socket,
                    **more,
                ),
            )
        except InvalidStatus as error:
            answer = error.response
            raise TurnedAway(
                answer.status_code,
                refusal_text(bytes(answer.body)),
                retry_after_ms(answer.headers.get("Retry-After")),
            ) from None
        except (OSError, EOFError, WebSocketException) as error:
            raise SocketClosed(ABNORMAL, told(error)) from error


class _Socket(ClientConnection):
    """The socket of websockets as `eventbus.client.connection.Socket`."""

    _heard: Callable[[], None] | None = None

    def watch(self, heard: Callable[[], None]) -> None:
        self._heard = heard

    def data_received(self, data: bytes) -> None:
        if self._heard is not None:
            self._heard()
        super().data_received(data)

    async def send_frame(self, payload: bytes, format: Format) -> None:
        try:
            await self.send(payload, text=format is Format.JSON)
        except ConnectionClosed as error:
            raise _closed(error) from None

    async def receive(self) -> bytes:
        try:
            return await self.recv(decode=False)
        except ConnectionClosed as error:
            raise _closed(error) from None

    async def leave(self, code: int, reason: str) -> None:
        await self.close(code, reason)

    def abort(self) -> None:
        self.transport.abort()


def _closed(error: ConnectionClosed) -> SocketClosed:
    if error.rcvd is not None:
        return SocketClosed(error.rcvd.code, error.rcvd.reason)
    # Nothing but a broken rule makes websockets close by itself, and it says which.
    refused = f"{error.sent.code} {error.sent.reason}" if error.sent is not None and error.sent.code != 1000 else ""
    return SocketClosed(ABNORMAL, "" if error.__cause__ is None else told(error.__cause__), refused)
