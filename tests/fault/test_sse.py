"""Server-Sent Events over nodes that are killed and frozen: nothing is lost, and what comes twice says so."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest

from tests.support.installation import Installation, NewInstallation
from tests.support.sse_client import SseClient, sse
from tests.support.waiting import until

EVENTS = 600


class Tab:
    """What a browser does: it takes events, acks them in lots by whichever node answers, and comes back by itself.

    Attributes:
        events: the event ids, each once, in the order in which they came first.
        again: how many came more than once; each of those said so.
        unmarked: how many of them did not.
        opened: how many responses it had.
        codes: why the node ended them.
        tried: the status of each request, or what went wrong.
    """

    def __init__(self, installation: Installation) -> None:
        self.events: list[str] = []
        self.again = 0
        self.unmarked = 0
        self.opened = 0
        self.codes: list[int] = []
        self.tried: list[int | str] = []
        self._installation = installation
        self._last: str | None = None
        self._owed: list[str] = []

    def __repr__(self) -> str:
        return f"<Tab opened={self.opened} events={len(self.events)} tried={self.tried} codes={self.codes}>"

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(self._listen()), asyncio.create_task(self._ack())]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(isinstance(end, asyncio.CancelledError) for end in ended), ended

    async def _listen(self) -> None:
        port = self._installation.proxy.port
        while True:
            try:
                async with sse(port, self._installation.token(), last_event_id=self._last) as client:
                    self.opened += client.status == 200
                    self.tried.append(client.status)
                    await self._take(client)
            except (ConnectionError, asyncio.IncompleteReadError, TimeoutError) as error:
                self.tried.append(type(error).__name__)
            await asyncio.sleep(0.05)  # real time: the pause before it comes back

    async def _take(self, client: SseClient) -> None:
        while client.status == 200:
            message = await client.next()
            self._last = client.last_event_id
            if message.event == "close":
                self.codes.append(message.data["code"])
                return
            for item in message.data.get("events", ()):
                self._owed.append(item["id"])
                if item["event"]["id"] not in self.events:
                    self.events.append(item["event"]["id"])
                else:
                    self.again += 1
                    self.unmarked += item["delivery"] == 1

    async def _ack(self) -> None:
        headers = {"Authorization": f"Bearer {self._installation.token()}"}
        # One client, for making one costs tens of milliseconds of this loop; but a connection for each lot.
        limits = httpx.Limits(max_keepalive_connections=0)
        url = self._installation.url
        async with httpx.AsyncClient(base_url=url, headers=headers, limits=limits, timeout=5) as client:
            while True:
                await until(lambda: bool(self._owed), 60_000)
                lot, self._owed = self._owed[:50], self._owed[50:]
                try:
                    response = await client.post("/v1/acks", json={"op": "ack", "session": "tab", "ids": lot})
                    response.raise_for_status()
                except httpx.HTTPError:
                    self._owed = lot + self._owed  # it is not known whether that was taken: it may be said again
                await asyncio.sleep(0.02)  # real time: acks go in lots


@pytest.mark.slow
@pytest.mark.requirement("R1", "R2", "R7")
async def test_a_node_killed_in_the_midst_costs_no_event_and_the_other_goes_on_from_the_last_event_id(
    new_installation: NewInstallation,
) -> None:
    installation = await new_installation(nodes=2)
    tab = Tab(installation)
    async with tab.running():
        await until(lambda: tab.opened == 1, 10_000, lambda: f"the first response; {tab}")
        publishing = asyncio.create_task(installation.publish(EVENTS, pace_s=0.002))
        await until(lambda: len(tab.events) > EVENTS // 3, 20_000, lambda: f"events flow; {tab}")
        old, _ = installation.switch()
        old.child.kill()
        await publishing
        await until(lambda: len(tab.events) == EVENTS, 30_000, lambda: f"all events; {tab}")
        await installation.all_acked()
    assert tab.events == installation.published
    assert tab.unmarked == 0
    assert tab.opened == 2, tab
    assert await installation.sessions() == ["tab"]


@pytest.mark.slow
@pytest.mark.requirement("R10")
async def test_a_drained_node_sends_its_clients_on_and_what_comes_twice_says_so(
    new_installation: NewInstallation,
) -> None:
    installation = await new_installation(nodes=2)
    tab = Tab(installation)
    async with tab.running():
        await until(lambda: tab.opened == 1, 10_000, lambda: f"the first response; {tab}")
        publishing = asyncio.create_task(installation.publish(EVENTS, pace_s=0.002))
        await until(lambda: len(tab.events) > EVENTS // 3, 20_000, lambda: f"events flow; {tab}")
        old, _ = installation.switch()
        old.child.terminate()
        assert await old.child.wait() == 0
        await publishing
        await until(lambda: len(tab.events) == EVENTS, 30_000, lambda: f"all events; {tab}")
        await installation.all_acked()
    assert tab.events == installation.published
    assert tab.codes == [4001], tab
    assert (tab.unmarked, tab.opened) == (0, 2), tab


@pytest.mark.requirement("R2")
async def test_a_frozen_node_that_comes_back_gives_the_session_up_and_tells_the_client_to_stay_away(
    new_installation: NewInstallation,
) -> None:
    """D2: what it reads late is nobody's but the new connection's."""
    installation = await new_installation(nodes=2)
    token = installation.token()
    async with sse(installation.nodes[0].port, token) as old:
        await old.until_event("caught_up")
        installation.nodes[0].child.freeze()
        try:
            await installation.publish(3)
            async with sse(installation.nodes[1].port, token) as new:
                await new.expect("welcome", resumed=True)
                events = [item["event"]["id"] for item in await new.deliveries(3)]
                installation.nodes[0].child.thaw()
                last = await old.until_closed()
                assert (last.data["code"], last.id) == (4504, "close-4504")
                assert [message for message in old.seen if message.event == "events"] == []
                await installation.publish(1)
                events.append((await new.until_event("events")).data["events"][0]["event"]["id"])
        finally:
            installation.nodes[0].child.thaw()
    assert events == installation.published
    assert await installation.sessions() == ["tab"]


@pytest.mark.requirement("R2")
async def test_a_half_open_connection_does_not_keep_the_session(new_installation: NewInstallation) -> None:
    """The client's side is gone and nobody told the node; the client comes back over another way."""
    installation = await new_installation(nodes=2)
    token = installation.token()
    await until(installation.nodes[0].ready, 20_000, "the node is ready")
    async with sse(installation.proxy.port, token) as old:
        await old.until_event("caught_up")
        installation.proxy.half_open()
        await installation.publish(5)
        async with sse(installation.nodes[1].port, token, last_event_id="0-0") as new:
            await new.expect("welcome", resumed=True)
            found = [item["event"]["id"] for item in await new.deliveries(5)]
    assert found == installation.published
