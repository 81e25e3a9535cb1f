"""`POST /v1/acks`: acks of those who read events over Server-Sent Events. Source: docs/protocol.md, section 9.

Such an ack may come to any node. It goes to the store as one through another door: what it releases is told to the node
that has the session (D11), which may be this one. Only what is pending for a session of the token's own user can be
released, so a session of somebody else, or one that never was, is simply one for which nothing is pending.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Final, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from eventbus import wire
from eventbus.errors import RateLimited, StoreError
from eventbus.fields import Level
from eventbus.ids import ENTRY_ZERO, EntryId, SessionId, UserId, entry_order
from eventbus.store import AckRequest, ConfirmRequest
from gateway.access.auth import Scope
from gateway.access.limits import FRAMES_BURST_S, TokenBucket
from gateway.delivery.kept_acks import count_age
from gateway.web.common import Services, answer, identify, read_body
from gateway.web.sse_request import read_ack

__all__ = ["AckLimit", "Acking"]

PAGE: Final = 500
"""So many pending entries are looked at in one step for an `upto`."""
USERS_MAX: Final = 20_000

T = TypeVar("T")


class AckLimit:
    """The requests of each user: those of a socket's frames, ten seconds' worth of the tier's rate at once.

    The longest unseen user leaves when the table is full.

    Args:
        users_max: rows of the table.
    """

    __slots__ = ("_buckets", "_users_max")

    def __init__(self, *, users_max: int = USERS_MAX) -> None:
        self._users_max = users_max
        self._buckets: OrderedDict[tuple[UserId, int], TokenBucket] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def check(self, user: UserId, per_second: int, now_ms: int) -> None:
        """Count a request.

        Args:
            user: whose.
            per_second: the frames of the user's tier.
            now_ms: monotonic time.

        Raises:
            RateLimited: one too many; says when to try again.
        """
        row = user, per_second  # tokens of two tiers are two rows: taking turns must not fill a bucket
        bucket = self._buckets.get(row)
        if bucket is None:
            if len(self._buckets) >= self._users_max:
                self._buckets.popitem(last=False)
            bucket = self._buckets[row] = TokenBucket(per_second, per_second * FRAMES_BURST_S, now_ms)
        self._buckets.move_to_end(row)
        if not bucket.take(now_ms):
            message = f"more than {per_second} acks a second: name many ids in one"
            raise RateLimited(message, retry_after_ms=max(1_000, bucket.wait_ms(now_ms)))


class Acking:
    """Takes the acks of one node's HTTP side."""

    def __init__(self) -> None:
        self._limit = AckLimit()

    async def take(self, node: Services, request: Request) -> Response:
        """`POST /v1/acks`; answered when the ack is in the store."""
        identity = await identify(node, request, Scope.SUBSCRIBE)
        tier = node.node_settings.tiers[identity.tier]
        self._limit.check(identity.user, tier.frames_per_second, node.clock.monotonic_ms())
        body = await read_body(request, node.node_settings.limits.max_frame_bytes)
        session, ack = read_ack(body, identity.session)
        if ack.ids is not None:
            count = await _store(node, identity.user, session, ack, ack.ids)
        else:
            count = await _store_up_to(node, identity.user, session, ack, ack.upto or ENTRY_ZERO)
        return answer({"count": count} if ack.ref is None else {"count": count, "ref": ack.ref})


async def _store(node: Services, user: UserId, session: SessionId, ack: wire.Ack, ids: Sequence[EntryId]) -> int:
    """Returns how many it released. Raises: StoreError."""
    if not ids:
        return 0
    if ack.level is Level.RECEIVED:
        released = _only(await node.store.ack_many([AckRequest(user=user, session=session, entries=tuple(ids))]))
    else:
        request = ConfirmRequest(user=user, session=session, level=ack.level, entries=tuple(ids), note=ack.note)
        confirmed = _only(await node.store.confirm_many([request]))
        node.counters.events_confirmed[ack.level] += confirmed.recorded
        released = confirmed.released
    node.counters.events_acked += released
    if released:
        _count_age(node, user, session, ids[0], released)
    return released


def _count_age(node: Services, user: UserId, session: SessionId, first: EntryId, count: int) -> None:
    """How long ago it was stored is counted where the session is here: another node does not know since when its client
    is connected, and the time before that is not the bus's.
    """
    for seated in node.hub.of_user(user):
        if seated.session_id == session:
            wall_ms = node.clock.now_ms() + node.store_ahead_ms
            count_age(node.counters.ack_seconds, seated, first, count, wall_ms, node.clock.monotonic_ms())


async def _store_up_to(node: Services, user: UserId, session: SessionId, ack: wire.Ack, upto: EntryId) -> int:
    """Acks all that is pending up to and with an entry, page by page: a resumed session may have more than a window."""
    count = 0
    after = ENTRY_ZERO
    while True:
        page = [record.id for record in await node.store.pending(user, session, after, PAGE)]
        ids = [entry for entry in page if entry_order(entry) <= entry_order(upto)]
        count += await _store(node, user, session, ack, ids)
        if len(ids) < PAGE:
            return count
        after = ids[-1]


def _only(answers: Sequence[T | StoreError]) -> T:
    """The answer to the one request that was made. Raises: StoreError."""
    (one,) = answers
    if isinstance(one, StoreError):
        raise one
    return one
