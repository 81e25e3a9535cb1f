"""The scripts that store events as typed functions: what goes in, and what the answer means."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from eventbus.config import StoreSettings
from eventbus.errors import StoreError, StreamFull, TypePaused
from eventbus.ids import EntryId
from eventbus.store import Append, Appended
from eventbus.store.command import Argument, Command
from eventbus.store.keys import Keys, idempotency_field
from eventbus.store.run_commands import step_arguments, step_refused
from eventbus.store.scripts import script
from eventbus.store.translate import translate

__all__ = ["AppendCommands", "evalsha"]

T = TypeVar("T")


def evalsha(
    name: str,
    keys: Sequence[str],
    arguments: Sequence[Argument],
    parse: Callable[[Any, str], T | StoreError],
    *,
    pinned: bool = False,
    wanted: Callable[[], bool] | None = None,
) -> Command[T]:
    """A call of a script. The arguments behind `parse` are those of `Command`."""
    words = ("EVALSHA", script(name).sha, len(keys), *keys, *arguments)
    return Command(words, parse, scripted=True, pinned=pinned, wanted=wanted)


class AppendCommands:
    """Makes the commands that store events.

    Args:
        keys: its names.
        settings: its lives and caps.
    """

    def __init__(self, keys: Keys, settings: StoreSettings) -> None:
        self.keys = keys
        self.settings = settings
        self.append_limits: tuple[Argument, ...] = (
            settings.retention_ms,
            settings.dedupe_ms,
            settings.live_ttl_ms,
            settings.max_stream_entries,
            settings.max_stream_bytes,
            settings.stream_full_policy.value,
        )

    def append(self, event: Append) -> Command[Appended]:
        """Store one event."""
        step = event.step
        if step is None:
            used, given = self.of_event(event)
            return evalsha(
                "append",
                (*self.shared_keys(event), *used),
                (*self.append_limits, *given),
                lambda reply, primary: self._all_appended((event,), reply, primary)[0],
                pinned=True,
            )

        def parse_step(reply: Any, primary: str) -> Appended | StoreError:
            if reply[0] in (b"out_of_order", b"run_closed"):
                return step_refused(step, reply)
            return self._appended(event, reply, primary)

        used, given = self.of_event(event)
        operators = self.keys.user(event.user).partition.operators
        return evalsha(
            "append_run",
            (*self.shared_keys(event), *used, self.keys.run(event.user, step.run), operators),
            (*self.append_limits, *given, *step_arguments(step, event.event)),
            parse_step,
            pinned=True,
        )

    def append_many(self, events: Sequence[Append]) -> Command[list[Appended | StoreError]]:
        """Store events that are no steps of runs, in their order; the slots do not matter, as for reads."""
        used: list[str] = [*self.shared_keys(events[0])]
        given: list[Argument] = [*self.append_limits]
        for event in events:
            keys, arguments = self.of_event(event)
            used += keys
            given += arguments

        def parse(reply: Any, primary: str) -> list[Appended | StoreError]:
            return self._all_appended(events, reply, primary)

        return evalsha("append", used, given, parse, pinned=True)

    def shared_keys(self, first: Append) -> tuple[str, str]:
        """The keys, of the first event's partition, with which those of every script begin that stores events."""
        partition = self.keys.user(first.user).partition
        return partition.counts, partition.paused

    def of_event(self, event: Append) -> tuple[tuple[str, ...], tuple[Argument, ...]]:
        """The keys and the arguments that an event has in every script that stores one, after `shared_keys` and
        `append_limits`.
        """
        keys = self.keys.user(event.user)
        partition, demand = keys.partition, event.demand
        used = (
            keys.stream,
            keys.live,
            partition.bucket_even,
            partition.bucket_odd,
            keys.threads,
            partition.due,
            partition.waiting,
        )
        return used, (
            idempotency_field(event.user, event.event),
            event.body,
            event.user,
            partition.channel,
            event.type,
            event.thread or "",
            "" if demand is None else demand.level.value,
            "" if demand is None else demand.within_ms,
        )

    def _all_appended(self, events: Sequence[Append], reply: Any, primary: str) -> list[Appended | StoreError]:
        """The answer of append.lua."""
        words = iter(reply)
        return [
            # Nearly always: the entry, and how many nodes were woken.
            Appended(entry=EntryId(word.decode()), duplicate=False, primary=primary, woken=next(words))
            if word.__class__ is bytes
            else self._appended(event, word, primary)
            for event, word in zip(events, words, strict=True)
        ]

    def _appended(self, event: Append, reply: Any, primary: str) -> Appended | StoreError:
        """The answer for one event."""
        if isinstance(reply, Exception):
            return translate(reply)
        outcome = reply[0]
        if outcome == b"stored":
            return Appended(entry=EntryId(reply[1].decode()), duplicate=False, primary=primary, woken=reply[2])
        if outcome == b"duplicate":
            return Appended(entry=EntryId(reply[1].decode()), duplicate=True, primary=primary)
        if outcome == b"paused":
            return TypePaused(f"events of the type {event.type} are paused by an operator: `eventbus paused` says why")
        return StreamFull(
            f"the stream of {event.user} holds {reply[1]} entries that sessions still need, at most"
            f" {self.settings.max_stream_entries} entries and {self.settings.max_stream_bytes} bytes are allowed;"
            " publish again when some are acked"
        )
