"""The command `eventbus` without a server: usage, settings, tokens, how it prints, how it ends."""

from __future__ import annotations

import io
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from joserfc import jwt
from joserfc.jwk import OctKey

from eventbus.cli import cli
from eventbus.cli.output import age, plain, print_table

SECRET = "s" * 40
COMMANDS = (
    "publish",
    "tail",
    "token",
    "pending",
    "sessions",
    "event",
    "dead",
    "runs",
    "operator-events",
    "rates",
    "schemas",
    "nodes",
    "doctor",
)


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the developer has set is not for the tests."""
    for name in list(os.environ):
        if name.startswith("EVENTBUS_"):
            monkeypatch.delenv(name)


@pytest.fixture
def secret_file(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_text(SECRET + "\n")
    return path


@pytest.fixture
def nowhere() -> Iterator[str]:
    """The address of a server that does not run."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"redis://127.0.0.1:{taken.getsockname()[1]}/0"


def run(*words: str, **more: object) -> Result:
    return CliRunner().invoke(cli, words, prog_name="eventbus", **more)  # type: ignore[arg-type]


def claims_of(token: str) -> dict[str, object]:
    return jwt.decode(token, OctKey.import_key(SECRET), algorithms=["HS256"]).claims


# --- help and usage ---------------------------------------------------------------------------------------------------


def test_help_names_every_command_and_the_exit_codes() -> None:
    result = run("--help")
    assert result.exit_code == 0
    assert all(command in result.output for command in COMMANDS)
    assert "3 the store is unavailable" in " ".join(result.output.split())


@pytest.mark.parametrize("command", [*([name] for name in COMMANDS), ["dead", "list"], ["dead", "show"]])
def test_every_command_has_help(command: list[str]) -> None:
    result = run(*command, "--help")
    assert result.exit_code == 0
    assert "Usage: eventbus " + " ".join(command) in result.output


def test_help_costs_no_loading_of_what_only_a_command_needs() -> None:
    code = (
        "import sys; from eventbus.cli import cli; cli.main(['--help'], standalone_mode=False);"
        "print([name for name in ('redis', 'websockets', 'rich.table', 'joserfc') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    "words",
    [
        ["nonsense"],
        ["pending", "--nonsense"],
        ["publish"],
        ["event", "e1"],
        ["pending", "--limit", "0"],
        ["pending", "--cursor", "x"],
        ["dead", "show", "17"],
        ["dead", "--since", "soon"],
        ["dead", "--cursor", "17"],
        ["runs", "--state", "lost"],
        ["runs", "--user", "run_17"],
        ["operator-events", "--kind", "lost"],
        ["operator-events", "--follow", "--since", "1h"],
        ["pending", "--user", "run_17"],
        ["tail"],
        ["tail", "--token", "a", "--user", "b"],
        ["tail", "--token", "a", "--url", "nowhere"],
        ["doctor", "--url", "nowhere"],
        ["token", "--user", "ada"],
        ["pending", "--redis-url", "nowhere"],
    ],
)
def test_wrong_usage_and_bad_settings_are_one_sentence_and_status_2(words: list[str]) -> None:
    result = run(*words)
    assert result.exit_code == 2
    assert "Traceback" not in result.output
    assert result.stdout == ""
    *_, sentence = result.stderr.strip().splitlines()
    assert sentence.startswith(("Error: ", "eventbus: "))


@pytest.mark.parametrize(
    "words",
    [
        ["pending"],
        ["pending", "--json"],
        ["pending", "--user", "ada"],
        ["sessions"],
        ["event", "--user", "ada", "e1"],
        ["dead"],
        ["dead", "show", "1:1-1"],
        ["runs"],
        ["operator-events"],
        ["operator-events", "--follow"],
        ["nodes"],
        ["doctor"],
    ],
)
def test_a_store_that_is_not_there_is_one_sentence_and_status_3(words: list[str], nowhere: str) -> None:
    result = run(*words, "--redis-url", nowhere)
    assert result.exit_code == 3
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert nowhere in line
    assert "--redis-url" in line


def test_a_password_in_the_address_is_not_shown(nowhere: str) -> None:
    result = run("pending", "--redis-url", nowhere.replace("redis://", "redis://admin:hunter2@"))
    assert result.exit_code == 3
    assert "hunter2" not in result.output


# --- publish ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data, told",
    [
        ("{", "is no JSON"),
        ("[1]", "must be a JSON object"),
        ("17", "must be a JSON object"),
        ("@no-such-file", "cannot be read"),
        ("", "is no JSON"),
    ],
)
def test_data_that_is_no_object_is_refused_before_anything_is_sent(data: str, told: str) -> None:
    result = run("publish", "--user", "ada", "--type", "note", "--data", data)
    assert result.exit_code == 2
    assert told in result.output


