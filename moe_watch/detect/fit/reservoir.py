"""A uniform sample of a stream that two halves can share: the k requests with the smallest hash (bottom-k sampling).

Whether a request is kept depends on its own hash alone, so the sample of two merged streams is exactly the sample of
the one whole stream, in whatever order the requests came. Cohen and Kaplan, "Summarizing data using bottom-k
sketches", PODC 2007.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from moe_watch.detect.common.batch import Batch


def priorities(batch: Batch) -> NDArray[np.uint64]:
    """Return a hash ``[n]`` of what each request is and when it finished, uniform over 64 bits."""
    times = np.zeros(len(batch)) if batch.finished_at is None else batch.finished_at
    prompt, decode = np.ascontiguousarray(batch.prompt, "<u4"), np.ascontiguousarray(batch.decode, "<u4")
    digests = [
        hashlib.blake2b(p.tobytes() + d.tobytes() + t.tobytes(), digest_size=8).digest()
        for p, d, t in zip(prompt, decode, times.astype("<f8"), strict=True)
    ]
    return np.frombuffer(b"".join(digests), "<u8").astype(np.uint64)


def _narrow(counts: NDArray[np.uint32]) -> NDArray[np.unsignedinteger]:
    """Return ``counts`` in the narrowest type that holds them: a baseline keeps thousands."""
    highest = int(counts.max(initial=0))
    return counts.astype(np.uint8 if highest < 1 << 8 else np.uint16 if highest < 1 << 16 else np.uint32)


@dataclass(frozen=True)
class _Chunk:
    """Some kept requests."""

    priority: NDArray[np.uint64]
    prompt: NDArray[np.unsignedinteger]
    decode: NDArray[np.unsignedinteger]
    confidence: NDArray[np.float32]  # [n, 2, layers]: entropy, margin; nan where unknown
    finished_at: NDArray[np.float64]

    def select(self, rows: NDArray[np.integer]) -> _Chunk:
        return _Chunk(*(getattr(self, field.name)[rows] for field in fields(self)))


def _chunk(batch: Batch, priority: NDArray[np.uint64]) -> _Chunk:
    unknown = np.full((len(batch), batch.layers), np.nan, np.float32)
    entropy = unknown if batch.entropy is None else batch.entropy
    margin = unknown if batch.margin is None else batch.margin
    times = np.zeros(len(batch)) if batch.finished_at is None else batch.finished_at
    confidence = np.stack([entropy, margin], 1).astype(np.float32)
    return _Chunk(priority, _narrow(batch.prompt), _narrow(batch.decode), confidence, times.astype(np.float64))


class Reservoir:
    """At most ``size`` requests of a stream, each request as likely as any other; memory is bounded by 2 ``size``."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.seen = 0
        self._chunks: list[_Chunk] = []
        self._kept = 0
        self._bound = np.iinfo(np.uint64).max

    def add(self, batch: Batch) -> None:
        """Offer the requests of ``batch``."""
        self.seen += len(batch)
        priority = priorities(batch)
        rows = np.flatnonzero(priority <= self._bound)
        if rows.size:
            self._keep(_chunk(batch.select(rows), priority[rows]))

    def merge(self, other: Reservoir) -> None:
        """Take over what ``other`` saw, as if this one had seen it too."""
        self.seen += other.seen
        for chunk in other._chunks:
            self._keep(chunk)

    def _keep(self, chunk: _Chunk) -> None:
        self._chunks.append(chunk)
        self._kept += len(chunk.priority)
        if self._kept > 2 * self.size:
            self._prune()

    def _prune(self) -> None:
        """Keep the ``size`` smallest priorities, sorted by them."""
        whole = _Chunk(*(np.concatenate([getattr(c, f.name) for c in self._chunks]) for f in fields(_Chunk)))
        # Equal hashes are equal requests, so any stable order gives the same sample; time decides in the last resort.
        order = np.lexsort((whole.finished_at, whole.priority))[: self.size]
        kept = whole.select(order)
        self._chunks, self._kept = [kept], len(order)
        if len(order) == self.size:
            self._bound = kept.priority[-1]

    def sample(self, top_k: int) -> Batch:
        """Return the kept requests in the order of their hashes, which is a random order; needs at least one."""
        self._prune()
        kept = self._chunks[0]
        return Batch(
            kept.prompt.astype(np.uint32),
            kept.decode.astype(np.uint32),
            top_k,
            kept.confidence[:, 0],
            kept.confidence[:, 1],
            kept.finished_at,
        )
