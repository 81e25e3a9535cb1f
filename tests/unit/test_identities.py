"""A ticket stands for what its token said, and for nothing else."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from gateway.access.auth import Scope
from gateway.access.identities import claims_of, identity_from_claims
from tests.support.bench import identity_of


@pytest.mark.requirement("R23")
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"session": "phone"},
        {"scopes": frozenset()},
        {"scopes": frozenset(Scope)},
        {"tier": "enterprise", "jti": "j1", "key_id": "k1"},
    ],
)
def test_an_identity_comes_back_from_its_claims_as_it_was(changes: dict[str, Any]) -> None:
    identity = identity_of("ann@example.org", **changes)
    assert identity_from_claims(orjson.loads(claims_of(identity))) == identity


def test_the_claims_are_one_line_of_json_in_a_stable_order() -> None:
    claims = claims_of(identity_of(scopes=frozenset({Scope.SUBSCRIBE, Scope.ADMIN})))
    assert claims == claims_of(identity_of(scopes=frozenset({Scope.ADMIN, Scope.SUBSCRIBE})))
    assert "\n" not in claims
