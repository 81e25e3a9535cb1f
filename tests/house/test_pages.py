"""The pages that are made from code and tests are what code and tests say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("script", ["docs/generate.py", "docs/tests_of_requirements.py", "docs/delivery_diagram.py"])
def test_a_generated_page_is_up_to_date(script: str) -> None:
    checked = subprocess.run([sys.executable, ROOT / script, "--check"], cwd=ROOT, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
