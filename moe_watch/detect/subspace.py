"""Novelty of one request's routing: how much of it lies outside the subspace that normal requests span.

The square-root shares of all layers together are centred and projected on the leading principal components of normal
requests: one set of coordinates for all layers, so that even sixteen tokens say well which known topic a request has.
What is left over in a layer is its squared prediction error (SPE; Jackson and Mudholkar, Technometrics 21, 1979).
Scores inside the subspace (Mahalanobis, mixtures) are nearly blind to new topics, which leave it. A short request is
noisy, so its SPE is large: it is standardised by what normal requests of its length have.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moe_watch.detect import length
from moe_watch.detect.length import Curve
from moe_watch.detect.shares import hellinger

FloatArray = NDArray[np.float32]
_OVERSAMPLING = 16  # extra directions of the randomised decomposition
_REAL = 2.0  # a component is kept when unseen requests vary along it this many times more than along what is left


@dataclass(frozen=True)
class Subspace:
    """Normal routing of one part of the requests (prompt, decode or both); q components."""

    mean: FloatArray  # [layers, experts] mean square-root share
    axes: FloatArray  # [q, layers * experts] orthonormal rows
    spread: FloatArray  # [q] standard deviation along them
    layer: Curve  # SPE of each layer by length
    overall: Curve  # mean over layers of the standardised SPE by length


def components(counts: NDArray[np.integer], most: int) -> tuple[FloatArray, FloatArray]:
    """Return the mean ``[layers, experts]`` and the leading principal axes ``[q, layers * experts]`` of counts.

    Randomised range finder with two power iterations: Halko, Martinsson and Tropp, SIAM Review 53, 2011.
    """
    roots = hellinger(counts)
    mean = roots.mean(0)
    rows = (roots - mean).reshape(len(roots), -1)
    q = min(most, len(rows) - 1)
    width = min(q + _OVERSAMPLING, *rows.shape)
    guess = np.random.default_rng(0).standard_normal((rows.shape[1], width), np.float32)
    for _ in range(3):
        guess = np.linalg.qr(rows.T @ (rows @ guess))[0]
    axes = np.linalg.svd(rows @ guess, full_matrices=False)[2][:q] @ guess.T
    return mean, np.asarray(axes, np.float32)


def residual(mean: FloatArray, axes: FloatArray, counts: NDArray[np.integer]) -> tuple[FloatArray, FloatArray]:
    """Return SPE ``[n, layers]`` and coordinates in the subspace ``[n, q]``."""
    rows = (hellinger(counts) - mean).reshape(len(counts), -1)
    inside = rows @ axes.T
    rows -= inside @ axes
    outside = rows.reshape(counts.shape)
    return np.asarray(np.einsum("nle,nle->nl", outside, outside), np.float32), inside


def standardise(subspace: Subspace, spe: FloatArray, tokens: NDArray[np.floating]) -> tuple[FloatArray, FloatArray]:
    """Return standardised SPE per layer ``[n, layers]`` and over all layers ``[n]``, both of mean 0 and variance 1."""
    layer = length.standardise(subspace.layer, spe, tokens)
    return layer, length.standardise(subspace.overall, layer.mean(1, keepdims=True), tokens)[:, 0]


def learn(mean: FloatArray, axes: FloatArray, counts: NDArray[np.integer], tokens: NDArray[np.floating]) -> Subspace:
    """Return the subspace with its length standardisation, learned on requests that it was not fitted on.

    Axes along which these requests vary hardly more than along any other direction are noise and are left out.
    """
    spe, inside = residual(mean, axes, counts)
    rest = spe.sum(1).mean() / max(mean.size - len(axes), 1)
    axes = axes[(inside**2).mean(0) > _REAL * rest]
    spe, inside = residual(mean, axes, counts)
    curve = length.learn(spe, tokens)
    overall = length.learn(length.standardise(curve, spe, tokens).mean(1, keepdims=True), tokens)
    return Subspace(mean, axes, np.asarray(inside.std(0), np.float32), curve, overall)
