"""What is seen of a request besides its overall novelty: layer by layer, expert by expert, group by group."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.vq import kmeans2

from moe_watch.detect.common.batch import Batch
from moe_watch.detect.ood import length_curve
from moe_watch.detect.ood.baseline import Views
from moe_watch.detect.ood.subspace import Novelty, Subspace, outside

FloatArray = NDArray[np.float32]
_MOST_GROUPS: Final = 10
_REQUESTS_PER_GROUP: Final = 20


def learn(subspace: Subspace, novelty: Novelty, inside: FloatArray, batch: Batch) -> Views:
    """Return the views: groups from ``inside [m, q]`` of the fitted requests, the rest from ``batch``."""
    k = max(1, min(_MOST_GROUPS, len(inside) // _REQUESTS_PER_GROUP))
    centres = kmeans2(inside.astype(np.float64), k, minit="++", seed=np.random.default_rng(0))[0].astype(np.float32)
    left = outside(subspace.frame, novelty.place)
    precision = 1 / np.maximum(left.std(0), 1e-3)
    columns, sure = novelty.columns, confidence(batch)
    known = np.isfinite(sure).all(1)
    width = columns.shape[1]
    return Views(
        groups=centres,
        precision=precision,
        layer=length_curve.learn(_by_layer(left), columns),
        stray=length_curve.learn(stray(centres, novelty.place.inside), columns),
        extreme=length_curve.learn(_extreme(precision, left), columns),
        confidence=length_curve.learn(sure[known], columns[known])
        if known.sum() > width
        else length_curve.unknown(2, width),
    )


def layers(views: Views, subspace: Subspace, novelty: Novelty) -> tuple[FloatArray, FloatArray]:
    """Return novelty by layer ``[n, layers]`` and largest excess of an expert ``[n, 1]``; uses ``novelty.place`` up."""
    left = outside(subspace.frame, novelty.place)
    layer = length_curve.standardise(views.layer, _by_layer(left), novelty.columns)
    return layer, length_curve.standardise(views.extreme, _extreme(views.precision, left), novelty.columns)


def likeness(groups: FloatArray, inside: FloatArray) -> FloatArray:
    """Return a linear score for each group ``[n, k]``: the highest is that of the nearest centre."""
    return np.asarray(inside @ groups.T - 0.5 * (groups**2).sum(1), np.float32)


def stray(groups: FloatArray, inside: FloatArray) -> FloatArray:
    """Return the squared distance to the nearest centre ``[n, 1]``."""
    nearest = likeness(groups, inside).max(1)
    return np.asarray((inside**2).sum(1) - 2 * nearest, np.float32)[:, None]


def confidence(batch: Batch) -> FloatArray:
    """Return mean entropy and mean margin over layers ``[n, 2]``, nan where unknown."""
    unknown = np.full(len(batch), np.nan)
    means = [unknown if v is None else v.mean(1) for v in (batch.entropy, batch.margin)]
    return np.asarray(np.stack(means, 1), np.float32)


def _by_layer(left: FloatArray) -> FloatArray:
    return np.asarray(np.einsum("nle,nle->nl", left, left), np.float32)


def _extreme(precision: FloatArray, left: FloatArray) -> FloatArray:
    """Return the largest excess of an expert, in its standard deviations ``[n, 1]``."""
    return np.asarray((left * precision).max((1, 2), initial=-np.inf), np.float32)[:, None]
