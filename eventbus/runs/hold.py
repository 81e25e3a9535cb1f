"""What ties a run to the store: whose it is, its lease, its deadlines, and the way of its events."""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final, Self, TypeVar

from eventbus.clock import Clock
from eventbus.commands.commanding import Commanding
from eventbus.errors import InvalidEvent, InvalidField, RunClosed
from eventbus.event import Event, decode_envelope
from eventbus.ids import EntryId, EventId, RunId, ThreadId, UserId, entry_order, parse_thread_id, parse_user_id
from eventbus.publishing.receipt import Receipt
from eventbus.publishing.retries import RetryPolicy
from eventbus.retried import retried
from eventbus.runs.leases import Leases
from eventbus.runs.line import RunLine
from eventbus.schemas import Schemas
from eventbus.store import Store
from eventbus.store.running import Lease, RunRecord
from eventbus.store_time import StoreTime
from eventbus.streaming import TextWay
from eventbus.tiers import TierTable
from eventbus.timers import Timers
from eventbus.tracing import RunSpan, Tracing, traced
from eventbus.watch import RunAbout, RunLimits, RunPhase, Watch, step_of, watch_of

if TYPE_CHECKING:
    from eventbus.runs.confirmations import RunConfirmations

__all__ = ["MAX_RECEIPTS", "RunContext", "RunHold", "RunServices", "limits_of"]

T = TypeVar("T")

MAX_RECEIPTS: Final = 10_000
"""So many receipts a run keeps, the newest."""
_CLAIMS: Final = 5


def limits_of(tiers: TierTable, tier: str | None) -> RunLimits:
    """The deadlines of a run of a tier; of the default one when none is named. Raises: InvalidEvent."""
    found = tiers.get(tiers.default_tier if tier is None else tier)
    if found is None:
        raise InvalidEvent("tier", f"{tier!r} is no configured tier; there are {', '.join(tiers.names)}")
    return found.limits


@dataclass(frozen=True, slots=True, kw_only=True)
class RunServices:
    """What all runs of a bus share.

    Attributes:
        store: where runs are.
        leases: renews them.
        clock: where the time comes from.
        timers: where waits go.
        policy: of calls of the store that are tried again.
        deadline_ms: within which such a call succeeds or fails.
        schemas: what the data of the application's own types must hold.
        max_event_bytes: the most that the data of an event may take as MessagePack.
        commanding: hears what users send.
        texts: how token streams get to the store.
        check_demand: refuses an event whose demanded confirmation nothing can meet.
        store_time: what is known of the store's clock.
        confirmations: `Bus.run_confirmations`; None for none.
        tracing: what records spans; None for nothing.
    """

    store: Store
    leases: Leases
    clock: Clock
    timers: Timers
    policy: RetryPolicy
    deadline_ms: int
    schemas: Schemas
    max_event_bytes: int
    commanding: Commanding
    texts: TextWay
    check_demand: Callable[[Event], None]
    store_time: StoreTime = field(default_factory=StoreTime)
    confirmations: Callable[..., RunConfirmations] | None = None
    tracing: Tracing | None = None

    async def insist(self, call: Callable[[], Awaitable[T]]) -> T:
        """Make a call of the store that is safe to repeat. Raises: StoreError, after the deadline."""
        return await retried(call, self.policy, self.clock, self.timers, self.deadline_ms)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunContext:
    """What a run shares with the runs below it.

    Attributes:
        line: the way to the publisher; one for all, so that their events keep the order in which things happened.
        services: what it shares with all runs of the bus.
        limits: its deadlines.
        tier: whose those are, None for the default tier.
        user: whose run it is.
        thread: where it belongs.
    """

    line: RunLine
    services: RunServices
    limits: RunLimits
    tier: str | None
    user: UserId
    thread: ThreadId | None

    @classmethod
    def of(
        cls,
        line: RunLine,
        services: RunServices,
        *,
        tiers: TierTable,
        tier: str | None,
        user: str,
        thread: str | None,
    ) -> Self:
        """Judge the arguments. Raises: InvalidEvent, naming `user`, `thread` or `tier`."""
        try:
            return cls(
                line=line,
                services=services,
                limits=limits_of(tiers, tier),
                tier=tier,
                user=parse_user_id(user),
                thread=None if thread is None else parse_thread_id(thread),
            )
        except InvalidEvent:
            raise
        except InvalidField as error:
            raise InvalidEvent(error.field, error.problem) from None


