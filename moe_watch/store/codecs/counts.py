"""Fingerprints as bytes of a column: small numbers in few bits, the large ones apart.

Most counts of a request are small and a few are large. Of every count the part below ``2**w - 1`` is kept in w bits,
and what is left of those that reach it in a list behind (patched frame of reference: Zukowski and others, "Super-scalar
RAM-CPU cache compression", ICDE 2006). w follows from the mean count. Against deflate without a search for repetitions
that is a third of the time, because whole batches are packed at once, and 6 % more bytes on 30 x 128 fingerprints.

A packed array is a letter for the type of the list, a byte for w, the w bits of all counts in planes of 4, 2 and 1
bits, and the list. Older stores hold deflated arrays, which ``store.arrays`` reads.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from moe_watch import wire

Unsigned = NDArray[np.unsignedinteger[Any]]
LETTERS: Final[dict[bytes, np.dtype[Any]]] = {b"p": np.dtype("<u1"), b"q": np.dtype("<u2"), b"r": np.dtype("<u4")}
_HEAD: Final = {(dtype.itemsize, w): letter + bytes([w]) for letter, dtype in LETTERS.items() for w in range(9)}
_UP_TO: Final = (0.0, 0.1, 1.25, 3.8, 9.0, 12.0, 27.0, 64.0)  # mean counts up to which 0, 1, ... 7 bits are best
_PLANES: Final = {w: tuple(bits for bits in (8, 4, 2, 1) if w & bits) for w in range(9)}


def pack(counts: wire.Counts) -> bytes:
    """Return one array packed."""
    return pack_all([counts])[0]


def pack_all(arrays: Sequence[wire.Counts]) -> list[bytes]:
    """Return arrays of any sizes packed, in their order."""
    packed = [b""] * len(arrays)
    alike: defaultdict[tuple[str, int], list[int]] = defaultdict(list)
    for index, counts in enumerate(arrays):
        alike[counts.dtype, len(counts.data)].append(index)
    for (dtype, _), members in alike.items():
        data = b"".join([arrays[index].data for index in members])
        rows: Unsigned = np.frombuffer(data, f"<{dtype}").reshape(len(members), -1)
        widths = np.searchsorted(_UP_TO, _means(rows))
        for width in np.unique(widths):
            these = np.flatnonzero(widths == width)
            for index, one in zip(these.tolist(), _pack_rows(rows[these], int(width)), strict=True):
                packed[members[index]] = one
    return packed


def unpack(raw: bytes, shape: tuple[int, ...]) -> wire.CountArray:
    """Return the counts in ``raw``; raise ``ValueError`` when they are not an array of that shape.

    >>> unpack(pack(wire.pack_counts(np.array([[0, 1, 70_000]]))), (1, 3)).tolist()
    [[0, 1, 70000]]
    """
    dtype = LETTERS.get(raw[:1])
    width = raw[1] if len(raw) > 1 else 9
    size = int(np.prod(shape))
    padded = -(-size // 8) * 8
    planes = padded * width // 8
    if dtype is None or width > 8 or len(raw) < 2 + planes or (len(raw) - 2 - planes) % dtype.itemsize:
        raise ValueError("not packed counts of this shape")
    low = _from_planes(np.frombuffer(raw, np.uint8, planes, 2), width, padded)[:size]
    counts = low.astype(np.uint32)
    reached = np.flatnonzero(low == 2**width - 1) if width else np.zeros(0, np.int64)
    left = np.frombuffer(raw, dtype, -1, 2 + planes)
    if len(left) != len(reached):
        raise ValueError("not packed counts of this shape")
    counts[reached] += left
    return counts.reshape(shape)


def _pack_rows(rows: Unsigned, width: int) -> Iterator[bytes]:
    """Yield ``rows [n, size]`` packed with ``width`` bits; 0 bits for rows of nothing but zeros."""
    if width == 0:
        yield from [_HEAD[1, 0]] * len(rows)
        return
    cap = 2**width - 1
    planes = _to_planes(np.minimum(rows, cap).astype(np.uint8), width)
    size, plane = planes.shape[1], planes.tobytes()
    reached = np.flatnonzero(rows >= cap)
    left = rows.reshape(-1)[reached] - rows.dtype.type(cap)
    ends = np.searchsorted(reached, np.arange(len(rows) + 1) * rows.shape[1])
    lists = {left.itemsize: left.tobytes(), 1: left.astype(np.uint8).tobytes()}
    items = _itemsizes(left, ends)
    for index, (start, end, item) in enumerate(zip(ends.tolist(), ends.tolist()[1:], items, strict=False)):
        part = lists[item][start * item : end * item]
        yield _HEAD[item, width] + plane[index * size : (index + 1) * size] + part


def _itemsizes(left: Unsigned, ends: NDArray[np.int64]) -> list[int]:
    """Return how many bytes the numbers in each part of ``left`` take: 1 where all are below 256."""
    wide = np.searchsorted(ends, np.flatnonzero(left > 255), side="right") - 1
    sizes = np.ones(len(ends) - 1, np.int64)
    sizes[wide] = left.itemsize
    return list(sizes.tolist())


def _means(rows: Unsigned) -> NDArray[np.float32]:
    """Return the mean of each row; as a product, which takes a fifth of the time of ``mean``."""
    size = rows.shape[1]
    return rows.astype(np.float32) @ np.full(size, 1 / max(size, 1), np.float32)


def _to_planes(low: NDArray[np.uint8], width: int) -> NDArray[np.uint8]:
    """Return ``low [n, size]`` below ``2**width`` as ``[n, bytes]``."""
    missing = -low.shape[1] % 8
    if missing:
        low = np.pad(low, ((0, 0), (0, missing)))
    left: NDArray[Any] = low
    planes = []
    for bits in _PLANES[width]:
        field, length = left & (2**bits - 1), left.shape[1] * bits // 8
        plane = field[:, :length]
        for place in range(1, 8 // bits):
            plane |= field[:, place * length : (place + 1) * length] << (bits * place)
        planes.append(plane)
        left = left >> bits if bits < 8 else left
    return np.concatenate(planes, axis=1)


def _from_planes(raw: NDArray[np.uint8], width: int, size: int) -> NDArray[np.uint8]:
    """Return what ``_to_planes`` made of one row of ``size``."""
    low: NDArray[Any] = np.zeros(size, np.uint8)
    start = shift = 0
    for bits in _PLANES[width]:
        plane = raw[start : start + size * bits // 8]
        parts = [(plane >> (bits * place)) & (2**bits - 1) for place in range(8 // bits)]
        low |= np.concatenate(parts) << shift
        start, shift = start + len(plane), shift + bits
    return np.asarray(low, np.uint8)
