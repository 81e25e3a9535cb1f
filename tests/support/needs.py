"""What a test needs beyond Python: it is skipped by the name of the missing package, and fails where a skip is a
failure.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

# Program -> the Debian package that has it.
PACKAGES = {
    "redis-server": "redis-server",
    "chromium": "chromium",
    "chromedriver": "chromium-driver",
    "node": "nodejs",
    "haproxy": "haproxy",
    "prometheus": "prometheus",
    "promtool": "prometheus",
    "docker-compose": "docker-compose",
}


def find(program: str) -> Path | None:
    """The program's path, or None. Debian puts some servers where only root's PATH looks."""
    found = shutil.which(program) or shutil.which(program, path="/usr/sbin:/usr/local/sbin")
    return Path(found) if found is not None else None


def program(name: str) -> Path:
    """The program's path; skips the test that runs when it is missing."""
    found = find(name)
    if found is None:
        pytest.skip(f"needs the package {PACKAGES[name]}")
    return found


def _mark(name: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(find(name) is None, reason=f"needs the package {PACKAGES[name]}")


needs_redis = _mark("redis-server")
needs_chromium = _mark("chromium")
needs_node = _mark("node")
needs_haproxy = _mark("haproxy")
needs_prometheus = _mark("prometheus")
needs_promtool = _mark("promtool")
needs_compose = _mark("docker-compose")
