"""`eventbus pending|sessions|event|dead|nodes`: what operators look at. Nothing here writes."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from typing import Any, Final

import click

from eventbus.cli.common import FOUND_PROBLEMS, as_json_option, as_user, duration_ms, opened, redis_option, settings_of
from eventbus.cli.output import age, clock_time, note, objects, plain, print_json, print_table
from eventbus.config import ConfirmationRecords, Settings
from eventbus.errors import InvalidEvent, InvalidField
from eventbus.ids import UserId

__all__ = ["dead", "event", "nodes", "pending", "sessions"]

PENDING_NAMES: Final = ("user", "session", "pending", "oldest_ms", "deliveries", "node", "verdict")
SESSION_NAMES: Final = ("user", "session", "state", "node", "cursor", "pending", "last_seen_ms")
DEAD_NAMES: Final = ("id", "user", "session", "entry", "type", "reason", "deliveries", "node", "time_ms")
NODE_NAMES: Final = ("node", "address", "version", "state", "connections", "sessions", "started_ms")
FATE_NAMES: Final = ("session", "state", "deliveries", "node", "time_ms", "level", "reason", "note")

_USERS_A_PAGE: Final = 200


# --- pending ----------------------------------------------------------------------------------------------------------


@click.command(short_help="Who waits for what, and why.")
@click.option("--user", callback=as_user, metavar="USER", help="This user's sessions only; all users without.")
@click.option(
    "--limit", type=click.IntRange(min=1), default=100, show_default=True, help="Stop after so many sessions."
)
@click.option("--cursor", default="", metavar="CURSOR", help="Go on where a look at all users stopped.")
@redis_option
@as_json_option
def pending(user: UserId | None, limit: int, cursor: str, redis_url: str | None, as_json: bool) -> None:
    """Show the sessions that have entries waiting, and the verdict why.

    `pending` counts what waits for the session's ack: sent and not acked, or not read yet (of these up to 1,000).
    """
    if cursor and not (cursor.isascii() and cursor.isdigit()):
        raise click.BadParameter(f"{cursor!r} is no cursor that this command printed", param_hint="--cursor")
    rows, following = asyncio.run(_pending(settings_of(redis_url), user, limit, cursor))
    if as_json:
        print_json(objects(rows, PENDING_NAMES))
    elif rows:
        from eventbus.inspection import EXPLANATIONS

        headings = ("user", "session", "pending", "unread", "oldest", "deliveries", "node", "verdict")
        print_table(
            headings,
            (
                (
                    row.user,
                    row.session,
                    row.pending,
                    row.unread,
                    age(row.oldest_ms),
                    row.deliveries,
                    row.node,
                    row.verdict,
                )
                for row in rows
            ),
        )
        note("")
        for verdict, text in EXPLANATIONS.items():
            if any(row.verdict == verdict for row in rows):
                note(f"{verdict}: {text}.")
    elif user is not None:
        note(f"Nothing is pending for {user}. What became of one event: eventbus event --user {user} EVENT_ID")
    else:
        note("Nothing is pending. What was given up: eventbus dead")
    if following:
        note(f"There may be more: eventbus pending --cursor {following}")


async def _pending(settings: Settings, user: UserId | None, limit: int, cursor: str) -> tuple[list[Any], str]:
    from eventbus import inspection

    delivery = settings.delivery
    timing = inspection.Timing(
        ack_timeout_ms=delivery.ack_timeout_ms, max_wait_ms=delivery.max_wait_ms, jitter=delivery.jitter
    )
    async with opened(settings) as store:
        if user is not None:
            rows = await inspection.pending_of_user(store, user, timing)
            return sorted(rows, key=lambda row: -row.oldest_ms)[:limit], ""
        found: dict[tuple[str, str], inspection.PendingRow] = {}
        users = 0
        while True:
            page = await inspection.pending_of_users(store, timing, cursor=cursor, count=_USERS_A_PAGE)
            found.update({(row.user, row.session): row for row in page.rows})
            users += page.users
            cursor = page.cursor
            _progress(f"{users:,} users looked at, {len(found):,} sessions wait")
            # A page is shown whole, for the cursor goes on after it.
            if not cursor or len(found) >= limit:
                _progress("")
                return sorted(found.values(), key=lambda row: -row.oldest_ms), cursor


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        click.echo(f"\r\x1b[K{text}", err=True, nl=False)


# --- sessions ---------------------------------------------------------------------------------------------------------


@click.command(short_help="A user's sessions, live and away.")
@click.option("--user", callback=as_user, metavar="USER", help="This user's sessions only; all users without.")
@click.option(
    "--limit", type=click.IntRange(min=1), default=100, show_default=True, help="Stop after so many sessions."
)
@click.option("--cursor", default="", metavar="CURSOR", help="Go on where a look at all users stopped.")
@redis_option
@as_json_option
def sessions(user: UserId | None, limit: int, cursor: str, redis_url: str | None, as_json: bool) -> None:
    """Show sessions: where they are live, how far they have read, and how many entries wait."""
    if cursor and not (cursor.isascii() and cursor.isdigit()):
        raise click.BadParameter(f"{cursor!r} is no cursor that this command printed", param_hint="--cursor")
    rows, following = asyncio.run(_sessions(settings_of(redis_url), user, limit, cursor))
    if as_json:
        print_json(objects(rows, SESSION_NAMES))
    elif rows:
        print_table(
            ("user", "session", "state", "node", "cursor", "pending", "last seen"),
            (
                (row.user, row.session, row.state, row.node, row.cursor, row.pending, clock_time(row.last_seen_ms))
                for row in rows
            ),
        )
    else:
        note(
            f"{user or 'Nobody'} has no session. One begins with the first connection, for example with:"
            f" eventbus tail --user {user or 'USER'} --jwt-secret-file FILE"
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
            _progress(f"{len(found):,} sessions found")
            if not cursor or len(found) >= limit:
                _progress("")
                return list(found.values()), cursor


# --- event ------------------------------------------------------------------------------------------------------------


@click.command(short_help="What became of an event.")
@click.option("--user", required=True, callback=as_user, metavar="USER", help="Whose event it is.")
@click.argument("event_or_entry", metavar="EVENT_ID|ENTRY_ID")
@redis_option
@as_json_option
def event(user: UserId, event_or_entry: str, redis_url: str | None, as_json: bool) -> None:
    """Show what became of an event, for each session of its user.

    \b
    not_read        stored, and the session has not read it yet
    pending         sent and not acked
    acked           by the client, when and with which level if that is recorded
    filtered        released: the session's filter does not want it
    expired         past its `expires_ms`, or the session ended with it pending
    dead_lettered   given up, with the reason
    trimmed         gone from the stream before it was delivered; the client is told of a gap
    released        acked by another session (`deliver: any`)
    before_session  stored before the session began, which began with what was new
    unknown         gone from the stream, and no record says why

    Exit status 1 when nothing knows of the event.
    """  # noqa: D301 - click looks for the character
    settings = settings_of(redis_url)
    report = asyncio.run(_event(settings, user, event_or_entry))
    if report is None:
        if as_json:
            print_json([])
        note(
            f"Nothing is known of {plain(event_or_entry)!r} of {user}: it was never stored for this user, is older than"
            f" the retention ({age(settings.store.retention_ms)}), or was trimmed. The publisher's receipt has its id."
        )
        raise SystemExit(FOUND_PROBLEMS)
    if as_json:
        head = {"user": report.user, "event": report.event, "entry": report.entry, "type": report.type}
        print_json([{**head, **row} for row in objects(report.fates, FATE_NAMES)])
        return
    where = "stored" if report.stored else "no longer stored"
    click.echo(f"event {report.event or '?'}  entry {report.entry}  type {report.type or '?'}  {where}")
    if not report.fates:
        note(f"{user} has no session; a session that begins with `earliest` within the retention gets it.")
        return
    print_table(
        ("session", "state", "deliveries", "node", "when", "level", "reason", "note"),
        (
            (
                *(one.session, one.state, one.deliveries, one.node),
                None if one.time_ms is None else clock_time(one.time_ms),
                *(one.level, one.reason, one.note),
            )
            for one in report.fates
        ),
    )


async def _event(settings: Settings, user: UserId, event_or_entry: str) -> Any:
    from eventbus import inspection

    async with opened(settings) as store:
        return await inspection.fate(
            store,
            user,
            event_or_entry,
            partitions=settings.store.partitions,
            records_kept=settings.store.confirmation_records is ConfirmationRecords.ALL,
        )


# --- dead -------------------------------------------------------------------------------------------------------------


class _DeadGroup(click.Group):
    """`eventbus dead --json` is `eventbus dead list --json`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        known = {*self.commands, "--help", "-h"}
        if not args or args[0] not in known:
            looks_like_a_command = args and not args[0].startswith("-")
            args = args if looks_like_a_command else ["list", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_DeadGroup, short_help="Dead letters: what was given up.")
