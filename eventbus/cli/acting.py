"""`eventbus redeliver|skip|dead-letter|replay|end-session|drain|undrain|purge|pause|resume`: what operators do.

Each shows what it would do and asks; `--yes` answers, `--dry-run` stops there. All of it stands in `eventbus audit`
afterwards, and all of it may be repeated.
"""

from __future__ import annotations

import asyncio
import getpass
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

import click

from eventbus.cli.common import FOUND_PROBLEMS, as_json_option, duration_ms, opened, redis_option, settings_of
from eventbus.cli.output import about_in_words, note, plain, print_json
from eventbus.cli.watching import progress
from eventbus.config import Settings

__all__ = ["COMMANDS", "dead_drop", "who"]

_Decorated = TypeVar("_Decorated", bound=Callable[..., Any])
_SHOWN: Final = 10


def who() -> str:
    """Who sits here, for the audit log."""
    try:
        return f"cli:{getpass.getuser()}"
    except (KeyError, OSError):  # a container whose user has no name
        return "cli"


def _acting(command: _Decorated) -> _Decorated:
    """The options that all of them have."""
    for option in (
        as_json_option,
        redis_option,
        click.option("--dry-run", is_flag=True, help="Show what would be done, and stop."),
        click.option("--yes", is_flag=True, help="Do not ask."),
        click.option("--reason", default="", metavar="TEXT", help="Why, for those who look later."),
    ):
        command = option(command)
    return command


def _act(given: Mapping[str, Any], *, yes: bool, dry_run: bool, redis_url: str | None, as_json: bool) -> None:
    """Plans an action, asks, and carries it out. Exit status 1 when something could not be done, or nobody said yes."""
    from eventbus.inspection import action_asked_for

    asked = action_asked_for({name: value for name, value in given.items() if value not in (None, [], ())})
    settings = settings_of(redis_url)
    planned = asyncio.run(_plan(settings, asked))
    what = _words(asked.action)
    if dry_run or not planned.count:
        if as_json and dry_run:
            print_json([{"action": asked.action, **asked.about(), "count": planned.count, "items": planned.items}])
        elif as_json:
            print_json([{"operation": None, "results": {}, "left": {}}])
        else:
            items = "1 item" if planned.count == 1 else f"{planned.count:,} items"
            click.echo(f"{what}: {items}" + ("" if planned.count else ", nothing to do"))
            _show_items(planned)
        _show_notes(planned)
        return
    if not yes:
        _show_items(planned, err=True)
    _show_notes(planned)
    if not yes:
        _ask(f"{what} {planned.count:,} ({about_in_words(asked.about())})?")
    done = asyncio.run(_carry_out(settings, planned))
    if as_json:
        print_json([{"operation": done.operation, "results": done.results, "left": done.left}])
    else:
        results = ", ".join(f"{count} {_words(name)}" for name, count in done.results.items()) or "nothing"
        click.echo(f"{results}  (operation {done.operation})")
        for item, why in done.left.items():
            note(f"left: {plain(item)}: {_words(why)}")
    if planned.more:
        note("There is more than one operation takes: say it again.")
    if done.left:
        raise SystemExit(FOUND_PROBLEMS)


def _ask(question: str) -> None:
    """Goes on only with a yes. Raises: click.Abort."""
    try:
        click.confirm(question, abort=True, err=True)
    except click.Abort:
        if not sys.stdin.isatty():
            note("\nNobody said yes: --yes answers, --dry-run only looks.")
        raise


def _words(name: str) -> str:
    return name.replace("_", " ")


def _show_items(planned: Any, *, err: bool = False) -> None:
    for item in planned.items[:_SHOWN]:
        click.echo(f"  {plain(item)}", err=err)
    if planned.count > _SHOWN:
        click.echo(f"  and {planned.count - _SHOWN:,} more", err=err)


def _show_notes(planned: Any) -> None:
    """What one should know of it, also who does not look at the plan."""
    for text in planned.notes:
        note(f"  {text}")


async def _plan(settings: Settings, asked: Any) -> Any:
    from eventbus.inspection import Actions

    async with opened(settings) as store:
        return await Actions(store, by=who(), partitions=settings.store.partitions).plan(asked)


async def _carry_out(settings: Settings, planned: Any) -> Any:
    from eventbus.inspection import Actions

    async with opened(settings) as store:
        actions = Actions(store, by=who(), partitions=settings.store.partitions)
        try:
            return await actions.carry_out(planned, lambda done, of: progress(f"{done:,} of {of:,}"))
        finally:
            progress("")


# --- entries ----------------------------------------------------------------------------------------------------------


def _entries_command(name: str, action: str, short: str, text: str) -> click.Command:
    @click.command(name, short_help=short, help=text)
    @click.option("--user", required=True, metavar="USER", help="Whose.")
    @click.option("--session", required=True, metavar="SESSION", help="Of which session.")
    @click.argument("entries", nargs=-1, metavar="[ENTRY_ID]...")
    @_acting
    def command(user: str, session: str, entries: tuple[str, ...], reason: str, **how: Any) -> None:
        given = {"action": action, "user": user, "session": session, "entries": list(entries), "reason": reason}
        _act(given, **how)

    return command


redeliver = _entries_command(
    "redeliver",
    "redeliver",
    "Have pending entries sent again now.",
    "Have a session's pending entries (all without ENTRY_ID) sent again at once; no attempt is counted.\n\nA session"
    " that is away gets them when it is back.",
)
skip = _entries_command(
    "skip",
    "skip",
    "Take pending entries off a session.",
    "Take pending entries (all without ENTRY_ID) off a session, which does without them. They stay in the stream, for"
    " other sessions and for the history.",
)
dead_letter = _entries_command(
    "dead-letter",
    "dead_letter",
    "Make pending entries dead letters.",
    "Give pending entries (all without ENTRY_ID) of a session up now: they become dead letters, which can be replayed.",
)


