"""What the Python client says beyond `received`: when, and how often."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from eventbus import Subscriber
from eventbus.client.confirms import MAX_UNANSWERED, Confirms
from eventbus.errors import InvalidField
from eventbus.event import Level
from eventbus.ids import EntryId
from eventbus.testing import ManualClock
from tests.support.subscribing import Peer, ScriptedNode, item


@pytest.fixture
async def node() -> AsyncIterator[ScriptedNode]:
    async with ScriptedNode() as node:
        yield node


@asynccontextmanager
async def opened(node: ScriptedNode) -> AsyncIterator[tuple[Subscriber, Peer]]:
    async with Subscriber(node.url, token="jwt", random=lambda: 0.0) as subscriber:
        peer = await node.peer()
        await peer.greet()
        yield subscriber, peer


def levels(frames: list[dict[str, Any]]) -> list[tuple[str, list[str], str | None]]:
    return [(frame.get("level", "received"), frame["ids"], frame.get("note")) for frame in frames]


@pytest.mark.requirement("R11")
async def test_displayed_and_confirmed_go_out_behind_the_ack_of_their_event(node: ScriptedNode) -> None:
    async with opened(node) as (subscriber, peer):
        await peer.events(item(1), item(2))
        first = await anext(subscriber)
        await first.displayed()
        await first.confirm("read")
        await peer.ping()
        assert peer.all("ack") == []
        second = await anext(subscriber)
        await peer.frame("ack", 3)
        said = levels(peer.all("ack"))
        assert said[0] == ("received", ["1000-1"], None)
        assert {level: (ids, note) for level, ids, note in said[1:]} == {
            "displayed": (["1000-1"], None),
            "confirmed": (["1000-1"], "read"),
        }
        await second.ack()
        await second.confirm()
        await peer.frame("ack", 5)
        assert levels(peer.all("ack")[3:]) == [("received", ["1000-2"], None), ("confirmed", ["1000-2"], None)]


@pytest.mark.requirement("R11")
async def test_what_was_not_answered_is_said_again_on_the_next_connection(node: ScriptedNode) -> None:
    async with opened(node) as (subscriber, peer):
        await peer.events(item(1), item(2))
        delivery = await anext(subscriber)
        await delivery.ack()
        await delivery.displayed()
        await delivery.confirm("read")
        frames = {frame["level"]: frame for frame in [await peer.frame("ack", 2), await peer.frame("ack", 3)]}
        await peer.send("acked", ref=frames["displayed"]["ref"], count=0)
        await peer.events(item(3))
        for _ in range(2):  # the third event is behind the answer
            await anext(subscriber)
        peer.cut()
        again = await node.peer(2)
        await again.greet(resumed=True)
        assert await again.frame("ack") == frames["confirmed"]
        await again.ping()
        assert again.all("ack") == [frames["confirmed"]]


@pytest.mark.requirement("R11")
async def test_what_the_store_could_not_take_is_said_again_on_the_same_connection(node: ScriptedNode) -> None:
    clock = ManualClock()
    async with Subscriber(node.url, token="jwt", clock=clock) as subscriber:
        peer = await node.peer()
        await peer.greet()
        await peer.events(item(1))
        delivery = await anext(subscriber)
        await delivery.ack()
        await delivery.confirm("read")
        frame = await peer.frame("ack", 2)
        await peer.send("error", code="store_unavailable", message="the store is away", ref=frame["ref"])
        await peer.events(item(2))
        await anext(subscriber)  # behind the answer
        clock.advance(4_000)
        assert await peer.frame("ack", 3) == frame


@pytest.mark.requirement("R11")
async def test_a_failed_event_is_not_confirmed(node: ScriptedNode) -> None:
    async with opened(node) as (subscriber, peer):
        await peer.events(item(1), item(2))
        delivery = await anext(subscriber)
        await delivery.displayed()
        await delivery.nack()
        await delivery.confirm()
        await (await anext(subscriber)).ack()
        await peer.acks(2)
        await peer.ping()
    assert levels(peer.all("ack")) == [("received", ["1000-2"], None)]


@pytest.mark.parametrize("wrong", ["n" * 257, 7, "half \ud83d"])
async def test_a_note_must_be_short_text(node: ScriptedNode, wrong: Any) -> None:
    async with opened(node) as (subscriber, peer):
        await peer.events(item(1))
        with pytest.raises(InvalidField, match="note"):
            await (await anext(subscriber)).confirm(wrong)


def test_many_displayed_share_a_frame() -> None:
    confirms = Confirms()
    for number in range(5):
        confirms.add(EntryId(f"1-{number}"), Level.DISPLAYED, None)
    frames = [confirms.next(3), confirms.next(3), confirms.next(3)]
    assert [None if frame is None or frame.ids is None else len(frame.ids) for frame in frames] == [3, 2, None]


def test_the_oldest_are_forgotten_when_too_many_wait() -> None:
    confirms = Confirms()
    for number in range(MAX_UNANSWERED + 10):
        confirms.add(EntryId(f"1-{number}"), Level.CONFIRMED, None)
    assert confirms.forgotten == 10
    sent = []
    while (frame := confirms.next(100)) is not None:
        sent.append(frame)
    assert len(sent) == MAX_UNANSWERED
    confirms.reconnected()
    assert confirms.next(100) == sent[0]
    for frame in sent:
        assert frame.ref is not None
        confirms.answered(frame.ref)
    confirms.reconnected()
    assert not confirms
