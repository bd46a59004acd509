"""How small a rise of the quality gap is seen, and how soon, drawn from learned requests without any server."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from moe_watch.detect.common import weighted_estimates
from moe_watch.detect.common.weighted_estimates import Floats
from moe_watch.detect.quality import gap_alarm
from moe_watch.shadow.trial import CLIP

RISES, REPEATS, LONGEST, WEEK = (0.1, 0.2, 0.3, 0.5, 1.0), 40, 3000, 1000  # nats per token, draws, requests


def power(learned: Floats, reference: int, run_length: float, tolerance: float) -> dict[str, Any]:
    """Return how soon QualityGap fires when every gap grows by so much, and how often a report would blame the MoE.

    Requests are drawn from the learned ones with replacement; the reference is the first ones, as in the product.
    """
    rng = np.random.default_rng(0)
    low, high = CLIP["quality"]
    old = learned[~np.isnan(learned)]
    ones = np.ones(LONGEST)
    known = gap_alarm.reference(old[:reference], ones[:reference], low=low, high=high, tolerance=tolerance)
    found = {}
    for rise in RISES:
        delays, blamed = [], []
        for _ in range(REPEATS):
            new = rng.choice(old, LONGEST) + rise
            _, alarms = gap_alarm.observe(known, gap_alarm.start(run_length), new, ones)
            delays.append(alarms[0].at + 1 if alarms else math.inf)
            before, after = (
                weighted_estimates.mean(old, ones[: len(old)]),
                weighted_estimates.mean(new[:WEEK], ones[:WEEK]),
            )
            half = math.hypot(before.upper - before.value, after.upper - after.value)
            blamed.append(after.value - before.value - half > tolerance)
        delay = float(np.median(delays))
        found[str(rise)] = {"delay": delay if math.isfinite(delay) else None, "blamed": float(np.mean(blamed))}
    return found


def table(found: dict[str, Any]) -> str:
    """Return the table of the document."""
    head = f"in a report over {WEEK:,} replayed requests"
    lines = [
        f"| every gap grows by | QualityGap fires after, median | blamed on the MoE {head} |",
        "| --- | --- | --- |",
    ]
    for rise, row in found.items():
        delay = f"{row['delay']:.0f} scored requests" if row["delay"] else f"not within {LONGEST:,}"
        lines.append(f"| {rise} nats per token | {delay} | {row['blamed']:.0%} of {REPEATS} |")
    return "\n".join(lines) + "\n"
