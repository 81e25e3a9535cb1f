"""The tree of errors: what a caller decides by, and the page that is generated from it."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest

from eventbus import errors
from eventbus.errors import (
    AuthError,
    BadFrame,
    CloseCode,
    ConfigError,
    EventBusError,
    Forbidden,
    InvalidEvent,
    InvalidField,
    InvalidUtf8,
    PartialPublish,
    RateLimited,
    StoreError,
    StoreUnavailable,
    UnknownOp,
)

ROOT = Path(__file__).parents[2]


def all_errors() -> list[type[EventBusError]]:
    found = [EventBusError]
    for error in found:
        found.extend(kind for kind in error.__subclasses__() if kind.__module__.startswith("eventbus.errors."))
    return found


@pytest.mark.parametrize("error", all_errors(), ids=lambda error: error.__name__)
def test_every_error_is_public_documented_and_has_a_code_for_machines(error: type[EventBusError]) -> None:
    assert error.__name__ in errors.__all__
    assert error.__doc__
    assert re.fullmatch(r"[a-z][a-z0-9_]*", error.code)
    assert isinstance(error.retryable, bool)
    assert error.close_code is None or isinstance(error.close_code, CloseCode)


def test_no_two_errors_share_a_code() -> None:
    codes = [error.code for error in all_errors()]
    assert len(codes) == len(set(codes))


@pytest.mark.requirement("R4")
@pytest.mark.parametrize("error", [kind for kind in all_errors() if issubclass(kind, StoreUnavailable)])
def test_an_unknown_outcome_is_always_worth_another_try(error: type[EventBusError]) -> None:
    assert error.retryable


@pytest.mark.parametrize("code", [code for code in CloseCode if code >= 4000])
def test_the_range_of_a_close_code_says_whether_to_reconnect(code: CloseCode) -> None:
    assert code.reconnect is (code < 4500)


@pytest.mark.parametrize(
    "code,reconnect",
    [(CloseCode.NORMAL, False), (CloseCode.UNSUPPORTED_DATA, False), (CloseCode.ABNORMAL, True)],
)
def test_a_close_code_of_the_rfc_says_whether_to_reconnect(code: CloseCode, reconnect: bool) -> None:
    assert code.reconnect is reconnect


@pytest.mark.requirement("R25")
def test_no_close_code_is_1011() -> None:
    assert 1011 not in list(CloseCode)


def test_a_bad_field_is_named_and_is_a_value_error() -> None:
    error = InvalidEvent("data.text", "must not be blank")
    assert isinstance(error, ValueError)
    assert isinstance(error, EventBusError)
    assert (error.field, error.problem, error.index) == ("data.text", "must not be blank", None)
    assert str(error) == "data.text: must not be blank"


@pytest.mark.parametrize("kind", [InvalidField, InvalidEvent, BadFrame, InvalidUtf8])
def test_a_bad_field_can_be_told_its_place_in_a_batch(kind: type[InvalidField]) -> None:
    error = kind("user", "is missing").at(3)
    assert type(error) is kind
    assert (error.field, error.problem, error.index) == ("user", "is missing", 3)
    assert str(error) == "event 3: user: is missing"


def test_errors_carry_what_their_callers_need() -> None:
    assert ConfigError("no", field="redis_url").field == "redis_url"
    assert ConfigError("no").field is None
    assert AuthError("no").reason == "unauthenticated"
    assert AuthError("no", reason="expired").reason == "expired"
    assert RateLimited("slow down").retry_after_ms == 1000
    assert RateLimited("slow down", retry_after_ms=50).retry_after_ms == 50
    assert PartialPublish("half", [1, 2]).results == (1, 2)
    assert UnknownOp("what").ref is None
    assert UnknownOp("what", ref="r1").ref == "r1"


def test_malformed_and_unauthenticated_and_forbidden_close_with_their_own_codes() -> None:
    closes = [kind.close_code for kind in (BadFrame, InvalidUtf8, AuthError, Forbidden, RateLimited, StoreError)]
    assert closes == [4500, 1007, 4501, 4502, 4006, 4005]
    assert UnknownOp.close_code is None


def test_every_error_survives_a_process_border() -> None:
    made: list[EventBusError] = [
        kind("text") for kind in all_errors() if not issubclass(kind, InvalidField | PartialPublish)
    ]
    made += [kind("data.x", "is bad", index=2) for kind in all_errors() if issubclass(kind, InvalidField)]
    made += [PartialPublish("half", ["a", None]), AuthError("no", reason="expired"), UnknownOp("what", ref=3)]
    for error in made:
        copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
        assert type(copy) is type(error)
        assert copy.args == error.args
        assert vars(copy) == vars(error)


def test_the_page_of_errors_is_what_the_code_says() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "docs" / "generate.py", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
