"""What an operator asks for, checked: the same for the command, the admin API and the console. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from eventbus.errors import InvalidField
from eventbus.ids import (
    EntryId,
    NodeName,
    SessionId,
    UserId,
    entry_order,
    parse_entry_id,
    parse_node_name,
    parse_session_id,
    parse_user_id,
)
from eventbus.schemas import BUILT_IN_TYPES

__all__ = ["REASON_CHARACTERS_MAX", "Action", "Asked", "DeadFilter", "ReplayTo", "action_asked_for"]

REASON_CHARACTERS_MAX: Final = 256
_LISTED_MAX: Final = 1_000
_NO_USER: Final = UserId("")
_NO_SESSION: Final = SessionId("")
_NO_NODE: Final = NodeName("")
_TYPE: Final = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
_LETTER: Final = re.compile(r"[0-9]{1,6}:\S{1,41}")


class Action(StrEnum):
    """What can be done."""

    REDELIVER = "redeliver"
    SKIP = "skip"
    DEAD_LETTER = "dead_letter"
    REPLAY = "replay"
    DROP = "drop"
    END_SESSION = "end_session"
    DRAIN = "drain"
    UNDRAIN = "undrain"
    PURGE = "purge"
    PAUSE = "pause"
    RESUME = "resume"


class ReplayTo(StrEnum):
    """Who gets the event of a dead letter: the session that did not take it, while it and the entry are there; or every
    session of the user, for it is published again.
    """

    SESSION = "session"
    EVERYONE = "everyone"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadFilter:
    """Which dead letters are meant; what is empty does not narrow them. Times are Unix milliseconds."""

    user: UserId | None = None
    session: str = ""
    type: str = ""
    reason: str = ""
    since_ms: int = 0
    until_ms: int = 0

    def matches(self, *, session: str, type: str, reason: str, time_ms: int) -> bool:
        """Whether a letter of the user, given up since then, is meant."""
        return (
            self.session in ("", session)
            and self.type in ("", type)
            and self.reason in ("", reason)
            and (not self.until_ms or time_ms < self.until_ms)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """An action that is asked for. Which of the fields it needs follows from the action; `action_asked_for` checks.

    Attributes:
        entries: of the session; all that are pending for it when empty.
        letters: ids of dead letters; those that `dead` means when empty.
        reason: why, for the audit log.
    """

    action: Action
    user: UserId = _NO_USER
    session: SessionId = _NO_SESSION
    entries: Sequence[EntryId] = ()
    letters: Sequence[str] = ()
    dead: DeadFilter | None = None
    to: ReplayTo = ReplayTo.SESSION
    node: NodeName = _NO_NODE
    type: str = ""
    reason: str = ""

    def about(self) -> dict[str, object]:
        """What it is about, for the audit log and for people; without what is empty, and of long lists the number."""
        found: dict[str, object] = {
            "user": self.user,
            "session": self.session,
            "node": self.node,
            "type": self.type,
            "entries": list(self.entries) if len(self.entries) <= 10 else len(self.entries),
            "letters": list(self.letters) if len(self.letters) <= 10 else len(self.letters),
        }
        if self.dead is not None:
            wanted = self.dead
            found["where"] = {
                name: value
                for name, value in (
                    ("user", wanted.user),
                    ("session", wanted.session),
                    ("type", wanted.type),
                    ("reason", wanted.reason),
                    ("since_ms", wanted.since_ms),
                    ("until_ms", wanted.until_ms),
                )
                if value
            }
        if self.action is Action.REPLAY:
            found["to"] = self.to.value
        # A filter that narrows nothing means all of them, which is to be seen.
        return {name: value for name, value in found.items() if value or name == "where"}


_FIELDS: Final[Mapping[Action, tuple[tuple[str, ...], tuple[str, ...]]]] = {
    Action.REDELIVER: (("user", "session"), ("entries",)),
    Action.SKIP: (("user", "session"), ("entries",)),
    Action.DEAD_LETTER: (("user", "session"), ("entries",)),
    Action.REPLAY: ((), ("letters", "where", "to")),
    Action.DROP: ((), ("letters", "where")),
    Action.END_SESSION: (("user", "session"), ()),
    Action.DRAIN: (("node",), ()),
    Action.UNDRAIN: (("node",), ()),
    Action.PURGE: (("user",), ()),
    Action.PAUSE: (("type",), ()),
    Action.RESUME: (("type",), ()),
}
"""What each action must be given, and may be."""


def action_asked_for(asked: Mapping[str, Any]) -> Asked:
    """An action out of the fields of a request, checked.

    Args:
        asked: `action`, `reason`, and the fields of that action. `where` is an object of `user`, `session`, `type`,
            `reason`, `since_ms` and `until_ms`; `{}` means every dead letter.

    Raises:
        InvalidField: a field is missing, wrong, or none of the action's.
    """
    try:
        action = Action(asked.get("action", ""))
    except ValueError:
        raise InvalidField("action", f"must be one of {', '.join(Action)}") from None
    needed, allowed = _FIELDS[action]
    for name in needed:
        if name not in asked:
            raise InvalidField(name, f"must be given: {action.value} is done to it")
    if unknown := sorted(set(asked) - {"action", "reason", *needed, *allowed}):
        raise InvalidField(unknown[0], f"is no field of {action.value}")
    if action in (Action.REPLAY, Action.DROP) and ("letters" in asked) == ("where" in asked):
        raise InvalidField("letters", "or `where` must be given, and not both: which dead letters are meant")
    return Asked(
        action=action,
        user=parse_user_id(asked["user"]) if "user" in asked else _NO_USER,
        session=parse_session_id(asked["session"]) if "session" in asked else _NO_SESSION,
        entries=sorted({parse_entry_id(one, "entries") for one in _listed(asked, "entries")}, key=entry_order),
        letters=[_letter(one) for one in _listed(asked, "letters")],
        dead=_filter(asked["where"]) if "where" in asked else None,
        to=_to(asked.get("to", ReplayTo.SESSION.value)),
        node=parse_node_name(asked["node"]) if "node" in asked else _NO_NODE,
        type=_type(asked["type"], action) if "type" in asked else "",
        reason=_text(asked, "reason"),
    )


def _listed(asked: Mapping[str, Any], name: str) -> list[object]:
    given = asked.get(name, [])
    if name in asked and (not isinstance(given, list) or not 0 < len(given) <= _LISTED_MAX):
        raise InvalidField(name, f"must be a list of 1 to {_LISTED_MAX}")
    return list(given)


def _letter(value: object) -> str:
    if not isinstance(value, str) or not _LETTER.fullmatch(value):
        raise InvalidField("letters", "must be ids of dead letters, such as 417:1732190000000-0")
    parse_entry_id(value.partition(":")[2], "letters")
    return value


def _filter(value: object) -> DeadFilter:
    if not isinstance(value, dict):
        raise InvalidField("where", "must be an object")
    names = ("user", "session", "type", "reason", "since_ms", "until_ms")
    if unknown := sorted(set(value) - set(names)):
        raise InvalidField(f"where.{unknown[0]}", f"is none of {', '.join(names)}")
    for name in ("since_ms", "until_ms"):
        if type(value.get(name, 0)) is not int or not 0 <= value.get(name, 0) < 2**53:
            raise InvalidField(f"where.{name}", "must be a time in Unix milliseconds")
    return DeadFilter(
        user=parse_user_id(value["user"], "where.user") if "user" in value else None,
        session=parse_session_id(value["session"], "where.session") if "session" in value else "",
        type=_text(value, "type", "where."),
        reason=_text(value, "reason", "where."),
        since_ms=value.get("since_ms", 0),
        until_ms=value.get("until_ms", 0),
    )


def _to(value: object) -> ReplayTo:
    try:
        return ReplayTo(str(value))
    except ValueError:
        raise InvalidField("to", f"must be one of {', '.join(ReplayTo)}") from None


def _type(value: object, action: Action) -> str:
    if not isinstance(value, str) or not _TYPE.fullmatch(value):
        raise InvalidField("type", "is no type of an event")
    if action is Action.PAUSE and value in BUILT_IN_TYPES:
        raise InvalidField("type", f"{value} is one of the library's own: runs and questions could not end without it")
    return value


def _text(asked: Mapping[str, Any], name: str, prefix: str = "") -> str:
    value = asked.get(name, "")
    if not isinstance(value, str) or len(value) > REASON_CHARACTERS_MAX:
        raise InvalidField(f"{prefix}{name}", f"must be a text of at most {REASON_CHARACTERS_MAX} characters")
    return value
