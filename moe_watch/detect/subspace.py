"""Novelty of one request's routing: its distance from the subspace of normal routing, layer by layer.

Per layer the square-root shares are centred and projected on the leading principal components of normal requests; what
is left over is the squared prediction error (SPE; Jackson and Mudholkar, Technometrics 21, 1979). Scores inside the
subspace (Mahalanobis, mixtures, neighbours) are nearly blind to new topics, which leave it. A short request is noisy,
so its SPE is large: it is standardised by what normal requests of its length have, mean and spread being smooth in
1 / tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moe_watch.detect.shares import hellinger

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class Subspace:
    """Normal routing of one part of the requests (prompt, decode or both)."""

    mean: FloatArray  # [layers, experts] mean square-root share
    components: FloatArray  # [layers, q, experts] orthonormal rows
    spread: FloatArray  # [layers, q] standard deviation along them
    expected: FloatArray  # [layers, 3] SPE = expected . (1, n^-1/2, n^-1)
    deviation: FloatArray  # [layers, 3] its standard deviation, likewise
    floor: FloatArray  # [layers] smallest standard deviation
    overall: FloatArray  # [2, 3] mean and standard deviation of the sum over layers


def length_basis(tokens: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return ``[n, 3]``: 1, n^-1/2, n^-1 of the number of tokens."""
    n = np.maximum(tokens, 1).astype(np.float64)
    return np.stack([np.ones_like(n), n**-0.5, 1 / n], 1)


def fit(counts: NDArray[np.integer], components: int) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return mean, components and spread of the counts ``[n, layers, experts]`` of normal requests."""
    x = hellinger(counts)
    mean = x.mean(0)
    centred = x - mean
    q = min(components, len(x) - 1, x.shape[2] - 1)
    axes = np.zeros((x.shape[1], q, x.shape[2]), np.float32)
    spread = np.zeros((x.shape[1], q), np.float32)
    for layer in range(x.shape[1]):
        rows = centred[:, layer]
        values, vectors = np.linalg.eigh(rows.T @ rows / len(rows))
        axes[layer] = vectors[:, ::-1][:, :q].T
        spread[layer] = np.sqrt(np.maximum(values[::-1][:q], 0))
    return mean, axes, spread


def residual(mean: FloatArray, components: FloatArray, counts: NDArray[np.integer]) -> tuple[FloatArray, FloatArray]:
    """Return SPE ``[n, layers]`` and coordinates in the subspace ``[n, layers, q]``."""
    centred = hellinger(counts) - mean
    inside = np.matmul(centred.transpose(1, 0, 2), components.transpose(0, 2, 1)).transpose(1, 0, 2)
    spe = np.einsum("nle,nle->nl", centred, centred) - np.einsum("nlq,nlq->nl", inside, inside)
    return np.maximum(spe, 0), inside


def standardise(subspace: Subspace, spe: FloatArray, tokens: NDArray[np.floating]) -> tuple[FloatArray, FloatArray]:
    """Return standardised SPE per layer ``[n, layers]`` and over all layers ``[n]``, both about N(0, 1) when normal."""
    basis = length_basis(tokens).astype(np.float32)
    deviation = np.maximum(basis @ subspace.deviation.T, subspace.floor)
    layer = (spe - basis @ subspace.expected.T) / deviation
    center, width = (basis @ subspace.overall.T).T
    return layer, (layer.mean(1) - center) / np.maximum(width, 1e-3)


def regress(
    values: NDArray[np.floating], tokens: NDArray[np.floating]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return coefficients ``[k, 3]`` of mean and of standard deviation of ``values [n, k]`` in ``length_basis``."""
    basis = length_basis(tokens)
    mean = np.linalg.lstsq(basis, values, rcond=None)[0]
    # The mean absolute deviation of a normal variable is sqrt(2 / pi) of its standard deviation.
    absolute = np.abs(values - basis @ mean) * np.sqrt(np.pi / 2)
    return mean.T, np.linalg.lstsq(basis, absolute, rcond=None)[0].T


def learn(
    mean: FloatArray,
    components: FloatArray,
    spread: FloatArray,
    counts: NDArray[np.integer],
    tokens: NDArray[np.floating],
) -> Subspace:
    """Return the subspace with its length standardisation, learned on requests that it was not fitted on."""
    spe, _ = residual(mean, components, counts)
    expected, deviation = regress(spe, tokens)
    floor = 0.25 * (spe - length_basis(tokens) @ expected.T).std(0)
    draft = Subspace(mean, components, spread, *_single(expected, deviation, floor, np.array([[0, 0, 0], [1, 0, 0]])))
    layer, _ = standardise(draft, spe, tokens)
    overall = np.concatenate(regress(layer.mean(1, keepdims=True), tokens))
    return Subspace(mean, components, spread, *_single(expected, deviation, floor, overall))


def _single(*arrays: NDArray[np.floating]) -> list[FloatArray]:
    return [np.asarray(a, np.float32) for a in arrays]
