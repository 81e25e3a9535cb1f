"""What the scripts have in common that make pages: the page is written, or held to what it should be."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def write_or_check(page: Path, text: str) -> int:
    """Write a page; with `--check` on the command line compare it instead.

    Args:
        page: its file.
        text: what it should be.

    Returns:
        The exit status: 1 when it was compared and is another.
    """
    if "--check" not in sys.argv[1:]:
        page.write_text(text, encoding="utf-8")
        return 0
    if page.is_file() and page.read_text(encoding="utf-8") == text:
        return 0
    script = Path(sys.argv[0]).name
    sys.stderr.write(f"docs/{page.name} is not what it is made from: run python docs/{script}\n")
    return 1
