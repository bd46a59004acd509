"""The two tests behind a canary verdict keep their error rates, each under its own assumption."""

from __future__ import annotations

import numpy as np
from scipy.stats import binom

from moe_watch.detect.canary.noise_floor import (
    Deviations,
    Feature,
    deviations,
    permutation,
    prediction,
    prediction_bound,
)
from tests.support.canary_world import Fault, World

ERROR = 0.05
SIMULATIONS = 600


def test_prediction_keeps_its_error_though_prompts_share_the_noise_of_their_round() -> None:
    """Noise that all prompts of a round share leaves the prediction bound with the promised probability."""
    outside, simulations = 0, 6000
    random = np.random.default_rng(0)
    for _ in range(simulations):
        levels = 5 + random.normal(size=5)  # a round's own amount of noise; distances are sums of two of them
        together = levels[:, None] + levels[None]
        np.fill_diagonal(together, 0)
        measured = _measured(together.astype(np.float32), prompts=2)
        outside += int(prediction(measured)[2][0] > prediction_bound(4, 1, ERROR))
    assert binom.ppf(0.001, simulations, ERROR) <= outside <= binom.ppf(0.999, simulations, ERROR)


def _measured(distance: np.ndarray, prompts: int) -> Deviations:
    rounds = len(distance)
    every = np.repeat((distance.sum(1) / (rounds - 1))[:, None, None], prompts, axis=1).astype(np.float32)
    shares = np.array([rounds - 2] * (rounds - 1) + [rounds - 1])
    old = np.repeat((distance[:, :-1].sum(1) / shares)[:, None, None], prompts, axis=1).astype(np.float32)
    return Deviations((Feature("1", "likelihood"),), every, old, np.array([1e-6]))


def test_permutation_keeps_its_error_over_all_features_whatever_a_rounds_mean_does() -> None:
    """Independent prompts with rare, huge deviations give small p-values no more often than promised."""
    small = 0
    for seed in range(SIMULATIONS // 2):
        random = np.random.default_rng(seed)
        wild = random.pareto(0.7, size=(6, 25, 12)).astype(np.float32)
        wild[:, :, 6:] = wild[:, :, :6] + random.random((6, 25, 6))
        features = tuple(Feature("1", "prompt", layer) for layer in range(12))
        measured = Deviations(features, wild, wild, np.full(12, 1e-6))
        small += int(permutation(measured, ERROR, seed).min() <= ERROR)
    assert small <= binom.ppf(0.999, SIMULATIONS // 2, ERROR)


def test_permutation_needs_several_prompts() -> None:
    """A single odd prompt is one chance in R + 1, however odd it is; five of them are not chance."""
    quiet = np.zeros((9, 40, 1), np.float32)
    one, five = quiet.copy(), quiet.copy()
    one[-1, 0], five[-1, :5] = 100, 0.01
    features = (Feature("1", "output"),)
    p = [permutation(Deviations(features, d, d, np.ones(1)), 0.001, 0)[0] for d in (one, five)]
    assert p[0] > 0.05
    assert p[1] < 0.001


def test_prompts_that_cannot_be_compared_are_left_out() -> None:
    """A prompt that a prefix cache served in one round counts in none."""
    world = World()
    reference, new = world.reference(), world.round(Fault())
    new.replays[0].prompt[3] //= 2
    measured = deviations(reference, new, ["1"])
    layer = measured.features.index(Feature("1", "prompt", 0))
    assert np.isnan(measured.among_all[:, 3, layer]).all()
    assert np.isfinite(measured.among_all[:, 4, layer]).all()
