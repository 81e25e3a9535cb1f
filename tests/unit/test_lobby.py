"""Handshakes wait for their turn, in their order, and not without end."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from gateway.access.admission import Entry
from gateway.transport.handshake import AcceptThenClose, Decision, Reject, UpgradeRequest
from gateway.transport.lobby import Lobby
from gateway.transport.upgrade import Route, Upgrades
from tests.support.waiting import until

ROUTE = Route(peer="192.0.2.1", scheme="http")
AWAY = Reject(status=503, code="overloaded", message="later")


class Wire:
    """A connection that says whether it is read."""

    def __init__(self) -> None:
        self.reading = True
        self.closing = False

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def is_closing(self) -> bool:
        return self.closing


class Begun:
    """Upgrades that write down whose turn came, and who was refused."""

    def __init__(self) -> None:
        self.sockets = self
        self.loop = asyncio.get_running_loop()
        self.entered: list[bytes] = []
        self.told: list[bytes] = []
        self.refused: list[Reject] = []

    def begin(self, transport: Wire, head: bytes, early: bytes, route: Route, *, decide: object = None) -> None:
        assert transport.reading
        (self.entered if decide is None else self.told).append(head)

    def refuse(self, transport: Wire, reject: Reject) -> None:
        assert transport.reading
        self.refused.append(reject)


class ByHand:
    """A door that the test opens."""

    def __init__(self) -> None:
        self.waits_of_one = 0
        self.entry = Entry.WAIT
        self.turns = 0

    def enters(self, waiting: int) -> Entry:
        return self.entry

    def row(self, head: bytes, peer: str) -> str | None:
        assert peer == ROUTE.peer
        return None if head == b"unknown" else head[:1].decode()

    def next_enters(self) -> bool:
        self.turns -= 1
        return self.turns >= 0

    def away(self, head: bytes) -> Reject | None:
        return None if b"browser" in head else AWAY

    def away_request(self, request: UpgradeRequest) -> Decision:
        return AcceptThenClose(code=4007, reason="later")


class Room:
    def __init__(self) -> None:
        self.begun = Begun()
        self.door = ByHand()
        self.lobby = Lobby(cast(Upgrades, self.begun), self.door)

    def come(self, name: bytes) -> Wire:
        wire = Wire()
        self.lobby.enter(cast(asyncio.Transport, wire), name, b"", ROUTE)
        return wire


@pytest.mark.requirement("R10")
async def test_who_waits_enters_in_the_order_of_coming_and_is_not_read_before() -> None:
    room = Room()
    wires = [room.come(name) for name in (b"a", b"b", b"c")]
    assert room.begun.entered == []
    assert not any(wire.reading for wire in wires)
    room.door.turns = 2
    await until(lambda: room.begun.entered == [b"a", b"b"])
    assert len(room.lobby) == 1
    room.lobby.stop()


async def test_who_may_enters_at_once() -> None:
    room = Room()
    room.door.entry = Entry.NOW
    room.come(b"a")
    assert room.begun.entered == [b"a"]


@pytest.mark.requirement("R10")
async def test_who_can_not_wait_is_told_and_a_browser_by_a_close() -> None:
    room = Room()
    room.door.entry = Entry.AWAY
    room.come(b"a")
    room.come(b"browser")
    assert room.begun.refused == [AWAY]
    assert room.begun.told == [b"browser"]
    assert len(room.lobby) == 0


@pytest.mark.requirement("R25")
async def test_who_has_left_takes_nobodys_turn_and_a_stop_answers_those_who_wait() -> None:
    room = Room()
    room.come(b"a").closing = True
    room.come(b"b")
    room.door.turns = 1
    await until(lambda: room.begun.entered == [b"b"])
    room.door.turns = 0
    room.come(b"c")
    room.lobby.stop()
    assert room.begun.refused == [AWAY]
    assert len(room.lobby) == 0


@pytest.mark.requirement("R23")
async def test_an_address_that_floods_does_not_take_the_places_of_others() -> None:
    room = Room()
    room.door.waits_of_one = 2
    for name in (b"a1", b"a2", b"a3", b"a4", b"b1", b"unknown", b"unknown", b"unknown"):
        room.come(name)
    assert len(room.begun.refused) == 2
    assert len(room.lobby) == 6
    room.door.turns = 1
    await until(lambda: room.begun.entered == [b"a1"])
    room.come(b"a5")
    assert len(room.begun.refused) == 2
    room.come(b"a6")
    assert len(room.begun.refused) == 3
    room.lobby.stop()


@pytest.mark.requirement("R25")
async def test_one_that_can_not_be_let_in_keeps_nobody_else_out(caplog: pytest.LogCaptureFixture) -> None:
    room = Room()
    room.come(b"broken").resume_reading = fail  # type: ignore[method-assign]
    room.come(b"b")
    room.door.turns = 2
    await until(lambda: room.begun.entered == [b"b"])
    assert "a defect" in caplog.text
    room.lobby.stop()


def fail() -> None:
    raise KeyError("a defect")


@pytest.mark.requirement("R25")
async def test_nobody_waits_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.transport.lobby.WAIT_MAX_MS", 50)
    room = Room()
    room.door.turns = -1_000_000
    room.come(b"a")
    await until(lambda: room.begun.refused == [AWAY])