@pytest.mark.parametrize(
    "words, field",
    [
        (["--user", "run_17", "--type", "note", "--data", "{}"], "user"),
        (["--user", "ada", "--type", "Note", "--data", "{}"], "type"),
        (["--user", "ada", "--type", "agent_thinking", "--data", '{"text": ""}'], "data.text"),
        (["--user", "ada", "--type", "note", "--data", '{"n": NaN}'], "data.n"),
        (["--user", "ada", "--type", "note", "--data", "{}", "--thread", "run_1"], "thread"),
        (["--user", "ada", "--type", "note", "--data", "{}", "--run", "thread_1"], "run"),
        (["--user", "ada", "--type", "note", "--data", "{}", "--id", "a b"], "id"),
    ],
)
def test_a_bad_event_is_refused_with_its_field_before_anything_is_sent(words: list[str], field: str) -> None:
    result = run("publish", *words)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"eventbus: {field}: ")


# --- token ------------------------------------------------------------------------------------------------------------


def test_a_token_has_the_claims_that_were_asked_for(secret_file: Path) -> None:
    words = ["--user", "ada", "--scope", "publish subscribe", "--scope", "admin", "--tier", "pro", "--session", "tab"]
    result = run("token", *words, "--ttl", "2h", "--jwt-secret-file", str(secret_file))
    assert result.exit_code == 0
    claims = claims_of(result.stdout.strip())
    wanted = {"sub": "ada", "scope": "subscribe publish admin", "tier": "pro", "sid": "tab"}
    assert claims.items() >= wanted.items()
    assert int(str(claims["exp"])) - int(str(claims["iat"])) in (7_200, 7_201)


def test_a_token_follows_the_nodes_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVENTBUS_JWT_SECRET", SECRET)
    monkeypatch.setenv("EVENTBUS_JWT_ISSUER", "https://issuer")
    monkeypatch.setenv("EVENTBUS_JWT_AUDIENCE", "bus")
    claims = claims_of(run("token", "--user", "ada").stdout.strip())
    assert claims.items() >= {"iss": "https://issuer", "aud": "bus"}.items()


@pytest.mark.parametrize(
    "words",
    [
        ["--user", "run_1"],
        ["--user", "ada", "--scope", "everything"],
        ["--user", "ada", "--ttl", "0s"],
        ["--user", "ada", "--ttl", "1 h"],
        ["--user", "ada", "--ttl", "forever"],
        ["--user", "ada", "--session", "a b"],
    ],
)
def test_a_token_that_nodes_would_refuse_is_not_made(words: list[str], secret_file: Path) -> None:
    result = run("token", *words, "--jwt-secret-file", str(secret_file))
    assert result.exit_code == 2
    assert result.stdout == ""


def test_a_short_secret_is_refused_and_not_shown(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text("hunter2")
    result = run("token", "--user", "ada", "--jwt-secret-file", str(path))
    assert result.exit_code == 2
    assert "hunter2" not in result.output


def test_tail_says_at_once_that_a_token_file_is_not_there(tmp_path: Path) -> None:
    result = run("tail", "--token-file", str(tmp_path / "none"))
    assert result.exit_code == 2
    assert "cannot be read" in result.stderr


# --- printing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ms, text",
    [
        (0, "0 ms"),
        (999, "999 ms"),
        (1_500, "1.5 s"),
        (61_000, "1 min 1 s"),
        (3_600_000, "1 h 0 min"),
        (90_000_000, "1 d 1 h"),
    ],
)
def test_ages_are_told_in_their_two_largest_units(ms: int, text: str) -> None:
    assert age(ms) == text


@pytest.mark.parametrize("text", ["\x1b[2J", "a\nb", "\x07", "\x9b31m", "\u202e", "\u2028"])
def test_what_comes_from_outside_does_not_steer_the_terminal(text: str) -> None:
    assert plain(text).isprintable()


def test_ordinary_letters_of_all_languages_stay(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("name",), [["Zoë Łukasz 日本 [red]x[/red] :smile:"]])
    assert "Zoë Łukasz 日本 [red]x[/red] :smile:" in capsys.readouterr().out


def test_a_table_in_a_pipe_cuts_and_colours_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("user", "verdict", "n"), [["u" * 500, "not_acking", 7], ["v", None, 1_000]])
    head, first, second = capsys.readouterr().out.splitlines()
    assert head.split() == ["user", "verdict", "n"]
    assert first.split() == ["u" * 500, "not_acking", "7"]
    assert second.split() == ["v", "-", "1000"]


def test_a_table_on_a_terminal_has_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    print_table(("verdict",), [["not_acking"]])
    assert "\x1b[1;31mnot_acking" in terminal.getvalue()
