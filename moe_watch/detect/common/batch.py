"""What every detector reads: the fingerprints of some finished requests."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.floating]
Counts = NDArray[np.uint32]


@dataclass(frozen=True)
class Batch:
    """Fingerprints of n requests in the order in which they finished.

    ``prompt`` and ``decode`` are counts ``[n, layers, experts]``; ``entropy`` (nats) and ``margin`` (probability of the
    first expert less that of the second) are means over a request's tokens, ``[n, layers]``, nan where unknown;
    ``finished_at`` is in seconds. Raises ``ValueError`` when the shapes do not agree.

    >>> one = np.array([[[2, 2, 0], [0, 1, 3]]], np.uint32)
    >>> Batch(one, one, top_k=2, finished_at=np.zeros(1)).tokens
    array([4.])
    """

    prompt: Counts
    decode: Counts
    top_k: int
    entropy: NDArray[np.float32] | None = None
    margin: NDArray[np.float32] | None = None
    finished_at: NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        """Refuse arrays that do not belong together."""
        shape = self.prompt.shape
        if len(shape) != 3 or self.decode.shape != shape:
            raise ValueError(f"prompt {shape} and decode {self.decode.shape} must both be [n, layers, experts]")
        if self.top_k < 1:
            raise ValueError(f"top_k is {self.top_k}, at least 1 is needed")
        for name in ("entropy", "margin"):
            values = getattr(self, name)
            if values is not None and values.shape != shape[:2]:
                raise ValueError(f"{name} {values.shape} must be [n, layers] = {shape[:2]}")
        if self.finished_at is not None and self.finished_at.shape != shape[:1]:
            raise ValueError(f"finished_at {self.finished_at.shape} must be [n] = {shape[:1]}")

    def __len__(self) -> int:
        """Return the number of requests."""
        return len(self.prompt)

    @property
    def layers(self) -> int:
        """Number of layers with experts."""
        return int(self.prompt.shape[1])

    @property
    def experts(self) -> int:
        """Number of experts of a layer."""
        return int(self.prompt.shape[2])

    @cached_property
    def total(self) -> Counts:
        """Counts of prompt and generated part together, ``[n, layers, experts]``."""
        return self.prompt + self.decode

    @cached_property
    def tokens(self) -> NDArray[np.float64]:
        """Routed tokens of each request, ``[n]``."""
        return routed_tokens(self.total, self.top_k)

    def select(self, rows: NDArray[np.integer] | NDArray[np.bool_] | slice) -> Batch:
        """Return the requests that ``rows`` (indices, a mask or a slice) picks."""
        entropy, margin, finished = self.entropy, self.margin, self.finished_at
        return Batch(
            self.prompt[rows],
            self.decode[rows],
            self.top_k,
            None if entropy is None else entropy[rows],
            None if margin is None else margin[rows],
            None if finished is None else finished[rows],
        )


def routed_tokens(counts: NDArray[np.integer], top_k: int) -> NDArray[np.float64]:
    """Return the routed tokens ``[n]`` behind counts ``[n, layers, experts]``, read off the first layer."""
    return np.asarray(counts[:, 0].sum(1) / top_k, np.float64)
