"""Where a store's data lies, for tests that look at it beside the store: one server, a Cluster, a Sentinel set."""

from __future__ import annotations

from collections.abc import Callable, Sequence


class Place:
    """The servers that hold a store's data, for an administrator.

    Args:
        primaries: says the URLs of all servers that take writes now.
        owner: says which of them has a key.
    """

    def __init__(self, primaries: Callable[[], Sequence[str]], owner: Callable[[str], str]) -> None:
        self.primaries = primaries
        self.owner = owner

    @classmethod
    def single(cls, url: str) -> Place:
        """One server."""
        return cls(lambda: [url], lambda _key: url)
