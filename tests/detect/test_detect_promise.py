"""The detectors keep what they promise on simulated traffic with fixed seeds, and a wrong formula would not."""

from __future__ import annotations

import numpy as np
import pytest

from moe_watch.detect import online
from moe_watch.detect.common.batch import Batch
from moe_watch.detect.drift import sequential
from moe_watch.detect.fit.baseline_fit import Baseline, BaselineBuilder, TooFewRequests
from moe_watch.detect.ood.score import score

LAYERS, EXPERTS, TOP_K, TOPICS = 3, 12, 2, 5
PROMISE = 1000.0


def traffic(n: int, seed: int, *, unseen: float = 0.0) -> Batch:
    """Return ``n`` requests of mixed topics and lengths, tokens of a request alike; a share of an unseen topic."""
    random = np.random.default_rng(seed)
    known = np.random.default_rng(0).dirichlet(np.full(EXPERTS, 0.7), (TOPICS + 1, LAYERS))
    topic = np.where(random.random(n) < unseen, TOPICS, random.integers(TOPICS, size=n))
    shares = known[topic] * np.exp(0.3 * random.standard_normal((n, LAYERS, EXPERTS)))
    shares /= shares.sum(-1, keepdims=True)
    tokens = np.exp(random.normal(4.5, 0.7, n)).astype(int) + 12
    counts = random.multinomial(tokens[:, None] * TOP_K, shares).astype(np.uint32)
    return Batch(counts, np.zeros_like(counts), TOP_K, finished_at=np.arange(n, dtype=float))


def fitted(seed: int, n: int = 1500) -> Baseline:
    builder = BaselineBuilder()
    builder.add(traffic(n, seed))
    return builder.build()


def alarms(baseline: Baseline, batch: Batch, promise: float = PROMISE) -> list[online.Alarm]:
    return online.observe(baseline, online.start(baseline, promise), batch)[1].alarms


def false_alarms(streams: int = 16, length: int = 1500) -> int:
    """Return how many alarms normal traffic raises over many baselines."""
    return sum(
        sum(alarm.started for alarm in alarms(fitted(100 + seed), traffic(length, 5000 + seed)))
        for seed in range(streams)
    )


def test_p_values_of_normal_requests_are_at_most_uniform() -> None:
    """Over baselines, a normal request has p <= a with probability a at most (three standard errors allowed)."""
    p = np.concatenate([score(fitted(seed), traffic(300, 900 + seed)).p for seed in range(8)])
    p = p[np.isfinite(p)]
    for level in (0.02, 0.1, 0.3):
        assert (p <= level).mean() <= level + 3 * np.sqrt(level * (1 - level) / 500)


def test_false_drift_alarms_keep_their_distance() -> None:
    """Of 16 streams of one and a half promised run lengths, fewer see an alarm than if the promise were just kept."""
    assert false_alarms() < 16 * (1 - np.exp(-1500 / PROMISE))


def test_a_bound_that_forgets_the_finite_baseline_breaks_the_promise(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a quarter of the observed rate for a bound instead of its upper limit, every stream is in alarm."""
    monkeypatch.setattr(sequential, "_upper", lambda events, n, _run_length: max(0.25 * events / n, 1e-4))
    assert false_alarms(streams=6) >= 6


def test_unseen_traffic_is_flagged_soon_and_its_end_is_noticed() -> None:
    """A tenth of the requests of an unseen topic: flagged within 150 requests; normal traffic ends the alarm."""
    baseline = fitted(1)
    parts = [traffic(200, 2), traffic(300, 3, unseen=0.1), traffic(1500, 4)]
    whole = Batch(
        np.concatenate([part.prompt for part in parts]), np.concatenate([part.decode for part in parts]), TOP_K,
        finished_at=np.arange(2000, dtype=float),
    )  # fmt: skip
    start, end = alarms(baseline, whole)[:2]
    assert start.started
    assert 200 <= start.at < 350
    assert not end.started
    assert end.at > 500


def test_in_pieces_or_at_once_is_the_same() -> None:
    """Live batches of any size give the verdict of the whole stream."""
    baseline, batch = fitted(1), traffic(600, 3, unseen=0.15)
    state, pieces = online.start(baseline, PROMISE), []
    for start in range(0, 600, 37):
        state, seen = online.observe(baseline, state, batch.select(slice(start, start + 37)))
        pieces += [(start + alarm.at, alarm.started) for alarm in seen.alarms]
    assert pieces == [(alarm.at, alarm.started) for alarm in alarms(baseline, batch)]


def test_two_halves_merged_are_the_whole() -> None:
    """A baseline fitted on two halves is the one fitted on all, bit for bit."""
    batch = traffic(1200, 8)
    whole, first, second = BaselineBuilder(), BaselineBuilder(), BaselineBuilder()
    whole.add(batch)
    first.add(batch.select(slice(0, 500)))
    second.add(batch.select(slice(500, None)))
    first.merge(second)
    assert first.build().to_bytes() == whole.build().to_bytes()


def test_a_baseline_survives_its_bytes() -> None:
    """What is loaded judges as what was stored."""
    baseline, batch = fitted(1), traffic(50, 9)
    loaded = Baseline.from_bytes(baseline.to_bytes())
    assert np.array_equal(score(loaded, batch).p, score(baseline, batch).p, equal_nan=True)


def test_too_few_requests_are_refused_with_what_is_missing() -> None:
    """The message says how many more are needed."""
    builder = BaselineBuilder()
    builder.add(traffic(120, 1))
    with pytest.raises(TooFewRequests, match="380 more"):
        builder.build()


def test_requests_without_one_part_or_any_are_borne() -> None:
    """No request, requests without generated text and too short ones have no p-value and harm nothing."""
    both = traffic(1500, 1)
    builder = BaselineBuilder()
    builder.add(Batch(both.prompt, both.prompt, TOP_K, finished_at=both.finished_at))
    baseline = builder.build()
    nothing = traffic(4, 2)
    prompts_only = online.observe(baseline, online.start(baseline, PROMISE), nothing)[1].ood
    assert np.isnan(prompts_only.p_decode).all()
    assert np.isfinite(prompts_only.p_prompt).all()
    short = Batch(nothing.prompt * 0, nothing.decode, TOP_K, finished_at=nothing.finished_at)
    for batch in (short, nothing.select(slice(0, 0))):
        assert np.isnan(online.observe(baseline, online.start(baseline, PROMISE), batch)[1].ood.p).all()
