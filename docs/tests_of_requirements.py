"""Fill the last column of `docs/requirements.md` with the tests that name each row.

python docs/tests_of_requirements.py           writes the page
python docs/tests_of_requirements.py --check   exit status 1 when the page is not what the tests say
"""

from __future__ import annotations

import ast
import re
import sys

from made import ROOT, write_or_check

PAGE = ROOT / "docs" / "requirements.md"
SHOWN = 4
"""So many tests are named in a row; the ones on real processes first."""

_ORDER = ("fault", "browser", "integration", "contract", "property", "unit", "house")
_ROW = re.compile(r"^\| (R\d+) \| (.*) \| ?(.*?) ?\|$", re.MULTILINE)
_NUMBER = re.compile(r"\bR\d+\b")

Named = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Assign


def _numbers(node: Named) -> set[str]:
    """The rows that a test, a class or a module's `pytestmark` names in its marks or its docstring."""
    if isinstance(node, ast.Assign):
        marks = ast.unparse(node) if "pytestmark" in ast.unparse(node.targets[0]) else ""
    else:
        marks = " ".join(ast.unparse(mark) for mark in node.decorator_list) + " " + (ast.get_docstring(node) or "")
    return set(_NUMBER.findall(marks))


def tests_by_number() -> dict[str, list[str]]:
    """The tests that name each row, as `path::name`."""
    found: dict[str, list[str]] = {}
    for kind in _ORDER:
        for path in sorted((ROOT / "tests" / kind).rglob("test_*.py")):
            module = ast.parse(path.read_text(encoding="utf-8"))
            of_module = {n for node in module.body if isinstance(node, ast.Assign) for n in _numbers(node)}
            for node in module.body:
                inside = node.body if isinstance(node, ast.ClassDef) else [node]
                of_class = _numbers(node) if isinstance(node, ast.ClassDef) else set()
                for test in inside:
                    if not isinstance(test, ast.FunctionDef | ast.AsyncFunctionDef) or test.name[:5] != "test_":
                        continue
                    for number in sorted(of_module | of_class | _numbers(test)):
                        found.setdefault(number, []).append(f"{path.relative_to(ROOT).as_posix()}::{test.name}")
    return found


def page(text: str) -> str:
    """The page with its last column filled; rows that are due later are left as they are."""
    tests = tests_by_number()

    def row(match: re.Match[str]) -> str:
        number, requirement, shown = match.groups()
        if shown.startswith("later"):
            return match[0]
        named = tests.get(number, [])
        cell = ", ".join(f"`{test}`" for test in named[:SHOWN])
        if len(named) > SHOWN:
            cell += f" and {len(named) - SHOWN} more"
        return f"| {number} | {requirement} | {cell} |"

    return _ROW.sub(row, text)


if __name__ == "__main__":
    sys.exit(write_or_check(PAGE, page(PAGE.read_text(encoding="utf-8"))))
