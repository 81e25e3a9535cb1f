"""R23, R29: no token, ticket, secret, password or payload is in a log or an answer, whatever is done or tried."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from eventbus.clock import SystemClock
from eventbus.tokens import make_token
from tests.support.processes import Child, Processes
from tests.support.raw_websocket import TEXT, RawClient, client_frame, connected, upgrade_head
from tests.support.servers import NewServer
from tests.support.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.requirement("R23"), pytest.mark.requirement("R29")]

SECRET = "jwt-secret-that-nobody-may-read-0123456789"
PASSWORD = "redis-password-that-nobody-may-read"
HOOK = "whsec-webhook-secret-that-nobody-may-read-01"
PAYLOAD = "payload-that-nobody-may-read"


class Spy:
    """Collects what a node answers, and knows what must not be in it."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.tokens: list[str] = []
        self.misplaced: list[str] = []

    def token(self, user: str = "ada", secret: str = SECRET, **claims: Any) -> str:
        made = make_token(user=user, secret=secret.encode(), now_ms=SystemClock().now_ms(), **claims)
        self.tokens.append(made)
        return made

    def stray(self) -> str:
        """A token for a place where none belongs: its sender may be told of it, and nobody else."""
        made = make_token(user="stray", secret=SECRET.encode(), now_ms=SystemClock().now_ms())
        self.misplaced.append(made)
        return made

    def found_in(self, text: str, tokens: list[str], *more: str) -> list[str]:
        # The signature alone is enough to tell that a token was written down.
        signatures = [token.split(".")[2] for token in tokens]
        return [word for word in (SECRET, PASSWORD, HOOK, *signatures, *more) if word in text]


async def _http(spy: Spy, url: str) -> str:
    """Good and bad requests; the ticket that was made and not used."""
    good = {"Authorization": f"Bearer {spy.token(scopes=('publish', 'subscribe'))}"}
    foreign = spy.token(secret="another-secret-of-at-least-32-bytes-long")
    event = {"type": "note", "user": "ada", "data": {"text": PAYLOAD}}
    async with httpx.AsyncClient(base_url=url) as http:
        first = (await http.post("/v1/tickets", headers=good)).json()["ticket"]
        second = (await http.post("/v1/tickets", headers=good)).json()["ticket"]
        answers = [
            await http.post("/v1/events", json=event, headers=good),
            await http.get(f"/v1/events?ticket={first}&limit=0"),
            await http.get(f"/v1/events?ticket={first}"),
            await http.post("/v1/events", json={**event, "type": PAYLOAD * 9}, headers=good),
            await http.post("/v1/events", json={**event, "data": PAYLOAD}, headers=good),
            await http.post("/v1/events", json={**event, PAYLOAD: 1}, headers=good),
            await http.post("/v1/events", content=b'{"data": "' + PAYLOAD.encode(), headers=good),
            await http.get("/v1/events", headers={"Authorization": f"Bearer {foreign}"}),
            await http.get("/v1/events", headers={"Authorization": f"Bearer {foreign}x"}),
            await http.get("/v1/events", headers={"Authorization": foreign}),
            await http.get(f"/v1/events?token={foreign}"),
            await http.get(f"/v1/events?ticket={foreign}"),
            await http.get(f"/{spy.stray()}"),
            await http.get("/v1/presence?user=bob", headers={"Authorization": f"Bearer {spy.token()}"}),
            await http.post("/v1/acks", json={"op": "ack", "ids": [PAYLOAD], "session": "s"}, headers=good),
            await http.get(f"/v1/sse?session=s&filter={PAYLOAD}", headers=good),
        ]
    assert answers[0].status_code == 202
    spy.heard += [answer.text for answer in answers]
    return str(second)


async def _frames(raw: RawClient, spy: Spy, *frames: bytes) -> None:
    """Sends frames and listens until the node says no more."""
    for frame in frames:
        raw.write(client_frame(TEXT, frame))
    with suppress(asyncio.IncompleteReadError, TimeoutError, ConnectionError):
        async with asyncio.timeout(0.5):
            while True:
                spy.heard.append((await raw.read_frame())[1].decode(errors="replace"))


