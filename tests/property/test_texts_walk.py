"""Token streams, walked: an agent writes, the store loses and repeats, nodes read, let go and miss messages, clients
lag and move. Whatever happens, what a client hands out is a beginning of the text, without repeats or holes, and at the
end all of it.

The parts are the real pure ones: `Outgoing`, a node's `Texts`, a client's `Texts`. The store between them is a model of
text_append.lua and text_close.lua, which the contract tests hold to the same answers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eventbus.ids import EntryId, RunId, ThreadId, UserId, entry_order
from eventbus.store.texts import OpenText, TextDelta, TextOutcome
from eventbus.text import Outgoing, Piece
from eventbus.text import Texts as Followed
from gateway.delivery.texts import RunTexts, Texts

USER = UserId("ann")
RUNS = (RunId("run_1"), RunId("run_2"))
FATES = ("stored", "stored", "reply lost", "request lost")
CLIENTS = 3
NODES = 2


class Store:
    """The log of each run and the index."""

    def __init__(self) -> None:
        self.logs: dict[RunId, list[TextDelta]] = {run: [] for run in RUNS}
        self.index: dict[tuple[RunId, str], tuple[int, bool]] = {}
        self.entries = 0

    def _add(self, run: RunId, stream: str, offset: int, text: str, *, last: bool) -> None:
        self.entries += 1
        entry = EntryId(f"{self.entries * 1_000}-0")
        thread = ThreadId("trip") if offset == 0 else None
        self.logs[run].append(TextDelta(id=entry, stream=stream, offset=offset, text=text, last=last, thread=thread))

    def append(self, run: RunId, stream: str, piece: Piece) -> tuple[TextOutcome, int]:
        length, ended = self.index.get((run, stream), (0, False))
        known = (run, stream) in self.index
        end = piece.offset + len(piece.text)
        if ended:
            return (TextOutcome.DUPLICATE if end <= length else TextOutcome.ENDED), length
        if known and end <= length and not piece.last:
            return TextOutcome.DUPLICATE, length
        if piece.offset != length:
            return TextOutcome.ELSEWHERE, length
        if not piece.text and not piece.last:
            return TextOutcome.DUPLICATE, length
        self._add(run, stream, piece.offset, piece.text, last=piece.last)
        self.index[run, stream] = end, piece.last
        return TextOutcome.STORED, end

    def close(self, run: RunId, stream: str) -> None:
        length, ended = self.index.pop((run, stream), (0, True))
        if not ended:
            self._add(run, stream, length, "", last=True)

    def read(self, run: RunId, after: EntryId, count: int) -> tuple[list[TextDelta], bool]:
        found = [delta for delta in self.logs[run] if entry_order(delta.id) > entry_order(after)][:count]
        return found, len(found) >= count

    def opened(self) -> list[OpenText]:
        return [
            OpenText(run=run, stream=stream, length=length, entry=EntryId("1-0"), ended=ended)
            for (run, stream), (length, ended) in self.index.items()
        ]

    def flush(self) -> None:
        self.logs = {run: [] for run in RUNS}
        self.index.clear()


@dataclass(eq=False)
class Client:
    """An application behind a subscriber. `has` is what it put together."""

    followed: Followed = field(default_factory=Followed)
    has: dict[tuple[RunId, str], str] = field(default_factory=dict)
    ended: set[tuple[RunId, str]] = field(default_factory=set)
    node: int | None = None
    ready: bool = True
    events: int = 0

    def take(self) -> None:
        while (chunk := self.followed.take()) is not None:
            key = chunk.run, chunk.stream
            assert key not in self.ended, "nothing follows the end"
            assert chunk.offset == len(self.has.get(key, "")), "no repeat and no hole"
            self.has[key] = self.has.get(key, "") + chunk.text
            if chunk.final:
                self.ended.add(key)


class Walk:
    """All parts, and what happens to them; each step is told by two numbers and a text."""

    def __init__(self) -> None:
        self.store = Store()
        self.out: dict[tuple[RunId, str], Outgoing] = {}
        self.closed: set[tuple[RunId, str]] = set()
        self.whole: list[tuple[RunId, str, str]] = []  # the events, in order
        self.clients = [Client() for _ in range(CLIENTS)]
        self.nodes: list[Texts[Client]] = [self._node() for _ in range(NODES)]
        self.unread: list[dict[RunTexts, None]] = [{} for _ in range(NODES)]
        for number in range(CLIENTS):
            self.connect(number, number % NODES, looks=True)

    def _node(self) -> Texts[Client]:
        return Texts(
            wants=lambda client, run, thread: thread == "trip",
            may_want=lambda client, run: True,
            is_ready=lambda client: client.ready,
        )

    # --- the agent ----------------------------------------------------------------------------------------------------

    def write(self, run: RunId, stream: str, text: str) -> None:
        if (run, stream) not in self.closed:
            out = self.out.setdefault((run, stream), Outgoing(stream, flush_ms=0, flush_bytes=1, max_bytes=10_000))
            out.write(text, 0)

    def stream_on(self, run: RunId, stream: str, parts: list[str]) -> None:
        """As it is on a good day: each part is stored, and every node hears of it."""
        for part in parts:
            self.write(run, stream, part)
            if (run, stream) in self.out:
                self._store((run, stream))
            for number in range(NODES):
                self._read(number)

    def store_piece(self, number: int, fate: str) -> None:
        if self.out:
            self._store(sorted(self.out)[number % len(self.out)], fate)

    def _store(self, key: tuple[RunId, str], fate: str = "stored") -> None:
        out = self.out[key]
        if out.due_ms(0) is None:
            return
        piece = out.take()
        if fate == "request lost":
            return
        outcome, length = self.store.append(*key, piece)
        self._tell(key[0])
        if fate == "reply lost":
            return
        if outcome is TextOutcome.ELSEWHERE:
            out.wanted_from(length)
        else:
            out.has_stored(piece, length)

    def leave_stream(self, number: int) -> None:
        if self.out:
            self._leave(sorted(self.out)[number % len(self.out)])

    def _leave(self, key: tuple[RunId, str]) -> None:
        out = self.out.pop(key)
        out.close()
        self.out[key] = out
        while not out.is_done:
            self._store(key)
        del self.out[key]
        self.closed.add(key)
        if len(out):
            self.whole.append((*key, out.text))
        self.store.close(*key)
        self._tell(key[0])

    # --- what goes wrong in the store and on the way ------------------------------------------------------------------

    def lose_the_data(self) -> None:
        """The store comes back empty; nodes subscribe again."""
        self.store.flush()
        for number in range(NODES):
            self._subscribed(number)

    def subscribe_again(self, number: int) -> None:
        self._subscribed(number)

    def _subscribed(self, number: int) -> None:
        for run in list(self.nodes[number].runs):
            self.nodes[number].again(run)
            self.unread[number][run] = None
        self._look(number)

    def miss_messages(self, number: int) -> None:
        self.unread[number].clear()

    # --- the nodes ----------------------------------------------------------------------------------------------------

    def _tell(self, run: RunId) -> None:
        for number, node in enumerate(self.nodes):
            followed = node.follow(USER, run)
            if followed is not None:
                self.unread[number][followed] = None

    def read(self, number: int, count: int) -> None:
        self._read(number, count)

    def _read(self, number: int, count: int = 1_000) -> None:
        node = self.nodes[number]
        for run in list(self.unread[number]):
            del self.unread[number][run]
            if node.run(USER, run.run) is not run:
                continue
            deltas, more = self.store.read(run.run, run.cursor, count)
            if node.took(run, deltas, more=more):
                node.again(run)
                self.unread[number][run] = None
                continue
            if more:
                self.unread[number][run] = None
            self._serve(number, run)

    def _serve(self, number: int, run: RunTexts, only: Client | None = None) -> None:
        node = self.nodes[number]
        parts, missing = node.owed(run, only)
        for client, part in parts:
            assert client.node == number
            assert client.ready
            assert client.followed.came(part.run, part.stream, part.offset, part.text, final=part.final), "a hole"
            client.take()
        if missing:
            node.again(run)
            self.unread[number][run] = None

    def sweep(self, number: int) -> None:
        for run in self.nodes[number].runs:
            self.unread[number][run] = None
        self._look(number)

    def _look(self, number: int) -> None:
        for run in self.nodes[number].opened(USER, self.store.opened()):
            self.unread[number][run] = None

    def let_go(self, number: int, most: int) -> None:
        node = self.nodes[number]
        node.shrink(most)
        # Beyond that is what is being read for the first time: let go, it would be read from its beginning again.
        reading = sum(run.held_bytes for run in node.runs if run.from_start)
        assert node.held_bytes <= max(most, reading)

    # --- the clients --------------------------------------------------------------------------------------------------

    def connect(self, client: int, number: int, looks: bool) -> None:
        one = self.clients[client]
        self._disconnect(one)
        one.node, one.ready = number, True
        self._events(one)
        self.nodes[number].join(USER, one)
        if looks:
            self._look(number)
        else:
            self.unread[number].update(dict.fromkeys(self.nodes[number].of_user(USER)))

    def drop(self, client: int) -> None:
        self._disconnect(self.clients[client])

    def _disconnect(self, client: Client) -> None:
        if client.node is not None:
            self.nodes[client.node].leave(USER, client)
            client.node = None

    def lag(self, client: int) -> None:
        self.clients[client].ready = False

    def read_again(self, client: int) -> None:
        self._ready(self.clients[client])

    def _ready(self, client: Client) -> None:
        client.ready = True
        if client.node is not None:
            for run in self.nodes[client.node].of_user(USER):
                self._serve(client.node, run, client)

    def get_events(self, client: int) -> None:
        if self.clients[client].node is not None:
            self._events(self.clients[client])

    def _events(self, client: Client) -> None:
        for run, stream, text in self.whole[client.events :]:
            client.followed.completed(run, {"stream": stream, "text": text})
        client.events = len(self.whole)
        client.take()

    # --- what must hold -----------------------------------------------------------------------------------------------

    def what_a_client_has_is_a_beginning_of_the_text(self) -> None:
        texts = {(run, stream): text for run, stream, text in self.whole}
        texts |= {key: out.text for key, out in self.out.items()}
        for client in self.clients:
            for key, text in client.has.items():
                assert texts[key].startswith(text)
                assert key not in client.ended or texts[key] == text

    def the_size_that_a_node_counts_is_that_of_what_it_holds(self) -> None:
        for node in self.nodes:
            sizes = [sum(stream.held_bytes for stream in run.streams.values()) for run in node.runs]
            assert node.held_bytes == sum(sizes)

    def end(self) -> None:
        for key in sorted(self.out):
            while self.out[key].due_ms(0) is not None:
                self._store(key)
        for client in self.clients:
            self._ready(client)
        self._settle()
        for client in self.clients:
            for key, (length, _) in self.store.index.items():
                if client.node is not None:
                    assert len(client.has.get(key, "")) >= length, "all that is stored of an open stream has been sent"
        for key in sorted(self.out):
            self._leave(key)
        self._settle()
        for client in self.clients:
            self._events(client)
            assert client.has == {(run, stream): text for run, stream, text in self.whole}
            assert client.ended == set(client.has)

    def _settle(self) -> None:
        for number in range(NODES):
            self._look(number)
            while self.unread[number]:
                self._read(number)
                if not self.unread[number]:
                    break
        for client in self.clients:
            self._ready(client)
        for number in range(NODES):
            while self.unread[number]:
                self._read(number)


STEPS: Final[Sequence[tuple[int, Callable[[Walk, int, int, str], None]]]] = (
    (8, lambda walk, a, b, text: walk.stream_on(*key_of(a), [text or "x"] * (1 + b % 4))),
    (3, lambda walk, a, b, text: walk.write(*key_of(a), text)),
    (3, lambda walk, a, b, text: walk.store_piece(a, FATES[b % len(FATES)])),
    (1, lambda walk, a, b, text: walk.leave_stream(a)),
    (1, lambda walk, a, b, text: walk.lose_the_data()),
    (1, lambda walk, a, b, text: walk.subscribe_again(a % NODES)),
    (1, lambda walk, a, b, text: walk.miss_messages(a % NODES)),
    (4, lambda walk, a, b, text: walk.read(a % NODES, 1 + b % 4)),
    (2, lambda walk, a, b, text: walk.sweep(a % NODES)),
    (3, lambda walk, a, b, text: walk.let_go(a % NODES, b)),
    (3, lambda walk, a, b, text: walk.connect(a % CLIENTS, b % NODES, looks=b % 3 > 0)),
    (1, lambda walk, a, b, text: walk.drop(a % CLIENTS)),
    (3, lambda walk, a, b, text: walk.lag(a % CLIENTS)),
    (3, lambda walk, a, b, text: walk.read_again(a % CLIENTS)),
    (2, lambda walk, a, b, text: walk.get_events(a % CLIENTS)),
)
KINDS: Final = [number for number, (weight, _) in enumerate(STEPS) for _ in range(weight)]


def key_of(number: int) -> tuple[RunId, str]:
    return RUNS[number % 2], ("text", "two")[number // 2 % 2]


@pytest.mark.requirement("R19")
@settings(max_examples=150, suppress_health_check=list(HealthCheck))
@given(
    st.lists(
        st.tuples(st.sampled_from(KINDS), st.integers(0, 11), st.integers(0, 11), st.text(max_size=3)),
        min_size=30,
        max_size=150,
    )
)
def test_what_a_client_hands_out_is_the_text_whatever_happens(steps: list[tuple[int, int, int, str]]) -> None:
    walk = Walk()
    for kind, a, b, text in steps:
        STEPS[kind][1](walk, a, b, text)
        walk.what_a_client_has_is_a_beginning_of_the_text()
        walk.the_size_that_a_node_counts_is_that_of_what_it_holds()
    walk.end()
