"""The webhook against a real HTTP server that answers, fails, hangs, closes and recovers; time is a manual clock's."""

from __future__ import annotations

import asyncio
import base64
import hmac
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest

from eventbus.breach import OperatorKind
from eventbus.breaker import BreakerState
from eventbus.errors import ConfigError
from eventbus.ids import ENTRY_ZERO, EntryId, RunId, UserId
from eventbus.store.running import DueRecord, RunRequest, Settlement
from eventbus.testing import ManualClock, MemoryStore
from eventbus.watch import WebhookMember, parse_member
from gateway.config import WatchSettings
from gateway.counters import Counters
from gateway.deadlines.webhook import AT_ONCE, MARGIN_MS, NOT_HERE_MS, OLD_MS, Webhook, signature, signing_key, wait_ms
from tests.support.receiver import CLOSE, HANG, Receiver
from tests.support.waiting import until

ANN = UserId("ann")
SECRET = b"a secret of the tests, 32 bytes and more"
TIMEOUT_MS = 15_000
# Where a receiver hangs the test waits for it; and what is posted must have come within it.
HANGS_MS = 1_500


class Bench:
    """A store, a clock by hand, and the webhook of a node."""

    def __init__(self, receiver: Receiver) -> None:
        self.receiver = receiver
        self.clock = ManualClock()
        self.store = MemoryStore(clock=self.clock)
        self.made: list[Webhook] = []
        self.counters = Counters()
        self._runs = 0

    def webhook(self, *, chance: float = 0.0, **changes: Any) -> Webhook:
        given: dict[str, Any] = {
            "webhook_url": self.receiver.url,
            "webhook_secret": SECRET,
            "webhook_timeout_ms": TIMEOUT_MS,
            "webhook_retries": 3,
        }
        settings = WatchSettings(**given | changes)
        made = Webhook(self.store, settings, self.clock, self.counters, chance=lambda: chance)
        self.made.append(made)
        return made

    async def announce(self, **fields: str) -> None:
        """An operator event that is to be posted."""
        self._runs += 1
        request = RunRequest(user=ANN, run=RunId(f"run_{self._runs}"), fields={}, watch={"started": 0})
        await self.store.request_run(request)
        (due,) = [due for due in await self.due() if f"run_{self._runs} " in due.member]
        told = {"kind": "missed_deadline", "user": "ann", **fields}
        assert await self.store.settle([Settlement(due=due, announce=told, webhook=True)])

    async def due(self) -> list[DueRecord]:
        pages = await self.store.due(range(self.store.settings.partitions), 1_000)
        return [due for page in pages if not isinstance(page, Exception) for due in page]

    async def turn(self, webhook: Webhook) -> int:
        """Every post that is due has its turn, and it is over. Returns how many there were."""
        members = [(due, parse_member(due.member)) for due in await self.due()]
        for due, member in members:
            assert isinstance(member, WebhookMember)
            webhook.take(due, member.event, member.attempt)
        await until(lambda: not webhook.under_way)
        return len(members)

    async def operator_events(self) -> list[dict[str, str]]:
        found: list[dict[str, str]] = []
        for number in await self.store.operator_partitions():
            found += [dict(event.fields) for event in await self.store.operator_events(number, ENTRY_ZERO, 100)]
        return found


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    async with Receiver() as receiver:
        made = Bench(receiver)
        yield made
        for webhook in made.made:
            await webhook.aclose()


def state_of(webhook: Webhook) -> BreakerState:
    return webhook.breaker.state


# --- what is posted -------------------------------------------------------------------------------------------------


