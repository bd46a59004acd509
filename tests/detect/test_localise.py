"""Where a drift is: the moved layer comes first, experts are named with few false ones, and never from few requests."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from bench.simulate import World
from moe_watch.detect.drift import localise as module
from moe_watch.detect.drift.localise import Localisation, localise, select
from moe_watch.detect.drift.moments import Moments, of_baseline, of_batch
from moe_watch.detect.drift.naming_limits import FEWEST
from tests.detect.test_detect_promise import fitted

WORLD = World(layers=8, experts=32, top_k=4, topics=6, unseen=2, length=4.0, longest=600)
TRIALS = 16


@cache
def drawn(n: int, seed: int, moved: tuple[int, float] | None = None) -> Moments:
    return of_batch(WORLD.draw(n, np.random.default_rng(seed), moved=moved))


def trials(moved: tuple[int, float] | None, n: int = 600) -> list[Localisation]:
    normal = [drawn(2000, 100 + seed) for seed in range(4)]
    return [localise(normal[seed % 4], drawn(n, 1000 + seed, moved)) for seed in range(TRIALS)]


def test_a_moved_layer_comes_first_with_its_experts() -> None:
    """A tenth of one layer's choices moved to four experts: right layer, right experts, in words of shares."""
    for found in trials((5, 0.1)):
        assert found.layers[0] == 5
        assert found.experts is not None
        assert {one.expert for one in found.experts if one.layer == 5 and one.effect > 0} >= {0, 1, 2, 3}
        assert all(one.now > one.before for one in found.experts[:4])


def test_at_most_a_tenth_of_the_named_experts_is_named_falsely() -> None:
    """The mean share of experts outside the moved layer among those named keeps to the bound."""
    shares = [np.mean([one.layer != 5 for one in found.experts or ()]) for found in trials((5, 0.1))]
    assert np.mean(shares) <= 0.1


def test_normal_requests_move_nothing() -> None:
    """Where nothing moved, any expert at all is named in at most a tenth of the looks."""
    assert np.mean([bool(found.experts) for found in trials(None)]) <= 0.1


def test_an_error_that_forgets_how_requests_vary_names_experts_falsely(monkeypatch: pytest.MonkeyPatch) -> None:
    """With tokens for requests in the standard error, healthy traffic moves nearly always."""
    honest = module._welch

    def by_token(normal: Moments, fresh: Moments) -> tuple[np.ndarray, np.ndarray]:
        statistic, degrees = honest(normal, fresh)
        return statistic * np.sqrt(60), degrees

    monkeypatch.setattr(module, "_welch", by_token)
    assert np.mean([bool(found.experts) for found in trials(None)]) > 0.9


@pytest.mark.parametrize("tokens", [20, 600])
def test_another_length_of_requests_moves_next_to_nothing(tokens: int) -> None:
    """Square roots of few counts are smaller, which is no move; a real move is still found among them."""
    random = np.random.default_rng(4)
    normal = drawn(2000, 100)
    longer = localise(normal, of_batch(WORLD.draw(800, random, tokens=tokens)))
    assert len(longer.experts or ()) <= 8
    both = localise(normal, of_batch(WORLD.draw(800, random, tokens=tokens, moved=(5, 0.1))))
    assert both.layers[0] == 5
    assert {0, 1, 2, 3} <= {one.expert for one in both.experts or () if one.layer == 5 and one.effect > 0}


def test_no_expert_is_named_from_few_requests() -> None:
    """Below 500 requests the layers are ranked, and no expert is named: None, which is not the same as none."""
    normal = drawn(1000, 1)
    few = localise(normal, drawn(FEWEST - 1, 2, (3, 0.3)))
    assert few.experts is None
    assert few.layers[0] == 3


def test_sums_of_parts_are_those_of_the_whole() -> None:
    """Moments of two halves add up to those of all requests, and so does what follows from them."""
    batch = WORLD.draw(700, np.random.default_rng(3))
    whole = of_batch(batch)
    parts = of_batch(batch.select(slice(0, 300))) + of_batch(batch.select(slice(300, 700)))
    assert parts.requests == whole.requests
    assert (parts.counts == whole.counts).all()
    np.testing.assert_allclose(parts.mean, whole.mean)
    np.testing.assert_allclose(parts.variance, whole.variance, atol=1e-12)
    with pytest.raises(ValueError, match="do not add up"):
        whole + Moments.zero(1, 2)


def test_the_moments_of_a_baseline_are_those_of_its_requests() -> None:
    """Mean and variance come back from what the baseline keeps."""
    baseline = fitted(5, n=800)
    found = of_baseline(baseline)
    np.testing.assert_allclose(found.mean, baseline.shares, rtol=1e-6)
    np.testing.assert_allclose(np.sqrt(found.variance), baseline.shares_sd, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("p", "rejected"),
    [  # at 0.1 the k-th smallest of four may be 0.1 k / 4 / (1 + 1/2 + 1/3 + 1/4) = 0.012 k
        ([0.01, 0.023, 0.5, 0.9], [True, True, False, False]),
        ([0.03, 0.035, 0.9, 0.02], [True, True, False, True]),  # the third passes and takes along those before it
        ([0.013, 0.025, 0.037, 0.049], [False] * 4),
        ([0.011, np.nan, 0.5, 0.9], [True, False, False, False]),
        ([0.015, np.nan, np.nan, np.nan], [False] * 4),  # what was not tested counts among the four
        ([np.nan], [False]),
        ([0.1], [True]),
        ([], []),
    ],
)
def test_hypotheses_are_rejected_as_counted_by_hand(p: list[float], rejected: list[bool]) -> None:
    """Of any shape, with p-values that are not known, and with none at all."""
    assert select(np.array(p), 0.1).tolist() == rejected
    assert select(np.array(p).reshape(1, -1), 0.1).tolist() == [rejected]
