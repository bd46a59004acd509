"""Novelty inside the subspace: unusual mixtures of usual directions.

In a model of many experts new text leaves the subspace of normal routing, and what lies inside tells little. In a small
one the subspace is a good part of all directions, and new text may lie between the groups that normal requests form.
Two measures, both of the coordinates inside the subspace:

- the negative log density of a mixture of Gaussians whose covariances are shrunk towards their pooled one (regularised
  discriminant analysis, Friedman 1989) and carry the noise of n tokens, variance ``noise / n`` in every direction;
- the distance to the nearest normal requests, in coordinates in which neighbouring normal requests differ equally in
  all directions (the mean over four random blocks of the distance to the nearest of each: about the fourth neighbour).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.vq import kmeans2

FloatArray = NDArray[np.float32]
_MOST_GROUPS: Final = 24
_REQUESTS_PER_GROUP: Final = 30
_BLOCKS: Final = 4
_MOST_REFERENCES: Final = 1200


@dataclass(frozen=True)
class Inside:
    """Where in a subspace of q components normal requests are; k groups."""

    centres: FloatArray  # [k, q]
    rotations: FloatArray  # [k, q, q] principal axes of each group as columns
    variances: FloatArray  # [k, q] along them, for requests without end
    log_share: FloatArray  # [k]
    noise: float  # variance of a coordinate, times tokens
    whitening: FloatArray  # [q, q]
    references: FloatArray  # [blocks, m, q] normal requests, whitened


def fit(inside: FloatArray, tokens: NDArray[np.floating], noise: float) -> Inside:
    """Return the model of coordinates ``[n, q]`` of normal requests; ``noise`` as in ``Inside``."""
    k = max(1, min(_MOST_GROUPS, len(inside) // _REQUESTS_PER_GROUP))
    centres, label = kmeans2(inside.astype(np.float64), k, minit="++", seed=np.random.default_rng(0))
    rest = inside - centres[label]
    prior, pooled, inverse = inside.shape[1], rest.T @ rest / len(rest), 1 / tokens
    groups = []
    for group in np.unique(label):
        own = label == group
        spread = (rest[own].T @ rest[own] + prior * pooled) / (own.sum() + prior)
        values, axes = np.linalg.eigh(spread)
        noise_here = noise * (inverse[own].sum() + prior * inverse.mean()) / (own.sum() + prior)
        groups.append((centres[group], axes, np.maximum(values - noise_here, 0.02 * values.mean()), np.log(own.mean())))
    whitening = _whitening(inside)
    m = max(1, min(_MOST_REFERENCES, len(inside)) // _BLOCKS)
    references = np.resize(inside[: m * _BLOCKS] @ whitening, (_BLOCKS, m, inside.shape[1]))
    centre, axes, variance, share = (np.asarray(np.stack(column), np.float32) for column in zip(*groups, strict=True))
    return Inside(centre, axes, variance, share, noise, whitening, references)


def measures(model: Inside, inside: FloatArray, tokens: NDArray[np.floating]) -> FloatArray:
    """Return negative log density and distance to normal requests ``[n, 2]`` of coordinates ``[n, q]``."""
    noise = (model.noise / tokens).astype(np.float32)
    along = np.matmul(inside - model.centres[:, None], model.rotations)  # [k, n, q]
    variance = model.variances[:, None] + noise[:, None]
    density = model.log_share[:, None] - 0.5 * (along**2 / variance + np.log(variance)).sum(2)
    highest = density.max(0)
    density = highest + np.log(np.exp(density - highest).sum(0))
    white = inside @ model.whitening
    squares = (white**2).sum(1)[:, None] + (model.references**2).sum(2)[:, None]
    nearest = (squares - 2 * np.matmul(white, model.references.transpose(0, 2, 1))).min(2)  # [blocks, n]
    return np.asarray(np.stack([-density, np.sqrt(np.maximum(nearest, 0)).mean(0)], 1), np.float32)


def _whitening(inside: FloatArray) -> FloatArray:
    """Return ``[q, q]`` after which differences between neighbours have the same variance in all directions."""
    rows = inside[:_MOST_REFERENCES]
    squares = (rows**2).sum(1)
    distance = squares[:, None] - 2 * rows @ rows.T + squares
    np.fill_diagonal(distance, np.inf)
    near = np.argpartition(distance, min(5, len(rows) - 1), axis=1)[:, :5]
    steps = (rows[:, None] - rows[near]).reshape(-1, rows.shape[1])
    values, axes = np.linalg.eigh(steps.T @ steps / len(steps))
    return np.asarray(axes / np.sqrt(values + 0.05 * values.mean() + 1e-12), np.float32)
