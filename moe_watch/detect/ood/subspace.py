"""Novelty of one request's routing: how much of it lies outside the subspace that normal requests span.

The square-root shares of all layers together are centred and projected on the leading principal components of normal
requests: one set of coordinates for all layers, so that even sixteen tokens say well which known topic a request has.
What is left over is its squared prediction error (SPE; Jackson and Mudholkar, Technometrics 21, 1979). Layers are
scaled so that each has the same SPE on average. A short request is noisy, so its SPE is large: it is standardised by
what normal requests of its length have. What lies inside the subspace (inside.py) counts as much as the share of all
directions that it takes up.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.extmath import randomized_svd

from moe_watch.detect.common.hellinger import hellinger
from moe_watch.detect.ood import length_curve
from moe_watch.detect.ood.density import Inside, fit, measures
from moe_watch.detect.ood.length_curve import Curve

FloatArray = NDArray[np.float32]
Counted = tuple[NDArray[np.integer], NDArray[np.floating]]  # counts [n, layers, experts], tokens [n]
_LEAST: Final = 0.2  # weight below which what lies inside is not looked at: many experts, few directions
_OVERSAMPLING: Final = 16  # extra directions of the randomised decomposition
_REAL: Final = (
    2.0  # a component is kept when unseen requests vary along it this many times more than along what is left
)


@dataclass(frozen=True)
class Frame:
    """Where normal requests are: their mean and q principal axes."""

    mean: FloatArray  # [layers, experts] mean square-root share
    scale: FloatArray  # [layers, 1] by which the square-root shares of a layer are multiplied
    axes: FloatArray  # [q, layers * experts] orthonormal rows, of scaled shares

    @cached_property
    def centre(self) -> FloatArray:
        """Return the scaled mean ``[layers * experts]``."""
        return (self.mean * self.scale).reshape(-1)

    @cached_property
    def origin(self) -> FloatArray:
        """Return the coordinates of the centre ``[q]``."""
        return self.axes @ self.centre


@dataclass(frozen=True)
class Subspace:
    """Normal routing of one part of the requests (prompt, decode or both)."""

    frame: Frame
    knots: FloatArray  # [j] of the curves over length
    whole: Curve  # SPE, and the two measures of ``inside`` where used, by length
    overall: Curve  # their weighted sum by length
    inside: Inside
    weight: float  # of what lies inside the subspace; 0: not used

    @property
    def mean(self) -> FloatArray:
        """Return the mean square-root share ``[layers, experts]``."""
        return self.frame.mean


@dataclass(frozen=True)
class Place:
    """Where n requests lie, as seen from a frame."""

    rows: FloatArray  # [n, layers * experts] scaled square-root shares, not centred
    inside: FloatArray  # [n, q] coordinates in the subspace
    error: FloatArray  # [n] SPE


def place(frame: Frame, counts: NDArray[np.integer]) -> Place:
    """Return the place of requests with counts ``[n, layers, experts]``."""
    rows = hellinger(counts, frame.scale[:, 0]).reshape(len(counts), frame.mean.size)
    inside: FloatArray = rows @ frame.axes.T
    inside -= frame.origin
    squares = np.einsum("nj,nj->n", rows, rows) - 2 * (rows @ frame.centre) + frame.centre @ frame.centre
    error = np.maximum(squares - np.einsum("nq,nq->n", inside, inside), 0)
    return Place(rows, inside, np.asarray(error, np.float32))


def outside(frame: Frame, at: Place) -> FloatArray:
    """Return what lies outside the subspace ``[n, layers, experts]``; overwrites ``at.rows``."""
    at.rows[:] -= at.inside @ frame.axes
    at.rows[:] -= frame.centre
    return at.rows.reshape(len(at.rows), *frame.mean.shape)


@dataclass(frozen=True)
class Novelty:
    """Novelty of n requests, in standard deviations of normal ones of the same length, and where they lie."""

    score: FloatArray  # [n]
    place: Place
    columns: FloatArray  # [n, 3 + j] of their lengths, see length.basis


def novelty(subspace: Subspace, counts: NDArray[np.integer], tokens: NDArray[np.floating]) -> Novelty:
    """Return the novelty of requests with counts ``[n, layers, experts]`` and ``tokens [n]``, all of them positive."""
    at = place(subspace.frame, counts)
    columns = length_curve.basis(subspace.knots, tokens)
    summed = _sum(subspace, _measures(subspace, at, tokens), columns)
    return Novelty(length_curve.standardise(subspace.overall, summed, columns)[:, 0], at, columns)


def _measures(subspace: Subspace, at: Place, tokens: NDArray[np.floating]) -> FloatArray:
    """Return the SPE, and the two measures inside where they are used, ``[n, 1 or 3]``."""
    if subspace.weight == 0:
        return at.error[:, None]
    return np.concatenate([at.error[:, None], measures(subspace.inside, at.inside, tokens)], 1)


def _sum(subspace: Subspace, raw: FloatArray, columns: FloatArray) -> FloatArray:
    """Return the weighted sum of the standardised measures ``[n, 1]``."""
    if subspace.weight == 0:
        return raw
    even = length_curve.standardise(subspace.whole, raw, columns)
    return np.asarray(even[:, 0] + subspace.weight * even[:, 1:].sum(1), np.float32)[:, None]


def components(counts: NDArray[np.integer], most: int) -> Frame:
    """Return the frame of the counts ``[n, layers, experts]`` of normal requests, with ``most`` axes."""
    roots = hellinger(counts)
    mean: FloatArray = np.asarray(roots.mean(0))
    roots -= mean
    axes = _principal(roots.reshape(len(roots), -1), most)
    left = roots - (roots.reshape(len(roots), -1) @ axes.T @ axes).reshape(roots.shape)
    error = np.einsum("nle,nle->l", left, left) / len(left)
    scale = np.sqrt(1 / np.maximum(error, 1e-3 * error.max() + 1e-12)).astype(np.float32)[:, None]
    return Frame(mean, scale, _principal((roots * scale).reshape(len(roots), -1), most))


def _principal(rows: FloatArray, most: int) -> FloatArray:
    """Return the leading axes ``[q, features]`` of centred rows.

    Randomised range finder with two power iterations: Halko, Martinsson and Tropp, SIAM Review 53, 2011. Not transposed
    although there are fewer rows than features: that comes nearer to the exact axes for the same work.
    """
    axes = randomized_svd(
        rows,
        min(most, len(rows) - 1),
        n_oversamples=_OVERSAMPLING,
        n_iter=2,
        power_iteration_normalizer="LU",
        transpose=False,
        random_state=0,
    )[2]
    return np.asarray(axes, np.float32)


def learn(frame: Frame, fitted: Counted, learned: Counted) -> Subspace:
    """Return the subspace: what is inside from the ``fitted`` requests, the effect of length from other requests.

    Axes along which those vary hardly more than along any other direction are noise and are left out. A Gaussian log
    density over d directions has a standard deviation that grows with the root of d: hence the weight of the inside.
    """
    at = place(frame, learned[0])
    directions = frame.mean.size - len(frame.mean)  # shares of a layer sum to 1
    real = (at.inside**2).mean(0) > _REAL * at.error.mean() / max(directions - len(frame.axes), 1)
    real[0] = True  # one axis at least, also where all requests are alike
    frame = replace(frame, axes=frame.axes[real])
    rest = max(directions - len(frame.axes), 1)
    weight = float(np.sqrt(len(frame.axes) / rest))
    at = place(frame, fitted[0])
    model = fit(at.inside, fitted[1], _noise(at.error, fitted[1]) / rest)
    knots, flat = length_curve.knots(learned[1]), length_curve.unknown(1, 3)
    draft = Subspace(frame, knots, flat, flat, model, weight if weight > _LEAST else 0.0)
    columns = length_curve.basis(knots, learned[1])
    raw = _measures(draft, place(frame, learned[0]), learned[1])
    draft = replace(draft, whole=length_curve.learn(raw, columns))
    return replace(draft, overall=length_curve.learn(_sum(draft, raw, columns), columns))


def _noise(error: NDArray[np.floating], tokens: NDArray[np.floating]) -> float:
    """Return the slope of the SPE in 1 / tokens, by weighted least squares: what the tokens' randomness adds."""
    columns = np.stack([np.sqrt(tokens), 1 / np.sqrt(tokens)], 1)
    return max(float(np.linalg.lstsq(columns, error * np.sqrt(tokens), rcond=None)[0][1]), 1e-6)
