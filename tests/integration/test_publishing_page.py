"""The examples of docs/publishing.md and docs/asking.md are complete programs, and print what the page says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = [
    example
    for page in ("publishing.md", "asking.md")
    for example in re.findall(
        r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?",
        (ROOT / "docs" / page).read_text(),
        re.MULTILINE | re.DOTALL,
    )
]


def test_the_pages_have_examples_and_each_says_what_it_prints() -> None:
    assert len(EXAMPLES) >= 12
    assert all(output for _, output in EXAMPLES)


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_an_example_of_a_page_does_what_it_says(number: int, server_url: str, tmp_path: Path) -> None:
    program, output = EXAMPLES[number]
    script = tmp_path / "example.py"
    script.write_text(program)
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script)],
        env={**os.environ, "EVENTBUS_REDIS_URL": server_url, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.stderr, done.stdout, done.returncode) == ("", output, 0)
