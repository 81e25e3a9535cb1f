"""Whoever follows a link from one page of the documentation to another arrives."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("deploy/**/*.md")]


def anchors(page: str) -> set[str]:
    """The places in a page that a link can lead to, named as code hosts name them."""
    heads = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", page, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}


def broken(page: Path) -> list[str]:
    """The links of a page that lead nowhere; those to other hosts are not looked at."""
    found = []
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, place = link.partition("#")
        there = page.parent / path if path else page
        if ":" not in path and not (there.exists() and (not place or place in anchors(there.read_text()))):
            found.append(f"{page}: {link}")
    return found


def test_every_link_of_the_documentation_leads_somewhere() -> None:
    assert len(PAGES) > 30
    assert [one for page in PAGES for one in broken(page)] == []


def test_no_guide_has_an_index_asked_for_this_project() -> None:
    """No public index has it: under its name there may be another's. It is installed from a checkout."""
    asking = re.compile(r"pip install (?:-\S+ )*[\"']?eventbus\b")
    assert [str(page) for page in PAGES if page.name != "CHANGELOG.md" and asking.search(page.read_text())] == []


def test_a_link_that_leads_nowhere_is_found(tmp_path: Path) -> None:
    page = tmp_path.joinpath("page.md")
    page.write_text("# The `one` place\n[a](#the-one-place) [b](#another) [c](none.md) [d](https://example.com)\n")
    assert broken(page) == [f"{page}: #another", f"{page}: none.md"]
