"""Where did routing move: layers ranked by evidence, and experts with a bound on false discoveries.

The unit is the request: each expert's square-root share in fresh requests is compared with that in the baseline's by
Welch's t (1947), and experts are selected by Benjamini and Hochberg's procedure (1995) at a level corrected for any
dependence (Benjamini and Yekutieli, 2001), since shares of one request hang together. Tests that take tokens as the
unit flag nearly every expert. Welch's t needs many requests for skewed shares, so below ``FEWEST`` requests no expert
is named. Compare like with like: a change of lengths alone moves square-root shares of rare experts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from moe_watch.detect.batch import Batch
from moe_watch.detect.normal import FEWEST_TOKENS, Baseline
from moe_watch.detect.shares import hellinger

FEWEST: Final = 500


@dataclass(frozen=True)
class Moved:
    """An expert that moved: its share of the layer's choices in the baseline and now, and the t statistic."""

    layer: int
    expert: int
    before: float
    now: float
    t: float


@dataclass(frozen=True)
class Localisation:
    """Layers from the most to the least moved, their evidence, and the experts that moved.

    ``evidence [layers]`` is the mean of t^2 over a layer's experts, 1 on average where nothing moved; ``experts`` is
    None, not empty, where there are too few requests to name any.
    """

    layers: NDArray[np.int64]
    evidence: NDArray[np.float64]
    experts: list[Moved] | None


def localise(baseline: Baseline, batch: Batch, false_discoveries: float = 0.1) -> Localisation:
    """Compare the requests of ``batch`` with the baseline; at most that share of the named experts is named falsely."""
    batch = batch.select(batch.tokens >= FEWEST_TOKENS)
    if len(batch) < 2:
        return Localisation(np.arange(baseline.layers), np.ones(baseline.layers), None)
    statistic, p = _welch(baseline, hellinger(batch.total))
    evidence = (statistic**2).mean(1)
    order = np.argsort(-evidence, kind="stable")
    if len(batch) < FEWEST:
        return Localisation(order, evidence, None)
    before, now = (c / np.maximum(c.sum(1, keepdims=True), 1) for c in (baseline.counts, batch.total.sum(0)))
    found = np.argwhere(select(p, false_discoveries))
    experts = [Moved(int(x), int(e), float(before[x, e]), float(now[x, e]), float(statistic[x, e])) for x, e in found]
    return Localisation(order, evidence, sorted(experts, key=lambda moved: -abs(moved.t)))


def select(p: NDArray[np.floating], false_discoveries: float) -> NDArray[np.bool_]:
    """Return which hypotheses of any shape to reject, under any dependence of their p-values.

    >>> select(np.array([1e-6, 0.2, 0.9]), 0.1).tolist()
    [True, False, False]
    """
    ordered = np.sort(p, axis=None)
    ranks = np.arange(1, ordered.size + 1)
    limits = false_discoveries * ranks / ordered.size / (1 / ranks).sum()
    passed = np.flatnonzero(ordered <= limits)
    return np.asarray(p <= ordered[passed[-1]] if passed.size else np.zeros(p.shape, bool))


def _welch(baseline: Baseline, roots: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return t and two-sided p ``[layers, experts]``; 0 and 1 where an expert is not chosen anywhere."""
    n, known = len(roots), baseline.kept * baseline.requests
    ours, theirs = roots.var(0, ddof=1, dtype=np.float64) / n, baseline.shares_sd.astype(np.float64) ** 2 / known
    error = ours + theirs
    shift = roots.mean(0, dtype=np.float64) - baseline.shares
    statistic = np.divide(shift, np.sqrt(error), out=np.zeros_like(shift), where=error > 0)
    parts = ours**2 / (n - 1) + theirs**2 / max(known - 1, 1)
    degrees = np.divide(error**2, parts, out=np.ones_like(error), where=parts > 0)
    return statistic, 2 * student.sf(np.abs(statistic), degrees)
