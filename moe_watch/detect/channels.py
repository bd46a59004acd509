"""The channels in which a drift can show: one number a request and channel, large means unusual.

``ood``: novelty over all layers, of the whole request; ``part``: that of the prompt and of the generated part alone;
``layer``: novelty of one layer; ``mix``: likeness to one group of normal requests (a shift among known topics leaves no
novelty, but moves shares between groups) and distance from all of them; ``confidence``: router entropy and margin, up
and down; ``expert``: the largest excess of a single expert.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.vq import kmeans2

from moe_watch.detect import length
from moe_watch.detect.batch import Batch
from moe_watch.detect.normal import Views
from moe_watch.detect.ood import OodScores
from moe_watch.detect.subspace import Novelty

FloatArray = NDArray[np.float32]
_MOST_GROUPS = 10
_REQUESTS_PER_GROUP = 20


def learn(novelty: Novelty, inside: FloatArray, batch: Batch) -> Views:
    """Return the views: groups from ``inside [m, q]`` of the fitted requests, the rest from ``batch``."""
    k = max(1, min(_MOST_GROUPS, len(inside) // _REQUESTS_PER_GROUP))
    groups = kmeans2(inside.astype(np.float64), k, minit="++", seed=np.random.default_rng(0))[0]
    precision = 1 / np.maximum(novelty.outside.std(0), 1e-3)
    extreme = length.learn(_extreme(precision, novelty)[:, None], batch.tokens)
    known = np.isfinite(_confidence(batch)).all(1)
    confidence = length.learn(_confidence(batch)[known], batch.tokens[known]) if known.sum() > 2 else None
    centres = np.asarray(groups, np.float32)
    stray = length.learn(_stray(centres, novelty.inside), batch.tokens)
    return Views(centres, stray, precision, extreme, confidence or length.unknown(2))


def names(layers: int, groups: int) -> tuple[tuple[str, ...], tuple[int | None, ...]]:
    """Return the kind of each channel and its layer, None where it is about all of them.

    >>> names(2, 1)[0][:8]
    ('ood', 'part', 'part', 'layer', 'layer', 'mix', 'mix', 'confidence')
    """
    kinds = ("ood", "part", "part", *["layer"] * layers, *["mix"] * (groups + 1), *["confidence"] * 4, "expert")
    return kinds, (None,) * 3 + tuple(range(layers)) + (None,) * (groups + 6)


def channel_scores(views: Views, ood: OodScores, novelty: Novelty, rows: NDArray[np.int64], batch: Batch) -> FloatArray:
    """Return ``[n, channels]``, nan where a channel says nothing; ``novelty`` is that of the requests ``rows``."""
    kinds, _ = names(batch.layers, len(views.groups))
    values = np.full((len(batch), len(kinds)), np.nan, np.float32)
    tokens = batch.tokens[rows]
    mix = _likeness(views.groups, novelty.inside)
    stray = length.standardise(views.stray, _stray(views.groups, novelty.inside), tokens)
    sure = length.standardise(views.confidence, _confidence(batch)[rows], tokens)
    extreme = length.standardise(views.extreme, _extreme(views.precision, novelty)[:, None], tokens)
    parts = np.stack([ood.score, ood.score_prompt, ood.score_decode], 1)[rows]
    values[rows] = np.concatenate([parts, novelty.layer, mix, stray, sure, -sure, extreme], 1)
    return values


def _likeness(groups: FloatArray, inside: FloatArray) -> FloatArray:
    """Return a linear score for each group ``[n, k]``: the highest is that of the nearest centre."""
    return np.asarray(inside @ groups.T - 0.5 * (groups**2).sum(1), np.float32)


def _stray(groups: FloatArray, inside: FloatArray) -> FloatArray:
    """Return the squared distance to the nearest centre ``[n, 1]``."""
    nearest = _likeness(groups, inside).max(1)
    return np.asarray((inside**2).sum(1) - 2 * nearest, np.float32)[:, None]


def _extreme(precision: FloatArray, novelty: Novelty) -> FloatArray:
    return np.asarray((novelty.outside * precision).reshape(len(novelty.outside), -1).max(1), np.float32)


def _confidence(batch: Batch) -> FloatArray:
    """Return mean entropy and mean margin over layers ``[n, 2]``, nan where unknown."""
    unknown = np.full(len(batch), np.nan)
    means = [unknown if v is None else v.mean(1) for v in (batch.entropy, batch.margin)]
    return np.asarray(np.stack(means, 1), np.float32)
