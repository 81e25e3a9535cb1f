"""What `eventbus doctor` tries: the delivery path by using it, with the store alone and through a node.

`try_store` does what the bus does, under a user of its own (`DOCTOR_USER`) whose keys end by themselves; `try_node`
sends an event through a node to a socket. What is judged without trying is in `eventbus.doctor.server_checks`.

Source: docs/cli.md.
"""

from __future__ import annotations

import asyncio
import http.client
import secrets
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

from eventbus.clock import Clock, new_connection_id, new_event_id, new_session_id, seconds
from eventbus.config import StoreSettings
from eventbus.doctor.server_checks import Check, CheckState
from eventbus.errors import EventBusError, StoreError, SubscriberError
from eventbus.event import encode_envelope, make_event
from eventbus.ids import ENTRY_ZERO, ConnectionId, EntryId, EventId, NodeName, RunId, SessionId, UserId
from eventbus.store import (
    LOST,
    Append,
    Appended,
    Attach,
    Attached,
    AttachMode,
    BeatState,
    DeadLetter,
    DeadOutcome,
    Fence,
    ReadRequest,
    ReadState,
    Redelivery,
    RedeliveryOutcome,
    Start,
    Store,
    Ticket,
)
from eventbus.store.mending import Order

__all__ = ["DOCTOR_USER", "short_lived", "try_node", "try_readiness", "try_store"]

DOCTOR_USER: Final = UserId("eventbus-doctor")
"""Whose stream is used: one for all runs, so that a run leaves no keys that the last one had not left."""

_LIFE_MS: Final = 60_000
_WAKE_TIMEOUT_MS: Final = 3_000
_HTTP_TIMEOUT_MS: Final = 5_000
_LOOK_MS: Final = 20
_KNOWN_MAX: Final = 1_000

T = TypeVar("T")


def short_lived(settings: StoreSettings) -> StoreSettings:
    """The settings of a store for `try_store`: what the doctor's user leaves ends after a minute or so.

    What the users of a partition share (the idempotency fields, the dead letters) keeps its life: a shorter one would
    be theirs too.
    """
    retention_ms = min(settings.retention_ms, max(_LIFE_MS, settings.dedupe_ms))
    return replace(settings, retention_ms=retention_ms, session_ttl_ms=min(_LIFE_MS, retention_ms))


class _Failed(Exception):
    """A step came out otherwise than it must."""


class _Ears:
    """Hears the wake-ups of the doctor's own channel."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.woke = asyncio.Event()
        self.probes: set[str] = set()

    def woken(self, user: UserId) -> None:
        self.woke.set()

    def displaced(self, user: UserId, session: SessionId, connection: ConnectionId) -> None:
        """Nobody takes the doctor's session."""

    def acked_elsewhere(self, user: UserId, session: SessionId, entries: Sequence[EntryId]) -> None:
        """Nobody else acks for it."""

    def released(self, user: UserId, session: SessionId, entries: Sequence[EntryId]) -> None:
        """No event of it is for any one session."""

    def text_came(self, user: UserId, run: RunId) -> None:
        """No run streams to it."""

    def revoked(self) -> None:
        """It has no token."""

    def ordered(self, order: Order) -> None:
        """No operator is at work here."""

    def probed(self, token: str) -> None:
        self.woke.set()

    def subscribed(self) -> None:
        self.open.set()

    def resubscribed(self, concerns: Callable[[UserId], bool]) -> None:
        """It has no session."""

    def unsubscribed(self, reason: str) -> None:
        self.open.clear()


# --- the store --------------------------------------------------------------------------------------------------------


async def try_store(store: Store, clock: Clock) -> list[Check]:
    """Do with the store what publishers, nodes and operators do: append, wake, read, ack, and look.

    Args:
        store: with the settings of `short_lived`.
        clock: this machine's.

    A step that fails ends the try, and the check says which step it was. A cancelled call leaves a session that ends by
    itself.
    """
    node, ears = NodeName(f"doctor-{secrets.token_hex(4)}"), _Ears()
    fence = Fence(user=DOCTOR_USER, session=new_session_id(), connection=new_connection_id())
    begun_ms = clock.monotonic_ms()
    step = _Step()
    listening = None
    try:
        step.name = "subscribe to the shard channels"
        listening = await store.listen(node, ears)
        await _within(ears.open, _WAKE_TIMEOUT_MS, "no subscription came about: allow the channels `eb:*`")
        await _use_session(store, clock, node, fence, ears, step)
        await _use_tickets(store, step)
        await _look(store, fence, step)
    except (StoreError, _Failed) as error:
        advice = (
            "Give the server's user the rights of docs/redis.md, and see that the server is a single one or a primary."
        )
        return [Check(check="store path", state=CheckState.PROBLEM, found=f"{step.name}: {error}", advice=advice)]
    finally:
        if listening is not None:
            await listening.aclose()
        await _quietly(store.end_session(DOCTOR_USER, fence.session))
    took_ms = clock.monotonic_ms() - begun_ms
    found = f"scripts, rights and wake-ups work: append, attach, read, ack, redeliver, probe, look ({took_ms} ms)"
    return [Check(check="store path", state=CheckState.OK, found=found)]


