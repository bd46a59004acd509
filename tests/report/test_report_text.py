"""Text from outside loses everything but its words before it is shown."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from moe_watch.domain.sanitise import code, conversation, fenced, markdown, neutralise, one_line

BIDI = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\u061c"
ANY_TEXT = st.text(st.characters(), max_size=300)


@given(ANY_TEXT)
@example("\x1b]8;;http://evil\x07click\x1b]8;;\x07")
@example(BIDI)
@example("\ud800")
@example("\U000e0041\u2028\u00ad\ufeff")
def test_nothing_invisible_or_turning_is_left(text: str) -> None:
    """No control, format, surrogate or separator character survives but newline, tab and the two joiners."""
    left = set(neutralise(text)) - set("\n\t\u200c\u200d")
    assert not {c for c in left if unicodedata.category(c) in {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}}


@given(st.text(st.characters(categories=("L", "N", "P", "S", "Zs")), max_size=200))
def test_harmless_text_is_left_as_it_is(text: str) -> None:
    """Letters, digits, punctuation, symbols and spaces of every script come through."""
    assert neutralise(text) == text


def test_a_long_text_is_cut_and_says_so() -> None:
    """A line of a megabyte becomes a short one that names its length."""
    shown = neutralise("a" * 2**20)
    assert len(shown) < 2_100
    assert shown.endswith("(cut, 1,048,576 characters in all)")


def test_stacked_accents_are_thinned() -> None:
    """Accents piled up over one letter cannot paint over other lines."""
    assert neutralise("e" + "\u0301" * 50) == "e" + "\u0301" * 3


@given(ANY_TEXT)
def test_one_line_is_one_line(text: str) -> None:
    """Names stay on one line whatever they hold."""
    assert "\n" not in one_line(text)


@pytest.mark.parametrize(
    "hostile", ["a\n\n# heading", "`rm -rf`", "| cell |", "<script>", "[a](javascript:1)", "- item"]
)
def test_markdown_is_taken_literally(hostile: str) -> None:
    """Nothing of Markdown's own characters stays without a backslash."""
    literal = markdown(hostile)
    for mark in "`|<>[]":
        assert mark not in literal.replace(f"\\{mark}", "")
    assert not literal.startswith(("#", "-", "="))


def test_a_wiki_finds_nobody_to_call_and_nothing_to_link() -> None:
    """Mentions and addresses in text from outside are broken up."""
    literal = markdown("@everyone see https://evil.example and www.evil.example")
    assert "@everyone" not in literal
    assert "://evil" not in literal
    assert "www.evil" not in literal


@given(st.text(st.sampled_from("`~a \n"), max_size=60))
def test_a_code_block_cannot_be_closed_from_within(text: str) -> None:
    """The fence is longer than any run of backticks inside."""
    fence, *inner, last = fenced(text).split("\n")
    assert last == fence.removesuffix("text")
    assert all(last not in line for line in inner)


@given(st.text(st.sampled_from("`|a "), max_size=40))
def test_a_code_span_cannot_be_closed_from_within(text: str) -> None:
    """The ticks around it are more than any run inside, and no pipe ends a table's cell."""
    span = code(text)
    ticks = span[: len(span) - len(span.lstrip("`"))]
    assert span.endswith(ticks)
    assert ticks not in span[len(ticks) : -len(ticks)].strip(" ") or ticks == span
    assert "|" not in span


@pytest.mark.parametrize(
    ("prompt", "shown"),
    [
        (
            '[{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]',
            "system: Be kind.\nuser: Hi",
        ),
        ("plain text", "plain text"),
        ("[not json", "[not json"),
        ("[1, 2]", "[1, 2]"),
        ("[" * 100_000, "[" * 100_000),
        ('[{"role": "user"}]', "user: "),
    ],
)
def test_a_conversation_reads_as_one(prompt: str, shown: str) -> None:
    """Messages are shown by role; whatever is none is shown as it is."""
    assert conversation(prompt) == shown
