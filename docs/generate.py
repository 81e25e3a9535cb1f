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

HTTP = """
## Further codes of HTTP answers

What a node answers to requests and handshakes beside the codes above, with a message, and the field where there is one.

| code | status | what happened |
|---|---|---|
"""

UNAUTHENTICATED = (
    "no_token malformed bad_algorithm unknown_key bad_signature bad_claim not_yet_valid token_expired bad_ticket"
    " token_revoked"
)
HTTP_CODES = [
    (UNAUTHENTICATED, "401", "Why a token or ticket is not good. On a socket all of them are `unauthenticated`."),
    ("bad_request", "400, 431", "No HTTP, no JSON, or a wrong parameter."),
    ("bad_handshake", "400, 405, 505", "A handshake that is none."),
    ("unknown_subprotocol", "400", "A handshake that offers only subprotocols that the node has not."),
    ("bad_proxy_header", "400", "A header of the PROXY protocol that can not be read."),
    (
        "upgrade_required",
        "426",
        "`GET /v1/connect` without `Upgrade: websocket`: nobody has put it in, or a proxy has taken it out.",
    ),
    ("not_found method_not_allowed", "404, 405", "Nothing is there, or not for this method."),
    (
        "request_timeout body_too_large head_too_long",
        "408, 413, 431",
        "The request took too long to come, or is too large.",
    ),
    ("not_confirmed", "409", "An operator's action concerns something else than what was confirmed."),
    ("overloaded", "429, 503", "The node has no room: for bodies of requests, or for connections."),
    (
        "draining not_ready handshake_timeout shutting_down cancelled",
        "503",
        "The node takes nobody for now: ask another one, or come later.",
    ),
    ("internal", "500", "A defect of the node."),
]


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
    http = [
        f"| {', '.join(f'`{code}`' for code in words.split())} | {status} | {what} |"
        for words, status, what in HTTP_CODES
    ]
    return (
        HEAD
        + "\n".join(lines)
        + "\n\n## Close codes\n\n| code | name | reconnect |\n|---|---|---|\n"
        + "\n".join(codes)
        + "\n"
        + HTTP
        + "\n".join(http)
        + "\n"
    )


if __name__ == "__main__":
    sys.exit(write_or_check(PAGE, page()))
