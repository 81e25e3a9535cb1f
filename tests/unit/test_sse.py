"""Server-Sent Events: the messages, what requests say, and a connection over a carrier that a test moves by hand."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import msgpack
import orjson
import pytest

from eventbus import wire
from eventbus.errors import BadFrame, CloseCode, Forbidden, InvalidField, RateLimited
from eventbus.fields import Level
from eventbus.frames import GoAwayReason
from eventbus.ids import EntryId, SessionId, UserId
from eventbus.moves import Sending
from eventbus.store import Start
from gateway.transport.framing import COMMENT, SSE, close_message, is_ended, message
from gateway.transport.http_connection import CARRIER
from gateway.transport.payload import Payload, payload_of
from gateway.transport.sockets import Sockets, SocketSettings
from gateway.web.acking import AckLimit
from gateway.web.sse import SseConnection
from gateway.web.sse_request import hello_of, read_ack
from tests.support.loops import on_both_loops
from tests.support.raw_websocket import Door, connected, listening
from tests.support.waiting import until

ANN = UserId("ann")


def payload(entry: str, **data: Any) -> Payload:
    body = msgpack.packb({"v": 1, "id": "e1", "type": "note", "user": "ann", "time_ms": 1, "data": data})
    found = payload_of(ANN, EntryId(entry), body)
    assert isinstance(found, Payload)
    return found


# --- messages ---------------------------------------------------------------------------------------------------------


def test_each_event_is_a_message_of_its_own_and_its_entry_id_is_the_id() -> None:
    sent = [Sending(EntryId(entry), delivery, payload(entry)) for entry, delivery in (("1-0", 1), ("2-5", 3))]
    first, second = SSE.events(sent)
    assert first.startswith(b'event: events\nid: 1-0\ndata: {"op":"events","events":[{"id":"1-0","delivery":1,')
    assert second.startswith(b'event: events\nid: 2-5\ndata: {"op":"events","events":[{"id":"2-5","delivery":3,')


@pytest.mark.parametrize("text", ["a\nb", "a\r\nb", "\r", "\u2028", "data: x\n\nevent: close\n\n", "\x00"])
def test_no_text_of_an_event_begins_a_line(text: str) -> None:
    (made,) = SSE.events([Sending(EntryId("1-0"), 1, payload("1-0", text=text))])
    assert made.endswith(b"\n\n")
    lines = made[:-2].split(b"\n")
    assert [line.split(b": ")[0] for line in lines] == [b"event", b"id", b"data"]
    assert b"\r" not in made
    assert orjson.loads(lines[2].removeprefix(b"data: "))["events"][0]["event"]["data"] == {"text": text}


def test_a_frame_without_an_entry_id_leaves_the_last_event_id_as_it_was() -> None:
    made = SSE.frame(wire.CaughtUp(cursor=EntryId("5-1")))
    assert made == b'event: caught_up\ndata: {"op":"caught_up","cursor":"5-1"}\n\n'


def test_a_goaway_says_when_to_come_back_and_the_next_welcome_undoes_it() -> None:
    away = SSE.frame(wire.GoAway(reason=GoAwayReason.DRAINING, reconnect_after_ms=7_300))
    assert away.startswith(b"retry: 7300\nevent: goaway\n")
    retries = set()
    for connection in ("000000" + "0" * 26, "0003e7" + "0" * 26, "ffffff" + "0" * 26):
        first, _, _ = SSE.frame(welcome(connection)).partition(b"\n")
        retries.add(int(first.removeprefix(b"retry: ")))
    assert retries <= set(range(500, 1_500))
    assert len(retries) == 3  # those of one storm do not come back in one moment


def welcome(connection: str) -> wire.Welcome:
    return wire.Welcome(
        protocol=1,
        node="n1",  # type: ignore[arg-type]
        connection=connection,  # type: ignore[arg-type]
        session=SessionId("tab"),
        resumed=False,
        cursor=EntryId("0-0"),
        pending=0,
        window=256,
        heartbeat_ms=20_000,
        ack_timeout_ms=30_000,
        max_frame_bytes=65_536,
        token_expires_ms=1,
        epoch="e",  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("code", [code for code in CloseCode if code >= 4000])
def test_only_after_a_close_that_says_so_a_browser_is_told_to_stop(code: CloseCode) -> None:
    lines = dict(line.split(": ", 1) for line in close_message(code, 'a "reason"').decode().strip().split("\n"))
    assert lines["event"] == "close"
    assert orjson.loads(lines["data"]) == {"code": code, "reason": 'a "reason"'}
    assert is_ended(lines.get("id")) is not code.reconnect


@pytest.mark.parametrize("last", [None, "", "5-1", "1795259810058-0"])
def test_an_entry_id_is_never_taken_for_the_end(last: str | None) -> None:
    assert not is_ended(last)


def test_a_message_has_its_parts_in_one_order() -> None:
    made = message("x", b"{}", id="1-1", retry_ms=5)
    assert made == b"retry: 5\nevent: x\nid: 1-1\ndata: {}\n\n"


# --- what requests say ------------------------------------------------------------------------------------------------


def test_a_query_is_a_hello() -> None:
    query = {"session": "tab", "cursor": "5-1", "epoch": "e1", "window": "12", "filter": '{"types":["note"]}', "x": "y"}
    assert hello_of(query, None) == wire.Hello(
        session=SessionId("tab"),
        cursor=EntryId("5-1"),
        epoch="e1",  # type: ignore[arg-type]
        window=12,
        filter=wire.Filter(types=frozenset({"note"})),
    )
    assert hello_of({"start": "earliest"}, "") == wire.Hello(start=Start.EARLIEST)


def test_the_last_event_id_counts_and_not_what_the_url_says_of_a_start() -> None:
    query = {"session": "tab", "start": "earliest", "cursor": "1-0", "epoch": "old"}
    found = hello_of(query, "5-1")
    assert (found.start, found.cursor, found.epoch) == (Start.CURSOR, "5-1", None)


BAD_QUERIES: list[tuple[dict[str, str], str | None, str]] = [
    ({"session": "a b"}, None, "session"),
    ({"session": "x" * 65}, None, "session"),
    ({"start": "middle"}, None, "start"),
    ({"start": "cursor"}, None, "cursor"),
    ({"cursor": "yesterday"}, None, "cursor"),
    ({"window": "0"}, None, "window"),
    ({"window": "1025"}, None, "window"),
    ({"window": "-1"}, None, "window"),
    ({"window": "٣"}, None, "window"),
    ({"window": "9" * 5_000}, None, "window"),
    ({"filter": "{"}, None, "filter"),
    ({"filter": "[]"}, None, "filter"),
    ({"filter": "[" * 200 + "]" * 200}, None, "filter"),
    ({"filter": "[" * 500 + "]" * 500}, None, "filter"),
    ({"filter": '{"types":"note"}'}, None, "filter"),
    ({}, "yesterday", "Last-Event-ID"),
    ({}, "1-0\u00e9", "Last-Event-ID"),
]


@pytest.mark.parametrize("query, last, field", BAD_QUERIES)
def test_a_bad_query_is_refused_with_the_name_of_its_field(query: dict[str, str], last: str | None, field: str) -> None:
    with pytest.raises(InvalidField) as caught:
        hello_of(query, last)
    assert caught.value.field.split(".")[0] == field


def test_a_body_is_an_ack_and_says_whose() -> None:
    body = orjson.dumps({"op": "ack", "session": "tab", "ids": ["1-0"], "level": "confirmed", "note": "paid", "ref": 7})
    session, ack = read_ack(body, None)
    assert session == "tab"
    assert (ack.ids, ack.level, ack.note, ack.ref) == (("1-0",), Level.CONFIRMED, "paid", 7)


def test_the_session_that_a_token_is_pinned_to_need_not_be_named_and_no_other_may_be() -> None:
    pinned = SessionId("tab")
    assert read_ack(b'{"op":"ack","upto":"5-1"}', pinned)[0] == "tab"
    assert read_ack(b'{"op":"ack","upto":"5-1","session":"tab"}', pinned)[0] == "tab"
    with pytest.raises(Forbidden, match="pinned"):
        read_ack(b'{"op":"ack","upto":"5-1","session":"desk"}', pinned)


BAD_ACKS: list[tuple[bytes, str]] = [
    (b"", "frame"),
    (b"\xff", "frame"),
    (b"[]", "frame"),
    (b"{}", "op"),
    (b'{"op":"nack","id":"1-0","session":"tab"}', "op"),
    (b'{"op":"dance","session":"tab"}', "op"),
    (b'{"op":"ack","session":"tab"}', "ids"),
    (b'{"op":"ack","session":"tab","ids":["1-0"],"upto":"1-0"}', "ids"),
    (b'{"op":"ack","session":"tab","ids":["1-0","x"]}', "ids[1]"),
    (b'{"op":"ack","session":"tab","ids":' + b"[" * 400 + b"]" * 400 + b"}", "ids[0]"),
    (b'{"op":"ack","session":"tab","upto":"1-0","level":"loved"}', "level"),
    (b'{"op":"ack","upto":"1-0"}', "session"),
    (b'{"op":"ack","upto":"1-0","session":7}', "session"),
    (b'{"op":"ack","upto":"1-0","session":"a b"}', "session"),
]


@pytest.mark.parametrize("body, field", BAD_ACKS)
def test_a_bad_ack_is_refused_with_the_name_of_its_field(body: bytes, field: str) -> None:
    with pytest.raises(BadFrame) as caught:
        read_ack(body, None)
    assert caught.value.field == field


@pytest.mark.requirement("R23")
def test_acks_of_a_user_are_limited_and_those_of_another_are_not() -> None:
    limit = AckLimit()
    for _ in range(200):
        limit.check(ANN, 20, 0)
    with pytest.raises(RateLimited) as caught:
        limit.check(ANN, 20, 0)
    assert caught.value.retry_after_ms == 1_000
    limit.check(UserId("bob"), 20, 0)
    limit.check(ANN, 20, 50)


@pytest.mark.requirement("R23")
def test_tokens_of_two_tiers_that_take_turns_do_not_fill_a_bucket() -> None:
    limit = AckLimit()
    taken = 0
    for number in range(1_000):
        with contextlib.suppress(RateLimited):
            limit.check(ANN, 1 + number % 2, 0)
            taken += 1
    assert taken == 30


def test_the_table_of_users_is_bounded() -> None:
    limit = AckLimit(users_max=3)
    for number in range(10):
        limit.check(UserId(f"u{number}"), 20, 0)
    assert len(limit) == 3


# --- the connection ---------------------------------------------------------------------------------------------------


class FakeCarrier:
    """An HTTP connection; a client that does not read is one whose `read` was cleared."""

    def __init__(self) -> None:
        self.read = asyncio.Event()
        self.read.set()
        self.buffered_bytes = 0
        self.aborted = False

    @property
    def write_paused(self) -> bool:
        return not self.read.is_set()

    def begin_endless(self, unanswered_ms: int) -> None: ...

    async def written(self) -> None:
        await self.read.wait()

    def abort(self) -> None:
        self.aborted = True


class FakeSession:
    """What the connection tells its session."""

    def __init__(self) -> None:
        self.closed: list[tuple[int, str]] = []
        self.writable = 0

    def on_open(self, connection: Any) -> None: ...

    def on_message(self, payload: bytes) -> None:
        raise AssertionError("nothing ever comes")

    def on_writable(self) -> None:
        self.writable += 1

    def on_close(self, code: int, reason: str) -> None:
        self.closed.append((code, reason))


class Line:
    """A connection whose response has begun, and what was written of it."""

    def __init__(self, *, comment_ms: int, max_queued_bytes: int) -> None:
        settings = SocketSettings(max_queued_bytes=max_queued_bytes, close_timeout_ms=50)
        self.sockets = Sockets(asyncio.get_running_loop(), settings=settings)
        self.carrier = FakeCarrier()
        self.session = FakeSession()
        self.connection = SseConnection(
            self.sockets, self.carrier, self.session, client="10.0.0.1", comment_ms=comment_ms
        )
        self.written: list[bytes] = []
        self.over = False
        self.reads_after = True

    async def send(self, piece: Any) -> None:
        await self.carrier.written()
        self.written.append(piece["body"])
        self.over = not piece["more_body"]
        if not self.reads_after:
            self.carrier.read.clear()

    async def run(self) -> None:
        try:
            await self.connection.write(self.send)
        finally:
            self.connection.finish()


@contextlib.asynccontextmanager
async def line(*, comment_ms: int = 60_000, max_queued_bytes: int = 1_000_000) -> AsyncIterator[Line]:
    made = Line(comment_ms=comment_ms, max_queued_bytes=max_queued_bytes)
    task = asyncio.create_task(made.run())
    try:
        yield made
    finally:
        made.carrier.read.set()
        made.connection.lost()
        await task


async def test_what_is_sent_in_one_turn_is_written_in_one_piece() -> None:
    async with line() as made:
        for text in (b"a", b"b", b"c"):
            made.connection.send(text)
        await until(lambda: bool(made.written))
        assert made.written == [b"abc"]


async def test_a_quiet_connection_gets_comments() -> None:
    async with line(comment_ms=5) as made:
        await until(lambda: len(made.written) >= 3)
        assert set(made.written) == {COMMENT}


async def test_a_busy_connection_gets_comments_as_well() -> None:
    async with line(comment_ms=5) as made:
        async with asyncio.timeout(5):
            while b"".join(made.written).count(COMMENT) < 3:
                made.connection.send(b"x")
                await asyncio.sleep(0)
        assert set(b"".join(made.written).replace(COMMENT, b"")) == set(b"x")


async def test_a_close_comes_behind_what_was_sent_and_ends_the_response() -> None:
    async with line() as made:
        made.connection.send(b"first ")
        made.connection.close(CloseCode.DRAINING, "bye")
        made.connection.send(b"late")
        made.connection.close(CloseCode.SUPERSEDED, "again")
        await until(lambda: made.session.closed != [])
        assert b"".join(made.written) == b"first " + close_message(4001, "bye")
        assert made.over
        assert made.session.closed == [(4001, "bye")]
        assert not made.connection.is_open
        assert not made.sockets.connections


@pytest.mark.requirement("R9")
async def test_what_waits_for_a_client_that_does_not_read_is_bounded() -> None:
    async with line(max_queued_bytes=10_000) as made:
        made.carrier.read.clear()
        for _ in range(100):
            made.connection.send(b"x" * 1_000)
            assert made.connection.buffered_bytes <= 11_000
        assert not made.connection.is_open
        # It does not even read why: it is dropped when the close's time is over.
        await until(lambda: made.carrier.aborted)
        made.carrier.read.set()
        await until(lambda: made.session.closed != [])
        assert made.session.closed[0][0] == CloseCode.SLOW_CONSUMER


@pytest.mark.requirement("R9")
async def test_a_client_that_reads_again_is_told_of_and_a_backlog_is_seen_to_stand_still() -> None:
    async with line() as made:
        made.connection.send(b"a")
        await until(lambda: made.written == [b"a"])
        made.carrier.read.clear()
        made.carrier.buffered_bytes = 500
        made.connection.send(b"b" * 100)
        now_ms = made.sockets.clock.monotonic_ms()
        made.connection.backlog(now_ms)
        later = made.connection.backlog(now_ms + 7_000)
        assert (later.waiting_bytes, later.stalled_ms) == (600, 7_000)
        assert not made.connection.writable
        made.carrier.buffered_bytes = 0
        made.carrier.read.set()
        await until(lambda: len(made.written) == 2)
        assert made.connection.writable


async def test_text_that_waits_for_room_is_asked_for_when_there_is_some_again() -> None:
    """Nothing is queued then, so nothing but the call brings it on its way."""
    async with line() as made:
        made.reads_after = False
        made.connection.send(b"a")
        await until(lambda: made.written == [b"a"])
        assert not made.connection.writable
        assert made.session.writable == 0
        made.carrier.read.set()
        await until(lambda: made.session.writable == 1)


async def test_a_client_that_hangs_up_ends_it_without_a_word() -> None:
    async with line() as made:
        made.connection.lost()
        await until(lambda: made.session.closed != [])
        assert made.session.closed == [(1006, "")]
        assert made.written == []


async def test_a_client_may_stay_silent_for_ever() -> None:
    async with line() as made:
        now_ms = made.sockets.clock.monotonic_ms()
        assert made.connection.last_received_ms >= now_ms


@pytest.mark.requirement("R25")
async def test_a_client_that_does_not_read_is_told_why_before_what_waits() -> None:
    async with line() as made:
        made.carrier.read.clear()
        made.connection.send(b"what it never read")
        made.connection.close(CloseCode.SLOW_CONSUMER, "behind")
        made.carrier.read.set()
        await until(lambda: made.over)
        assert b"".join(made.written) == close_message(4002, "behind")


class Endless:
    """An application whose response has no end, and more in it than a connection holds."""

    def __init__(self) -> None:
        self.carrier: Any = None
        self.release = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.carrier = scope["extensions"][CARRIER]
        self.carrier.begin_endless(5_000)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x" * 20_000_000, "more_body": True})
        await self.release.wait()
        await self.carrier.written()
        await send({"type": "http.response.body", "body": b"end"})


@pytest.mark.requirement("R9")
@on_both_loops
async def test_how_long_a_client_may_be_behind_is_for_the_sender_of_an_endless_response_to_say() -> None:
    """The bound on other responses is not one on this."""
    site = Endless()
    async with (
        listening(Door(), site, body_timeout_ms=20) as listener,
        connected(listener.port, limit=1024) as client,
    ):
        client.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        await until(lambda: site.carrier is not None and site.carrier.write_paused)
        late = asyncio.get_running_loop().time() + 0.1
        await until(lambda: asyncio.get_running_loop().time() > late)
        assert listener.state.connections
        assert site.carrier.buffered_bytes > 0
        site.release.set()
        site.carrier.abort()
        await until(lambda: not listener.state.connections)
        await until(lambda: not listener.state.tasks)
