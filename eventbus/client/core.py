"""What of a subscriber outlives its connections."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from secrets import token_hex
from typing import Final

from eventbus.client.callbacks import Callbacks
from eventbus.client.confirms import Confirms
from eventbus.client.inbox import Inbox
from eventbus.client.link import make_hello
from eventbus.client.sends import Sends
from eventbus.client.texts import TextFeed
from eventbus.client.tokens import Tokens
from eventbus.clock import Clock
from eventbus.errors import EventBusError
from eventbus.frames import ErrorFrame, Filter, Hello, Ref, Sent, Welcome
from eventbus.ids import EntryId, Epoch, SessionId
from eventbus.store import Start
from eventbus.timers import Timers
from eventbus.wire import Format

__all__ = ["Core"]

MAX_FRAME_BYTES: Final = 65_536
"""A node's default; its welcome says what it takes."""


@dataclass(slots=True, kw_only=True, eq=False)
class Core:
    """What outlives a connection. `arrived` wakes who iterates, `room` the reader that waits for it."""

    inbox: Inbox
    texts: TextFeed
    tokens: Tokens
    callbacks: Callbacks
    clock: Clock
    format: Format
    session: SessionId | None
    start: Start | None
    window: int | None
    filter: Filter | None
    epoch: Epoch | None = None
    timers: Timers = field(init=False)
    confirms: Confirms = field(default_factory=Confirms)
    sends: Sends = field(default_factory=lambda: Sends(f"s{token_hex(4)}"))
    answered: dict[Ref, asyncio.Event] = field(default_factory=dict)
    max_frame_bytes: int = MAX_FRAME_BYTES
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    room: asyncio.Event = field(default_factory=asyncio.Event)

    def hello(self) -> Hello:
        """The first frame of the next connection."""
        return make_hello(
            session=self.session,
            start=self.start,
            cursor=self.inbox.tracker.cursor,
            epoch=self.epoch,
            window=self.window,
            filter=self.filter,
        )

    def welcomed(self, welcome: Welcome) -> None:
        """The session is open."""
        if self.epoch is None and self.start is Start.NEW and not welcome.resumed:
            self.inbox.tracker.passed(welcome.cursor)
        self.session = welcome.session
        self.epoch = welcome.epoch
        self.max_frame_bytes = welcome.max_frame_bytes
        self.tokens.accepted()

    async def wait_sent(self, ref: Ref, timeout_ms: int) -> EntryId | EventBusError | None:
        """Wait until a node has answered a command, the time is over, or the subscriber is closed.

        Returns:
            The command's id, or why it was refused; None when there was no answer. It is not sent any more then.
        """
        rung = self.answered[ref] = asyncio.Event()
        timer = self.timers.call_later(timeout_ms, rung.set)
        try:
            await rung.wait()
            return self.sends.result(ref)
        finally:
            timer.cancel()
            self.sends.forget(ref)
            del self.answered[ref]

    def told(self, frame: Sent | ErrorFrame) -> bool:
        """The node has answered something. Returns whether a command of the application's was meant."""
        if not self.sends.answered(frame):
            return False
        if frame.ref is not None and (rung := self.answered.get(frame.ref)) is not None:
            rung.set()
        return True
