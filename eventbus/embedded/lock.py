"""One server at a time owns a directory: a lock of the kernel's, which ends with the server."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from pathlib import Path

from eventbus.embedded.programs import EmbeddedServerError

__all__ = ["POLL_MS", "lock_directory", "monotonic_ms"]

POLL_MS = 3
"""How long what blocks here sleeps between two looks."""
_LOCK_NAME = "server.lock"
_ORPHAN_WAIT_MS = 3_000


def lock_directory(directory: Path) -> int:
    """Locks a directory for one server and returns the lock's descriptor, which the server inherits.

    The lock is the kernel's, so that no crash leaves it behind. A dying server (its parent was killed) is waited for.
    """
    path = directory / _LOCK_NAME
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline_ms = monotonic_ms() + _ORPHAN_WAIT_MS
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        except OSError as error:
            owner = os.pread(lock, 32, 0).decode(errors="replace").strip()
            if not _is_orphan(owner) or monotonic_ms() >= deadline_ms:
                os.close(lock)
                raise EmbeddedServerError(
                    f"{directory} is in use by another server (pid {owner or 'unknown'}): stop that one, or "
                    "choose another directory."
                ) from error
        time.sleep(POLL_MS / 1000)


def _is_orphan(pid: str) -> bool:
    """Whether the lock's owner is gone (a helper process of it may still hold the lock) or its parent is (it is
    ending).
    """
    if not pid.isdecimal():
        return True
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(int(pid), 0)
            return False
        return True
    state, parent = status.rpartition(")")[2].split()[:2]
    return state == "Z" or parent == "1"


def monotonic_ms() -> int:
    """Milliseconds since some moment of this machine's."""
    return time.monotonic_ns() // 1_000_000
