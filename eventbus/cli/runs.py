"""`eventbus runs|operator-events`: agents' runs, and what operators are told of them. Nothing here writes."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Final

import click

from eventbus.cli.common import (
    FOUND_PROBLEMS,
    as_json_option,
    as_user,
    duration_ms,
    opened,
    redis_option,
    settings_of,
)
from eventbus.cli.output import age, clock_time, note, objects, plain, print_json, print_table
from eventbus.cli.timeline import show_timeline, timeline_object
from eventbus.cli.watching import repeated, watch_option

if TYPE_CHECKING:
    from eventbus.config import Settings
    from eventbus.ids import RunId, UserId

__all__ = ["operator_events", "runs"]

RUN_NAMES: Final = ("run", "user", "thread", "agent", "state", "started_ms", "breaches")
STATES: Final = ("requested", "running", "completed")
KINDS: Final = ("missed_deadline", "run_abandoned", "missed_confirmation", "webhook_failed", "order")

_FOLLOW_S: Final = 1.0


# --- runs -------------------------------------------------------------------------------------------------------------


@click.command(short_help="Agents' runs, and the deadlines they missed.")
@click.argument("run", required=False, metavar="[RUN]")
@click.option("--user", callback=as_user, metavar="USER", help="This user's only.")
@click.option("--state", type=click.Choice(STATES), help="Only those that stand there.")
@click.option("--limit", type=click.IntRange(min=1), default=100, show_default=True, help="The newest so many.")
@watch_option
@redis_option
@as_json_option
# As many arguments as the command has options.
def runs(
    run: str | None,
    user: UserId | None,
    state: str | None,
    limit: int,
    watch: str | None,
    redis_url: str | None,
    as_json: bool,
) -> None:
    """Show the runs that are remembered, the newest last; with RUN the timeline of one.

    `breaches` counts the deadlines that a run missed; the table names them. The timeline has each step with the time
    since the one before it, each deadline, and what is wrong with the order. Without --user the run is looked for
    among all that are remembered, which takes a while. Exit status 1 when nothing is known of it.
    """
    settings = settings_of(redis_url)
    if run is None:
        repeated(lambda: _show_runs(settings, user, state, limit, as_json), watch, with_time=not as_json)
        return
    if state is not None:
        raise click.BadParameter("narrows a list; RUN names one run", param_hint="--state")
    from eventbus.ids import parse_run_id

    wanted, status = parse_run_id(run), 0

    def show() -> None:
        nonlocal status
        status = _show_run(settings, user, wanted, as_json)

    repeated(show, watch, with_time=not as_json)
    if status:
        raise SystemExit(status)


def _show_runs(settings: Settings, user: UserId | None, state: str | None, limit: int, as_json: bool) -> None:
    found = asyncio.run(_runs(settings, user, state, limit))
    if as_json:
        print_json(objects(found.rows, RUN_NAMES))
    elif found.rows:
        headings = ("run", "user", "thread", "agent", "state", "started", "took", "breaches", "missed", "tools")
        spare = ("thread", "tools", "breaches", "took", "started", "agent")
        print_table(headings, (_run_cells(row) for row in found.rows), spare=spare, text="missed")
        last = found.rows[-1]
        note(f"\nOne of them, step by step: eventbus runs --user {last.user} {plain(last.run)}")
    else:
        note("No runs. They are remembered for EVENTBUS_RETENTION_MS after their last event.")
    if found.more:
        note(f"There are more than these {len(found.rows)}: --limit, --user and --state narrow or widen the list.")


def _show_run(settings: Settings, user: UserId | None, run: RunId, as_json: bool) -> int:
    users, found, deadlines = asyncio.run(_run(settings, user, run))
    if found is None:
        if as_json:
            print_json([])
        if len(users) > 1:
            note(f"{len(users)} users have a run {plain(run)}: {', '.join(users)}. Say whose with --user.")
        else:
            note(
                f"Nothing is known of the run {plain(run)}{f' of {user}' if user else ''}: another user's, or its last"
                " event is older than EVENTBUS_RETENTION_MS. A list: eventbus runs"
            )
        return FOUND_PROBLEMS
    if as_json:
        print_json([timeline_object(found, deadlines)])
    else:
        show_timeline(found, deadlines)
    return 0


async def _run(settings: Settings, user: UserId | None, run: RunId) -> tuple[list[UserId], Any, Any]:
    """Whose it is, its timeline and its deadlines; no timeline when it is nobody's, or of several users."""
    from eventbus import inspection, watched

    async with opened(settings) as store:
        users = [user] if user is not None else await watched.users_of_run(store, run)
        if len(users) != 1:
            return users, None, ()
        found = await inspection.run_timeline(store, users[0], run)
        if found is None:
            return users, None, ()
        # A run without a tier has that of those who name none; one of a tier that is not known here has no limits.
        tier = settings.tiers.get(found.tier or settings.tiers.default_tier)
        return users, found, inspection.deadlines_of(found, None if tier is None else tier.limits)


