"""p-values keep their promise from 10 to 100,000 tokens, by simulation with fixed seeds; wrong formulas do not."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from moe_watch.detect.common.batch import Batch
from moe_watch.detect.fit.baseline_fit import Baseline, BaselineBuilder
from moe_watch.detect.ood.conformal import Calibration, calibrate, p_values, realised
from moe_watch.detect.ood.score import score

Formula = Callable[[Calibration, NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]
LAYERS, EXPERTS, TOP_K, TOPICS = 3, 12, 2, 5
LEVEL, SIZE, SETS, DRAWS = 0.02, 160, 1500, 200
BUCKETS = (10, 100, 1000, 10_000)


def rates(formula: Formula = p_values) -> NDArray[np.float64]:
    """Return for each of many calibration sets the share of normal requests with p <= LEVEL."""
    random = np.random.default_rng(5)
    shares = []
    for _ in range(SETS):
        ready = calibrate(random.standard_normal(SIZE), np.full(SIZE, 50.0))
        shares.append((formula(ready, random.standard_normal(DRAWS), np.full(DRAWS, 50.0)) <= LEVEL).mean())
    return np.array(shares)


def without_one(ready: Calibration, scores: NDArray[np.float64], tokens: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the share of calibration scores above, as one would write it at first."""
    return (p_values(ready, scores, tokens) * (SIZE + 1) - 1) / SIZE


def margin(level: float, n: int) -> float:
    """Return three standard errors of a share of ``n`` draws; draws of one set share that set's error."""
    return 3 * float(np.sqrt(level * (1 - level) / n + level / SIZE / SETS))


def test_a_p_value_is_valid_over_calibration_sets() -> None:
    """The marginal guarantee, to three standard errors: no more than a of normal requests have p <= a."""
    assert rates().mean() <= LEVEL + margin(LEVEL, SETS * DRAWS)


def test_a_p_value_without_the_request_itself_is_not_valid() -> None:
    """Leaving out the request from its own count, the mutated formula, flags more than promised."""
    assert rates(without_one).mean() > LEVEL + margin(LEVEL, SETS * DRAWS)


def test_the_bound_given_one_calibration_set_holds_for_nearly_all() -> None:
    """The exact share above the threshold of a set stays under the bound in 95 % of sets, not in all of them."""
    random = np.random.default_rng(6)
    rank = int(LEVEL * (SIZE + 1))
    above = 1 - np.sort(random.random((4000, SIZE)), axis=1)[:, SIZE - rank]
    beyond = (above > realised(LEVEL, SIZE)).mean()
    assert beyond <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 4000)
    assert (above > LEVEL).mean() > 0.25


def traffic(n: int, seed: int) -> Batch:
    """Return ``n`` requests of mixed topics, log-uniform between 10 and 100,000 tokens, tokens of a request alike."""
    random = np.random.default_rng(seed)
    known = np.random.default_rng(0).dirichlet(np.full(EXPERTS, 0.7), (TOPICS, LAYERS))
    shares = known[random.integers(TOPICS, size=n)] * np.exp(0.3 * random.standard_normal((n, LAYERS, EXPERTS)))
    shares /= shares.sum(-1, keepdims=True)
    tokens = np.exp(random.uniform(np.log(10), np.log(100_000), n)).astype(int)
    first = random.binomial(tokens, random.beta(2, 2, n))
    prompt, decode = (random.multinomial(part[:, None] * TOP_K, shares) for part in (first, tokens - first))
    return Batch(prompt.astype(np.uint32), decode.astype(np.uint32), TOP_K, finished_at=np.arange(n, dtype=float))


def fitted(seed: int) -> Baseline:
    builder = BaselineBuilder()
    builder.add(traffic(1500, seed))
    return builder.build()


@pytest.fixture(scope="module")
def judged() -> tuple[NDArray[np.float64], dict[str, NDArray[np.float64]]]:
    """Tokens and p-values of normal requests against several baselines."""
    batches = [(fitted(seed), traffic(1200, 700 + seed)) for seed in range(6)]
    scores = [score(baseline, batch) for baseline, batch in batches]
    p = {name: np.concatenate([getattr(s, name) for s in scores]) for name in ("p", "p_prompt", "p_decode")}
    return np.concatenate([batch.tokens for _, batch in batches]), p


@pytest.mark.parametrize("part", ["p", "p_prompt", "p_decode"])
@pytest.mark.parametrize("shortest", BUCKETS)
def test_from_ten_to_a_hundred_thousand_tokens(
    judged: tuple[NDArray[np.float64], dict[str, NDArray[np.float64]]], part: str, shortest: int
) -> None:
    """In each decade of length, of the whole request and of each part, 5 % of normal requests have p <= 5 %."""
    tokens, p = judged
    chosen = p[part][(tokens >= shortest) & (tokens < 10 * shortest)]
    chosen = chosen[np.isfinite(chosen)]
    assert len(chosen) > 500
    assert abs((chosen <= 0.05).mean() - 0.05) < 0.035
    assert abs((chosen <= 0.5).mean() - 0.5) < 0.09


def test_one_bin_for_all_lengths_flags_the_short() -> None:
    """Without bins of length a wider score of short requests gives them most of the false alarms: hence Mondrian."""
    random = np.random.default_rng(7)
    tokens = np.where(random.random(20_000) < 0.1, 12.0, 500.0)
    scores = random.standard_normal(20_000) * np.where(tokens < 100, 3, 1)
    short = tokens[10_000:] < 100
    for bins, valid in ((8, True), (1, False)):
        ready = calibrate(scores[:10_000], tokens[:10_000], most_bins=bins)
        flagged = (p_values(ready, scores[10_000:], tokens[10_000:])[short] <= LEVEL).mean()
        assert (flagged < 2 * LEVEL) == valid
