"""Applications of the client library, as one process: each has a session of `eventbus.Subscriber`, and writes down what
it is handed. It must get each event once, and in order; the library does the rest.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import sys
from typing import Any

from chaos.history import Kind, Log
from chaos.plans import SECRET, ClientPlan
from eventbus.client.callbacks import State, StateDetail
from eventbus.clock import SystemClock
from eventbus.errors import EventBusError
from eventbus.frames import Dropped, Gap
from eventbus.subscriber import Subscriber
from eventbus.tokens import make_token

_FLUSH_S = 0.05
_ABNORMAL = 1006  # no close code: the connection is gone


class _Application:
    """One session of one user."""

    def __init__(self, plan: ClientPlan, user: str, session: str, log: Log) -> None:
        self._plan = plan
        self._user = user
        self._session = session
        self._log = log
        self._chance = random.Random(f"{plan.seed}/{user}/{session}")
        self._openings = 0

    def _write(self, kind: Kind, f: str, **value: Any) -> None:
        self._log.write(kind, f, user=self._user, session=self._session, **value)

    def _token(self) -> str:
        now_ms = SystemClock().now_ms()
        return make_token(
            user=self._user, secret=SECRET.encode(), now_ms=now_ms, ttl_ms=24 * 3_600_000, tier="enterprise"
        )

    def _state(self, state: State, detail: StateDetail) -> None:
        if state == "live":
            self._openings += 1
            self._write(Kind.OK, "open", library=True, connection=self._openings, node="", resumed=self._openings > 1)
        elif state == "waiting":
            self._write(
                Kind.INFO,
                "close",
                connection=self._openings,
                code=detail.code or _ABNORMAL,
                reason=f"{detail.reason}; waits for {detail.wait_ms} ms",
            )
        else:
            self._write(Kind.INFO, "state", state=str(state))

    def _gap(self, gap: Gap) -> None:
        self._write(Kind.INFO, "gap", reason=str(gap.reason), after=gap.after, before=gap.before, count=gap.count)

    def _dropped(self, dropped: Dropped) -> None:
        self._write(Kind.INFO, "dropped", entries=list(dropped.ids), reason=str(dropped.reason))

    async def run(self) -> None:
        """Handles what comes until it is cancelled."""
        self._write(Kind.OK, "open", library=True, connection=0, node="", resumed=False)
        subscriber = Subscriber(
            f"http://{self._chance.choice(self._plan.addresses)}",
            self._token,
            session=self._session,
            start="earliest",
            on_state=self._state,
            on_gap=self._gap,
            on_dropped=self._dropped,
        )
        try:
            await self._follow(subscriber)
        except EventBusError as error:
            # For good: the checker says what the code means, and this session is owed nothing any more.
            code = getattr(error, "close_code", None) or _ABNORMAL
            self._write(Kind.INFO, "close", connection=self._openings, code=int(code), reason=str(error)[:200])
            self._write(Kind.INFO, "leave")

    async def _follow(self, subscriber: Subscriber) -> None:
        async with subscriber:
            async for delivery in subscriber:
                event = delivery.event
                self._write(
                    Kind.OK,
                    "receive",
                    connection=self._openings,
                    event=event.id,
                    owner=event.user,
                    entry=delivery.entry,
                    delivery=delivery.delivery,
                )


async def run(plan: ClientPlan) -> None:
    """Runs all of a plan until SIGTERM."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_signal_handler(signal.SIGUSR1, lambda: None)  # churn: the library has no say in it
    log = Log(plan.log, plan.name, held=True)
    applications = [_Application(plan, user, session, log) for user in plan.users for session in plan.sessions]
    tasks = [loop.create_task(application.run()) for application in applications]
    try:
        while not stop.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_FLUSH_S):
                    await stop.wait()
            for task in [task for task in tasks if task.done()]:
                task.result()
            log.flush()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        log.close()


if __name__ == "__main__":
    asyncio.run(run(ClientPlan.read(sys.argv[1])))
