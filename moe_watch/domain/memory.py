"""Shares out the bytes that frames and what is made of them may take in the sidecar.

Half is for the pictures of the replicas, which stand as long as a replica is served; the rest is for queues, each with
a fixed part. What does not fit is refused and counted, so that no sender can take the process's memory.
"""

from __future__ import annotations

import functools
import sys
from dataclasses import dataclass
from typing import Final

import msgspec

_ATOMS: Final = frozenset({str, bytes, int, float, bool, type(None)})
_NUMBERS: Final = (msgspec.inspect.IntType, msgspec.inspect.FloatType, msgspec.inspect.BoolType)
_NUMBER_BYTES: Final = 32
_CELL_BYTES: Final = 640  # of a picture: 256 fingerprints, two windows, and the detectors' sums


@dataclass(frozen=True)
class Parts:
    """The parts of ``total`` bytes."""

    total: int

    @property
    def cells(self) -> int:
        """Return how many cells (layers x experts) the pictures of all replicas may have together."""
        return self.total // 2 // _CELL_BYTES

    @property
    def join(self) -> int:
        """Return the bytes of the requests of which some part is awaited."""
        return self.total // 8

    @property
    def waiting(self) -> int:
        """Return the bytes of what waits for the judge, and of what is being judged."""
        return self.total // 8

    @property
    def held(self) -> int:
        """Return the bytes of the requests whose replica has not announced a model."""
        return self.total // 16

    @property
    def taken(self) -> int:
        """Return the bytes taken off the socket at once."""
        return self.total // 16

    @property
    def written(self) -> int:
        """Return the bytes that may wait for the store in memory."""
        return self.total // 8


def weigh(thing: object) -> int:
    """Return about how many bytes of memory a frame takes, or any part of one.

    >>> weigh([1.5] * 100), weigh(b"") // 10
    (4056, 3)
    """
    if type(thing) in _ATOMS:
        return sys.getsizeof(thing)
    if isinstance(thing, msgspec.Struct):
        size, varied = _fields(type(thing))
        for name in varied:  # not sum() of a generator: each frame of each request comes here
            one = getattr(thing, name)
            size += sys.getsizeof(one) if type(one) in _ATOMS else weigh(one)
        return size
    if isinstance(thing, list):
        numbers = bool(thing) and isinstance(thing[0], float)
        return 56 + (40 * len(thing) if numbers else sum(8 + weigh(one) for one in thing))
    if isinstance(thing, dict):
        return 64 + sum(100 + weigh(key) + weigh(value) for key, value in thing.items())
    return sys.getsizeof(thing)


@functools.cache
def _fields(kind: type[msgspec.Struct]) -> tuple[int, tuple[str, ...]]:
    """Return the bytes of what is of one size in all of a kind, and the names of the other fields."""
    fields = msgspec.inspect.type_info(kind).fields  # type: ignore[attr-defined]
    varied = tuple(field.name for field in fields if not isinstance(field.type, _NUMBERS))
    return 64 + 8 * len(fields) + _NUMBER_BYTES * (len(fields) - len(varied)), varied
