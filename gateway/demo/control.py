"""The page's own server: the page, and what its buttons do. Loopback only.

Every request but those for the page's files carries a token that only the page has, and names this machine as its host:
another site that is open in the same browser can neither press a button nor read an answer.
"""

from __future__ import annotations

import asyncio
import hmac
import re
import secrets
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

import orjson
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from eventbus import Bus
from eventbus.clock import Clock, seconds
from eventbus.embedded import EmbeddedServer
from eventbus.errors import EventBusError, InvalidField
from eventbus.ids import ThreadId, parse_thread_id, parse_user_id
from eventbus.store import Store
from eventbus.tokens import make_token
from gateway.demo.files import UPLOAD_MAX_BYTES, Files, SharedFile
from gateway.demo.fleet import Fleet
from gateway.demo.jobs import AGENT, TIER, USER, Job
from gateway.demo.published import Published
from gateway.demo.ticks import Ticks
from gateway.transport.handshake import Decision, Reject, UpgradeRequest
from gateway.web.routes import answer

__all__ = ["Control", "NoSockets", "Refused"]

RUNS_AT_ONCE: Final = 3
QUESTION_MAX_CHARACTERS: Final = 300
PACE_MAX_MS: Final = 5_000
BODY_MAX_BYTES: Final = 8 * 1024
TOKEN_LIFE_MS: Final = 3_600_000
STORE_WAIT_MS: Final = 1_000
REQUEST_MS: Final = 3_000

_PAGE: Final = Path(__file__).parent / "page"
_MEDIA: Final = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
_HOST: Final = re.compile(r"(?:127\.0\.0\.1|localhost)(?::\d{1,5})?")
_TOKEN_PLACE: Final = b"{{control_token}}"
_INSTALLATION_PLACE: Final = b"{{installation}}"

Handler = Callable[[Request], Awaitable[Response]]


