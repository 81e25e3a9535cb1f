"""`eventbus rates|schemas`: how well deliveries succeed, and what events must hold. Nothing here writes."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

import click

from eventbus.cli.common import as_json_option, as_user, redis_option, settings_of, with_place
from eventbus.cli.output import note, print_json, print_table
from eventbus.config import Settings
from eventbus.errors import StoreError
from eventbus.ids import UserId

if TYPE_CHECKING:
    from eventbus.rates import Rates

__all__ = ["rates", "schemas"]

_ALL: Final = "all"
_SPARE: Final = ("filtered", "released", "confirmed", "displayed", "trimmed", "expired", "dead-lettered")


@click.command(short_help="How many deliveries succeeded.")
@click.option("--user", callback=as_user, metavar="USER", help="This user's retained events only; all users without.")
@click.option("--event", metavar="ID", help="With --user: the event with this id only.")
@click.option("--run", metavar="RUN", help="With --user: events of this run only.")
@click.option("--type", "type_", metavar="TYPE", help="Events of this type only.")
@redis_option
@as_json_option
def rates(
    user: UserId | None, event: str | None, run: str | None, type_: str | None, redis_url: str | None, as_json: bool
) -> None:
    """Show how many events were stored, received, displayed, confirmed or given up, by type, and the rate of success.

    `success` is what was received among all deliveries that were received, expired, trimmed or dead-lettered. Without
    --user it is what was counted over all users in the last 30 days and more.
    """
    found = asyncio.run(_rates(settings_of(redis_url), {"user": user, "event": event, "run": run, "type": type_}))
    from eventbus.rates import STATES

    rows = [*found.by_type.items(), (_ALL, found)]
    if as_json:
        print_json(
            [
                {"type": name, **{state: getattr(one, state) for state in STATES}, "success": one.success}
                for name, one in rows
            ]
        )
    else:
        shown = [state for state in STATES if getattr(found, state) or state in ("stored", "received")]
        headings = ("type", *(state.replace("_", "-") for state in shown), "success")
        print_table(
            headings,
            ((name, *(getattr(one, state) for state in shown), _percent(one)) for name, one in rows),
            spare=[name for name in _SPARE if name in headings],
        )
    if not found.exact:
        note("More was recorded than is kept: the oldest deliveries are not counted.")


def _percent(rates: Rates) -> str | None:
    success = rates.success
    if success is None:
        return None
    # Never rounded up to 100: one loss in a million is to be seen.
    return "100 %" if success == 1 else f"{int(success * 10_000) / 100:.2f} %"


async def _rates(settings: Settings, wanted: dict[str, Any]) -> Rates:
    from eventbus.bus import Bus

    try:
        async with Bus(settings=settings) as bus:
            return await bus.rates(**wanted)
    except StoreError as error:
        raise with_place(error, settings) from None


@click.command(short_help="What the data of events must hold.")
@as_json_option
def schemas(as_json: bool) -> None:
    """Print the schemas of the library's event types as JSON Schema 2020-12.

    An application has its own beside them: `Schemas.export()` gives all of them.
    """
    from eventbus.schemas import Schemas

    exported = Schemas().export()
    if as_json:
        print_json([{"type": name, "schema": schema} for name, schema in exported.items()])
        return
    rows = []
    for name, schema in exported.items():
        required = schema.get("required", [])
        either = [one for choice in schema.get("oneOf", []) for one in choice["required"]]
        optional = [field for field in schema["properties"] if field not in (*required, *either)]
        rows.append((name, ", ".join(required), " or ".join(either), ", ".join(optional)))
    print_table(("type", "required", "one of", "optional"), rows)
