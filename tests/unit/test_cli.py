"""The command `eventbus` without a server: usage, settings, tokens, how it prints, how it ends."""

from __future__ import annotations

import io
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result
from joserfc import jwt
from joserfc.jwk import OctKey

from eventbus.cli import cli
from eventbus.cli.output import age, plain, print_table
from eventbus.cli.watching import repeated
from eventbus.errors import StoreUnavailable

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
        ["runs", "run_1"],
        ["rates"],
        ["user", "ada"],
        ["top"],
        ["audit"],
        ["paused"],
        ["skip", "--user", "ada", "--session", "tab", "--yes"],
        ["replay", "--all", "--yes"],
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


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def terminal_of(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """One of 80 columns, in place of stdout. No fixture: pytest puts its own stdout in place before each test."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("NO_COLOR", raising=False)
    made = Terminal()
    monkeypatch.setattr(sys, "stdout", made)
    return made


def test_a_table_on_a_terminal_has_colours_unless_they_are_not_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = terminal_of(monkeypatch)
    print_table(("verdict",), [["not_acking"]])
    assert "\x1b[1;31mnot_acking" in terminal.getvalue()
    terminal.truncate(terminal.seek(0))
    monkeypatch.setenv("NO_COLOR", "1")
    print_table(("verdict",), [["not_acking"]])
    assert "\x1b[31m" not in terminal.getvalue()
    assert "31m" not in terminal.getvalue()


HEADINGS = ("id", "user", "note", "entry", "node")
ID, ENTRY = "917:1795249701443-0" * 2, "1795249697797-0" * 2


def lines_of(terminal: Terminal) -> list[str]:
    """What stands on it, without colours and boldness."""
    return [re.sub("\x1b\\[[0-9;]*m", "", line).rstrip() for line in terminal.getvalue().splitlines()]


def test_on_a_narrow_terminal_columns_are_spared_and_no_id_is_broken(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal = terminal_of(monkeypatch)
    print_table(HEADINGS, [[ID, "adelaide-of-oz", None, ENTRY, "gw-1"]], spare=("node", "entry"))
    head, row = lines_of(terminal)
    # The note is empty, and without the entry there is room for the node.
    assert (head.split(), row.split()) == (["id", "user", "node"], [ID, "adelaide-of-oz", "gw-1"])
    assert "no room here for entry:" in capsys.readouterr().err


def test_on_a_narrow_terminal_sentences_are_wrapped(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = terminal_of(monkeypatch)
    print_table(("id", "why"), [[ID, "nobody is connected; " * 3]], text="why")
    head, first, *more = lines_of(terminal)
    assert head.split() == ["id", "why"]
    assert first.startswith(f"{ID}  nobody is connected")
    assert more
    assert all(line.startswith(" " * len(ID)) for line in more)


def test_what_has_no_room_as_a_table_is_shown_row_by_row(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = terminal_of(monkeypatch)
    print_table(HEADINGS, [[ID, "ada", None, ENTRY * 2, "gw-1"], [ID, "bob", "x", ENTRY, None]])
    assert [line.split() for line in lines_of(terminal)] == [
        ["id", ID],
        ["user", "ada"],
        ["entry", ENTRY * 2],
        ["node", "gw-1"],
        [],
        ["id", ID],
        ["user", "bob"],
        ["note", "x"],
        ["entry", ENTRY],
    ]


# --- watching ---------------------------------------------------------------------------------------------------------


def looks(*each: str | BaseException) -> Callable[[], None]:
    """A look that prints each of these in turn, or fails with it behind a first half; then Ctrl-C."""
    left = iter([*each, KeyboardInterrupt()])

    def show() -> None:
        one = next(left)
        if isinstance(one, BaseException):
            click.echo("half")
            raise one
        click.echo(one)

    return show


@pytest.mark.requirement("R27")
def test_a_watch_goes_on_when_the_store_has_gone_away(capsys: pytest.CaptureFixture[str]) -> None:
    repeated(looks("one", StoreUnavailable("nobody answers"), "two"), "1ms")
    said = capsys.readouterr()
    assert [line for line in said.out.splitlines() if line != "half"] == ["one", "two"]
    assert "nobody answers" in said.err


def test_a_watch_of_a_store_that_was_never_there_ends() -> None:
    with pytest.raises(StoreUnavailable):
        repeated(looks(StoreUnavailable("nobody answers")), "1ms")


def test_a_terminal_keeps_the_last_look_until_the_next_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = terminal_of(monkeypatch)
    repeated(looks("one", StoreUnavailable("nobody answers"), "two"), "1ms")
    assert "half" not in terminal.getvalue()
    assert terminal.getvalue().index("one") < terminal.getvalue().index("two")


def test_no_help_is_wider_than_a_terminal_of_eighty_columns() -> None:
    names = [(), *((name,) for name in cli.commands), ("dead", "list"), ("dead", "show"), ("dead", "drop")]
    for words in names:
        shown = CliRunner(env={"COLUMNS": "80"}).invoke(
            cli, [*words, "--help"], prog_name="eventbus", terminal_width=80
        )
        assert shown.exit_code == 0
        assert [line for line in shown.output.splitlines() if len(line) > 80] == [], words


def test_each_look_of_a_watch_can_say_of_when_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    repeated(looks("one", "two"), "1ms", with_time=True)
    stamped = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\n"
    assert re.fullmatch(f"{stamped}one\n{stamped}two\n{stamped}half\n", capsys.readouterr().out)
