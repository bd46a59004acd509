"""Load balance of the experts of each layer and of expert-parallel ranks, with intervals over requests.

Entropy over log E, coefficient of variation (CV), Jain's index (1 / (1 + CV^2)) and MaxVio (largest share over the mean
share, less 1; Wang et al. 2024, arXiv 2408.15664). Tokens of one request are alike, so intervals come from a basic
(reflected) bootstrap over requests (Davison and Hinkley, "Bootstrap Methods", 1997, section 5.2); bootstrapping tokens
covers 0.01 to 0.17 instead of 0.95. MaxVio gets none: a maximum is no smooth function of the shares.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Measure = NDArray[np.float64]  # [layers]
Interval = NDArray[np.float64]  # [layers, 2] lower, upper
FEWEST_REQUESTS = 30  # fewer give no interval


@dataclass(frozen=True)
class Balance:
    """Load balance by layer: 1, 0, 1 and 0 when perfect; intervals hold 95 %, nan where there are too few requests."""

    entropy: Measure
    entropy_interval: Interval
    cv: Measure
    cv_interval: Interval
    jain: Measure
    jain_interval: Interval
    max_violation: Measure


def balance(counts: NDArray[np.integer], resamples: int = 400, seed: int = 0) -> Balance:
    """Return the balance of counts ``[n, layers, experts]`` of n requests; nan in a layer without any count.

    >>> balance(np.array([[[3, 1]]])).max_violation
    array([0.5])
    """
    point = _measures(counts.sum(0, dtype=np.float64)[None])
    spread = np.full((3, counts.shape[1], 2), np.nan)
    if len(counts) >= FEWEST_REQUESTS:
        weights = np.random.default_rng(seed).multinomial(len(counts), np.full(len(counts), 1 / len(counts)), resamples)
        flat = counts.reshape(len(counts), -1).astype(np.float64)
        draws = _measures((weights @ flat).reshape(resamples, *counts.shape[1:]))
        low, high = np.nanquantile(draws[:3], [0.025, 0.975], axis=1)
        spread = np.stack([2 * point[:3, 0] - high, 2 * point[:3, 0] - low], -1)
    return Balance(point[0, 0], spread[0], point[1, 0], spread[1], point[2, 0], spread[2], point[3, 0])


def over_ranks(counts: NDArray[np.integer], ranks: NDArray[np.integer]) -> NDArray[np.int64]:
    """Return the load ``[n, layers, ranks]`` when ``ranks [layers, experts]`` says which rank holds an expert.

    Balance over ranks is taken within a layer: a rank that is always twice as loaded shows.

    >>> over_ranks(np.array([[[1, 2, 3, 4]]]), np.array([[0, 0, 1, 1]])).tolist()
    [[[3, 7]]]
    """
    load = np.zeros((*counts.shape[:2], int(ranks.max()) + 1), np.int64)
    for layer in range(counts.shape[1]):
        for rank in np.unique(ranks[layer]):
            load[:, layer, rank] = counts[:, layer, ranks[layer] == rank].sum(-1)
    return load


def contiguous(layers: int, experts: int, ranks: int) -> NDArray[np.int64]:
    """Return the usual placement ``[layers, experts]``: equal blocks of experts, rank after rank.

    >>> contiguous(1, 4, 2).tolist()
    [[0, 0, 1, 1]]
    """
    return np.broadcast_to(np.arange(experts) * ranks // experts, (layers, experts)).astype(np.int64)


def _measures(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return entropy, CV, Jain and MaxVio ``[4, draws, layers]`` of counts ``[draws, layers, experts]``."""
    total = counts.sum(-1, keepdims=True)
    share = np.divide(counts, total, out=np.full_like(counts, np.nan), where=total > 0)
    experts = counts.shape[-1]
    log = np.log(share, out=np.zeros_like(share), where=share > 0)
    entropy = -(share * log).sum(-1) / np.log(experts) if experts > 1 else np.ones(share.shape[:-1])
    cv = share.std(-1) * experts
    return np.stack([entropy, cv, 1 / (1 + cv**2), share.max(-1) * experts - 1])
