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

    The coefficients belong to the columns of ``basis``: 1, n^-1/2, n^-1 and one for each of j knots.
    """

    mean: FloatArray  # [k, 3 + j]
    deviation: FloatArray  # [k, 3 + j]
    floor: FloatArray  # [k] smallest standard deviation


def knots(tokens: NDArray[np.floating]) -> FloatArray:
    """Return where the curves through requests of ``tokens [n]`` may bend, in log tokens, rising; none for few."""
    count = min(_MOST_KNOTS, len(tokens) // _REQUESTS_PER_KNOT)
    logs = np.log(np.maximum(tokens, 1))
    places = np.unique(np.quantile(logs, np.linspace(0.02, 0.98, count))) if count > 1 else logs[:0]
    return np.asarray(places, np.float32)


def basis(at: FloatArray, tokens: NDArray[np.floating]) -> FloatArray:
    """Return ``[n, 3 + j]``: the trend's columns, then hat functions that are 1 at their knot and 0 at the others.

    >>> basis(np.log(np.array([10, 1000], np.float32)), np.array([100.0])).round(2).tolist()
    [[1.0, 0.10000000149011612, 0.009999999776482582, 0.5, 0.5]]
    """
    n = np.maximum(tokens, 1)
    columns = np.zeros((len(n), 3 + len(at)), np.float32)
    columns[:, 0], columns[:, 1], columns[:, 2] = 1, n**-0.5, 1 / n
    if len(at) > 1:
        place = np.minimum(np.maximum(np.log(n), at[0]), at[-1])
        left = np.minimum(at.searchsorted(place, side="right") - 1, len(at) - 2)
        part = (place - at[left]) / (at[left + 1] - at[left])
        rows = np.arange(len(n))
        columns[rows, 3 + left], columns[rows, 4 + left] = 1 - part, part
    return columns


def learn(values: NDArray[np.floating], columns: FloatArray) -> Curve:
    """Return the curve through ``values [n, k]`` of requests whose lengths have the ``basis`` ``columns``."""
    mean = _fit(columns, values)
    rest = values - columns @ mean
    deviation = _fit(columns, np.abs(rest) * _NORMAL)
    return Curve(*(np.asarray(a, np.float32) for a in (mean.T, deviation.T, np.maximum(0.25 * rest.std(0), 1e-9))))


def unknown(k: int, columns: int) -> Curve:
    """Return the curve of k quantities of which nothing is known: everything against it is nan."""
    nothing = np.full((k, columns), np.nan, np.float32)
    return Curve(nothing, nothing, np.full(k, np.nan, np.float32))


def standardise(curve: Curve, values: FloatArray, columns: FloatArray) -> FloatArray:
    """Return ``values [n, k]`` less their expected value, in standard deviations."""
    spread = np.maximum(columns @ curve.deviation.T, curve.floor)
    return np.asarray((values - columns @ curve.mean.T) / spread, np.float32)


def _fit(columns: FloatArray, values: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return coefficients ``[3 + j, k]``: first the trend, then the knots for what the trend leaves over."""
    precise = columns.astype(np.float64)
    trend = np.linalg.lstsq(precise[:, :3], values, rcond=None)[0]
    rest = values - precise[:, :3] @ trend
    hats = precise[:, 3:]
    local = np.linalg.lstsq(hats, rest, rcond=None)[0] if hats.shape[1] else np.zeros((0, values.shape[1]))
    return np.concatenate([trend, local])
