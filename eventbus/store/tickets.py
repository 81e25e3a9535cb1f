"""Single-use tickets: a record and a Protocol. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

__all__ = [
    "Ticket",
    "TicketStore",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticket:
    """What a single-use ticket stands for: the claims of the token that made it, as an opaque JSON text."""

    ticket: str
    claims: str
    life_ms: int


class TicketStore(Protocol):
    """What stands for a token, once."""

    async def put_ticket(self, ticket: Ticket) -> None:
        """Keeps a ticket for its life."""

    async def take_ticket(self, ticket: str) -> str | None:
        """Burns a ticket; returns its claims the first time, None ever after. Redis: GETDEL."""
