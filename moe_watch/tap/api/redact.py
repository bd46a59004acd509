"""The default redaction of sampled text: what identifies a person or opens a door is replaced before it leaves vLLM.

Texts are hostile: a pattern is searched window by window, so that one search is short whatever the text, and between
two windows the API server's own thread has its turn at the interpreter, which a search holds. Patterns are a net, not a
proof: name a function of your own in ``MOE_WATCH_REDACT`` where more is known about the text.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

_WINDOW: Final = 2048  # characters in which one search may begin a match
_BREATH_S: Final = 0.0002  # between two windows; without a real wait the interpreter would not change hands


@dataclass(frozen=True, slots=True)
class _Kind:
    """One kind of secret; no match and what it looks at around it is longer than ``longest``."""

    pattern: re.Pattern[str]
    instead: str
    longest: int
    checked: bool = False  # its last digit is a check digit


# Repetitions that cannot do better by giving back are possessive: a failure then costs one pass.
_KINDS: Final = (
    _Kind(
        re.compile(
            r"-----BEGIN [A-Z ]{0,20}PRIVATE KEY-----"
            r"(?:(?>(?:[^-]|-(?!----)){0,8192})-----END [A-Z ]{0,20}PRIVATE KEY-----"
            r"|(?:[\w+/=:,\s\\]|-(?!----)){0,8192}+)"  # or cut off
        ),
        "[KEY]",
        8400,
    ),
    _Kind(  # JSON web tokens, or what a cut left of one
        re.compile(
            r"(?<![\w-])eyJ[\w-]{8,2048}+"
            r"(?:\.[\w-]{8,4096}+\.[\w-]{8,2048}+|(?:\.[\w-]{0,4096}+(?:\.[\w-]{0,2048}+)?)?\Z)"
        ),
        "[KEY]",
        8400,
    ),
    _Kind(
        re.compile(
            r"\b(?:sk-|pk-|rk-|sk_live_|sk_test_|ghp_|gho_|ghs_|github_pat_|glpat-|hf_|xox[abprs]-|AKIA|ASIA|AIza|ya29\.)"
            r"[\w-]{12,256}+"
        ),
        "[KEY]",
        300,
    ),
    _Kind(re.compile(r"(?i)\b(bearer)\s{1,3}[\w+/.~-]{12,512}+={0,2}"), r"\1 [KEY]", 600),
    _Kind(
        re.compile(
            r"(?i)(?<![a-z0-9])((?:(?:api|access)[_-]?key|password|passwd|secret|token)(?:[_-][\w-]{0,32})?)"
            r"(?:"
            r"([\"']?\s{0,3}[:=]\s{0,3}[\"']?)"
            r"(?:[\w+/.~-]{12,512}+={0,2}|(?=\S{0,63}\d)(?=\S{0,63}[a-z])[^\s\"',;]{6,512}+)"  # short ones have digits
            r"|(\s)(?=\S{0,63}\d)[\w+/.~-]{12,512}+={0,2}"  # else "secret understanding" were one
            r")"
        ),
        r"\1\2\3[KEY]",
        700,
    ),
    _Kind(re.compile(r"[\w.+%-]{1,64}+@[\w-]{1,63}+(?:\.[\w-]{1,63}+){1,8}+"), "[EMAIL]", 700),
    _Kind(re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){3,7}(?: ?[A-Z0-9]{1,3})?\b"), "[IBAN]", 60),
    _Kind(re.compile(r"\b\d(?:[ -]?\d){12,18}\b"), "[CARD]", 60, checked=True),
    _Kind(
        re.compile(
            r"(?<![\w.-])(?:\+|00)\d{1,3}(?:[ ()./-]{0,2}\d){6,13}\b|(?<![\w.-])\(?\d{3}\)?[ .-]\d{3}[ .-]\d{4}\b"
        ),
        "[PHONE]",
        60,
    ),
)


def redact(text: str) -> tuple[str, int]:
    """Return ``text`` with e-mail addresses, phone, card and bank numbers and keys replaced, and how many there were.

    >>> redact("Call +49 30 1234567 or mail ann@example.org, key sk-abcdefghijklmnop")
    ('Call [PHONE] or mail [EMAIL], key [KEY]', 3)
    >>> redact("4111 1111 1111 1111 is a card, 1234 5678 9012 3456 is none")
    ('[CARD] is a card, 1234 5678 9012 3456 is none', 1)
    """
    found = 0
    for kind in _KINDS:
        pieces, end = list[str](), 0
        for match in _each(kind, text):
            if not kind.checked or _luhn(match[0]):
                pieces += (text[end : match.start()], match.expand(kind.instead))
                end, found = match.end(), found + 1
        text = "".join((*pieces, text[end:])) if end else text
    return text, found


def _each(kind: _Kind, text: str) -> Iterator[re.Match[str]]:
    """Yield the matches in ``text`` from left to right, as ``finditer`` does, in short searches."""
    start = 0
    while start < len(text):
        window = start + _WINDOW
        match = kind.pattern.search(text, start, window + kind.longest)
        if match is None or match.start() >= window:  # that one is not seen whole: the next search finds it again
            start = window
            if len(text) > _WINDOW:  # thousands of short messages would wait for nobody
                breathe()
        else:
            yield match
            start = match.end()


def breathe() -> None:
    """Let other threads have the interpreter."""
    time.sleep(_BREATH_S)


def _luhn(number: str) -> bool:
    """Say whether the digits carry a card's check digit (ISO/IEC 7812-1, annex B)."""
    digits = [int(character) for character in reversed(number) if character.isdigit()]
    doubled = (sum(divmod(2 * digit, 10)) for digit in digits[1::2])
    return (sum(digits[::2]) + sum(doubled)) % 10 == 0
