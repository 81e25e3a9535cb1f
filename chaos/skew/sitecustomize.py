"""Puts the wall clock of this process wrong while the harness says so: a run sets `PYTHONPATH` to this directory.

The offset is eight bytes of a file (signed, milliseconds), mapped into memory, so that it can jump while the process
runs. Only the wall clock moves: what an NTP step, a bad virtual machine or an operator does to it. The monotonic clock
is the kernel's and stays.
"""

from __future__ import annotations

import mmap
import os
import time

_PATH = os.environ.get("CHAOS_CLOCK")

if _PATH:
    with open(_PATH, "r+b") as _file:
        _offset = memoryview(mmap.mmap(_file.fileno(), 8)).cast("q")
    _time, _time_ns = time.time, time.time_ns

    def _skewed_time() -> float:
        return _time() + _offset[0] / 1000

    def _skewed_time_ns() -> int:
        return _time_ns() + _offset[0] * 1_000_000

    time.time, time.time_ns = _skewed_time, _skewed_time_ns
