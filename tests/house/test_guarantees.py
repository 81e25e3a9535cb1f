"""The page of guarantees promises nothing without naming the test that shows it."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "guarantees.md"
_NAMED = re.compile(r"`tests/[\w/]+\.py::test_\w+`")
_DURABILITY = ("| durability", "| `memory`", "| `replicated`", "| `fsync`")


def test_every_row_of_the_page_of_guarantees_names_its_test() -> None:
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| ") and "shown by" not in line]
    assert len(rows) > 20
    assert [row for row in rows if not row.startswith(_DURABILITY) and not _NAMED.search(row)] == []
