"""The bus: how an agent publishes events to its users.

The parts of the class: `eventbus.bus_base` opens and closes it, `eventbus.bus_answers` has what it answers, this module
what it publishes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Unpack, cast, overload

from eventbus.bus_answers import BusAnswers
from eventbus.commands.reader import Commands
from eventbus.errors import EventBusError
from eventbus.event import Deliver, Event, Require
from eventbus.ids import RunId, parse_session_id, parse_user_id
from eventbus.publishing.making import EventFields, append_of, receipts_of, recipients, store_all, submit, to_each
from eventbus.publishing.publisher import Publisher
from eventbus.publishing.receipt import Receipt, Receipts
from eventbus.runs import PublicError, Run, RunContext
from eventbus.runs.inbound import OnCancel
from eventbus.runs.line import RunLine
from eventbus.runs.requests import request_run
from eventbus.runs.timeout import OnTimeout
from eventbus.store import Durability
from eventbus.store.inbound import inbox_group
from eventbus.tracing import traced

__all__ = ["Bus"]


class Bus(BusAnswers):
    """Publishes events, and owns the connections to the store. Use it as `async with Bus(url) as bus:`.

    A bus belongs to the event loop in which it was opened. For threads there is `eventbus.blocking.Bus`.

    Args:
        url: where Redis or Valkey is; that of the settings when absent.
        settings: everything else; the defaults when absent. `Bus.from_env` takes them from the environment.
        store: another store than Redis, as a rule `eventbus.testing.MemoryStore`; whoever made it closes it.
        clock: where the time comes from; waits follow it when it can call back (`eventbus.testing.ManualClock`).
        schemas: what the data of the application's own types must hold.
        on_breaker: called in the event loop when the circuit breaker has moved.
    """

    @overload
    async def publish(self, *, user: str, users: None = None, **event: Unpack[EventFields]) -> Receipt: ...
    @overload
    async def publish(
        self, *, user: None = None, users: Iterable[str], **event: Unpack[EventFields]
    ) -> Receipts[Receipt]: ...

    # As many arguments as an event has fields, and two about the call itself.
    async def publish(
        self,
        *,
        user: str | None = None,
        users: Iterable[str] | None = None,
        type: str,
        data: Mapping[str, Any],
        id: str | None = None,
        thread: str | None = None,
        run: str | None = None,
        deliver: Deliver | str = Deliver.EACH,
        require: Require | Mapping[str, Any] | None = None,
        expires_ms: int | None = None,
        trace: str | None = None,
        time_ms: int | None = None,
        durability: Durability | str | None = None,
        deadline_ms: int | None = None,
    ) -> Receipt | Receipts[Receipt]:
        """Store an event for a user, or for each of many: each of the user's sessions will get it.

        Args:
            user: the user id, the only thing that routes; the id of a run or of a thread is refused here.
            users: instead of `user`: many user ids. Each gets the event, under the same id; named twice, once.
            type: what kind of event, `[a-z][a-z0-9_.]{0,63}`.
            data: a JSON object.
            id: the event id and idempotency key; repeated within `dedupe_ms` it is stored once. Made when absent.
            thread: the thread in which the event belongs.
            run: the run in which it belongs.
            deliver: `each` session of the user, or `any` one of them.
            require: a demanded confirmation: `{"level": "displayed", "within_ms": 5000}`.
            expires_ms: Unix milliseconds from which it is not delivered any more.
            trace: a W3C traceparent.
            time_ms: when it was made, Unix milliseconds; now when absent.
            durability: what the return promises; that of the settings when absent.
            deadline_ms: the call returns or raises within this time; that of the settings when absent.

        Returns:
            The receipt: the event is stored. For `users` the receipt of each by user id, in the order given.

        Raises:
            InvalidEvent: `field` is wrong; nothing was sent.
            PartialPublish: it is stored for some of `users` only: `by_user` has a receipt or an error for each, `event`
                the id under which to publish it again for the others.
            PublishTimeout, BreakerOpen, StoreBusy, StoreFull, StreamFull: not known to be stored; `retryable`: publish
                it again under the same id.
            NotReplicated: stored, but too few replicas have it; `retryable` as well.
            StoreMisconfigured: trying again is of no use.

        A cancelled call leaves open whether the event is stored; the order of the others is not disturbed.
        Source: docs/publishing.md.
        """
        many = recipients(user, users)
        event = self._maker.made(
            user=many[0] if many else cast(str, user),
            type=type,
            data=data,
            id=id,
            thread=thread,
            run=run,
            deliver=deliver,
            require=require,
            expires_ms=expires_ms,
            trace=trace,
            time_ms=time_ms,
        )
        publisher = self._opened()
        durable, deadline = self._maker.durable(durability), self._maker.deadline(deadline_ms)
        if many:
            results = await store_all(publisher, to_each(event, many), durable, deadline, self, self._tracing)
            return Receipts(receipts_of(results, many, event.id))
        return await self._publish(publisher, event, durable, deadline)

    async def _publish(self, publisher: Publisher, event: Event, durability: Durability, deadline_ms: int) -> Receipt:
        event, span = traced(self._tracing, event)
        append = append_of(event)
        try:
            publisher.check_room(1, len(append.body))
        except EventBusError as error:
            if span is not None:
                span.failed(error)
            raise
        answer, attempts = await submit(publisher, append, span, durability, deadline_ms)
        return Receipt(
            event=event.id,
            user=event.user,
            entry=answer.entry,
            duplicate=answer.duplicate,
            attempts=attempts,
            bus=self,
        )

    def run(
        self,
        *,
        user: str,
        agent: str,
        thread: str | None = None,
        run: str | None = None,
        public_error: PublicError | None = None,
        tier: str | None = None,
        requested_ms: int | None = None,
        resume: bool = False,
        on_cancel: OnCancel | str = OnCancel.TASK,
        on_timeout: OnTimeout | str = OnTimeout.MARK,
    ) -> Run:
        """A run of an agent: `async with bus.run(user="ada", agent="planner") as run:`. What it owes always comes.

        Args:
            user: whose run it is.
            agent: the agent's name, not blank.
            thread: the thread in which the run belongs.
            run: the run id; made when absent.
            public_error: what the user is told when the agent raises, words or a function of the exception. Without it
                "the agent failed"; the exception itself goes into the log and never into an event.
            tier: whose deadlines hold; the default tier when absent.
            requested_ms: when the run was asked for, Unix milliseconds, where nobody called `request_run`.
            resume: go on with the run `run` where its last process left it, if it has begun and is not completed. It
                becomes this process's alone: another that still works on it gets `RunClosed` from its next call. Calls
                of tools that were open end with an error, for nobody knows how far they came.
            on_cancel: what happens when the user cancels the run: `task` cancels the task that entered it, `flag` sets
                `run.cancelled` and no more.
            on_timeout: what happens when it takes longer than its tier's agent timeout: operators are told (`mark`), or
                its task is cancelled too (`cancel`): it ends as failed, and the block raises `RunTimeout`.

        Raises:
            InvalidEvent: `field` names what is wrong.
        Source: docs/publishing.md.
        """
        line = RunLine(
            self._opened(),
            self._clock,
            durability=self._maker.durable(None),
            deadline_ms=self._maker.deadline(None),
            receipt=partial(Receipt, bus=self),
        )
        context = RunContext.of(
            line, self._opened_services(), tiers=self.settings.tiers, tier=tier, user=user, thread=thread
        )
        return Run(
            context,
            agent=agent,
            run=run,
            public_error=public_error,
            requested_ms=requested_ms,
            resume=resume,
            on_cancel=on_cancel,
            on_timeout=on_timeout,
        )

    def commands(self, *, user: str, group: str = "inbox") -> Commands:
        """What a user sends to no run in particular: `async for command in bus.commands(user="ada"): ...`.

        The workers of a group share the commands, each of which goes to one of them, at least once; another group gets
        them all again. A group begins with the oldest command that is kept. Asking for the next one acks the one
        before.

        Args:
            user: whose commands.
            group: `[A-Za-z0-9_-]{1,64}`.

        Raises:
            InvalidField: an argument has not its form.
        Source: docs/commands.md.
        """
        commanding = self._opened_services().commanding
        return Commands(commanding, parse_user_id(user), inbox_group(parse_session_id(group, "group")), None)

    async def request_run(
        self,
        *,
        user: str,
        agent: str,
        thread: str | None = None,
        run: str | None = None,
        tier: str | None = None,
        requested_ms: int | None = None,
    ) -> RunId:
        """Write down that a run is asked for, before a worker has it: that none comes in time is seen then.

        Give the run id to the worker, which begins it with `bus.run(..., run=id)`.

        Args:
            user: whose run it will be.
            agent: the agent's name, not blank.
            thread: the thread in which the run belongs.
            run: the run id; made when absent. A run that is known already stays as it is.
            tier: whose deadlines hold; the default tier when absent.
            requested_ms: when it was asked for, Unix milliseconds; now, by the store's clock, when absent.

        Returns:
            The run id.

        Raises:
            InvalidEvent: `field` names what is wrong.
            StoreError: it is not known to be written down; `retryable`: try again with the same `run`.
        A cancelled call leaves open whether it is.
        Source: docs/publishing.md.
        """
        return await request_run(
            self._opened_services(),
            tiers=self.settings.tiers,
            user=user,
            agent=agent,
            thread=thread,
            run=run,
            tier=tier,
            requested_ms=requested_ms,
        )

    async def publish_many(
        self,
        events: Sequence[Mapping[str, Any] | Event],
        *,
        durability: Durability | str | None = None,
        deadline_ms: int | None = None,
    ) -> list[Receipt]:
        """Store several events, of one user or of many; those of one user in the order given.

        Args:
            events: the fields of each as `publish` takes them, or an `Event` that `make_event` made.
            durability: as for `publish`, for all of them.
            deadline_ms: as for `publish`, for all of them.

        Returns:
            A receipt for each, in the order given.

        Raises:
            InvalidEvent: with `index` and `field` of the first that is wrong; nothing was sent.
            StoreBusy: they do not fit beside what already waits; nothing was sent.
            PartialPublish: some failed; `results` has a receipt or an error for each.
            PublishTimeout, BreakerOpen, ...: all failed, and all for this reason.

        A cancelled call leaves open which of them are stored.
        """
        publisher = self._opened()
        durable, deadline = self._maker.durable(durability), self._maker.deadline(deadline_ms)
        checked = [self._maker.checked(event, index) for index, event in enumerate(events)]
        return receipts_of(await store_all(publisher, checked, durable, deadline, self, self._tracing))
