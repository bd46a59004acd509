"""Drift on traffic that is not independent: sessions, days, tolerated shares, the start of a change.

Each promise has a control: with one part of the formula taken away it breaks.
"""

from __future__ import annotations

import numpy as np
import pytest

from moe_watch.detect import online
from moe_watch.detect.common.batch import Batch
from moe_watch.detect.drift import sequential
from moe_watch.detect.fit.baseline_fit import Baseline, BaselineBuilder

LAYERS, EXPERTS, TOP_K, TOPICS = 3, 12, 2, 5
PROMISE = 1000.0
SESSION = 6
DAY = 600  # requests


def traffic(n: int, seed: int, *, session: int = 1, day: bool = False, unseen: float = 0.0) -> Batch:
    """Return ``n`` requests; those of a session share topic and peculiarity; by day topics and lengths swing."""
    random = np.random.default_rng([11, seed])
    known = np.random.default_rng(0).dirichlet(np.full(EXPERTS, 0.7), (TOPICS + 1, LAYERS))
    phase = 2 * np.pi * np.arange(n) / DAY
    likely = np.ones((n, TOPICS)) + (0.8 * np.sin(phase)[:, None] * np.linspace(-1, 1, TOPICS) if day else 0)
    own = np.arange(n) // session * session
    drawn = (likely.cumsum(1) < random.random(n)[own, None] * likely.sum(1, keepdims=True)).sum(1)
    topic = np.where(random.random(n)[own] < unseen, TOPICS, drawn)
    noise = random.standard_normal((n, LAYERS, EXPERTS))
    alike = np.sqrt(0.8) * noise[own] + np.sqrt(0.2) * random.standard_normal(noise.shape) if session > 1 else noise
    shares = known[topic] * np.exp(0.3 * alike)
    shares /= shares.sum(-1, keepdims=True)
    tokens = np.exp(random.normal(4.5 + (0.4 * np.cos(phase) if day else 0), 0.7, n)).astype(int) + 12
    counts = random.multinomial(tokens[:, None] * TOP_K, shares).astype(np.uint32)
    return Batch(counts, np.zeros_like(counts), TOP_K, finished_at=np.arange(n, dtype=float))


def fitted(seed: int, n: int = 1800, *, session: int = 1, day: bool = False) -> Baseline:
    builder = BaselineBuilder()
    builder.add(traffic(n, seed, session=session, day=day))
    return builder.build()


def streams_in_alarm(streams: int, *, session: int = 1, day: bool = False) -> int:
    """Return how many streams as long as the promise see an alarm, each under a baseline of its own."""
    return sum(
        any(alarm.started for alarm in alarms(fitted(200 + i, session=session, day=day), stream))
        for i in range(streams)
        for stream in [traffic(int(PROMISE), 6000 + i, session=session, day=day)]
    )


def alarms(baseline: Baseline, batch: Batch, tolerance: float = 0.0) -> list[online.Alarm]:
    return online.observe(baseline, online.start(baseline, PROMISE, tolerance), batch)[1].alarms


def test_sessions_raise_no_more_alarms_than_promised() -> None:
    """Requests that come in sessions are as good as the promise: fewer alarms than one stream in two."""
    assert streams_in_alarm(10, session=SESSION) <= 4


def test_without_the_length_of_sessions_the_promise_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Taken for independent, the same requests raise an alarm in most streams."""
    monkeypatch.setattr(sequential, "_session", lambda _scores, _kinds: 1)
    monkeypatch.setattr(
        sequential, "_uneven", lambda _scores, _kinds, _session: False
    )  # a session looks like a short day
    assert streams_in_alarm(10, session=SESSION) >= 6


def test_sessions_are_seen_and_independent_requests_are_left_alone() -> None:
    """The bank rests for about a session; without sessions it never does."""
    states = [online.start(fitted(3, session=session), PROMISE) for session in (SESSION, 1)]
    assert SESSION - 2 <= states[0].bank.session <= SESSION + 3
    assert states[1].bank.session == 1


def test_the_day_is_no_drift() -> None:
    """A cycle of topics and lengths that the baseline holds raises no more alarms than promised."""
    assert streams_in_alarm(10, day=True) <= 4


def test_without_the_busiest_stretch_of_the_baseline_every_day_is_a_drift(monkeypatch: pytest.MonkeyPatch) -> None:
    """Held against the average of the day, its busy hours raise an alarm in most streams."""
    monkeypatch.setattr(sequential, "_uneven", lambda _scores, _kinds, _session: False)
    assert streams_in_alarm(10, day=True) >= 6


def test_a_tolerated_share_raises_no_alarm_and_a_larger_one_does() -> None:
    """With a tolerance of a tenth, 6 % of unseen requests are borne for a promised run length; 40 % are not."""
    baselines = [fitted(300 + i) for i in range(4)]
    small, large = ([traffic(1000, 7000 + i, unseen=share) for i in range(4)] for share in (0.06, 0.4))
    assert all(alarms(b, stream) for b, stream in zip(baselines, small, strict=True))
    assert not any(alarms(b, stream, tolerance=0.1) for b, stream in zip(baselines, small, strict=True))
    assert all(alarms(b, stream, tolerance=0.1) for b, stream in zip(baselines, large, strict=True))


def test_the_start_of_a_change_is_estimated() -> None:
    """Over streams that change at request 300, the start is said within 60 requests, in the median."""
    errors = []
    for i in range(6):
        normal, changed = traffic(300, 8000 + i), traffic(400, 8100 + i, unseen=0.3)
        both = [np.concatenate([getattr(part, side) for part in (normal, changed)]) for side in ("prompt", "decode")]
        found = alarms(fitted(400 + i), Batch(*both, TOP_K, finished_at=np.arange(700, dtype=float)))
        errors += [alarm.at - alarm.began + 1 - 300 for alarm in found if alarm.started][:1]
    assert len(errors) == 6
    assert np.median(np.abs(errors)) <= 60