class RunHold:
    """A run's hold on its record in the store.

    Args:
        context: of the run.
        run: its id.
        agent: its agent.
        parent: the run that it works for.
        requested_ms: when it was asked for, Unix milliseconds.
        above: the hold of the run that it works for.

    Attributes:
        about: what stays the same in it.
        receipts: of the events that are known to be stored, oldest first.
        lost: why nothing of it can be stored any more, None as long as all is well.
    """

    def __init__(
        self,
        context: RunContext,
        run: RunId,
        *,
        agent: str,
        requested_ms: int | None,
        above: RunHold | None = None,
    ) -> None:
        self.about: Final = RunAbout(
            user=context.user,
            run=run,
            agent=agent,
            owner=secrets.token_hex(8),
            lease_ms=context.services.leases.lease_ms,
            limits=context.limits,
            thread=context.thread,
            parent=None if above is None else above.id,
            tier=context.tier,
            requested_ms=requested_ms,
        )
        self.receipts: Final[deque[Receipt]] = deque(maxlen=MAX_RECEIPTS)
        self.lost: RunClosed | None = None
        self._context = context
        self._watch = Watch()
        self._last: EventId | None = None
        self._above = above
        self._span: RunSpan | None = None
        self._made: dict[EventId, int] = {}  # when, by the monotonic clock; of what is not known to be stored

    @property
    def user(self) -> UserId:
        """Whose run it is."""
        return self.about.user

    @property
    def id(self) -> RunId:
        """The run id."""
        return self.about.run

    @property
    def owner(self) -> str:
        """What the lease is held by."""
        return self.about.owner

    def check(self) -> None:
        """Raises: RunClosed: the run is another's, or over."""
        if self.lost is not None:
            raise RunClosed(str(self.lost)) from self.lost

    def begin(self) -> None:
        """Renew the lease from now on."""
        self._context.services.leases.hold(self)

    def release(self) -> None:
        """Renew the lease no more. May be repeated."""
        self._context.services.leases.release(self)

    def put(self, event: Event, *, last: bool) -> None:
        """Send an event on its way, with what it changes in the run; nothing where the run is lost."""
        if self.lost is not None:
            return
        services, seq = self._context.services, event.seq or 0
        made_ms = self._made[event.id] = _made_ms(event, services.clock)
        by_store_ms = services.store_time.at(made_ms)
        self._watch, step = step_of(
            self._watch, self.about, seq, event.type, event.data, event.time_ms, made_ms=by_store_ms
        )
        if last:
            self._last = event.id
        event, span = traced(services.tracing, event, self._run_span())
        self._context.line.put(event, step, self, span)
        if last and self._span is not None:
            self._span.ended(str(event.data.get("outcome", "")))

    def _run_span(self) -> RunSpan | None:
        """The span of the run, begun with its first event."""
        tracing = self._context.services.tracing
        if tracing is not None and self._span is None:
            above = None if self._above is None else self._above._span
            self._span = tracing.running(self.about.agent, self.about.user, self.about.run, above)
        return self._span

    def stored(self, receipt: Receipt) -> None:
        """An event is stored; with the last one the lease was given up."""
        self.receipts.append(receipt)
        if (made_ms := self._made.pop(receipt.event, None)) is not None:
            self._context.services.store_time.learn(entry_order(receipt.entry)[0], made_ms)
        if receipt.event == self._last:
            self.release()

    def closed(self, error: RunClosed) -> None:
        """The run is another's now, or over. Nothing is cancelled: the next call tells."""
        if self.lost is None and self._span is not None:
            self._span.ended("lost")
        self.lost = self.lost or error
        self._made.clear()
        self.release()

    async def resume(self) -> RunRecord | None:
        """Take the run over from whoever had it.

        Returns:
            The run as it stands, None when it has not begun.

        Raises:
            RunClosed: it is completed, or others take it over at the same time.
            StoreError: the store does not answer.
        """
        services, about = self._context.services, self.about
        lease = Lease(user=about.user, run=about.run, owner=about.owner, lease_ms=about.lease_ms)
        for _ in range(_CLAIMS):
            found = await services.insist(partial(services.store.run, about.user, about.run))
            if found is None or found.fields.get("state") == RunPhase.REQUESTED:
                return None
            if found.fields.get("state") == RunPhase.COMPLETED:
                raise RunClosed(f"run {about.run} is completed: nothing is left to resume")
            holder = found.fields.get("owner", "")
            claimed = await services.insist(partial(services.store.claim_run, lease, holder))
            if claimed is not None:
                self._watch = watch_of(claimed)
                return claimed
        raise RunClosed(f"run {about.run} is being taken over by other processes: only one may resume it")

    async def spent_ms(self, record: RunRecord) -> int:
        """How long the run has been running, by the store's clock: the one of the machine on which it began may be
        another than this one's. Raises: StoreError.
        """
        store, user, fields = self._context.services.store, self.about.user, record.fields
        insist = self._context.services.insist
        now_ms = (await insist(partial(store.online, user))).time_ms
        begun_ms = int(fields.get("started_ms", now_ms))
        entry = EntryId(fields.get("entry", ""))
        stored = await insist(partial(store.entry, user, entry)) if entry else None
        if stored is not None:
            # How far the store's clock is ahead of that of the process which had the run last.
            begun_ms += entry_order(entry)[0] - decode_envelope(stored.body).time_ms
        return max(0, now_ms - begun_ms)


def _made_ms(event: Event, clock: Clock) -> int:
    """When an event was made, by the monotonic clock: a moment ago, where it had to wait for room."""
    return clock.monotonic_ms() - max(0, clock.now_ms() - event.time_ms)
