"""The alerts. PromQL only compares here: the sidecar computes bounds, tests and verdicts.

An expression about one replica keeps ``model`` and ``replica`` (TTFT also ``context``), so that routing, inhibition
and the links to the dashboards find them. Verdict gauges are 0 from a replica's first frame on, so the absence of
alerts means health only while ``TapDown`` does not fire either.
"""

from __future__ import annotations

from typing import Final

from moe_watch.provision import thresholds as limit
from moe_watch.provision.alert import Alert

BY: Final = "by (model, replica)"
SUBJECT: Final = "{{ $labels.model }} on {{ $labels.replica }}"


def _began(kind: str) -> str:
    """Return the start of an open drift of ``kind``, in seconds since the epoch; empty without one."""
    active = f'max {BY} (moe_watch_drift_active{{kind="{kind}"}}) == 1'
    return f'max {BY} (moe_watch_drift_began_timestamp_seconds{{kind="{kind}"}}) and on (model, replica) ({active})'


def _burn(window: str) -> str:
    """Return the share of requests over their TTFT budget in ``window``, by context bucket."""
    by = "by (model, replica, context)"
    over = f"sum {by} (rate(moe_watch_ttft_over_budget_total[{window}]))"
    return f"{over} / sum {by} (rate(moe_watch_ttft_requests_total[{window}]))"


def _burning(factor: float, long: str, short: str) -> str:
    """Return the burn over ``long`` where both windows burn ``factor`` times too fast on enough requests."""
    bound = f"{factor:g} * (1 - {limit.TTFT_OBJECTIVE_RATIO:g})"
    enough = f"sum by (model, replica, context) (increase(moe_watch_ttft_requests_total[{long}]))"
    return f"({_burn(long)} > {bound} and {_burn(short)} > {bound} and {enough} >= {limit.TTFT_MIN_REQUESTS})"


def _vllm(metric: str) -> str:
    """Return a vLLM gauge under moe-watch's label names; ``replica`` comes from the scrape configuration."""
    return f'max {BY} (label_replace({metric}, "model", "$1", "model_name", "(.*)"))'


def _dropped() -> str:
    """Return the share of frames lost on the way to a sidecar, by replica."""
    lost = "sum by (instance, model, replica) (rate(moe_watch_frames_dropped_total[5m]))"
    came = "sum by (instance) (rate(moe_watch_frames_received_total[5m]))"
    return f"max {BY} ({lost} / on (instance) group_left () ({came} + on (instance) sum by (instance) ({lost})))"


def _refused() -> str:
    """Return the share of frames that a sidecar refuses, by reason; a refused frame need not name its replica."""
    by_reason = "sum by (instance, reason) (rate(moe_watch_frames_refused_total[5m]))"
    refused, came = (f"sum by (instance) (rate(moe_watch_frames_{what}_total[5m]))" for what in ("refused", "received"))
    return f"{by_reason} / on (instance) group_left () ({came} + {refused})"


def _nobody_watches() -> str:
    """Return an expression for a replica without a tap, a sidecar that cannot be scraped, or a site without data.

    It holds for a quarter of an hour for a replica that was watched a quarter of an hour ago and is in no scrape now:
    only people know whether it was removed on purpose. Without any replica it holds until one is back.
    """
    gone = (
        f"max {BY} (moe_watch_tap_up offset {limit.VANISHED_AFTER}) == 1 "
        "unless on (replica) max by (replica) (moe_watch_tap_up)"
    )
    is_sidecar = "on (job, instance) last_over_time(moe_watch_build_info[1d])"
    return (
        f'max {BY} (moe_watch_tap_up) == 0 or max {BY} (moe_watch_verdict{{verdict="blind"}}) == 1 '
        f'or up{{job="moe-watch"}} == 0 or (up == 0 and {is_sidecar}) '
        f"or (({gone}) and on () count(moe_watch_tap_up)) or absent(moe_watch_tap_up)"
    )


