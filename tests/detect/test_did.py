"""Difference in differences separates harder traffic from a worse MoE."""

from __future__ import annotations

import numpy as np
import pytest

from moe_watch.detect.quality import difference_in_differences


def pairs(
    rng: np.random.Generator, *, n: int = 300, harder: float = 0.0, fault: float = 0.0
) -> difference_in_differences.Pairs:
    """Return both models on requests of shared difficulty; ``harder`` moves both, ``fault`` the MoE alone."""
    difficulty = rng.gamma(3, 0.3, n) + harder
    weights = np.where(rng.random(n) < 0.3, 1.0, 10.0)
    moe = difficulty + fault + rng.normal(scale=0.1, size=n)
    return difference_in_differences.Pairs(moe, difficulty + rng.normal(scale=0.1, size=n), weights)


@pytest.mark.parametrize(
    ("harder", "fault", "cause"), [(0, 0, "none"), (0.4, 0, "traffic"), (0, 0.1, "moe"), (0.4, 0.1, "both")]
)
def test_cause_is_named(harder: float, fault: float, cause: str) -> None:
    """Both models moved: traffic; the MoE alone: its fault; both and the MoE more: both."""
    rng = np.random.default_rng(5)
    assert difference_in_differences.difference(pairs(rng), pairs(rng, harder=harder, fault=fault)).cause == cause


def test_effect_interval_covers_the_fault_and_is_narrower_than_the_change() -> None:
    """The effect holds the true fault 95 % of the time under harder traffic, and pairing removes the difficulty."""
    rng = np.random.default_rng(6)
    found = [difference_in_differences.difference(pairs(rng), pairs(rng, harder=0.4, fault=0.05)) for _ in range(400)]
    assert 0.93 <= np.mean([d.effect.lower <= 0.05 <= d.effect.upper for d in found]) <= 0.985
    assert np.mean([d.effect.upper - d.effect.lower for d in found]) < 0.4 * np.mean(
        [d.moe.upper - d.moe.lower for d in found]
    )


def test_harder_traffic_alone_is_rarely_blamed_on_the_moe() -> None:
    """The MoE is blamed for a harder mix in at most 5 % of comparisons; its own change would blame it always."""
    rng = np.random.default_rng(7)
    found = [difference_in_differences.difference(pairs(rng), pairs(rng, harder=0.4)) for _ in range(400)]
    assert np.mean([d.cause in {"moe", "both"} for d in found]) <= 0.05
    assert np.mean([d.moe.lower > 0 for d in found]) > 0.95


def test_latency_change_is_a_factor() -> None:
    """A 21 % slower MoE beside an unchanged dense model reads +0.21, as in vLLM issue 41306."""
    rng = np.random.default_rng(8)
    base = rng.gamma(20, 0.001, 500)
    before = difference_in_differences.Pairs(base * rng.lognormal(0, 0.1, 500), base, np.ones(500))
    after = difference_in_differences.Pairs(1.21 * base * rng.lognormal(0, 0.1, 500), base, np.ones(500))
    found = difference_in_differences.ratio(before, after, tolerance=0.05)
    assert found.cause == "moe"
    assert found.effect.value == pytest.approx(0.21, abs=0.03)
    assert found.dense.value == pytest.approx(0, abs=0.01)


def test_no_shadow_no_cause() -> None:
    """Without dense values nothing can be told apart, and that is said."""
    rng = np.random.default_rng(9)
    blind = difference_in_differences.Pairs(rng.random(50), np.full(50, np.nan), np.ones(50))
    assert difference_in_differences.difference(blind, blind).cause == "unknown"


def test_a_change_of_mix_is_no_change_among_requests_alike() -> None:
    """More of a harder kind moves the mean, not the kinds; a fault on top is left over, at its size."""
    rng = np.random.default_rng(10)

    def mix(share: float, fault: float = 0.0) -> tuple[difference_in_differences.Pairs, np.ndarray]:
        kind = (rng.random(400) < share).astype(np.int64)
        found = pairs(rng, n=400, fault=fault)
        return difference_in_differences.Pairs(found.moe + 0.5 * kind, found.dense, found.weights), kind

    covered, blamed = [], []
    for _ in range(200):
        old, new, broken = mix(0.1), mix(0.6), mix(0.6, fault=0.2)
        assert difference_in_differences.difference(old[0], new[0]).effect.lower > 0.05
        blamed.append(difference_in_differences.difference(*difference_in_differences.alike(*old, *new)).cause == "moe")
        effect = difference_in_differences.difference(*difference_in_differences.alike(*old, *broken)).effect
        covered.append(effect.lower <= 0.2 <= effect.upper)
    assert np.mean(blamed) <= 0.05
    assert np.mean(covered) >= 0.93


def test_kinds_that_one_period_hardly_has_are_left_out() -> None:
    """A kind with fewer than five requests on a side says nothing about a change, nor does an unknown one."""
    rng = np.random.default_rng(11)
    old, new = pairs(rng, n=50), pairs(rng, n=50)
    kinds = np.repeat([0, 1, -1], [30, 16, 4])
    rare = np.repeat([0, 1, 2, -1], [30, 3, 13, 4])
    before, after = difference_in_differences.alike(old, kinds, new, rare)
    assert (len(before.moe), len(after.moe)) == (30, 30)
    assert after.weights.sum() == pytest.approx(before.weights.sum())
