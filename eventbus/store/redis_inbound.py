"""Commands and questions on Redis."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from eventbus.errors import StoreError
from eventbus.ids import EntryId, RunId, UserId
from eventbus.store import inbound_commands as commands
from eventbus.store.following import Followers
from eventbus.store.inbound import (
    Answer,
    AnswerOutcome,
    Ask,
    CommandRecord,
    CommandRefusal,
    CommandStored,
    Follower,
    Following,
    NewCommand,
    QuestionRecord,
    TakeCommands,
)
from eventbus.store.linked import Linked

__all__ = ["RedisInbound"]


class RedisInbound(Linked):
    """The part of a `RedisStore` for `eventbus.store.inbound`."""

    followers: Followers
    """Set by the store, which closes it."""

    async def send_command(self, command: NewCommand) -> CommandStored | CommandRefusal:
        """See `InboundStore.send_command`."""
        return await self._call(commands.send_command(self.keys, self.settings, command))

    async def take_commands(self, request: TakeCommands) -> Sequence[CommandRecord]:
        """See `InboundStore.take_commands`."""
        return await self._call(commands.take_commands(self.keys, self.settings, request))

    async def ack_commands(self, user: UserId, group: str, ids: Sequence[EntryId]) -> int:
        """See `InboundStore.ack_commands`."""
        return await self._call(commands.ack_commands(self.keys, user, group, list(ids))) if ids else 0

    async def hold_commands(self, user: UserId, group: str, ids: Sequence[EntryId], idle_ms: int) -> None:
        """See `InboundStore.hold_commands`."""
        if ids:
            await self._call(commands.hold_commands(self.keys, user, group, list(ids), idle_ms))

    async def sent_commands(self, user: UserId, after: EntryId, count: int) -> Sequence[CommandRecord]:
        """See `InboundStore.sent_commands`."""
        return await self._call(commands.sent_commands(self.keys, user, after, count))

    async def ask(self, ask: Ask) -> QuestionRecord | None:
        """See `InboundStore.ask`."""
        return await self._call(commands.ask(self.keys, self.settings, ask))

    async def question_published(self, user: UserId, run: RunId, question: str, entry: EntryId) -> None:
        """See `InboundStore.question_published`."""
        await self._call(commands.asked(self.keys, user, run, question, entry))

    async def questions(self, user: UserId) -> Sequence[QuestionRecord]:
        """See `InboundStore.questions`."""
        return await self._call(commands.questions(self.keys, user))

    async def have_questions(self, users: Sequence[UserId]) -> Sequence[bool | StoreError]:
        """See `InboundStore.have_questions`."""
        made = [commands.have_questions(self.keys, user) for user in users]
        futures: list[asyncio.Future[bool | StoreError]] = [self.link.execute(command) for command in made]
        return [await future for future in futures]

    async def answer(self, answer: Answer) -> AnswerOutcome:
        """See `InboundStore.answer`."""
        return await self._call(commands.answer(self.keys, self._commands, answer))

    async def close_inbound(self, user: UserId, run: RunId) -> None:
        """See `InboundStore.close_inbound`."""
        await self._call(commands.close_inbound(self.keys, user, run))

    def follow(self, user: UserId, follower: Follower) -> Following:
        """See `InboundStore.follow`."""
        return self.followers.follow(user, self.keys.user(user).channel, follower)
