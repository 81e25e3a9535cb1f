"""Posts operator events to the operators' own address: at least once, signed, with a name that stays (D22).

Each post is a member of what is due. Its turn is claimed before it is made, by moving the member to when it will surely
be over: when the node dies meanwhile, another makes the next one. A receiver tells repeated posts by `Idempotency-Key`.

Source: docs/escalation.md; the convention is Standard Webhooks 1.0 (`webhook-id`, `webhook-timestamp`,
`webhook-signature`).
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from hashlib import sha256
from typing import TYPE_CHECKING, Final

import orjson

from eventbus.breach import OperatorKind, operator_event_name, operator_object, webhook_failed
from eventbus.breaker import Breaker, Permit
from eventbus.clock import Clock, seconds
from eventbus.errors import ConfigError, StoreError
from eventbus.ids import EntryId, entry_order
from eventbus.store.running import DueRecord, OperatorEvent, RunStore, Settlement
from eventbus.watch import webhook_member
from gateway.config import WatchSettings
from gateway.counters import Counters

if TYPE_CHECKING:
    import httpx

__all__ = ["Answer", "Webhook", "body_of", "signature", "signing_key", "wait_ms"]

logger = logging.getLogger(__name__)

AT_ONCE: Final = 8
"""Posts that are under way at a time; one more waits for its next turn."""

MARGIN_MS: Final = 2_000
"""A claimed turn comes back so long after the time-out of the post."""

NO_ROOM_MS: Final = 1_000
"""When a post that found no room has its next turn."""

NOT_HERE_MS: Final = 30_000
"""When a post that came to a node without an address has its next turn: another node may have one."""

OLD_MS: Final = 24 * 60 * 60_000
"""An operator event that could not be posted for so long is given up, whatever the reason."""

ANSWER_MAX_BYTES: Final = 64 * 1024
"""So much of an answer is read, to use the connection again; of a longer one nothing more."""

BREAKER_FAILURES: Final = 5
BREAKER_OPEN_MS: Final = 1_000
BREAKER_OPEN_MAX_MS: Final = 60_000

_BEFORE_ZERO: Final = 2**64 - 1


# --- what is posted ---------------------------------------------------------------------------------------------------


def signing_key(secret: bytes) -> bytes:
    """The key of a configured secret: the bytes that stand behind `whsec_` in base64, else the secret itself.

    Raises:
        ConfigError: what follows `whsec_` is no base64.
    Source: Standard Webhooks, section "Signature scheme".
    """
    prefix, found, encoded = secret.partition(b"whsec_")
    if prefix or not found:
        return secret
    try:
        return base64.b64decode(encoded, validate=True)
    except binascii.Error:
        raise ConfigError(
            "EVENTBUS_WEBHOOK_SECRET begins with whsec_ and goes on with what is no base64", field="webhook_secret"
        ) from None


def signature(key: bytes, name: str, timestamp_s: int, body: bytes) -> str:
    """The value of `webhook-signature`: HMAC-SHA256 of name, time and body.

    Args:
        key: the shared one.
        name: the value of `webhook-id`.
        timestamp_s: Unix seconds, the value of `webhook-timestamp`.
        body: as it is sent.
    Source: Standard Webhooks, section "Signature scheme".
    """
    signed = f"{name}.{timestamp_s}.".encode() + body
    return "v1," + base64.b64encode(hmac.digest(key, signed, sha256)).decode()


def body_of(event: OperatorEvent) -> bytes:
    """What is posted of an operator event; the same at each attempt. Source: Standard Webhooks, "Payload structure"."""
    time = datetime.fromtimestamp(event.time_ms / 1000, UTC).isoformat(timespec="milliseconds")
    kind = event.fields.get("kind", "")
    return orjson.dumps({"type": kind, "timestamp": time.replace("+00:00", "Z"), "data": operator_object(event)})


def wait_ms(attempt: int, settings: WatchSettings, chance: float) -> int:
    """The wait after a failed attempt: doubles, one half of it left to chance.

    Args:
        attempt: which, from 1.
        settings: base and longest wait.
        chance: from 0 to below 1.
    """
    longest_ms: int = min(settings.webhook_retry_base_ms * 2 ** min(attempt - 1, 40), settings.webhook_retry_max_ms)
    return max(1, longest_ms // 2 + int(chance * (longest_ms - longest_ms // 2)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What became of a post.

    Attributes:
        taken: the receiver has it.
        reason: words for operators, without the address.
        alive: the receiver works as a whole: whether the circuit breaker counts it as well.
        retry_after_ms: what the receiver asked for, 0 for nothing.
    """

    taken: bool
    reason: str
    alive: bool
    retry_after_ms: int = 0


