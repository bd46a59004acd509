"""Sequential detection of a change in any channel, with a bound on the average run length between false alarms.

For each channel and level u the calibration quantile at 1 - u is a threshold; its true exceedance probability is at
most ``ub`` (Clopper-Pearson, with an error budget shared by all channels and levels). A bet of lambda on exceedance is
the e-value 1 - lambda + lambda 1[exceeded] / ub, its Shiryaev-Roberts sum M <- (M + 1) e is an e-detector, and so is
any weighted mean of them: with probability 1 - delta over the baseline, an alarm at M >= A comes on average no sooner
than after A normal requests. Shin, Ramdas and Rinaldo, "E-detectors", 2023 (arXiv 2203.03532).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta

LEVELS = np.array([0.001, 0.005, 0.02, 0.1, 0.3])
BETS = np.array([0.02, 0.06, 0.2, 0.5])
DELTA = 0.05


@dataclass(frozen=True)
class Bank:
    """Thresholds ``[channels, levels]`` and the bounds ``[channels, levels]`` on being above them, nan: not used."""

    thresholds: NDArray[np.float64]
    bounds: NDArray[np.float64]
    weights: NDArray[np.float64]  # [channels], sum 1


def bank(scores: NDArray[np.floating], weights: NDArray[np.floating]) -> Bank:
    """Return the bank for calibration scores ``[n, channels]``; channels without scores get no weight."""
    known = ~np.isnan(scores).any(0)
    n, budget = len(scores), DELTA / (LEVELS.size * max(known.sum(), 1))
    above = np.floor(LEVELS * n).astype(int)  # calibration scores above the threshold
    ordered = np.sort(np.where(known, scores, 0), 0)[::-1]
    thresholds = ordered[above].T.astype(np.float64)
    bounds = np.broadcast_to(beta.ppf(1 - budget, above + 1, n - above), thresholds.shape).copy()
    bounds[~known] = np.nan
    share = np.where(known, weights, 0)
    return Bank(thresholds, bounds, share / share.sum())


def factors(bank_: Bank, scores: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return e-values ``[n, channels, levels, bets]`` of scores ``[n, channels]``; nan scores bet nothing."""
    above = scores[:, :, None] > bank_.thresholds
    odds = np.where(np.isnan(bank_.bounds) | np.isnan(scores)[:, :, None], 1.0, above / bank_.bounds)
    return np.asarray(1 - BETS + BETS * odds[..., None], np.float64)
