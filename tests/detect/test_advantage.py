"""Whether the MoE still pays."""

from __future__ import annotations

import numpy as np
import pytest

from moe_watch.detect.quality import advantage


def test_rounds_cover_the_true_ratio() -> None:
    """The interval over paired rounds holds the true ratio 95 % of the time, whatever both servers share in a round."""
    rng = np.random.default_rng(51)
    found = []
    for _ in range(500):
        shared = rng.lognormal(0, 0.3, 6)
        found.append(
            advantage.rounds(130 * shared * rng.lognormal(0, 0.05, 6), 100 * shared * rng.lognormal(0, 0.05, 6))
        )
    assert 0.93 <= np.mean([e.lower <= 1.3 <= e.upper for e in found]) <= 0.975
    assert np.mean([e.upper - e.lower for e in found]) < 0.25


@pytest.mark.parametrize(
    ("ratios", "where"),
    [([0.7, 0.9, 1.1, 1.4], 16), ([1.2, 1.1, 1.3, 1.4], 1), ([0.5] * 4, None), ([1.2, 0.9, 1.1, 0.9], None)],
)
def test_advantage_begins_where_it_stays(ratios: list[float], where: int | None) -> None:
    """The concurrency from which the MoE stays faster; one lucky level below does not count."""
    assert advantage.begins([1, 4, 16, 64], ratios) == where


def test_live_speeds_are_compared_at_equal_concurrency() -> None:
    """The MoE under load is not compared with a dense model that is idle."""
    rng = np.random.default_rng(52)
    n = 400
    moe_load = np.where(np.arange(n) % 2, 1.0, 32.0)
    moe = np.where(moe_load > 1, 0.06, 0.02) * rng.lognormal(0, 0.1, n)
    dense = 0.03 * rng.lognormal(0, 0.1, n)
    found = advantage.live(moe, moe_load, dense, np.ones(n), np.ones(n))
    assert list(found.by_concurrency) == ["1"]
    assert found.by_concurrency["1"].value == pytest.approx(1.5, abs=0.05)
    assert found.overall.lower < 1.5 < found.overall.upper


def test_unknown_load_says_nothing() -> None:
    """Without concurrency, or with too few requests, there is no ratio."""
    some = np.full(5, 0.02)
    assert not advantage.live(some, some * np.nan, some, np.ones(5), np.ones(5)).overall
    assert not advantage.live(some, np.ones(5), some, np.ones(5), np.ones(5)).overall
