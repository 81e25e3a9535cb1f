"""One connection to one server: bytes out, answers in. `eventbus.store.link` and `eventbus.store.ears` build on it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence
from typing import Any, cast

import hiredis

from eventbus.errors import StoreError, StoreUnavailable
from eventbus.store.command import Argument, pack
from eventbus.store.endpoint import Endpoint
from eventbus.store.translate import Refused, translate

__all__ = ["Connection", "ask", "connect"]


class Connection(asyncio.Protocol):
    """A connection that stands, or stood. Made by `connect`.

    Attributes:
        on_reply: called for each answer; one that is an error comes as a `Refused`.
        on_lost: called once when the connection ends by itself.
        on_room: called when the socket takes bytes again.
        full: the socket takes no more bytes for now.
    """

    __slots__ = ("_lost", "_reader", "_transport", "full", "on_lost", "on_reply", "on_room")

    def __init__(self) -> None:
        self._reader = hiredis.Reader(replyError=Refused)
        self._transport: asyncio.Transport | None = None
        self._lost: StoreError | None = None
        self.full = False
        self.on_reply: Callable[[Any], object] = _ignore
        self.on_lost: Callable[[StoreError], object] = _ignore
        self.on_room: Callable[[], object] = _ignore

    # --- asyncio.Protocol -------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        found = transport.get_extra_info("socket")
        if found is not None and found.family != socket.AF_UNIX:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    def data_received(self, data: bytes) -> None:
        reader = self._reader
        try:
            reader.feed(data)
            reply = reader.gets()
            while reply is not False:
                # Looked up each time: an answer may end the connection, and then nobody wants the next.
                self.on_reply(reply)
                reply = reader.gets()
        except hiredis.ProtocolError as error:
            self._end(StoreUnavailable(f"no connection to Redis: what came is not its protocol: {error}"))

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(translate(exc or EOFError("the server closed the connection")))

    def pause_writing(self) -> None:
        self.full = True

    def resume_writing(self) -> None:
        self.full = False
        self.on_room()

    # --- ours -------------------------------------------------------------------------------------------------------

    def take_over(
        self,
        on_reply: Callable[[Any], object],
        on_lost: Callable[[StoreError], object],
        on_room: Callable[[], object] | None = None,
    ) -> None:
        """Say who is told from now on; of an end that has come already, too."""
        self.on_reply, self.on_lost, self.on_room = on_reply, on_lost, on_room or _ignore
        if self._lost is not None:
            asyncio.get_running_loop().call_soon(on_lost, self._lost)

    def write(self, data: bytes) -> None:
        """Send; after the end it does nothing."""
        if self._transport is not None:
            self._transport.write(data)

    async def ask(self, commands: Sequence[tuple[Argument, ...]]) -> list[Any]:
        """Send commands and wait for their answers; only before `take_over`.

        Raises:
            StoreUnavailable: the connection ended.
        """
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        answers: list[Any] = []

        def answered(reply: Any) -> None:
            answers.append(reply)
            if len(answers) == len(commands) and not done.done():
                done.set_result(None)

        def lost(error: StoreError) -> None:
            if not done.done():
                done.set_exception(error)

        self.take_over(answered, lost)
        self.write(b"".join(map(pack, commands)))
        await done
        self.on_reply = self.on_lost = _ignore
        return answers

    def drop(self) -> None:
        """Close without waiting for what is still to be written: the peer may be frozen. Nobody is told."""
        self.on_reply = self.on_lost = self.on_room = _ignore
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.abort()

    def _end(self, error: StoreError) -> None:
        if self._lost is None:
            self._lost = error
            tell = self.on_lost
            self.drop()
            tell(error)


def _ignore(*_: object) -> None:
    """Nobody is told."""


async def connect(
    endpoint: Endpoint, greeting: Sequence[tuple[Argument, ...]], *, timeout_s: float
) -> tuple[Connection, list[Any]]:
    """Connect, say who we are, and something more at once.

    Args:
        endpoint: where to.
        greeting: the first commands, after AUTH and SELECT.
        timeout_s: longest wait for all of it.

    Returns:
        The connection and the answers to the greeting; a `Refused` stands for an answer that is an error.

    Raises:
        StoreError: no connection came about in time, or the server refuses the user or the database.
    Cancellation closes what was opened.
    """
    loop = asyncio.get_running_loop()
    connection = Connection()
    first: list[tuple[Argument, ...]] = []
    if endpoint.password is not None or endpoint.username is not None:
        user = () if endpoint.username is None else (endpoint.username,)
        first.append(("AUTH", *user, endpoint.password or ""))
    if endpoint.database:
        first.append(("SELECT", endpoint.database))
    host, port = endpoint.address.host, endpoint.address.port
    try:
        async with asyncio.timeout(timeout_s):
            if port:
                await loop.create_connection(
                    lambda: connection, host, port, ssl=endpoint.tls, server_hostname=host if endpoint.tls else None
                )
            else:
                await loop.create_unix_connection(lambda: connection, host)
            # Before it knows the user, a server ends the connection of whoever says more than a few KB.
            *accepted, alive = await connection.ask([*first, ("PING",)])
            for answer in accepted:
                if isinstance(answer, Refused):
                    raise translate(answer)
            if isinstance(alive, Refused) and alive.code == "NOAUTH":
                raise translate(alive)
            answers = await connection.ask(greeting) if greeting else []
    except OSError as error:
        connection.drop()
        raise translate(error) from error
    except BaseException:
        connection.drop()
        raise
    return connection, answers


async def ask(endpoint: Endpoint, *commands: tuple[Argument, ...], timeout_s: float) -> list[Any]:
    """Ask a server over a connection of its own, which is closed after it.

    Raises:
        StoreError: no answer in time.
    """
    connection, answers = await connect(endpoint, commands, timeout_s=timeout_s)
    connection.drop()
    return answers
