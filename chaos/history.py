"""The history of a run: an append-only log of operations, one JSON object a line. Pure but for the two file functions.

As Jepsen has it, an operation has a kind: `invoke` when it begins, `ok` when it is known to have happened, `fail` when
it is known not to have happened, `info` when nobody can say (or for what merely happened, as a fault).

| `f` | process | kinds and values |
|---|---|---|
| `publish` | publisher | `invoke` event, user; `ok` event, entry, duplicate; `info` event, error |
| `crash` | publisher | `info`: it was killed; what it had not been answered is unknown for ever |
| `open` | client | `ok` user, session, library, connection, node, resumed |
| `receive` | client | `ok` user, session, connection, event, owner, entry, delivery |
| `gap` | client | `info` user, session, reason, after, before, count |
| `dropped` | client | `info` user, session, entries, reason |
| `ack` | client | `invoke` user, session, ref, entries; `ok` user, session, ref, count |
| `close` | client | `info` user, session, connection, code, reason |
| `state` | client | `info` user, session, state: of the client library |
| `leave` | client | `info` user, session: it will not come back |
| `fault` | harness | `invoke` number, name, group, target; `ok` number, when it is over and healed |
| `died` | any | `info` code, output: a process that nobody killed has ended |
| `look` | harness | `ok` pending (`user/session` -> entries), dead (`user`, `session`, `event`, `reason`) |
"""

from __future__ import annotations

import gzip
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import orjson

__all__ = ["Kind", "Log", "Op", "merged", "monotonic_ms", "read", "write"]


class Kind(StrEnum):
    """What is known of an operation."""

    INVOKE = "invoke"
    OK = "ok"
    FAIL = "fail"
    INFO = "info"


@dataclass(frozen=True, slots=True, kw_only=True)
class Op:
    """One line.

    Attributes:
        time_ms: of the machine's monotonic clock, which all processes share and no fault moves.
        process: who did or saw it.
        kind: what is known of it.
        f: which operation.
        value: its fields, by the table above.
    """

    time_ms: int
    process: str
    kind: Kind
    f: str
    value: Mapping[str, Any] = field(default_factory=dict)

    def line(self) -> bytes:
        """The operation as a line of a file."""
        return orjson.dumps(
            {"time_ms": self.time_ms, "process": self.process, "kind": self.kind, "f": self.f, "value": self.value},
            option=orjson.OPT_APPEND_NEWLINE,
        )

    @classmethod
    def parse(cls, line: bytes) -> Op:
        """Reads what `line` made."""
        found = orjson.loads(line)
        return cls(**{**found, "kind": Kind(found["kind"])})


def monotonic_ms() -> int:
    """The time of the machine that all processes share."""
    return time.monotonic_ns() // 1_000_000


class Log:
    """Writes the operations of one process.

    Args:
        path: the file, appended to.
        process: its name in the history.
        held: whether lines wait for `flush`; otherwise each is written at once, so that what was answered is known
            even when this process is killed in the next moment.
    """

    def __init__(self, path: str | Path, process: str, *, held: bool = False) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._process = process
        self._held: list[bytes] | None = [] if held else None

    def write(self, kind: Kind, f: str, **value: Any) -> None:
        """Writes an operation that happens now."""
        self.write_of(self._process, kind, f, **value)

    def write_of(self, process: str, kind: Kind, f: str, **value: Any) -> None:
        """Writes an operation of another process, which cannot do so itself."""
        line = Op(time_ms=monotonic_ms(), process=process, kind=kind, f=f, value=value).line()
        if self._held is None:
            os.write(self._file, line)
        else:
            self._held.append(line)

    def flush(self) -> None:
        """Writes what is held."""
        if self._held:
            os.write(self._file, b"".join(self._held))
            self._held.clear()

    def close(self) -> None:
        """Writes what is held and closes the file."""
        self.flush()
        os.close(self._file)


def read(path: Path) -> Iterator[Op]:
    """The operations of a file, packed or not; a last line that a killed process left unfinished is none."""
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield Op.parse(line)


def merged(histories: Iterable[Iterable[Op]]) -> list[Op]:
    """One history of several: by time, and within a process in the order in which it wrote."""
    return sorted((op for history in histories for op in history), key=lambda op: op.time_ms)


def write(path: Path, history: Iterable[Op]) -> None:
    """Writes a packed file."""
    with gzip.open(path, "wb", compresslevel=5) as file:
        for op in history:
            file.write(op.line())
