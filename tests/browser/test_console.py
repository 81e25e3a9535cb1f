"""The console in Chromium, on a real node and a real server: what an operator sees and does there. R27, R28."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import redis.asyncio

from eventbus import revoking
from eventbus.clock import Clock, SystemClock
from eventbus.ids import UserId
from eventbus.inspection import Actions, action_asked_for
from eventbus.inspection.lookup import partition_of
from gateway.admin.port import make_admin_app, serve_admin
from gateway.admin.revocations import AdminAccess
from gateway.node import Node
from gateway.processes.process import bind
from gateway.processes.serving import NodeFigures
from gateway.transport.listener import Listener
from tests.browser.webdriver import Browser
from tests.support.servers import NewServer
from tests.support.wire_client import Nodes, WireClient, ids, opened, publish, token_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.browser,
    pytest.mark.requirement("R27", "R28"),
    pytest.mark.xdist_group("browser"),
]

HOSTILE = "</pre><img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
PICTURES = os.environ.get("EVENTBUS_PICTURES")
"""A directory that gets the pictures of docs/console.md; without it they are made for nobody."""

TIME_ZONE = "Asia/Kathmandu"
"""Of the operator: one whose minutes differ from those of UTC."""

MANY = 100_000
"""Users for whom something waits."""

WAITING = """
-- For each user of a partition an event that a session has not read, and the index that says so.
-- ARGV: the prefix of its keys, their life in ms, when the first of all events was stored, how many users there are in
-- all, then of each user which in the order of time, and the user id.
local at, life = tonumber(ARGV[3]), ARGV[2]
for i = 5, #ARGV, 2 do
  local stored, user = at + tonumber(ARGV[i]), ARGV[i + 1]
  local stream, known = ARGV[1] .. ':s:' .. user, ARGV[1] .. ':n:' .. user
  redis.call('ZADD', ARGV[1] .. ':z', string.format('%d', stored), user)
  if stored - at < 200 or stored - at >= tonumber(ARGV[4]) - 200 then
    redis.call('XADD', stream, string.format('%d-0', stored), 'd', 'not looked into')
    redis.call('XGROUP', 'CREATE', stream, 'phone', '0-0')
    redis.call('HSET', known, 'phone', string.format('%d %d 0-0', stored - 1, stored - 1))
    redis.call('PEXPIRE', stream, life)
    redis.call('PEXPIRE', known, life)
  end
end
redis.call('PEXPIRE', ARGV[1] .. ':z', life)
"""

HOUR_MS = 3_600_000
KEYS = {"Tab": 9, "Enter": 13, "Escape": 27}


class WallClock(SystemClock):
    """The machine's clock; a test moves its wall time on."""

    def __init__(self) -> None:
        self.ahead_ms = 0

    def now_ms(self) -> int:
        return super().now_ms() + self.ahead_ms


class Desk:
    """An operator before the console of a node, whose admin port goes by a clock of its own."""

    def __init__(self, browser: Browser, node: Node, listener: Listener, clock: WallClock) -> None:
        self.clock = clock
        self.browser = browser
        self.node = node
        self.listener = listener
        self.url = f"http://127.0.0.1:{listener.port}"

    async def sign_in(self, token: str | None = None, where: str = "#/") -> None:
        """Opens the console and gives a token; one of an operator named olga when none is given."""
        await self.browser.open(f"{self.url}/console/{where}")
        await self.browser.wait_for("document.querySelector('#token:focus')")
        await self.press(token or token_of("olga", scopes=["admin"]), "Enter")
        if token is None:
            await self.browser.wait_for("document.querySelector('main h1:focus')")

    async def go(self, where: str, shown: str) -> None:
        """Opens a view and waits until the main part has some text."""
        await self.browser.script("location.hash = arguments[0]", where)
        await self.shows(shown)

    async def shows(self, text: str, timeout_ms: int = 20_000) -> None:
        """Waits until the main part has some text."""
        await self.browser.wait_for(f"document.querySelector('main').innerText.includes({text!r})", timeout_ms)

    async def hurry(self) -> None:
        """Lets the page's own pauses take a twentieth of their time, from the next one on; not the long ones, after
        which it takes a silent feed for a dead one.
        """
        quick = "const set = setTimeout; window.setTimeout = (what, ms) => set(what, ms < 20_000 ? ms / 20 : ms)"
        await self.browser.script(quick)

    async def press(self, *keys: str) -> None:
        """Presses keys where the focus is; text of more than a character is typed."""
        for key in keys:
            if key in KEYS:
                text = {"text": "\r"} if key == "Enter" else {}
                code = {"key": key, "code": key, "windowsVirtualKeyCode": KEYS[key]}
                await self.browser.cdp("Input.dispatchKeyEvent", type="keyDown", **code, **text)
                await self.browser.cdp("Input.dispatchKeyEvent", type="keyUp", **code)
            else:
                await self.browser.cdp("Input.insertText", text=key)

    async def focus(self) -> str:
        """What has the focus, as it is read out."""
        return str(
            await self.browser.script(
                "const f = document.activeElement;"
                "return f.getAttribute('aria-label') ?? f.labels?.[0]?.textContent ?? f.textContent.trim()"
            )
        )

    async def tab_to(self, what: str) -> None:
        """Presses Tab until the focus is on it."""
        for _ in range(60):
            if (await self.focus()).startswith(what):
                return
            await self.press("Tab")
        raise AssertionError(f"no {what!r} is reached by Tab")

    async def confirm(self, count: int, why: str = "a test") -> None:
        """Fills in the dialog of an action, and waits until it is done."""
        await self.browser.wait_for("document.querySelector('dialog #confirm-reason')")
        await self.browser.write("#confirm-reason", why)
        await self.browser.write("#confirm-count", str(count))
        await self.browser.click("dialog button.primary")
        await self.browser.wait_for("document.querySelector('dialog #done')")

    async def picture(self, name: str, directory: Path) -> None:
        """Takes a picture, for the docs where they want one."""
        await self.browser.script("window.scrollTo(0, 0)")
        await self.browser.screenshot(Path(PICTURES or directory) / f"console-{name}.png")

    async def narrow(self) -> None:
        """Makes the window as wide as a telephone."""
        shape = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": False}
        await self.browser.cdp("Emulation.setDeviceMetricsOverride", **shape)

    async def is_clean(self, *expected: str) -> None:
        """Fails when the page complained, of anything but what a test did to its network."""
        lines = [line for line in await self.browser.console() if not any(part in line for part in expected)]
        assert lines == []


