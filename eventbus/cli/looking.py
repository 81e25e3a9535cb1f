"""`eventbus pending|sessions|nodes`: what operators look at. Only `--scan` writes: it sets the index right."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final

import click

from eventbus.cli.common import as_json_option, as_user, opened, redis_option, settings_of
from eventbus.cli.output import age, clock_time, note, objects, print_json, print_table
from eventbus.cli.watching import progress, repeated, watch_option
from eventbus.config import Settings
from eventbus.errors import InvalidField
from eventbus.ids import UserId

__all__ = ["explain", "nodes", "pending", "sessions", "timing_of"]

PENDING_NAMES: Final = ("user", "session", "pending", "oldest_ms", "deliveries", "node", "verdict")
SESSION_NAMES: Final = ("user", "session", "state", "node", "cursor", "pending", "last_seen_ms")
NODE_NAMES: Final = ("node", "address", "version", "state", "connections", "sessions", "started_ms")

_USERS_A_PAGE: Final = 200


# --- pending ----------------------------------------------------------------------------------------------------------


@click.command(short_help="Who waits for what, and why.")
@click.option("--user", callback=as_user, metavar="USER", help="This user's sessions only; all users without.")
@click.option(
    "--limit", type=click.IntRange(min=1), default=100, show_default=True, help="Stop after so many sessions."
)
@click.option("--cursor", default="", metavar="CURSOR", help="Go on where a look at all users stopped.")
@click.option("--scan", is_flag=True, help="Look at every user first and set the index right: after an upgrade.")
@watch_option
@redis_option
@as_json_option
# As many arguments as the command has options.
def pending(
    user: UserId | None, limit: int, cursor: str, scan: bool, watch: str | None, redis_url: str | None, as_json: bool
) -> None:
    """Show the sessions that have entries waiting, those for which it waits longest first, and the verdict why.

    `pending` counts what waits for the session's ack: sent and not acked, or not read yet (of these up to 1,000).
    Without --user they are found by an index, which is late by a heartbeat of a session at most.
    """
    if cursor:
        _check_cursor(cursor)
    settings = settings_of(redis_url)
    if scan:
        asyncio.run(_scan(settings))
    repeated(lambda: _show_pending(settings, user, limit, cursor, as_json), watch, with_time=not as_json)


def _check_cursor(cursor: str) -> None:
    """Raises: click.BadParameter: it is none."""
    from eventbus.inspection import parse_pending_cursor

    try:
        parse_pending_cursor(cursor)
    except InvalidField as error:
        raise click.BadParameter(error.problem, param_hint="--cursor") from None


def _show_pending(settings: Settings, user: UserId | None, limit: int, cursor: str, as_json: bool) -> None:
    rows, following = asyncio.run(_pending(settings, user, limit, cursor))
    if as_json:
        print_json(objects(rows, PENDING_NAMES))
    elif rows:
        headings = ("user", "session", "pending", "unread", "oldest", "deliveries", "node", "verdict")
        print_table(
            headings,
            (
                (
                    *(row.user, row.session, row.pending, row.unread, age(row.oldest_ms)),
                    *(row.deliveries, row.node, row.verdict),
                )
                for row in rows
            ),
            spare=("unread", "deliveries", "node"),
        )
        explain(rows)
    elif user is not None:
        note(f"Nothing is pending for {user}. What became of one event: eventbus event --user {user} EVENT_ID")
    else:
        note("Nothing is pending. What was given up: eventbus dead")
    if following:
        note(f"There may be more: eventbus pending --cursor {following}")


def explain(rows: Sequence[Any]) -> None:
    """Say what the verdicts of these rows mean, each once, and what to do."""
    from eventbus.inspection import EXPLANATIONS

    note("")
    for verdict, text in EXPLANATIONS.items():
        if any(row.verdict == verdict for row in rows):
            note(f"{verdict}: {text}.")


def timing_of(settings: Settings) -> Any:
    """By which the late are told from the young where a node does not tell its own times."""
    from eventbus.inspection import Timing

    delivery = settings.delivery
    return Timing(ack_timeout_ms=delivery.ack_timeout_ms, max_wait_ms=delivery.max_wait_ms, jitter=delivery.jitter)


async def _scan(settings: Settings) -> None:
    from eventbus import inspection

    async with opened(settings) as store:
        async for looked in inspection.reindex(store):
            progress(f"{looked:,} users looked at")
        progress("")


async def _pending(settings: Settings, user: UserId | None, limit: int, cursor: str) -> tuple[list[Any], str]:
    from eventbus import inspection

    timing = timing_of(settings)
    async with opened(settings) as store:
        if user is not None:
            rows = await inspection.pending_of_user(store, user, timing)
            return sorted(rows, key=lambda row: -row.oldest_ms)[:limit], ""
        found: list[inspection.PendingRow] = []
        users = 0
        while True:
            page = await inspection.pending_of_users(
                store,
                timing,
                partitions=settings.store.partitions,
                cursor=cursor,
                count=min(_USERS_A_PAGE, limit - len(found)),
            )
            found += page.rows
            users += page.users
            cursor = page.cursor
            progress(f"{users:,} users looked at, {len(found):,} sessions wait")
            # A page is shown whole, for the cursor goes on after it.
            if not cursor or len(found) >= limit:
                progress("")
                return found, cursor


# --- sessions ---------------------------------------------------------------------------------------------------------


@click.command(short_help="A user's sessions, live and away.")
@click.option("--user", callback=as_user, metavar="USER", help="This user's sessions only; all users without.")
@click.option(
    "--limit", type=click.IntRange(min=1), default=100, show_default=True, help="Stop after so many sessions."
)
@click.option("--cursor", default="", metavar="CURSOR", help="Go on where a look at all users stopped.")
@watch_option
@redis_option
@as_json_option
# As many arguments as the command has options.
def sessions(
    user: UserId | None, limit: int, cursor: str, watch: str | None, redis_url: str | None, as_json: bool
) -> None:
    """Show sessions: where they are live, how far they have read, and how many entries wait."""
    if cursor and not (cursor.isascii() and cursor.isdigit()):
        raise click.BadParameter(f"{cursor!r} is no cursor that this command printed", param_hint="--cursor")
    settings = settings_of(redis_url)
    repeated(lambda: _show_sessions(settings, user, limit, cursor, as_json), watch, with_time=not as_json)


def _show_sessions(settings: Settings, user: UserId | None, limit: int, cursor: str, as_json: bool) -> None:
    rows, following = asyncio.run(_sessions(settings, user, limit, cursor))
    if as_json:
        print_json(objects(rows, SESSION_NAMES))
    elif rows:
        print_table(
            ("user", "session", "state", "node", "cursor", "pending", "last seen"),
            (
                (row.user, row.session, row.state, row.node, row.cursor, row.pending, clock_time(row.last_seen_ms))
                for row in rows
            ),
            spare=("last seen", "cursor", "node"),
        )
    else:
        note(
            f"{'Nobody has a session' if user is None else f'{user} has no session'}. One begins with the first"
            f" connection, for example with: eventbus tail --user {user or 'USER'} --jwt-secret-file FILE"
        )
    if following:
        note(f"There may be more: eventbus sessions --cursor {following}")


async def _sessions(settings: Settings, user: UserId | None, limit: int, cursor: str) -> tuple[list[Any], str]:
    from eventbus import inspection

    async with opened(settings) as store:
        if user is not None:
            return (await inspection.sessions(store, user))[:limit], ""
        found: dict[tuple[str, str], inspection.SessionRow] = {}
        while True:
            names, cursor = await store.users(cursor, _USERS_A_PAGE)
            for name in dict.fromkeys(names):
                found.update({(row.user, row.session): row for row in await inspection.sessions(store, name)})
            progress(f"{len(found):,} sessions found")
            if not cursor or len(found) >= limit:
                progress("")
                return list(found.values()), cursor


# --- nodes ------------------------------------------------------------------------------------------------------------


@click.command(short_help="The nodes and how they are.")
@watch_option
@redis_option
@as_json_option
def nodes(watch: str | None, redis_url: str | None, as_json: bool) -> None:
    """Show the nodes that told of themselves within the last 15 s, and those that are held by `eventbus drain`."""
    settings = settings_of(redis_url)
    repeated(lambda: _show_nodes(settings, as_json), watch, with_time=not as_json)


def _show_nodes(settings: Settings, as_json: bool) -> None:
    rows = asyncio.run(_nodes(settings))
    if as_json:
        print_json(objects(rows, NODE_NAMES))
    elif rows:
        print_table(
            ("node", "address", "version", "state", "connections", "sessions", "started", "held by"),
            (
                (
                    *(row.node, row.address, row.version, row.state, row.connections, row.sessions),
                    clock_time(row.started_ms) if row.started_ms else None,
                    row.held_by,
                )
                for row in rows
            ),
            spare=("started", "address", "version"),
        )
    else:
        note("No node tells of itself. Start one: eventbus-gateway serve --help; what is wrong: eventbus doctor")


async def _nodes(settings: Settings) -> list[Any]:
    from eventbus import inspection

    async with opened(settings) as store:
        return list(await inspection.nodes(store))