def dead() -> None:
    """Look at the dead letters: events that were delivered as often as allowed and not acked.

    Without a subcommand it is `list`.
    """


@dead.command("list")
@click.option("--user", callback=as_user, metavar="USER", help="This user's only.")
@click.option("--since", metavar="TIME", help="Only those of the last 30m, 1h, 2d.")
@click.option("--limit", type=click.IntRange(min=1), default=100, show_default=True, help="So many at most.")
@click.option("--cursor", default="", metavar="CURSOR", help="Go on where the last list stopped.")
@redis_option
@as_json_option
# As many arguments as the command has options.
def dead_list(
    user: UserId | None, since: str | None, limit: int, cursor: str, redis_url: str | None, as_json: bool
) -> None:
    """List dead letters, oldest first."""
    if cursor:
        _dead_id(cursor, "--cursor")
    since_ms = 0 if since is None else max(0, time.time_ns() // 1_000_000 - duration_ms(since, "--since"))
    page = asyncio.run(_dead(settings_of(redis_url), user, since_ms, limit, cursor))
    if as_json:
        print_json(objects(page.rows, DEAD_NAMES))
    elif page.rows:
        print_table(
            ("id", "when", "user", "session", "type", "reason", "deliveries", "node", "entry"),
            (
                (
                    *(row.id, clock_time(row.time_ms), row.user, row.session, row.type or None, row.reason),
                    *(row.deliveries, row.node, row.entry),
                )
                for row in page.rows
            ),
        )
        note(f"\nOne of them with its event: eventbus dead show {page.rows[-1].id}")
    else:
        note("No dead letters. What still waits: eventbus pending")
    if page.cursor:
        note(f"There are more: eventbus dead list --cursor {page.cursor}")


async def _dead(settings: Settings, user: UserId | None, since_ms: int, limit: int, cursor: str) -> Any:
    from eventbus import inspection

    async with opened(settings) as store:
        return await inspection.dead_letters(
            store, partitions=settings.store.partitions, user=user, since_ms=since_ms, cursor=cursor, limit=limit
        )


@dead.command("show")
@click.argument("id_", metavar="ID")
@redis_option
@as_json_option
def dead_show(id_: str, redis_url: str | None, as_json: bool) -> None:
    """Show one dead letter and the event that it holds. Exit status 1 when there is none of that id."""
    _dead_id(id_, "ID")
    row = asyncio.run(_dead_one(settings_of(redis_url), id_))
    if row is None:
        if as_json:
            print_json([])
        note(f"There is no dead letter {id_}; they end after EVENTBUS_DEAD_LETTER_TTL_MS. A list: eventbus dead")
        raise SystemExit(FOUND_PROBLEMS)
    found = objects([row], DEAD_NAMES)[0]
    envelope = _envelope(row.body)
    if as_json:
        print_json([{**found, "event": envelope}])
        return
    print_table(("field", "value"), _pairs({**found, "time_ms": clock_time(row.time_ms), "event": row.event or None}))
    if envelope is None:
        note("\nThe event itself is not kept: it was trimmed before it was given up.")
        return
    import orjson

    click.echo("")
    click.echo(plain_lines(orjson.dumps(envelope, option=orjson.OPT_INDENT_2).decode()))


def _dead_id(text: str, where: str) -> None:
    """Raises: click.BadParameter: it is no id of a dead letter."""
    from eventbus.inspection import parse_dead_id

    try:
        parse_dead_id(text)
    except InvalidField as error:
        raise click.BadParameter(error.problem, param_hint=where) from None


def _pairs(fields: dict[str, Any]) -> Sequence[tuple[str, str | None]]:
    return [(name, None if value is None else str(value)) for name, value in fields.items()]


def plain_lines(text: str) -> str:
    """A text of several lines without control characters in them."""
    return "\n".join(plain(line) for line in text.split("\n"))


async def _dead_one(settings: Settings, id_: str) -> Any:
    from eventbus import inspection

    async with opened(settings) as store:
        return await inspection.dead_letter(store, id_)


def _envelope(body: bytes) -> dict[str, Any] | None:
    from eventbus.event import decode_envelope, event_fields

    try:
        return event_fields(decode_envelope(body)) if body else None
    except InvalidEvent:
        return None


# --- nodes ------------------------------------------------------------------------------------------------------------


@click.command(short_help="The nodes and how they are.")
@redis_option
@as_json_option
def nodes(redis_url: str | None, as_json: bool) -> None:
    """Show the nodes that told of themselves within the last 15 s."""
    rows = asyncio.run(_nodes(settings_of(redis_url)))
    if as_json:
        print_json(objects(rows, NODE_NAMES))
    elif rows:
        print_table(
            ("node", "address", "version", "state", "connections", "sessions", "started"),
            (
                (
                    *(row.node, row.address, row.version, row.state, row.connections, row.sessions),
                    clock_time(row.started_ms),
                )
                for row in rows
            ),
        )
    else:
        note("No node tells of itself. Start one: eventbus-gateway serve --help; what is wrong: eventbus doctor")


async def _nodes(settings: Settings) -> list[Any]:
    from eventbus import inspection

    async with opened(settings) as store:
        return list(await inspection.nodes(store))
