"""Text that Python itself ships: the source of its standard library, and its manual."""

from __future__ import annotations

import random
import re
import sysconfig
import textwrap
import zlib
from functools import cache
from pathlib import Path

from demo.exchange import Exchange

LEFT_OUT = {
    "__pycache__",
    "encodings",
    "idlelib",
    "lib2to3",
    "pydoc_data",
    "site-packages",
    "test",
    "tests",
    "turtledemo",
}
HELD_OUT_ONE_IN = 8
ANSWER_CHARACTERS = 160
DEFINITION = re.compile(r"^(?=(?: {4})?(?:async def|def|class) )", re.MULTILINE)
DOCSTRING = re.compile(r'"""(.*?)"""', re.DOTALL)


def held_out(key: str) -> bool:
    """Say whether the text named ``key`` is kept from training: one in eight, the same on every machine."""
    return zlib.crc32(key.encode()) % HELD_OUT_ONE_IN == 0


def python(random_: random.Random, characters: int, *, train: bool) -> Exchange:
    """Return a stretch of the standard library's source from a definition on, and the lines that follow it."""
    source = random_.choice(_definitions(train))
    return _cut_at_lines(source, characters)


def manual(random_: random.Random, characters: int, *, train: bool) -> Exchange:
    """Return a stretch of Python's manual, its licence or a long docstring, and the lines that follow it."""
    text = random_.choice(_pages(train))
    paragraphs = [match.start() for match in re.finditer(r"(?<=\n\n)\S", text)] or [0]
    latest = max(0, len(text) - characters - ANSWER_CHARACTERS)
    start = random_.choice([p for p in paragraphs if p <= latest] or [0])
    return _cut_at_lines(text[start:], characters)


def _cut_at_lines(text: str, characters: int) -> Exchange:
    """Cut at the ends of lines; a text that is too short keeps its last line for the answer."""
    cut = text.rfind("\n", 1, max(characters, 40))
    cut = cut if cut > 0 else len(text) * 2 // 3
    answer = text[cut : cut + ANSWER_CHARACTERS]
    if len(text) > cut + ANSWER_CHARACTERS:
        answer = answer[: answer.rfind("\n") + 1] or answer
    return Exchange(text[:cut].strip("\n"), answer.strip("\n") or "pass")


@cache
def _sources() -> dict[str, str]:
    """Return the standard library's modules by name, tests, tables and tools left out."""
    root = Path(sysconfig.get_paths()["stdlib"])
    names = sorted(path.relative_to(root).as_posix() for path in [*root.glob("*.py"), *root.glob("*/*.py")])
    wanted = [name for name in names if not LEFT_OUT & set(Path(name).parts)]
    return {name: (root / name).read_text(encoding="utf-8", errors="ignore") for name in wanted}


@cache
def _definitions(train: bool) -> list[str]:  # noqa: FBT001 - a cache key
    """Return stretches of source from one definition over the following ones, of the modules of one split."""
    stretches: list[str] = []
    for name, source in _sources().items():
        if held_out(name) == train:
            continue
        starts = [match.start() for match in DEFINITION.finditer(source)]
        pieces = [textwrap.dedent(source[start : start + 1600]) for start in starts]
        stretches += [piece for piece in pieces if len(piece) > 300]
    return stretches


@cache
def _pages(train: bool) -> list[str]:  # noqa: FBT001 - a cache key
    """Return long prose of one split: manual topics, the licence, docstrings."""
    from pydoc_data.topics import topics  # noqa: PLC0415 - 700 kB that only the corpus needs

    pages = [text for name, text in sorted(topics.items()) if held_out(name) != train]
    licence = Path(sysconfig.get_paths()["stdlib"]) / "LICENSE.txt"
    if train and licence.exists():
        pages.append(licence.read_text(encoding="utf-8"))
    for name, source in _sources().items():
        if held_out(name) != train:
            docstrings = (textwrap.dedent(text).strip() for text in DOCSTRING.findall(source))
            pages += [text for text in docstrings if len(text) > 600 and ">>>" not in text]
    # Modules repeat each other's docstrings: what training has read in one is not new in another.
    known = set() if train else {page[:60] for page in _pages(train=True)}
    return [page for page in pages if page[:60] not in known]
