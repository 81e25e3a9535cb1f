"""`eventbus event|user`: the way of one event, and one user as a whole. Nothing here writes."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import click

from eventbus.cli.common import FOUND_PROBLEMS, as_json_option, as_user, opened, redis_option, settings_of
from eventbus.cli.looking import PENDING_NAMES, SESSION_NAMES, explain, timing_of
from eventbus.cli.output import age, clock_time, note, objects, plain, print_json, print_table
from eventbus.cli.watching import repeated, watch_option
from eventbus.config import ConfirmationRecords, Settings
from eventbus.ids import UserId

__all__ = ["event", "user"]

FATE_NAMES: Final = ("session", "state", "deliveries", "node", "time_ms", "level", "reason", "note")


# --- event ------------------------------------------------------------------------------------------------------------


@click.command(short_help="What became of an event, and why a session has it not.")
@click.option("--user", required=True, callback=as_user, metavar="USER", help="Whose event it is.")
@click.option("--session", metavar="SESSION", help="For this session only.")
@click.argument("event_or_entry", metavar="EVENT_ID|ENTRY_ID")
@watch_option
@redis_option
@as_json_option
# As many arguments as the command has options.
def event(
    user: UserId, session: str | None, event_or_entry: str, watch: str | None, redis_url: str | None, as_json: bool
) -> None:
    """Show the way of an event, what became of it for each session of its user, and why.

    \b
    not_read        stored, and the session has not read it yet
    pending         sent and not acked
    acked           by the client, when and with which level if that is recorded
    filtered        released: the session's filter does not want it
    expired         past its `expires_ms`, or the session ended with it pending
    dead_lettered   given up, with the reason
    skipped         an operator took it off the session
    trimmed         gone from the stream undelivered; the client is told of a gap
    released        acked by another session (`deliver: any`)
    before_session  stored before the session began, which began with what was new
    unknown         gone from the stream, and no record says why

    Exit status 1 when nothing knows of the event, or of the session.
    """  # noqa: D301 - click looks for the character
    settings = settings_of(redis_url)
    status = 0

    def show() -> None:
        nonlocal status
        status = _show_event(settings, user, session, event_or_entry, as_json)

    repeated(show, watch, with_time=not as_json)
    if status:
        raise SystemExit(status)


def _show_event(settings: Settings, user: UserId, session: str | None, wanted: str, as_json: bool) -> int:
    way, missing = asyncio.run(_event(settings, user, wanted))
    if way is None:
        if as_json:
            print_json([])
        note(f"Nothing is known of {plain(wanted)!r} of {user}: {missing.why}.")
        return FOUND_PROBLEMS
    report = way.report
    shown = [one for one in way.sessions if session in (None, one.fate.session)]
    if as_json:
        head = {"user": report.user, "event": report.event, "entry": report.entry, "type": report.type}
        print_json(
            [
                {**head, **fate, "verdict": one.verdict, "why": one.why}
                for one, fate in zip(shown, objects([one.fate for one in shown], FATE_NAMES), strict=True)
            ]
        )
    else:
        where = "stored" if report.stored else "no longer stored"
        click.echo(f"event {report.event or '?'}  entry {report.entry}  type {report.type or '?'}  {where}")
        _show_way(way, session)
        if shown:
            _show_fates(shown)
    if session is not None and not shown:
        note(
            f"Nothing is known of the session {plain(session)!r} of {user}: it never was, was ended, or was away for"
            f" longer than it is remembered (EVENTBUS_SESSION_TTL_MS, {age(settings.store.session_ttl_ms)})."
        )
        return FOUND_PROBLEMS
    if not way.sessions:
        note(f"{user} has no session; a session that begins with `earliest` within the retention gets it.")
    return 0


def _show_way(way: Any, session: str | None) -> None:
    of_run = f"  run {way.run}" if way.run else ""
    by = f"  agent {plain(way.agent)}" if way.agent else ""
    if of_run or by:
        click.echo(f"thread {way.thread or '-'}{of_run}{by}")
    steps = [step for step in way.steps if session is None or step.session in (None, session)]
    click.echo("")
    print_table(
        ("when", "after", "what", "session", "detail"),
        (
            (
                clock_time(step.time_ms),
                age(max(0, step.time_ms - way.stored_ms)),
                step.what,
                step.session,
                step.detail or None,
            )
            for step in steps
        ),
        spare=("after",),
        text="detail",
    )
    click.echo("")


def _show_fates(shown: list[Any]) -> None:
    print_table(
        ("session", "state", "deliveries", "node", "when", "level", "reason", "note", "why"),
        (
            (
                *(one.fate.session, one.fate.state, one.fate.deliveries, one.fate.node),
                None if one.fate.time_ms is None else clock_time(one.fate.time_ms),
                *(one.fate.level, one.fate.reason, one.fate.note, one.why),
            )
            for one in shown
        ),
        spare=("reason", "level", "when", "node", "deliveries", "note"),
        text="why",
    )


async def _event(settings: Settings, user: UserId, event_or_entry: str) -> tuple[Any, Any]:
    from eventbus import inspection

    store_settings = settings.store
    async with opened(settings) as store:
        way = await inspection.way_of(
            store,
            user,
            event_or_entry,
            partitions=store_settings.partitions,
            timing=timing_of(settings),
            records_kept=store_settings.confirmation_records is ConfirmationRecords.ALL,
        )
        if way is not None:
            return way, None
        return None, await inspection.absence(
            store,
            user,
            event_or_entry,
            retention_ms=store_settings.retention_ms,
            max_entries=store_settings.max_stream_entries,
        )


# --- user -------------------------------------------------------------------------------------------------------------


@click.command(short_help="One user as a whole.")
@click.argument("user", callback=as_user, metavar="USER")
@watch_option
@redis_option
@as_json_option
def user(user: UserId, watch: str | None, redis_url: str | None, as_json: bool) -> None:
    """Show all of one user: events, sessions, what waits and why, dead letters, runs, threads.

    Exit status 1 when nothing is kept of the user.
    """
    settings = settings_of(redis_url)
    status = 0

    def show() -> None:
        nonlocal status
        status = _show_user(settings, user, as_json)

    repeated(show, watch, with_time=not as_json)
    if status:
        raise SystemExit(status)


def _show_user(settings: Settings, user: UserId, as_json: bool) -> int:
    page = asyncio.run(_user(settings, user))
    nothing = not page.stored and page.newest == "0-0" and not page.sessions and not page.dead
    if as_json:
        print_json([] if nothing else [_user_object(page)])
    elif not nothing:
        click.echo(
            f"user {page.user}  partition {page.partition}  events {page.stored:,}  newest {page.newest}"
            f"  open questions {page.questions}"
        )
        _show_parts(page)
    if nothing:
        note(f"Nothing is kept of {user}: never published to and never connected, or purged, or all of it too old.")
        return FOUND_PROBLEMS
    return 0


def _show_parts(page: Any) -> None:
    if page.sessions:
        click.echo("")
        waits = {row.session: row for row in page.pending}
        rows = []
        for one in page.sessions:
            row = waits.get(one.session)
            rows.append(
                (
                    *(one.session, one.state, one.node, one.cursor, one.pending),
                    *((age(row.oldest_ms), row.deliveries, row.verdict) if row else (None, None, None)),
                    clock_time(one.last_seen_ms),
                )
            )
        print_table(
            ("session", "state", "node", "cursor", "pending", "oldest", "deliveries", "verdict", "last seen"),
            rows,
            spare=("cursor", "deliveries", "last seen", "node"),
        )
        if page.pending:
            explain(page.pending)
    if page.dead:
        click.echo("")
        print_table(
            ("dead letter", "when", "session", "type", "reason", "deliveries"),
            (
                (row.id, clock_time(row.time_ms), row.session, row.type or None, row.reason, row.deliveries)
                for row in page.dead
            ),
            spare=("deliveries", "session"),
        )
        note(f"\nTo give them to their sessions again: eventbus replay --user {page.user} --dry-run")
    if page.runs:
        click.echo("")
        print_table(
            ("run", "agent", "state", "outcome", "breaches"),
            ((row.run, row.agent, row.state, row.outcome, row.breaches) for row in page.runs),
        )
    if page.threads:
        click.echo("")
        print_table(("thread", "last event"), ((name, clock_time(ms)) for name, ms in page.threads.items()))


def _user_object(page: Any) -> dict[str, Any]:
    from eventbus.cli.dead import DEAD_NAMES
    from eventbus.cli.runs import RUN_NAMES

    return {
        "user": page.user,
        "partition": page.partition,
        "stored": page.stored,
        "newest": page.newest,
        "sessions": objects(page.sessions, SESSION_NAMES),
        "pending": objects(page.pending, PENDING_NAMES),
        "dead": objects(page.dead, DEAD_NAMES),
        "runs": objects(page.runs, RUN_NAMES),
        "threads": [{"thread": name, "last_ms": ms} for name, ms in page.threads.items()],
        "questions": page.questions,
    }


async def _user(settings: Settings, user: UserId) -> Any:
    from eventbus import inspection
    from eventbus.inspection.lookup import partition_of

    async with opened(settings) as store:
        return await inspection.user_page(
            store,
            user,
            timing_of(settings),
            partitions=settings.store.partitions,
            partition=partition_of(user, settings.store.partitions),
        )