NewDesk = Callable[..., Awaitable[Desk]]


@pytest.fixture
async def browser(browser: Browser) -> Browser:
    """The browser in the operator's time zone."""
    await browser.cdp("Emulation.setTimezoneOverride", timezoneId=TIME_ZONE)
    return browser


async def console_of(node: Node, clock: Clock, port: int = 0) -> Listener:
    """Opens the admin port of a node."""
    access = AdminAccess(node.store, node.revocations, node.authenticator, clock)
    app = make_admin_app(NodeFigures(node), authenticator=None, access=access, settings=node.node_settings)
    return await serve_admin(app, bind("127.0.0.1", port, setting="ADMIN_PORT"))


@pytest.fixture
async def new_desk(browser: Browser, server_url: str) -> AsyncIterator[NewDesk]:
    """Opens the console of a node of its own; `url` is that of another server, and further settings are the node's."""
    async with AsyncExitStack() as stack:
        made = await stack.enter_async_context(Nodes(server_url))

        async def open_desk(url: str | None = None, **settings: Any) -> Desk:
            # Few partitions: the feed pauses for fifty times as long as its look at all of them takes.
            quick = {"node_heartbeat_ms": 100, "session_heartbeat_ms": 500, "watch_ms": 100, "partitions": 32}
            node = await made.start("gw-1", url=url, **(quick | settings))
            clock = WallClock()
            listener = await console_of(node, clock)
            stack.push_async_callback(listener.stop)
            stack.push_async_callback(browser.open, "about:blank")  # else the port waits for its feed to end
            return Desk(browser, node, listener, clock)

        yield open_desk


@pytest.fixture
async def desk(new_desk: NewDesk) -> Desk:
    """The console of a node, before the token is given."""
    return await new_desk()


async def pending(client: WireClient, node: Node, *names: str, user: str = "alice") -> list[str]:
    """Events that the client was sent and has not acked; their entry ids."""
    await client.until_op("caught_up")
    await publish(node, *names, user=user)
    return ids(await client.events(len(names)))


async def late_run(node: Node, user: str = "dave") -> str:
    """A run that was asked for long before it began, and that called a tool."""
    asked_ms = node.clock.now_ms() - 2_500
    async with node.bus.run(user=user, agent="planner", thread="trip", requested_ms=asked_ms) as run:
        await run.thinking("which trains are there?")
        async with run.tool("timetable", {"from": "Bern"}) as tool:
            tool.result = {"trains": 3}
        run.result = {"text": "three trains"}
    return str(run.id)


async def operate(node: Node, **asked: Any) -> None:
    """What another operator does in the meantime."""
    actions = Actions(node.store, by="another", partitions=node.node_settings.store.partitions)
    await actions.carry_out(await actions.plan(action_asked_for(asked)))


