"""The channels in which a drift can show: one number a request and channel, large means unusual.

``ood``: novelty over all layers, of the whole request; ``part``: that of the prompt and of the generated part alone;
``layer``: novelty of one layer; ``mix``: likeness to one group of normal requests (a shift among known topics leaves no
novelty, but moves shares between groups) and distance from all of them; ``confidence``: router entropy and margin, up
and down; ``expert``: the largest excess of a single expert.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moe_watch.detect.common.batch import Batch
from moe_watch.detect.ood import features, length_curve
from moe_watch.detect.ood.baseline import Baseline
from moe_watch.detect.ood.score import Assessed


def names(layers: int, groups: int) -> tuple[tuple[str, ...], tuple[int | None, ...]]:
    """Return the kind of each channel and its layer, None where it is about all of them.

    >>> names(2, 1)[0][:8]
    ('ood', 'part', 'part', 'layer', 'layer', 'mix', 'mix', 'confidence')
    """
    kinds = ("ood", "part", "part", *["layer"] * layers, *["mix"] * (groups + 1), *["confidence"] * 4, "expert")
    return kinds, (None,) * 3 + tuple(range(layers)) + (None,) * (groups + 6)


def channel_scores(baseline: Baseline, seen: Assessed, batch: Batch) -> NDArray[np.float32]:
    """Return ``[n, channels]`` of requests that were assessed, nan where a channel says nothing."""
    picture, rows, columns = baseline.views, seen.rows, seen.novelty.columns
    inside = seen.novelty.place.inside
    stray = length_curve.standardise(picture.stray, features.stray(picture.groups, inside), columns)
    sure = length_curve.standardise(picture.confidence, features.confidence(batch)[rows], columns)
    scores = seen.scores
    parts = np.stack([scores.score, scores.score_prompt, scores.score_decode], 1)[rows]
    mix = features.likeness(picture.groups, inside)
    known = np.concatenate([parts, scores.layer[rows], mix, stray, sure, -sure, seen.extreme], 1)
    everything = np.full((len(batch), known.shape[1]), np.nan, np.float32)
    everything[rows] = known
    return everything
