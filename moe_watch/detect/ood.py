"""Out-of-distribution score of a request from its routing, with a conformal p-value that knows its length.

Guarantee: for requests exchangeable with the calibration requests of their bin of length, P(p <= a) <= a on average
over baselines (marginal).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moe_watch.detect.baseline import FEWEST_TOKENS, Baseline
from moe_watch.detect.batch import Batch, routed_tokens
from moe_watch.detect.conformal import p_values
from moe_watch.detect.subspace import residual, standardise


@dataclass(frozen=True)
class OodScores:
    """Scores of n requests; nan where a part has too few tokens or the baseline has none of it.

    ``score`` is in standard deviations of normal requests of the same length, ``layer`` likewise for each layer;
    ``p`` is for the whole request, ``p_prompt`` and ``p_decode`` for its parts.
    """

    score: NDArray[np.float32]  # [n]
    p: NDArray[np.float64]  # [n]
    p_prompt: NDArray[np.float64]  # [n]
    p_decode: NDArray[np.float64]  # [n]
    layer: NDArray[np.float32]  # [n, layers]


def score(baseline: Baseline, batch: Batch) -> OodScores:
    """Score the requests of ``batch``; raises ``ValueError`` when it is of another shape than the baseline."""
    check_shape(baseline, batch)
    total, layer, p = _part(baseline, batch, "total")
    return OodScores(total, p, _part(baseline, batch, "prompt")[2], _part(baseline, batch, "decode")[2], layer)


def check_shape(baseline: Baseline, batch: Batch) -> None:
    """Raise ``ValueError`` when ``batch`` is not of the model of ``baseline``."""
    theirs, ours = (batch.layers, batch.experts, batch.top_k), (baseline.layers, baseline.experts, baseline.top_k)
    if theirs != ours:
        raise ValueError(f"requests of {theirs} (layers, experts, top-k) against a baseline of {ours}")


def _part(
    baseline: Baseline, batch: Batch, name: str
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float64]]:
    """Return score ``[n]``, score by layer ``[n, layers]`` and p ``[n]`` of one part."""
    counts = getattr(batch, name)
    tokens = routed_tokens(counts, batch.top_k)
    total = np.full(len(batch), np.nan, np.float32)
    layer = np.full((len(batch), batch.layers), np.nan, np.float32)
    rows = np.flatnonzero(tokens >= FEWEST_TOKENS)
    part = baseline.parts.get(name)
    if part is None or rows.size == 0:
        return total, layer, np.full(len(batch), np.nan)
    spe, _ = residual(part.subspace.mean, part.subspace.axes, counts[rows])
    layer[rows], total[rows] = standardise(part.subspace, spe, tokens[rows])
    return total, layer, p_values(part.calibration, total, tokens)
