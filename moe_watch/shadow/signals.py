"""Signs of a garbled output that need no second model; each is a formula over the text, each with its threshold.

=============  =======================================================================================
repetition     share of the text in its longest periodic run (a unit of at most 64 characters, five times
               or more, 16 characters or more), or seq-rep-4 = 1 - distinct / all 4-grams of words from 20 words
               on (Welleck et al., 2020, arXiv 1908.04319), whichever is larger; a defect from 0.5
encoding       replacement, control, private-use, unassigned and lone surrogate characters that the
               prompt does not have, the last character of a cut output aside; a defect from 1
script         share of letters outside fenced code in scripts that the prompt has none of, unless it names a
               language; a defect from 0.3
json           1 where JSON was asked for and the output is not JSON (cut or broken)
refusal        1 where the output begins as refusals do
length         factor between the tokens of both models' outputs where both ended by themselves; a defect from 4
empty          1 where nothing but white space came
corrupted      1 where vLLM saw NaN in the logits
=============  =======================================================================================
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections import Counter

import numpy as np

DEFECTS = ("repetition", "encoding", "script", "json", "refusal", "length", "empty", "corrupted")
LONGEST_TEXT = 20_000  # characters looked at, from the end: garbled outputs get worse, not better

_PERIODS = range(1, 65)
_RULES = frozenset(" \t\n\r-=_*#.|+~:/\\`─═│┼")  # rulers, tables, indentation and dot leaders repeat by right
_REFUSAL = re.compile(  # after curly apostrophes were made straight
    r"\W*(i'?m (really |very |so )?sorry|sorry,|i apologi[sz]e|i can(no|')t|i can not|i'?m (not able|unable)"
    r"|i am (not able|unable)|i won't|i will not|as an ai\b|unfortunately, i)",
    re.IGNORECASE,
)
_LANGUAGES = re.compile(
    r"translat|transliterat|unicode|emoji|arabic|bengali|chinese|cyrillic|farsi|greek|hebrew|hindi|japanese|kanji"
    r"|katakana|korean|mandarin|persian|romaji|russian|thai|ukrainian|urdu|vietnamese",
    re.IGNORECASE,
)
_CODE = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)
_FENCE = re.compile(r"^\s*```(?:json)?\s*\n(.*?)(?:\n```\s*)?$", re.DOTALL | re.IGNORECASE)


def defects(
    output: str,
    *,
    prompt: str = "",
    wants_json: bool = False,
    cut: bool = False,
    corrupted: bool = False,
    length_factor: float = 1.0,
) -> list[str]:
    """Return the kinds of defect of ``output``, in the order of ``DEFECTS``.

    ``cut`` says that the output ended at a limit, ``length_factor`` is tokens over the dense model's tokens.
    """
    output = output[-LONGEST_TEXT:]
    found = {
        "repetition": repetition(output) >= 0.5,
        "encoding": encoding(output, prompt, cut=cut) >= 1,
        "script": script(output, prompt) >= 0.3,
        "json": wants_json and not is_json(output),
        "refusal": refusal(output),
        "length": abs(math.log(length_factor)) >= math.log(4) if length_factor > 0 else False,
        "empty": not output.strip(),
        "corrupted": corrupted,
    }
    return [kind for kind in DEFECTS if found[kind]]


def repetition(text: str) -> float:
    """Return the share of ``text`` in loops, 0..1.

    >>> repetition("no no no no no no no no")
    1.0
    """
    return max(periodic_share(text), repeated_ngrams(text))


def periodic_share(text: str) -> float:
    """Return the length of the longest periodic run over the length of ``text``; rulers and tables do not count."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    best = 0
    for period in _PERIODS:
        if len(codes) < max(5 * period, 16):
            break
        start, length = _longest_run(codes[period:] == codes[:-period])
        whole = length + period
        if whole >= max(5 * period, 16) and whole > best and not set(text[start : start + period]) <= _RULES:
            best = whole
    return best / len(text) if text else 0.0


def repeated_ngrams(text: str, n: int = 4, fewest: int = 20) -> float:
    """Return seq-rep-n over words; 0 for texts of fewer than ``fewest`` words."""
    words = text.split()
    if len(words) < fewest:
        return 0.0
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return 1 - len(set(grams)) / len(grams)


def encoding(text: str, prompt: str = "", *, cut: bool = False) -> int:
    """Return how many characters of ``text`` no writer means; those that the prompt has are quotations."""
    if cut:
        text = text.rstrip("�")  # a limit may fall inside a character
    return sum(_is_broken(character) for character in text if character not in prompt)


def script(text: str, prompt: str, fewest: int = 20) -> float:
    """Return the share of letters of ``text`` in scripts that ``prompt`` does not use, 0..1.

    0 with fewer than ``fewest`` letters, where the prompt has none, and where it speaks of a language or translation.
    """
    ours, theirs = _scripts(_CODE.sub("", text)), _scripts(prompt)
    letters = sum(ours.values())
    if letters < fewest or not theirs or _LANGUAGES.search(prompt):
        return 0.0
    return sum(count for name, count in ours.items() if name not in theirs) / letters


def is_json(text: str) -> bool:
    """Tell whether ``text`` is one JSON value, bare or in a code fence."""
    fenced = _FENCE.match(text)
    try:
        json.loads(fenced.group(1) if fenced else text)
    except (ValueError, RecursionError):
        return False
    return True


def refusal(text: str) -> bool:
    """Tell whether ``text`` begins as refusals do (English)."""
    return _REFUSAL.match(text[:200].replace("\u2019", "'")) is not None


def _longest_run(same: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> tuple[int, int]:
    """Return start and length of the longest run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], same.view(np.int8), [0]))))
    if not len(edges):
        return 0, 0
    lengths = edges[1::2] - edges[::2]
    longest = int(lengths.argmax())
    return int(edges[2 * longest]), int(lengths[longest])


def _is_broken(character: str) -> bool:
    if character in "\n\r\t":
        return False
    return character == "�" or unicodedata.category(character) in {"Cc", "Co", "Cn", "Cs"}


def _scripts(text: str) -> Counter[str]:
    """Return how many letters of ``text`` are of each script, by the first word of their Unicode name."""
    letters = Counter(character for character in text if character.isalpha())
    scripts: Counter[str] = Counter()
    for letter, count in letters.items():
        scripts[unicodedata.name(letter, "UNKNOWN").split()[0].split("-")[0]] += count
    return scripts
