"""The parent of several workers: starts them, replaces those that end, adds up their metrics, ends them in good order.

The parent serves no client. It holds the port (bound, never listening), owns the admin port, and gives each worker its
settings over a pair of sockets. Worker i of the node NAME is the node NAME-i, and keeps that name when it is replaced.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

from eventbus.clock import Clock, SystemClock, seconds
from eventbus.errors import ConfigError
from gateway.access.loopback import is_loopback
from gateway.admin.port import make_admin_app, serve_admin
from gateway.admin.revocations import watched_revocations
from gateway.config import NodeSettings, load_authenticator
from gateway.metrics import Snapshot, kept_for_good, merged
from gateway.processes.process import Stop, bind, check_tls, close_all, first_of, port_of, ready_line, say
from gateway.processes.worker_process import WorkerState, start_worker
from gateway.transport.listener import Listener

__all__ = [
    "Supervisor",
    "restart_wait_ms",
    "run_workers",
    "worker_settings",
]

logger = logging.getLogger(__name__)

WAIT_BASE_MS: Final = 200
WAIT_MAX_MS: Final = 30_000

STABLE_MS: Final = 60_000
"""A worker that was ready for so long before it ended starts with the shortest wait again."""

FAILED_STARTS_MAX: Final = 5
"""A worker that so often in a row ended before it was ever ready can not start."""

KILL_AFTER_MS: Final = 5_000
"""A worker that is so late with its drain is killed."""

ASK_MS: Final = 1_000
"""How long a worker may take to tell its figures."""


class Process(Protocol):
    """A worker's process."""

    @property
    def pid(self) -> int: ...

    async def next_state(self) -> WorkerState | None:
        """Waits for what the worker says of itself; None when it has gone, or is about to."""

    async def figures(self, timeout_ms: int) -> Snapshot | None:
        """Asks for its figures; None when it does not answer in time."""

    async def wait(self) -> int:
        """Waits for its end. Returns the exit status, minus the number of the signal that ended it."""

    def terminate(self) -> None:
        """Has it drain; one that has ended is no error."""

    def kill(self) -> None:
        """Ends it; one that has ended is no error."""


def restart_wait_ms(ends: int, base_ms: int = WAIT_BASE_MS) -> int:
    """The wait before a worker is started again that has ended `ends` times in a row: 200 ms, doubled up to 30 s."""
    return min(base_ms << min(max(ends - 1, 0), 16), WAIT_MAX_MS)


@dataclass(slots=True, eq=False)
class _Slot:
    """The place of one worker, whichever process has it now."""

    name: str
    settings: NodeSettings
    process: Process | None = None
    state: WorkerState = WorkerState.ENDED
    starts: int = 0
    ends: int = 0
    failed_starts: int = 0
    ready_since_ms: int | None = None
    figures: Snapshot = field(default_factory=dict)

    @property
    def fields(self) -> dict[str, object]:
        """What a line of the log says of it."""
        return {"worker": self.name, "worker_pid": None if self.process is None else self.process.pid}


