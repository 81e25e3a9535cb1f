"""What a process of the gateway has of its system: the event loop, ports, signals, and the line that says ready."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import signal
import socket
import ssl
import sys
from collections.abc import Awaitable, Coroutine, Sequence
from typing import Any, Final, TypeVar

from eventbus.errors import ConfigError
from gateway.config import ListenSettings

__all__ = [
    "Stop",
    "bind",
    "check_tls",
    "close_all",
    "first_of",
    "port_of",
    "raise_file_limit",
    "ready_line",
    "run_with_loop",
    "say",
]

logger = logging.getLogger(__name__)

T = TypeVar("T")

_OTHER_FILES: Final = 256
"""Files beside the connections of clients: libraries, logs, the store."""

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
_NOT_HERE: Final = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
_WHY: Final = {
    errno.EADDRINUSE: "is taken: something listens there already",
    errno.EACCES: "may not be used by this user",
}


def run_with_loop(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on uvloop, or on asyncio's own loop where there is none, and return what it returns."""
    try:
        import uvloop
    except ImportError:  # Windows
        return asyncio.run(main)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)


async def first_of(*waits: Awaitable[Any]) -> None:
    """Wait until one is done. Coroutines that are not are ended; futures and tasks are left as they are."""
    waiting = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for future, wait in zip(waiting, waits, strict=True):
            if future is not wait:
                future.cancel()


def say(line: str) -> None:
    """Write a line to stdout, at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def ready_line(listen: ListenSettings, port: int, admin_port: int) -> str:
    """The line that says that connections are accepted."""
    url = listening_url(listen.host, port, tls=listen.tls_cert_file is not None)
    return f"ready node={listen.node} url={url} admin={listening_url(listen.admin_host, admin_port)}"


def listening_url(host: str, port: int, *, tls: bool = False) -> str:
    """The address of a port as the ready line gives it."""
    return f"{'https' if tls else 'http'}://{bracketed(host)}:{port}"


def bracketed(host: str) -> str:
    """A host as it stands in a URL."""
    return f"[{host}]" if ":" in host else host


def raise_file_limit(wanted: int) -> None:
    """Let the process open as many files as its connections need, as far as the system allows; else say so once.

    Source: getrlimit(2), RLIMIT_NOFILE.
    """
    try:
        import resource
    except ImportError:  # Windows
        return
    wanted += _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
            soft = allowed
    if soft != resource.RLIM_INFINITY and soft < wanted:
        logger.info(
            "the system lets this process have %d open files, and its limits of connections ask for %d: "
            "raise `ulimit -n`, or connections are refused before their limit is reached",
            soft,
            wanted,
        )


# --- ports ------------------------------------------------------------------------------------------------------------


def bind(host: str, port: int, *, setting: str, shared: bool = False) -> list[socket.socket]:
    """Take a port on every address of a host, without listening yet: until then connections are refused.

    Args:
        host: an address or a name.
        port: 0 takes a free one, the same for all addresses.
        setting: `PORT` or `ADMIN_PORT`, for the error.
        shared: further sockets may be bound there, by processes of this user that ask for it too.

    Returns:
        Sockets; the caller closes them.

    Raises:
        ConfigError: it is taken, or not there.
    """
    host_setting = f"EVENTBUS_{setting.replace('PORT', 'HOST')} is {host!r}, which"
    try:
        infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise ConfigError(f"{host_setting} has no address: {error.strerror}") from None
    bound: list[socket.socket] = []
    unusable: OSError | None = None
    try:
        for family, _, _, _, address in dict.fromkeys(infos):
            number = port or (port_of(bound) if bound else 0)
            try:
                bound.append(_bind_one(family, (address[0], number, *address[2:]), shared))
            except OSError as error:
                # A name may have addresses of a family that this machine does not speak.
                if error.errno not in _NOT_HERE or len(infos) == 1:
                    raise
                unusable = error
        if not bound and unusable is not None:
            raise unusable
    except OSError as error:
        close_all(bound)
        if error.errno in _NOT_HERE:
            raise ConfigError(f"{host_setting} is no address of this machine") from None
        why = _WHY.get(error.errno or 0, f"can not be used: {error.strerror}")
        raise ConfigError(
            f"EVENTBUS_{setting} is {port}, and {bracketed(host)}:{port} {why}", field=setting.lower()
        ) from None
    return bound


def _bind_one(family: int, address: Sequence[Any], shared: bool) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        # A port whose last connections still time out may be taken again.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(tuple(address))
    except BaseException:
        sock.close()
        raise
    return sock


def port_of(bound: Sequence[socket.socket]) -> int:
    """The port that sockets of `bind` have."""
    return int(bound[0].getsockname()[1])


def close_all(bound: Sequence[socket.socket]) -> None:
    """Close sockets."""
    for sock in bound:
        sock.close()


def check_tls(settings: ListenSettings) -> None:
    """See that the certificate and its key can be used.

    Raises:
        ConfigError: a file can not be read, or the two do not belong together.
    """
    if settings.tls_cert_file is None:
        return
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(settings.tls_cert_file, settings.tls_key_file)
    except OSError as error:  # ssl.SSLError is one
        why = error.strerror or str(error)
        raise ConfigError(
            f"EVENTBUS_TLS_CERT_FILE {settings.tls_cert_file!r} and EVENTBUS_TLS_KEY_FILE {settings.tls_key_file!r}"
            f" can not be used: {why}",
            field="tls_cert_file",
        ) from None


# --- signals ----------------------------------------------------------------------------------------------------------


class Stop:
    """The signals that end a process: the first one asks for a drain, the second for the end at once.

    Attributes:
        asked: set by the first.
        at_once: set by the second.
    """

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.at_once = asyncio.Event()

    def listen(self) -> None:
        """Take SIGTERM and SIGINT of this process."""
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self.ask)

    def unlisten(self) -> None:
        """Give them back."""
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.remove_signal_handler(number)

    def ask(self) -> None:
        """A signal came."""
        if self.asked.is_set():
            self.at_once.set()
        self.asked.set()
