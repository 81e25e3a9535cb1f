"""Ports for servers that must know theirs before they start, and have it again when they are started anew."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import re
import socket

__all__ = ["free_port", "ports_of"]

# Below those that systems give to outgoing connections.
_FIRST, _LAST = 16_000, 31_999
_SHARE = 2_000
_SHARES = (_LAST + 1 - _FIRST) // _SHARE
# Two runs on one machine begin at different places, whatever seed the tests have set.
_steps = itertools.count(random.SystemRandom().randrange(_SHARE))


def ports_of(worker: str) -> range:
    """The ports of a worker of a test run, `gw0` and so on, or of a run without workers.

    A server that was killed finds its port free when it comes back, for no other worker looks for one there.
    """
    number = re.search(r"\d+", worker)
    first = _FIRST + int(number[0] if number else 0) % _SHARES * _SHARE
    return range(first, first + _SHARE)


def free_port() -> int:
    """A port of 127.0.0.1 on which nobody listens; none is handed out twice before all of this worker's were."""
    own = ports_of(os.environ.get("PYTEST_XDIST_WORKER", ""))
    for step in _steps:
        port = own[step % _SHARE]
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("the steps never end")
