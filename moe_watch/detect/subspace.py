"""Novelty of one request's routing: how much of it lies outside the subspace that normal requests span.

The square-root shares of all layers together are centred and projected on the leading principal components of normal
requests: one set of coordinates for all layers, so that even sixteen tokens say well which known topic a request has.
What is left over in a layer is its squared prediction error (SPE; Jackson and Mudholkar, Technometrics 21, 1979). A
short request is noisy, so its SPE is large: it is standardised by what normal requests of its length have. What lies
inside the subspace (inside.py) counts as much as the share of all directions that it takes up.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from moe_watch.detect import length
from moe_watch.detect.inside import Inside, fit, measures
from moe_watch.detect.length import Curve
from moe_watch.detect.shares import hellinger

FloatArray = NDArray[np.float32]
_FLAT: Final = length.unknown(1)
_LEAST: Final = 0.2  # weight below which what lies inside is not looked at: many experts, few directions
_OVERSAMPLING: Final = 16  # extra directions of the randomised decomposition
_REAL: Final = (
    2.0  # a component is kept when unseen requests vary along it this many times more than along what is left
)


@dataclass(frozen=True)
class Subspace:
    """Normal routing of one part of the requests (prompt, decode or both); q components."""

    mean: FloatArray  # [layers, experts] mean square-root share
    axes: FloatArray  # [q, layers * experts] orthonormal rows
    layer: Curve  # SPE of each layer by length
    whole: Curve  # mean over layers of the standardised SPE, and the two measures of ``inside`` where used, by length
    overall: Curve  # their weighted sum by length
    inside: Inside
    weight: float  # of what lies inside the subspace; 0: not used


def components(counts: NDArray[np.integer], most: int) -> tuple[FloatArray, FloatArray]:
    """Return the mean ``[layers, experts]`` and the leading principal axes ``[q, layers * experts]`` of counts.

    Randomised range finder with two power iterations: Halko, Martinsson and Tropp, SIAM Review 53, 2011.
    """
    roots = hellinger(counts)
    mean: FloatArray = np.asarray(roots.mean(0))
    rows = (roots - mean).reshape(len(roots), -1)
    q = min(most, len(rows) - 1)
    width = min(q + _OVERSAMPLING, *rows.shape)
    guess: FloatArray = np.random.default_rng(0).standard_normal((rows.shape[1], width), np.float32)
    for _ in range(3):
        guess = np.linalg.qr(rows.T @ (rows @ guess))[0]
    axes = np.linalg.svd(rows @ guess, full_matrices=False)[2][:q] @ guess.T
    return mean, axes.astype(np.float32)


def residual(mean: FloatArray, axes: FloatArray, counts: NDArray[np.integer]) -> tuple[FloatArray, FloatArray]:
    """Return what lies outside the subspace ``[n, layers, experts]`` and the coordinates inside it ``[n, q]``."""
    rows: FloatArray = (hellinger(counts) - mean).reshape(len(counts), -1)
    inside: FloatArray = rows @ axes.T
    rows -= inside @ axes
    return np.reshape(rows, counts.shape), inside


def squared_error(outside: FloatArray) -> FloatArray:
    """Return the SPE of each layer ``[n, layers]``."""
    return np.asarray(np.einsum("nle,nle->nl", outside, outside), np.float32)


@dataclass(frozen=True)
class Novelty:
    """Where n requests lie: standardised SPE over all layers and of each, and both sides of the subspace."""

    score: FloatArray  # [n]
    layer: FloatArray  # [n, layers]
    inside: FloatArray  # [n, q]
    outside: FloatArray  # [n, layers, experts]


def novelty(subspace: Subspace, counts: NDArray[np.integer], tokens: NDArray[np.floating]) -> Novelty:
    """Return the novelty of requests with counts ``[n, layers, experts]`` and ``tokens [n]``, all of them positive."""
    outside, inside = residual(subspace.mean, subspace.axes, counts)
    layer = length.standardise(subspace.layer, squared_error(outside), tokens)
    summed = _sum(subspace, layer, inside, tokens)
    return Novelty(length.standardise(subspace.overall, summed, tokens)[:, 0], layer, inside, outside)


def _sum(subspace: Subspace, layer: FloatArray, inside: FloatArray, tokens: NDArray[np.floating]) -> FloatArray:
    """Return the novelty outside plus the weighted novelty inside ``[n, 1]``."""
    columns = length.standardise(subspace.whole, _columns(subspace, layer, inside, tokens), tokens)
    summed = columns[:, 0] + subspace.weight * columns[:, 1:].sum(1)
    return np.asarray(summed, np.float32)[:, None]


def _columns(subspace: Subspace, layer: FloatArray, inside: FloatArray, tokens: NDArray[np.floating]) -> FloatArray:
    mean = np.asarray(layer.mean(1, keepdims=True), np.float32)
    if subspace.weight == 0:
        return mean
    return np.concatenate([mean, measures(subspace.inside, inside, tokens)], 1)


Counted = tuple[NDArray[np.integer], NDArray[np.floating]]  # counts [n, layers, experts], tokens [n]


def learn(mean: FloatArray, axes: FloatArray, fitted: Counted, learned: Counted) -> Subspace:
    """Return the subspace: what is inside from the ``fitted`` requests, the effect of length from other requests.

    Axes along which those vary hardly more than along any other direction are noise and are left out. A Gaussian log
    density over d directions has a standard deviation that grows with the root of d: hence the weight of the inside.
    """
    outside, inside = residual(mean, axes, learned[0])
    directions = mean.size - len(mean)  # shares of a layer sum to 1
    rest = squared_error(outside).sum(1).mean() / max(directions - len(axes), 1)
    axes = axes[(inside**2).mean(0) > _REAL * rest]
    weight = float(np.sqrt(len(axes) / max(directions - len(axes), 1)))
    outside, inside = residual(mean, axes, fitted[0])
    model = fit(inside, fitted[1], _noise(squared_error(outside).sum(1), fitted[1]) / max(directions - len(axes), 1))
    return _by_length(Subspace(mean, axes, _FLAT, _FLAT, _FLAT, model, weight if weight > _LEAST else 0.0), *learned)


def _by_length(draft: Subspace, counts: NDArray[np.integer], tokens: NDArray[np.floating]) -> Subspace:
    """Return the draft with its curves over length."""
    outside, inside = residual(draft.mean, draft.axes, counts)
    spe = squared_error(outside)
    draft = replace(draft, layer=length.learn(spe, tokens))
    layer = length.standardise(draft.layer, spe, tokens)
    draft = replace(draft, whole=length.learn(_columns(draft, layer, inside, tokens), tokens))
    return replace(draft, overall=length.learn(_sum(draft, layer, inside, tokens), tokens))


def _noise(spe: NDArray[np.floating], tokens: NDArray[np.floating]) -> float:
    """Return the slope of the SPE in 1 / tokens, by weighted least squares: what the tokens' randomness adds."""
    columns = np.stack([np.sqrt(tokens), 1 / np.sqrt(tokens)], 1)
    return max(float(np.linalg.lstsq(columns, spe * np.sqrt(tokens), rcond=None)[0][1]), 1e-6)
