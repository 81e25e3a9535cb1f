"""Where the tokens of a subscriber come from."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import Final

from eventbus.client.callbacks import told
from eventbus.clock import seconds
from eventbus.errors import InvalidField, TokenFailed

__all__ = ["TokenSource", "Tokens"]

TOKEN_TIMEOUT_MS: Final = 30_000

TokenSource = str | Callable[[], str | Awaitable[str]]


class Tokens:
    """Where tokens come from, and how many the node refused in a row."""

    def __init__(self, source: TokenSource) -> None:
        unchecked: object = source
        if not callable(unchecked) and not _is_token(unchecked):
            raise InvalidField("token", "must be a JWT, or a function that gives one")
        self._source = source
        self._refused = 0

    @property
    def renewable(self) -> bool:
        """Whether there is a callback."""
        return callable(self._source)

    @property
    def fresh(self) -> bool:
        """Whether another token makes sense: two in a row that were refused say that none will do."""
        return self.renewable and self._refused < 2

    def refused(self) -> None:
        """The node refused a token."""
        self._refused += 1

    def accepted(self) -> None:
        """The node took one."""
        self._refused = 0

    async def get(self) -> str:
        """A token: the given one, or a new one of the callback, which has 30 s.

        Raises:
            TokenFailed: the callback raised, or gave no token.
        """
        if isinstance(self._source, str):
            return self._source.strip()
        try:
            async with asyncio.timeout(seconds(TOKEN_TIMEOUT_MS)):
                given = self._source()
                token: object = await given if inspect.isawaitable(given) else given
        except Exception as error:
            raise TokenFailed(f"the token callback gave no token: {told(error)}") from error
        if not isinstance(token, str) or not _is_token(token):
            raise TokenFailed(f"the token callback gave no token, but {type(token).__name__} that is none")
        return token.strip()


def _is_token(value: object) -> bool:
    """Whether it can stand in a header. A line's end behind it, as a file has it, is no part of it."""
    if not isinstance(value, str):
        return False
    token = value.strip()
    return bool(token) and token.isascii() and token.isprintable() and " " not in token
