"""`eventbus tail`: a live subscriber in the terminal."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import click
import orjson

from eventbus.cli.common import opened, redis_option, secret_option, settings_of, signing
from eventbus.cli.output import note, plain
from eventbus.cli.token import needed_secret, signed
from eventbus.errors import EventBusError, StoreError
from eventbus.settings import read_secret_file

if TYPE_CHECKING:
    from eventbus.subscriber import Delivery, Dropped, Gap, State, StateDetail

__all__ = ["tail"]

_EPILOG = """\
\b
  eventbus tail --user ada --jwt-secret-file secret
  eventbus tail --url wss://bus.example.com --token-file token --earliest
  eventbus tail --user ada --type agent_completed --count 1 --json

It is a session of its own, so it takes nothing away from the user's others. A session without connection is remembered
for EVENTBUS_SESSION_TTL_MS and shows in `eventbus pending`; with --redis-url (or EVENTBUS_REDIS_URL) tail ends its own
when it leaves. Ctrl-C leaves.
"""
_DATA_WIDTH: Final = 160


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    """What the options say."""

    url: str
    token: str | Callable[[], str]
    session: str
    own_session: bool
    earliest: bool
    filter: dict[str, tuple[str, ...]]
    count: int | None
    as_json: bool


@click.command(epilog=_EPILOG, short_help="Watch a user's events arrive.")
@click.option(
    "--url", default="http://127.0.0.1:8080", show_default=True, metavar="URL", help="A node, or the load balancer."
)
@click.option("--token", metavar="JWT", help="The token. Others on this machine see it: better in a file.")
@click.option("--token-file", metavar="FILE", help="A file with the token.")
@click.option("--user", metavar="USER", help="Make a token for this user, with the secret of the nodes.")
@secret_option
@click.option("--session", metavar="SESSION", help="Go on with this session.  [default: a new one]")
@click.option("--earliest", is_flag=True, help="A new session begins with the oldest event, not with what comes now.")
@click.option("--type", "types", multiple=True, metavar="TYPE", help="Only events of this type; may be repeated.")
@click.option("--thread", "threads", multiple=True, metavar="THREAD", help="Only of this thread; may be repeated.")
@click.option("--run", "runs", multiple=True, metavar="RUN", help="Only of this run; may be repeated.")
@click.option("--count", type=click.IntRange(min=1), metavar="N", help="Leave after so many events.")
@redis_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line, for scripts.")
# As many arguments as the command has options.
def tail(
    url: str,
    token: str | None,
    token_file: str | None,
    user: str | None,
    jwt_secret_file: str | None,
    session: str | None,
    earliest: bool,
    types: tuple[str, ...],
    threads: tuple[str, ...],
    runs: tuple[str, ...],
    count: int | None,
    redis_url: str | None,
    as_json: bool,
) -> None:
    """Watch a user's events arrive, live: one line each, acked as they are printed.

    A line has the time, the type, thread and run, and the data. Gaps and drops have a line too; what the connection
    does is told on stderr.
    """
    given = _token(token, token_file, user, jwt_secret_file)
    filter_ = {name: words for name, words in (("types", types), ("threads", threads), ("runs", runs)) if words}
    wanted = _Wanted(
        url=url,
        token=given,
        session=session or f"tail-{secrets.token_hex(4)}",
        own_session=session is None,
        earliest=earliest,
        filter=filter_,
        count=count,
        as_json=as_json,
    )
    forget = user if redis_url is not None or os.environ.get("EVENTBUS_REDIS_URL") else None
    try:
        asyncio.run(_tail(wanted))
    finally:
        if wanted.own_session and forget is not None:
            asyncio.run(_forget(redis_url, forget, wanted.session))


def _token(token: str | None, token_file: str | None, user: str | None, secret_file: str | None) -> Any:
    given = [name for name, value in (("--token", token), ("--token-file", token_file), ("--user", user)) if value]
    if len(given) != 1:
        raise click.UsageError(
            "give one of --token, --token-file and --user (with --jwt-secret-file, to make a token)"
            + (f", not {' and '.join(given)}" if given else "")
        )
    if user is not None:
        keys = signing(secret_file)
        needed_secret(keys)
        signed(keys, user)  # a bad user is told now, not with each attempt to connect
        return lambda: signed(keys, user)
    if token_file is not None:
        read_secret_file(token_file, variable="--token-file")
        return lambda: read_secret_file(token_file, variable="--token-file")
    return token


async def _forget(redis_url: str | None, user: str, session: str) -> None:
    """End the session that was tail's own. When that fails it ends by itself, a session's life later."""
    from eventbus.ids import parse_session_id, parse_user_id

    with contextlib.suppress(StoreError):
        async with opened(settings_of(redis_url)) as store:
            await store.end_session(parse_user_id(user), parse_session_id(session))


async def _tail(wanted: _Wanted) -> None:
    from eventbus.subscriber import Subscriber

    shown = _Lines(wanted)
    subscriber = Subscriber(
        wanted.url,
        wanted.token,
        session=wanted.session,
        start="earliest" if wanted.earliest else "new",
        filter=wanted.filter or None,
        on_gap=shown.gap,
        on_dropped=shown.dropped,
        on_state=shown.state,
        on_error=shown.error,
    )
    loop = asyncio.get_running_loop()
    leaving: list[asyncio.Task[None]] = []

    def leave() -> None:
        leaving.append(asyncio.ensure_future(subscriber.close()))

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, leave)
    try:
        seen = 0
        async with subscriber:
            async for delivery in subscriber:
                shown.delivery(delivery)
                await delivery.ack()
                seen += 1
                if seen == wanted.count:
                    break
    finally:
        await asyncio.gather(*leaving)
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


class _Lines:
    """Prints what comes."""

    def __init__(self, wanted: _Wanted) -> None:
        self._wanted = wanted
        self._width = shutil.get_terminal_size((0, 0)).columns if sys.stdout.isatty() else 0
        self._live = False

    def delivery(self, delivery: Delivery) -> None:
        """One event."""
        event = delivery.event
        if self._wanted.as_json:
            from eventbus.event import event_fields

            self._json({"id": delivery.entry, "delivery": delivery.delivery, "event": event_fields(event)})
            return
        where = "/".join(part for part in (event.thread, event.run) if part)
        again = f"(delivery {delivery.delivery})" if delivery.redelivered else ""
        data = plain(orjson.dumps(event.data).decode())
        head = "  ".join(part for part in (_time_of(event.time_ms), event.type, where, again) if part)
        room = max(20, self._width - len(head) - 2) if self._width else _DATA_WIDTH
        click.echo(f"{head}  {data if len(data) <= room else data[: room - 3] + '...'}")

    def gap(self, gap: Gap) -> None:
        """Events that will never come."""
        if self._wanted.as_json:
            fields = {"reason": gap.reason, "after": gap.after, "before": gap.before, "count": gap.count}
            self._json({"op": "gap", **{name: value for name, value in fields.items() if value is not None}})
            return
        count = "events" if gap.count is None else f"{gap.count} events"
        after = f" after {gap.after}" if gap.after else ""
        before = f" before {gap.before}" if gap.before else ""
        click.echo(f"--- gap: {count}{after}{before} are gone ({gap.reason})")

    def dropped(self, dropped: Dropped) -> None:
        """Events that will not come again."""
        if self._wanted.as_json:
            self._json({"op": "dropped", "ids": list(dropped.ids), "reason": dropped.reason})
        else:
            click.echo(f"--- dropped: {', '.join(dropped.ids)} ({dropped.reason})")

    def state(self, state: State, detail: StateDetail) -> None:
        """What the connection does, on stderr."""
        if state == "live":
            note(f"# connected to {plain(self._wanted.url)} as session {self._wanted.session}")
        elif state == "waiting":
            why = plain(detail.reason) or "the connection was lost"
            note(f"# not connected: {why}; next attempt in {(detail.wait_ms or 0) / 1000:.1f} s")

    def error(self, error: EventBusError) -> None:
        """What went wrong and does not end it, on stderr."""
        note(f"# {plain(str(error))}")

    @staticmethod
    def _json(value: object) -> None:
        click.echo(orjson.dumps(value))


def _time_of(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1_000).astimezone().strftime("%H:%M:%S.%f")[:-3]
