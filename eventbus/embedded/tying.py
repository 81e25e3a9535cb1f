"""Ties a child process to the life of its parent.

Linux: the child asks the kernel for a signal at its parent's death. A `preexec_fn` would run Python between fork and
exec, which can deadlock in a process with threads, so a small interpreter sets it and then becomes the program. The
kernel means the *thread* that started the child: start it from a thread that lives as long as the child should, in
general the main thread.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

__all__ = ["tied"]

# Runs in a fresh interpreter without site-packages: PR_SET_PDEATHSIG (1), then the race check (the parent may have died
# before the call), then exec. Arguments: the parent's pid, the signal, the command line of what is to run.
_TRAMPOLINE = (
    "import ctypes, os, sys\n"
    "ctypes.CDLL(None).prctl(1, int(sys.argv[2]), 0, 0, 0)\n"
    "if os.getppid() != int(sys.argv[1]): sys.exit('the parent has died')\n"
    "os.execv(sys.argv[3], sys.argv[3:])\n"
)


def tied(command: Sequence[str], death_signal: signal.Signals) -> list[str]:
    """Makes a command that gets a signal when this process dies, also by SIGKILL (Linux; elsewhere it is unchanged).

    Args:
        command: The program's absolute path and its arguments; its process id is that of what is started.
        death_signal: What it is sent when the thread that started it has ended.

    Source: prctl(2), PR_SET_PDEATHSIG.
    """
    if sys.platform != "linux" or not sys.executable:
        return list(command)
    return [sys.executable, "-I", "-S", "-c", _TRAMPOLINE, str(os.getpid()), str(int(death_signal)), *command]
