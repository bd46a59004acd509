"""Dead experts: found soon after they fall silent, and healthy traffic seldom has any."""

from __future__ import annotations

import numpy as np

from moe_watch.detect.batch import Batch
from moe_watch.detect.dead import FEWEST, dead_experts, use
from moe_watch.recent import Recent

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
        used = use((random.random((REQUESTS, EXPERTS)) < rate).sum(0), REQUESTS)[None]
        dead = np.array(
            [dead_experts(w[None], used, RUN_LENGTH).dead.any() for w in waits(random.random((2000, 64)) < rate)]
        )
        calls += int((dead[1:] & ~dead[:-1]).sum())
    assert calls <= 20


def test_an_expert_that_falls_silent_is_dead_after_a_while_that_depends_on_its_use() -> None:
    """A common one after the fewest requests, a rare one later, one that nobody used never."""
    used = np.array([[0.5, 0.02, 0.0]])
    after = [
        next((n for n in range(5000) if dead_experts(np.full((1, 3), n), used).dead[0, i]), None) for i in range(3)
    ]
    assert after[0] == FEWEST
    assert after[1] is not None
    assert 400 < after[1] < 700
    assert after[2] is None


def test_without_a_baseline_nothing_is_called_dead() -> None:
    """What was never seen in use cannot be missed."""
    assert not dead_experts(np.full((2, 4), 10**6), None).dead.any()


def test_the_wait_ends_with_a_choice() -> None:
    """Of a batch in which an expert was chosen its wait is 0, else it grows by the batch."""
    recent = Recent(1, 3)
    counts = np.zeros((5, 1, 3), np.uint32)
    counts[:, 0, 0] = 8
    recent.add_routing(Batch(counts, np.zeros_like(counts), 1))
    assert recent.idle.tolist() == [[0, 5, 5]]
    counts[2, 0, 1] = 1
    recent.add_routing(Batch(counts, np.zeros_like(counts), 1))
    assert recent.idle.tolist() == [[0, 0, 10]]
