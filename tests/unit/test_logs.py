"""What a process says: one line an occurrence, fields for ids, no secrets, and no storm."""

from __future__ import annotations

import ast
import io
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway import logs
from gateway.config import LogFormat, LogLevel, LogSettings

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhZGEifQ.c2lnbmF0dXJl"
log = logging.getLogger("tests.of.logs")


@pytest.fixture(autouse=True)
def restored_logging() -> Iterator[None]:
    """Puts back what `configure` replaces."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    libraries = {name: logging.getLogger(name).level for name in ("asyncio", "redis", "uvicorn", "websockets")}
    for handler in handlers:  # `force` closes those that it finds
        root.removeHandler(handler)
    yield
    logging.captureWarnings(False)
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, was in libraries.items():
        logging.getLogger(name).setLevel(was)


def configured(
    log_format: LogFormat = LogFormat.TEXT, level: LogLevel = LogLevel.INFO, node: str = "n1"
) -> io.StringIO:
    stream = io.StringIO()
    logs.configure(LogSettings(log_format=log_format, log_level=level), node=node, stream=stream)
    return stream


def record(created_s: float, text: str = "%d came") -> logging.LogRecord:
    made = logging.LogRecord("x", logging.INFO, __file__, 1, text, (1,), None)
    made.created = created_s
    return made


@pytest.mark.requirement("R29")
def test_a_line_of_json_has_time_level_logger_message_and_the_fields() -> None:
    stream = configured(LogFormat.JSON)
    log.warning("taken over by %s", "n2", extra={"session": "s1", "count": 3})
    line = json.loads(stream.getvalue())
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "warning",
        "logger": "tests.of.logs",
        "message": "taken over by n2",
        "session": "s1",
        "count": 3,
        "node": "n1",
    }


def test_a_line_of_text_reads_well() -> None:
    stream = configured()
    log.warning("taken over", extra={"session": "s1", "why": "a b"})
    line = stream.getvalue().rstrip("\n")
    assert line[23:] == 'Z WARNING tests.of.logs: taken over session=s1 why="a b" node=n1'


def test_the_level_decides_what_is_written() -> None:
    stream = configured(level=LogLevel.WARNING)
    log.info("not this")
    log.warning("but this")
    assert stream.getvalue().count("\n") == 1


def test_libraries_speak_up_only_when_something_is_wrong() -> None:
    stream = configured()
    logging.getLogger("uvicorn.error").info("started")
    logging.getLogger("uvicorn.error").error("failed")
    assert "started" not in stream.getvalue()
    assert "failed" in stream.getvalue()


@pytest.mark.parametrize("log_format", list(LogFormat))
@pytest.mark.requirement("R29")
def test_no_token_ticket_or_password_is_written(log_format: LogFormat) -> None:
    stream = configured(log_format)
    try:
        raise ValueError(f"bad token {TOKEN}")
    except ValueError:
        log.exception(
            "GET /v1/connect?ticket=t0psecret from %s with %s",
            "redis://ada:hunter2@h:1/0",
            f"base64url.bearer.eventbus.{TOKEN[:20]}",
            extra={"given": f"token={TOKEN}"},
        )
    written = stream.getvalue()
    for secret in ("t0psecret", "hunter2", TOKEN[:20], TOKEN.rpartition(".")[2]):
        assert secret not in written
    assert "redis://ada:[hidden]@h:1/0" in written


@pytest.mark.parametrize("log_format", list(LogFormat))
def test_a_message_stays_on_its_line_whatever_a_client_put_into_it(log_format: LogFormat) -> None:
    stream = configured(log_format)
    log.info("refused: %s", "x\n2026-11-21T00:00:00.000Z ERROR forged\x1b[31m", extra={"reason": "a\r\nb"})
    assert stream.getvalue().count("\n") == 1
    assert "\x1b" not in stream.getvalue()


def test_an_exception_is_an_object_of_its_own_in_json() -> None:
    stream = configured(LogFormat.JSON)
    try:
        raise KeyError("k")
    except KeyError:
        log.exception("failed")
    error = json.loads(stream.getvalue())["error"]
    assert error["type"] == "KeyError"
    assert "Traceback" in error["trace"]


def test_an_exception_follows_its_line_in_text() -> None:
    stream = configured()
    try:
        raise KeyError("k")
    except KeyError:
        log.exception("failed")
    lines = stream.getvalue().splitlines()
    assert "failed" in lines[0]
    assert all(line.startswith("  ") for line in lines[1:])
    assert lines[-1].strip() == "KeyError: 'k'"


def test_a_field_of_the_line_stands_above_that_of_the_process() -> None:
    stream = configured(LogFormat.JSON, node="parent")
    log.info("heard", extra={"node": "n-1"})
    assert json.loads(stream.getvalue())["node"] == "n-1"


def test_warnings_go_to_the_log() -> None:
    stream = configured()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(False)
        logging.captureWarnings(True)
        warnings.warn("mind the step", stacklevel=1)
    assert "mind the step" in stream.getvalue()


def test_a_storm_is_thinned_out_and_the_next_line_tells_how_much_was_left_out() -> None:
    repeats = logs.Repeats(burst=3, window_ms=1_000)
    assert [repeats.filter(record(1.0 + n / 100)) for n in range(10)] == [True] * 3 + [False] * 7
    late = record(2.5)
    assert repeats.filter(late)
    assert vars(late)["left_out"] == 7
    later = record(2.6)
    assert repeats.filter(later)
    assert "left_out" not in vars(later)


@pytest.mark.requirement("R29")
def test_a_flood_of_one_kind_is_thinned_and_counted_and_does_not_hide_another() -> None:
    """Ten thousand lines in a moment, each with other ids: some are written, all are counted."""
    stream = configured(LogFormat.JSON)
    before = (logs.COUNTS.lines["warning"], logs.COUNTS.left_out, logs.COUNTS.defects)
    for number in range(10_000):
        log.warning("refused by %s", f"10.0.0.{number % 250}", extra={"session": f"s{number}"})
    log.warning("the store is away")
    try:
        raise KeyError("k")
    except KeyError:
        log.exception("a defect")
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert len([line for line in lines if line["message"].startswith("refused")]) <= 3 * logs.BURST
    assert [line["message"] for line in lines[-2:]] == ["the store is away", "a defect"]
    assert logs.COUNTS.lines["warning"] - before[0] == 10_001
    assert logs.COUNTS.left_out - before[1] == 10_002 - len(lines)
    assert logs.COUNTS.defects - before[2] == 1


_IDS = {"user", "session", "session_id", "run", "event", "entry", "member", "thread", "node", "operation", "id"}


def _loud_calls() -> Iterator[tuple[str, ast.Call]]:
    """The calls of the package that log a warning or worse."""
    for path in sorted([*ROOT.glob("gateway/**/*.py"), *ROOT.glob("eventbus/**/*.py")]):
        if "demo" in path.parts:
            continue
        for call in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(call, ast.Call)
                and isinstance(call.func, ast.Attribute)
                and call.func.attr in ("warning", "error", "exception", "critical")
                and isinstance(call.func.value, ast.Name)
                and call.func.value.id in ("logger", "_log", "log")
            ):
                yield f"{path.relative_to(ROOT)}:{call.lineno}", call


@pytest.mark.requirement("R29")
def test_ids_travel_as_fields_wherever_something_is_wrong() -> None:
    """What a warning says of a user, a session, a run, an event stands in `extra`, where a search finds it."""
    calls = list(_loud_calls())
    assert len(calls) > 30
    without = [
        where
        for where, call in calls
        if not any(keyword.arg == "extra" for keyword in call.keywords)
        and any(
            (isinstance(part, ast.Attribute) and part.attr in _IDS) or (isinstance(part, ast.Name) and part.id in _IDS)
            for argument in call.args[1:]
            for part in ast.walk(argument)
        )
    ]
    assert without == []


def test_other_messages_pass_through_a_storm() -> None:
    repeats = logs.Repeats(burst=1, window_ms=1_000)
    assert repeats.filter(record(1.0))
    assert not repeats.filter(record(1.0))
    assert repeats.filter(record(1.0, "another %d"))


def test_a_clock_that_jumps_back_silences_nothing() -> None:
    repeats = logs.Repeats(burst=1, window_ms=1_000)
    assert repeats.filter(record(1_000.0))
    assert repeats.filter(record(1.0))


def test_what_is_remembered_of_messages_is_bounded() -> None:
    repeats = logs.Repeats()
    for number in range(3 * logs.MESSAGES_MAX):
        assert repeats.filter(record(1.0, f"{number} %d"))
    assert len(vars(repeats)["_seen"]) <= logs.MESSAGES_MAX
