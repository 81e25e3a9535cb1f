"""The page of guarantees promises nothing without naming the test that shows it, or the run that found it."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest

from chaos.faults import FAULTS
from chaos.page import DURABILITIES, filled, impossible
from chaos.stores import TOPOLOGIES

PAGE = Path(__file__).resolve().parents[2] / "docs" / "guarantees.md"
_NAMED = re.compile(r"`tests/[\w/]+\.py::test_\w+`")
_HEADS = ("| durability", "| `memory`", "| `replicated`", "| `fsync`", "| what | how it showed")
_MADE = re.compile(r"<!-- (\w+): begin -->\n.*?<!-- \1: end -->", re.DOTALL)
_PLACES = list(itertools.product(FAULTS, DURABILITIES, TOPOLOGIES))


@pytest.fixture(scope="module")
def figures() -> dict[str, Any]:
    """What the tables are made of."""
    found: dict[str, Any] = json.loads(PAGE.with_suffix(".json").read_text())
    return found


def test_every_row_of_the_page_of_guarantees_names_its_test() -> None:
    text = _MADE.sub("", PAGE.read_text())
    rows = [line for line in text.splitlines() if line.startswith("| ") and "shown by" not in line]
    assert len(rows) > 20
    assert [row for row in rows if not row.startswith(_HEADS) and not _NAMED.search(row)] == []


def test_the_tables_of_runs_are_those_of_the_figures(figures: dict[str, Any]) -> None:
    text = PAGE.read_text()
    assert filled(text, figures) == text, "python -m chaos --write docs/guarantees.md"


def test_every_fault_has_a_cell_for_every_durability_and_topology_or_words_why_not(figures: dict[str, Any]) -> None:
    known = {(cell["fault"], cell["durability"], cell["topology"]) for cell in figures["cells"]}
    wanted = {place for place in _PLACES if impossible(*place) is None}
    assert known == wanted
    assert all(impossible(*place) for place in set(_PLACES) - wanted)
    assert "not run" not in PAGE.read_text()


def test_every_cell_says_what_was_sent_received_lost_and_announced_and_where_from(figures: dict[str, Any]) -> None:
    for cell in figures["cells"]:
        assert cell["sent"] > 0, cell
        assert cell["received"] + cell["announced"] + cell["lost"] == cell["owed"] > 0, cell
        assert cell["commit"], cell
        assert isinstance(cell["seed"], int), cell


def test_nothing_was_lost_in_any_run(figures: dict[str, Any]) -> None:
    assert [cell for cell in figures["cells"] if cell["lost"]] == []
    assert [mix["wrong"] for mix in figures["mixes"] if mix["lost"]] == []


def test_long_runs_are_reported_for_one_server_and_a_cluster(figures: dict[str, Any]) -> None:
    assert {"single", "cluster"} <= {mix["topology"] for mix in figures["mixes"] if mix["minutes"] >= 10}