# --- dead letters -----------------------------------------------------------------------------------------------------


def _letters_options(command: _Decorated) -> _Decorated:
    for option in (
        click.option("--all", "everything", is_flag=True, help="Every dead letter."),
        click.option("--since", metavar="TIME", help="Those of the last 30m, 1h, 2d."),
        click.option("--because", metavar="REASON", help="Those given up for this reason (ack_timeout, nacked, ...)."),
        click.option("--type", "type_", metavar="TYPE", help="Those of events of this type."),
        click.option("--session", metavar="SESSION", help="Those of this session."),
        click.option("--user", metavar="USER", help="Those of this user."),
        click.argument("letters", nargs=-1, metavar="[ID]..."),
    ):
        command = option(command)
    return command


def _which(letters: tuple[str, ...], where: Mapping[str, Any], since: str | None, everything: bool) -> dict[str, Any]:
    """The ids, or the filter. Raises: click.UsageError."""
    found = {name: value for name, value in where.items() if value}
    if since is not None:
        found["since_ms"] = max(0, time.time_ns() // 1_000_000 - duration_ms(since, "--since"))
    if letters and (found or everything):
        raise click.UsageError("give ids of dead letters, or say which are meant, and not both")
    if not letters and not found and not everything:
        raise click.UsageError("which dead letters? Give ids, --user, --type, --because, --since, or --all")
    return {"letters": list(letters)} if letters else {"where": found}


@click.command("replay", short_help="Give dead letters to their sessions again.")
@_letters_options
@click.option(
    "--to",
    type=click.Choice(["session", "everyone"]),
    default="session",
    show_default=True,
    help="The session that did not take it; or publish it again, for every session of the user.",
)
@_acting
# As many arguments as the command has options.
def replay(
    letters: tuple[str, ...], user: str | None, session: str | None, type_: str | None, because: str | None,
    since: str | None, everything: bool, to: str, reason: str, **how: Any,
) -> None:  # fmt: skip
    """Put dead letters back among the pending entries of their sessions, as delivered once; the letters go.

    Where the session is over, or the entry has left the stream, `--to everyone` publishes the event again under its own
    id: clients that have handled it drop it.
    """
    where = {"user": user, "session": session, "type": type_, "reason": because}
    _act({"action": "replay", **_which(letters, where, since, everything), "to": to, "reason": reason}, **how)


@click.command("drop", short_help="Drop dead letters for good.")
@_letters_options
@_acting
# As many arguments as the command has options.
def dead_drop(
    letters: tuple[str, ...], user: str | None, session: str | None, type_: str | None, because: str | None,
    since: str | None, everything: bool, reason: str, **how: Any,
) -> None:  # fmt: skip
    """Drop dead letters for good: by id, or those that the options mean."""
    where = {"user": user, "session": session, "type": type_, "reason": because}
    _act({"action": "drop", **_which(letters, where, since, everything), "reason": reason}, **how)


# --- sessions, nodes, users, types ------------------------------------------------------------------------------------


@click.command("end-session", short_help="End a session of a user.")
@click.option("--user", required=True, metavar="USER", help="Whose.")
@click.option("--session", required=True, metavar="SESSION", help="Which.")
@_acting
def end_session(user: str, session: str, reason: str, **how: Any) -> None:
    """End a session: what is pending for it is recorded as expired, and its client is told not to come back (4506).

    A client that opens it anew gets a new session. To keep it out: eventbus revoke.
    """
    _act({"action": "end_session", "user": user, "session": session, "reason": reason}, **how)


@click.command("drain", short_help="Have a node send its clients elsewhere.")
@click.argument("node")
@_acting
def drain(node: str, reason: str, **how: Any) -> None:
    """Have a node take no connections and send its clients to others, until `eventbus undrain`. The process stays."""
    _act({"action": "drain", "node": node, "reason": reason}, **how)


@click.command("undrain", short_help="Have a drained node take connections again.")
@click.argument("node")
@_acting
def undrain(node: str, reason: str, **how: Any) -> None:
    """Have a node that was drained take connections again."""
    _act({"action": "undrain", "node": node, "reason": reason}, **how)


@click.command("purge", short_help="Delete all that is kept of a user.")
@click.argument("user")
@_acting
def purge(user: str, reason: str, **how: Any) -> None:
    """Delete all that is kept of a user, for good: sessions, events, confirmations, runs, commands, dead letters.

    Who is still published to, or connects again, has new data. What was revoked stays revoked, and the audit log stays.
    """
    _act({"action": "purge", "user": user, "reason": reason}, **how)


@click.command("pause", short_help="Refuse events of a type.")
@click.argument("type_", metavar="TYPE")
@_acting
def pause(type_: str, reason: str, **how: Any) -> None:
    """Have events of a type refused, at once and by every publisher (`type_paused`), until `eventbus resume`."""
    _act({"action": "pause", "type": type_, "reason": reason}, **how)


@click.command("resume", short_help="Take events of a type again.")
@click.argument("type_", metavar="TYPE")
@_acting
def resume(type_: str, reason: str, **how: Any) -> None:
    """Have events of a paused type taken again."""
    _act({"action": "resume", "type": type_, "reason": reason}, **how)


COMMANDS: Final = (
    redeliver,
    skip,
    dead_letter,
    replay,
    end_session,
    drain,
    undrain,
    purge,
    pause,
    resume,
)
