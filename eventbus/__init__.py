"""A Redis-backed event bus with delivery guarantees: what agents, tools and operators import.

The names below are the public ones of the package. They are imported when they are first used, so `import eventbus`
costs next to nothing and a subscriber does not load what only a publisher needs.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eventbus.breaker import BreakerState as BreakerState
    from eventbus.bus import Bus as Bus
    from eventbus.commands.reader import Command as Command
    from eventbus.commands.reader import Commands as Commands
    from eventbus.config import Settings as Settings
    from eventbus.confirmation import Confirmation as Confirmation
    from eventbus.errors import AnswerRefused as AnswerRefused
    from eventbus.errors import AnswerTimeout as AnswerTimeout
    from eventbus.errors import BreakerOpen as BreakerOpen
    from eventbus.errors import CommandRefused as CommandRefused
    from eventbus.errors import ConfigError as ConfigError
    from eventbus.errors import ConfirmationTimeout as ConfirmationTimeout
    from eventbus.errors import EventBusError as EventBusError
    from eventbus.errors import InvalidEvent as InvalidEvent
    from eventbus.errors import NotReplicated as NotReplicated
    from eventbus.errors import PartialPublish as PartialPublish
    from eventbus.errors import PublishTimeout as PublishTimeout
    from eventbus.errors import QuestionClosed as QuestionClosed
    from eventbus.errors import RunCancelled as RunCancelled
    from eventbus.errors import RunClosed as RunClosed
    from eventbus.errors import RunMisused as RunMisused
    from eventbus.errors import RunTimeout as RunTimeout
    from eventbus.errors import SendTimeout as SendTimeout
    from eventbus.errors import StoreBusy as StoreBusy
    from eventbus.errors import StoreError as StoreError
    from eventbus.errors import StoreFull as StoreFull
    from eventbus.errors import StoreUnavailable as StoreUnavailable
    from eventbus.errors import StreamFull as StreamFull
    from eventbus.event import Deliver as Deliver
    from eventbus.event import Event as Event
    from eventbus.event import Level as Level
    from eventbus.event import Require as Require
    from eventbus.event import make_event as make_event
    from eventbus.events import Outcome as Outcome
    from eventbus.presence import Presence as Presence
    from eventbus.publishing.receipt import PublishStatistics as PublishStatistics
    from eventbus.publishing.receipt import Receipt as Receipt
    from eventbus.publishing.receipt import Receipts as Receipts
    from eventbus.rates import Rates as Rates
    from eventbus.runs import Run as Run
    from eventbus.runs import Tool as Tool
    from eventbus.runs.confirmations import RunConfirmation as RunConfirmation
    from eventbus.runs.inbound import Cancelled as Cancelled
    from eventbus.schemas import Schema as Schema
    from eventbus.schemas import Schemas as Schemas
    from eventbus.store import Durability as Durability
    from eventbus.streaming import TextStream as TextStream
    from eventbus.subscriber import Subscriber as Subscriber
    from eventbus.text import Chunk as Chunk

_HOMES = {
    "Bus": "bus",
    "Subscriber": "subscriber",
    "Settings": "config",
    "Receipt": "publishing.receipt",
    "Receipts": "publishing.receipt",
    "Presence": "presence",
    "Rates": "rates",
    "RunConfirmation": "runs.confirmations",
    "Run": "runs",
    "Tool": "runs",
    "Cancelled": "runs.inbound",
    "Commands": "commands.reader",
    "Command": "commands.reader",
    "TextStream": "streaming",
    "Chunk": "text",
    "Outcome": "events",
    "PublishStatistics": "publishing.receipt",
    "Confirmation": "confirmation",
    "BreakerState": "breaker",
    "Durability": "store",
    "Event": "event",
    "make_event": "event",
    "Deliver": "event",
    "Level": "event",
    "Require": "event",
    "Schema": "schemas",
    "Schemas": "schemas",
    "EventBusError": "errors",
    "ConfigError": "errors",
    "InvalidEvent": "errors",
    "PublishTimeout": "errors",
    "AnswerRefused": "errors",
    "AnswerTimeout": "errors",
    "CommandRefused": "errors",
    "QuestionClosed": "errors",
    "RunCancelled": "errors",
    "SendTimeout": "errors",
    "RunClosed": "errors",
    "RunMisused": "errors",
    "RunTimeout": "errors",
    "BreakerOpen": "errors",
    "NotReplicated": "errors",
    "ConfirmationTimeout": "errors",
    "PartialPublish": "errors",
    "StoreError": "errors",
    "StoreUnavailable": "errors",
    "StoreBusy": "errors",
    "StoreFull": "errors",
    "StreamFull": "errors",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'eventbus' has no attribute {name!r}")
    value = getattr(import_module(f"eventbus.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
