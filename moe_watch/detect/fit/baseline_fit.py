"""The streaming, mergeable fit of a baseline.

Three disjoint sets of requests: the subspace is fitted on the first, what depends on length is learned on the second,
and the third calibrates p-values and drift. Fitting and calibrating on the same rows makes a detector that raises false
alarms in 86 of 100 windows. The sets are made of stretches of time, not of single requests: requests of one session are
alike, and a session in two sets would be such a leak.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from moe_watch.detect.common.batch import Batch, routed_tokens
from moe_watch.detect.common.hellinger import hellinger
from moe_watch.detect.drift.channels import channel_scores
from moe_watch.detect.fit.reservoir import Reservoir
from moe_watch.detect.ood import features
from moe_watch.detect.ood.baseline import FEWEST_TOKENS, PARTS, Baseline, Part, Views
from moe_watch.detect.ood.conformal import calibrate
from moe_watch.detect.ood.score import assess
from moe_watch.detect.ood.subspace import components, learn, novelty

__all__ = ["FEWEST_TOKENS", "PARTS", "Baseline", "BaselineBuilder", "TooFewRequests"]
_RESERVOIR_BYTES: Final = 360 << 20
_MOST_COMPONENTS: Final = {"total": 64, "prompt": 32, "decode": 32}
_REQUESTS_PER_COMPONENT: Final = 6
_STRETCH: Final = 50  # requests in a row that belong to the same set
_SETS: Final = (0.4, 0.15)  # of the requests: to fit, to learn the effect of length; the rest calibrates
_MOST_FITTED: Final = 6000  # more rows would not make better components

Sets = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]


class TooFewRequests(ValueError):  # noqa: N818 - the message reads as a sentence
    """A baseline needs more requests than it was given."""

    def __init__(self, given: int, needed: int) -> None:
        are = "request is" if given == 1 else "requests are"
        super().__init__(f"{given} {are} too few for a baseline: {needed} are needed, so {needed - given} more")
        self.given = given
        self.needed = needed


class BaselineBuilder:
    """Collects requests in any order and in any number of pieces; what it builds depends only on which there were.

    It keeps a uniform sample of at most ``size`` requests (by default what fits 360 MB), so memory is bounded; fitted
    on two halves and merged is the same as fitted on the whole, bit for bit.
    """

    def __init__(self, minimum: int = 500, size: int | None = None) -> None:
        self.minimum = minimum
        self._size = size
        self._reservoir: Reservoir | None = None
        self._counts: NDArray[np.uint64] | None = None
        self._users: NDArray[np.uint64] | None = None
        self._top_k = 0

    @property
    def requests(self) -> int:
        """Requests seen so far that had enough routed tokens."""
        return 0 if self._reservoir is None else self._reservoir.seen

    def add(self, batch: Batch) -> None:
        """Take in ``batch``, but for requests with too few routed tokens; raises ``ValueError`` on another shape."""
        batch = batch.select(batch.tokens >= FEWEST_TOKENS)
        size = self._size or max(1000, min(20_000, _RESERVOIR_BYTES // (8 * batch.layers * batch.experts)))
        self._prepare(Reservoir(size), (batch.layers, batch.experts), batch.top_k)
        self._sum(batch.total.sum(0, dtype=np.uint64), (batch.total > 0).sum(0, dtype=np.uint64))
        if self._reservoir is not None:
            self._reservoir.add(batch)

    def merge(self, other: BaselineBuilder) -> None:
        """Take in all that ``other`` saw; raises ``ValueError`` when it saw another shape."""
        if other._reservoir is None or other._counts is None or other._users is None:
            return
        self._prepare(Reservoir(other._reservoir.size), other._counts.shape, other._top_k)
        self._sum(other._counts, other._users)
        if self._reservoir is not None:
            self._reservoir.merge(other._reservoir)

    def _prepare(self, reservoir: Reservoir, shape: tuple[int, ...], top_k: int) -> None:
        """Take on the shape of the first requests, hold all others to it."""
        if self._reservoir is None:
            self._reservoir, self._top_k = reservoir, top_k
            self._counts, self._users = np.zeros(shape, np.uint64), np.zeros(shape, np.uint64)
        elif self._counts is None or (self._counts.shape, self._top_k) != (shape, top_k):
            raise ValueError(f"requests of {shape} top-{top_k} do not belong to this baseline")

    def _sum(self, counts: NDArray[np.uint64], users: NDArray[np.uint64]) -> None:
        if self._counts is not None and self._users is not None:
            self._counts, self._users = self._counts + counts, self._users + users

    def build(self, seed: int = 0) -> Baseline:
        """Return the baseline; raises ``TooFewRequests`` below the minimum. ``seed`` draws the three sets."""
        if self._reservoir is None or self._counts is None or self._users is None or self.requests < self.minimum:
            raise TooFewRequests(self.requests, self.minimum)
        sample = _in_order(self._reservoir.sample(self._top_k), seed)
        sets = _split(len(sample), seed)
        parts = {name: part for name in PARTS if (part := _fit_part(sample, name, sets)) is not None}
        shares, deviation = _moments(sample)
        draft = Baseline(
            layers=sample.layers,
            experts=sample.experts,
            top_k=self._top_k,
            requests=self.requests,
            counts=self._counts,
            users=self._users,
            shares=shares,
            shares_sd=deviation,
            parts=parts,
            views=_fit_views(sample, parts["total"], sets),
            scores=np.zeros((0, 0), np.float32),
            kept=len(sample) / self.requests,
            entropy=_mean_entropy(sample),
        )
        return _with_scores(draft, sample.select(sets[2]))


def _in_order(sample: Batch, seed: int) -> Batch:
    """Return the sample in the order of time, or in a random order where all requests finished at once."""
    times = sample.finished_at
    if times is None or np.ptp(times) == 0:
        return sample.select(np.random.default_rng(seed).permutation(len(sample)))
    return sample.select(np.argsort(times, kind="stable"))


def _split(n: int, seed: int) -> Sets:
    """Return three sets of rows, each in the order of time, made of whole stretches as far as their sizes allow."""
    stretch = max(1, min(_STRETCH, n // 40))
    label = np.random.default_rng(seed).permutation(-(-n // stretch)).repeat(stretch)[:n]
    order = np.argsort(label, kind="stable")
    first, second = (np.cumsum(_SETS) * n).astype(int)
    return np.sort(order[:first]), np.sort(order[first:second]), np.sort(order[second:])


def _fit_part(sample: Batch, name: str, sets: Sets) -> Part | None:
    """Fit one part, or return None when too few requests have enough of it."""
    counts = getattr(sample, name)
    tokens = routed_tokens(counts, sample.top_k)
    fit, length, calibration = (rows[tokens[rows] >= FEWEST_TOKENS] for rows in sets)
    if min(len(fit), len(length), len(calibration)) < 6:
        return None
    fit = fit[:: -(-len(fit) // _MOST_FITTED)]
    frame = components(counts[fit], _components(name, len(fit), counts[0].size))
    subspace = learn(frame, (counts[fit], tokens[fit]), (counts[length], tokens[length]))
    scores = np.concatenate([novelty(subspace, counts[r], tokens[r]).score for r in _pieces(calibration)])
    return Part(subspace, calibrate(scores, tokens[calibration]))


def _components(name: str, fitted: int, size: int) -> int:
    """Return how many components to try: no more than the requests can tell, nor two thirds of all directions."""
    return max(2, min(_MOST_COMPONENTS[name], fitted // _REQUESTS_PER_COMPONENT, size * 2 // 3))


def _fit_views(sample: Batch, part: Part, sets: Sets) -> Views:
    fitted, learned = sample.select(sets[0][:_MOST_FITTED]), sample.select(sets[1])
    inside = novelty(part.subspace, fitted.total, fitted.tokens).place.inside
    return features.learn(part.subspace, novelty(part.subspace, learned.total, learned.tokens), inside, learned)


def _with_scores(draft: Baseline, calibration: Batch) -> Baseline:
    """Return ``draft`` with the channel scores of its calibration requests."""
    batches = [calibration.select(rows) for rows in _pieces(np.arange(len(calibration)))]
    scores = [channel_scores(draft, assess(draft, batch), batch) for batch in batches]
    return replace(draft, scores=np.concatenate(scores))


def _moments(sample: Batch) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return mean and standard deviation over requests of the square-root shares ``[layers, experts]``."""
    roots = [hellinger(sample.total[rows]) for rows in _pieces(np.arange(len(sample)))]
    mean = sum(r.sum(0, dtype=np.float64) for r in roots) / len(sample)
    variance = sum(((r - mean) ** 2).sum(0) for r in roots) / max(len(sample) - 1, 1)
    return np.asarray(mean, np.float32), np.asarray(np.sqrt(variance), np.float32)


def _mean_entropy(sample: Batch) -> NDArray[np.float32]:
    """Return the mean over requests of the router entropy of each layer, nan where no request has it."""
    entropy = np.full((1, sample.layers), np.nan) if sample.entropy is None else sample.entropy.astype(np.float64)
    known = np.isfinite(entropy)
    mean = np.where(known, entropy, 0).sum(0) / np.where(known.any(0), known.sum(0), np.nan)
    return np.asarray(mean, np.float32)


def _pieces(rows: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Return ``rows`` in pieces small enough that their features fit the cache of memory that a fit may use."""
    return np.array_split(rows, max(1, len(rows) // 1000))
