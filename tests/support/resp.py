"""One command to one server, by hand: no client library that would retry, redirect or rewrite an answer."""

from __future__ import annotations

import contextlib
import socket
import ssl
from typing import Any

import hiredis

_TIMEOUT_S = 10.0


class Refused(Exception):
    """The server answered with an error; the text is the error's."""


class Talk:
    """A blocking connection to one server.

    Args:
        port: of 127.0.0.1.
        tls: how to speak TLS, None for plain TCP.
        auth: user and password.
    """

    def __init__(self, port: int, *, tls: ssl.SSLContext | None = None, auth: tuple[str, str] | None = None) -> None:
        raw = socket.create_connection(("127.0.0.1", port), timeout=_TIMEOUT_S)
        self._socket = raw if tls is None else tls.wrap_socket(raw, server_hostname="localhost")
        self._reader = hiredis.Reader()
        if auth is not None:
            self.ask("AUTH", *auth)

    def ask(self, *words: str | bytes | int) -> Any:
        """Sends a command and returns the answer, with bytes for texts.

        Raises:
            Refused: The answer is an error.
            OSError: There is no answer within ten seconds.
        """
        command: tuple[Any, ...] = words
        self._socket.sendall(hiredis.pack_command(command))
        while (answer := self._reader.gets()) is False:
            chunk = self._socket.recv(65_536)
            if not chunk:
                raise ConnectionError("the server has closed the connection")
            self._reader.feed(chunk)
        if isinstance(answer, hiredis.HiredisError):
            raise Refused(str(answer))
        return answer

    def close(self) -> None:
        """Closes the connection."""
        self._socket.close()


def ask(
    port: int, *words: str | bytes | int, tls: ssl.SSLContext | None = None, auth: tuple[str, str] | None = None
) -> Any:
    """As `Talk.ask`, over a connection of its own."""
    with contextlib.closing(Talk(port, tls=tls, auth=auth)) as talk:
        return talk.ask(*words)


def info(port: int, section: str) -> dict[str, str]:
    """A section of INFO, by name."""
    return dict(
        line.split(":", 1) for line in ask(port, "INFO", section).decode().split("\r\n") if line and line[0] != "#"
    )
