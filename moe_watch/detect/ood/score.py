"""Out-of-distribution score of a request from its routing, with a conformal p-value that knows its length.

Guarantee: for requests exchangeable with the calibration requests of their bin of length, P(p <= a) <= a on average
over baselines (marginal).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moe_watch.detect.common.batch import Batch, routed_tokens
from moe_watch.detect.ood import features
from moe_watch.detect.ood.baseline import FEWEST_TOKENS, Baseline
from moe_watch.detect.ood.conformal import p_values
from moe_watch.detect.ood.subspace import Novelty, novelty


@dataclass(frozen=True)
class OodScores:
    """Scores of n requests; nan where a part has too few tokens or the baseline has none of it.

    Scores are in standard deviations of normal requests of the same length: ``score`` of the whole request, ``layer``
    of each layer, and those of its parts; ``p``, ``p_prompt`` and ``p_decode`` are conformal p-values.
    """

    score: NDArray[np.float32]  # [n]
    p: NDArray[np.float64]  # [n]
    p_prompt: NDArray[np.float64]  # [n]
    p_decode: NDArray[np.float64]  # [n]
    layer: NDArray[np.float32]  # [n, layers]
    score_prompt: NDArray[np.float32]  # [n]
    score_decode: NDArray[np.float32]  # [n]


@dataclass(frozen=True)
class Assessed:
    """Scores of a batch, and what the drift channels need of the requests with enough tokens, ``rows [m]``."""

    scores: OodScores
    rows: NDArray[np.int64]
    novelty: Novelty
    extreme: NDArray[np.float32]  # [m, 1] largest excess of an expert


def score(baseline: Baseline, batch: Batch) -> OodScores:
    """Score the requests of ``batch``; raises ``ValueError`` when it is of another shape than the baseline."""
    return assess(baseline, batch).scores


def assess(baseline: Baseline, batch: Batch) -> Assessed:
    """Score the requests of ``batch`` and keep what the drift channels need; raises ``ValueError`` as ``score``."""
    theirs, ours = (batch.layers, batch.experts, batch.top_k), (baseline.layers, baseline.experts, baseline.top_k)
    if theirs != ours:
        raise ValueError(f"requests of {theirs} (layers, experts, top-k) against a baseline of {ours}")
    part, tokens = baseline.parts["total"], batch.tokens
    rows = np.flatnonzero(tokens >= FEWEST_TOKENS)
    seen = novelty(part.subspace, batch.total if len(rows) == len(batch) else batch.total[rows], tokens[rows])
    total, layer = np.full(len(batch), np.nan, np.float32), np.full((len(batch), batch.layers), np.nan, np.float32)
    total[rows] = seen.score
    layer[rows], extreme = features.layers(baseline.views, part.subspace, seen)
    prompt, p_prompt = _part(baseline, batch, "prompt")
    decode, p_decode = _part(baseline, batch, "decode")
    p = p_values(part.calibration, total, tokens)
    return Assessed(OodScores(total, p, p_prompt, p_decode, layer, prompt, decode), rows, seen, extreme)


def _part(baseline: Baseline, batch: Batch, name: str) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Return score ``[n]`` and p ``[n]`` of one part."""
    counts = getattr(batch, name)
    tokens = routed_tokens(counts, batch.top_k)
    scores = np.full(len(batch), np.nan, np.float32)
    part = baseline.parts.get(name)
    if part is None:
        return scores, np.full(len(batch), np.nan)
    rows = np.flatnonzero(tokens >= FEWEST_TOKENS)
    enough = counts if len(rows) == len(batch) else counts[rows]
    scores[rows] = novelty(part.subspace, enough, tokens[rows]).score
    return scores, p_values(part.calibration, scores, tokens)
