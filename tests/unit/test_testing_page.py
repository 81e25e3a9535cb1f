"""The examples of docs/testing.md work as they stand there."""

from __future__ import annotations

import inspect
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "testing.md"


def examples() -> dict[str, Callable[[], Awaitable[None]]]:
    """The tests on the page, by name; its blocks are one program."""
    program = "\n".join(re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL))
    names: dict[str, Any] = {}
    exec(compile(program, str(PAGE), "exec"), names)  # noqa: S102 - the project's own page
    found = {name: value for name, value in names.items() if name.startswith("test_")}
    assert len(found) == program.count("async def test_"), "two tests of the page have the same name"
    return found


@pytest.mark.parametrize("name", sorted(examples()))
async def test_example_works(name: str) -> None:
    await examples()[name]()


def test_page_names_every_switch() -> None:
    from eventbus.testing import MemoryStore
    from eventbus.testing.memory_faults import FaultSwitches

    own = [FaultSwitches, MemoryStore]
    switches = {
        name
        for kind in own
        for name, value in vars(kind).items()
        if not name.startswith("_") and inspect.isfunction(value) and not inspect.iscoroutinefunction(value)
    }
    text = PAGE.read_text()

    assert {name for name in switches if f"{name}(" not in text} == set()
