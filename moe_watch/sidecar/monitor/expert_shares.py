"""How the latest routing of a replica compares with its baseline, expert by expert."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from moe_watch.domain import status
from moe_watch.sidecar.monitor.detectors import Normal
from moe_watch.sidecar.monitor.snapshot import LatestRouting, ReplicaSnapshot

TOP_MOVERS: Final = 10


def shares(counts: NDArray[np.integer]) -> NDArray[np.float64]:
    """Return the share ``[layers, experts]`` of each expert in its layer; 0 in a layer without counts."""
    total = counts.sum(1, keepdims=True).astype(np.float64)
    return np.asarray(np.divide(counts, total, out=np.zeros(counts.shape), where=total > 0))


def movers(seen: ReplicaSnapshot) -> list[status.Mover]:
    """Return the experts whose share moved most against the baseline; none without a baseline or requests."""
    if seen.normal is None or not seen.latest.requests:
        return []
    now, before = shares(seen.latest.counts), shares(seen.normal.fitted.counts)
    order = np.argsort(-np.abs(now - before), axis=None)[:TOP_MOVERS]
    pairs = zip(*np.unravel_index(order, now.shape), strict=True)
    return [
        status.Mover(seen.layer_id(int(layer)), int(expert), float(now[layer, expert]), float(before[layer, expert]))
        for layer, expert in pairs
    ]


def moved_experts(seen: ReplicaSnapshot) -> NDArray[np.float64]:
    """Return the number of experts ``[layers]`` that the open drift moved; nan while none can be named."""
    if seen.moved is None or seen.moved.experts is None:
        return np.full(seen.layers, np.nan)
    return np.bincount([one.layer for one in seen.moved.experts], minlength=seen.layers).astype(np.float64)


def shift(latest: LatestRouting, normal: Normal) -> NDArray[np.float64]:
    """Return how far the shares of each layer ``[layers]`` are from the baseline's: the Hellinger distance."""
    now, before = shares(latest.counts), shares(normal.fitted.counts)
    return np.asarray(np.sqrt(np.maximum(0, 1 - np.sqrt(now * before).sum(1))))
