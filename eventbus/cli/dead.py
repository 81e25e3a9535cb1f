"""`eventbus dead`: what was given up. Nothing here writes but `drop`, which is in `eventbus.cli.acting`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any, Final

import click

from eventbus.cli.acting import dead_drop
from eventbus.cli.common import FOUND_PROBLEMS, as_json_option, as_user, duration_ms, opened, redis_option, settings_of
from eventbus.cli.output import clock_time, note, objects, plain, print_json, print_table
from eventbus.config import Settings
from eventbus.errors import InvalidEvent, InvalidField
from eventbus.ids import UserId

__all__ = ["dead"]

DEAD_NAMES: Final = ("id", "user", "session", "entry", "type", "reason", "deliveries", "node", "time_ms")


_LOOKED_AT: Final = 500
"""So many are read at a time, for a filter may want few of them."""


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
@click.option("--session", default="", metavar="SESSION", help="Those of this session only.")
@click.option("--type", "type_", default="", metavar="TYPE", help="Those of events of this type only.")
@click.option("--because", default="", metavar="REASON", help="Those given up for this reason (ack_timeout, nacked).")
@click.option("--since", metavar="TIME", help="Only those of the last 30m, 1h, 2d.")
@click.option("--limit", type=click.IntRange(min=1), default=100, show_default=True, help="So many at most.")
@click.option("--cursor", default="", metavar="CURSOR", help="Go on where the last list stopped.")
@redis_option
@as_json_option
# As many arguments as the command has options.
def dead_list(
    user: UserId | None, session: str, type_: str, because: str, since: str | None, limit: int, cursor: str,
    redis_url: str | None, as_json: bool,
) -> None:  # fmt: skip
    """List dead letters, oldest first."""
    if cursor:
        _dead_id(cursor, "--cursor")
    since_ms = 0 if since is None else max(0, time.time_ns() // 1_000_000 - duration_ms(since, "--since"))
    from eventbus.inspection import DeadFilter

    wanted = DeadFilter(user=user, session=session, type=type_, reason=because, since_ms=since_ms)
    rows, following = asyncio.run(_dead(settings_of(redis_url), wanted, limit, cursor))
    if as_json:
        print_json(objects(rows, DEAD_NAMES))
    elif rows:
        print_table(
            ("id", "when", "user", "session", "type", "reason", "deliveries", "node", "entry"),
            (
                (
                    *(row.id, clock_time(row.time_ms), row.user, row.session, row.type or None, row.reason),
                    *(row.deliveries, row.node, row.entry),
                )
                for row in rows
            ),
            spare=("entry", "node", "deliveries", "session"),
        )
        note(f"\nOne of them with its event: eventbus dead show {rows[-1].id}")
    elif wanted != DeadFilter():
        note("No such dead letters. All of them: eventbus dead")
    else:
        note("No dead letters. What still waits: eventbus pending")
    if following:
        note(f"There may be more: eventbus dead list --cursor {following}, and the same options")


async def _dead(settings: Settings, wanted: Any, limit: int, cursor: str) -> tuple[list[Any], str]:
    """The letters that are meant, and where a list goes on; empty behind the last."""
    from eventbus import inspection

    found: list[Any] = []
    async with opened(settings) as store:
        while True:
            page = await inspection.dead_letters(
                store,
                partitions=settings.store.partitions,
                user=wanted.user,
                since_ms=wanted.since_ms,
                cursor=cursor,
                limit=max(limit, _LOOKED_AT),
            )
            cursor = page.cursor
            for row in page.rows:
                if wanted.matches(session=row.session, type=row.type, reason=row.reason, time_ms=row.time_ms):
                    found.append(row)
                    if len(found) == limit:
                        is_last = not cursor and row is page.rows[-1]
                        return found, "" if is_last else row.id
            if not cursor:
                return found, ""


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
    del found["time_ms"]
    print_table(("field", "value"), _pairs({**found, "when": clock_time(row.time_ms), "event": row.event or None}))
    if envelope is None:
        note("\nThe event itself is not kept: it was trimmed before it was given up.")
    else:
        import orjson

        click.echo("")
        click.echo(plain_lines(orjson.dumps(envelope, option=orjson.OPT_INDENT_2).decode()))
    note(f"\nTo give it to its session again: eventbus replay {row.id}; for good: eventbus dead drop {row.id}")


dead.add_command(dead_drop)


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
