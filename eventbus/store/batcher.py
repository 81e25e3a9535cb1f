"""One connection to Redis that carries every command: what is called in one turn of the event loop leaves in one write.

Answers are matched in order. A call is never taken back from the wire: a cancelled caller loses interest, nothing else.
Nothing is ever sent twice, but for a script that the server did not know. A lost connection is made anew when the next
call comes.
docs/decisions/0003-batching-on-redis-py.md says why redis-py's connection is used and its pipeline is not.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, Generic, TypeVar

import hiredis
from redis.asyncio.connection import AbstractConnection, ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, ReadOnlyError, RedisError

from eventbus.errors import StoreBusy, StoreError, StoreMisconfigured, StoreTimeout, StoreUnavailable
from eventbus.record import record
from eventbus.store.scripts import all_scripts
from eventbus.store.translate import is_reply, translate

__all__ = ["Argument", "Batcher", "Command", "Connector", "drop", "pack"]

T = TypeVar("T")
Argument = str | bytes | int

_log = logging.getLogger("eventbus.store")

_FIRST_WAIT_S: Final = 0.02
_LONGEST_WAIT_S: Final = 1.0
_TRIES: Final = 3
# A check that comes later than this was held up by the process itself, and the answer may lie unread in the socket.
_STALL_S: Final = 0.5


@record()
class Command(Generic[T]):
    """A command and how its answer is read.

    Attributes:
        arguments: the words.
        parse: makes the result, which may be an error, of the answer and of the `run_id` of the server that gave it.
        scripted: it is an EVALSHA, to be repeated when the server does not know the script.
        pinned: it goes over the connection that stood when it was called, or fails: the next one may lead to another
            server, and the caller wants to know before (D6).
    """

    arguments: tuple[Argument, ...]
    parse: Callable[[Any, str], T | StoreError]
    scripted: bool = False
    pinned: bool = False


class Connector:
    """Makes connections by a URL: TCP, TLS or a Unix socket, with the user, password and database in it.

    Args:
        url: as redis-py reads it.
        timeout_ms: longest wait for a connection.

    Raises:
        StoreMisconfigured: it is no URL of Redis.
    """

    def __init__(self, url: str, *, timeout_ms: int) -> None:
        self.timeout_s = timeout_ms / 1000
        try:
            self._pool = ConnectionPool.from_url(
                url,
                protocol=2,
                socket_timeout=None,
                socket_connect_timeout=self.timeout_s,
                retry=Retry(NoBackoff(), 0),
                health_check_interval=0,
            )
        except (ValueError, TypeError) as error:
            raise StoreMisconfigured(f"the URL of Redis is wrong: {error}") from None

    async def connect(self, *greeting: tuple[Argument, ...]) -> tuple[AbstractConnection, list[Any]]:
        """Connect, and say something at once.

        Args:
            greeting: the first commands of the connection.

        Returns:
            The connection and the answers; an error that is an answer stands for it.

        Raises:
            StoreError: no connection came about in time.
        Cancellation closes what was opened.
        """
        connection: AbstractConnection = self._pool.make_connection()  # type: ignore[no-untyped-call]
        answers: list[Any] = []
        try:
            async with asyncio.timeout(self.timeout_s):
                await connection.connect()  # type: ignore[no-untyped-call]
                await connection.send_packed_command(b"".join(map(pack, greeting)), check_health=False)
                for _ in greeting:
                    try:
                        answers.append(await connection.read_response(disconnect_on_error=False, timeout=math.inf))
                    except RedisError as error:
                        if not is_reply(error):
                            raise
                        answers.append(error)
        except (RedisError, OSError) as error:
            await drop(connection)
            raise translate(error) from error
        except BaseException:
            await drop(connection)
            raise
        return connection, answers


async def drop(connection: AbstractConnection) -> None:
    """Close a connection without waiting for what is still to be written: the peer may be frozen."""
    writer = connection._writer
    if writer is not None and writer.transport is not None:
        writer.transport.abort()
    try:
        await connection.disconnect(nowait=True)
    except (RedisError, OSError):
        _log.debug("a connection was gone before it was closed", exc_info=True)


def pack(words: Sequence[Argument]) -> bytes:
    """A command as it goes over the wire."""
    packed: bytes = hiredis.pack_command(tuple(words))  # type: ignore[arg-type]  # its stub names a tuple of one word
    return packed


class _Results:
    """The results of calls that were made together; the future ends with the last of them."""

    __slots__ = ("future", "missing", "results")

    def __init__(self, future: asyncio.Future[list[Any]], count: int) -> None:
        self.future = future
        self.missing = count
        self.results: list[Any] = [None] * count

    def put(self, place: int, result: Any) -> None:
        self.results[place] = result
        self.missing -= 1
        if not self.missing and not self.future.done():
            self.future.set_result(self.results)


class _Call:
    """A command on its way; its result goes to a future, or to a place among others."""

    __slots__ = ("deadline", "future", "packed", "parse", "pinned", "place", "results", "scripted", "tries")

    def __init__(
        self,
        command: Command[Any],
        future: asyncio.Future[Any] | None = None,
        results: _Results | None = None,
        place: int = 0,
    ) -> None:
        self.packed = pack(command.arguments)
        self.parse = command.parse
        self.scripted = command.scripted
        self.pinned = command.pinned
        self.future = future
        self.results = results
        self.place = place
        self.tries = 1
        self.deadline = 0.0

    def resolve(self, result: Any) -> None:
        if self.results is not None:
            self.results.put(self.place, result)
        elif self.future is not None and not self.future.done():
            self.future.set_result(result)


class Batcher:
    """Carries commands over one connection.

    Args:
        url: the server.
        timeout_ms: longest wait for a connection, and for the oldest answer that is due: beyond it the connection is
            given up, and all calls on it end with `StoreTimeout`.
        max_calls: most calls that wait for an answer; one more ends with `StoreBusy`.
        max_bytes: most bytes that wait to be written; beyond that calls end with `StoreBusy`.
        name: how the connection calls itself in CLIENT LIST.

    Results are values, errors too: a future never raises, so nothing is lost when a caller went away.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout_ms: int,
        max_calls: int = 100_000,
        max_bytes: int = 256 * 1024 * 1024,
        name: str = "eventbus-data",
    ) -> None:
        self._connector = Connector(url, timeout_ms=timeout_ms)
        self._timeout_s = timeout_ms / 1000
        self._max_calls = max_calls
        self._max_bytes = max_bytes
        self._name = name
        self._queue: deque[_Call] = deque()
        self._queued_bytes = 0
        self._repeated: deque[_Call] = deque()
        self._sent: deque[_Call] = deque()
        self._work = asyncio.Event()
        self._connection: AbstractConnection | None = None
        self._runner: asyncio.Task[None] | None = None
        self._reader: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        self._primary = ""
        self._connections = 0

    def __repr__(self) -> str:
        state = "closed" if self._closed else "connected" if self._connection is not None else "not connected"
        return f"<Batcher {self._name} {state} waiting={len(self._queue)} unanswered={len(self._sent)}>"

    @property
    def primary(self) -> str:
        """The `run_id` of the server of the last connection, empty before the first."""
        return self._primary

    @property
    def connected(self) -> bool:
        """Whether a connection stands."""
        return self._connection is not None

    def statistics(self) -> dict[str, int]:
        """Whole numbers for metrics: connections made, calls waiting, calls unanswered."""
        return {"connections": self._connections, "waiting": len(self._queue), "unanswered": len(self._sent)}

    def execute(self, command: Command[T]) -> asyncio.Future[T | StoreError]:
        """Send a command with the next write.

        Returns:
            A future that ends with the parsed answer, or with an error as its value. It may be cancelled at any time;
            the command is sent all the same.
        """
        future: asyncio.Future[T | StoreError] = asyncio.get_running_loop().create_future()
        self._take(_Call(command, future))
        return future

    def execute_all(self, commands: Sequence[Command[T]]) -> asyncio.Future[list[T | StoreError]]:
        """Send commands with the next write, in their order: a future for each would cost more than to pack it.

        Returns:
            A future that ends with the parsed answers, an error in the place of each that failed. It may be cancelled
            at any time; the commands are sent all the same.
        """
        future: asyncio.Future[list[T | StoreError]] = asyncio.get_running_loop().create_future()
        if not commands:
            future.set_result([])
            return future
        results = _Results(future, len(commands))
        for place, command in enumerate(commands):
            self._take(_Call(command, None, results, place))
        return future

    def _take(self, call: _Call) -> None:
        waiting = len(self._queue) + len(self._sent)
        if self._closed:
            call.resolve(StoreUnavailable("the store is closed"))
        elif waiting >= self._max_calls or self._queued_bytes + len(call.packed) > self._max_bytes:
            call.resolve(StoreBusy(f"{waiting} calls wait for Redis already"))
        else:
            self._queue.append(call)
            self._queued_bytes += len(call.packed)
            self._work.set()
            if self._runner is None or self._runner.done():
                self._runner = asyncio.get_running_loop().create_task(self._run(), name=self._name)

    async def aclose(self) -> None:
        """Close the connection; calls under way end with `StoreUnavailable`. Safe to call twice."""
        self._closed = True
        tasks = [task for task in (self._runner, self._reader) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._runner = self._reader = None
        self._give_up(StoreUnavailable("the store was closed"), self._repeated, self._queue)
        await self._lose(StoreUnavailable("the store was closed"))

    # --- writing ----------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        wait_s = _FIRST_WAIT_S
        while True:
            # One turn of the loop passes between `set` and here, and collects what else is called in it.
            await self._work.wait()
            if self._connection is None:
                error = await self._connect()
                if error is not None:
                    self._give_up(error, self._repeated, self._queue)
                    self._work.clear()
                    await asyncio.sleep(wait_s * random.uniform(0.5, 1.0))  # noqa: S311
                    wait_s = min(2 * wait_s, _LONGEST_WAIT_S)
                    continue
                wait_s = _FIRST_WAIT_S
            await self._write()

    async def _connect(self) -> StoreError | None:
        try:
            connection, (*_, info) = await self._connector.connect(
                *_script_loads(), ("CLIENT", "SETNAME", self._name), ("INFO", "server")
            )
        except StoreError as error:
            return error
        if isinstance(info, Exception):
            await drop(connection)
            return translate(info)
        self._primary = _run_id(info)
        self._connection = connection
        self._connections += 1
        self._reader = asyncio.get_running_loop().create_task(self._read(connection), name=f"{self._name}-reader")
        return None

    async def _write(self) -> None:
        connection = self._connection
        if connection is None:
            return
        batch: list[_Call] = []
        if self._repeated:
            batch += [_Call(Command(words, _nothing)) for words in _script_loads()]
            batch += self._repeated
            self._repeated.clear()
        batch += self._queue
        self._queue.clear()
        self._queued_bytes = 0
        self._work.clear()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._timeout_s
        for call in batch:
            call.deadline = deadline
        self._sent += batch
        if self._timer is None:
            self._timer = loop.call_at(deadline, self._check, deadline)
        try:
            await connection.send_packed_command(b"".join([call.packed for call in batch]), check_health=False)
        except (RedisError, OSError) as error:
            await self._lose(translate(error), connection)

    # --- reading ----------------------------------------------------------------------------------------------------

    async def _read(self, connection: AbstractConnection) -> None:
        sent, read = self._sent, connection.read_response
        while True:
            try:
                reply = await read(disconnect_on_error=False, timeout=math.inf)
            except (RedisError, OSError) as error:
                if not is_reply(error) or not sent:
                    await self._lose(translate(error), connection)
                    return
                self._refused(sent.popleft(), error)
                if isinstance(error, ReadOnlyError):
                    # The server behind the address is no primary any more: the next connection finds the new one.
                    await self._lose(translate(error), connection)
                    return
                continue
            if not sent:
                await self._lose(StoreUnavailable(f"an answer that nobody asked for: {reply!r}"[:200]), connection)
                return
            call = sent.popleft()
            try:
                result = call.parse(reply, self._primary)
            except Exception as error:
                result = translate(error)
            call.resolve(result)

    def _refused(self, call: _Call, error: Exception) -> None:
        if isinstance(error, NoScriptError) and call.scripted and call.tries < _TRIES:
            call.tries += 1
            self._repeated.append(call)
            self._work.set()
        else:
            call.resolve(translate(error))

    # --- losing -----------------------------------------------------------------------------------------------------

    def _check(self, due: float) -> None:
        self._timer = None
        if not self._sent or self._connection is None:
            return
        loop = asyncio.get_running_loop()
        now = loop.time()
        deadline = self._sent[0].deadline
        if now < deadline:
            self._timer = loop.call_at(deadline, self._check, deadline)
        elif now - due > _STALL_S:
            again = now + min(1.0, self._timeout_s)
            self._timer = loop.call_at(again, self._check, again)
        else:
            # The reader ends, and with it the calls.
            self._give_up(StoreTimeout(f"Redis did not answer within {self._timeout_s} s"), self._sent)
            writer = self._connection._writer
            if writer is not None:
                writer.transport.abort()

    async def _lose(self, error: StoreError, connection: AbstractConnection | None = None) -> None:
        """The connection is of no use any more. Calls that are not sent yet, but for pinned ones, wait for the next."""
        if connection is not None and connection is not self._connection:
            await drop(connection)
            return
        connection, self._connection = self._connection, None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._reader is not None and self._reader is not asyncio.current_task():
            self._reader.cancel()
        self._give_up(error, self._sent)
        for queue in (self._repeated, self._queue):
            pinned = deque(call for call in queue if call.pinned)
            if pinned:
                unpinned = [call for call in queue if not call.pinned]
                queue.clear()
                queue += unpinned
                self._give_up(error, pinned)
        self._queued_bytes = sum([len(call.packed) for call in self._queue])
        if connection is not None:
            if not self._closed:
                _log.info("connection to Redis lost: %s", error)
            await drop(connection)

    def _give_up(self, error: StoreError, *queues: deque[_Call]) -> None:
        for queue in queues:
            if queue is self._queue:
                self._queued_bytes = 0
            while queue:
                queue.popleft().resolve(error)


def _nothing(_reply: Any, _primary: str) -> None:
    """What the loading of a script answers nobody asks for."""


def _script_loads() -> Sequence[tuple[Argument, ...]]:
    return [("SCRIPT", "LOAD", script.text) for script in all_scripts().values()]


def _run_id(info: bytes) -> str:
    for line in info.decode().splitlines():
        if line.startswith("run_id:"):
            return line.removeprefix("run_id:")
    return ""
