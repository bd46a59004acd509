"""Sums over requests from which means and variances of every expert follow; sums of parts give those of the whole."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moe_watch.detect.common.batch import Batch
from moe_watch.detect.ood.baseline import FEWEST_TOKENS, Baseline

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Moments:
    """Routing of some requests, added up; all arrays are ``[layers, experts]``.

    ``counts`` are choices; ``root`` sums the requests' square-root shares and ``share`` their shares, which are the
    squares of the roots.
    """

    requests: int
    counts: NDArray[np.uint64]
    root: Floats
    share: Floats

    @classmethod
    def zero(cls, layers: int, experts: int) -> Moments:
        """Return the sums over no request."""
        return cls(0, np.zeros((layers, experts), np.uint64), np.zeros((layers, experts)), np.zeros((layers, experts)))

    def __add__(self, other: Moments) -> Moments:
        """Return the sums over the requests of both; raises ``ValueError`` when they are of another shape."""
        if self.counts.shape != other.counts.shape:
            raise ValueError(f"{self.counts.shape} and {other.counts.shape} do not add up")
        requests = self.requests + other.requests
        return Moments(requests, self.counts + other.counts, self.root + other.root, self.share + other.share)

    @property
    def mean(self) -> Floats:
        """Mean square-root share of a request."""
        return self.root / max(self.requests, 1)

    @property
    def variance(self) -> Floats:
        """Variance of it over requests."""
        n = max(self.requests, 2)
        return np.asarray(np.maximum(self.share / n - self.mean**2, 0) * n / (n - 1))

    @property
    def load(self) -> Floats:
        """Each expert's share of the choices of its layer, 0 in a layer without any."""
        values = self.counts.astype(np.float64)
        total = values.sum(-1, keepdims=True)
        return np.asarray(np.divide(values, total, out=np.zeros_like(values), where=total > 0))


def of_batch(batch: Batch) -> Moments:
    """Return the sums over the requests of ``batch`` that are long enough to be scored."""
    total = batch.total[batch.tokens >= FEWEST_TOKENS]
    of_layer = total.sum(2, keepdims=True, dtype=np.float32)
    share = np.divide(total, of_layer, out=np.zeros(total.shape, np.float32), where=of_layer > 0)
    sums = np.sqrt(share).sum(0, dtype=np.float64), share.sum(0, dtype=np.float64)
    return Moments(len(total), total.sum(0, dtype=np.uint64), *sums)


def of_baseline(baseline: Baseline) -> Moments:
    """Return the sums over the requests that the baseline's moments were taken from, with the counts of all."""
    n = max(2, round(baseline.kept * baseline.requests))
    mean, deviation = baseline.shares.astype(np.float64), baseline.shares_sd.astype(np.float64)
    return Moments(n, baseline.counts, mean * n, (deviation**2 * (n - 1) / n + mean**2) * n)
