"""What is proven of one part of the store: that a write, a read and a wake-up go through it. Pure; `now_ms` is
monotonic time.
"""

from __future__ import annotations

from typing import Final

__all__ = ["DEAF_AFTER_MS", "Proof"]

PROOF_LIFE_PROBES: Final = 2
"""A proof older than so many probes counts no more."""

DEAF_AFTER_MS: Final = 3_000
"""A wake-up that is so late makes the node look after its sessions by itself. Not sooner: in a storm a wake-up waits
for its turn in the loop, and a node that is only busy must not be given more to do.
"""

SLACK_MS: Final = 500
"""What a probe may take beside: the loop is busy, or Redis is."""


class Proof:
    """The probes of one part.

    Args:
        probe_ms: time between two probes.
        now_ms: when the first one begins.

    Attributes:
        life_ms: a proof older than this counts no more.
        proven_ms: when the youngest probe that came back was written; None before the first.
        last_word: what became of the last probe, for people.
    """

    __slots__ = (
        "_missed",
        "_missed_since_ms",
        "_probe_ms",
        "_refused_since_ms",
        "_sent",
        "_unheard_ms",
        "_written_ms",
        "last_word",
        "life_ms",
        "proven_ms",
    )

    def __init__(self, probe_ms: int, now_ms: int) -> None:
        self._probe_ms = probe_ms
        self._sent: dict[str, int] = {}
        self._written_ms = now_ms
        self._unheard_ms: int | None = None
        self._missed = 0
        self._missed_since_ms = now_ms
        self._refused_since_ms: int | None = None
        self.life_ms = PROOF_LIFE_PROBES * probe_ms + SLACK_MS
        self.proven_ms: int | None = None
        self.last_word = "no probe has come back yet"

    # --- what happens -----------------------------------------------------------------------------------------------

    def sends(self, token: str, now_ms: int) -> None:
        """A probe goes out."""
        # A wake-up may be later than the next probe, and still proves the path; one that is too old proves nothing.
        self._sent = {known: at_ms for known, at_ms in self._sent.items() if now_ms - at_ms <= self.life_ms}
        self._sent[token] = now_ms

    def wrote(self, token: str, now_ms: int) -> None:
        """The store answered a probe: it wrote it and read it."""
        self._written_ms = now_ms
        self._refused_since_ms = None
        sent_ms = self._sent.get(token)
        if sent_ms is not None:
            self._unheard_ms = sent_ms if self._unheard_ms is None else self._unheard_ms
            self._missed_since_ms = sent_ms if not self._missed else self._missed_since_ms
            self._missed += 1
        self.last_word = "the wake-up of the last probe has not come: the node is deaf"

    def failed(self, why: str) -> None:
        """The store did not answer a probe."""
        self.last_word = why
        self._refused_since_ms = None

    def refused(self, why: str, now_ms: int) -> None:
        """The store answered that it can not do that."""
        self.last_word = why
        if self._refused_since_ms is None:
            self._refused_since_ms = now_ms

    def came(self, token: str) -> bool:
        """A wake-up of a probe came. Returns whether it is one of this part."""
        sent_ms = self._sent.pop(token, None)
        if sent_ms is None:
            return False
        # What is proven is the path at the moment when the probe was written.
        self.proven_ms = max(sent_ms, self.proven_ms or 0)
        self._unheard_ms = None
        self._missed = 0
        return True

    def unsubscribed(self, now_ms: int) -> None:
        """The subscription was lost: the node is deaf from this moment."""
        self._unheard_ms = now_ms - DEAF_AFTER_MS

    def stood_still(self, by_ms: int) -> None:
        """The node stood still for so long: the store is not to blame for that (D23)."""
        self._written_ms += by_ms
        self._missed_since_ms += by_ms

    # --- how it stands ----------------------------------------------------------------------------------------------

    def problem(self, now_ms: int) -> str | None:
        """Why the part is not proven; None when it is."""
        if self.proven_ms is None:
            return self.last_word
        age_ms = now_ms - self.proven_ms
        return f"no probe came back for {age_ms} ms: {self.last_word}" if age_ms > self.life_ms else None

    def failed_ms(self, now_ms: int) -> int:
        """For how long no write and read went through; 0 while they do."""
        silent_ms = now_ms - self._written_ms
        return silent_ms if silent_ms > self.life_ms else 0

    def refused_ms(self, now_ms: int) -> int:
        """For how long every probe was answered, and refused; 0 when not."""
        return 0 if self._refused_since_ms is None else now_ms - self._refused_since_ms

    def is_deaf(self, now_ms: int) -> bool:
        """Whether the store answers and its wake-ups do not come."""
        if self._unheard_ms is None or self.failed_ms(now_ms):
            return False
        return now_ms - self._unheard_ms >= DEAF_AFTER_MS

    def is_long_deaf(self, now_ms: int) -> bool:
        """Whether the store goes on answering, and its wake-ups have not come for the life of a proof. One that is away
        may have taken a single wake-up along; that is not meant.
        """
        if self._missed < 2 or self.failed_ms(now_ms):
            return False
        return now_ms - self._missed_since_ms > self.life_ms - self._probe_ms
