"""`make` sets itself up on a machine with Python alone, and says in one sentence what is missing when it cannot."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
_TOOLS = ("sh", "cat", "cksum", "dirname", "env", "printf", "pwd")

_WITHOUT_VENV = """#!/bin/sh
case "$2" in *ensurepip*) exit 1;; *) exit 0;; esac
"""
_TOO_OLD = "#!/bin/sh\nexit 1\n"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with the setup script alone, and a PATH with no Python."""
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "venv", tmp_path / ".ci" / "venv")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in _TOOLS:
        found = shutil.which(name)
        if found is not None:
            (tools / name).symlink_to(found)
    return tmp_path


def _set_up(checkout: Path, **env: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHON", "VENV")}
    return subprocess.run(
        ["sh", checkout / ".ci" / "venv", "dev"],
        env={**kept, "PATH": str(checkout / "bin"), **env},
        capture_output=True,
        text=True,
        check=False,
    )


def _interpreter(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o700)


def test_without_python_it_says_which_one_it_needs(checkout: Path) -> None:
    done = _set_up(checkout)
    assert done.returncode == 1
    assert "No Python 3.11 or later was found" in done.stderr


def test_an_old_python_is_passed_over(checkout: Path) -> None:
    _interpreter(checkout / "bin" / "python3", _TOO_OLD)
    assert "No Python 3.11 or later was found" in _set_up(checkout).stderr


def test_an_old_python_that_was_asked_for_is_named(checkout: Path) -> None:
    _interpreter(checkout / "old", _TOO_OLD)
    done = _set_up(checkout, PYTHON=str(checkout / "old"))
    assert done.returncode == 1
    assert f"PYTHON={checkout}/old is no Python 3.11 or later" in done.stderr


def test_a_python_without_venv_is_told_what_to_install(checkout: Path) -> None:
    _interpreter(checkout / "bin" / "python3", _WITHOUT_VENV)
    done = _set_up(checkout)
    assert done.returncode == 1
    assert "apt install python3-venv" in done.stderr


_RECORDING = """#!/bin/sh
case "$*" in *"pip install"*) echo "$*" >>"{log}";; esac
"""


def test_an_environment_is_installed_once_and_again_when_the_project_changed(checkout: Path) -> None:
    log = checkout / "log"
    _interpreter(checkout / ".venv" / "bin" / "python", _RECORDING.format(log=log))
    for _ in range(2):
        assert _set_up(checkout).returncode == 0
    assert len(log.read_text().splitlines()) == 1
    with (checkout / "pyproject.toml").open("a") as project:
        project.write("# changed\n")
    assert _set_up(checkout).returncode == 0
    assert len(log.read_text().splitlines()) == 2
    assert "--editable .[dev]" in log.read_text()
