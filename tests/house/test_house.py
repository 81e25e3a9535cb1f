"""The house itself: requirements have tests, documents name tests that exist, tests do not sleep, no file knows a
machine.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
REQUIREMENTS = ROOT / "docs" / "requirements.md"

_NUMBER = re.compile(r"\bR(\d+)\b")
_ROW = re.compile(r"^\|\s*(R\d+)\s*\|(.*)\|\s*$", re.MULTILINE)
_TEST_PATH = re.compile(r"\btests/[\w/]+\.py(?:::(\w+))?")
_REAL_TIME = "# real time:"
# Written in two parts, so that this file passes its own test.
_MACHINE_PATHS = tuple(f"/{word}/" for word in ("wo" + "rk", "ro" + "ot", "ho" + "me"))


def _tracked_files() -> list[Path]:
    """The files of the checkout, those not yet committed too, but not what git ignores."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=False,
        text=True,
    )
    if listing.returncode != 0:  # not a checkout: an unpacked source distribution
        hidden = {".venv", "node_modules", "__pycache__"}
        return [path for path in ROOT.rglob("*") if path.is_file() and not hidden & set(path.parts)]
    return [path for name in listing.stdout.split("\0") if name and (path := ROOT / name).is_file()]


@cache
def _modules() -> dict[Path, ast.Module]:
    """All modules of the tests, parsed."""
    return {path: ast.parse(path.read_text(), filename=str(path)) for path in sorted((ROOT / "tests").rglob("*.py"))}


def _tests() -> Iterator[tuple[Path, ast.FunctionDef | ast.AsyncFunctionDef, set[str]]]:
    """Each test function with the numbers of the requirements that it, its class or its module names."""
    for path, module in _modules().items():
        if not path.name.startswith("test_"):
            continue
        marks = [node for node in module.body if isinstance(node, ast.Assign) and "pytestmark" in ast.unparse(node)]
        named = {number for node in marks for number in _marked(node)}
        for node in module.body:
            if isinstance(node, ast.ClassDef):
                of_class = named | _named(node)
                for inner in node.body:
                    if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef) and inner.name.startswith("test"):
                        yield path, inner, of_class | _named(inner)
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test"):
                yield path, node, named | _named(node)


def _named(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> set[str]:
    numbers = {number for decorator in node.decorator_list for number in _marked(decorator)}
    return numbers | {f"R{number}" for number in _NUMBER.findall(ast.get_docstring(node) or "")}


def _marked(node: ast.AST) -> set[str]:
    """The numbers in each `requirement("R1", ...)` below a node."""
    return {
        argument.value
        for call in ast.walk(node)
        if isinstance(call, ast.Call) and ast.unparse(call.func).endswith("mark.requirement")
        for argument in call.args
        if isinstance(argument, ast.Constant) and isinstance(argument.value, str)
    }


def test_every_requirement_has_a_test_that_names_it() -> None:
    """A row whose last cell begins with `later` is not due yet."""
    due = {number for number, cells in _rows() if not _is_later(cells)}
    named = {number for _, _, numbers in _tests() for number in numbers}
    assert not sorted(due - named), "requirements that no test names"


def test_tests_name_only_requirements_that_exist() -> None:
    rows = {number for number, _ in _rows()}
    wrong = [f"{path.name}::{test.name} {number}" for path, test, numbers in _tests() for number in numbers - rows]
    assert not (rows and wrong)


def _rows() -> list[tuple[str, str]]:
    """The rows of the table: the number, and the rest of the cells."""
    return _ROW.findall(REQUIREMENTS.read_text()) if REQUIREMENTS.exists() else []


def _is_later(cells: str) -> bool:
    return cells.rpartition("|")[2].strip().startswith("later")


def test_documents_name_tests_that_exist() -> None:
    known = {(path.relative_to(ROOT).as_posix(), test.name) for path, test, _ in _tests()}
    wrong = []
    for document in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]:
        for match in _TEST_PATH.finditer(document.read_text()):
            path = match[0].partition("::")[0]
            exists = (path, match[1]) in known if match[1] else (ROOT / path).is_file()
            if not exists:
                wrong.append(f"{document.relative_to(ROOT)}: {match[0]}")
    assert not wrong


def test_no_file_knows_the_machine_it_was_written_on() -> None:
    wrong = []
    for path in _tracked_files():
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(text.splitlines(), 1):
            wrong += [f"{path.relative_to(ROOT)}:{number}" for word in _MACHINE_PATHS if word in line]
    assert not wrong


def test_tests_do_not_sleep() -> None:
    """A wait has a condition and a deadline; a line that must spend real time says why."""
    wrong = []
    for path, module in _modules().items():
        lines = path.read_text().splitlines()
        for call in ast.walk(module):
            if not isinstance(call, ast.Call) or ast.unparse(call.func) not in ("time.sleep", "asyncio.sleep", "sleep"):
                continue
            turn_of_the_loop = len(call.args) == 1 and ast.unparse(call.args[0]) == "0"
            explained = any(_REAL_TIME in line for line in lines[call.lineno - 1 : call.end_lineno])
            if not turn_of_the_loop and not explained:
                wrong.append(f"{path.relative_to(ROOT)}:{call.lineno}")
    assert not wrong


def test_every_test_asserts_something_itself_or_by_what_it_calls() -> None:
    """Functions are known by their names alone, so this is a net with wide meshes: it catches who calls nothing."""
    functions: dict[str, list[ast.AST]] = {}
    for module in _modules().values():
        for node in ast.walk(module):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                functions.setdefault(node.name, []).append(node)
    asserting = {name for name, nodes in functions.items() if any(map(_asserts, nodes))}
    calls = {name: set().union(*map(_called, nodes)) for name, nodes in functions.items()}
    while more := {name for name in calls.keys() - asserting if calls[name] & asserting}:
        asserting |= more
    assert not sorted(name for name in functions.keys() - asserting if name.startswith("test_"))


def _asserts(function: ast.AST) -> bool:
    return any(
        isinstance(node, ast.Assert)
        or (isinstance(node, ast.Attribute) and node.attr in ("raises", "fail"))
        or (isinstance(node, ast.Name) and node.id == "AssertionError")
        or (isinstance(node, ast.keyword) and node.arg == "check" and ast.unparse(node.value) == "True")
        for node in ast.walk(function)
    )


def _called(function: ast.AST) -> set[str]:
    called = [node.func for node in ast.walk(function) if isinstance(node, ast.Call)]
    named = {one.id for one in called if isinstance(one, ast.Name)}
    return named | {one.attr for one in called if isinstance(one, ast.Attribute)}


def test_test_directories_are_packages_so_that_file_names_may_repeat() -> None:
    directories = {path.parent for path in (ROOT / "tests").rglob("test_*.py")}
    assert not [str(directory) for directory in directories if not (directory / "__init__.py").exists()]


def test_slow_tests_are_where_make_slow_looks_for_them() -> None:
    [looked] = re.findall(r"^SLOW := (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    mark = "pytest.mark." + "slow"
    slow = {path for path, module in _modules().items() if mark in ast.unparse(module)}
    assert slow, "some tests are slow"
    directories = {path.relative_to(ROOT).parts[1] for path in slow}
    assert directories == {Path(place).name for place in looked.split()}


@pytest.mark.parametrize("script", [".ci/run", ".ci/venv"])
def test_scripts_can_be_run(script: str) -> None:
    assert os.access(ROOT / script, os.X_OK)
