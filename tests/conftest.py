"""What holds for every test: shared fixtures, leak checks, and no skips where everything is installed."""

from __future__ import annotations

import os
from collections.abc import Generator

import hypothesis
import pytest

pytest.register_assert_rewrite("tests.support")

pytest_plugins = (
    "tests.support.leaks",
    "tests.support.servers",
    "tests.support.clusters",
    "tests.support.sentinels",
    "tests.support.fork_server",
    "tests.support.processes",
    "tests.support.browsing",
    "tests.support.installation",
)

# In CI everything is installed, so a skipped test is one that does not test: it counts as failed, with its reason.
NO_SKIP = os.environ.get("EVENTBUS_TEST_NO_SKIP", "") not in ("", "0")

# Examples are never judged by wall time: the machine may be busy. In CI they are the same each time, so that no change
# is refused for what another has brought; everywhere else each run looks for new ones.
hypothesis.settings.register_profile("eventbus", deadline=None, derandomize=NO_SKIP)
hypothesis.settings.load_profile("eventbus")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The short tests last, after they were shuffled: no worker is to begin a long one when the others are done."""
    items.sort(key=lambda item: "contract" in item.path.parts)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if NO_SKIP and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"{report.nodeid} was skipped: {_reason(report)}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if NO_SKIP and report.skipped:
        report.outcome = "failed"
        report.longrepr = f"{report.nodeid} was skipped: {_reason(report)}"
    return report


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    where = report.longrepr
    return str(where[2]) if isinstance(where, tuple) else str(where)