@pytest.mark.requirement("R13")
async def test_a_post_is_signed_named_and_says_what_happened(bench: Bench) -> None:
    await bench.announce(level="displayed", within_ms="4000", due_ms="17")
    await bench.turn(bench.webhook())
    (post,) = bench.receiver.received
    partition, _, entry = post.key.partition(":")
    assert post.headers["webhook-id"] == post.key
    assert post.headers["content-type"] == "application/json"
    assert post.target == "/hook"
    ms = int(entry.partition("-")[0])
    assert ms == bench.clock.now_ms()
    assert post.content["type"] == "missed_deadline"
    assert post.content["timestamp"].endswith("Z")
    expected = {"id": post.key, "time_ms": ms, "kind": "missed_deadline", "user": "ann", "level": "displayed"}
    assert post.content["data"] == expected | {"within_ms": 4_000, "due_ms": 17}
    assert int(partition) < bench.store.settings.partitions

    stamp = post.headers["webhook-timestamp"]
    assert int(stamp) == bench.clock.now_ms() // 1_000
    signed = f"{post.key}.{stamp}.".encode() + post.body
    digest = base64.b64encode(hmac.digest(SECRET, signed, "sha256")).decode()
    assert post.headers["webhook-signature"] == f"v1,{digest}"
    assert await bench.due() == []
    assert bench.counters.webhooks == {"delivered": 1}


