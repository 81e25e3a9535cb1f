"""`eventbus publish`: one event from the terminal."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import click

from eventbus.cli.common import as_json_option, redis_option, settings_of
from eventbus.cli.output import note, objects, print_json
from eventbus.config import Settings
from eventbus.errors import PartialPublish
from eventbus.publishing.receipt import Receipt
from eventbus.store import Durability

__all__ = ["publish"]

_SILENT_S: Final = 1.5

_EPILOG = """\
\b
  eventbus publish --user ada --type agent_thinking --data '{"text": "hm"}'
  eventbus publish --user ada --type report.ready --data @report.json --id r17
  echo '{"text": "hm"}' | eventbus publish --user ada --type note --data -
  eventbus publish --user ada --user grace --type note --data '{"text": "hm"}'

With --id a command that is run again stores the event once (within EVENTBUS_DEDUPE_MS).
"""


@click.command(epilog=_EPILOG, short_help="Publish an event for a user.")
@click.option(
    "--user", "users", required=True, multiple=True, metavar="USER", help="Whose event it is; again for more users."
)
@click.option("--type", "type_", required=True, metavar="TYPE", help="What kind of event, such as agent_thinking.")
@click.option("--data", required=True, metavar="JSON", help="A JSON object; @FILE reads a file, - reads stdin.")
@click.option("--thread", metavar="THREAD", help="The thread in which it belongs.")
@click.option("--run", metavar="RUN", help="The run in which it belongs.")
@click.option("--id", "id_", metavar="ID", help="The event id and idempotency key; made when absent.")
@click.option(
    "--expires-ms", type=click.IntRange(min=1), metavar="MS", help="Unix milliseconds; not delivered any more then."
)
@click.option("--durability", type=click.Choice(list(Durability)), help="What success means.  [EVENTBUS_DURABILITY]")
@redis_option
@as_json_option
# As many arguments as the command has options.
def publish(
    users: tuple[str, ...],
    type_: str,
    data: str,
    thread: str | None,
    run: str | None,
    id_: str | None,
    expires_ms: int | None,
    durability: str | None,
    redis_url: str | None,
    as_json: bool,
) -> None:
    """Publish an event for a user, or for several, and print the receipts: the event is stored."""
    event: dict[str, Any] = {
        **({"user": users[0]} if len(users) == 1 else {"users": users}),
        "type": type_,
        "data": _data(data),
        "thread": thread,
        "run": run,
        "id": id_,
        "expires_ms": expires_ms,
    }
    try:
        receipts = asyncio.run(_publish(settings_of(redis_url), event, durability))
    except PartialPublish as error:
        _print([result for result in error.results if isinstance(result, Receipt)], len(users) > 1, as_json)
        for user, result in error.by_user.items():
            if not isinstance(result, Receipt):
                note(f"not stored for {user}: {result}")
        note(f"Once more for those, under the same id: --id {error.event}")
        raise
    _print(receipts, len(users) > 1, as_json)


def _print(receipts: Sequence[Receipt], with_users: bool, as_json: bool) -> None:
    if as_json:
        rows = objects(receipts, ["event", "user", "entry", "duplicate", "attempts"])
        print_json([{"id": row.pop("event"), **row} for row in rows])
        return
    for receipt in receipts:
        whose = f"  user {receipt.user}" if with_users else ""
        duplicate = "  duplicate" if receipt.duplicate else ""
        click.echo(f"event {receipt.event}  entry {receipt.entry}{whose}{duplicate}")
    if any(receipt.duplicate for receipt in receipts):
        note("An event with this id was stored before: nothing is stored again.")


async def _publish(settings: Settings, event: dict[str, Any], durability: str | None) -> list[Receipt]:
    from eventbus.bus import Bus

    most_s = settings.publish.publish_deadline_ms // 1_000
    async with Bus(settings=settings) as bus:
        # Redis is away, or slow: whoever waits here should know for what, and for how long.
        told = asyncio.get_running_loop().call_later(
            _SILENT_S, note, f"Redis has not answered yet; it is tried for {most_s} s (EVENTBUS_PUBLISH_DEADLINE_MS)."
        )
        try:
            receipts = await bus.publish(**event, durability=durability)
        finally:
            told.cancel()
        return [receipts] if isinstance(receipts, Receipt) else list(receipts.values())


def _data(text: str) -> dict[str, Any]:
    where = "--data"
    if text == "-":
        text, where = sys.stdin.read(), "stdin"
    elif text.startswith("@"):
        where = text[1:]
        try:
            text = Path(where).read_text()
        except OSError as error:
            raise click.BadParameter(f"{where!r} cannot be read: {error.strerror}", param_hint="--data") from None
        except ValueError:
            raise click.BadParameter(f"{where!r} is not UTF-8 text", param_hint="--data") from None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise click.BadParameter(f"{where} is no JSON: {error}", param_hint="--data") from None
    if not isinstance(value, dict):
        raise click.BadParameter(f'{where} must be a JSON object such as {{"text": "hm"}}', param_hint="--data")
    return value