def _run_cells(row: Any) -> tuple[object, ...]:
    took = age(row.ended_ms - row.started_ms) if row.ended_ms and row.started_ms else None
    state = row.outcome or row.state
    started = None if row.started_ms is None else clock_time(row.started_ms)
    missed = ", ".join(name.replace("call:", "completed of ") for name in row.missed) or None
    tools = ", ".join(row.tools) or None
    return (row.run, row.user, row.thread, row.agent, state, started, took, row.breaches, missed, tools)


async def _runs(settings: Settings, user: UserId | None, state: str | None, limit: int) -> Any:
    from eventbus import watched
    from eventbus.watch import RunPhase

    async with opened(settings) as store:
        return await watched.runs(store, user=user, state=None if state is None else RunPhase(state), limit=limit)


# --- events for operators ---------------------------------------------------------------------------------------------


@click.command("operator-events", short_help="What operators were told: missed deadlines, demands, lost runs.")
@click.option("--kind", type=click.Choice(KINDS), metavar="KIND", help=f"Of this kind only: {', '.join(KINDS)}.")
@click.option("--user", callback=as_user, metavar="USER", help="About this user only.")
@click.option("--since", metavar="TIME", help="Only those of the last 30m, 1h, 2d.")
@click.option("--limit", type=click.IntRange(min=1), default=100, show_default=True, help="The newest so many.")
@click.option(
    "--follow", is_flag=True, help="Print what comes from now on, until Ctrl-C; with --json an object a line."
)
@redis_option
@as_json_option
# As many arguments as the command has options.
def operator_events(
    kind: str | None,
    user: UserId | None,
    since: str | None,
    limit: int,
    follow: bool,
    redis_url: str | None,
    as_json: bool,
) -> None:
    """Show the events for operators, the newest last.

    Missed deadlines of runs, runs whose process was gone, demanded confirmations that did not come, webhooks that were
    given up. They are kept for seven days.
    """
    settings = settings_of(redis_url)
    if follow:
        if since is not None:
            raise click.BadParameter("what comes from now on has no past: leave one of them out", param_hint="--since")
        try:
            asyncio.run(_follow(settings, kind, user, as_json))
        except KeyboardInterrupt:
            return
    since_ms = 0 if since is None else max(0, time.time_ns() // 1_000_000 - duration_ms(since, "--since"))
    rows = asyncio.run(_operator_events(settings, kind, user, since_ms, limit))
    if as_json:
        print_json(rows)
    elif rows:
        headings = ("when", "kind", "user", "run", "what", "found late")
        print_table(
            headings, (_told_cells(row) for row in rows), spare=("found late", "kind", "user"), text="what", least=20
        )
    else:
        note("Nothing was told to operators" + (" in that time." if since else "."))


def _told_cells(row: dict[str, Any]) -> tuple[object, ...]:
    late_ms = row.get("late_ms")
    late = age(late_ms) if isinstance(late_ms, int) else None
    return (clock_time(row["time_ms"]), row.get("kind"), row.get("user"), row.get("run"), _what(row), late)


def _what(row: dict[str, Any]) -> str:
    """In a few words: what was missed."""
    match row.get("kind"):
        case "missed_deadline":
            call = f" of call {row['call']} ({row.get('tool') or 'over by now'})" if row.get("call") else ""
            return f"{row.get('agent')} was late: {row.get('deadline')}{call}"
        case "run_abandoned":
            return f"the process of {row.get('agent')} is gone"
        case "missed_confirmation":
            event = row.get("event") or row.get("entry")
            return f"event {event}: {row.get('level')} was demanded, {row.get('reached') or 'nothing'} was reached"
        case "webhook_failed":
            return f"{row.get('event')} after {row.get('attempts')} attempts: {row.get('reason')}"
        case "order":
            return f"events are lost: event {row.get('seq')} came behind event {row.get('after_seq')}"
    return ""


async def _operator_events(
    settings: Settings, kind: str | None, user: UserId | None, since_ms: int, limit: int
) -> list[dict[str, Any]]:
    from eventbus import watched
    from eventbus.breach import operator_object

    async with opened(settings) as store:
        found = await watched.operator_events(store, kind=kind, user=user, since_ms=since_ms, limit=limit)
        return [operator_object(event) for event in found]


async def _follow(settings: Settings, kind: str | None, user: UserId | None, as_json: bool) -> None:
    import orjson

    from eventbus import watched
    from eventbus.breach import operator_object
    from eventbus.cli.output import plain
    from eventbus.ids import EntryId

    async with opened(settings) as store:
        seen: dict[int, EntryId] = {}
        since = EntryId(f"{await store.ping()}-0")
        note("Waiting for what operators are told. Ctrl-C leaves.")
        while True:
            for event in await watched.new_operator_events(store, seen, since):
                row = operator_object(event)
                if kind not in (None, row.get("kind")) or user not in (None, row.get("user")):
                    continue
                if as_json:
                    click.echo(orjson.dumps(row).decode())
                else:
                    click.echo("  ".join(plain(str(cell)) for cell in _told_cells(row) if cell is not None))
            await asyncio.sleep(_FOLLOW_S)
