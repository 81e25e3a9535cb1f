"""The files that the demo's agent can be asked about: those that come with the project, and the visitor's own."""

from __future__ import annotations

import re
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

__all__ = ["UPLOAD_MAX_BYTES", "Files", "SharedFile"]

UPLOAD_MAX_BYTES: Final = 1024 * 1024
UPLOADS_MAX: Final = 20

_SAMPLES: Final = Path(__file__).parent / "texts"
_QUESTIONS: Final = {
    "lighthouse.txt": "What happened to the lamp in the storm?",
    "bakery.txt": "Who is Mr Pohl, and what does he say about the price of bread?",
    "garden.txt": "What did the children find in the garden in the snow?",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedFile:
    """A file that the agent may read.

    Attributes:
        id: how the page names it.
        name: how people name it.
        path: where it is.
        size_bytes: its size.
        question: one that fits it; empty for the visitor's own.
    """

    id: str
    name: str
    path: Path
    size_bytes: int
    question: str


class Files:
    """All of them.

    Args:
        uploads: the directory for the visitor's own; it is emptied.
    """

    def __init__(self, uploads: Path) -> None:
        shutil.rmtree(uploads, ignore_errors=True)
        uploads.mkdir(mode=0o700, parents=True)
        self._uploads = uploads
        self._files = {file.id: file for file in (_sample(name) for name in _QUESTIONS)}

    def all(self) -> list[SharedFile]:
        """The samples first, then the visitor's own, oldest first."""
        return list(self._files.values())

    def get(self, id: str) -> SharedFile | None:
        """The file of that id."""
        return self._files.get(id)

    def add(self, name: str, content: bytes) -> SharedFile:
        """Takes a file of the visitor's; the oldest goes when there are too many.

        Args:
            name: what the visitor calls it; it never becomes a path.
            content: at most `UPLOAD_MAX_BYTES`, which the caller has seen to.
        """
        path = self._uploads / secrets.token_hex(8)
        path.write_bytes(content)
        shown = re.sub(r"[^\w .()+-]", "_", name.replace("\\", "/").rpartition("/")[2])[:80].strip() or "file"
        file = SharedFile(id=path.name, name=shown, path=path, size_bytes=len(content), question="")
        self._files[file.id] = file
        own = [other for other in self._files.values() if other.path.parent == self._uploads]
        for oldest in own[:-UPLOADS_MAX]:
            del self._files[oldest.id]
            oldest.path.unlink(missing_ok=True)
        return file


def _sample(name: str) -> SharedFile:
    path = _SAMPLES / name
    return SharedFile(id=name, name=name, path=path, size_bytes=path.stat().st_size, question=_QUESTIONS[name])
