"""The data connection to one primary: what is called in one turn of the event loop leaves in one write.

Answers are matched in order. A call is never taken back from the wire: a cancelled caller loses interest, nothing else.
Nothing is ever sent twice, but for what the server refused to begin with. A lost connection is made anew when the next
call comes. Where the primary is, and what becomes of calls that it refuses because it is none, its owner knows
(`eventbus.store.links`). docs/decisions/0014-our-own-link.md says why no client library is in between.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from typing import Any, Final, Protocol

from eventbus.errors import StoreBusy, StoreError, StoreTimeout, StoreUnavailable
from eventbus.store.answers import facts_of, primary_named
from eventbus.store.calls import Call
from eventbus.store.command import Command, nothing_of, script_loads
from eventbus.store.connection import Connection, connect
from eventbus.store.endpoint import Endpoint
from eventbus.store.translate import Refused, translate

__all__ = ["Link", "Owner"]

_log = logging.getLogger("eventbus.store")

_FIRST_WAIT_S: Final = 0.02
_LOADS: Final = 3
# A check that comes later than this was held up by the process itself, and the answer may lie unread in the socket.
_STALL_S: Final = 0.5
# An answer that takes longer may never come: the owner is told, and looks whether the server is still the primary.
_SLOW_S: Final = 1.0
# How long answers may still come from a server that is no primary any more.
_FAREWELL_S: Final = 1.0


class Owner(Protocol):
    """Who has links: knows where a primary is, and what else to do with a call."""

    async def locate(self, link: Link) -> Endpoint:
        """Where to connect to. Raises: StoreError."""

    def greeted(self, link: Link, endpoint: Endpoint, facts: dict[str, str]) -> StoreError | None:
        """The server there has told of itself (INFO); an error refuses it."""

    def unreachable(self, link: Link, error: StoreError) -> None:
        """No connection came about. What waits is the owner's to give up (`give_up`) or to take back (`take_back`)."""

    def refused(self, link: Link, call: Call, error: Refused) -> bool:
        """The server did nothing and said why. Whether the owner has taken the call."""

    def stands(self, link: Link) -> None:
        """A connection stands; nothing was sent over it yet."""

    def lost(self, link: Link, error: StoreError) -> None:
        """The connection has ended."""

    def slow(self, link: Link) -> None:
        """An answer is overdue."""


