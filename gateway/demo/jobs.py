"""What the front door tells the demo agent to do."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final

import orjson

__all__ = ["AGENT", "TIER", "USER", "Job"]

USER: Final = "demo"
"""The user for whom the demo's agent works, and as whom the page connects."""

AGENT: Final = "reader"
"""The agent's name."""

TIER: Final = "enterprise"
"""Whose deadlines its runs have: a visitor may choose to be slow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A question about a file.

    Attributes:
        run: the run's id.
        thread: the conversation that it belongs to.
        question: what the visitor wants to know.
        path: where the file is.
        name: what the visitor calls it.
        pace_ms: the pause after each step, so that one can watch.
    """

    run: str
    thread: str
    question: str
    path: str
    name: str
    pace_ms: int

    def to_json(self) -> bytes:
        """One line."""
        return orjson.dumps(asdict(self)) + b"\n"

    @classmethod
    def from_json(cls, line: bytes) -> Job:
        """What `to_json` wrote."""
        fields: dict[str, Any] = orjson.loads(line)
        return cls(**fields)