class _Step:
    """What is being done."""

    name = ""


async def _use_session(store: Store, clock: Clock, node: NodeName, fence: Fence, ears: _Ears, step: _Step) -> None:
    step.name = "attach a session"
    attached = await store.attach(
        Attach(
            fence=fence,
            node=node,
            mode=AttachMode.OPEN,
            start=Start.NEW,
            cursor=None,
            epoch=None,
            live_limit=_KNOWN_MAX,
            known_limit=_KNOWN_MAX,
        )
    )
    _expect(isinstance(attached, Attached), f"the session is refused: {attached}")
    step.name = "append an event"
    event = new_event_id(clock)
    entry = await _append(store, clock, event)
    step.name = "hear the wake-up"
    await _within(ears.woke, _WAKE_TIMEOUT_MS, "the event was stored and no wake-up came")
    step.name = "read it"
    read = (await store.read_new([ReadRequest(fence=fence, count=100)]))[0]
    if isinstance(read, StoreError):
        raise read
    ids = [stored.id for stored in read.entries]
    _expect(read.state is ReadState.OK and entry in ids, f"the entry {entry} is not among what was read")
    step.name = "find it pending"
    page = await store.read_pending(fence, ENTRY_ZERO, 100)
    _expect(page is not LOST and entry in [pending.id for pending in page.entries], f"{entry} is not pending")
    step.name = "count a redelivery"
    again = await store.redeliver(fence, [Redelivery(id=entry, attempts=2)])
    _expect(again is not LOST and list(again) == [RedeliveryOutcome.READY], f"it came out as {again}")
    step.name = "ack it"
    _expect(await store.ack(DOCTOR_USER, fence.session, ids) == len(ids), "the ack released nothing")
    step.name = "dead-letter what is acked, which must do nothing"
    letter = DeadLetter(id=entry, event=event, type="doctor", reason="doctor", attempts=2, body=b"")
    _expect(await store.dead_letter(fence, letter) is DeadOutcome.GONE, "a dead letter was written")
    step.name = "renew the session"
    beat = (await store.heartbeat([fence], node))[0]
    if isinstance(beat, StoreError):
        raise beat
    _expect(beat.state is BeatState.HELD and beat.pending == 0, f"the heartbeat says {beat}")
    step.name = "probe as nodes do"
    ears.woke.clear()
    await store.probe(node, secrets.token_hex(8))
    await _within(ears.woke, _WAKE_TIMEOUT_MS, "the probe was written and did not come back")
    step.name = "detach"
    _expect(await store.detach(fence, entry) is not LOST, "the session was lost")


async def _append(store: Store, clock: Clock, event: EventId) -> EntryId:
    made = make_event(id=event, type="doctor", user=DOCTOR_USER, time_ms=clock.now_ms(), data={})
    stored = (await store.append([Append(user=made.user, event=made.id, body=encode_envelope(made), type=made.type)]))[
        0
    ]
    if not isinstance(stored, Appended):
        raise stored
    return stored.entry


async def _use_tickets(store: Store, step: _Step) -> None:
    step.name = "make and burn a ticket"
    ticket = Ticket(ticket=f"doctor-{secrets.token_hex(8)}", claims="{}", life_ms=1_000)
    await store.put_ticket(ticket)
    _expect(await store.take_ticket(ticket.ticket) == ticket.claims, "the ticket was not there")


async def _look(store: Store, fence: Fence, step: _Step) -> None:
    step.name = "look at sessions, users, records, dead letters and nodes"
    await store.sessions(DOCTOR_USER)
    await store.pending(DOCTOR_USER, fence.session, ENTRY_ZERO, 1)
    await store.confirmations(DOCTOR_USER, ENTRY_ZERO, 1)
    await store.users("", 10)
    for partition in (await store.dead_letter_partitions())[:1]:
        await store.dead_letters(partition, ENTRY_ZERO, 1)
    await store.nodes()


def _expect(held: bool, otherwise: str) -> None:
    if not held:
        raise _Failed(otherwise)


async def _within(event: asyncio.Event, timeout_ms: int, otherwise: str) -> None:
    try:
        async with asyncio.timeout(seconds(timeout_ms)):
            await event.wait()
    except TimeoutError:
        raise _Failed(f"{otherwise} (within {timeout_ms} ms)") from None


async def _quietly(call: Coroutine[Any, Any, T]) -> T | None:
    """A step of tidying up: when it fails, what is left ends by itself."""
    try:
        return await call
    except StoreError:
        return None


# --- a node -----------------------------------------------------------------------------------------------------------