async def _sockets(spy: Spy, port: int) -> None:
    """Tokens in every way that there is, good and bad, and frames that are wrong."""
    foreign = spy.token(secret="another-secret-of-at-least-32-bytes-long")
    hellos = [
        {"op": "hello", "token": spy.token(), "session": "s1"},
        {"op": "hello", "token": foreign, "session": "s2"},
        {"op": "hello", "token": f"{foreign}\r\n{foreign}", "session": "s3"},
        {"op": "hello", "session": spy.stray()},
        {"op": spy.stray()},
    ]
    for hello in hellos:
        async with connected(port) as raw:
            await raw.upgrade()
            refresh = json.dumps({"op": "refresh", "token": foreign}).encode()
            command = json.dumps({"op": "send", "type": "message", "data": {"text": PAYLOAD}, "ref": "r"}).encode()
            await _frames(raw, spy, json.dumps(hello).encode(), command, refresh, b'{"op":"' + PAYLOAD.encode())
    for headers in ({"authorization": f"Bearer {foreign}"}, {"sec_websocket_protocol": f"x, {foreign}"}):
        async with connected(port) as raw:
            raw.write(upgrade_head(**headers))
            spy.heard.append((await raw.read_all()).decode(errors="replace"))


async def test_logs_at_debug_and_answers_hold_no_secret_no_token_and_no_payload(
    processes: Processes, new_server: NewServer, tmp_path: Path
) -> None:
    server = new_server()
    with redis.Redis.from_url(server.url) as admin:
        admin.config_set("requirepass", PASSWORD)
    secret = tmp_path / "secret"
    secret.write_text(SECRET)
    env = {
        "EVENTBUS_REDIS_URL": server.url.replace("://", f"://:{PASSWORD}@"),
        "EVENTBUS_JWT_SECRET_FILE": str(secret),
        "EVENTBUS_PORT": "0",
        "EVENTBUS_ADMIN_PORT": "0",
        "EVENTBUS_LOG_LEVEL": "debug",
        "EVENTBUS_LOG_FORMAT": "json",
        "EVENTBUS_WEBHOOK_URL": f"http://127.0.0.1:9/{HOOK}",
        "EVENTBUS_WEBHOOK_SECRET": HOOK,
        "EVENTBUS_REDIS_TIMEOUT_MS": "300",
        "EVENTBUS_PUBLISH_DEADLINE_MS": "1000",
    }
    child: Child = processes.gateway("serve", env=env)
    line = await child.line(r"^ready ")
    url = line.split("url=")[1].split()[0]
    spy = Spy()

    ticket = await _http(spy, url)
    await _sockets(spy, int(url.rpartition(":")[2]))
    # With the store gone everything that can fail does, and says why.
    server.kill()
    async with httpx.AsyncClient(base_url=url) as http:
        good = {"Authorization": f"Bearer {spy.token(scopes=('publish', 'subscribe'))}"}
        event = {"type": "note", "user": "ada", "data": {"text": PAYLOAD}}
        failed = await http.post("/v1/events", json=event, headers=good, timeout=20)
        assert failed.status_code == 503
        spy.heard += [failed.text, (await http.get(f"/v1/events?ticket={ticket}")).text]
        spy.heard.append((await http.get("/readyz")).text)
    await until(lambda: "Connection" in child.stderr or "connection" in child.stderr)
    child.terminate()
    await child.wait()

    assert child.stderr.count("\n") > 5, "there is a log"
    assert spy.found_in(child.stdout + child.stderr, spy.tokens + spy.misplaced, PAYLOAD, ticket) == []
    answers = "\n".join(spy.heard)
    assert len(spy.heard) > 20
    assert spy.found_in(answers, spy.tokens, ticket) == []
    assert "Traceback" not in answers
    assert ".py" not in answers
