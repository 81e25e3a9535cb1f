"""What a subscriber sends to agents. A part of `eventbus.subscriber.Subscriber`; `eventbus.client.sends` decides."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Final

from eventbus.client.connecting import Connecting
from eventbus.client.core import Core
from eventbus.client.sends import make_send
from eventbus.client.state import check_range
from eventbus.commands.command import ANSWER
from eventbus.errors import EventBusError, InvalidCommand, SendTimeout, SubscriberError
from eventbus.framespecs import MAX_DELAY_MS
from eventbus.ids import EntryId
from eventbus.wire import encode_client

__all__ = ["Sending"]

SEND_TIMEOUT_MS: Final = 30_000


class Sending(ABC):
    """The way back, over the connection that there is or the next one."""

    _core: Core
    _connecting: Connecting

    @property
    @abstractmethod
    def _is_open(self) -> bool:
        """Whether there is a connection, or will be one."""

    async def send(
        self,
        type: str,
        data: Mapping[str, Any] | None = None,
        *,
        run: str | None = None,
        thread: str | None = None,
        timeout_ms: int = SEND_TIMEOUT_MS,
    ) -> EntryId:
        """Send a command to an agent: `cancel` (with `run`), `message`, or what the application understands.

        It is kept until a node says that it is stored, and sent again on the next connection, under one name: it is
        stored once. 110 s after it was first sent it is not sent again, for a node may have forgotten the name.

        Args:
            type: what it wants, `[a-z][a-z0-9_.]{0,63}`.
            data: a JSON object; `{reason?}` for `cancel`, `{text}` for `message`.
            run: for which run; whoever reads the user's commands, when absent.
            thread: where it belongs.
            timeout_ms: the longest wait for the node, from 1 to an hour's.

        Returns:
            The command's id: it is stored.

        Raises:
            InvalidField: `field` names what is wrong; nothing was sent.
            CommandRefused: the node did not take it; `refused_with` is its code.
            SendTimeout: nobody said in time that it is stored; whether it is, is unknown.
            SubscriberError: it is not open, or too much waits already.

        A cancelled call leaves open whether it is stored.
        Source: docs/commands.md.
        """
        core = self._core
        frame = make_send(type, {} if data is None else data, ref=core.sends.next_ref(), run=run, thread=thread)
        size = len(encode_client(frame, core.format))
        if size > core.max_frame_bytes:
            raise InvalidCommand("data", f"makes a frame of {size} bytes, and {core.max_frame_bytes} are taken")
        check_range("timeout_ms", timeout_ms, 1, MAX_DELAY_MS)
        if not self._is_open:
            raise SubscriberError("open the subscriber first: `async with Subscriber(...) as subscriber`")
        core.sends.add(frame)
        if (connection := self._connecting.connection) is not None:
            connection.touch()
        result = await core.wait_sent(frame.ref, timeout_ms)
        if isinstance(result, EventBusError):
            raise result
        if result is None and not self._is_open:
            raise SubscriberError("the subscriber was closed before the command was known to be stored")
        if result is None:
            raise SendTimeout(f"no node has said within {timeout_ms} ms that the command is stored")
        return result

    async def answer(
        self, question: str, answer: Any, *, run: str | None = None, timeout_ms: int = SEND_TIMEOUT_MS
    ) -> EntryId:
        """Answer a question of an agent.

        Args:
            question: its name, from the data of `agent_question`.
            answer: any JSON value; one of the options where the question has some.
            run: the run of that event: two runs may give their questions one name.
            timeout_ms: the longest wait for the node.

        Returns:
            The entry id of the event that tells every device of the answer.

        Raises:
            AlreadyAnswered, BadAnswer, QuestionClosed, UnknownQuestion: it was not accepted.
            InvalidField, CommandRefused, SendTimeout, SubscriberError: as `send`.

        A cancelled call leaves open whether it is stored.
        Source: docs/commands.md.
        """
        return await self.send(ANSWER, {"question": question, "answer": answer}, run=run, timeout_ms=timeout_ms)
