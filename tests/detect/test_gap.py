"""Weighted means and shares cover what they promise, and the unweighted ones would not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from moe_watch.detect.common import weighted_estimates
from moe_watch.detect.common.weighted_estimates import Floats

TRUE_MEAN = 0.15 + 0.05 * 0.6
TRUE_SHARE = 0.02 * 0.95 + 0.3 * 0.05


def traffic(rng: np.random.Generator, requests: int) -> tuple[Floats, Floats, Floats]:
    """Return gaps, defects and weights of the sampled part of traffic with 5 % unusual, worse requests over-sampled."""
    unusual = rng.random(requests) < 0.05
    gaps = rng.gamma(2, 0.2, requests) - 0.25 + 0.6 * unusual
    defects = (rng.random(requests) < np.where(unusual, 0.3, 0.02)).astype(float)
    chance = np.where(unusual, 1.0, 0.1)
    taken = rng.random(requests) < chance
    return gaps[taken], defects[taken], 1 / chance[taken]


@pytest.fixture(scope="module")
def samples() -> list[tuple[Floats, Floats, Floats]]:
    """Return 600 samples of about 140 requests each."""
    rng = np.random.default_rng(11)
    return [traffic(rng, 1000) for _ in range(600)]


def covered(estimates: list[weighted_estimates.Estimate], truth: float) -> float:
    return float(np.mean([e.lower <= truth <= e.upper for e in estimates]))


def test_mean_interval_covers_the_traffic_mean(samples: list[tuple[Floats, Floats, Floats]]) -> None:
    """The 95 % interval of the weighted mean holds the mean of all traffic about 95 % of the time, no less, no more."""
    assert 0.93 <= covered([weighted_estimates.mean(y, w) for y, _, w in samples], TRUE_MEAN) <= 0.98


def test_unweighted_mean_would_fail(samples: list[tuple[Floats, Floats, Floats]]) -> None:
    """Without weights the over-sampled requests bias the mean and its interval almost never holds the truth."""
    assert covered([weighted_estimates.mean(y, np.ones_like(w)) for y, _, w in samples], TRUE_MEAN) < 0.2


def test_share_interval_covers_the_traffic_share(samples: list[tuple[Floats, Floats, Floats]]) -> None:
    """The Korn-Graubard interval holds the true share of defects at least 94 % of the time and is not vacuous."""
    estimates = [weighted_estimates.share(d, w) for _, d, w in samples]
    assert 0.94 <= covered(estimates, TRUE_SHARE) <= 0.995
    assert np.mean([e.upper - e.lower for e in estimates]) < 0.1


def test_share_interval_knows_that_weights_cost_certainty() -> None:
    """Defects that have nothing to do with uneven weights: it still covers, and a plain Clopper-Pearson would not."""
    rng, found, plain = np.random.default_rng(12), [], []
    for _ in range(600):
        weights = np.where(rng.random(80) < 0.7, 1.0, 10.0)
        flags = (rng.random(80) < 0.2).astype(float)
        found.append(weighted_estimates.share(flags, weights))
        n, x = 80, 80 * found[-1].value
        lower, upper = stats.beta.ppf([0.025, 0.975], [x, x + 1], [n - x + 1, n - x])
        plain.append(weighted_estimates.Estimate(found[-1].value, lower, upper, n, n))
    assert covered(found, 0.2) >= 0.94
    assert covered(plain, 0.2) < 0.93


def test_share_of_nothing_seen_is_still_an_interval() -> None:
    """No defect among 20 equal requests leaves up to 16.8 % possible, as Clopper and Pearson say."""
    found = weighted_estimates.share(np.zeros(20), np.ones(20))
    assert (found.value, found.lower) == (0, 0)
    assert found.upper == pytest.approx(0.1684, abs=1e-3)


def test_share_matches_clopper_pearson_with_equal_weights() -> None:
    """Equal weights give the textbook interval of 10 in 100, up to the n / (n - 1) of the variance."""
    found = weighted_estimates.share(np.r_[np.ones(10), np.zeros(90)], np.full(100, 7.0))
    assert (found.lower, found.upper) == (pytest.approx(0.049, abs=1e-3), pytest.approx(0.176, abs=2e-3))


def test_too_few_requests_say_nothing() -> None:
    """One known request gives no interval, and the estimate is false."""
    assert not weighted_estimates.mean(np.array([1.0, np.nan]), np.ones(2))


@given(st.lists(st.tuples(st.floats(-5, 5), st.floats(0.1, 100)), min_size=3, max_size=30), st.floats(0.01, 1000))
def test_only_ratios_of_weights_matter(rows: list[tuple[float, float]], factor: float) -> None:
    """Multiplying every weight by the same factor changes nothing, and the value is inside its interval."""
    values, weights = (np.array(column) for column in zip(*rows, strict=True))
    one, other = weighted_estimates.mean(values, weights), weighted_estimates.mean(values, weights * factor)
    assert other.value == pytest.approx(one.value, abs=1e-9)
    assert other.upper == pytest.approx(one.upper, abs=1e-6)
    assert one.lower <= one.value <= one.upper


def test_groups_are_estimated_alone() -> None:
    """Each group's mean uses its own requests only."""
    found = weighted_estimates.by_group(np.array([0.0, 0.0, 1.0, 3.0]), np.ones(4), ["a", "a", "b", "b"])
    assert {name: estimate.value for name, estimate in found.items()} == {"a": 0, "b": 2}
