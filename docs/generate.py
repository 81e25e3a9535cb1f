"""Write `docs/errors.md` from `eventbus/errors`.

python docs/generate.py           writes the page
python docs/generate.py --check   exit status 1 when the page is not what the code says
"""

from __future__ import annotations

import inspect
import sys

from made import ROOT, write_or_check

sys.path.insert(0, str(ROOT))

from eventbus import errors
from eventbus.errors import CloseCode, EventBusError

PAGE = ROOT / "docs" / "errors.md"

HEAD = """# Errors

Everything that the bus raises on purpose is an `EventBusError`. Decide by the class or by `error.code`, which is the
same word in `error` frames, HTTP answers, logs and metrics; never by the message. "retry" says that the same call may
succeed later, "close" what a node closes the socket with.

This page is generated from `eventbus/errors` by `python docs/generate.py`.

| class | code | retry | close | what happened |
|---|---|---|---|---|
"""


def tree(error: type[EventBusError], depth: int = 0) -> list[tuple[int, type[EventBusError]]]:
    """The error and those under it, in the order in which they are written down."""
    rows = [(depth, error)]
    for kind in error.__subclasses__():
        if kind.__name__ in errors.__all__:
            rows.extend(tree(kind, depth + 1))
    return rows


def meaning(kind: type[object]) -> str:
    """The first paragraph of a docstring as one line."""
    return " ".join((inspect.getdoc(kind) or "").split("\n\n")[0].split())


def page() -> str:
    """The whole page."""
    lines = []
    for depth, error in tree(EventBusError):
        close = "" if error.close_code is None else str(int(error.close_code))
        retry = "yes" if error.retryable else "no"
        indent = "&nbsp;&nbsp;" * depth
        lines.append(f"| {indent}`{error.__name__}` | `{error.code}` | {retry} | {close} | {meaning(error)} |")
    codes = [
        f"| {int(code)} | {code.name.lower()} | {'yes' if code.reconnect else 'no'} |" for code in sorted(CloseCode)
    ]
    return (
        HEAD
        + "\n".join(lines)
        + "\n\n## Close codes\n\n| code | name | reconnect |\n|---|---|---|\n"
        + "\n".join(codes)
        + "\n"
    )


if __name__ == "__main__":
    sys.exit(write_or_check(PAGE, page()))
