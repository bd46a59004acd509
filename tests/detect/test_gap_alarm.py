"""The sequential test on the gap keeps its promise on false alarms, finds a worse MoE and sees it end."""

from __future__ import annotations

import numpy as np
import pytest

from moe_watch.detect.common.weighted_estimates import Floats
from moe_watch.detect.quality import gap_alarm

RUN_LENGTH = 300.0


def stream(rng: np.random.Generator, sampled: int, shift: float = 0.0) -> tuple[Floats, Floats]:
    """Return gaps and weights of sampled requests; 5 % of the traffic is worse and over-sampled."""
    unusual = rng.random(sampled) < 0.05 / (0.05 + 0.95 * 0.1)
    gaps = rng.gamma(2, 0.2, sampled) - 0.25 + 0.3 * unusual + shift
    return gaps, np.where(unusual, 1.0, 10.0)


def reference(rng: np.random.Generator, n: int = 500) -> gap_alarm.Reference:
    return gap_alarm.reference(*stream(rng, n), low=-1, high=3)


def test_bound_on_the_mean_holds() -> None:
    """The upper bound is below the true traffic mean in at most 5 % of references, and within 0.15 nats of it."""
    rng = np.random.default_rng(21)
    bounds = np.array([reference(rng).mean_upper for _ in range(300)])
    truth = 0.15 + 0.05 * 0.3
    assert np.mean(bounds < truth) <= 0.05
    assert np.median(bounds) < truth + 0.15


def test_false_alarms_keep_their_distance_even_at_the_edge() -> None:
    """With the mean exactly at the tolerated bound, the worst case, first alarms are RUN_LENGTH apart on average."""
    rng = np.random.default_rng(22)
    known = gap_alarm.Reference(low=-1, high=3, weight_max=10, mean_upper=0.15 + 0.05 * 0.3, requests=500)
    firsts = []
    for _ in range(120):
        _, alarms = gap_alarm.observe(known, gap_alarm.start(RUN_LENGTH), *stream(rng, 3000))
        firsts.append(alarms[0].at + 1 if alarms else 3000)
    assert np.mean(firsts) >= RUN_LENGTH


def test_no_bet_is_larger_than_what_can_be_lost() -> None:
    """Outputs at the clip limits only, half of the time each, are the most that a bet can lose: the promise holds."""
    rng = np.random.default_rng(26)
    known = gap_alarm.Reference(low=-1, high=3, weight_max=1, mean_upper=1, requests=500)
    firsts = []
    for _ in range(150):
        gaps = np.where(rng.random(2000) < 0.5, -1.0, 3.0)
        _, alarms = gap_alarm.observe(known, gap_alarm.start(RUN_LENGTH), gaps, np.ones(2000))
        firsts.append(alarms[0].at + 1 if alarms else 2000)
    assert np.mean(firsts) >= RUN_LENGTH


def test_a_bound_that_ignores_the_weights_would_break_the_promise() -> None:
    """Weights turned around (unusual requests count ten times) make the same traffic alarm far too early."""
    rng = np.random.default_rng(22)
    known = gap_alarm.Reference(low=-1, high=3, weight_max=10, mean_upper=0.15 + 0.05 * 0.3, requests=500)
    firsts = []
    for _ in range(60):
        gaps, weights = stream(rng, 3000)
        _, alarms = gap_alarm.observe(known, gap_alarm.start(RUN_LENGTH), gaps, 11 - weights)
        firsts.append(alarms[0].at + 1 if alarms else 3000)
    assert np.mean(firsts) < RUN_LENGTH


def test_worse_outputs_are_found_dated_and_their_end_is_seen() -> None:
    """A shift of 0.4 nats alarms within 100 requests, is dated to within 30 of its start, and its end closes it."""
    rng = np.random.default_rng(23)
    parts = [stream(rng, 200), stream(rng, 300, 0.4), stream(rng, 2000, -0.05)]
    gaps, weights = (np.concatenate(column) for column in zip(*parts, strict=True))
    known = reference(rng)
    state, alarms = gap_alarm.observe(known, gap_alarm.start(1000), gaps, weights)
    assert [alarm.started for alarm in alarms[:2]] == [True, False]
    assert 200 <= alarms[0].at < 300
    assert abs(alarms[0].at - alarms[0].began - 200) < 30
    assert alarms[1].at >= 500
    assert not state.alarmed


def test_defects_are_a_measure_too() -> None:
    """A share of garbled outputs that goes from 1 % to 8 % is found within a few hundred requests."""
    rng = np.random.default_rng(24)
    known = gap_alarm.reference((rng.random(1000) < 0.01).astype(float), np.ones(1000), low=0, high=1)
    flags = np.concatenate([rng.random(500) < 0.01, rng.random(500) < 0.08]).astype(float)
    _, alarms = gap_alarm.observe(known, gap_alarm.start(10_000), flags, np.ones(1000))
    assert alarms[0].started
    assert 500 < alarms[0].at < 800


def test_batches_change_nothing() -> None:
    """One batch or many give the same alarms and the same evidence."""
    rng = np.random.default_rng(25)
    known = reference(rng)
    gaps, weights = stream(rng, 400, 0.05)
    whole, _ = gap_alarm.observe(known, gap_alarm.start(1e9), gaps, weights)
    state = gap_alarm.start(1e9)
    for piece in np.array_split(np.arange(400), 7):
        state, _ = gap_alarm.observe(known, state, gaps[piece], weights[piece])
    assert gap_alarm.evidence(state) == pytest.approx(gap_alarm.evidence(whole))


def test_wild_values_and_weights_neither_break_nor_fool_it() -> None:
    """Infinite gaps are clipped, weights beyond the reference's are capped, missing scores are skipped."""
    known = gap_alarm.Reference(low=-1, high=3, weight_max=10, mean_upper=0.2, requests=500)
    gaps = np.array([np.inf, -np.inf, np.nan, 1e9])
    state, alarms = gap_alarm.observe(known, gap_alarm.start(1000), gaps, np.array([1e9, 10, 10, 0.0]))
    assert not alarms
    assert np.isfinite(gap_alarm.evidence(state))


def test_small_references_are_refused_with_the_number_needed() -> None:
    """49 scored requests are too few, and the message says 50."""
    with pytest.raises(gap_alarm.TooFewReferenceRequestsError, match="at least 50"):
        gap_alarm.reference(np.zeros(49), np.ones(49), low=0, high=1)
