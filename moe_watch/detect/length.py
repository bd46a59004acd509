"""What a quantity is expected to be for a request of so many tokens: a smooth curve with a spread, learned once.

A trend in n^-1/2 and n^-1, which carries on beyond the lengths seen, and a piecewise linear correction in log n, which
does not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]
_REQUESTS_PER_KNOT = 60
_MOST_KNOTS = 10
_NORMAL = np.sqrt(np.pi / 2)  # standard deviation over mean absolute deviation of a normal variable


@dataclass(frozen=True)
class Curve:
    """Mean and standard deviation of k quantities as functions of the number of tokens.

    The coefficients belong to the columns of ``basis``: 1, n^-1/2, n^-1 and one for each knot.
    """

    knots: FloatArray  # [j] log tokens, rising
    mean: FloatArray  # [k, 3 + j]
    deviation: FloatArray  # [k, 3 + j]
    floor: FloatArray  # [k] smallest standard deviation


def basis(knots: NDArray[np.floating], tokens: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return ``[n, 3 + j]``: the trend's columns, then hat functions that are 1 at their knot and 0 at the others."""
    n = np.maximum(tokens, 1).astype(np.float64)
    hats = np.zeros((len(n), 3 + len(knots)))
    hats[:, 0], hats[:, 1], hats[:, 2] = 1, n**-0.5, 1 / n
    if len(knots) > 1:
        place = np.clip(np.log(n), knots[0], knots[-1])
        left = np.minimum(np.searchsorted(knots, place, side="right") - 1, len(knots) - 2)
        part = (place - knots[left]) / (knots[left + 1] - knots[left])
        rows = np.arange(len(n))
        hats[rows, 3 + left], hats[rows, 4 + left] = 1 - part, part
    return hats


def learn(values: NDArray[np.floating], tokens: NDArray[np.floating]) -> Curve:
    """Return the curve through ``values [n, k]`` of requests of ``tokens [n]``.

    >>> curve = learn(np.array([[10.0, 11.0, 9.0, 10.0]]).T, np.array([10, 100, 20, 50]))
    >>> standardise(curve, np.array([[10.0]]), np.array([30.0])).shape
    (1, 1)
    """
    count = min(_MOST_KNOTS, len(tokens) // _REQUESTS_PER_KNOT)
    logs = np.log(np.maximum(tokens, 1))
    knots = np.unique(np.quantile(logs, np.linspace(0.02, 0.98, count)) if count > 1 else logs[:0])
    columns = basis(knots, tokens)
    mean = _fit(columns, values)
    rest = values - columns @ mean
    deviation = _fit(columns, np.abs(rest) * _NORMAL)
    return Curve(*(np.asarray(a, np.float32) for a in (knots, mean.T, deviation.T, 0.25 * rest.std(0))))


def unknown(k: int) -> Curve:
    """Return the curve of k quantities of which nothing is known: everything against it is nan."""
    nothing = np.full((k, 3), np.nan, np.float32)
    return Curve(np.zeros(0, np.float32), nothing, nothing, np.full(k, np.nan, np.float32))


def standardise(curve: Curve, values: NDArray[np.floating], tokens: NDArray[np.floating]) -> FloatArray:
    """Return ``values [n, k]`` less their expected value, in standard deviations."""
    columns = basis(curve.knots, tokens).astype(np.float32)
    spread = np.maximum(columns @ curve.deviation.T, np.maximum(curve.floor, 1e-9))
    return np.asarray((values - columns @ curve.mean.T) / spread, np.float32)


def _fit(columns: NDArray[np.float64], values: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return coefficients ``[3 + j, k]``: first the trend, then the knots for what the trend leaves over."""
    trend = np.linalg.lstsq(columns[:, :3], values, rcond=None)[0]
    rest = values - columns[:, :3] @ trend
    hats = columns[:, 3:]
    local = np.linalg.lstsq(hats, rest, rcond=None)[0] if hats.shape[1] else np.zeros((0, values.shape[1]))
    return np.concatenate([trend, local])