async def many_wait(url: str, node: Node) -> int:
    """Writes straight into a store that `MANY` users wait, each a millisecond longer than the next; since when.

    All stand in the index. What waits is there for the first and the last, whom the test looks at.
    """
    partitions = node.node_settings.store.partitions
    begun_ms = node.clock.now_ms() - 2 * MANY
    users: list[list[str]] = [[] for _ in range(partitions)]
    for number in range(MANY):
        name = f"user-{number:06}"
        users[partition_of(UserId(name), partitions)] += [str(number), name]
    async with redis.asyncio.from_url(url) as client, client.pipeline(transaction=False) as pipeline:
        for number, of_partition in enumerate(users):
            pipeline.eval(WAITING, 0, f"eb:{{{number}}}", "600000", str(begun_ms), str(MANY), *of_partition)
        await pipeline.execute()
    return begun_ms


# --- signing in -------------------------------------------------------------------------------------------------------


async def test_the_console_asks_for_a_token_of_scope_admin_and_says_what_is_wrong_with_another(desk: Desk) -> None:
    for token, words in (
        ("nonsense", "The token is not good."),
        (token_of("alice"), "Not allowed."),
        ("eyJhbGciOi\N{HORIZONTAL ELLIPSIS}", "That is no token."),
    ):
        await desk.sign_in(token)
        await desk.shows(words)
        assert await desk.browser.text("nav a") != ""
        assert await desk.browser.script("return document.querySelector('#nav').hidden")
    await desk.sign_in(f"Bearer {token_of('olga', scopes=['admin'], ttl_ms=230_000)}")
    await desk.shows("Deliveries that succeeded")
    assert "olga, token ends in 4 min" in await desk.browser.text("#who")
    assert await desk.browser.script("return sessionStorage.length") == 1
    await desk.browser.click("#sign-out")
    await desk.browser.wait_for("document.querySelector('#token')")
    assert await desk.browser.script("return sessionStorage.length") == 0
    await desk.sign_in(token_of("olga", scopes=["admin"], ttl_ms=HOUR_MS), "#/nodes")
    await desk.browser.wait_for("document.querySelector('#live').dataset.state === 'live'")
    await desk.shows("gw-1")
    desk.clock.ahead_ms = 2 * HOUR_MS
    await desk.shows("expired")
    assert await desk.browser.script("return document.activeElement.id") == "token"
    await desk.is_clean("Failed to load resource")


async def test_a_revoked_token_ends_the_live_view_and_leads_back_to_the_same_page(desk: Desk) -> None:
    await desk.sign_in(token_of("olga", scopes=["admin"], jti="lost"), "#/audit")
    await desk.shows("Nobody has done anything yet.")
    wanted = revoking.revocation_asked_for({"jti": "lost"}, by="test")
    await revoking.revoke(desk.node.store, wanted)
    await desk.shows("was revoked")
    await desk.browser.write("#token", token_of("olga", scopes=["admin"]))
    await desk.browser.click("main form button")
    await desk.shows("Nobody has done anything yet.")


# --- looking ----------------------------------------------------------------------------------------------------------


async def test_from_a_number_on_the_overview_to_the_sentence_why_an_event_did_not_arrive(
    desk: Desk, tmp_path: Path
) -> None:
    async with opened(desk.node, session="laptop") as client, opened(desk.node, "carol", session="tv") as other:
        given = await pending(client, desk.node, "a", "b", "c")
        client.send("ack", ids=given[:1], ref=1)
        await client.until_op("acked")
        (lost,) = await pending(other, desk.node, "x", user="carol")
        other.send("ack", ids=[lost], ref=1)
        await other.until_op("acked")
        async with opened(desk.node, "bob", session="phone") as gone:
            await gone.until_op("caught_up")
        await publish(desk.node, "while he was away", user="bob")
        await late_run(desk.node)
        await desk.sign_in()
        await desk.browser.wait_for("document.querySelector('#live').dataset.state === 'live'")
        await desk.shows("planner was late: started")
        await desk.shows("acks of 2 users")
        await desk.picture("overview", tmp_path)
        await desk.browser.click("[data-view=pending]")
        await desk.shows("offline")
        rows = await desk.browser.texts("tbody tr")
        assert [row[:5] for row in rows if "in flight" in row] == ["alice"]
        assert [row[:3] for row in rows if "offline" in row] == ["bob"]
        meanings = await desk.browser.texts(".meanings div")
        assert ["nobody is connected" in one for one in meanings if one.startswith("offline 1 session")] == [True]
        await desk.picture("pending", tmp_path)
        await desk.hurry()
        await desk.browser.click("tbody a[href='#/user/alice']")
        await desk.shows("laptop")
        await desk.shows("Deliveries by type")
        succeeded = "document.querySelector(\"[aria-label*='by type'] tbody td:last-child\")?.textContent"
        await desk.browser.wait_for(f"{succeeded} === '100 %'")
        await desk.picture("user", tmp_path)
        await desk.browser.click("a[href='#/user/alice/session/laptop']")
        await desk.shows(given[1])
        await desk.browser.click(f"a[href='#/event/alice/{given[1]}']")
        await desk.browser.wait_for("document.querySelector('#why')")
        assert "sent a moment ago" in await desk.browser.text("#why")
        await desk.browser.click("main details summary")
        client.send("ack", ids=given[1:2], ref=2)
        await client.until_op("acked")
        await desk.shows("received and acked")
        assert await desk.browser.script("return document.querySelector('main details').open")
        await desk.browser.write("#find-user", "alice")
        await desk.browser.write("#find-id", given[0])
        await desk.browser.click("#find button")
        await desk.shows(f"Event {given[0]}")
        await desk.shows("received and acked")
        assert "Delivered: its handler returned" in await desk.browser.text("#why")
        await desk.picture("event", tmp_path)
    await desk.is_clean()


