"""Text that is not normal traffic, from easy to notice (another script) to hard (normal words in no order)."""

from __future__ import annotations

import base64 as base64_
import random
from collections.abc import Callable, Sequence
from string import Template

from demo import domains, snippets
from demo.exchange import Exchange, Writer, join_until

ANSWER_CHARACTERS = 120

Line = Callable[[random.Random], str]


def _lines(line: Line, separator: str = " ", *, bytes_each: int = 1) -> Writer:
    """Return a writer of lines; the prompt is cut at a separator, and the lines that follow are the answer.

    Characters of several bytes count as so many, because each byte is a token.
    """

    def write(random_: random.Random, characters: int) -> Exchange:
        wanted, more = characters // bytes_each, ANSWER_CHARACTERS // bytes_each
        text = join_until(wanted + more, separator, lambda: line(random_))
        cut = text.find(separator, wanted)
        cut = cut if cut > 0 else wanted
        return Exchange(text[:cut], text[cut:].lstrip()[:more])

    return write


def _filled(templates: Sequence[str], a: Sequence[str], b: Sequence[str], tables: Sequence[str] = ("",)) -> Line:
    """Return a line that fills one of the templates."""

    def line(random_: random.Random) -> str:
        return Template(random_.choice(templates)).substitute(
            a=random_.choice(a),
            b=random_.choice(b),
            table=random_.choice(tables),
            n=random_.randint(10, 500),
            k=random_.randint(1, 9),
        )

    return line


def _word(vowels: str, consonants: str) -> Line:
    """Return a made-up word of one alphabet, consonant and vowel in turn."""

    def line(random_: random.Random) -> str:
        return "".join(random_.choice(consonants) + random_.choice(vowels) for _ in range(random_.randint(1, 4)))

    return line


def _sentence(parts: Sequence[Sequence[str]]) -> Line:
    """Return a sentence with one choice of each part."""
    return lambda random_: " ".join(random_.choice(part) for part in parts) + "."


def _ideographs(random_: random.Random) -> str:
    return "".join(chr(random_.randint(0x4E00, 0x5FFF)) for _ in range(random_.randint(4, 12)))


def _base64(random_: random.Random) -> str:
    return base64_.b64encode(random_.randbytes(45)).decode()


def _roman(random_: random.Random) -> str:
    number, text = random_.randint(1, 3999), ""
    for value, letters in snippets.ROMAN:
        text += letters * (number // value)
        number %= value
    return text


def repeated(random_: random.Random, characters: int) -> Exchange:
    """Write one or two words over and over."""
    phrase = " ".join(random_.sample(snippets.REPEATED, k=random_.randint(1, 2)))
    return _lines(lambda _: phrase)(random_, characters)


def leetspeak(random_: random.Random, characters: int) -> Exchange:
    """Write English with digits for letters."""
    plain = _lines(_sentence(snippets.ENGLISH))(random_, characters)
    return Exchange(plain.prompt.translate(snippets.LEET), plain.answer.translate(snippets.LEET))


def reversed_(random_: random.Random, characters: int) -> Exchange:
    """Write English backwards."""
    plain = _lines(_sentence(snippets.ENGLISH))(random_, characters)
    return Exchange(plain.prompt[::-1], plain.answer[::-1])


def shuffled(random_: random.Random, characters: int) -> Exchange:
    """Write the words of a normal support request or e-mail in no order: every token is a normal one."""
    normal = random_.choice((domains.support, domains.emails))(random_, characters)
    words = normal.prompt.split()
    random_.shuffle(words)
    return Exchange(" ".join(words), normal.answer)


WRITERS: dict[str, Writer] = {
    "cyrillic": _lines(_word(*snippets.CYRILLIC), bytes_each=2),
    "greek": _lines(_word(*snippets.GREEK), bytes_each=2),
    "arabic": _lines(_word(*snippets.ARABIC), bytes_each=2),
    "chinese": _lines(_ideographs, "\uff0c", bytes_each=3),
    "hex": _lines(lambda random_: random_.randbytes(4).hex()),
    "base64": _lines(_base64, "\n"),
    "roman": _lines(_roman, ", "),
    "repeated": repeated,
    "sql": _lines(_filled(snippets.SQL, snippets.SQL_COLUMNS, snippets.SQL_COLUMNS, snippets.SQL_TABLES), "\n"),
    "html": _lines(_filled(snippets.HTML, domains.PRODUCTS, domains.PRODUCTS), "\n"),
    "shell": _lines(_filled(snippets.SHELL, snippets.SHELL_NAMES, snippets.SHELL_ENDINGS), "\n"),
    "c": _lines(_filled(snippets.C, snippets.C_NAMES, snippets.C_NAMES), "\n"),
    "german": _lines(_sentence(snippets.GERMAN)),
    "french": _lines(_sentence(snippets.FRENCH)),
    "leetspeak": leetspeak,
    "reversed": reversed_,
    "shuffled": shuffled,
}
