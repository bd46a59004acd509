"""Arrays as bytes of a column: one byte for the width, then zlib over little-endian numbers, row by row.

Shapes are not stored: they follow from the model's row.
"""

from __future__ import annotations

import zlib
from typing import Final

import numpy as np
from numpy.typing import NDArray

from moe_watch import wire

_LEVEL: Final = 1  # level 6 is 3 % smaller and takes twice as long on fingerprints
_CODES: Final = {"u1": b"1", "u2": b"2", "u4": b"4", "u8": b"8", "f4": b"f", "f8": b"d"}
_DTYPES: Final = {code[0]: np.dtype(f"<{name}") for name, code in _CODES.items()}


def pack(array: NDArray[np.generic]) -> bytes:
    """Return unsigned integers or floats of any shape as bytes; raise ``KeyError`` for another type."""
    little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return _CODES[little.dtype.str[1:]] + zlib.compress(little.tobytes(), _LEVEL)


def pack_counts(counts: wire.Counts) -> bytes:
    """Return the array in ``counts`` packed, without making the array.

    Counts hold no repetitions worth a search, so only their frequencies are coded: that takes half the time and gives
    fewer bytes (30 x 128 at 256 tokens: 2.4 instead of 2.7 KB).
    """
    coder = zlib.compressobj(_LEVEL, zlib.DEFLATED, zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, zlib.Z_HUFFMAN_ONLY)
    return _CODES[counts.dtype] + coder.compress(counts.data) + coder.flush()


def unpack(raw: bytes, shape: tuple[int, ...]) -> NDArray[np.generic]:
    """Return the array in ``raw``; raise ``ValueError`` when it is none of that shape.

    >>> unpack(pack(np.array([[1, 2]], np.uint8)), (1, 2)).tolist()
    [[1, 2]]
    """
    dtype = _DTYPES.get(raw[0]) if raw else None
    if dtype is None:
        raise ValueError("not a packed array")
    try:
        return np.frombuffer(zlib.decompress(raw[1:]), dtype).reshape(shape)
    except zlib.error as error:
        raise ValueError(f"not a packed array: {error}") from error


def unpack_counts(raw: bytes, layers: int, experts: int) -> wire.CountArray:
    """Return the counts ``[layers, experts]`` in ``raw``; raise ``ValueError`` when they are not that many."""
    return unpack(raw, (layers, experts)).astype(np.uint32)