class Refused(Exception):
    """A request can not be done; the page shows the message."""

    def __init__(self, status: HTTPStatus, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class NoSockets:
    """Nobody gets a socket here: those are for the nodes."""

    def decide(self, request: UpgradeRequest) -> Decision:
        return Reject(status=HTTPStatus.NOT_FOUND, code="not_found", message="sockets are at /v1/connect")


class Control:
    """What the page can see and do.

    Args:
        fleet: the nodes and the agent.
        files: what the agent can be asked about.
        published: the agent's log.
        bus: asks for runs, and for the confirmations of their events.
        store: to see what waits there.
        server: the local server, for its name and pid.
        secret: signs the page's tokens.
        installation: names the data: what a tab remembers belongs to it.
        clock: wall time and monotonic time.
    """

    def __init__(
        self,
        *,
        fleet: Fleet,
        files: Files,
        published: Published,
        bus: Bus,
        store: Store,
        server: EmbeddedServer,
        secret: bytes,
        installation: str,
        clock: Clock,
    ) -> None:
        self._fleet = fleet
        self._files = files
        self._published = published
        self._store = store
        self._server = server
        self._secret = secret
        self._installation = installation
        self._bus = bus
        self._ticks = Ticks(bus, clock)
        self._now_ms = clock.now_ms
        self._token = secrets.token_urlsafe(32)

    def app(self) -> Starlette:
        """The HTTP side."""
        guarded: Mapping[str, tuple[str, Handler]] = {
            "/demo/state": ("GET", self.state),
            "/demo/token": ("POST", self.make_token),
            "/demo/files": ("POST", self.upload),
            "/demo/runs": ("POST", self.start_run),
            "/demo/agent/kill": ("POST", self.kill_agent),
            "/demo/nodes/{name}/kill": ("POST", self.kill_node),
            "/demo/nodes/{name}/revive": ("POST", self.revive_node),
        }
        return Starlette(
            routes=[
                Route("/", self.page, methods=["GET"]),
                Route("/page/{name}", self.page_file, methods=["GET"]),
                *(Route(path, self._guarded(handler), methods=[method]) for path, (method, handler) in guarded.items()),
            ],
            middleware=[
                Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"], www_redirect=False)
            ],
            exception_handlers={Refused: _refusal},
        )

    # --- runs ---------------------------------------------------------------------------------------------------------

    async def run(self, file: SharedFile, question: str, pace_ms: int, thread: ThreadId | None = None) -> str:
        """Give the agent a question.

        Args:
            file: what it is about.
            question: the visitor's words.
            pace_ms: the pause after each step.
            thread: the conversation; a new one when absent.

        Returns:
            The run's id.

        Raises:
            Refused: the agent has enough to do, or has just died; or the store does not answer.
        """
        self._published.read()
        if len(self._published.open_runs()) >= RUNS_AT_ONCE:
            message = f"{RUNS_AT_ONCE} runs are under way: wait until one has ended"
            raise Refused(HTTPStatus.TOO_MANY_REQUESTS, "busy", message)
        thread = thread or ThreadId(f"talk-{secrets.token_hex(4)}")
        if not self._fleet.agent.running:
            raise _no_agent()
        try:
            async with asyncio.timeout(seconds(REQUEST_MS)):
                # Written down before the agent has it: should it never begin, operators are told.
                run = await self._bus.request_run(user=USER, agent=AGENT, thread=thread, tier=TIER)
        except (EventBusError, TimeoutError):
            message = "the store does not answer: try once more"
            raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, "no_store", message) from None
        path = str(file.path)
        job = Job(run=run, thread=thread, question=question, path=path, name=file.name, pace_ms=pace_ms)
        try:
            self._fleet.agent.submit(job)
        except ConnectionError:
            raise _no_agent() from None
        return run

    async def aclose(self) -> None:
        """Ask the bus for nothing any more."""
        await self._ticks.aclose()

    # --- the page -----------------------------------------------------------------------------------------------------

    async def page(self, request: Request) -> Response:
        """`GET /`."""
        host = request.headers.get("host", "")
        # Some browsers do not count a WebSocket of the same host as 'self'.
        sockets = f"ws://{host}" if _HOST.fullmatch(host) else ""
        policy = (
            f"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self' {sockets};"
            " worker-src blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none';"
            " require-trusted-types-for 'script'"
        )
        html = (_PAGE / "index.html").read_bytes().replace(_TOKEN_PLACE, self._token.encode())
        html = html.replace(_INSTALLATION_PLACE, self._installation.encode())
        return Response(html, media_type="text/html", headers=_headers({"Content-Security-Policy": policy}))

    async def page_file(self, request: Request) -> Response:
        """`GET /page/...`: a file that the page loads."""
        name = request.path_params["name"]
        path = _PAGE / name
        if path.suffix not in _MEDIA or not re.fullmatch(r"[a-z-]+\.[a-z]+", name) or not path.is_file():
            raise Refused(HTTPStatus.NOT_FOUND, "not_found", f"there is no {name[:40]}")
        return Response(path.read_bytes(), media_type=_MEDIA[path.suffix], headers=_headers({}))

    # --- what its buttons do ------------------------------------------------------------------------------------------

    def _guarded(self, handler: Handler) -> Handler:
        async def endpoint(request: Request) -> Response:
            if not hmac.compare_digest(request.headers.get("x-demo-token", "").encode(), self._token.encode()):
                message = "this page is of an earlier start of the demo: load it again"
                raise Refused(HTTPStatus.FORBIDDEN, "wrong_token", message)
            return await handler(request)

        return endpoint

    async def make_token(self, request: Request) -> Response:
        """`POST /demo/token`: the token for the socket."""
        token = make_token(
            user=USER,
            secret=self._secret,
            now_ms=self._now_ms(),
            ttl_ms=TOKEN_LIFE_MS,
            scopes=("subscribe",),
            tier="pro",
        )
        return answer({"token": token})

    async def state(self, request: Request) -> Response:
        """`GET /demo/state?run=&session=`: the processes, the files, what was published in a run and how far that has
        come, what waits for a session.
        """
        self._published.read()
        agent, server = self._fleet.agent, self._server
        run = request.query_params.get("run", "")
        published = self._published.of_run(run)
        body = {
            "nodes": [
                {"name": node.name, "pid": node.pid, "port": node.port, "state": node.state, "ended": node.ended}
                for node in self._fleet.nodes.values()
            ],
            "agent": {"pid": agent.pid, "state": agent.state},
            "server": {
                "name": f"{server.binary.kind.capitalize()} {server.binary.version}",
                "pid": server.pid if server.running else 0,
                "state": "ready" if server.running else "ended",
            },
            "files": [
                {"id": file.id, "name": file.name, "bytes": file.size_bytes, "question": file.question}
                for file in self._files.all()
            ],
            "runs": self._published.counts(),
            "published": published,
            "confirmations": self._ticks.of_run(run) if published else {},
            "pending": await self._pending(request.query_params.get("session", "")),
        }
        return answer(body)

    async def _pending(self, session: str) -> int | None:
        """How many entries wait for the session's ack, as the store says; None when nobody knows."""
        try:
            async with asyncio.timeout(seconds(STORE_WAIT_MS)):
                records = await self._store.sessions(parse_user_id(USER))
        except (EventBusError, TimeoutError):
            return None
        return next((record.pending for record in records if record.session == session), None)

    async def upload(self, request: Request) -> Response:
        """`POST /demo/files?name=`: a file of the visitor's, as the body."""
        content = await _body(request, UPLOAD_MAX_BYTES)
        if not content.strip():
            raise Refused(HTTPStatus.BAD_REQUEST, "empty", "the file is empty")
        file = await asyncio.to_thread(self._files.add, request.query_params.get("name", ""), content)
        return answer({"id": file.id, "name": file.name, "bytes": file.size_bytes}, HTTPStatus.CREATED)

    async def start_run(self, request: Request) -> Response:
        """`POST /demo/runs`: `{"file", "question", "pace_ms", "thread"}`."""
        asked = await _object(request)
        file = self._files.get(str(asked.get("file", "")))
        if file is None:
            raise Refused(
                HTTPStatus.NOT_FOUND, "no_file", "the agent does not have this file any more: choose it again"
            )
        question = str(asked.get("question", "")).strip()
        if not question or len(question) > QUESTION_MAX_CHARACTERS:
            message = f"ask something, in at most {QUESTION_MAX_CHARACTERS} characters"
            raise Refused(HTTPStatus.BAD_REQUEST, "bad_question", message)
        pace_ms = asked.get("pace_ms")
        if type(pace_ms) is not int or not 0 <= pace_ms <= PACE_MAX_MS:
            raise Refused(HTTPStatus.BAD_REQUEST, "bad_pace", f"pace_ms must be from 0 to {PACE_MAX_MS}")
        try:
            thread = parse_thread_id(asked.get("thread"))
        except InvalidField as error:
            raise Refused(HTTPStatus.BAD_REQUEST, "bad_thread", str(error)) from None
        return answer({"run": await self.run(file, question, pace_ms, thread)}, HTTPStatus.ACCEPTED)

    async def kill_agent(self, request: Request) -> Response:
        """`POST /demo/agent/kill`: SIGKILL. It is started again by itself; what it worked on, a node ends."""
        agent = self._fleet.agent
        pid = agent.pid
        if not agent.kill():
            raise Refused(HTTPStatus.CONFLICT, "not_running", "the agent is being started again")
        return answer({"killed": pid})

    async def kill_node(self, request: Request) -> Response:
        """`POST /demo/nodes/{name}/kill`: SIGKILL."""
        node = self._fleet.nodes.get(request.path_params["name"])
        if node is None or not node.kill():
            raise Refused(HTTPStatus.CONFLICT, "not_running", "this node does not run")
        await node.gone()
        return answer({"killed": node.pid})

    async def revive_node(self, request: Request) -> Response:
        """`POST /demo/nodes/{name}/revive`: answers when the node takes connections."""
        node = self._fleet.nodes.get(request.path_params["name"])
        if node is None or node.running:
            raise Refused(HTTPStatus.CONFLICT, "running", "this node runs already")
        if not await node.start():
            message = f"{node.name} did not start: {node.ended}. {node.last_words()}"
            raise Refused(HTTPStatus.INTERNAL_SERVER_ERROR, "not_started", message)
        return answer({"pid": node.pid, "port": node.port})


