"""The rights that docs/redis.md gives to the bus's user of a server: tests take them from the page."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

_PAGE: Final = Path(__file__).resolve().parents[2] / "docs" / "redis.md"

USER: Final = "bus"
PASSWORD: Final = "password"


def rights_of(page: str) -> tuple[str, ...]:
    """The words after `ACL SETUSER bus` on a page, over all lines of that block."""
    found = re.search(rf"^ACL SETUSER {USER} ((?:.+\n)+?)```", page, re.MULTILINE)
    assert found is not None, "the page gives no rights"
    return tuple(found[1].split())


LEAST_RIGHTS: Final = rights_of(_PAGE.read_text())
