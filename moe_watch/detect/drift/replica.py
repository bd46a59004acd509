"""Does one replica route differently from its siblings, which serve the same traffic.

Time is cut into blocks. Replicas that serve alike are exchangeable within a block, whatever its traffic, so that each
of k is among the j that deviate most with probability j / k. That is bet on: ``1 - lambda + lambda k / j`` when it
happens and ``1 - lambda`` when not has expectation 1, its Shiryaev-Roberts sum is an e-detector, and so is the mean of
such sums over measures of deviation, bets and replicas (Shin, Ramdas and Rinaldo, "E-detectors", arXiv 2203.03532):
a replica is flagged where its own sum reaches k A, so false flags come A blocks apart or more. Nothing is assumed of
the distribution of requests; sessions that end within a block do no harm. What it needs is a load balancer that does
not look at the content of requests, and three replicas, or two and a baseline to say which of them is off.

Deviation is from all siblings together, in standard errors of requests: over all experts, in the worst layer, and at
the worst expert. A replica that was flagged spoils the comparison of its siblings, so it is left out of theirs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from moe_watch.detect.drift.moments import Floats, Moments

FEWEST: Final = 30  # requests of a replica in a block; with fewer it is not compared
MEASURES: Final = ("all layers", "one layer", "one expert")
_BETS: Final = (0.3, 0.9)
_CALM: Final = 12  # blocks by which a flag is taken back
_FEW: Final = 1e-6  # variance of a square-root share below which an expert is not in use


class Standing(msgspec.Struct, frozen=True):
    """Where one replica stands; ``evidence`` is log evidence over log threshold, and it is flagged at 1.

    ``mass [measures x 2 x bets]`` are the sums; ``measure`` is set while it is flagged: what gave it away; ``first``
    tells of its latest blocks since whether it deviated most by that measure.
    """

    mass: list[float]
    evidence: float = 0.0
    blocks: int = 0
    measure: str = ""
    first: list[bool] = []

    @property
    def deviates(self) -> bool:
        """Say whether it is flagged."""
        return bool(self.measure)


def new() -> Standing:
    """Return the standing of a replica that was never compared."""
    return Standing([0.0] * (len(MEASURES) * 2 * len(_BETS)))


def observe(
    standings: Mapping[str, Standing],
    block: Mapping[str, Moments],
    run_length: float,
    normal: Moments | None = None,
) -> dict[str, Standing]:
    """Return the standings of all replicas after ``block``, the sums over each replica's requests in it.

    ``normal`` is the baseline, by which two replicas are told apart.
    """
    after = {name: standings.get(name, new()) for name in {**standings, **block}}
    kept = {name: sums for name, sums in block.items() if sums.requests >= FEWEST}
    healthy = {name: sums for name, sums in kept.items() if not after[name].deviates}
    _advance(after, healthy, list(healthy), run_length, normal)
    for name in [name for name in kept if after[name].deviates and standings[name].deviates]:
        _advance(after, {**healthy, name: kept[name]}, [name], run_length, normal)
    return after


def _advance(
    after: dict[str, Standing],
    compared: Mapping[str, Moments],
    judged: list[str],
    run_length: float,
    normal: Moments | None,
) -> None:
    """Move the standings of ``judged`` on by how they rank among ``compared``."""
    k = len(compared)
    if k < 2 or (k == 2 and normal is None):
        return
    scores = deviations(list(compared.values()), normal if k == 2 else None)
    rank = (scores[None] >= scores[:, None]).sum(1)  # [k, measures], 1: deviates most; ties count against it
    place = {name: index for index, name in enumerate(compared)}
    for name in judged:
        after[name] = _after(after[name], rank[place[name]], k, run_length)


def _after(before: Standing, rank: NDArray[np.int64], k: int, run_length: float) -> Standing:
    """Return the standing after a block in which the replica was ``rank [measures]`` of ``k``."""
    within = np.array([1, max(1, k // 5)])
    happened = rank[:, None, None] <= within[:, None]
    bet = np.array(_BETS)
    worth = np.where(happened, 1 - bet + bet * k / within[:, None], 1 - bet)
    mass = (np.reshape(before.mass, worth.shape) + 1) * worth
    threshold = k * run_length
    mass = np.minimum(mass, threshold * mass.size)
    evidence = float(np.log1p(mass.mean()) / np.log1p(threshold))
    state = Standing(mass.ravel().tolist(), evidence, before.blocks + 1)
    if not before.deviates:
        top = MEASURES[int(mass.sum((1, 2)).argmax())] if evidence >= 1 else ""
        return msgspec.structs.replace(state, measure=top)
    first = [*before.first, bool(rank[MEASURES.index(before.measure)] == 1)][-_CALM:]
    if len(first) == _CALM and sum(first) <= _CALM * (1 + 1 / k) / 2:  # half way between always and by chance
        return new()
    return msgspec.structs.replace(state, evidence=max(1.0, evidence), measure=before.measure, first=first)


def deviations(replicas: list[Moments], normal: Moments | None = None) -> Floats:
    """Return how far each of k replicas is from all others together, or from ``normal``, by ``[k, measures]``."""
    n = np.array([sums.requests for sums in replicas], np.float64)[:, None, None]
    roots, shares = (np.stack([getattr(sums, name) for sums in replicas]) for name in ("root", "share"))
    mean = roots / n
    variance = (shares / n - mean**2).mean(0)
    others = (roots.sum(0) - roots) / (n.sum() - n) if normal is None else normal.mean[None]
    error = 1 / n + 1 / (n.sum() - n if normal is None else normal.requests)
    z = np.where(variance > _FEW, (mean - others) / np.sqrt(np.maximum(variance, _FEW) * error), 0.0)
    layer = (z**2).mean(2)
    return np.stack([layer.mean(1), layer.max(1), np.abs(z).max((1, 2))], 1)