class Supervisor:
    """Keeps workers running.

    Args:
        workers: the settings of each, with a name and the shared port.
        start: starts the process of a worker.
        on_ready: called once, when all workers are ready for the first time.
        clock: for how long a worker was ready.
        wait_base_ms: the shortest wait before a worker is replaced.
        patience_ms: how long workers may take to end before they are killed; their drain and 5 s when absent.
    """

    def __init__(
        self,
        workers: Sequence[NodeSettings],
        start: Callable[[NodeSettings], Awaitable[Process]],
        *,
        on_ready: Callable[[], None],
        clock: Clock | None = None,
        wait_base_ms: int = WAIT_BASE_MS,
        patience_ms: int | None = None,
    ) -> None:
        self._slots = [_Slot(name=settings.listen.node, settings=settings) for settings in workers]
        self._start = start
        self._on_ready: Callable[[], None] | None = on_ready
        self._clock = clock or SystemClock()
        self._wait_base_ms = wait_base_ms
        drain_ms = max(settings.liveness.drain_ms for settings in workers)
        self._patience_ms = drain_ms + KILL_AFTER_MS if patience_ms is None else patience_ms
        self._stopping = asyncio.Event()
        self._given_up = asyncio.Event()
        self._ended_badly = False
        self._gone: Snapshot = {}

    def __repr__(self) -> str:
        return f"<Supervisor {' '.join(f'{slot.name}={slot.state}' for slot in self._slots)}>"

    # --- what the admin port asks -------------------------------------------------------------------------------------

    async def figures(self) -> Snapshot:
        """The figures of all workers, added up. A worker that does not answer counts with its last counters."""
        answers = await asyncio.gather(*(self._ask(slot) for slot in self._slots))
        own: dict[tuple[str, tuple[str, ...]], float] = {}
        for slot, answered in zip(self._slots, answers, strict=True):
            own["eventbus_worker_up", (slot.name,)] = float(answered)
            own["eventbus_worker_starts_total", (slot.name,)] = float(slot.starts)
        told = (
            slot.figures if answered else kept_for_good(slot.figures)
            for slot, answered in zip(self._slots, answers, strict=True)
        )
        return merged([self._gone, own, *told])

    async def _ask(self, slot: _Slot) -> bool:
        process = slot.process
        answer = await process.figures(ASK_MS) if process is not None else None
        if answer is None or process is not slot.process:
            return False
        slot.figures = answer
        return True

    def processes(self) -> Sequence[Mapping[str, object]]:
        """The workers: node, process id (absent between two processes), state."""
        return [
            {"node": slot.name, "state": slot.state} | ({"pid": slot.process.pid} if slot.process else {})
            for slot in self._slots
        ]

    # --- life ---------------------------------------------------------------------------------------------------------

    async def run(self, stop: Stop) -> int:
        """Keeps the workers running until a signal comes, then has them drain and waits for them.

        Cancellation kills them.

        Returns:
            The exit status: 0 when all drained; 1 when one failed at its start again and again, or had to be killed.
        """
        keepers = [asyncio.create_task(self._keep(slot), name=f"supervisor:{slot.name}") for slot in self._slots]
        try:
            await first_of(stop.asked.wait(), self._given_up.wait(), *keepers)
            self._stopping.set()
            for slot in self._slots:
                self._terminate(slot)
            ended = asyncio.gather(*keepers)
            await first_of(ended, stop.at_once.wait(), asyncio.sleep(seconds(self._patience_ms)))
            if not ended.done():
                self._kill_late(stop)
            await ended
        finally:
            for keeper in keepers:
                keeper.cancel()
            await asyncio.gather(*keepers, return_exceptions=True)
        return 1 if self._given_up.is_set() or self._ended_badly else 0

    def _terminate(self, slot: _Slot) -> None:
        if slot.process is not None:
            slot.state = WorkerState.DRAINING
            slot.process.terminate()

    def _kill_late(self, stop: Stop) -> None:
        why = "a second signal" if stop.at_once.is_set() else f"no end {self._patience_ms} ms after the signal"
        for slot in self._slots:
            if slot.process is not None:
                pid = slot.process.pid
                logger.warning("%s: worker %s (pid %d) is killed", why, slot.name, pid, extra=slot.fields)
                slot.process.kill()

    async def _keep(self, slot: _Slot) -> None:
        """Starts one worker, again and again, until the supervisor stops."""
        while not self._stopping.is_set():
            code = await self._live(slot)
            if self._stopping.is_set():
                # A worker that had not yet come to listen to signals is ended by them.
                early = slot.ready_since_ms is None and code == -signal.SIGTERM
                if code not in (0, None) and not early:
                    logger.warning("worker %s %s", slot.name, _ended(code), extra=slot.fields)
                    self._ended_badly = True
                return
            wait_ms = self._note_end(slot)
            if self._is_hopeless(slot):
                logger.critical(
                    "worker %s %s, %d times before it was ready",
                    slot.name,
                    _ended(code),
                    slot.failed_starts,
                    extra=slot.fields,
                )
                self._given_up.set()
                return
            told = "worker %s %s; another starts in %d ms"
            logger.warning(told, slot.name, _ended(code), wait_ms, extra=slot.fields)
            await first_of(self._stopping.wait(), asyncio.sleep(seconds(wait_ms)))

    async def _live(self, slot: _Slot) -> int | None:
        """One process from its start to its end. Returns its exit status; None when it could not be started."""
        slot.starts += 1
        slot.ready_since_ms = None
        try:
            process = await self._start(slot.settings)
        except OSError as error:
            logger.error("the process of worker %s can not be started: %s", slot.name, error, extra=slot.fields)
            return None
        slot.process, slot.state = process, WorkerState.STARTING
        logger.info("worker %s has started", slot.name, extra={**slot.fields, "worker_pid": process.pid})
        try:
            if self._stopping.is_set():
                self._terminate(slot)
            while (state := await process.next_state()) is not None:
                self._heard(slot, state)
            return await process.wait()
        except asyncio.CancelledError:
            process.kill()
            await process.wait()
            raise
        finally:
            slot.process, slot.state = None, WorkerState.ENDED
            self._gone = merged([self._gone, kept_for_good(slot.figures)])
            slot.figures = {}

    def _heard(self, slot: _Slot, state: WorkerState) -> None:
        if slot.state is WorkerState.DRAINING:
            return
        slot.state = state
        logger.info("worker %s is %s", slot.name, state, extra=slot.fields)
        if state is WorkerState.READY and slot.ready_since_ms is None:
            slot.ready_since_ms = self._clock.monotonic_ms()
        if self._on_ready is not None and all(one.state is WorkerState.READY for one in self._slots):
            on_ready, self._on_ready = self._on_ready, None
            on_ready()

    def _note_end(self, slot: _Slot) -> int:
        """Counts an end that nobody asked for. Returns the wait before the next start."""
        if slot.ready_since_ms is None:
            slot.failed_starts += 1
        else:
            slot.failed_starts = 0
            if self._clock.monotonic_ms() - slot.ready_since_ms >= STABLE_MS:
                slot.ends = 0
        slot.ends += 1
        return restart_wait_ms(slot.ends, self._wait_base_ms)

    def _is_hopeless(self, slot: _Slot) -> bool:
        """Whether to give up: not while others serve, unless the whole has never been ready."""
        if slot.failed_starts < FAILED_STARTS_MAX:
            return False
        return self._on_ready is not None or all(one.state is not WorkerState.READY for one in self._slots)


