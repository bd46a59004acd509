"""The channels in which a drift can show, one number a request and channel; large means unusual.

"ood": novelty over all layers; "layer": novelty of one layer; "mix": a leading direction of normal routing, upwards or
downwards (a shift among known topics, which novelty does not see); "confidence": mean router entropy, both ways;
"expert": the largest excess of one expert over its normal share.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moe_watch.detect.baseline import FEWEST_TOKENS, Baseline
from moe_watch.detect.batch import Batch
from moe_watch.detect.subspace import residual, standardise

_DIRECTIONS = 3  # leading directions watched


@dataclass(frozen=True)
class Channels:
    """Scores ``values [n, channels]``; ``names [channels]`` and the layer of each channel (None: all layers)."""

    names: tuple[str, ...]
    layers: tuple[int | None, ...]
    values: NDArray[np.float32]


def channel_scores(baseline: Baseline, batch: Batch) -> Channels:
    """Return the channels of ``batch``; a request with too few routed tokens has nan in all of them."""
    part = baseline.parts["total"].subspace
    values = np.full((len(batch), 1 + batch.layers + 2 * _DIRECTIONS + 2), np.nan, np.float32)
    rows = np.flatnonzero(batch.tokens >= FEWEST_TOKENS)
    names = ("ood", *("layer",) * batch.layers, *("mix",) * 2 * _DIRECTIONS, *("confidence",) * 2)
    layers = (None, *range(batch.layers), *(None,) * (2 * _DIRECTIONS + 2))
    if rows.size:
        spe, inside = residual(part.mean, part.axes, batch.total[rows])
        layer, total = standardise(part, spe, batch.tokens[rows])
        mix = _mix(inside / np.maximum(part.spread, 1e-6))
        values[rows] = np.concatenate([total[:, None], layer, mix, -mix, _confidence(batch, rows)], 1)
    return Channels(names, layers, values)


def _mix(inside: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return the leading directions ``[n, 3]``; nan where the subspace has fewer."""
    leading = inside[:, :_DIRECTIONS]
    return np.pad(leading, ((0, 0), (0, _DIRECTIONS - leading.shape[1])), constant_values=np.nan)


def _confidence(batch: Batch, rows: NDArray[np.int64]) -> NDArray[np.floating]:
    """Return mean entropy, up and down ``[n, 2]``."""
    if batch.entropy is None:
        return np.full((len(rows), 2), np.nan, np.float32)
    mean = batch.entropy[rows].mean(1)
    return np.stack([mean, -mean], 1)
