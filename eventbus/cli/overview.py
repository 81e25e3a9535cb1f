"""`eventbus top|audit|paused|completion`: the whole at a glance, what operators did, and completion for shells."""

from __future__ import annotations

import asyncio
import sys
from typing import Any, Final

import click

from eventbus.cli.common import as_json_option, opened, redis_option, settings_of
from eventbus.cli.looking import NODE_NAMES
from eventbus.cli.output import about_in_words, age, clock_time, note, objects, plain, print_json, print_table
from eventbus.cli.watching import repeated, watch_option
from eventbus.config import Settings

__all__ = ["audit", "completion", "paused", "top"]

_TOP_ROWS: Final = 10


# --- top --------------------------------------------------------------------------------------------------------------


@click.command(short_help="The whole at a glance.")
@watch_option
@redis_option
@as_json_option
def top(watch: str | None, redis_url: str | None, as_json: bool) -> None:
    """Show nodes, for whom it waits longest and why, dead letters, rates and memory; on a terminal every 2 s."""
    settings = settings_of(redis_url)
    if watch is None and sys.stdout.isatty() and not as_json:
        watch = "2s"
    last: dict[str, Any] = {}
    repeated(lambda: _show_top(settings, last, as_json), watch)


def _show_top(settings: Settings, last: dict[str, Any], as_json: bool) -> None:
    found, rows, rates = asyncio.run(_top(settings))
    seconds = (found.now_ms - last["now_ms"]) / 1_000 if last else 0
    a_second = {
        name: (getattr(rates, name) - last[name]) / seconds if seconds > 0 else None for name in ("stored", "received")
    }
    last.update(now_ms=found.now_ms, stored=rates.stored, received=rates.received)
    if as_json:
        print_json([_top_object(found, rows, rates)])
        return
    click.echo(f"{clock_time(found.now_ms)}  {found.server}  {found.memory_bytes / 2**20:,.1f} MiB")
    oldest = f" (the oldest for {age(found.oldest_ms)})" if found.waiting_users else ""
    click.echo(
        f"users waiting {found.waiting_users:,}{oldest}  dead letters {found.dead_letters:,}"
        f"  deadlines {found.deadlines:,}"
    )
    pace = {name: "" if value is None else f" ({value:,.0f}/s)" for name, value in a_second.items()}
    success = "-" if rates.success is None else f"{int(rates.success * 10_000) / 100:.2f} %"
    click.echo(
        f"stored {rates.stored:,}{pace['stored']}  received {rates.received:,}{pace['received']}  success {success}"
    )
    for pause in found.paused:
        click.echo(f"paused: {plain(pause.type)} by {plain(pause.by)}: {plain(pause.reason) or '-'}")
    click.echo("")
    if found.nodes:
        print_table(
            ("node", "state", "connections", "sessions", "version", "held by"),
            ((one.node, one.state, one.connections, one.sessions, one.version, one.held_by) for one in found.nodes),
            spare=("version", "held by", "sessions"),
        )
    else:
        note("No node tells of itself, so nobody receives anything: eventbus doctor")
    if rows:
        click.echo("")
        print_table(
            ("user", "session", "pending", "oldest", "deliveries", "node", "verdict"),
            (
                (row.user, row.session, row.pending, age(row.oldest_ms), row.deliveries, row.node, row.verdict)
                for row in rows
            ),
            spare=("deliveries", "node"),
        )


def _top_object(found: Any, rows: list[Any], rates: Any) -> dict[str, Any]:
    from eventbus.cli.looking import PENDING_NAMES

    names = ("waiting_users", "oldest_ms", "dead_letters", "deadlines", "operator_events", "server", "memory_bytes")
    return {
        "time_ms": found.now_ms,
        **{name: getattr(found, name) for name in names},
        "stored": rates.stored,
        "received": rates.received,
        "success": rates.success,
        "paused": [one.type for one in found.paused],
        "nodes": objects(found.nodes, NODE_NAMES),
        "pending": objects(rows, PENDING_NAMES),
    }


async def _top(settings: Settings) -> tuple[Any, list[Any], Any]:
    from eventbus import inspection
    from eventbus.cli.looking import timing_of
    from eventbus.counting import overall_rates

    partitions = settings.store.partitions
    async with opened(settings) as store:
        found = await inspection.overview(store, partitions=partitions)
        page = await inspection.pending_of_users(store, timing_of(settings), partitions=partitions, count=_TOP_ROWS)
        return found, list(page.rows)[:_TOP_ROWS], await overall_rates(store, partitions=partitions)


# --- audit and paused -------------------------------------------------------------------------------------------------


@click.command(short_help="What operators did.")
@click.option(
    "--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, help="The newest so many records."
)
@redis_option
@as_json_option
def audit(limit: int, redis_url: str | None, as_json: bool) -> None:
    """Show what operators did, the newest last: who, when, why, to what, and what came of it.

    An operation has two records, `begun` and `done`. One that has no `done` was interrupted: say it again.
    """
    rows = asyncio.run(_audit(settings_of(redis_url), limit))
    if as_json:
        print_json([{"id": one.id, "time_ms": one.time_ms, **one.what} for one in rows])
    elif rows:
        print_table(
            ("when", "operation", "state", "action", "by", "about", "count", "results", "reason"),
            (_audit_cells(one) for one in rows),
            spare=("operation", "count", "by", "results"),
            text="about",
            least=20,
        )
    else:
        note("Nothing was done here.")


def _audit_cells(record: Any) -> tuple[object, ...]:
    what = record.what
    about, results = what.get("about") or {}, what.get("results")
    return (
        clock_time(record.time_ms),
        what.get("operation"),
        what.get("state"),
        what.get("action"),
        what.get("by"),
        about_in_words(about),
        what.get("count"),
        None
        if results is None
        else ", ".join(f"{n} {name.replace('_', ' ')}" for name, n in results.items()) or "nothing",
        what.get("reason") or None,
    )


async def _audit(settings: Settings, limit: int) -> list[Any]:
    async with opened(settings) as store:
        return list(await store.audits(None, limit))[::-1]


@click.command(short_help="Types of which nothing is taken.")
@redis_option
@as_json_option
def paused(redis_url: str | None, as_json: bool) -> None:
    """Show the types that are paused, by whom and why."""
    rows = asyncio.run(_paused(settings_of(redis_url)))
    if as_json:
        print_json(objects(rows, ("type", "by", "reason", "since_ms", "partitions")))
    elif rows:
        print_table(
            ("type", "by", "since", "reason"),
            ((row.type, row.by, clock_time(row.since_ms), row.reason or None) for row in rows),
            text="reason",
        )
    else:
        note("Nothing is paused.")


async def _paused(settings: Settings) -> list[Any]:
    async with opened(settings) as store:
        return list(await store.paused_types())


# --- completion -------------------------------------------------------------------------------------------------------


@click.command(short_help="Completion for a shell.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print what makes a shell complete this command: eval "$(eventbus completion bash)"."""
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    if found is None:
        raise click.UsageError(f"nothing is known of {shell}")
    root = ctx.find_root()
    program = root.info_name or "eventbus"
    click.echo(found(root.command, {}, program, f"_{program.upper().replace('-', '_')}_COMPLETE").source())
