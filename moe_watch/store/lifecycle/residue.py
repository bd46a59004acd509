"""Looks for names in the bytes of files: SQLite may keep what no query finds any more."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

_TAIL: Final = 6  # bytes of a name that are looked up; shorter names are everywhere by chance
_CHUNK_BYTES: Final = 4 << 20


def found(files: Iterable[Path], names: Collection[str]) -> set[str]:
    """Return which of ``names``, those of fewer than six bytes left out, are in one of ``files``."""
    tails: defaultdict[int, list[bytes]] = defaultdict(list)
    for name in {name.encode() for name in names}:
        if len(name) >= _TAIL:
            tails[int.from_bytes(name[-_TAIL:], "big")].append(name)
    if not tails:
        return set()
    known = np.array(sorted(tails), np.uint64)
    longest = max(len(name) for some in tails.values() for name in some)
    seen = set[bytes]()
    for file in files:
        for raw in _overlapping(file, longest - 1):
            for start, value in _tails_in(raw, known):
                end = start + _TAIL
                seen |= {name for name in tails[value] if raw[max(end - len(name), 0) : end] == name}
    return {name.decode() for name in seen}


def _tails_in(raw: bytes, known: npt.NDArray[np.uint64]) -> Iterator[tuple[int, int]]:
    """Yield where one of ``known`` begins, and which."""
    count = len(raw) - _TAIL + 1
    if count <= 0:
        return
    each, value = np.frombuffer(raw, np.uint8), np.zeros(count, np.uint64)
    for place in range(_TAIL):
        value <<= np.uint64(8)
        value |= each[place : place + count]
    nearest = np.minimum(np.searchsorted(known, value), len(known) - 1)
    for start in np.flatnonzero(known[nearest] == value):
        yield int(start), int(value[start])


def _overlapping(file: Path, overlap: int) -> Iterator[bytes]:
    """Yield a file in pieces that begin with the end of the one before; nothing of a file that is not there."""
    if not file.exists():
        return
    with file.open("rb") as opened:
        before = b""
        while raw := opened.read(_CHUNK_BYTES):
            yield before + raw
            before = (before + raw)[-overlap:]