def _ended(code: int | None) -> str:
    if code is None:
        return "was not started"
    if code >= 0:
        return f"ended with status {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"


# --- the whole --------------------------------------------------------------------------------------------------------


def worker_settings(settings: NodeSettings, port: int) -> list[NodeSettings]:
    """The settings of each worker: NAME-1, NAME-2 and so on, on the port that was found.

    Raises:
        ConfigError: the name has no room for the number.
    """
    listen = settings.listen
    names = [f"{listen.node}-{number}" for number in range(1, listen.workers + 1)]
    try:
        return [replace(settings, listen=replace(listen, node=name, port=port, workers=1)) for name in names]
    except ConfigError:
        raise ConfigError(
            f"EVENTBUS_NODE is {listen.node!r}: with {listen.workers} workers the name {names[-1]!r} is too long",
            field="node",
        ) from None


async def run_workers(settings: NodeSettings) -> int:
    """Run a parent and its workers until SIGTERM or SIGINT.

    Returns:
        The exit status, as `Supervisor.run`.

    Raises:
        ConfigError: a port is taken, or a file of the settings can not be used.
    """
    listen = settings.listen
    if not hasattr(socket, "SO_REUSEPORT"):
        raise ConfigError("EVENTBUS_WORKERS is above 1: this system can not share a port", field="workers")
    check_tls(listen)
    load_authenticator(settings)
    stop = Stop()
    held: list[socket.socket] = []
    admin: Listener | None = None
    try:
        # Taken for itself first: a port that another service shares is taken all the same.
        probe = bind(listen.host, listen.port, setting="PORT")
        port = port_of(probe)
        close_all(probe)
        held += bind(listen.host, port, setting="PORT", shared=True)
        admin_sockets = bind(listen.admin_host, listen.admin_port, setting="ADMIN_PORT")
        held += admin_sockets
        line = ready_line(listen, port, port_of(admin_sockets))
        supervisor = Supervisor(worker_settings(settings, port), start_worker, on_ready=lambda: say(line))
        stop.listen()
        async with watched_revocations(settings) as access:
            # The one of the access, whose keys are looked at again.
            looking = None if is_loopback(listen.admin_host) else access.authenticator
            app = make_admin_app(supervisor, authenticator=looking, access=access, settings=settings)
            admin = await serve_admin(app, admin_sockets)
            return await supervisor.run(stop)
    finally:
        if admin is not None:
            await admin.stop()
        close_all(held)
        stop.unlisten()