async def try_readiness(url: str) -> Check:
    """Ask a node, or the load balancer before the nodes, whether it is ready.

    Args:
        url: `http:`, `https:`, `ws:` or `wss:`, with or without `/v1/connect`.
    """
    try:
        status, text = await asyncio.to_thread(_get, url, "/readyz")
    except (OSError, http.client.HTTPException) as error:
        found = f"{url} does not answer: {str(error) or type(error).__name__}"
        advice = "See that the node runs and that the address, the port and the firewall are right."
        return Check(check="readyz", state=CheckState.PROBLEM, found=found, advice=advice)
    if status == http.HTTPStatus.OK:
        return Check(check="readyz", state=CheckState.OK, found=f"{url} is ready")
    advice = "Look at the node's log: a node is ready when a write, a wake-up and a read came back within seconds."
    return Check(check="readyz", state=CheckState.PROBLEM, found=f"{url} answers {status}: {text}", advice=advice)


def _get(url: str, path: str) -> tuple[int, str]:
    parts = urlsplit(url)
    secure = parts.scheme in ("https", "wss")
    kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=seconds(_HTTP_TIMEOUT_MS))
    try:
        connection.request("GET", parts.path.rstrip("/").removesuffix("/v1/connect") + path)
        response = connection.getresponse()
        return response.status, response.read(4096).decode(errors="replace").strip()
    finally:
        connection.close()


async def try_node(
    url: str, make_token: Callable[[UserId], str], store: Store, clock: Clock, *, timeout_ms: int = 10_000
) -> Check:
    """Send an event through a node: stored, woken, read, on the socket, acked, and pending no more.

    Args:
        url: of the node or of the load balancer before the nodes.
        make_token: makes a token for a user.
        store: with the settings of `short_lived`.
        clock: this machine's.
        timeout_ms: longest wait for the event on the socket.

    A cancelled call leaves a session that ends by itself.
    """
    session = new_session_id()
    state = CheckState.PROBLEM
    try:
        async with asyncio.timeout(seconds(timeout_ms)):
            took_ms = await _through(url, make_token, store, clock, session)
        await _acked(store, clock, session)
    except TimeoutError:
        found, advice = f"nothing came within {timeout_ms} ms", "Look at the node's log and its /readyz."
    except SubscriberError as error:
        found, advice = str(error), "Look at the node's log."
    except _Failed as error:
        found, advice = str(error), "Look at the node's log: it delivers and does not store acks."
    except StoreError as error:
        found, advice = str(error), "See the checks of the store above."
    except EventBusError as error:
        found, advice = str(error), "Give the secret that the nodes have (--jwt-secret-file)."
    else:
        state, advice = CheckState.OK, ""
        found = f"published, delivered in {took_ms} ms, acked"
    finally:
        await _quietly(store.end_session(DOCTOR_USER, session))
    return Check(check="delivery path", state=state, found=found, advice=advice)


async def _through(
    url: str, make_token: Callable[[UserId], str], store: Store, clock: Clock, session: SessionId
) -> int:
    # Imported here: it brings websockets along.
    from eventbus.subscriber import State, StateDetail, Subscriber

    live = asyncio.Event()

    def on_state(now: State, detail: StateDetail) -> None:
        # Also at the end: whoever waits then asks the subscriber, which says why it ended.
        if now in (State.LIVE, State.CLOSED):
            live.set()

    event = new_event_id(clock)
    subscriber = Subscriber(
        url,
        lambda: make_token(DOCTOR_USER),
        session=session,
        start=Start.NEW,
        on_state=on_state,
        on_error=lambda error: None,
        on_gap=lambda gap: None,
    )
    begun_ms = 0
    async with subscriber:
        receiving = asyncio.create_task(_receive(subscriber, event), name="doctor:receive")
        try:
            await live.wait()
            begun_ms = clock.monotonic_ms()
            if subscriber.state is not State.CLOSED:
                await _append(store, clock, event)
            await receiving
        finally:
            receiving.cancel()
            await asyncio.gather(receiving, return_exceptions=True)
        return clock.monotonic_ms() - begun_ms


async def _receive(subscriber: Any, event: EventId) -> None:
    async for delivery in subscriber:
        await delivery.ack()
        if delivery.event.id == event:
            return
    raise SubscriberError("the subscriber ended before the event came")


async def _acked(store: Store, clock: Clock, session: SessionId) -> None:
    """The ack has left the socket; the node stores it a moment later."""
    until_ms = clock.monotonic_ms() + _WAKE_TIMEOUT_MS
    while pending := sum(record.pending for record in await store.sessions(DOCTOR_USER) if record.session == session):
        late = clock.monotonic_ms() >= until_ms
        _expect(not late, f"delivered and acked, and {pending} still pending after {_WAKE_TIMEOUT_MS} ms")
        await asyncio.sleep(seconds(_LOOK_MS))