class Link:
    """Carries commands to one primary.

    Args:
        owner: knows where it is.
        name: how the connection calls itself in CLIENT LIST.
        timeout_s: longest wait for a connection, and for the oldest answer that is due: beyond it the connection is
            given up, and all calls on it end with `StoreTimeout`.
        max_calls: most calls that wait for an answer; one more ends with `StoreBusy`.
        max_bytes: most bytes that wait to be written; beyond that calls end with `StoreBusy`.
        ping_s: a connection over which nothing went for so long is tried: a half-open one shows before a call needs it.
        eager: a connection that was lost is made anew before a call needs it.
        longest_wait_s: longest wait between two tries to connect.

    Results are values, errors too: a future never raises, so nothing is lost when a caller went away.
    """

    def __init__(
        self,
        owner: Owner,
        *,
        name: str,
        timeout_s: float,
        max_calls: int,
        max_bytes: int,
        ping_s: float,
        eager: bool,
        longest_wait_s: float,
    ) -> None:
        self._owner = owner
        self._name = name
        self._timeout_s = timeout_s
        self._max_calls = max_calls
        self._max_bytes = max_bytes
        self._longest_wait_s = longest_wait_s
        self._loop = asyncio.get_running_loop()
        self._queue: deque[Call] = deque()
        self._queued_bytes = 0
        self._repeated: deque[Call] = deque()
        self._sent: deque[Call] = deque()
        self._connection: Connection | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._wait_s = _FIRST_WAIT_S
        self._scheduled = False
        self._ping_s = ping_s
        self._returns = eager
        self._eager = False
        self._check_timer: asyncio.TimerHandle | None = None
        self._ping_timer: asyncio.TimerHandle | None = None
        self._quiet = False
        self._retired: StoreError | None = None
        self.connections = 0
        """How many were made."""
        self.primary = ""
        """Who answers over the last connection, as `primary_named` says; empty before the first."""
        self._lives = ""
        self.endpoint: Endpoint | None = None
        """Where that server is."""

    def __repr__(self) -> str:
        state = "retired" if self._retired else "connected" if self.connected else "not connected"
        return f"<Link {self.endpoint} {state} waiting={self.waiting} unanswered={self.unanswered}>"

    @property
    def connected(self) -> bool:
        """Whether a connection stands."""
        return self._connection is not None

    @property
    def answers(self) -> bool:
        """Whether a connection stands, and no answer is overdue: a server that is frozen keeps its connections."""
        if self._connection is None:
            return False
        return not self._sent or self._loop.time() < self._sent[0].due - self._timeout_s + min(_SLOW_S, self._timeout_s)

    @property
    def waiting(self) -> int:
        """Calls that are not sent."""
        return len(self._queue) + len(self._repeated)

    @property
    def unanswered(self) -> int:
        """Calls that are sent."""
        return len(self._sent)

    # --- taking calls in --------------------------------------------------------------------------------------------

    def put(self, call: Call) -> None:
        """Send a call with the next write."""
        waiting = len(self._queue) + len(self._sent)
        size = len(call.packed)
        if self._retired is not None:
            call.resolve(self._retired)
        elif waiting >= self._max_calls or self._queued_bytes + size > self._max_bytes:
            call.resolve(StoreBusy(f"{waiting} calls wait for Redis already"))
        else:
            if call.asking:
                self._queue.append(Call(Command(("ASKING",), nothing_of)))
            self._queue.append(call)
            self._queued_bytes += size
            if not self._scheduled:
                self._schedule()

    def put_all(self, calls: list[Call]) -> None:
        """`put` for many calls, in their order."""
        size = sum([len(call.packed) for call in calls])
        waiting = len(self._queue) + len(self._sent) + len(calls)
        if self._retired is not None or waiting > self._max_calls or self._queued_bytes + size > self._max_bytes:
            for call in calls:
                self.put(call)
            return
        self._queue += calls
        self._queued_bytes += size
        if not self._scheduled:
            self._schedule()

    def connect_soon(self) -> None:
        """Connect now and whenever the connection is lost, without waiting for a call."""
        self._eager = True
        if self._connection is None:
            self._begin_connecting()

    def rename(self) -> None:
        """The server may have lost data although it is the same: from now on it is another primary."""
        self._lives += "+"
        self.primary += "+"

    def connect_anew(self) -> None:
        """The primary is elsewhere now. A server that is frozen takes a connection and says nothing: one that is being
        made to where the primary was is given up, and the next is made at once.
        """
        if self._connecting not in (None, asyncio.current_task()):
            self._stop_connecting()
            self._wait_s = _FIRST_WAIT_S
            self._begin_connecting()

    def take_back(self) -> list[Call]:
        """Calls that are not sent; they are the caller's again, in their order."""
        calls = [*self._repeated, *self._queue]
        self._repeated.clear()
        self._queue.clear()
        self._queued_bytes = 0
        return calls

    def give_up(self, error: StoreError) -> None:
        """End the calls that are not sent."""
        for call in self.take_back():
            call.resolve(error)

    def retire(self, error: StoreError) -> None:
        """The server is no primary any more: nothing new goes there, and what it owes may come for a moment."""
        self._retired = error
        self._eager = False
        self._stop_connecting()
        self.give_up(error)
        if self._sent and self._loop.time() < self._sent[0].due - self._timeout_s + _SLOW_S:
            self._loop.call_later(_FAREWELL_S, self.lose, error)
        else:
            self.lose(error)

    async def aclose(self) -> None:
        """Close the connection; calls under way end with `StoreUnavailable`. Safe to call twice."""
        error = StoreUnavailable("the store was closed")
        self._retired = error
        self._eager = False
        task = self._stop_connecting()
        self.give_up(error)
        self.lose(error)
        if task is not None:
            await asyncio.gather(task, return_exceptions=True)

    # --- connecting -------------------------------------------------------------------------------------------------

    def _schedule(self) -> None:
        if self._connection is not None:
            self._scheduled = True
            self._loop.call_soon(self._flush)
        elif self._connecting is None:
            self._begin_connecting()

    def _begin_connecting(self) -> None:
        if self._connecting is None and self._retired is None:
            self._connecting = self._loop.create_task(self._connect(), name=self._name)

    def _stop_connecting(self) -> asyncio.Task[None] | None:
        task, self._connecting = self._connecting, None
        if task is not None:
            task.cancel()
        return task

    async def _connect(self) -> None:
        while self._queue or self._repeated or self._eager:
            try:
                await self._connect_once()
            except Exception as error:  # whatever it is: the link must not be left standing
                self._owner.unreachable(self, translate(error))
                await asyncio.sleep(self._wait_s * random.uniform(0.5, 1.0))  # noqa: S311
                self._wait_s = min(2 * self._wait_s, self._longest_wait_s)
            else:
                self._wait_s = _FIRST_WAIT_S
                break
        # A link that was retired meanwhile has been told to forget this task.
        if self._connecting is asyncio.current_task():
            self._connecting = None

    async def _connect_once(self) -> None:
        async with asyncio.timeout(self._timeout_s):
            endpoint = await self._owner.locate(self)
        greeting = (*script_loads(), ("CLIENT", "SETNAME", self._name), ("INFO", "server", "replication"))
        connection, (*_, info) = await connect(endpoint, greeting, timeout_s=self._timeout_s)
        if isinstance(info, Refused):
            connection.drop()
            raise translate(info)
        facts = facts_of(info, "")
        if (error := self._owner.greeted(self, endpoint, facts)) is not None:
            connection.drop()
            raise error
        self.primary, self.endpoint = primary_named(facts) + self._lives, endpoint
        self.connections += 1
        self._connection = connection
        self._eager = self._returns
        connection.take_over(self._answered, self.lose, self._flush)
        self._drop_unwanted()
        self._quiet = False
        self._ping_timer = self._loop.call_later(self._ping_s, self._ping)
        self._owner.stands(self)
        self._flush()

    # --- writing ----------------------------------------------------------------------------------------------------

    def _flush(self) -> None:
        self._scheduled = False
        connection = self._connection
        if connection is None or connection.full:
            return  # `on_room`, or the next connection, comes back here
        batch = self._queue if not self._repeated else self._with_scripts()
        if not batch:
            return
        due = self._loop.time() + self._timeout_s
        for call in batch:
            call.due = due
        self._sent += batch
        data = b"".join([call.packed for call in batch])
        self._queue.clear()
        self._queued_bytes = 0
        self._quiet = False
        connection.write(data)
        if self._check_timer is None:
            self._check_timer = self._loop.call_at(due - self._timeout_s + min(_SLOW_S, self._timeout_s), self._check)

    def _with_scripts(self) -> deque[Call]:
        batch = deque(Call(Command(words, nothing_of)) for words in script_loads())
        for call in self._repeated:
            if call.asking:
                batch.append(Call(Command(("ASKING",), nothing_of)))
            batch.append(call)
        self._repeated.clear()
        batch += self._queue
        return batch

    def _drop_unwanted(self) -> None:
        """What lost its sense while it waited for the connection is not sent: an attach of a client that has gone would
        take the session from where that client is now.
        """
        unwanted = [call for call in self._queue if not call.asking and call.is_unwanted]
        if unwanted:
            self._queue = deque(call for call in self._queue if call not in unwanted)
            for call in unwanted:
                self._queued_bytes -= len(call.packed)
                call.resolve(StoreUnavailable("nobody waits for it any more"))

    def _ping(self) -> None:
        self._ping_timer = self._loop.call_later(self._ping_s, self._ping)
        if self._quiet and not self._sent:
            self.put(Call(Command(("PING",), nothing_of)))
        self._quiet = True

    # --- reading ----------------------------------------------------------------------------------------------------

    def _answered(self, reply: Any) -> None:
        if not self._sent:
            self.lose(StoreUnavailable(f"an answer that nobody asked for: {reply!r}"[:200]))
            return
        call = self._sent.popleft()
        if reply.__class__ is Refused:
            self._refused(call, reply)
        else:
            try:
                result = call.command.parse(reply, self.primary)
            except Exception as error:
                result = translate(error)
            call.resolve(result)
        if self._retired is not None and not self._sent:
            self.lose(self._retired)

    def _refused(self, call: Call, error: Refused) -> None:
        code = error.code
        if code == "NOSCRIPT" and call.command.scripted and call.loads < _LOADS and self._retired is None:
            call.loads += 1
            self._repeated.append(call)
            if not self._scheduled:
                self._schedule()
        elif code == "NOSCRIPT" and self._retired is not None:
            call.resolve(self._retired)  # nothing was done, and another server will know the script
        elif not self._owner.refused(self, call, error):
            call.resolve(translate(error))
        if code == "READONLY":
            # The server behind the address is no primary any more: the next connection finds the new one.
            self.lose(translate(error))

    # --- losing -----------------------------------------------------------------------------------------------------

    def _check(self) -> None:
        """Looks whether the oldest answer is overdue."""
        timer, self._check_timer = self._check_timer, None
        if not self._sent or self._connection is None or timer is None:
            return
        now, due = self._loop.time(), self._sent[0].due
        slow_at = due - self._timeout_s + min(_SLOW_S, self._timeout_s)
        if now < slow_at:
            again = slow_at
        elif now - timer.when() > _STALL_S:
            again = now + min(_SLOW_S, self._timeout_s)
        elif now < due:
            self._owner.slow(self)
            again = min(due, now + _SLOW_S)
        else:
            self.lose(StoreTimeout(f"Redis did not answer within {self._timeout_s} s"))
            return
        if self._connection is not None:
            self._check_timer = self._loop.call_at(again, self._check)

    def lose(self, error: StoreError) -> None:
        """The connection is of no use any more. Calls that are not sent yet, but for pinned ones, wait for the next."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        connection.drop()
        for timer in (self._check_timer, self._ping_timer):
            if timer is not None:
                timer.cancel()
        self._check_timer = self._ping_timer = None
        ended, self._sent = self._sent, deque()
        waiting = self.take_back()
        for call in ended:
            call.resolve(error)
        for call in waiting:
            if call.command.pinned:
                call.resolve(error)
            else:
                self._queue.append(call)
                self._queued_bytes += len(call.packed)
        if self._retired is None:
            _log.info("connection to Redis lost: %s", error)
            self._owner.lost(self, error)
            if self._queue or self._eager:
                self._begin_connecting()
