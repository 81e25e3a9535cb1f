"""What a process of a test or of a chaos run is told, as a JSON file."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Self

__all__ = ["Plan"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The base of all plans; their fields are what JSON has."""

    def write(self, path: Path) -> Path:
        """Writes it for a child process."""
        path.write_text(json.dumps(dataclasses.asdict(self)))
        return path

    @classmethod
    def read(cls, path: str) -> Self:
        """Reads what `write` wrote."""
        return cls(**json.loads(Path(path).read_text()))