MODEL: Final = (
    Alert(
        name="RoutingDrift",
        severity="critical",
        incident="model",
        expr=_began("routing"),
        wait=limit.VERDICT_FOR,
        summary=f"The same prompts go to other experts: {SUBJECT} routes differently than its baseline",
        description=(
            "The canary prompts moved together with live traffic, so it is the model, its kernels or its configuration "
            "and not the requests. The change began at about {{ $value | humanizeTimestamp }} UTC."
        ),
        dashboard="moe-watch-routing",
    ),
    Alert(
        name="CanaryChanged",
        severity="critical",
        incident="model",
        expr=(
            f"max {BY} (moe_watch_canary_effect_ratio) and on (model, replica) "
            f"(max {BY} (moe_watch_canary_changed) == 1)"
        ),
        wait=limit.VERDICT_FOR,
        summary=f"Canary prompts at temperature 0 are answered by other experts on {SUBJECT}",
        description=(
            'The last replay of the canary set moved {{ $value | printf "%.1f" }} times its noise floor, which healthy '
            "restarts and other batch compositions never did. Live traffic cannot cause this."
        ),
        dashboard="moe-watch-routing",
    ),
    Alert(
        name="DeadExperts",
        severity="critical",
        incident="model",
        expr=f"sum {BY} (moe_watch_dead_experts) > 0",
        wait=limit.RATE_FOR,
        summary="{{ $value }} experts of " + SUBJECT + " get no tokens any more",
        description=(
            "{{ $value }} experts that the baseline's traffic would have chosen by now were not chosen once. Weights, "
            "an expert map or a mask are wrong, or a whole domain left the traffic."
        ),
        dashboard="moe-watch-routing",
    ),
    Alert(
        name="GarbledOutput",
        severity="critical",
        incident="model",
        expr=f"max {BY} (moe_watch_garbled_ratio_lower) > {limit.GARBLED_RATIO:g}",
        wait=limit.VERDICT_FOR,
        summary=f"Users of {SUBJECT} get broken text",
        description=(
            "At least {{ $value | humanizePercentage }} of the sampled outputs loop, break their encoding or come from "
            f"NaN logits (lower bound; {limit.GARBLED_RATIO:.0%} is tolerated)."
        ),
        dashboard="moe-watch-quality",
    ),
    Alert(
        name="QualityGap",
        severity="critical",
        incident="model",
        expr=(
            f"max {BY} (moe_watch_quality_gap_nats_lower) and on (model, replica) "
            f"(max {BY} (moe_watch_quality_degraded) == 1)"
        ),
        wait=limit.VERDICT_FOR,
        summary=f"{SUBJECT} writes worse than the dense model, and worse than it used to",
        description=(
            'The sequential test on the gap to the dense model raised an alarm: at least {{ $value | printf "%.2f" }} '
            "nats per token. The dense model answered the same prompts, so harder prompts alone do not raise it."
        ),
        dashboard="moe-watch-quality",
    ),
)

TRAFFIC: Final = (
    Alert(
        name="TrafficDrift",
        severity="warning",
        incident="traffic",
        expr=_began("traffic"),
        wait=limit.VERDICT_FOR,
        summary=f"Requests to {SUBJECT} differ from those of its baseline",
        description=(
            "Live routing left the baseline and no canary moved with it: the traffic changed, not the model. The "
            "change began at about {{ $value | humanizeTimestamp }} UTC."
        ),
        dashboard="moe-watch-quality",
    ),
    Alert(
        name="OODRateHigh",
        severity="warning",
        incident="traffic",
        expr=(
            f"max {BY} (moe_watch_ood_ratio_lower) > "
            f"{limit.OOD_TIMES_EXPECTED:g} * max {BY} (moe_watch_ood_expected_ratio)"
        ),
        wait=limit.RATE_FOR,
        summary=f"Too many requests to {SUBJECT} are unlike anything in its baseline",
        description=(
            "At least {{ $value | humanizePercentage }} of the latest requests are unusual (lower bound), "
            f"more than {limit.OOD_TIMES_EXPECTED:g} times the share expected. Output quality on them is uncertain."
        ),
        dashboard="moe-watch-quality",
    ),
    Alert(
        name="BaselineStale",
        severity="warning",
        incident="monitor",
        expr=f"max {BY} (moe_watch_baseline_age_seconds) > {limit.BASELINE_MAX_AGE_DAYS} * 86400",
        wait=limit.SLOW_FOR,
        summary=f"The baseline of {SUBJECT} is {{{{ $value | humanizeDuration }}}} old",
        description=(
            f"Drift is judged against a baseline older than {limit.BASELINE_MAX_AGE_DAYS} days. Review the last weeks "
            "and promote a new one, or confirm the old."
        ),
        dashboard="moe-watch-health",
    ),
)

