"""Keys that change while a node runs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from eventbus.errors import AuthError
from eventbus.tokens import make_token
from gateway.access.auth import Authenticator
from gateway.config import NodeSettings, load_authenticator
from gateway.counters import Counters
from gateway.rotation import FULL_LOOKS, Rotation

pytestmark = pytest.mark.requirement("R23")

OLD, NEW = "the-old-secret-of-at-least-32-bytes", "the-new-secret-of-at-least-32-bytes"
NOW_MS = 1_800_000_000_000


def token(secret: str) -> str:
    return make_token(user="ada", secret=secret.encode(), now_ms=NOW_MS)


class Bench:
    def __init__(self, folder: Path) -> None:
        self.file = folder / "secret"
        self.file.write_text(OLD)
        settings = NodeSettings.from_env({}, jwt_secret_file=str(self.file))
        self.authenticator: Authenticator = load_authenticator(settings)
        self.counters = Counters()
        self.gone = 0
        self.rotation = Rotation(settings, [self.authenticator], self.counters, gone=self._count)

    def _count(self) -> None:
        self.gone += 1

    def accepts(self, secret: str) -> bool:
        try:
            self.authenticator.verify(token(secret), NOW_MS)
        except AuthError:
            return False
        return True


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_a_secret_that_changes_in_its_file_counts_from_the_next_look_on(bench: Bench) -> None:
    identity = bench.authenticator.verify(token(OLD), NOW_MS)
    assert (bench.accepts(OLD), bench.accepts(NEW)) == (True, False)
    bench.file.write_text(NEW + "\n")
    bench.rotation.look()
    assert (bench.accepts(OLD), bench.accepts(NEW)) == (False, True), "what was remembered of the old key is forgotten"
    assert bench.gone == 1
    with pytest.raises(AuthError) as refused:
        bench.authenticator.check_key(identity)
    assert refused.value.reason == "unknown_key"


@pytest.mark.parametrize("content", ["", "short", "-----BEGIN PUBLIC KEY-----\n" + "x" * 40, None])
def test_a_file_that_holds_no_key_changes_nothing_and_is_tried_again(bench: Bench, content: str | None) -> None:
    if content is None:
        bench.file.unlink()
    else:
        bench.file.write_text(content)
    bench.rotation.look()
    bench.rotation.look()
    assert bench.accepts(OLD)
    assert bench.counters.key_reloads == {"failed": 2}
    bench.file.write_text(NEW)
    bench.rotation.look()
    assert bench.accepts(NEW)
    assert bench.counters.key_reloads == {"failed": 2, "done": 1}


def test_a_file_that_is_replaced_under_the_same_time_and_size_is_found(bench: Bench, tmp_path: Path) -> None:
    stamp = bench.file.stat().st_mtime_ns
    other = tmp_path / "other"
    other.write_text(NEW)
    os.utime(other, ns=(stamp, stamp))
    other.replace(bench.file)
    bench.rotation.look()
    assert bench.accepts(NEW)


def test_a_file_that_was_written_in_place_under_the_same_time_is_found_within_a_minute(bench: Bench) -> None:
    stamp = bench.file.stat().st_mtime_ns
    bench.file.write_text(NEW)
    os.utime(bench.file, ns=(stamp, stamp))
    for _ in range(FULL_LOOKS):
        bench.rotation.look()
    assert bench.accepts(NEW)
    assert bench.gone == 1


def test_files_that_stay_as_they_are_cost_nobody_what_is_remembered(bench: Bench) -> None:
    bench.accepts(OLD)
    for _ in range(2 * FULL_LOOKS):
        bench.rotation.look()
    assert bench.authenticator.remembered == 1
    assert (bench.gone, bench.counters.key_reloads) == (0, {})
