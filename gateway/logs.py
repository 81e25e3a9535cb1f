"""What a process of the gateway says on stderr: one line an occurrence, as text for people or as JSON.

Ids travel as fields (`logger.info("taken over", extra={"session": ...})`). Payloads and tokens are never logged on
purpose; what looks like a token, a ticket or a password is blotted out besides, for a library may not be so careful.
A message that repeats is thinned out, and says how often it was left out: a storm must not fill a disk.
"""

from __future__ import annotations

import logging
import re
import sys
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Final, TextIO

import orjson

from gateway.config import LogFormat, LogSettings

__all__ = ["COUNTS", "JsonLines", "LogCounts", "Repeats", "TextLines", "configure", "redacted"]

BURST: Final = 10
"""So many lines of one message are written within a window."""

WINDOW_MS: Final = 10_000

MESSAGES_MAX: Final = 1_000
"""Messages that are remembered at once; beyond, all are forgotten."""

_STANDARD: Final = frozenset((*vars(logging.makeLogRecord({})), "message", "asctime", "taskName", "color_message"))
_QUIET_LIBRARIES: Final = ("asyncio", "redis", "uvicorn", "websockets")

_SECRETS: Final = (
    (re.compile(r"\beyJ[A-Za-z0-9_-]{4,}\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*"), "[token]"),
    (re.compile(r"\b(ticket|token|password|secret)=[^\s&\"',)]+", re.IGNORECASE), r"\1=[hidden]"),
    (re.compile(r"(://[^\s/:@]*):[^\s/@]+@"), r"\1:[hidden]@"),
    (re.compile(r"(base64url\.bearer\.eventbus\.)[A-Za-z0-9_-]+"), r"\1[hidden]"),
)
_CONTROL: Final = {code: f"\\x{code:02x}" for code in (*range(0x20), 0x7F)} | {0x0A: "\\n", 0x0D: "\\r", 0x09: "\\t"}


def redacted(text: str) -> str:
    """The text without what looks like a token, a ticket or a password."""
    for pattern, instead in _SECRETS:
        text = pattern.sub(instead, text)
    return text


def _time(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03d}Z"


def _fields(record: logging.LogRecord) -> Iterator[tuple[str, object]]:
    """What was given as `extra`, in its order; text without secrets."""
    for name, value in vars(record).items():
        if name not in _STANDARD:
            yield name, redacted(value) if isinstance(value, str) else value


class TextLines(logging.Formatter):
    """Lines for people. A message stays on its line, whatever a client put into it."""

    def format(self, record: logging.LogRecord) -> str:
        message = redacted(record.getMessage()).translate(_CONTROL)
        parts = [f"{_time(record)} {record.levelname:<7} {record.name}: {message}"]
        parts += [f"{name}={_word(value)}" for name, value in _fields(record)]
        line = " ".join(parts)
        if record.exc_info:
            trace = redacted(self.formatException(record.exc_info))
            line += "\n" + "\n".join(f"  {row.translate(_CONTROL)}" for row in trace.splitlines())
        return line


def _word(value: object) -> str:
    text = str(value).translate(_CONTROL)
    return text if text and re.fullmatch(r"[^\s\"=]+", text) else '"' + text.replace('"', '\\"') + '"'


class JsonLines(logging.Formatter):
    """One JSON object a line: `time`, `level`, `logger`, `message`, then the fields, then `error`."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": redacted(record.getMessage()),
            **dict(_fields(record)),
        }
        if record.exc_info and record.exc_info[0] is not None:
            line["error"] = {
                "type": record.exc_info[0].__name__,
                "message": redacted(str(record.exc_info[1])),
                "trace": redacted(self.formatException(record.exc_info)),
            }
        return orjson.dumps(line, default=str).decode()


class LogCounts(logging.Filter):
    """Counts what a process says, also what is left out: a log that nobody reads shows in the metrics.

    Attributes:
        lines: by level.
        left_out: how many of them were not written, for their message repeats.
        defects: errors with a trace. What the world does to a node has none.
    """

    def __init__(self) -> None:
        super().__init__()
        self.lines: Counter[str] = Counter()
        self.left_out = 0
        self.defects = 0

    def filter(self, record: logging.LogRecord) -> bool:
        self.lines[record.levelname.lower()] += 1
        self.defects += record.levelno >= logging.ERROR and bool(record.exc_info)
        return True


COUNTS: Final = LogCounts()
"""Of this process, from the moment that `configure` is called."""


class Repeats(logging.Filter):
    """Thins out a message that repeats: ten lines in ten seconds, then none until the ten seconds are over.

    A message is one by its logger, its level and its text before the arguments are put in. The line that comes through
    after some were left out carries their number as the field `left_out`.
    """

    def __init__(self, *, burst: int = BURST, window_ms: int = WINDOW_MS, counts: LogCounts | None = None) -> None:
        super().__init__()
        self._counts = counts
        self._burst = burst
        self._window_ms = window_ms
        self._seen: dict[
            tuple[str, int, str], list[int]
        ] = {}  # -> when the window began, lines written, lines left out

    def filter(self, record: logging.LogRecord) -> bool:
        now_ms = int(record.created * 1000)
        key = (record.name, record.levelno, str(record.msg))
        row = self._seen.get(key)
        if row is None:
            if len(self._seen) >= MESSAGES_MAX:
                self._seen.clear()
            self._seen[key] = [now_ms, 1, 0]
            return True
        begun_ms, written, left_out = row
        if not 0 <= now_ms - begun_ms < self._window_ms:
            row[:] = [now_ms, 1, 0]
            if left_out:
                record.left_out = left_out
            return True
        if written < self._burst:
            row[1] += 1
            return True
        row[2] += 1
        if self._counts is not None:
            self._counts.left_out += 1
        return False


class _Fixed(logging.Filter):
    """Gives each line the fields that are the same for the whole process."""

    def __init__(self, fields: dict[str, str]) -> None:
        super().__init__()
        self._fields = fields

    def filter(self, record: logging.LogRecord) -> bool:
        for name, value in self._fields.items():
            if name not in vars(record):
                setattr(record, name, value)
        return True


def configure(settings: LogSettings, *, node: str = "", stream: TextIO | None = None) -> None:
    """Set the process's logging up; what was set up before is replaced.

    Args:
        settings: format and level.
        node: the name that each line carries as the field `node`; none when empty.
        stream: where lines go, stderr when absent.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines() if settings.log_format is LogFormat.JSON else TextLines())
    handler.addFilter(COUNTS)
    handler.addFilter(Repeats(counts=COUNTS))
    if node:
        handler.addFilter(_Fixed({"node": node}))
    level = settings.log_level.upper()
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.captureWarnings(True)
    if settings.log_level == "info":
        # What they call information is of interest only beside their source.
        for name in _QUIET_LIBRARIES:
            logging.getLogger(name).setLevel(logging.WARNING)
