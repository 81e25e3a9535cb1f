"""Write `docs/limits.md` from `docs/limits.toml`; the numbers come from the code and the settings.

python docs/limits.py           writes the page
python docs/limits.py --check   exit status 1 when the page is not what the register says
"""

from __future__ import annotations

import importlib
import sys
import tomllib
from typing import Any

from made import ROOT, write_or_check

sys.path.insert(0, str(ROOT))

from eventbus.settings import entries
from gateway.config import NodeSettings

REGISTER = ROOT / "docs" / "limits.toml"
PAGE = ROOT / "docs" / "limits.md"

PARTS = (
    ("connection", "One connection of a node"),
    ("node", "A node"),
    ("redis link", "The connection to Redis, of nodes and publishers"),
    ("publisher", "A publisher: `Bus`, runs"),
    ("subscriber", "The Python client: `Subscriber`"),
    ("javascript", "The JavaScript client"),
    ("redis", "In Redis"),
)


def shown(name: str, number: int) -> str:
    """A number with its unit, which its name tells."""
    if name.lower().endswith("_bytes"):
        for size, unit in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
            if number and number % size == 0:
                return f"{number // size:,} {unit}"
        return f"{number:,} bytes"
    if name.lower().endswith("_ms"):
        for length_ms, unit in ((3_600_000, "h"), (60_000, "min"), (1_000, "s")):
            if number and number % length_ms == 0:
                return f"{number // length_ms:,} {unit}"
        return f"{number:,} ms"
    return f"{number:,}"


def number_of(place: str) -> str:
    """The value of `module:NAME` or `module:Class.attribute`, as the page shows it."""
    module, _, path = place.partition(":")
    value: Any = importlib.import_module(module)
    for name in path.split("."):
        fields = getattr(value, "__dataclass_fields__", {})
        value = fields[name].default if isinstance(value, type) and name in fields else getattr(value, name)
    return shown(path, value)


def defaults() -> dict[str, str]:
    """The default of each setting, by its variable."""
    found = {}
    for entry in entries(NodeSettings):
        # A default that follows from another begins with what it is by itself.
        number = entry.default_text.replace(",", " ").split()
        if number and number[0].isdecimal():
            found[entry.option.env] = shown(entry.option.env, int(number[0]))
    return found


def row(limit: dict[str, Any], known: dict[str, str]) -> str:
    """One line of a table."""
    settings, constants = limit.get("settings", []), limit.get("constants", [])
    numbers = [f"{known[name]} (`{name}`)" for name in settings] + [number_of(place) for place in constants]
    bound = limit["bound"].format(*numbers)
    return f"| {limit['what']} | {bound} | {limit['policy']} |"


def register() -> dict[str, Any]:
    """The register."""
    return tomllib.loads(REGISTER.read_text(encoding="utf-8"))


def page() -> str:
    """The whole page."""
    found, known = register(), defaults()
    limits, text = found["limit"], str(found["head"])
    for part, title in PARTS:
        rows = [row(limit, known) for limit in limits if limit["part"] == part]
        text += f"\n## {title}\n| what | bound | at the bound |\n|---|---|---|\n" + "\n".join(rows) + "\n"
    return text


if __name__ == "__main__":
    sys.exit(write_or_check(PAGE, page()))
