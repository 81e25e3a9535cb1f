"""The demo agent's tools. Each reads a text and returns what it found there; nothing is made up, nothing is remembered.

Pure: the agent reads the file and gives its bytes.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

__all__ = [
    "Text",
    "ToolError",
    "answer",
    "count_words",
    "describe",
    "keywords",
    "label",
    "passages",
    "read_part",
    "search",
]

PARTS_MAX: Final = 6
KEYWORDS_MAX: Final = 4
MATCHES_SHOWN: Final = 5
WORDS_SHOWN: Final = 8
SNIPPET_CHARACTERS: Final = 160
LABEL_CHARACTERS: Final = 72
PASSAGE_LINES: Final = 3
PASSAGES_MAX: Final = 3

_WORD: Final = re.compile(r"[^\W_]+(?:['\u2019][^\W_]+)*")
_QUOTED: Final = re.compile(r"[\"\u201c\u201e]([^\"\u201c\u201d\u201e]{2,60})[\"\u201d\u201c]")
_STOP: Final = frozenset(
    """a about above after again all also always am an and any are as at away be because been before being below between
    both but by came can come could did do does doing down during each every few find file for from further get go goes
    had has have having he her here hers him his how however i if in into is it its just know like made make many may me
    more most much must my never no nor not now of off often on once one only or other our out over own put said same
    say says see she should so some such tell text than that the their them then there these they this those through
    time times to too two three until up upon us very was we were what when where which while who whom why will with
    word words would you your happen happened happens occur occurs appear appears mention mentioned mentions count
    """.split()  # noqa: SIM905 - a list of 150 strings is harder to read
)


class ToolError(Exception):
    """A tool can not do what it was asked; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """A file as the tools see it: its name and its lines."""

    name: str
    size_bytes: int
    lines: tuple[str, ...]

    @classmethod
    def from_bytes(cls, name: str, content: bytes) -> Text:
        """Raises: ToolError: it is empty, or no text in UTF-8."""
        if b"\0" in content:
            raise ToolError(f"{name} is no text: it holds zero bytes")
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ToolError(f"{name} is no text in UTF-8: see its byte {error.start}") from None
        if not text.strip():
            raise ToolError(f"{name} is empty")
        return cls(name=name, size_bytes=len(content), lines=tuple(text.splitlines()))

    @property
    def parts(self) -> list[tuple[int, int]]:
        """First and last line (from 1) of up to six parts of about the same length, cut at blank lines if it can be."""
        count = max(1, min(PARTS_MAX, len(self.lines) // 8))
        cuts = [0]
        for number in range(1, count):
            wanted = number * len(self.lines) // count
            near = range(max(cuts[-1] + 1, wanted - 6), min(len(self.lines), wanted + 6))
            blank = [index for index in near if not self.lines[index].strip()]
            cuts.append(min(blank, key=lambda index: abs(index - wanted)) if blank else wanted)
        ends = [*cuts[1:], len(self.lines)]
        return [(first + 1, last) for first, last in zip(cuts, ends, strict=True) if last > first]


def keywords(question: str) -> list[str]:
    """What a question asks for: its quoted phrases, then its words but the very common, four at most."""
    found = [phrase.strip().lower() for phrase in _QUOTED.findall(question)]
    rest = _QUOTED.sub(" ", question)
    found += [word for word in _words(rest) if len(word) > 2 and word not in _STOP]
    return list(dict.fromkeys(word for word in found if word))[:KEYWORDS_MAX]


def describe(text: Text) -> dict[str, Any]:
    """The size of a file, and its first line."""
    return {
        "lines": len(text.lines),
        "words": sum(len(_words(line)) for line in text.lines),
        "bytes": text.size_bytes,
        "first_line": _snippet(next(line for line in text.lines if line.strip())),
    }


def read_part(text: Text, first: int, last: int, terms: Sequence[str]) -> dict[str, Any]:
    """Reads some lines: how many words they have, and how often each term occurs in them."""
    lines = "\n".join(text.lines[first - 1 : last])
    found: dict[str, Any] = {"words": len(_words(lines))}
    return found | {f"\u201c{term}\u201d": len(_pattern(term).findall(lines)) for term in terms}


def search(text: Text, term: str) -> dict[str, Any]:
    """Every place of a word, with its usual endings, or of a phrase: the count, and the first lines in full."""
    joined = "\n".join(text.lines)
    # In the whole and not line by line, for a phrase may go over the end of a line.
    places = [joined.count("\n", 0, match.start()) + 1 for match in _pattern(term).finditer(joined)]
    shown = list(dict.fromkeys(places))[:MATCHES_SHOWN]
    return {"found": len(places), "lines": [{"line": line, "text": _snippet(text.lines[line - 1])} for line in shown]}


def count_words(text: Text) -> dict[str, Any]:
    """The most frequent words but the very common, and how many different ones there are."""
    counts = Counter(word for line in text.lines for word in _words(line))
    telling = Counter({word: count for word, count in counts.items() if len(word) > 2 and word not in _STOP})
    frequent = [{"word": word, "count": count} for word, count in telling.most_common(WORDS_SHOWN)]
    return {"different": len(counts), "most_frequent": frequent}


def passages(text: Text, terms: Sequence[str]) -> list[dict[str, Any]]:
    """The places of three lines that hold the most different terms, the best first, three at most; none when nothing
    holds any.
    """
    patterns = [_pattern(term) for term in terms]
    scored: list[tuple[int, int, int, int]] = []
    for index in range(len(text.lines)):
        window = "\n".join(text.lines[index : index + PASSAGE_LINES])
        counts = [len(pattern.findall(window)) for pattern in patterns]
        different = sum(count > 0 for count in counts)
        # Of equals the one that begins with them, then the one that has more of them, then the earlier.
        begins = sum(bool(pattern.search(text.lines[index])) for pattern in patterns)
        if different:
            scored.append((different, begins, sum(counts), -index))
    scored.sort(reverse=True)
    chosen: list[int] = []
    for different, _, _, minus_index in scored:
        if different < scored[0][0] or len(chosen) == PASSAGES_MAX:
            break
        if all(abs(-minus_index - other) >= PASSAGE_LINES for other in chosen):
            chosen.append(-minus_index)
    return [_passage(text, index) for index in chosen]


def label(passage: dict[str, Any]) -> str:
    """A passage in a line: where it begins, and its first words."""
    return f"line {passage['line']}: {_snippet(str(passage['text']), LABEL_CHARACTERS)}"


def answer(name: str, found: Sequence[tuple[str, int]], frequent: Sequence[str], passage: dict[str, Any] | None) -> str:
    """The last word of a run, made of what the tools found.

    Args:
        name: the file's.
        found: the terms that were searched, each with how often it occurs.
        frequent: the file's most frequent words.
        passage: one that `passages` found.
    """
    if not found:
        told = f"The question names no word to look for. {name} speaks mostly of {_listed(frequent[:4])}."
    elif not any(count for _, count in found):
        missing = _listed([f"\u201c{term}\u201d" for term, _ in found], "nor" if len(found) > 1 else "and")
        told = f"{'Neither ' if len(found) > 1 else ''}{missing} {'occurs' if len(found) > 1 else 'does not occur'}"
        told += f" in {name}, which speaks mostly of {_listed(frequent[:4])}."
    else:
        counts = _listed([f"\u201c{term}\u201d {_times(count)}" for term, count in found])
        told = f"{name} has {counts}."
    if passage is not None:
        told += f" The passage to read begins in line {passage['line']}: \u201c{passage['text']}\u201d"
    return told


def _passage(text: Text, index: int) -> dict[str, Any]:
    lines = [line.strip() for line in text.lines[index : index + PASSAGE_LINES] if line.strip()]
    return {"line": index + 1, "text": _snippet(" ".join(lines), 3 * SNIPPET_CHARACTERS)}


def _words(text: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(text)]


def _pattern(term: str) -> re.Pattern[str]:
    """Matches a word with its usual endings, or a phrase as it is."""
    if _WORD.fullmatch(term) is None:
        return re.compile(r"(?<!\w)" + r"\s+".join(re.escape(word) for word in term.split()) + r"(?!\w)", re.IGNORECASE)
    stem = term[:-1] if len(term) > 3 and term.endswith("s") and not term.endswith("ss") else term
    return re.compile(rf"(?<!\w){re.escape(stem)}(?:s|es|d|ed|ing)?(?!\w)", re.IGNORECASE)


def _snippet(line: str, characters: int = SNIPPET_CHARACTERS) -> str:
    line = " ".join(line.split())
    return line if len(line) <= characters else line[: characters - 1] + "\u2026"


def _times(count: int) -> str:
    return {0: "never", 1: "once", 2: "twice"}.get(count, f"{count} times")


def _listed(items: Sequence[str], last: str = "and") -> str:
    if len(items) < 2:
        return items[0] if items else "nothing in particular"
    return f"{', '.join(items[:-1])} {last} {items[-1]}"
