"""The OOD-quality curve: deciles of the traffic, a band that holds, a trend that knows no trend from one."""

from __future__ import annotations

import numpy as np
import pytest

from moe_watch.detect.common.weighted_estimates import Floats
from moe_watch.detect.quality import ood_curve


def sampled(rng: np.random.Generator, slope: float, requests: int = 4000) -> tuple[Floats, Floats, Floats]:
    """Return gap, OOD score and weight of sampled traffic whose mean gap rises by ``slope`` along the percentiles."""
    ood = rng.normal(size=requests)
    place = ood.argsort().argsort() / requests
    gap = slope * place + rng.normal(scale=0.2 + 0.6 * place)
    chance = np.where(place > 0.95, 1.0, 0.1)
    taken = rng.random(requests) < chance
    return gap[taken], ood[taken], 1 / chance[taken]


def test_deciles_are_of_the_traffic_not_of_the_sample() -> None:
    """Over-sampling unusual requests leaves a tenth of the traffic in each decile."""
    _, ood, weights = sampled(np.random.default_rng(1), 0)
    part, _ = ood_curve.deciles(ood, weights)
    masses = np.bincount(part, weights=weights, minlength=10) / weights.sum()
    assert masses == pytest.approx(np.full(10, 0.1), abs=0.01)
    assert (part == 9).mean() > 0.3


def test_requests_without_a_score_are_in_no_decile() -> None:
    """A nan score has decile -1 and moves no edge."""
    part, edges = ood_curve.deciles(np.array([np.nan, 1.0, 2.0]), np.ones(3), parts=2)
    assert part.tolist() == [-1, 0, 1]
    assert edges.tolist() == [1.0]


def test_band_holds_a_rising_curve_everywhere_at_once() -> None:
    """In 95 % of samples at least, no decile's true mean is outside the monotone band; alone they miss more often."""
    rng = np.random.default_rng(2)
    truth = 0.5 * (np.arange(10) + 0.5) / 10
    inside, alone = [], []
    for _ in range(200):
        found = ood_curve.curve(*sampled(rng, 0.5))
        inside.append(((found.band_lower <= truth) & (truth <= found.band_upper)).all())
        alone.append(all(e.lower <= t <= e.upper for e, t in zip(found.deciles, truth, strict=True)))
    assert np.mean(inside) >= 0.93
    assert np.mean(alone) < 0.8


def test_falling_curve_is_called_not_monotone() -> None:
    """Where quality gets better with OOD the band says that its assumption is wrong."""
    assert not ood_curve.curve(*sampled(np.random.default_rng(3), -2.0)).monotone


def test_trend_interval_covers_and_its_test_keeps_its_level() -> None:
    """The slope's interval holds the truth 95 % of the time and the one-sided test rejects 5 % of flat curves."""
    rng = np.random.default_rng(4)
    flat = [ood_curve.trend(*sampled(rng, 0.0, 2000)) for _ in range(400)]
    steep = [ood_curve.trend(*sampled(rng, 0.3, 2000)) for _ in range(400)]
    assert 0.92 <= np.mean([t.lower <= 0.3 <= t.upper for t in steep]) <= 0.98
    assert 0.02 <= np.mean([t.p < 0.05 for t in flat]) <= 0.085
    assert np.mean([t.p < 0.05 for t in steep]) > 0.75


def test_trend_needs_differing_scores() -> None:
    """Equal OOD scores, or fewer than ten requests, give no slope."""
    assert np.isnan(ood_curve.trend(np.arange(20.0), np.ones(20), np.ones(20)).rise)
    assert np.isnan(ood_curve.trend(np.arange(5.0), np.arange(5.0), np.ones(5)).rise)
