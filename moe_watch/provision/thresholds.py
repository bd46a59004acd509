"""Every threshold of the alerts, and so of the dashboards' coloured lines: change one here and both follow.

Statistics are the sidecar's: its bounds and verdicts already carry an error rate. What stands here is what an operator
tolerates. Ratios are shares of 1, durations are Prometheus durations.
"""

from __future__ import annotations

from typing import Final

EVALUATION_INTERVAL: Final = "30s"

# How long a condition must hold before it is told to anybody. The sidecar's verdicts are already sequential tests with
# a stated false-alarm rate, so they wait only long enough to outlive one lost scrape.
VERDICT_FOR: Final = "1m"
RATE_FOR: Final = "5m"
LOAD_FOR: Final = "15m"
SLOW_FOR: Final = "1h"

# Share of out-of-distribution requests, as a multiple of the share that the baseline itself has.
OOD_TIMES_EXPECTED: Final = 2.0
# Share of sampled outputs with a defect (loops, NaN, broken encoding) that no healthy model reaches.
GARBLED_RATIO: Final = 0.02
# Busiest expert-parallel rank over the mean of the ranks: the whole step waits for the busiest.
RANK_LOAD_RATIO: Final = 1.5
# Tokens per second of the MoE over the dense model at equal concurrency; below 1 the MoE costs memory for nothing.
MOE_ADVANTAGE_RATIO: Final = 1.0

# Time to first token: share of requests that must meet the budget of their context bucket, and the burn rates of the
# rest (Google SRE workbook, chapter 5: 2 % of a 30 days' budget in one hour, 5 % in six).
TTFT_OBJECTIVE_RATIO: Final = 0.95
TTFT_FAST_BURN: Final = 14.4
TTFT_SLOW_BURN: Final = 6.0
TTFT_MIN_REQUESTS: Final = 20

# Share of vLLM's KV cache in use: above it requests are preempted and computed again.
KV_CACHE_RATIO: Final = 0.9

# Share of frames lost between vLLM and the sidecar that still leaves the statistics honest.
FRAMES_DROPPED_RATIO: Final = 0.01
# Share of frames refused for one reason: a client that hides or a broken sender is above it, a late frame below.
FRAMES_REFUSED_RATIO: Final = 0.01
# What was scraped so long ago and is not now has vanished.
VANISHED_AFTER: Final = "15m"
# Share of requests whose parts all arrived.
JOIN_RATIO: Final = 0.95
# Delay from the end of a request to its metrics, seconds.
INGEST_LAG_S: Final = 5.0
# A baseline older than this has not seen a month's end, a release, a new customer.
BASELINE_MAX_AGE_DAYS: Final = 30
