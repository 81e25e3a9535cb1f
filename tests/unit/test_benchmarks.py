"""The pure parts of the benchmarks: a wrong figure is worse than none."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.events import envelope, padding
from benchmarks.frames import PING, TEXT, client_frame, next_frame, pong_frame, upgrade_request
from benchmarks.measures import highest
from benchmarks.report import (
    BEGIN,
    END,
    Case,
    Circumstances,
    Figure,
    Report,
    as_json,
    as_markdown,
    figures,
    insert,
    per_event_us,
    percentile,
    shown,
)
from benchmarks.roles import ROOT
from gateway.transport.outbox import frame_size, ping_frame, text_frame

TOLD = Circumstances(
    command="python -m benchmarks", commit="abc1234", date="2026-01-01", machine="2 cores", software="x 1"
)


def report(*cases: Case) -> Report:
    return Report(circumstances=TOLD, benchmarks={"Title": cases})


# --- figures ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("values,low,median,high", [((3, 1, 2), 1, 2, 3), ((4, 1, 3, 2), 1, 2.5, 4), ((7,), 7, 7, 7)])
def test_a_figure_has_the_spread_of_its_runs(values: tuple[float, ...], low: float, median: float, high: float) -> None:
    figure = Figure(name="f", unit="u", values=values)

    assert (figure.low, figure.median, figure.high) == (low, median, high)


def test_runs_are_put_together_by_name_and_unit() -> None:
    found = figures([{("a", "us"): 1, ("b", "ms"): 5}, {("a", "us"): 2}])

    assert found == (Figure(name="a", unit="us", values=(1, 2)), Figure(name="b", unit="ms", values=(5,)))


def test_a_percentile_is_a_value_that_was_measured() -> None:
    values = list(range(1, 101))

    assert [percentile(values, share) for share in (0.0, 0.5, 0.99, 0.999, 1.0)] == [1, 50, 99, 100, 100]
    assert percentile([4], 0.99) == 4


def test_cpu_time_is_told_an_event() -> None:
    assert per_event_us(5_000_000, 1_000) == 5.0
    assert per_event_us(5_000_000, 0) == 0.0


@pytest.mark.parametrize(
    "value,text", [(0, "0"), (12345.6, "12,346"), (123.4, "123"), (12.34, "12.3"), (0.001234, "0.00123"), (1.0, "1.00")]
)
def test_a_value_is_shown_with_three_digits(value: float, text: str) -> None:
    assert shown(value) == text


# --- the search for the highest rate ----------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [4_100, 9_900, 10_000, 17_000, 23_000])
def test_the_highest_rate_is_found_within_seven_percent(limit: int) -> None:
    tried: list[float] = []

    def kept(rate: float) -> bool:
        tried.append(rate)
        return rate <= limit

    found = highest(kept, 10_000)

    assert limit / 1.07 <= found <= limit
    assert found in tried
    assert len(tried) <= 11


def test_a_rate_that_is_never_kept_is_not_called_kept() -> None:
    tried: list[float] = []

    def kept(rate: float) -> bool:
        tried.append(rate)
        return False

    assert highest(kept, 10_000) == min(tried)


# --- the page ---------------------------------------------------------------------------------------------------------


def test_a_table_says_under_which_circumstances_it_was_measured() -> None:
    text = as_markdown(report(Case(name="load", figures=(Figure(name="f", unit="us/event", values=(1, 3, 2)),))))

    assert all(part in text for part in (TOLD.command, TOLD.commit, TOLD.date, TOLD.machine, TOLD.software))
    assert "| load | f | 2.00 | 1.00 | 3.00 | us/event | 3 |" in text


def test_a_run_in_which_something_was_lost_is_named() -> None:
    found = report(Case(name="load", figures=(), faults=("of 10 events: stored 10, received 9, acked 9",)))

    assert found.faults == ["load: of 10 events: stored 10, received 9, acked 9"]
    assert "received 9" in as_markdown(found)


def test_json_has_the_value_of_each_run() -> None:
    text = as_json(report(Case(name="load", figures=(Figure(name="f", unit="ms", values=(1.5, 2.5)),))))

    (case,) = json.loads(text)["benchmarks"]["Title"]
    assert case["figures"] == [{"name": "f", "unit": "ms", "values": [1.5, 2.5]}]


def test_writing_twice_replaces_the_figures_and_nothing_else() -> None:
    page = f"# Before\n\n{BEGIN}\nold\n{END}\n\nafter\n"

    once = insert(page, "new\n")

    assert once == f"# Before\n\n{BEGIN}\n\nnew\n\n{END}\n\nafter\n"
    assert insert(once, "new\n") == once


@pytest.mark.parametrize("page", ["", f"{END}\n{BEGIN}\n", f"{BEGIN}\n"])
def test_a_page_without_its_marks_is_not_written(page: str) -> None:
    with pytest.raises(ValueError, match="must have the lines"):
        insert(page, "new")


# --- frames -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65_535, 65_536])
def test_the_node_finds_the_whole_of_a_client_frame(size: int) -> None:
    frame = client_frame(b"x" * size)

    assert frame_size(frame + b"more", 0, 1 << 20) == len(frame)
    assert frame[0] == TEXT
    assert frame[1] & 0x80
    assert frame.endswith(b"\0\0\0\0" + b"x" * size)


def test_frames_of_a_node_are_found_however_the_bytes_are_cut() -> None:
    payloads = [b"x" * size for size in (0, 5, 125, 126, 300, 70_000)]
    data = b"".join(map(text_frame, payloads)) + ping_frame(b"p")
    cuts = sorted(random.sample(range(1, len(data)), 40))
    found: list[tuple[int, bytes]] = []
    held = b""
    for start, stop in zip([0, *cuts], [*cuts, len(data)], strict=True):
        held += data[start:stop]
        begin = 0
        while (frame := next_frame(held, begin))[2]:
            first, body, begin = frame
            found.append((first, held[body:begin]))
        held = held[begin:]

    assert found == [*((TEXT, payload) for payload in payloads), (PING, b"p")]
    assert held == b""


def test_a_pong_carries_what_the_ping_carried() -> None:
    assert pong_frame(b"p") == bytes((0x8A, 0x81)) + bytes(4) + b"p"


def test_the_upgrade_asks_for_the_json_subprotocol_with_the_token() -> None:
    head = upgrade_request("127.0.0.1:80", "T").decode()

    assert head.startswith("GET /v1/connect HTTP/1.1\r\n")
    assert "Authorization: Bearer T\r\n" in head
    assert "Sec-WebSocket-Protocol: eventbus.v1.json\r\n" in head
    assert head.endswith("\r\n\r\n")


# --- events -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [200, 300, 1_000])
def test_an_event_has_the_size_that_is_told(size: int) -> None:
    assert size - 3 <= len(envelope(padding(size))) <= size


# --- all of it --------------------------------------------------------------------------------------------------------


@pytest.mark.bench
@pytest.mark.timeout(120)
def test_a_quick_run_of_each_benchmark_has_no_fault(tmp_path: Path) -> None:
    """With real processes; what it measures is of no meaning."""
    found = tmp_path / "found.json"
    command = [sys.executable, "-m", "benchmarks", "--quick", "--json", str(found)]

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout + done.stderr
    measured = json.loads(found.read_text())["benchmarks"]
    assert len(measured) == 3
    assert all(case["figures"] and not case["faults"] for cases in measured.values() for case in cases)
