"""What becomes of calls that a server refused before it did anything; `eventbus.store.topology.decide` says what."""

from __future__ import annotations

import asyncio
import random
from typing import Final, Protocol

from eventbus.errors import StoreError, StoreMoved
from eventbus.store.calls import Call
from eventbus.store.command import key_of
from eventbus.store.held import Held
from eventbus.store.link import Link
from eventbus.store.topology import Address, Decision, Redirect, Step
from eventbus.store.translate import Refused

__all__ = ["Refusals", "Routes"]

_AGAIN_S: Final = 0.05
_HOPS: Final = 16


class Routes(Protocol):
    """Who knows the way to the servers."""

    def link_of(self, key: str | None) -> Link | None:
        """The link to the primary of a key, None when none is known."""

    def link_to(self, address: Address) -> Link:
        """The link to a server, made when there is none."""

    def route(self, call: Call) -> None:
        """Send a call where it belongs."""

    def hold(self, call: Call) -> None:
        """Have a call wait for a server."""

    def correct(self, redirect: Redirect, said_by: Address) -> None:
        """A server says that a slot is another's."""

    def seek(self) -> None:
        """Find out soon who is primary of what."""


class Refusals:
    """Sends refused calls elsewhere, or the same way again after a moment; those that are pinned come back.

    Args:
        routes: the way to the servers.
        held: how long calls may wait.
    """

    def __init__(self, routes: Routes, held: Held) -> None:
        self._routes = routes
        self._held = held
        self.redirects = 0
        """Answers that sent a call to another server."""

    def take(self, link: Link, call: Call, error: Refused, decision: Decision, trouble: StoreError) -> None:
        """Take a call that was refused for a reason that passes.

        Args:
            link: to the server that refused it.
            call: nothing was done for it.
            error: what the server said.
            decision: what that means.
            trouble: how it is told when the time of the call is over.
        """
        redirect, said_by = decision.redirect, link.endpoint
        self.redirects += redirect is not None
        call.hops += 1
        if decision.step is Step.AGAIN or call.hops > _HOPS:
            self._later(call, link.primary, trouble)
        elif decision.step is Step.ASK and redirect is not None:
            call.asking = True
            self._routes.link_to(redirect.address).put(call)
        else:
            if decision.step is Step.MOVED and redirect is not None and said_by is not None:
                self._routes.correct(redirect, said_by.address)
            self._routes.seek()
            if call.command.pinned:
                call.resolve(StoreMoved(f"nothing was stored: {error}"))
            elif decision.step is Step.MOVED:
                call.asking = False
                self._routes.route(call)
            else:
                self._routes.hold(call)

    def _later(self, call: Call, primary: str, trouble: StoreError) -> None:
        """The server will do it soon: the call comes again after a moment, a pinned one to the same server."""
        if not self._held.has_time(call):
            call.resolve(trouble)
            return
        call.asking = False
        wait_s = _AGAIN_S * random.uniform(0.5, 1.0)  # noqa: S311
        asyncio.get_running_loop().call_later(wait_s, self._again, call, primary)

    def _again(self, call: Call, primary: str) -> None:
        if call.command.pinned:
            link = self._routes.link_of(key_of(call.command))
            if link is None or not link.connected or link.primary != primary:
                call.resolve(StoreMoved("nothing was stored, and the primary that was to do it later is lost"))
                return
        self._routes.route(call)
