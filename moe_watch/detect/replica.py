"""Does one replica route differently from its siblings, which serve the same traffic.

Leave one out: each replica's mean square-root shares against those of all others together, in standard errors of
requests; the statistic is the largest over experts. Its p-value comes from handing the requests to the replicas at
random (permutation by request), and holds over all replicas and experts together because each permutation keeps the
maximum over both (Westfall and Young, 1993). A replica that deviates spoils the comparison of its siblings, so it is
taken out before they are compared again. Needs a load balancer that does not look at the content of requests.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from moe_watch.detect.batch import Batch
from moe_watch.detect.normal import FEWEST_TOKENS
from moe_watch.detect.shares import hellinger

FEWEST: Final = 50  # requests of a replica; with fewer it is not judged
_PERMUTATIONS: Final = 399


@dataclass(frozen=True)
class Deviation:
    """How a replica compares with its siblings: p over all replicas, and where it deviates most."""

    replica: str
    p: float
    layer: int
    expert: int
    share: float  # of the layer's choices at this replica
    siblings: float  # and at the others


def deviations(batches: Mapping[str, Batch], error: float = 0.01, seed: int = 0) -> list[Deviation]:
    """Return a deviation for each replica with enough requests, the greatest first; none where there is no sibling.

    All replicas that serve alike have p > ``error`` with a probability of at least 1 - ``error``.
    """
    routed = {name: batch.total[batch.tokens >= FEWEST_TOKENS] for name, batch in batches.items()}
    kept = {name: counts for name, counts in routed.items() if len(counts) >= FEWEST}
    random = np.random.default_rng(seed)
    found: list[Deviation] = []
    while len(kept) > 1:
        round_ = _compare(kept, random)
        if round_[0].p > error:
            return [*found, *round_]
        found.append(round_[0])
        del kept[round_[0].replica]
    return found


def _compare(kept: Mapping[str, NDArray[np.uint32]], random: np.random.Generator) -> list[Deviation]:
    """Return the deviations of all replicas, given their counts ``[n, layers, experts]``, the greatest first."""
    counts = np.concatenate(list(kept.values()))
    label = np.repeat(np.arange(len(kept)), [len(own) for own in kept.values()])
    rows = hellinger(counts).reshape(len(counts), -1)
    rows -= rows.mean(0)
    rows /= np.maximum(rows.std(0), 1e-6)
    statistic = _against_others(rows, label)
    null = np.array([np.abs(_against_others(rows, random.permutation(label))).max() for _ in range(_PERMUTATIONS)])
    found = []
    for index in np.argsort(-np.abs(statistic).max(1)):
        top = int(np.abs(statistic[index]).argmax())
        layer, expert = divmod(top, counts.shape[2])
        p = (1 + int((null >= abs(statistic[index, top])).sum())) / (1 + len(null))
        own, others = (counts[mask, layer].sum(0) for mask in (label == index, label != index))
        shares = float(own[expert] / own.sum()), float(others[expert] / others.sum())
        found.append(Deviation(list(kept)[index], p, layer, expert, *shares))
    return found


def _against_others(rows: NDArray[np.float32], label: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return, for each replica, mean less mean of the others in standard errors ``[replicas, features]``."""
    member = (label == np.arange(label.max() + 1)[:, None]).astype(np.float32)
    sums, n = member @ rows, member.sum(1, keepdims=True)
    total, everyone = sums.sum(0), n.sum()
    difference = sums / n - (total - sums) / (everyone - n)
    return np.asarray(difference / np.sqrt(1 / n + 1 / (everyone - n)), np.float64)
