"""The default redaction of sampled text: what identifies a person or opens a door is replaced before it leaves vLLM.

Patterns are bounded, so that they run in linear time on any text. They are a net, not a proof: name a function of your
own in ``MOE_WATCH_REDACT`` where more is known about the text.
"""

from __future__ import annotations

import re
from typing import Final

_PATTERNS: Final = (
    (
        re.compile(
            r"-----BEGIN [A-Z ]{0,20}PRIVATE KEY-----"
            r"(?:(?s:.){0,8192}?-----END [A-Z ]{0,20}PRIVATE KEY-----|(?:[\w+/=:,\s]|-(?!----)){0,8192})"  # or cut off
        ),
        "[KEY]",
    ),
    (re.compile(r"(?<![\w-])eyJ[\w-]{8,2048}\.[\w-]{8,4096}\.[\w-]{8,2048}"), "[KEY]"),  # JSON web tokens
    (
        re.compile(
            r"\b(?:sk-|pk-|rk-|sk_live_|sk_test_|ghp_|gho_|ghs_|github_pat_|glpat-|hf_|xox[abprs]-|AKIA|ASIA|AIza|ya29\.)"
            r"[\w-]{12,256}"
        ),
        "[KEY]",
    ),
    (re.compile(r"(?i)\b(bearer)\s{1,3}[\w+/.~-]{12,512}={0,2}"), r"\1 [KEY]"),
    (
        re.compile(
            r"(?i)(?<![a-z0-9])((?:(?:api|access)[_-]?key|password|passwd|secret|token)(?:[_-][\w-]{0,32})?)"
            r"(?:"
            r"([\"']?\s{0,3}[:=]\s{0,3}[\"']?)"
            r"(?:[\w+/.~-]{12,512}={0,2}|(?=\S{0,63}\d)(?=\S{0,63}[a-z])[^\s\"',;]{6,512})"  # short ones have digits
            r"|(\s)(?=\S{0,63}\d)[\w+/.~-]{12,512}={0,2}"  # else "secret understanding" were one
            r")"
        ),
        r"\1\2\3[KEY]",
    ),
    (re.compile(r"[\w.+%-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,8}"), "[EMAIL]"),
    (re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){3,7}(?: ?[A-Z0-9]{1,3})?\b"), "[IBAN]"),
)
_CARD: Final = re.compile(r"\b\d(?:[ -]?\d){12,18}\b")
_PHONE: Final = re.compile(
    r"(?<![\w.-])(?:\+|00)\d{1,3}(?:[ ()./-]{0,2}\d){6,13}\b|(?<![\w.-])\(?\d{3}\)?[ .-]\d{3}[ .-]\d{4}\b"
)


def redact(text: str) -> tuple[str, int]:
    """Return ``text`` with e-mail addresses, phone, card and bank numbers and keys replaced, and how many there were.

    >>> redact("Call +49 30 1234567 or mail ann@example.org, key sk-abcdefghijklmnop")
    ('Call [PHONE] or mail [EMAIL], key [KEY]', 3)
    >>> redact("4111 1111 1111 1111 is a card, 1234 5678 9012 3456 is none")
    ('[CARD] is a card, 1234 5678 9012 3456 is none', 1)
    """
    found = 0
    for pattern, instead in _PATTERNS:
        text, n = pattern.subn(instead, text)
        found += n
    cards = 0

    def card(match: re.Match[str]) -> str:
        nonlocal cards
        if not _luhn(match[0]):
            return match[0]
        cards += 1
        return "[CARD]"

    text = _CARD.sub(card, text)
    text, phones = _PHONE.subn("[PHONE]", text)
    return text, found + cards + phones


def _luhn(number: str) -> bool:
    """Say whether the digits carry a card's check digit (ISO/IEC 7812-1, annex B)."""
    digits = [int(character) for character in reversed(number) if character.isdigit()]
    doubled = (sum(divmod(2 * digit, 10)) for digit in digits[1::2])
    return (sum(digits[::2]) + sum(doubled)) % 10 == 0
