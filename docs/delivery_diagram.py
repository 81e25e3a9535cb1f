"""Write the diagram in `docs/delivery.md` from the table of `eventbus/delivery.py`.

python docs/delivery_diagram.py           writes the page
python docs/delivery_diagram.py --check   exit status 1 when the page is not what the table says
"""

from __future__ import annotations

import sys

from made import ROOT, write_or_check

sys.path.insert(0, str(ROOT))

from eventbus.delivery import TABLE, Phase

PAGE = ROOT / "docs" / "delivery.md"
BEGIN = "<!-- made by docs/delivery_diagram.py -->\n"
END = "<!-- to here -->"


def diagram() -> str:
    """The phases and what leads from one to another, as Mermaid; then what each phase takes without leaving it."""
    moving: dict[tuple[Phase, Phase], list[str]] = {}
    staying: dict[Phase, list[str]] = {}
    for (phase, kind), cell in TABLE.items():
        for to in cell.to:
            if to is not phase:
                moving.setdefault((phase, to), []).append(kind.__name__)
        if phase in cell.to:
            staying.setdefault(phase, []).append(kind.__name__)
    lines = ["```mermaid", "stateDiagram-v2", f"    [*] --> {Phase.ATTACHING.value}"]
    lines += [f"    {source.value} --> {to.value}: {', '.join(kinds)}" for (source, to), kinds in moving.items()]
    lines += [f"    {Phase.CLOSED.value} --> [*]", "```", "", "| phase | takes, and may stay |", "|---|---|"]
    lines += [f"| {phase.value} | {', '.join(sorted(kinds))} |" for phase, kinds in staying.items()]
    return "\n".join(lines) + "\n"


def page(text: str) -> str:
    """The page with the diagram of today."""
    head, _, rest = text.partition(BEGIN)
    return head + BEGIN + diagram() + END + rest.partition(END)[2]


if __name__ == "__main__":
    sys.exit(write_or_check(PAGE, page(PAGE.read_text(encoding="utf-8"))))
