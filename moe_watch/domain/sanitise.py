"""Text from users is hostile: it is made harmless here before it reaches a page, a terminal or a Markdown file.

Escaping for HTML is the template engine's; this module takes away what escaping leaves: terminal escapes, characters
that turn or hide their neighbours (CVE-2021-42574, "Trojan Source"), and sheer length.
"""

from __future__ import annotations

import json
import re
import traceback
import unicodedata
from pathlib import Path
from typing import Final

LONGEST: Final = 2_000  # characters of a sample that are shown
_LONGEST_JSON: Final = 1 << 20
_KEPT: Final = frozenset("\n\t\u200c\u200d")  # joiners belong to Persian, Hindi and emoji and turn nothing
_HIDDEN: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_ACCENTS: Final = "\u0300-\u036f\u0483-\u0489\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff"
_STACKED: Final = re.compile(f"([{_ACCENTS}]{{3}})[{_ACCENTS}]+")
_MARKDOWN: Final = re.compile(r"([\\`*_{}\[\]<>|~&$!])")
_AT_START: Final = re.compile(r"^(\d*)([-+=#>.)])(?=\s|$|[#=-])")  # what would begin a list, a heading or a rule
_LINKED: Final = re.compile(r"@|://|\bwww\.", re.IGNORECASE)  # mentions and addresses that a wiki would link


def neutralise(text: str, longest: int = LONGEST) -> str:
    r"""Return ``text`` with control and format characters made visible, cut after ``longest`` characters.

    >>> neutralise("\x1b[31mred\x1b[0m"), neutralise("user\u202etxt.exe")
    ('␛[31mred␛[0m', 'user⟨U+202E⟩txt.exe')
    >>> neutralise("a" * 10, longest=4)
    'aaaa… (cut, 10 characters in all)'
    """
    shown = text[:longest]
    if not (shown.isascii() and shown.isprintable()):
        shown = _STACKED.sub(r"\1", "".join(map(_visible, shown)))
    return shown if len(text) <= longest else f"{shown}… (cut, {len(text):,} characters in all)"


def one_line(text: str, longest: int = 120) -> str:
    r"""Return ``text`` neutralised on one line, for a name or a summary.

    >>> one_line("two\nlines")
    'two lines'
    """
    return neutralise(" ".join(text[: 4 * longest].split()), longest)


def markdown(text: str, longest: int = 120) -> str:
    r"""Return ``text`` on one line with everything that Markdown, HTML or a wiki would read taken literally.

    >>> markdown("# [x](javascript:1) | <b> @team")
    '\\# \\[x\\](javascript:1) \\| \\<b\\> @\u2060team'
    """
    literal = _AT_START.sub(r"\1\\\2", _MARKDOWN.sub(r"\\\1", one_line(text, longest)))
    return _LINKED.sub(lambda found: f"{found[0]}\u2060", literal)


def code(text: str, longest: int = 120) -> str:
    r"""Return ``text`` as a code span, for names from outside: nothing in it is read as Markdown or as a mention.

    >>> code("a`b|c")
    '``a`b\xa6c``'
    """
    body = one_line(text, longest).replace("|", "\N{BROKEN BAR}") or " "
    fence = "`" * (1 + max((len(run) for run in re.findall(r"`+", body)), default=0))
    edge = " " if body.startswith("`") or body.endswith("`") else ""
    return f"{fence}{edge}{body}{edge}{fence}"


def fenced(text: str) -> str:
    """Return ``text`` as a Markdown code block that it cannot close from within."""
    body = neutralise(text)
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", body)), default=0))
    return f"{fence}text\n{body}\n{fence}"


def conversation(prompt: str) -> str:
    r"""Return the JSON of chat messages as people read it, anything else as it is.

    >>> conversation('[{"role": "user", "content": [{"type": "text", "text": "Hello"}, {"type": "image_url"}]}]')
    'user: Hello [image_url]'
    """
    if len(prompt) > _LONGEST_JSON or not prompt.startswith("["):
        return prompt
    try:
        messages = json.loads(prompt)
    except (ValueError, RecursionError):
        return prompt
    if not all(isinstance(message, dict) for message in messages):
        return prompt
    return "\n".join(f"{message.get('role', '?')}: {_content(message.get('content'))}" for message in messages)


def _content(content: object) -> str:
    """Return the text of a message, with the kinds of its other parts in brackets."""
    if not isinstance(content, list):
        return "" if content is None else str(content)
    parts = [part for part in content if isinstance(part, dict)]
    return " ".join(str(part["text"]) if "text" in part else f"[{part.get('type', '?')}]" for part in parts)


def _visible(character: str) -> str:
    """Return the character, or a picture of it when it would not show or would turn its neighbours."""
    if character in _KEPT or unicodedata.category(character) not in _HIDDEN:
        return character
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)
    return "␡" if code == 0x7F else f"⟨U+{code:04X}⟩"


def place_of(error: BaseException) -> str:
    """Return the class of ``error`` and where it was raised; its message may quote what a server answered."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    frames = traceback.extract_tb(error.__traceback__)
    return " < ".join([type(error).__name__, *(f"{Path(f.filename).name}:{f.lineno}" for f in reversed(frames))])
