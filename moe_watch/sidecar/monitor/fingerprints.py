"""Unpacks the expert counts of finished requests into one batch for the detectors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from moe_watch import wire
from moe_watch.detect.common.batch import Batch
from moe_watch.domain.request import Joined


def shape_of(model: wire.Model) -> tuple[int, int]:
    """Return layers with experts and experts in each; a dense model has neither."""
    return model.layers, model.experts if model.layers else 0


def batch_of(model: wire.Model, requests: Sequence[Joined]) -> tuple[Batch, list[int]]:
    """Return the fingerprints of the ordinary requests that have any, in the order of their end, and which."""
    shape = shape_of(model)
    chosen = [
        (r.routing.finished_at, index)
        for index, r in enumerate(requests)
        if r.routing is not None and not r.canary and (r.routing.layers, r.routing.experts) == shape
    ]
    order = [index for _, index in sorted(chosen)]
    routings = [routing for index in order if (routing := requests[index].routing) is not None]
    prompt = wire.unpack_all([routing.prompt for routing in routings], *shape)
    decode = wire.unpack_all([routing.decode for routing in routings], *shape)
    confidence = np.full((2, len(order), shape[0]), np.nan, np.float32)
    sure = [at for at, r in enumerate(routings) if r.entropy is not None and r.margin is not None]
    for index, name in enumerate(("entropy", "margin")):
        confidence[index, sure] = [getattr(routings[at], name) for at in sure] or np.zeros((0, shape[0]))
    known = bool(np.isfinite(confidence).any())
    finished = np.array([routing.finished_at for routing in routings])
    entropy, margin = (confidence[0], confidence[1]) if known else (None, None)
    return Batch(prompt, decode, max(1, model.top_k), entropy, margin, finished), order
