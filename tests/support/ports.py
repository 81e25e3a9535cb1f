"""Ports for servers that must know theirs before they start, and have it again when they are started anew."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import socket
import tempfile
from pathlib import Path

__all__ = ["free_port"]

# Below those that systems give to outgoing connections.
_FIRST, _SHARE, _SHARES = 16_000, 500, 32


def _own_share() -> range:
    """The ports of this process: no other process that asks here has them, so a server that was killed finds its port
    free when it comes back. The lock is the kernel's, and ends with the process.
    """
    directory = Path(tempfile.gettempdir()) / f"eventbus-tests-ports-{os.getuid()}"
    directory.mkdir(mode=0o700, exist_ok=True)
    for number in range(_SHARES):
        lock = os.open(directory / str(number), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
        else:
            return range(_FIRST + number * _SHARE, _FIRST + (number + 1) * _SHARE)
    raise AssertionError(f"{_SHARES} test processes hold ports of their own: end some, see {directory}")


# At the import, so that no test is told that it left the lock open.
_own = _own_share()
_steps = itertools.count()


def free_port() -> int:
    """A port of 127.0.0.1 on which nobody listens; none is handed out twice before all of this process were."""
    for step in _steps:
        with contextlib.suppress(OSError), socket.socket() as probe:
            port = _own[step % _SHARE]
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("the steps never end")
