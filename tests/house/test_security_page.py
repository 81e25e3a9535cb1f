"""The page of security claims no defence without naming the test that shows it, and what is pulled in is looked at."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "security.md"
_NAMED = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")

pytestmark = pytest.mark.requirement("R23")


def _threats() -> list[list[str]]:
    """The cells of each row that has a threat."""
    rows = []
    inside = False
    for line in PAGE.read_text().splitlines():
        if line == "| threat | defence | shown by |":
            inside = True
        elif not line.startswith("|"):
            inside = False
        elif inside and not line.startswith("|---"):
            rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def test_every_threat_has_a_defence_and_a_test_that_exists() -> None:
    rows = _threats()
    assert len(rows) > 30
    for cells in rows:
        assert len(cells) == 3, cells
        threat, defence, shown_by = cells
        assert len(defence) > 20, threat
        named = _NAMED.findall(shown_by)
        assert named, f"no test shows it: {threat}"
        for path, test in named:
            assert re.search(rf"def {test}\(", (ROOT / path).read_text()), (path, test)


def test_every_attack_has_its_line_on_the_page() -> None:
    """What stands in the files of attacks and is not on the page nobody finds."""
    page = PAGE.read_text()
    for file in sorted((ROOT / "tests" / "fault").glob("test_attack*.py")):
        tests = re.findall(r"^async def (test_\w+)\(", file.read_text(), re.MULTILINE)
        assert tests
        assert [test for test in tests if test not in page] == []


def test_what_an_installation_pulls_in_has_been_looked_at() -> None:
    looked = subprocess.run(
        [sys.executable, ROOT / ".ci" / "audit"], capture_output=True, text=True, timeout=50, check=False
    )
    assert looked.returncode == 0, looked.stderr
