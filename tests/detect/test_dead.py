"""Dead experts: found soon after they fall silent, and healthy traffic seldom has any."""

from __future__ import annotations

import numpy as np
import pytest

from moe_watch.detect.common.batch import Batch
from moe_watch.detect.load import dead as module
from moe_watch.detect.load.dead import FEWEST, Use, dead_experts, use
from moe_watch.sidecar.monitor.rolling_window import RollingWindow

REQUESTS, EXPERTS, RUN_LENGTH = 4000, 64, 2000.0


def waits(chosen: np.ndarray) -> np.ndarray:
    """Return the requests since each expert was last chosen, after each request ``[n, experts]``."""
    wait = np.zeros(chosen.shape[1], np.int64)
    out = []
    for row in chosen:
        wait = np.where(row, 0, wait + 1)
        out.append(wait)
    return np.array(out)


def test_healthy_traffic_has_dead_experts_no_oftener_than_promised() -> None:
    """Over streams of the promised length with experts rare and common, fewer than the promise allows begin a call."""
    random = np.random.default_rng(0)
    calls = 0
    for _ in range(20):
        rate = random.uniform(0.02, 0.6, EXPERTS)
        users = (random.random((REQUESTS, EXPERTS)) < rate).sum(0)[None]
        normal = use(users, REQUESTS, users * 500)
        stream = waits(random.random((2000, EXPERTS)) < rate)[:, None]
        dead = np.array([dead_experts(one, one * 10_000, normal, RUN_LENGTH).dead.any() for one in stream])
        calls += int((dead[1:] & ~dead[:-1]).sum())
    assert calls <= 20


def test_an_expert_that_falls_silent_is_dead_after_a_while_that_depends_on_its_use() -> None:
    """A common one after the fewest requests, a rare one later, one that nobody used never."""
    normal = Use(np.array([[0.5, 0.02, 0.0]]), np.array([[0.5, 0.02, 0.0]]))

    def first(expert: int) -> int | None:
        waits_ = (np.full((1, 3), n) for n in range(5000))
        return next((n for n, one in enumerate(waits_) if dead_experts(one, one * 4000, normal).dead[0, expert]), None)

    after = [first(expert) for expert in range(3)]
    assert after[0] == FEWEST
    assert after[1] is not None
    assert 400 < after[1] < 700
    assert after[2] is None


def test_short_requests_do_not_make_rare_experts_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Long requests of the baseline used them all; a row of short ones passes rare ones over, which is no death."""
    random = np.random.default_rng(1)
    share = random.dirichlet(np.full(128, 0.5))
    long, short = (random.multinomial(choices, share, 2000)[:, None] for choices in (16_000, 160))
    normal = use((long > 0).sum(0), 2000, long.sum(0))
    recent = RollingWindow(1, 128)
    for at in range(0, 2000, 50):
        batch = short[at : at + 50].astype(np.uint32)
        recent.add_routing(Batch(batch, np.zeros_like(batch), 8))
    assert recent.idle.max() > FEWEST
    assert not dead_experts(recent.idle, recent.passed, normal).dead.any()
    monkeypatch.setattr(module, "ALIKE", 1e-9)
    assert dead_experts(recent.idle, recent.passed, normal).dead.any()


def test_without_a_baseline_nothing_is_called_dead() -> None:
    """What was never seen in use cannot be missed."""
    assert not dead_experts(*np.full((2, 2, 4), 10**6), None).dead.any()


def test_the_wait_ends_with_a_choice() -> None:
    """Of a batch in which an expert was chosen its wait is 0, else it grows by the batch and its choices."""
    recent = RollingWindow(1, 3)
    counts = np.zeros((5, 1, 3), np.uint32)
    counts[:, 0, 0] = 8
    recent.add_routing(Batch(counts, np.zeros_like(counts), 1))
    assert recent.idle.tolist() == [[0, 5, 5]]
    assert recent.passed.tolist() == [[0, 40, 40]]
    counts[2, 0, 1] = 1
    recent.add_routing(Batch(counts, np.zeros_like(counts), 1))
    assert recent.idle.tolist() == [[0, 0, 10]]
