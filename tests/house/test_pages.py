"""The pages that are made from code and tests are what code and tests say."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_every_code_that_a_node_answers_with_stands_on_the_page_of_errors() -> None:
    page = (ROOT / "docs" / "errors.md").read_text()
    files = (file for file in (ROOT / "gateway").rglob("*.py") if not {"console", "demo"} & set(file.parts))
    sources = "".join(file.read_text() for file in files)
    told = set(re.findall(r'(?:code=|"code": |reason=)"([a-z_]+)"', sources))
    assert {"bad_signature", "upgrade_required", "internal"} <= told
    protocol = (ROOT / "docs" / "protocol.md").read_text()
    assert not [code for code in sorted(told) if f"`{code}`" not in page and f"`{code}`" not in protocol]


@pytest.mark.parametrize("script", ["docs/generate.py", "docs/tests_of_requirements.py", "docs/delivery_diagram.py"])
def test_a_generated_page_is_up_to_date(script: str) -> None:
    checked = subprocess.run([sys.executable, ROOT / script, "--check"], cwd=ROOT, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
