"""What an upgrade may ask for."""

from __future__ import annotations

import pytest

from gateway.transport.handshake import Subprotocol, choose_subprotocol
from tests.support.raw_websocket import request

BEARER = "base64url.bearer.eventbus.e30"


@pytest.mark.parametrize(
    "offered, chosen",
    [
        ((), Subprotocol.JSON),
        (("eventbus.v1.json",), Subprotocol.JSON),
        (("eventbus.v1.msgpack",), Subprotocol.MSGPACK),
        (("eventbus.v1.msgpack", "eventbus.v1.json"), Subprotocol.MSGPACK),
        (("eventbus.v1.json", "eventbus.v1.msgpack"), Subprotocol.JSON),
        ((BEARER, "eventbus.v1.json"), Subprotocol.JSON),
        (("soap", "eventbus.v1.msgpack"), Subprotocol.MSGPACK),
        ((BEARER,), None),
        (("soap", "eventbus.v2.json"), None),
        (("EVENTBUS.V1.JSON",), None),
    ],
)
def test_first_offer_that_is_spoken_is_chosen(offered: tuple[str, ...], chosen: Subprotocol | None) -> None:
    assert choose_subprotocol(offered) is chosen


def test_request_tells_a_browser_by_its_origin() -> None:
    assert request().origin is None
    assert request().header("authorization") is None
