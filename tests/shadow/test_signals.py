"""Garbled outputs are recognised without a second model, and healthy ones are left alone."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_watch.shadow import signals

HEALTHY = (
    "To sort a list in place use its sort method; to get a new one use sorted. Both take a key function, which is "
    "called once per element, and both are stable, so sorting twice by different keys keeps the earlier order."
)
TABLE = "| name | size |\n| ---- | ---- |\n" + "".join(f"| file{i} | {i * i} kB |\n" for i in range(12))
CODE = "def area(w, h):\n    return w * h\n\n\nfor w in range(3):\n    for h in range(4):\n        print(area(w, h))\n"


@pytest.mark.parametrize("text", [HEALTHY, TABLE, CODE, "=" * 80 + "\nTitle\n" + "=" * 80, "Yes.", "42", "ha ha ha"])
def test_healthy_text_has_no_defect(text: str) -> None:
    """Prose, tables, code, rulers and short answers are not called garbled."""
    assert signals.defects(text, prompt="Explain sorting, please.") == []


@pytest.mark.parametrize(
    "text",
    ["!" * 40, HEALTHY[:60] + " the same" * 30, "abc" * 12, "I think that it is. " * 8, "Sure: " + "0" * 300],
)
def test_loops_are_repetition(text: str) -> None:
    """A character, a word, a phrase or a sentence over and over is repetition."""
    assert signals.defects(text) == ["repetition"]


def test_repetition_has_a_scale() -> None:
    """The share in the loop is what is returned: a third of this text loops."""
    assert signals.periodic_share(HEALTHY[:120] + "xyz" * 20) == pytest.approx(1 / 3, abs=0.02)


@pytest.mark.parametrize("text", ["ok \ufffd then", "nul \x00", "\ue000private", "lone \ud800 surrogate"])
def test_broken_characters_are_encoding(text: str) -> None:
    """Replacement, control, private-use and surrogate characters count."""
    assert "encoding" in signals.defects(text)


def test_quoted_or_cut_characters_are_not() -> None:
    """What the prompt has may be quoted, and a limit may fall inside the last character."""
    assert signals.defects("you wrote \ufffd", prompt="what is \ufffd?") == []
    assert signals.defects("half a character \ufffd", cut=True) == []


def test_fenced_code_is_of_no_script() -> None:
    """A Russian question may be answered by code, which is Latin everywhere; prose around it counts."""
    code = "```python\nnumbers = sorted(values, key=lambda value: value.weight)\n```"
    assert signals.defects(f"Вот пример:\n{code}", prompt="Как отсортировать список?") == []
    assert (
        signals.defects(f"{code}\nThis is how to sort it.", prompt="Как отсортировать?") == []
    )  # fewer than 20 letters
    assert signals.defects(f"{code}\nThis is how one sorts a list of values.", prompt="Как сортировать?") == ["script"]


def test_switch_of_script_is_found_unless_asked_for() -> None:
    """Cyrillic for a Latin prompt is a defect; a translation is not, nor an answer in the prompt's script."""
    russian = "Сортировка списка выполняется на месте"
    assert signals.defects(russian, prompt="How do I sort a list?") == ["script"]
    assert signals.defects(russian, prompt="Translate: sorting happens in place") == []
    assert signals.defects(russian, prompt="Как отсортировать список?") == []


def test_json_is_checked_where_it_was_asked_for() -> None:
    """Cut or decorated JSON is a defect, fenced JSON is not, and nobody asked nothing is checked."""
    whole = json.dumps({"a": [1, 2, {"b": None}]})
    assert signals.defects(whole[:-3], wants_json=True) == ["json"]
    assert signals.defects("Sure! " + whole, wants_json=True) == ["json"]
    assert signals.defects(f"```json\n{whole}\n```", wants_json=True) == []
    assert signals.defects(whole[:-3]) == []


@pytest.mark.parametrize("text", ["I'm sorry, but I can't help with that.", "I cannot do that", "I\u2019m unable to"])
def test_refusals(text: str) -> None:
    """The usual beginnings are recognised, straight or curly apostrophe."""
    assert signals.defects(text) == ["refusal"]


def test_refusal_in_the_middle_is_none() -> None:
    """Text about refusing is not a refusal."""
    assert signals.defects("The clerk said: I'm sorry, but I can't help.") == []


def test_length_empty_and_corrupted() -> None:
    """Four times longer or shorter than the dense model, nothing at all, and vLLM's NaN flag are defects."""
    assert signals.defects("fine", length_factor=4.0) == ["length"]
    assert signals.defects("fine", length_factor=0.25) == ["length"]
    assert signals.defects("fine", length_factor=3.9) == []
    assert signals.defects(" \n") == ["empty"]
    assert signals.defects("fine", corrupted=True) == ["corrupted"]


@given(st.text(max_size=400), st.text(max_size=100), st.booleans())
def test_any_text_is_looked_at_without_error(text: str, prompt: str, flag: bool) -> None:  # noqa: FBT001
    """No text raises, the scores are shares, and the kinds come in their order."""
    found = signals.defects(text, prompt=prompt, wants_json=flag, cut=flag)
    assert found == [kind for kind in signals.DEFECTS if kind in found]
    assert 0 <= signals.repetition(text) <= 1


def test_a_megabyte_line_is_bounded() -> None:
    """Only the end of a huge text is looked at."""
    assert signals.defects("a b c d e f g " * 80_000) == ["repetition"]
