"""Asking for a run before a worker begins it, so that it is seen when none comes."""

from __future__ import annotations

import secrets
from functools import partial

from eventbus import events
from eventbus.errors import InvalidEvent, InvalidField
from eventbus.fields import parse_integer
from eventbus.ids import RunId, parse_run_id, parse_thread_id, parse_user_id, run_id_from
from eventbus.runs.hold import RunServices, limits_of
from eventbus.store.running import RunRequest
from eventbus.tiers import TierTable
from eventbus.watch import STARTED, RunAbout, request_fields

__all__ = ["request_run"]


async def request_run(
    services: RunServices,
    *,
    tiers: TierTable,
    user: str,
    agent: str,
    thread: str | None,
    run: str | None,
    tier: str | None,
    requested_ms: int | None,
) -> RunId:
    """Write down that a run is asked for, and watch that it starts. See `Bus.request_run`.

    Raises:
        InvalidEvent: `field` names what is wrong.
        StoreError: the store does not take it.
    """
    events.agent_started(agent=agent)
    now_ms = services.clock.now_ms()
    try:
        about = RunAbout(
            user=parse_user_id(user),
            run=run_id_from(now_ms, secrets.token_bytes(10)) if run is None else parse_run_id(run),
            agent=agent,
            owner="",
            lease_ms=0,
            limits=limits_of(tiers, tier),
            thread=None if thread is None else parse_thread_id(thread),
            tier=tier,
            requested_ms=None if requested_ms is None else parse_integer(requested_ms, "requested_ms", 1),
        )
    except InvalidEvent:
        raise
    except InvalidField as error:
        raise InvalidEvent(error.field, error.problem) from None
    # What has passed since counts: a request may have waited in a queue before it came here.
    passed_ms = 0 if about.requested_ms is None else max(0, now_ms - about.requested_ms)
    watched = {STARTED: max(1, about.limits.started_ms - passed_ms)}
    request = RunRequest(user=about.user, run=about.run, fields=request_fields(about), watch=watched)
    await services.insist(partial(services.store.request_run, request))
    return about.run
