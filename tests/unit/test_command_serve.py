"""The command `eventbus-gateway`: its options, its help, and its one sentence about settings that can not work."""

from __future__ import annotations

import logging
import re
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import httpx
import pytest
import uvloop
from click.testing import CliRunner, Result

from eventbus.clock import SystemClock
from eventbus.errors import ConfigError
from eventbus.settings import entries
from eventbus.tokens import make_token
from gateway.__main__ import cli
from gateway.access.loopback import is_loopback
from gateway.admin.port import admin_authenticator, make_admin_app
from gateway.config import JwtSettings, ListenSettings, NodeSettings
from gateway.metrics import Snapshot
from gateway.processes.process import Stop, bind, close_all, port_of, ready_line
from gateway.version import VERSION

# libuv opens one pipe for signals a process, with the first loop; the leak check would blame the first test for it.
uvloop.new_event_loop().close()

SECRET = "s" * 40
EVERYWHERE = "0.0.0.0"  # noqa: S104
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def restored_logging() -> Iterator[None]:
    """Puts back what the command replaces."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    libraries = {name: logging.getLogger(name).level for name in ("asyncio", "redis", "uvicorn", "websockets")}
    for handler in handlers:
        root.removeHandler(handler)
    yield
    logging.captureWarnings(False)
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, was in libraries.items():
        logging.getLogger(name).setLevel(was)


@pytest.fixture
def secret_file(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_text(SECRET + "\n")
    return path


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield int(server.getsockname()[1])


def run(*arguments: str | Path, env: Mapping[str, str] | None = None) -> Result:
    return CliRunner().invoke(cli, [str(one) for one in arguments], env=env, prog_name="eventbus-gateway")


def refused(result: Result) -> str:
    """The one sentence on stderr of a command that ended with status 2."""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("eventbus-gateway: ")
    return lines[0].removeprefix("eventbus-gateway: ")


# --- help -------------------------------------------------------------------------------------------------------------
def test_help_tells_a_newcomer_what_it_is_and_how_to_go_on() -> None:
    shown = run("--help").stdout
    for words in ("WebSockets", "serve", "eventbus-gateway dev"):
        assert words in shown


def test_the_version_is_told() -> None:
    assert run("--version").stdout == f"eventbus-gateway {VERSION}\n"


def test_the_help_of_serve_shows_what_one_needs_with_its_variable_and_default() -> None:
    shown = " ".join(run("serve", "--help").stdout.split())
    for flag in ("--redis-url URL", "--host HOST", "--port N", "--admin-port N", "--admin-host HOST"):
        assert flag in shown
    for flag in ("--jwt-secret-file FILE", "--node NAME", "--workers N", "--log-format text|json"):
        assert flag in shown
    assert "[EVENTBUS_PORT; default 8080]" in shown
    assert "[EVENTBUS_JWT_SECRET_FILE]" in shown
    assert "docs/configuration.md" in shown
    assert "--store-down-ms" not in shown


def test_every_setting_is_an_option_and_help_all_shows_it() -> None:
    shown = " ".join(run("serve", "--help-all").stdout.split())
    for entry in entries(NodeSettings):
        assert re.search(rf"{entry.flag}(?= )", shown), entry.flag
        assert entry.option.env in shown


def test_help_needs_none_of_what_only_a_running_node_needs() -> None:
    """A newcomer's first look is quick: neither Redis's client nor the web server are loaded for it."""
    code = "import sys, gateway.__main__; print(sorted({'redis', 'uvicorn', 'starlette'} & set(sys.modules)))"
    made = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert made.stdout.strip() == "[]"


# --- bad settings -----------------------------------------------------------------------------------------------------
def test_no_key_at_all_is_refused() -> None:
    assert refused(run("serve", "--port", "0", "--admin-port", "0")).startswith(
        "no key to verify tokens with: set EVENTBUS_JWT_SECRET_FILE"
    )
    assert "no key" in refused(run("serve", "--port", "0", "--admin-port", "0", "--workers", "2"))


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--port", "70000"], "EVENTBUS_PORT is '70000': it must be a whole number from 0 to 65535"),
        (["--workers", "two"], "EVENTBUS_WORKERS is 'two': it must be a whole number from 1 to 256"),
        (["--log-format", "xml"], "EVENTBUS_LOG_FORMAT is 'xml': it must be one of text, json"),
        (["--redis-url", "http://x"], "EVENTBUS_REDIS_URL is not usable: it must be a URL such as redis://host"),
        (["--ack-timeout-ms", "-1"], "EVENTBUS_ACK_TIMEOUT_MS is '-1': it must be a whole number from"),
        (["--host", "nosuch.invalid"], "EVENTBUS_HOST is 'nosuch.invalid', which has no address: "),
        (["--host", "203.0.113.7"], "EVENTBUS_HOST is '203.0.113.7', which is no address of this machine"),
        (["--admin-host", "203.0.113.7"], "EVENTBUS_ADMIN_HOST is '203.0.113.7', which is no address"),
        (["--jwt-secret-file", "/nonexistent"], "EVENTBUS_JWT_SECRET_FILE is '/nonexistent', which cannot be read: "),
        (["--jwt-public-key-files", "/nonexistent"], "EVENTBUS_JWT_PUBLIC_KEY_FILES names '/nonexistent'"),
        (["--tls-cert-file", "c"], "EVENTBUS_TLS_CERT_FILE is set and EVENTBUS_TLS_KEY_FILE is not: TLS needs both"),
        (["--tls-cert-file", "/nonexistent", "--tls-key-file", "k"], "EVENTBUS_TLS_CERT_FILE '/nonexistent' and"),
        (["--workers", "2", "--node", "n" * 55], f"EVENTBUS_NODE is '{'n' * 55}': with 2 workers the name"),
    ],
)
def test_a_bad_setting_is_refused_in_one_sentence_with_status_2(
    arguments: Sequence[str], sentence: str, secret_file: Path
) -> None:
    common = ["--port", "0", "--admin-port", "0", "--jwt-secret-file", str(secret_file)]
    assert refused(run("serve", *common, *arguments)).startswith(sentence)


def test_a_variable_is_refused_as_a_flag_is(secret_file: Path) -> None:
    env = {"EVENTBUS_HEARTBEAT_MS": "soon", "EVENTBUS_JWT_SECRET_FILE": str(secret_file)}
    assert refused(run("serve", env=env)).startswith("EVENTBUS_HEARTBEAT_MS is 'soon': it must be a whole number")


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_port_that_is_taken_is_named(workers: str, taken_port: int, secret_file: Path) -> None:
    common = ["serve", "--workers", workers, "--jwt-secret-file", str(secret_file)]
    said = refused(run(*common, "--port", str(taken_port), "--admin-port", "0"))
    taken = f"127.0.0.1:{taken_port} is taken: something listens there already"
    assert said == f"EVENTBUS_PORT is {taken_port}, and {taken}"
    said = refused(run(*common, "--port", "0", "--admin-port", str(taken_port)))
    assert said == f"EVENTBUS_ADMIN_PORT is {taken_port}, and {taken}"


def test_a_variable_that_is_no_setting_is_a_warning_in_the_format_that_was_asked_for() -> None:
    result = run("serve", "--port", "0", env={"EVENTBUS_PROT": "1", "EVENTBUS_LOG_FORMAT": "json"})
    assert '"level":"warning"' in result.stderr
    assert "did you mean EVENTBUS_PORT?" in result.stderr


# --- ports and signals ------------------------------------------------------------------------------------------------
def test_a_bound_port_refuses_until_somebody_listens() -> None:
    bound = bind("127.0.0.1", 0, setting="PORT")
    try:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port_of(bound)), timeout=5)
    finally:
        close_all(bound)


def test_a_shared_port_can_be_bound_by_several_and_by_nobody_else() -> None:
    first = bind("127.0.0.1", 0, setting="PORT", shared=True)
    second = bind("127.0.0.1", port_of(first), setting="PORT", shared=True)
    try:
        second[0].listen()
        with pytest.raises(ConfigError, match="is taken"):
            bind("127.0.0.1", port_of(first), setting="PORT")
    finally:
        close_all(first + second)


def test_a_name_is_bound_on_each_of_its_addresses_with_one_port() -> None:
    bound = bind("localhost", 0, setting="PORT")
    try:
        assert len({sock.getsockname()[1] for sock in bound}) == 1
    finally:
        close_all(bound)


def test_the_ready_line_has_addresses_that_can_be_used() -> None:
    assert (
        ready_line(ListenSettings(node="n"), 80, 81) == "ready node=n url=http://127.0.0.1:80 admin=http://127.0.0.1:81"
    )
    listen = ListenSettings(node="n", host="::1", tls_cert_file="c", tls_key_file="k")
    assert "url=https://[::1]:80 " in ready_line(listen, 80, 81)


@pytest.mark.parametrize(
    "host, alone",
    [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("localhost", True), (EVERYWHERE, False), ("::", False)]
    + [("10.0.0.1", False), ("admin.example.org", False)],
)
def test_only_loopback_addresses_are_for_this_machine_alone(host: str, alone: bool) -> None:
    assert is_loopback(host) is alone


async def test_the_first_signal_asks_for_a_drain_and_the_second_for_the_end() -> None:
    stop = Stop()
    stop.ask()
    assert stop.asked.is_set()
    assert not stop.at_once.is_set()
    stop.ask()
    assert stop.at_once.is_set()


# --- the admin port ---------------------------------------------------------------------------------------------------
class Shown:
    """An overview with one figure."""

    async def figures(self) -> Snapshot:
        return {("eventbus_connections", ()): 7.0}

    def processes(self) -> Sequence[Mapping[str, object]]:
        return [{"node": "n", "pid": 1, "state": "ready"}]


def admin(host: str) -> httpx.AsyncClient:
    settings = NodeSettings(listen=ListenSettings(admin_host=host), jwt=JwtSettings(jwt_secret=SECRET.encode()))
    app = make_admin_app(Shown(), authenticator=admin_authenticator(settings))
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost")


async def test_metrics_need_no_token_on_loopback() -> None:
    async with admin("127.0.0.1") as client:
        answer = await client.get("/metrics")
        assert answer.status_code == 200
        assert "eventbus_connections 7.0" in answer.text
        assert answer.headers["content-type"].startswith("text/plain")
        processes = (await client.get("/healthz")).json()["processes"]
        assert processes == [{"node": "n", "pid": 1, "state": "ready"}]


@pytest.mark.requirement("R23")
@pytest.mark.parametrize(
    "host, status",
    [("localhost:9090", 200), ("127.0.0.1", 200), ("[::1]:9090", 200), ("LOCALHOST", 200)]
    + [("evil.example", 403), ("localhost.evil.example", 403), ("127.0.0.1.evil.example", 403), ("10.0.0.1", 403)],
)
async def test_a_page_whose_name_leads_to_loopback_can_not_look_at_the_admin_port(host: str, status: int) -> None:
    async with admin("127.0.0.1") as client:
        assert (await client.get("/metrics", headers={"Host": host})).status_code == status


@pytest.mark.requirement("R23")
async def test_metrics_need_the_scope_admin_on_any_other_address() -> None:
    async with admin(EVERYWHERE) as client:

        async def ask(scope: str | None, path: str = "/metrics") -> tuple[int, str]:
            headers = {}
            if scope is not None:
                now_ms = SystemClock().now_ms()
                token = make_token(user="ada", secret=SECRET.encode(), now_ms=now_ms, scopes=scope.split())
                headers = {"Authorization": f"Bearer {token}"}
            answer = await client.get(path, headers=headers)
            return answer.status_code, answer.json()["error"]["code"] if answer.status_code != 200 else ""

        assert await ask(None) == (401, "no_token")
        assert await ask("subscribe publish") == (403, "forbidden")
        assert await ask("admin") == (200, "")
        assert await ask(None, "/metrics?ticket=x") == (401, "no_token")
        assert await ask(None, "/nothing") == (404, "not_found")
        assert (await client.get("/healthz")).json() == {"status": "alive"}
