"""Everything that is kept in memory is in the register of limits: the code is read, and what it holds must be named.

A container that is missing is no formality: somebody has to say what bounds it, and what happens at the bound.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.requirement("R9")

ROOT = Path(__file__).resolve().parents[2]
REGISTER = tomllib.loads((ROOT / "docs" / "limits.toml").read_text())

# What is not run for long, or not by a node, an agent or a client: for tests, for one question, for show.
LEFT_OUT = ("eventbus/testing/", "eventbus/cli/", "eventbus/inspection/", "eventbus/doctor/", "gateway/demo/")

CONTAINERS = {
    "Counter", "LifoQueue", "OrderedDict", "PriorityQueue", "Queue", "SimpleQueue", "WeakKeyDictionary", "WeakSet",
    "WeakValueDictionary", "bytearray", "defaultdict", "deque", "dict", "list", "set",
}  # fmt: skip
_DISPLAYS = (ast.Dict, ast.List, ast.Set, ast.DictComp, ast.ListComp, ast.SetComp)
_SCRIPT_CLASS = re.compile(r"^(?:export )?class (\w+)")
_SCRIPT_FIELD = re.compile(r"^  (#\w+) = (?:new (?:Map|Set)\b|\[\])")


def _name(node: ast.expr) -> str:
    if isinstance(node, ast.Subscript):
        node = node.value
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def _makes(value: ast.expr | None) -> bool:
    """Whether an expression makes a container, also as the default of a dataclass's field."""
    if isinstance(value, _DISPLAYS):
        return True
    if not isinstance(value, ast.Call):
        return False
    if _name(value.func) == "field":
        made = next((keyword.value for keyword in value.keywords if keyword.arg == "default_factory"), None)
        return _makes(made.body) if isinstance(made, ast.Lambda) else made is not None and _name(made) in CONTAINERS
    return _name(value.func) in CONTAINERS


def _says(annotation: ast.expr) -> bool:
    """Whether an annotation names a container, also one that may be None."""
    if isinstance(annotation, ast.BinOp):
        return _says(annotation.left) or _says(annotation.right)
    if isinstance(annotation, ast.Subscript) and _name(annotation) == "Final":
        return _says(annotation.slice)
    return _name(annotation) in CONTAINERS


def _is_record(node: ast.ClassDef) -> bool:
    """A frozen dataclass is a value: who holds many of them is what counts."""
    return any(
        isinstance(decorator, ast.Call)
        and _name(decorator.func) == "dataclass"
        and any(
            keyword.arg == "frozen" and isinstance(keyword.value, ast.Constant) and keyword.value.value
            for keyword in decorator.keywords
        )
        for decorator in node.decorator_list
    )


def _of_class(node: ast.ClassDef) -> Iterator[str]:
    for part in node.body:
        if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name):
            if _makes(part.value) or (part.value is None and _says(part.annotation)):
                yield part.target.id
        elif isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef):
            for inner in ast.walk(part):
                yield from _of_assignment(inner)


def _of_assignment(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Assign):
        targets, made = node.targets, _makes(node.value)
    elif isinstance(node, ast.AnnAssign):
        targets, made = [node.target], _makes(node.value) or _says(node.annotation)
    else:
        return
    for target in targets:
        if made and isinstance(target, ast.Attribute) and _name(target.value) == "self":
            yield target.attr


def _is_cached(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return any("cache" in ast.unparse(decorator) for decorator in node.decorator_list)


def held_by(source: str) -> Iterator[str]:
    """The containers of a module: of its classes, of itself when they are no constants, and caches of functions."""
    tree = ast.parse(source)
    for part in tree.body:
        if isinstance(part, ast.Assign | ast.AnnAssign) and _makes(part.value):
            target = part.targets[0] if isinstance(part, ast.Assign) else part.target
            name = ast.unparse(target)
            if not name.startswith("__") and not name.strip("_").isupper():
                yield name
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and not _is_record(node):
            yield from (f"{node.name}.{name}" for name in dict.fromkeys(_of_class(node)))
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and _is_cached(node):
            yield f"{node.name}()"


def _held() -> Iterator[str]:
    for package in ("eventbus", "gateway"):
        for path in sorted((ROOT / package).rglob("*.py")):
            place = path.relative_to(ROOT).as_posix()
            if not place.startswith(LEFT_OUT):
                module = place.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
                yield from (f"{module}.{name}" for name in held_by(path.read_text()))
    for script in sorted((ROOT / "clients" / "js").glob("*.js")):
        inside = ""
        for line in script.read_text().splitlines():
            if (found := _SCRIPT_CLASS.match(line)) is not None:
                inside = found[1]
            elif (found := _SCRIPT_FIELD.match(line)) is not None:
                yield f"{script.name} {inside}.{found[1]}"


def _named() -> list[str]:
    return [name for kind in ("limit", "passing") for row in REGISTER[kind] for name in row.get("names", [])]


def test_every_container_that_lives_long_is_in_the_register_of_limits() -> None:
    missing = sorted(set(_held()) - set(_named()))
    assert not missing, "\n".join(["say in docs/limits.toml what bounds these, and what happens then:", *missing])


def test_the_register_of_limits_names_nothing_that_is_gone_and_nothing_twice() -> None:
    named = _named()
    assert sorted(set(named) - set(_held())) == []
    assert sorted(name for name in set(named) if named.count(name) > 1) == []


def test_the_page_of_limits_is_made_from_the_register_and_the_code() -> None:
    script = ROOT / "docs" / "limits.py"
    checked = subprocess.run([sys.executable, script, "--check"], cwd=ROOT, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr


def test_the_search_for_containers_finds_each_way_to_hold_something() -> None:
    source = """
table: dict[str, int] = {}
CONSTANT = {"a": 1}
@lru_cache(5)
def made(): ...
@dataclass(slots=True)
class Record:
    a: list[int]
    b: dict[str, int] = field(default_factory=dict)
    c: deque[int] = field(default_factory=lambda: deque(maxlen=3))
    d: int = 0
@dataclass(frozen=True)
class Value:
    e: dict[str, int] = field(default_factory=dict)
class Holder:
    def __init__(self):
        self.f = OrderedDict()
        self.g: deque[int] | None = None
        self.h: Final[set[int]] = set()
        self.i = asyncio.Queue()
        self.j = 5
        inner = []
    def later(self):
        self.k = [one for one in ()]
"""
    expected = ["table", "made()", *(f"Record.{name}" for name in "abc"), *(f"Holder.{name}" for name in "fghik")]
    assert sorted(held_by(source)) == sorted(expected)
