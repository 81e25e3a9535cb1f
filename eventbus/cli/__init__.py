"""The command `eventbus`: publish, tail, token, and what operators ask. docs/cli.md is its page.

Exit codes: 0 done, 1 a problem was found or what was asked for is not there, 2 usage or a bad setting, 3 the store is
unavailable. What is heavy to load is loaded by the command that needs it.
"""

from __future__ import annotations

import logging

import click

from eventbus.cli.acting import COMMANDS as ACTING
from eventbus.cli.common import CommandGroup, version
from eventbus.cli.dead import dead
from eventbus.cli.doctor import doctor
from eventbus.cli.event import event, user
from eventbus.cli.figures import rates, schemas
from eventbus.cli.looking import nodes, pending, sessions
from eventbus.cli.overview import audit, completion, paused, top
from eventbus.cli.publish import publish
from eventbus.cli.revoke import revocations, revoke
from eventbus.cli.runs import operator_events, runs
from eventbus.cli.tail import tail
from eventbus.cli.token import token

__all__ = ["cli", "main"]

PROGRAM = "eventbus"


@click.group(
    cls=CommandGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="An event did not arrive? `eventbus event --user U EVENT_ID` says what became of it, `eventbus pending` who"
    " waits for what, and `eventbus doctor` whether server and nodes are well.",
)
@click.version_option(version(), prog_name=PROGRAM, message="%(prog)s %(version)s")
def cli() -> None:
    """Publish events, watch them arrive, and see what waits and why.

    Whatever looks or acts takes --json, for scripts. Exit status: 0 done, 1 a problem was found or what was asked for
    is not there, 2 usage or a bad setting, 3 the store is unavailable.
    """


for _command in (
    publish,
    tail,
    token,
    pending,
    sessions,
    user,
    event,
    dead,
    runs,
    operator_events,
    rates,
    schemas,
    nodes,
    revoke,
    revocations,
    doctor,
    top,
    *ACTING,
    paused,
    audit,
    completion,
):
    cli.add_command(_command)


def main() -> None:
    """Run the command; ends the process."""
    # What the library logs of its own is for programs; a command says what matters in its own sentence.
    logging.getLogger("eventbus").addHandler(logging.NullHandler())
    cli.main(prog_name=PROGRAM)
