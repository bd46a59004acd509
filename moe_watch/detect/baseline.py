"""A fitted picture of normal routing, and the streaming, mergeable fit of it.

Three disjoint random sets of requests: the subspace is fitted on the first, its standardisation by length on the
second, the p-values are calibrated on the third. Fitting and calibrating on the same rows makes a detector that raises
false alarms in 86 of 100 windows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from moe_watch.detect import pack
from moe_watch.detect.batch import Batch, routed_tokens
from moe_watch.detect.conformal import Calibration, calibrate
from moe_watch.detect.reservoir import Reservoir
from moe_watch.detect.subspace import Subspace, components, learn, residual, standardise

PARTS = ("total", "prompt", "decode")
FEWEST_TOKENS = 8  # a part with fewer routed tokens is not scored
_RESERVOIR_BYTES = 600 << 20
_MOST_COMPONENTS = {"total": 64, "prompt": 32, "decode": 32}
_PLAIN = ("layers", "experts", "top_k", "requests", "counts", "scores", "finished_at")
_SHARES = (0.4, 0.15)  # of the requests: fit, standardise; the rest calibrates


class TooFewRequests(ValueError):  # noqa: N818 - the message reads as a sentence
    """A baseline needs more requests than it was given."""

    def __init__(self, given: int, needed: int) -> None:
        super().__init__(f"{given} requests are too few for a baseline: {needed} are needed, so {needed - given} more")
        self.given = given
        self.needed = needed


@dataclass(frozen=True)
class Part:
    """Normal routing of one part of the requests, and the scores of the calibration requests."""

    subspace: Subspace
    calibration: Calibration


@dataclass(frozen=True)
class Baseline:
    """What is normal: ``parts`` by name ("total", and "prompt" and "decode" where there were enough of them)."""

    layers: int
    experts: int
    top_k: int
    requests: int
    counts: NDArray[np.uint64]  # [layers, experts] over all requests
    parts: Mapping[str, Part]
    scores: NDArray[np.float32]  # [calibration requests, channels], see drift.py
    finished_at: NDArray[np.float64]  # [calibration requests]

    def to_bytes(self) -> bytes:
        """Return the baseline as an npz archive."""
        parts = {
            key: array for name, part in self.parts.items() for key, array in pack.flatten(part, f"{name}.").items()
        }
        own = {name: np.asarray(getattr(self, name)) for name in _PLAIN}
        return pack.to_bytes(own | parts)

    @classmethod
    def from_bytes(cls, raw: bytes) -> Baseline:
        """Return the baseline in ``raw``; raises ``ValueError`` or ``KeyError`` when it is none. Runs no pickles."""
        arrays = pack.from_bytes(raw)
        parts = {name: pack.restore(Part, arrays, f"{name}.") for name in PARTS if f"{name}.subspace.mean" in arrays}
        layers, experts, top_k, requests = (int(arrays[name]) for name in _PLAIN[:4])
        return cls(layers, experts, top_k, requests, arrays["counts"], parts, arrays["scores"], arrays["finished_at"])


class BaselineBuilder:
    """Collects requests in any order and in any number of pieces; what it builds depends only on which there were.

    It keeps a uniform sample of at most ``size`` requests (by default what fits 600 MB), so memory is bounded; fitted
    on two halves and merged is the same as fitted on the whole, bit for bit.
    """

    def __init__(self, minimum: int = 500, size: int | None = None) -> None:
        self.minimum = minimum
        self._size = size
        self._reservoir: Reservoir | None = None
        self._counts: NDArray[np.uint64] | None = None
        self._top_k = 0

    @property
    def requests(self) -> int:
        """Requests seen so far that had any routing."""
        return 0 if self._reservoir is None else self._reservoir.seen

    def add(self, batch: Batch) -> None:
        """Take in ``batch``, but for requests with too few routed tokens; raises ``ValueError`` on another shape."""
        batch = batch.select(batch.tokens >= FEWEST_TOKENS)
        if self._reservoir is None:
            size = self._size or max(1000, min(20_000, _RESERVOIR_BYTES // (8 * batch.layers * batch.experts)))
            self._reservoir = Reservoir(size)
            self._counts = np.zeros((batch.layers, batch.experts), np.uint64)
            self._top_k = batch.top_k
        if self._counts is None or self._counts.shape != batch.total.shape[1:] or self._top_k != batch.top_k:
            raise ValueError(f"requests of {batch.total.shape[1:]} top-{batch.top_k} do not belong to this baseline")
        self._counts = self._counts + batch.total.sum(0, dtype=np.uint64)
        self._reservoir.add(batch)

    def merge(self, other: BaselineBuilder) -> None:
        """Take in all that ``other`` saw; raises ``ValueError`` when it saw another shape."""
        if other._reservoir is None or other._counts is None:
            return
        if self._reservoir is None or self._counts is None:
            self._reservoir = Reservoir(other._reservoir.size)
            self._counts, self._top_k = np.zeros_like(other._counts), other._top_k
        if self._counts.shape != other._counts.shape or self._top_k != other._top_k:
            raise ValueError("the two builders saw models of different shapes")
        self._counts = self._counts + other._counts
        self._reservoir.merge(other._reservoir)

    def build(self, seed: int = 0) -> Baseline:
        """Return the baseline; raises ``TooFewRequests`` below the minimum. ``seed`` draws the three sets."""
        if self._reservoir is None or self._counts is None or self.requests < self.minimum:
            raise TooFewRequests(self.requests, self.minimum)
        sample = self._reservoir.sample(self._top_k)
        order = np.random.default_rng(seed).permutation(len(sample))
        first, second = (np.cumsum(_SHARES) * len(sample)).astype(int)
        roles = (order[:first], order[first:second], np.sort(order[second:]))
        parts = {name: part for name in PARTS if (part := _fit_part(sample, name, roles)) is not None}
        layers, experts = self._counts.shape
        draft = Baseline(
            layers, experts, self._top_k, self.requests, self._counts, parts, np.zeros((0, 0), np.float32), np.zeros(0)
        )
        return with_scores(draft, sample.select(roles[2]))


Roles = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]


def _fit_part(sample: Batch, name: str, roles: Roles) -> Part | None:
    """Fit one part, or return None when too few requests have enough of it."""
    counts = getattr(sample, name)
    tokens = routed_tokens(counts, sample.top_k)
    enough = [rows[tokens[rows] >= FEWEST_TOKENS] for rows in roles]
    if min(len(rows) for rows in enough) < 6:
        return None
    axes = components(counts[enough[0]], max(2, min(_MOST_COMPONENTS[name], len(enough[0]) // 12)))
    subspace = learn(*axes, counts[enough[1]], tokens[enough[1]])
    spe, _ = residual(subspace.mean, subspace.axes, counts[enough[2]])
    _, score = standardise(subspace, spe, tokens[enough[2]])
    return Part(subspace, calibrate(score, tokens[enough[2]]))


def with_scores(draft: Baseline, calibration: Batch) -> Baseline:
    """Return ``draft`` with the channel scores of its calibration requests, in the order of time."""
    from moe_watch.detect.channels import channel_scores  # noqa: PLC0415 - channels read a baseline

    times = np.zeros(len(calibration)) if calibration.finished_at is None else calibration.finished_at
    order = np.argsort(times, kind="stable")
    scores = channel_scores(draft, calibration.select(order)).values
    return replace(draft, scores=scores, finished_at=times[order])
