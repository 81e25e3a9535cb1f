"""The files of the page, with headers that keep everything else out of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from eventbus.inspection import EXPLANATIONS, FATE_EXPLANATIONS, Fate, Verdict
from gateway.web.common import answer

__all__ = ["page_routes"]

_PAGE: Final = Path(__file__).parent / "page"
_NAME: Final = re.compile(r"[a-z-]+\.(?:js|css|svg)")
_MEDIA: Final = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}

_HEADERS: Final[Mapping[str, str]] = {
    # Nothing from elsewhere, no script or style in the markup, and no text that becomes markup: what an event holds is
    # shown as it is.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self';"
        " base-uri 'none'; form-action 'none'; frame-ancestors 'none';"
        " require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def _by_name(words: Mapping[Verdict, str] | Mapping[Fate, str]) -> dict[str, str]:
    return {str(name): text for name, text in words.items()}


def page_routes(check: Callable[[Request], None]) -> list[Route]:
    """Make the routes: `/console/` and its files, and the way there from `/`.

    Args:
        check: raises for who is not even shown the page. It can ask for no token: a browser that opens an address has
            none to give.
    """

    async def start(request: Request) -> Response:
        check(request)
        return RedirectResponse("/console/", headers={"Cache-Control": "no-store"})

    async def index(request: Request) -> Response:
        check(request)
        return Response((_PAGE / "index.html").read_bytes(), media_type="text/html", headers=_HEADERS)

    async def words(request: Request) -> Response:
        check(request)
        return answer({"verdicts": _by_name(EXPLANATIONS), "fates": _by_name(FATE_EXPLANATIONS)})

    async def file(request: Request) -> Response:
        check(request)
        name = request.path_params["name"]
        path = _PAGE / name
        if not _NAME.fullmatch(name) or not path.is_file():
            raise HTTPException(404)
        return Response(path.read_bytes(), media_type=_MEDIA[path.suffix], headers=_HEADERS)

    return [
        Route("/", start, methods=["GET"]),
        Route("/console", start, methods=["GET"]),
        Route("/console/", index, methods=["GET"]),
        Route("/console/words.json", words, methods=["GET"]),
        Route("/console/{name}", file, methods=["GET"]),
    ]