@pytest.mark.requirement("R13")
def test_the_signature_is_that_of_the_convention() -> None:
    """The example of the convention's own documentation: any of its libraries verifies what is posted."""
    key = signing_key(b"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    body = b'{"test": 2432232314}'
    made = signature(key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body)
    assert made == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_a_secret_that_claims_to_be_base64_and_is_not_stops_the_start() -> None:
    assert signing_key(b"plain") == b"plain"
    with pytest.raises(ConfigError, match="no base64"):
        signing_key(b"whsec_not base64 at all!")


def test_waits_double_with_half_of_them_left_to_chance_up_to_the_longest() -> None:
    settings = WatchSettings(webhook_retry_base_ms=1_000, webhook_retry_max_ms=6_000)
    assert [wait_ms(attempt, settings, 0.0) for attempt in (1, 2, 3, 4, 5)] == [500, 1_000, 2_000, 3_000, 3_000]
    assert [wait_ms(attempt, settings, 0.999) for attempt in (1, 2, 4, 900)] == [999, 1_999, 5_997, 5_997]


# --- at least once --------------------------------------------------------------------------------------------------


@pytest.mark.requirement("R13")
@pytest.mark.parametrize("failure", [500, 404, 302, CLOSE, HANG], ids=str)
async def test_a_post_that_failed_comes_again_under_its_name_after_its_wait(bench: Bench, failure: int | str) -> None:
    bench.receiver.script = [failure, failure]
    bench.receiver.extra = ["Location: /elsewhere"] if failure == 302 else []
    webhook = bench.webhook(chance=0.5, webhook_timeout_ms=HANGS_MS if failure == HANG else TIMEOUT_MS)
    await bench.announce()
    assert await bench.turn(webhook) == 1
    assert await bench.turn(webhook) == 0, "it waits"
    bench.clock.advance(750)
    assert await bench.turn(webhook) == 1
    bench.clock.advance(1_499)
    assert await bench.turn(webhook) == 0, "the second wait is twice the first"
    bench.clock.advance(1)
    await bench.turn(webhook)
    assert len(bench.receiver.received) == 3
    assert len(set(bench.receiver.keys)) == 1
    assert len({(post.target, post.body) for post in bench.receiver.received}) == 1
    assert bench.counters.webhooks == {"failed": 2, "delivered": 1}
    assert await bench.due() == []
    bench.clock.advance(OLD_MS)
    assert await bench.due() == []


@pytest.mark.requirement("R13")
async def test_a_node_that_dies_within_a_post_leaves_it_to_the_next(bench: Bench) -> None:
    bench.receiver.script = [HANG]
    first, second = bench.webhook(webhook_timeout_ms=60_000), bench.webhook()
    await bench.announce()
    (due,) = await bench.due()
    member = parse_member(due.member)
    assert isinstance(member, WebhookMember)
    first.take(due, member.event, member.attempt)
    await until(lambda: bench.receiver.received)
    assert await bench.due() == [], "the turn is claimed while the post is under way"
    await first.aclose()
    bench.clock.advance(60_000 + MARGIN_MS - 1)
    assert await bench.turn(second) == 0
    bench.clock.advance(1)
    assert await bench.turn(second) == 1
    assert len(set(bench.receiver.keys)) == 1
    assert bench.receiver.accepted == bench.receiver.keys[1:]


@pytest.mark.requirement("R13")
async def test_two_nodes_that_see_one_turn_post_once(bench: Bench) -> None:
    webhooks = [bench.webhook(), bench.webhook()]
    await bench.announce()
    (due,) = await bench.due()
    member = parse_member(due.member)
    assert isinstance(member, WebhookMember)
    for webhook in webhooks:
        webhook.take(due, member.event, member.attempt)
        webhook.take(due, member.event, member.attempt)
    await until(lambda: not any(webhook.under_way for webhook in webhooks))
    assert len(bench.receiver.received) == 1


@pytest.mark.requirement("R13")
async def test_a_post_is_given_up_after_its_retries_and_operators_are_told(bench: Bench) -> None:
    bench.receiver.always = 400
    webhook = bench.webhook(webhook_retries=2)
    await bench.announce()
    for _ in range(5):
        await bench.turn(webhook)
        bench.clock.advance(10_000)
    assert len(bench.receiver.received) == 3
    (_, told) = await bench.operator_events()
    assert told["kind"] == "webhook_failed"
    assert (told["event"], told["attempts"], told["reason"]) == (bench.receiver.keys[0], "3", "status 400")
    assert bench.counters.webhooks == {"failed": 3, "given_up": 1}
    assert await bench.due() == []


@pytest.mark.requirement("R5")
async def test_a_receiver_that_keeps_failing_is_left_alone_probed_and_used_again(bench: Bench) -> None:
    bench.receiver.always = 503
    webhook = bench.webhook(webhook_retries=100, webhook_retry_base_ms=1, webhook_retry_max_ms=1)
    await bench.announce()
    for _ in range(5):
        await bench.turn(webhook)
        bench.clock.advance(1)
    assert state_of(webhook) is BreakerState.OPEN
    for _ in range(20):
        await bench.turn(webhook)
        bench.clock.advance(10)
    assert len(bench.receiver.received) == 5, "an open breaker asks nobody"
    bench.clock.advance(1_000)
    await bench.turn(webhook)
    assert len(bench.receiver.received) == 6, "a probe"
    assert state_of(webhook) is BreakerState.OPEN
    bench.receiver.always = 200
    bench.clock.advance(3_000)
    await bench.turn(webhook)
    assert state_of(webhook) is BreakerState.CLOSED
    assert bench.counters.webhooks == {"failed": 6, "delivered": 1}


@pytest.mark.requirement("R5")
async def test_a_refusal_of_one_event_does_not_open_the_breaker(bench: Bench) -> None:
    bench.receiver.always = 422
    webhook = bench.webhook(webhook_retries=0)
    for _ in range(10):
        await bench.announce()
    await bench.turn(webhook)
    assert webhook.breaker.state is BreakerState.CLOSED


async def test_a_receiver_may_say_when_to_come_again_within_the_longest_wait(bench: Bench) -> None:
    bench.receiver.script = [429, 429]
    bench.receiver.extra = ["Retry-After: 7"]
    webhook = bench.webhook(webhook_retry_max_ms=10_000)
    await bench.announce()
    await bench.turn(webhook)
    bench.clock.advance(6_999)
    assert await bench.turn(webhook) == 0
    bench.receiver.extra = ["Retry-After: 3600"]
    bench.clock.advance(1)
    assert await bench.turn(webhook) == 1
    bench.clock.advance(10_000)
    assert await bench.turn(webhook) == 1


# --- bounds ---------------------------------------------------------------------------------------------------------


@pytest.mark.requirement("R25")
async def test_hanging_posts_are_bounded_in_number_and_in_time(bench: Bench) -> None:
    bench.receiver.always = HANG
    webhook = bench.webhook(webhook_timeout_ms=HANGS_MS)
    for _ in range(3 * AT_ONCE):
        await bench.announce()
    members = [(due, parse_member(due.member)) for due in await bench.due()]
    assert len(members) == 3 * AT_ONCE
    for due, member in members:
        assert isinstance(member, WebhookMember)
        webhook.take(due, member.event, member.attempt)
    await until(lambda: len(bench.receiver.received) == AT_ONCE)
    assert await bench.due() == [], "those without room have another turn"
    await until(lambda: not webhook.under_way)
    assert len(bench.receiver.received) == AT_ONCE
    assert bench.counters.webhooks == {"failed": AT_ONCE}


async def test_a_long_answer_is_not_read_to_its_end(bench: Bench) -> None:
    bench.receiver.answer = b"x" * 10_000_000
    bench.receiver.always = 200
    webhook = bench.webhook()
    await bench.announce()
    await bench.turn(webhook)
    assert bench.counters.webhooks == {"delivered": 1}


async def test_a_receiver_that_is_not_there_is_a_failure_that_does_not_tell_the_address(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: refused
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/t0ken"
        webhook = bench.webhook(webhook_url=url, webhook_retries=0)
        await bench.announce()
        await bench.turn(webhook)
    (_, told) = await bench.operator_events()
    assert told["reason"] == "the connection failed (ConnectError)"
    assert "t0ken" not in caplog.text
    caplog.clear()


async def test_a_node_without_an_address_leaves_a_post_to_others_and_gives_it_up_after_a_day(bench: Bench) -> None:
    without = bench.webhook(webhook_url=None)
    assert not without.posts(OperatorKind.MISSED_DEADLINE)
    await bench.announce()
    await bench.turn(without)
    bench.clock.advance(NOT_HERE_MS)
    assert len(await bench.due()) == 1
    bench.clock.advance(OLD_MS)
    await bench.turn(without)
    assert await bench.due() == []
    assert bench.counters.webhooks == {"given_up": 1}


async def test_only_the_chosen_kinds_are_posted(bench: Bench) -> None:
    webhook = bench.webhook(webhook_kinds=(OperatorKind.RUN_ABANDONED,))
    assert webhook.posts(OperatorKind.RUN_ABANDONED)
    assert not webhook.posts(OperatorKind.MISSED_DEADLINE)


@pytest.mark.requirement("R2")
async def test_a_store_that_fails_leaves_the_turn_due(bench: Bench) -> None:
    webhook = bench.webhook()
    await bench.announce()
    (due,) = await bench.due()
    bench.store.fail()
    webhook.take(due, EntryId("1-1"), 1)
    await until(lambda: not webhook.under_way)
    bench.store.heal()
    assert await bench.due() == [due]
    assert bench.receiver.received == []
    assert sum(bench.counters.store_errors.values()) == 1


async def test_an_operator_event_whose_life_is_over_is_not_posted(bench: Bench) -> None:
    webhook = bench.webhook()
    await bench.announce()
    (due,) = await bench.due()
    webhook.take(due, EntryId(f"{bench.clock.now_ms()}-77"), 1)
    await until(lambda: not webhook.under_way)
    assert bench.receiver.received == []
    assert await bench.due() == []


async def test_the_end_waits_for_a_post_that_is_under_way(bench: Bench) -> None:
    webhook = bench.webhook()
    await bench.announce()
    (due,) = await bench.due()
    member = parse_member(due.member)
    assert isinstance(member, WebhookMember)
    webhook.take(due, member.event, member.attempt)
    await asyncio.wait_for(webhook.aclose(5_000), 5)
    assert bench.counters.webhooks == {"delivered": 1}