# --- posting ----------------------------------------------------------------------------------------------------------


class Webhook:
    """The posts of one node.

    Args:
        store: where turns are claimed and settled.
        settings: address, secret, waits.
        clock: for the time in the signature, and for the breaker.
        counters: what is counted.
        chance: a number from 0 to below 1.

    Attributes:
        breaker: of the receiver.
    """

    def __init__(
        self,
        store: RunStore,
        settings: WatchSettings,
        clock: Clock,
        counters: Counters,
        *,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._store = store
        self._settings = settings
        self._clock = clock
        self._counters = counters
        self._chance = chance
        self._key = signing_key(settings.webhook_secret or b"")
        self._kinds = frozenset(settings.webhook_kinds) if settings.webhook_url else frozenset()
        self._client: httpx.AsyncClient | None = None
        self._turns: dict[tuple[int, str], asyncio.Task[None]] = {}
        self.breaker = Breaker(failures=BREAKER_FAILURES, open_ms=BREAKER_OPEN_MS, open_max_ms=BREAKER_OPEN_MAX_MS)

    def __repr__(self) -> str:
        where = "an address" if self._settings.webhook_url else "no address"
        return f"<Webhook with {where}, {len(self._turns)} under way, {self.breaker!r}>"

    @property
    def under_way(self) -> int:
        """How many turns are being taken."""
        return len(self._turns)

    def posts(self, kind: OperatorKind) -> bool:
        """Whether operator events of a kind are posted."""
        return kind in self._kinds

    def take(self, due: DueRecord, event: EntryId, attempt: int) -> None:
        """Takes a post whose turn has come; returns at once.

        Args:
            due: the turn.
            event: the id of the operator event in its partition.
            attempt: which it is, from 1.
        """
        key = (due.partition, due.member)
        if key in self._turns:
            return
        turn = self._turn(due, event, attempt, room=len(self._turns) < AT_ONCE)
        task = asyncio.ensure_future(turn)
        task.set_name(f"webhook:{operator_event_name(due.partition, event)}")
        self._turns[key] = task
        task.add_done_callback(lambda ended: self._ended(key, ended))

    def _ended(self, key: tuple[int, str], task: asyncio.Task[None]) -> None:
        del self._turns[key]
        if not task.cancelled() and (error := task.exception()) is not None:
            # A defect: the turn comes again, here or elsewhere, and the watch goes on.
            logger.error("a turn of the webhook failed", exc_info=error)

    async def aclose(self, timeout_ms: int = 0) -> None:
        """Waits for the posts under way, not longer than `timeout_ms`; another node goes on with the others."""
        if self._turns and timeout_ms:
            await asyncio.wait(list(self._turns.values()), timeout=seconds(timeout_ms))
        left = list(self._turns.values())
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    # --- a turn -------------------------------------------------------------------------------------------------------

    async def _turn(self, due: DueRecord, event: EntryId, attempt: int, *, room: bool) -> None:
        try:
            await self._take_turn(due, event, attempt, room=room)
        except StoreError as error:
            # What was claimed has its next turn, what was not is still due.
            self._counters.store_errors[error.code] += 1

    async def _take_turn(self, due: DueRecord, event: EntryId, attempt: int, *, room: bool) -> None:
        if due.now_ms - entry_order(event)[0] > OLD_MS:
            await self._give_up(due, event, attempt - 1, "it has been tried for a day")
            return
        url = self._settings.webhook_url
        if url is None or not room:
            await self._settle(Settlement(due=due, watch={due.member: NO_ROOM_MS if url else NOT_HERE_MS}))
            return
        permit = self.breaker.ask(self._clock.monotonic_ms())
        if permit is Permit.WAIT:
            # No attempt: the receiver was not asked.
            left_ms = max(0, self.breaker.next_probe_ms - self._clock.monotonic_ms())
            later_ms = left_ms + 1 + int(self._chance() * BREAKER_OPEN_MS)
            await self._settle(Settlement(due=due, watch={due.member: later_ms}))
            return
        used = False
        try:
            claim_ms = self._settings.webhook_timeout_ms + MARGIN_MS
            at_ms = await self._settle(Settlement(due=due, watch={due.member: claim_ms}))
            if not at_ms:
                return  # another node has it
            claimed = replace(due, due_ms=at_ms + claim_ms, now_ms=at_ms)
            found = await self._store.operator_events(due.partition, _before(event), 1)
            if not found or found[0].id != event:
                await self._settle(Settlement(due=claimed))  # its life is over
                return
            answer = await self._post(url, found[0])
            used = True
            self._note(permit, answer)
            await self._answered(claimed, event, attempt, answer)
        finally:
            if not used and permit is Permit.PROBE:
                self.breaker.withdrawn()

    def _note(self, permit: Permit, answer: Answer) -> None:
        if answer.alive:
            self.breaker.succeeded(permit)
            return
        opened = self.breaker.opened
        self.breaker.failed(permit, self._clock.monotonic_ms())
        if self.breaker.opened > opened:
            logger.warning("the webhook is left alone for a while: %s", answer.reason)

    async def _answered(self, due: DueRecord, event: EntryId, attempt: int, answer: Answer) -> None:
        if answer.taken:
            self._counters.webhooks["delivered"] += 1
            await self._settle(Settlement(due=due))
            return
        self._counters.webhooks["failed"] += 1
        if attempt > self._settings.webhook_retries:
            await self._give_up(due, event, attempt, answer.reason)
            return
        later_ms = max(
            wait_ms(attempt, self._settings, self._chance()),
            min(answer.retry_after_ms, self._settings.webhook_retry_max_ms),
        )
        await self._settle(Settlement(due=due, watch={webhook_member(event, attempt + 1): later_ms}))

    async def _give_up(self, due: DueRecord, event: EntryId, attempts: int, reason: str) -> None:
        name = operator_event_name(due.partition, event)
        if await self._settle(webhook_failed(due, name, attempts, reason)):
            self._counters.webhooks["given_up"] += 1
            logger.error("a post is given up: %s", reason, extra={"operator_event": name, "attempts": attempts})

    async def _settle(self, settlement: Settlement) -> int:
        (answer,) = await self._store.settle([settlement])
        if isinstance(answer, StoreError):
            raise answer
        return answer

    # --- HTTP ---------------------------------------------------------------------------------------------------------

    async def _post(self, url: str, event: OperatorEvent) -> Answer:
        # Here, because a node without a webhook does without it.
        import httpx

        if self._client is None:
            # No redirect: it would carry what was signed for one address to another.
            self._client = httpx.AsyncClient(timeout=None, follow_redirects=False)  # noqa: S113 - bounded below
        timeout_ms = self._settings.webhook_timeout_ms
        try:
            async with asyncio.timeout(seconds(timeout_ms)):
                return await self._ask(self._client, url, event)
        except TimeoutError:
            return Answer(taken=False, reason=f"no answer within {timeout_ms} ms", alive=False)
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            # The class alone: an error's text may hold the address, which may hold a secret.
            return Answer(taken=False, reason=f"the connection failed ({type(error).__name__})", alive=False)

    async def _ask(self, client: httpx.AsyncClient, url: str, event: OperatorEvent) -> Answer:
        body = body_of(event)
        name = operator_event_name(event.partition, event.id)
        timestamp_s = self._clock.now_ms() // 1000
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "eventbus",
            "Idempotency-Key": name,
            "Webhook-Id": name,
            "Webhook-Timestamp": str(timestamp_s),
            "Webhook-Signature": signature(self._key, name, timestamp_s, body),
        }
        async with client.stream("POST", url, content=body, headers=headers) as response:
            read_bytes = 0
            async for chunk in response.aiter_raw():
                read_bytes += len(chunk)
                if read_bytes > ANSWER_MAX_BYTES:
                    break
            return _judged(response)


def _judged(response: httpx.Response) -> Answer:
    status = response.status_code
    taken = 200 <= status < 300
    retry_after = response.headers.get("Retry-After", "")
    retry_after_ms = int(retry_after) * 1000 if retry_after.isdecimal() and len(retry_after) < 7 else 0
    return Answer(
        taken=taken,
        reason=f"status {status}",
        # A refusal of one event is an answer; one that says that it can not work, or not so fast, is none.
        alive=status < 500 and status != 429,
        retry_after_ms=retry_after_ms,
    )


def _before(entry: EntryId) -> EntryId:
    """The id right before an id: what comes after it begins with that id."""
    ms, number = entry_order(entry)
    return EntryId(f"{ms}-{number - 1}") if number else EntryId(f"{max(0, ms - 1)}-{_BEFORE_ZERO}")
