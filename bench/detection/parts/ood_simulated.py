"""Unseen topics in simulated traffic of a 30 x 128 model, far from the known ones and near, by length."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from bench.detection.parts.separation import apart, judge
from bench.simulate import World

BASELINE: Final = 4000  # requests
TESTS: Final = 300  # requests of each kind and length
LENGTHS: Final = (16, 64, 256, 2048)


def run(seed: int, topics: int = 12) -> dict[str, Any]:
    """Return AUROC and FPR of far and near topics by length, and for lengths mixed as in the traffic."""
    world = World(seed=seed, topics=topics)
    judged = judge(world.draw(BASELINE, np.random.default_rng([seed, 0])).total, world.top_k)
    found: dict[str, Any] = {"requests": BASELINE, "topics": topics, "lengths": {}}
    for n in (*LENGTHS, None):
        rng = np.random.default_rng([seed, n or 1])
        tests = {kind: judged(world.draw(TESTS, rng, kind, tokens=n).total) for kind in ("normal", "far", "near")}
        scores = {kind: each.score[np.isfinite(each.score)] for kind, each in tests.items()}
        found["lengths"]["mixed" if n is None else str(n)] = {
            "flagged": round(float((tests["normal"].p <= 0.05).mean()), 4),
            "kinds": {kind: apart(scores["normal"], scores[kind]) for kind in ("far", "near")},
        }
    return found