SERVING: Final = (
    Alert(
        name="ExpertImbalance",
        severity="warning",
        incident="serving",
        expr=f"max {BY} (moe_watch_rank_load_max_to_mean_ratio) > {limit.RANK_LOAD_RATIO:g}",
        wait=limit.LOAD_FOR,
        summary=f'One expert-parallel rank of {SUBJECT} does {{{{ $value | printf "%.1f" }}}} times the mean work',
        description=(
            'Every step waits for the busiest rank: {{ $value | printf "%.1f" }} times the mean load in the worst '
            f"layer ({limit.RANK_LOAD_RATIO:g} is tolerated), which costs throughput and latency on all requests."
        ),
        dashboard="moe-watch-routing",
    ),
    Alert(
        name="MoEAdvantageLost",
        severity="warning",
        incident="serving",
        expr=f"max {BY} (moe_watch_moe_advantage_ratio_upper) < {limit.MOE_ADVANTAGE_RATIO:g}",
        wait=limit.LOAD_FOR,
        summary=f"{SUBJECT} is slower than the dense model would be",
        description=(
            'At equal concurrency the MoE makes at most {{ $value | printf "%.2f" }} times the tokens per second of '
            "the dense model (upper bound), while it holds the memory of all its experts."
        ),
        dashboard="moe-watch-serving",
    ),
    Alert(
        name="TTFTBudgetBurn",
        severity="critical",
        incident="serving",
        expr=f"{_burning(limit.TTFT_FAST_BURN, '1h', '5m')} or {_burning(limit.TTFT_SLOW_BURN, '6h', '30m')}",
        wait=limit.VERDICT_FOR,
        summary=f"First tokens of prompts in the length bucket {{{{ $labels.context }}}} come too late on {SUBJECT}",
        description=(
            "{{ $value | humanizePercentage }} of them exceeded the budget of their length; "
            f"{1 - limit.TTFT_OBJECTIVE_RATIO:.0%} may. Both the long and the short window burn, so it "
            "is happening now."
        ),
        dashboard="moe-watch-serving",
    ),
    Alert(
        name="KVCachePressure",
        severity="warning",
        incident="serving",
        expr=f"{_vllm('vllm:kv_cache_usage_perc')} > {limit.KV_CACHE_RATIO:g}",
        wait=limit.RATE_FOR,
        summary=f"The KV cache of {SUBJECT} is {{{{ $value | humanizePercentage }}}} full",
        description=(
            f"Above {limit.KV_CACHE_RATIO:.0%} vLLM preempts requests and computes them again: latency rises for all. "
            "Usually long contexts, see the share of prompts above 32k."
        ),
        dashboard="moe-watch-serving",
    ),
)

MONITOR: Final = (
    Alert(
        name="TapDown",
        severity="critical",
        incident="monitor",
        expr=_nobody_watches(),
        wait=limit.RATE_FOR,
        summary=(
            "Nothing watches {{ with $labels.model }}{{ . }}{{ else }}the model{{ end }}"
            "{{ with $labels.replica }} on {{ . }}{{ end }}{{ with $labels.instance }} behind {{ . }}{{ end }}"
        ),
        description=(
            "No routing arrives: the tap inside vLLM is off or blind, or the sidecar is down, no longer scraped, or "
            "was never scraped. All other moe-watch alerts lack data: that they do not fire does not mean all is well."
        ),
        dashboard="moe-watch-health",
    ),
    Alert(
        name="FramesDropped",
        severity="warning",
        incident="monitor",
        expr=f"{_dropped()} > {limit.FRAMES_DROPPED_RATIO:g}",
        wait=limit.RATE_FOR,
        summary=f"{{{{ $value | humanizePercentage }}}} of the records of {SUBJECT} are lost on the way to moe-watch",
        description=(
            f"More than {limit.FRAMES_DROPPED_RATIO:.0%} of the frames between vLLM and the sidecar are lost: "
            "vLLM is not affected, but rates and verdicts are computed from the remaining frames only."
        ),
        dashboard="moe-watch-health",
    ),
    Alert(
        name="FramesRefused",
        severity="warning",
        incident="monitor",
        expr=f"{_refused()} > {limit.FRAMES_REFUSED_RATIO:g}",
        wait=limit.RATE_FOR,
        summary="moe-watch refuses {{ $value | humanizePercentage }} of the records: {{ $labels.reason }}",
        description=(
            f"More than {limit.FRAMES_REFUSED_RATIO:.0%} of the frames sent to {{{{ $labels.instance }}}} are refused: "
            "many requests under one id, senders of another version, or a sidecar at its bounds. No detector sees a "
            "refused frame."
        ),
        dashboard="moe-watch-health",
    ),
)

FLEET: Final = (
    Alert(
        name="ReplicaDeviates",
        severity="critical",
        incident="model",
        expr=(
            f"max {BY} (moe_watch_replica_evidence_ratio) and on (model, replica) "
            f"(max {BY} (moe_watch_replica_deviates) == 1)"
        ),
        wait=limit.VERDICT_FOR,
        summary=f"{SUBJECT} routes differently than its siblings do on the same traffic",
        description=(
            "Minute after minute its requests go to other experts than those of all other replicas of the model: a bad "
            "node, another build or another configuration, unless the load balancer sends it other requests. Evidence "
            'is {{ $value | printf "%.1f" }} times the threshold.'
        ),
        dashboard="moe-watch-routing",
    ),
)

ALERTS: Final = (*MODEL, *TRAFFIC, *SERVING, *MONITOR, *FLEET)
