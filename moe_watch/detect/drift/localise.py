"""Where did routing move: layers ranked by evidence, and experts with a bound on false discoveries.

The unit is the request: each expert's square-root share in fresh requests is compared with that in normal ones by
Welch's t (1947), and experts are selected by Benjamini and Hochberg's procedure (1995) at a level corrected for any
dependence (Benjamini and Yekutieli, 2001), since shares of one request hang together. Tests that take tokens as the
unit flag nearly every expert. Welch's t needs many requests for skewed shares, so below ``FEWEST`` requests no expert
is named. Fresh means that the requests came after the alarm: those that raised it are unusual by selection.

Another length of requests moves square-root shares although no share moves: the square root of few counts is smaller on
average. A share itself is unbiased at any length, so an expert only counts as moved as far as its mean share moved too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr
from scipy.stats import false_discovery_control

from moe_watch.detect.drift.moments import Floats, Moments
from moe_watch.detect.drift.naming_limits import FALSE_DISCOVERIES, FEWEST

_GENUINE: Final = 0.5  # least part of an expert's shift that its mean share must bear out
_NO_SPREAD: Final = 1e-4  # of a square-root share: an expert that no request chose


@dataclass(frozen=True)
class Moved:
    """An expert that moved: its share of the layer's choices before and now.

    ``effect`` is the change of its mean square-root share in standard deviations between normal requests (Glass's
    delta), ``t`` the statistic.
    """

    layer: int
    expert: int
    before: float
    now: float
    effect: float
    t: float


@dataclass(frozen=True)
class Localisation:
    """Layers from the most to the least moved, their evidence, and the experts that moved.

    ``evidence [layers]`` is the mean of t^2 over a layer's experts as far as their shares bear it out, at most 1 on
    average where nothing moved; ``effect
    [layers, experts]`` as in ``Moved``; ``experts`` is None, not empty, where there are too few requests to name any.
    """

    requests: int
    layers: NDArray[np.int64]
    evidence: Floats
    effect: Floats
    experts: list[Moved] | None


def localise(normal: Moments, fresh: Moments, false_discoveries: float = FALSE_DISCOVERIES) -> Localisation:
    """Compare ``fresh`` requests with ``normal`` ones; at most that share of the named experts is named falsely.

    >>> normal = Moments(1000, np.array([[5, 5]], np.uint64), np.array([[700.0, 700.0]]), np.array([[500.0, 500.0]]))
    >>> localise(normal, normal).experts
    []
    """
    statistic, degrees = _welch(normal, fresh)
    spread = np.sqrt(normal.variance)
    shift = fresh.mean - normal.mean
    effect = np.divide(shift, spread, out=np.zeros_like(shift), where=spread > _NO_SPREAD)
    genuine = _genuine(normal, fresh)
    fewest = min(normal.requests, fresh.requests)
    evidence = ((statistic * genuine.clip(0, 1)) ** 2).mean(1) if fewest > 1 else np.ones(len(shift))
    order = np.argsort(-evidence, kind="stable")
    if fewest < FEWEST:
        return Localisation(fresh.requests, order, evidence, effect, None)
    selected = select(2 * stdtr(degrees, -np.abs(statistic)), false_discoveries)
    named = np.argwhere(selected & (genuine >= _GENUINE))
    before, now = normal.load, fresh.load
    experts = [
        Moved(*map(int, at), *(float(values[tuple(at)]) for values in (before, now, effect, statistic))) for at in named
    ]
    ranked = sorted(experts, key=lambda moved: -abs(moved.t))
    return Localisation(fresh.requests, order, evidence, effect, ranked)


def select(p: NDArray[np.floating], false_discoveries: float) -> NDArray[np.bool_]:
    """Return which hypotheses of any shape to reject, under any dependence of their p-values; never one that is nan.

    >>> select(np.array([1e-6, 0.2, 0.9]), 0.1).tolist()
    [True, False, False]
    """
    known = np.where(np.isnan(p), 1.0, p)  # what was not tested still counts among the hypotheses
    adjusted = false_discovery_control(known, axis=None, method="by").reshape(p.shape)
    return np.asarray((adjusted <= false_discoveries) & ~np.isnan(p))


def _genuine(normal: Moments, fresh: Moments) -> Floats:
    """Return the shift of the mean share over the one that the shift of its square root speaks for; 1 is all of it."""
    shift = fresh.share / max(fresh.requests, 1) - normal.share / max(normal.requests, 1)
    spoken = 2 * normal.mean * (fresh.mean - normal.mean)
    return np.asarray(np.divide(shift, spoken, out=np.ones_like(shift), where=np.abs(spoken) > _NO_SPREAD**2))


def _welch(normal: Moments, fresh: Moments) -> tuple[Floats, Floats]:
    """Return t and its degrees of freedom ``[layers, experts]``; t is 0 where an expert is not chosen anywhere."""
    theirs, ours = normal.variance / max(normal.requests, 1), fresh.variance / max(fresh.requests, 1)
    error = ours + theirs
    shift = fresh.mean - normal.mean
    statistic = np.divide(shift, np.sqrt(error), out=np.zeros_like(shift), where=error > 0)
    parts = ours**2 / max(fresh.requests - 1, 1) + theirs**2 / max(normal.requests - 1, 1)
    return statistic, np.divide(error**2, parts, out=np.ones_like(error), where=parts > 0)
