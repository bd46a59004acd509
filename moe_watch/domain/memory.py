"""Shares out the bytes that frames and what is made of them may take in the sidecar.

Half is for the pictures of the replicas, which stand as long as a replica is served; the rest is for queues, each with
a fixed part. What does not fit is refused and counted, so that no sender can take the process's memory.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Final

import msgspec

_ATOMS: Final = frozenset({str, bytes, int, float, bool, type(None)})
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
    """Return about how many bytes of memory a frame takes, or a joined request, or any part of one.

    >>> weigh([1.5] * 100), weigh(b"") // 10
    (4056, 3)
    """
    if type(thing) in _ATOMS:  # nearly all fields of a frame, and each frame of each request comes here
        return sys.getsizeof(thing)
    if isinstance(thing, msgspec.Struct):
        fields = msgspec.structs.astuple(thing)
        return 64 + 8 * len(fields) + sum(sys.getsizeof(one) if type(one) in _ATOMS else weigh(one) for one in fields)
    if isinstance(thing, list):
        numbers = bool(thing) and isinstance(thing[0], float)
        return 56 + (40 * len(thing) if numbers else sum(8 + weigh(one) for one in thing))
    if isinstance(thing, dict):
        return 64 + sum(100 + weigh(key) + weigh(value) for key, value in thing.items())
    return sys.getsizeof(thing)