def _no_agent() -> Refused:
    message = "the agent is being started again: try once more"
    return Refused(HTTPStatus.SERVICE_UNAVAILABLE, "no_agent", message)


def _headers(extra: Mapping[str, str]) -> dict[str, str]:
    return {
        "Cache-Control": "no-store",
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Opener-Policy": "same-origin",
        **extra,
    }


async def _refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)  # noqa: S101 - what the table of handlers says
    return answer({"error": {"code": error.code, "message": str(error)}}, error.status)


async def _body(request: Request, max_bytes: int) -> bytes:
    """Reads a body, bounded. Raises: Refused."""
    content = bytearray()
    try:
        async for chunk in request.stream():
            content += chunk
            if len(content) > max_bytes:
                message = f"that is too large: at most {max_bytes // 1024} KiB are taken"
                raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too_large", message)
    except ClientDisconnect:
        raise Refused(HTTPStatus.BAD_REQUEST, "cut", "the request ended early") from None
    return bytes(content)


async def _object(request: Request) -> dict[str, Any]:
    try:
        parsed = orjson.loads(await _body(request, BODY_MAX_BYTES))
    except orjson.JSONDecodeError:
        parsed = None
    if not isinstance(parsed, dict):
        raise Refused(HTTPStatus.BAD_REQUEST, "bad_body", "the body must be a JSON object")
    return parsed
