"""What a process has used: CPU time and memory, from the kernel."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from benchmarks.report import Circumstances
from benchmarks.roles import ROOT

__all__ = ["circumstances", "cpu_ns", "rss_bytes"]


def cpu_ns(pid: int) -> int:
    """CPU time of all threads of a process so far, in nanoseconds. Source: proc(5), schedstat."""
    total = 0
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that has just ended
            total += int((thread / "schedstat").read_text().split()[0])
    return total


def rss_bytes(pid: int) -> int:
    """Resident memory of a process. Source: proc(5), statm."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def circumstances(command: str, server: str) -> Circumstances:
    """Where and on what this measures.

    Args:
        command: the command line to name.
        server: kind and version of the server.
    """
    packages = ", ".join(f"{name} {version(name)}" for name in ("redis", "hiredis", "uvloop", "websockets"))
    return Circumstances(
        command=command,
        commit=_commit(),
        date=datetime.now(UTC).date().isoformat(),
        machine=f"{os.cpu_count()} cores, {_processor()}, {platform.system()} {platform.release().split('-')[0]}",
        software=f"Python {sys.version.split()[0]}, {server}, {packages}",
    )


def _commit() -> str:
    def git(*arguments: str) -> str:
        done = subprocess.run(("git", *arguments), cwd=ROOT, capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    commit = git("rev-parse", "--short", "HEAD")
    if not commit:
        return "unknown"
    changed = git("status", "--porcelain", "--untracked-files=no", "--", "eventbus", "gateway", "benchmarks")
    return f"{commit}+" if changed else commit


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.machine()
