"""The demo agent's tools find what is in the file, and nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.demo import tools
from gateway.demo.tools import Text, ToolError

POEM = b"""The Lamps

A lamp burned. Two lamps burned.
Nobody lamented the lamplight.

It made no
difference to the storm.
"""


def text(content: bytes = POEM) -> Text:
    return Text.from_bytes("poem.txt", content)


def test_a_word_is_found_with_its_endings_and_not_inside_others() -> None:
    assert tools.search(text(), "lamp") == {
        "found": 3,
        "lines": [{"line": 1, "text": "The Lamps"}, {"line": 3, "text": "A lamp burned. Two lamps burned."}],
    }
    assert tools.search(text(), "lamps")["found"] == 3
    assert tools.search(text(), "difference")["lines"] == [{"line": 7, "text": "difference to the storm."}]


def test_a_phrase_is_found_over_the_end_of_a_line() -> None:
    assert tools.search(text(), "no difference") == {"found": 1, "lines": [{"line": 6, "text": "It made no"}]}


def test_the_question_decides_what_is_looked_for() -> None:
    assert tools.keywords("What happened to the LAMP in the storm?") == ["lamp", "storm"]
    assert tools.keywords('Who said "no difference" about storms?') == ["no difference", "storms"]
    assert tools.keywords("What is it about?") == []
    assert len(tools.keywords("one red fox jumped over seven lazy brown dogs near rivers")) == tools.KEYWORDS_MAX


def test_counting_names_the_most_frequent_words() -> None:
    counted = tools.count_words(text(b"tea tea coffee the the the the tea"))
    assert counted == {
        "different": 3,
        "most_frequent": [{"word": "tea", "count": 3}, {"word": "coffee", "count": 1}],
    }


def test_the_best_passage_holds_the_most_of_the_terms() -> None:
    assert tools.passages(text(), ["burned", "lamp"]) == [
        {"line": 3, "text": "A lamp burned. Two lamps burned. Nobody lamented the lamplight."}
    ]
    assert tools.passages(text(), ["walrus"]) == []


def test_passages_that_fit_as_well_are_all_named_and_do_not_overlap() -> None:
    found = tools.passages(text(b"tea\n\n\n\ntea and tea\n\n\n" + b"tea\n\n\n" * 5), ["tea"])
    assert [passage["line"] for passage in found] == [5, 1, 8]
    assert tools.label(found[0]) == "line 5: tea and tea"
    assert len({tools.label(passage) for passage in found}) == 3


def test_another_file_or_question_gives_another_answer() -> None:
    found = tools.answer("a.txt", [("lamp", 2), ("storm", 0)], ["lamp"], {"line": 3, "text": "A lamp."})
    assert found == (
        "a.txt has \u201clamp\u201d twice and \u201cstorm\u201d never."
        " The passage to read begins in line 3: \u201cA lamp.\u201d"
    )
    assert "Neither \u201cx\u201d nor \u201cy\u201d occurs in b.txt" in tools.answer(
        "b.txt", [("x", 0), ("y", 0)], [], None
    )
    assert "names no word" in tools.answer("b.txt", [], ["tea", "cup"], None)


@pytest.mark.parametrize(
    "content, why", [(b"", "is empty"), (b" \n\t", "is empty"), (b"a\0b", "zero bytes"), (b"\xff\xfe!", "UTF-8")]
)
def test_what_is_no_text_is_refused_with_the_reason(content: bytes, why: str) -> None:
    with pytest.raises(ToolError, match=why):
        text(content)


@given(st.text(min_size=1, max_size=2_000).filter(str.strip), st.text(max_size=80))
def test_the_parts_hold_every_line_once_and_no_text_breaks_a_tool(content: str, question: str) -> None:
    try:
        made = Text.from_bytes("any", content.encode())
    except ToolError:
        return
    lines = [line for first, last in made.parts for line in range(first, last + 1)]
    assert lines == list(range(1, len(made.lines) + 1))
    terms = tools.keywords(question)
    in_parts = [tools.read_part(made, first, last, terms)["words"] for first, last in made.parts]
    assert sum(in_parts) == tools.describe(made)["words"]
    for term in terms:
        assert tools.search(made, term)["found"] >= 0
    assert len({tools.label(passage) for passage in tools.passages(made, terms)}) == len(tools.passages(made, terms))
    tools.count_words(made)
