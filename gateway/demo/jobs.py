"""What the front door tells the demo agent to do."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final

import orjson

__all__ = ["USER", "Job"]

USER: Final = "demo"
"""The user for whom the demo's agent works, and as whom the page connects."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A question about a file.

    Attributes:
        run: the run's id.
        question: what the visitor wants to know.
        path: where the file is.
        name: what the visitor calls it.
        pace_ms: the pause after each step, so that one can watch.
        abandoned: the run was begun by a process that has died: only its end is owed.
    """

    run: str
    question: str
    path: str
    name: str
    pace_ms: int
    abandoned: bool = False

    def to_json(self) -> bytes:
        """One line."""
        return orjson.dumps(asdict(self)) + b"\n"

    @classmethod
    def from_json(cls, line: bytes) -> Job:
        """What `to_json` wrote."""
        fields: dict[str, Any] = orjson.loads(line)
        return cls(**fields)