async def test_a_run_is_shown_on_a_time_axis_with_the_deadline_that_it_missed(desk: Desk, tmp_path: Path) -> None:
    run = await late_run(desk.node)
    await desk.sign_in(where=f"#/run/dave/{run}")
    await desk.shows("One deadline was missed. Late: agent started by 1.")
    names = await desk.browser.texts(".timeline .lane-name")
    assert names == [
        "waits for an agent",
        "the whole run",
        "agent started",
        "first thinking",
        "tool timetable",
        "agent completed",
    ]
    missed = await desk.browser.texts(".timeline .missed .limit")
    assert len(missed) == 1
    assert missed[0].startswith("✗ missed by 1.")
    assert await desk.browser.texts(".timeline .lane.tool .limit") == ["✓ within 5 s"]
    spoken = await desk.browser.script("return document.querySelector('.timeline').getAttribute('aria-label')")
    assert "Deadlines missed: waits for an agent." in spoken
    assert len(await desk.browser.texts("[aria-label='The events of the run'] tbody tr")) == 5
    became = await desk.browser.texts("[aria-label='The deadlines of the run'] tbody tr")
    assert [row[-3:] for row in became if "missed" not in row] == ["met"] * 3
    assert [row[:13] for row in became if "missed by 1." in row] == ["agent started"]
    parts = "return ['dateTime', 'textContent', 'title'].map((name) => document.querySelector('main time')[name])"
    machine, shown, title = await desk.browser.script(parts)
    begun = datetime.fromisoformat(machine)
    assert shown == begun.astimezone(ZoneInfo(TIME_ZONE)).strftime("%Y-%m-%d %H:%M:%S")
    assert title == f"{begun:%Y-%m-%d %H:%M:%S}.{begun.microsecond // 1000:03} UTC"
    assert "UTC+05:45" in await desk.browser.text("#who")
    await desk.picture("run", tmp_path)
    await desk.browser.cdp("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    dark = "getComputedStyle(document.body).backgroundColor === 'rgb(18, 22, 29)'"
    await desk.browser.wait_for(dark)
    await desk.picture("dark", tmp_path)
    await desk.browser.click("#theme")
    await desk.browser.wait_for(f"!({dark})")
    await desk.is_clean()


async def test_what_is_typed_into_the_bar_leads_to_the_user_the_event_or_the_run_whatever_it_is_called(
    desk: Desk,
) -> None:
    odd = "a+b|c@d.e:f-g"
    (entry,) = await publish(desk.node, "x", user=odd)
    async with desk.node.bus.run(user=odd, agent="planner", run="nightly:7") as run:
        await run.thinking("hm")
    await desk.sign_in()

    async def find(id: str, shown: str) -> None:
        await desk.browser.write("#find-user", odd)
        await desk.browser.write("#find-id", id)
        await desk.browser.click("#find button")
        await desk.shows(shown)

    await find("", f"User {odd}")
    await desk.shows("planner")
    await find(entry, "In the stream")
    await desk.browser.click("main .facts a")
    await desk.shows(f"User {odd}")
    await find("nightly:7", "Nothing is known of it")
    await desk.browser.click("main a[href^='#/run/']")
    await desk.shows("All deadlines were met, and its events are in order.")
    assert await desk.browser.script("return document.title") == "Run nightly:7 · eventbus console"

    # Ids that no browser leaves in a path.
    odd = ".."
    receipt = await desk.node.bus.publish(user=odd, type="note", data={}, id=odd)
    async with desk.node.bus.run(user=odd, agent="planner", run=odd) as run:
        await run.thinking("hm")
    await find("", "User ..")
    await desk.shows("planner")
    await find(odd, receipt.entry)
    await desk.go("#/run/../..", "All deadlines were met, and its events are in order.")
    await desk.is_clean("Failed to load resource")


async def test_what_a_hostile_event_holds_is_shown_as_text_and_never_becomes_markup(desk: Desk) -> None:
    turned = "safe \N{RIGHT-TO-LEFT OVERRIDE}gnp.exe"
    data = {"text": HOSTILE, HOSTILE: [HOSTILE], "turned": turned}
    async with opened(desk.node) as client:
        await client.until_op("caught_up")
        receipt = await desk.node.bus.publish(user="alice", type="note", data=data)
        await client.events(1)
        client.send("ack", ids=[receipt.entry], level="confirmed", note=HOSTILE, ref=1)
        await client.until_op("acked")
    async with desk.node.bus.run(user="alice", agent=HOSTILE[:60]) as run:
        await run.thinking(HOSTILE)
    await desk.sign_in(where=f"#/event/alice/{receipt.event}")
    await desk.shows("onerror")
    assert HOSTILE in await desk.browser.script("return JSON.parse(document.querySelector('pre').textContent).text")
    assert turned == await desk.browser.script("return JSON.parse(document.querySelector('pre').textContent).turned")
    assert r"safe \u202egnp.exe" in await desk.browser.text("pre")
    await desk.go(f"#/run/alice/{run.id}", "agent completed")
    await desk.go("#/user/alice", "img src=x")
    for where in (f"#/user/{HOSTILE}", f"#/event/{HOSTILE}/{HOSTILE}", f"#/dead?user={HOSTILE}&cursor={HOSTILE}"):
        await desk.browser.script("location.hash = arguments[0]", where)
        await desk.browser.wait_for("document.querySelector('main [role=alert]')")
    assert await desk.browser.script("return document.querySelectorAll('main img, main script').length") == 0
    assert "owned" not in await desk.browser.script("return document.title.split(' ')[0]")
    await desk.is_clean("Failed to load resource")


async def test_markup_and_scripts_from_elsewhere_are_refused_by_the_page_itself(desk: Desk) -> None:
    await desk.sign_in()
    refused = """
        const tried = [];
        try { document.querySelector('main').innerHTML = '<b>x</b>'; tried.push('markup'); } catch {}
        const script = document.createElement('script');
        script.append("document.title = 'owned'");
        try { document.head.append(script); } catch {}
        const image = document.createElement('img');
        try { image.setAttribute('onerror', "document.title = 'owned'"); } catch {}
        image.src = 'data:,x';
        document.body.append(image);
        if (document.title === 'owned') tried.push('script');
        return tried;
    """
    assert await desk.browser.script(refused) == []
    lines = "\n".join(await desk.browser.console())
    for what in ("TrustedHTML", "TrustedScript", "img-src 'self'"):
        assert what in lines


# --- doing ------------------------------------------------------------------------------------------------------------


async def test_dead_letters_are_replayed_after_a_dry_run_and_a_typed_confirmation_and_it_is_written_down(
    desk: Desk, tmp_path: Path
) -> None:
    async with opened(desk.node) as client:
        given = await pending(client, desk.node, "a", "b", "c")
        await desk.sign_in(where="#/user/alice/session/tab")
        await desk.shows(given[2])
        await desk.browser.click(f"button[aria-label='Give up {given[0]}']")
        await desk.confirm(1)
        await desk.press("Escape")
        await desk.browser.wait_for("document.querySelectorAll('tbody tr').length === 3")  # one of them is the session
        await operate(desk.node, action="dead_letter", user="alice", session="tab", entries=[given[1]])
        await desk.hurry()
        await desk.browser.script("location.hash = '#/dead'")
        await desk.browser.wait_for("document.querySelectorAll('tbody tr').length === 2")
        await desk.browser.click(".bar button:nth-of-type(3)")
        await desk.browser.wait_for("document.querySelector('dialog #plan')")
        assert "every dead letter" in await desk.browser.text("dialog .facts")
        await desk.press("Escape")
        await desk.browser.click("thead input[type=checkbox]")
        assert await desk.browser.text(".bar button") == "Replay 2 chosen …"
        await operate(desk.node, action="drop", letters=[(await desk.browser.texts("tbody th"))[1]])
        await desk.browser.wait_for("document.querySelector('.bar button').textContent === 'Replay 1 chosen …'")
        await desk.browser.click(".bar button")
        await desk.browser.wait_for("document.querySelector('dialog #plan')")
        assert "Nothing is changed yet" in await desk.browser.text("#plan")
        await desk.browser.write("#confirm-reason", "the client is mended")
        await desk.browser.write("#confirm-count", "2")
        assert await desk.browser.script("return document.querySelector('dialog button.primary').disabled")
        await desk.picture("action", tmp_path)
        await desk.confirm(1, "the client is mended")
        assert "put back: 1" in await desk.browser.text("#done")
        assert [(await client.expect("dropped"))["ids"] for _ in "ab"] == [[given[0]], [given[1]]]
        assert ids(await client.events(1)) == [given[0]]
        await desk.press("Escape")
        await desk.shows("There are no dead letters here.")
    await desk.go("#/audit", "the client is mended")
    rows = await desk.browser.texts("tbody tr")
    assert len(rows) == 8
    assert "api:olga" in rows[0]
    assert "replay" in rows[0]
    await desk.is_clean()


async def test_what_has_changed_since_the_dry_run_is_not_done(desk: Desk) -> None:
    async with opened(desk.node) as client:
        given = await pending(client, desk.node, "a", "b")
        await desk.sign_in(where="#/user/alice/session/tab")
        await desk.shows(given[1])
        await desk.browser.click(".for-all button.grave")
        await desk.browser.wait_for("document.querySelector('dialog #confirm-count')")
        client.send("ack", ids=given[:1], ref=1)
        await client.until_op("acked")
        await desk.browser.write("#confirm-reason", "because")
        await desk.browser.write("#confirm-count", "2")
        await desk.browser.click("dialog button.primary")
        await desk.browser.wait_for("document.querySelector('dialog [role=alert]')")
        assert "1 item is concerned, not 2" in await desk.browser.text("dialog [role=alert]")
        assert await desk.browser.script("return document.querySelector('#confirm-reason').value") == "because"
        assert "1 entry" in await desk.browser.text("dialog #plan")
    assert list(await desk.node.store.audits(None, 10)) == []


async def test_a_node_is_drained_and_let_go_and_the_view_follows_by_itself(desk: Desk) -> None:
    await desk.sign_in(where="#/nodes")
    await desk.shows("ready")
    await desk.browser.click("button[aria-label='Drain gw-1']")
    await desk.confirm(1)
    await desk.press("Escape")
    await desk.shows("by api:olga")
    await desk.browser.click("button[aria-label='Let go of gw-1']")
    await desk.confirm(1)
    await desk.press("Escape")
    await desk.browser.wait_for("document.querySelector('main tbody .tag').textContent === 'ready'")
    await desk.is_clean()


# --- empty, broken, by keyboard ---------------------------------------------------------------------------------------


async def test_an_installation_in_which_nothing_happened_says_so_in_every_view(desk: Desk) -> None:
    await desk.sign_in()
    await desk.shows("Operators were told of nothing")
    for where, words in (
        ("#/pending", "Nothing waits."),
        ("#/dead", "There are no dead letters here."),
        ("#/audit", "Nobody has done anything yet."),
        ("#/users", "Nobody waits for anything."),
        ("#/runs?find=1", "No run was found."),
        ("#/user/nobody", "No session is known."),
        ("#/user/nobody/session/tab", "No such session is known"),
        ("#/event/nobody/e-1", "nothing was ever stored for nobody"),
        ("#/run/nobody/run_1", "Nothing is known of the run run_1 (any more)."),
        ("#/dead/1:1-1", "There is no such dead letter"),
        ("#/nowhere/at/all", "There is nothing here"),
        ("#/", "Operators were told of nothing"),
        ("#/constructor", "There is nothing here"),
    ):
        await desk.go(where, words)
    await desk.is_clean("Failed to load resource")


async def test_redis_that_is_away_is_told_of_and_what_is_shown_stays_until_it_is_back(
    new_desk: NewDesk, new_server: NewServer, tmp_path: Path
) -> None:
    server = new_server()
    desk = await new_desk(server.url, redis_timeout_ms=500)
    await desk.sign_in()
    await desk.browser.wait_for("document.querySelector('#live').dataset.state === 'live'")
    server.kill()
    await desk.browser.wait_for("document.querySelector('#live').dataset.state === 'stale'", 15_000)
    assert "What is shown is old" in await desk.browser.text("#banner")
    assert "gw-1" in await desk.browser.text("main")
    await desk.picture("away", tmp_path)
    await desk.browser.script("location.reload()")
    await desk.browser.wait_for("document.querySelector('#banner')?.innerText.includes('Nothing can be shown yet')")
    assert await desk.browser.script("return document.querySelector('main').innerText") == "Overview\n\nLooking it up …"
    await desk.go("#/pending", "Try again")
    server.start()
    await desk.browser.wait_for("document.querySelector('#live').dataset.state === 'live'", 20_000)
    assert await desk.browser.script("return document.querySelector('#banner').hidden")
    await desk.browser.click(".problem button")
    await desk.shows("Nothing waits.")


async def test_a_node_that_is_gone_is_told_of_and_the_page_goes_on_when_it_is_back(desk: Desk) -> None:
    await desk.sign_in()
    await desk.browser.wait_for("document.querySelector('#live').dataset.state === 'live'")
    await desk.listener.stop()
    await desk.browser.wait_for("document.querySelector('#live').dataset.state === 'away'")
    assert await desk.browser.text("#live") == "no connection"
    assert "What is shown is old: of 2" in await desk.browser.text("#banner")
    await desk.go("#/pending", "The admin port does not answer.")
    again = await console_of(desk.node, desk.clock, desk.listener.port)
    try:
        await desk.browser.wait_for("document.querySelector('#live').dataset.state === 'live'")
        assert await desk.browser.script("return document.querySelector('#banner').hidden")
        await desk.browser.click(".problem button")
        await desk.shows("Nothing waits.")
    finally:
        await desk.browser.open("about:blank")
        await again.stop()


async def test_everything_is_reached_and_done_with_the_keyboard_alone(desk: Desk) -> None:
    async with opened(desk.node) as client:
        await pending(client, desk.node, "a")
        await desk.sign_in()
        await desk.browser.script("document.activeElement.blur(); document.body.tabIndex = -1; document.body.focus()")
        await desk.press("Tab")
        assert await desk.focus() == "Skip to the content"
        await desk.press("Enter")
        assert await desk.browser.script("return document.activeElement.id") == "main"
        await desk.browser.script("document.body.focus()")
        await desk.tab_to("Pending")
        await desk.press("Enter")
        await desk.shows("tab")
        assert await desk.focus() == "Pending"
        await desk.tab_to("tab")
        await desk.press("Enter")
        await desk.shows("Pending entries")
        await desk.tab_to("Skip 1")
        button = await desk.focus()
        await desk.press("Enter")
        await desk.browser.wait_for("document.querySelector('dialog #confirm-reason:focus')")
        await desk.press("Escape")
        await desk.browser.wait_for("!document.querySelector('dialog')")
        assert await desk.focus() == button
        await desk.press("Enter")
        await desk.browser.wait_for("document.querySelector('dialog #confirm-reason:focus')")
        await desk.press("because", "Tab", "1", "Enter")
        await desk.browser.wait_for("document.querySelector('dialog #done')")
        await desk.press("Enter")
        await desk.shows("Nothing is sent and not acked.")
    await desk.is_clean()


async def test_what_comes_in_live_takes_the_focus_from_nobody(desk: Desk) -> None:
    async with opened(desk.node, "bob", session="phone") as client:
        await pending(client, desk.node, "a", user="bob")
        async with opened(desk.node, "carol", session="tv") as other:
            await other.until_op("caught_up")
        await desk.sign_in()
        await desk.hurry()
        for where, selector, shown in (
            ("#/", ".tile a[href='#/pending']", "2 in all"),
            ("#/pending", "tbody a[href='#/user/bob']", "carol"),
        ):
            await desk.browser.script("location.hash = arguments[0]", where)
            await desk.browser.wait_for(f"document.querySelector({selector!r})")
            await desk.browser.script("document.querySelector(arguments[0]).focus()", selector)
            await desk.browser.script("for (const one of document.querySelectorAll('tbody th')) one.seen = true")
            await publish(desk.node, "b", user="bob" if where == "#/" else "carol")
            await desk.shows(shown)
            assert await desk.browser.script("return document.querySelector('tbody th').seen")
            assert await desk.browser.script("return document.activeElement.matches(arguments[0])", selector)


async def test_a_tab_that_nobody_sees_asks_for_nothing_until_it_is_seen_again(desk: Desk) -> None:
    await desk.sign_in()
    await desk.browser.wait_for("document.querySelector('#live').dataset.state === 'live'")
    await desk.hurry()
    await desk.browser.minimize()
    await desk.browser.wait_for("document.querySelector('#live').dataset.state === 'asleep'")
    await desk.browser.restore()
    await desk.browser.wait_for("document.querySelector('#live').dataset.state === 'live'")
    await desk.is_clean()


async def test_every_control_and_region_has_a_name_for_who_does_not_see_it(desk: Desk) -> None:
    run = await late_run(desk.node, "alice")
    async with opened(desk.node) as client:
        given = await pending(client, desk.node, "a", "b")
        await operate(desk.node, action="dead_letter", user="alice", session="tab", entries=given[:1])
        await desk.sign_in()
        for where, words in (
            ("#/", "gw-1"),
            ("#/pending", "tab"),
            ("#/user/alice", "tab"),
            ("#/user/alice/session/tab", "Send again"),
            (f"#/event/alice/{given[1]}", "The envelope"),
            (f"#/run/alice/{run}", "agent completed"),
            ("#/dead", "operator"),
            ("#/nodes", "gw-1"),
            ("#/audit", "another"),
        ):
            await desk.go(where, words)
            tree = (await desk.browser.cdp("Accessibility.getFullAXTree"))["nodes"]
            seen = [one for one in tree if not one.get("ignored")]
            roles = {one["role"]["value"] for one in seen}
            assert {"banner", "navigation", "main", "heading"} <= roles
            named = ("button", "link", "textbox", "checkbox", "combobox", "table", "dialog", "region", "searchbox")
            bare = [one for one in seen if one["role"]["value"] in named and not one.get("name", {}).get("value")]
            assert bare == []
            # Who steers by voice says what is written on a button.
            for said, name in await desk.browser.script(
                "return Array.from(document.querySelectorAll('main button[aria-label]'),"
                " (one) => [one.textContent, one.getAttribute('aria-label')])"
            ):
                assert said in name


async def test_no_view_is_wider_than_a_telephone(desk: Desk, tmp_path: Path) -> None:
    run = await late_run(desk.node, "alice")
    async with opened(desk.node) as client:
        await pending(client, desk.node, "a" * 300)
        await desk.sign_in()
        await desk.narrow()
        for where, words in (
            ("#/", "gw-1"),
            ("#/pending", "tab"),
            ("#/user/alice", "tab"),
            ("#/user/alice/session/tab", "Send again"),
            (f"#/run/alice/{run}", "agent completed"),
            ("#/dead", "Filter"),
            ("#/nodes", "gw-1"),
            ("#/audit", "Nobody"),
        ):
            await desk.go(where, words)
            over = "const page = document.documentElement; return page.scrollWidth - page.clientWidth"
            assert await desk.browser.script(over) == 0, where
            await desk.picture(f"narrow-{where.split('/')[1] or 'overview'}", tmp_path)


async def test_who_listens_is_told_of_many_things_at_once_in_one_sentence(desk: Desk) -> None:
    await desk.sign_in()
    await desk.browser.wait_for("document.querySelector('#live').dataset.state === 'live'")
    await desk.browser.script(
        "window.said = []; new MutationObserver(() => said.push(document.querySelector('#say').textContent))"
        ".observe(document.querySelector('#say'), {childList: true})"
    )
    for number in (1, 2):
        await late_run(desk.node)
        await desk.browser.wait_for(f"document.querySelectorAll('.told li').length === {number}")
    assert await desk.browser.script("return said") == ["Operators were told: planner was late: started"]


async def test_a_hundred_thousand_who_wait_are_shown_a_page_at_a_time(new_desk: NewDesk, server_url: str) -> None:
    desk = await new_desk(partitions=1024)
    begun_ms = await many_wait(server_url, desk.node)
    rows = "document.querySelectorAll('main tbody tr').length"
    await desk.sign_in(where="#/pending")
    await desk.browser.wait_for("document.querySelector('#count-pending').textContent === '100,000'")
    for page in range(3):
        await desk.browser.wait_for(f"document.querySelector('tbody th')?.textContent === 'user-{50 * page:06}'")
        assert await desk.browser.texts("tbody th") == [f"user-{50 * page + one:06}" for one in range(50)]
        assert await desk.browser.script("return document.querySelectorAll('*').length") < 1_500
        if page == 1:
            # Who goes back to a page is where they were.
            await desk.browser.script(
                "document.querySelector(\"a[href='#/user/user-000090']\").scrollIntoView({block: 'center'})"
            )
            scrolled = await desk.browser.script("return scrollY")
            await desk.browser.click("a[href='#/user/user-000090']")
            await desk.shows("User user-000090")
            await desk.browser.script("history.back()")
            await desk.browser.wait_for(f"{rows} === 50")
            await desk.browser.wait_for("document.activeElement.textContent === 'user-000090'")
            assert scrolled > 300
            assert await desk.browser.script("return scrollY") == scrolled
        await desk.browser.click(".pager a:last-of-type")
    # An address that somebody sent on leads to a place in the midst of it.
    last = f"user-{MANY - 11:06}"
    partition = partition_of(UserId(last), desk.node.node_settings.store.partitions)
    cursor = f"{begun_ms + MANY - 11}:{partition}:{last}"
    await desk.browser.open(f"{desk.url}/console/#/pending?cursor={cursor}")
    await desk.browser.wait_for(f"{rows} === 10")
    await desk.shows("This is the last page.")
    assert (await desk.browser.texts("tbody th"))[-1] == f"user-{MANY - 1:06}"
    await desk.is_clean()


async def test_a_run_of_hundreds_of_events_is_shown_a_page_at_a_time(desk: Desk) -> None:
    async with desk.node.bus.run(user="alice", agent="planner") as run:
        for number in range(260):
            await run.thinking(f"thought {number}")
    await desk.sign_in(where=f"#/run/alice/{run.id}")
    rows = "document.querySelectorAll('[aria-label=\"The events of the run\"] tbody tr').length"
    await desk.browser.wait_for(f"{rows} === 200")
    await desk.browser.click(".pager a")
    await desk.browser.wait_for(f"{rows} === 62")
    await desk.shows("201 to 262 of 262")
    assert "agent thinking \N{MULTIPLICATION SIGN} 259" in await desk.browser.texts(".timeline .lane-name")
