"""Every metric that moe-watch exports, defined once as data; the only module that knows their names.

Conventions are Prometheus': base units, ``_total`` for counters, ``_ratio`` for shares and quotients, ``_seconds``.
Gauges that say yes or no exist with 0 from the first frame of a replica, since an alert cannot fire on a series that is
absent. To add a metric, add one definition here and call ``Board.set``/``add``/``observe`` where it is known.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Kind = Literal["gauge", "counter", "histogram"]

LABELS: Final[dict[str, str]] = {
    "model": "name of the served model as announced; one per replica at a time, 'unknown' before it is announced",
    "replica": "name of the vLLM replica (MOE_WATCH_REPLICA); at most 256 per sidecar",
    "layer": "index of a layer with experts in the whole model; as many as the model has",
    "expert": "logical expert id; at most 10 (layer, expert) pairs per replica, the top movers",
    "verdict": "see VERDICTS and CANARY_VERDICTS",
    "kind": "kind of alarm or event, a closed set",
    "channel": "part of the drift detector: ood, layer, mix, confidence, expert",
    "outcome": "how a request or a shadow request ended, a closed set",
    "reason": "why a frame was dropped or refused, a closed set",
    "type": "type of frame: model, routing, latency, request, event, health",
    "context": "bucket of prompt length: 4k, 16k, 32k, 64k, 128k, longer",
    "decile": "decile of the OOD score, 1 (most normal) to 10 (most unusual)",
    "defect": "kind of defect in an output text, a closed set",
    "load": "batch composition of canaries: 1, 4, 16 at a time, mixed; empty where nothing was compared",
    "baseline": "version of the active baseline",
    "version": "version of moe-watch",
    "part": "what runs beside the pipeline: companions, otlp, spans, canaries, retention, fleet, shadow",
}

VERDICTS: Final = ("healthy", "idle", "learning", "blind", "traffic", "routing", "deployment", "quality")
CANARY_VERDICTS: Final = ("healthy", "benign", "routing", "weights", "deployment", "blind")
DRIFT_KINDS: Final = ("traffic", "routing")
CHANNELS: Final = ("ood", "layer", "mix", "confidence", "expert")
EVENT_KINDS: Final = (
    *("engine_start", "eplb_rebalance", "tap_off", "tap_refused", "tap_blind"),  # the tap's
    *("model_changed", "baseline_promoted"),  # the sidecar's
)
OUTCOMES: Final = ("stop", "length", "abort", "error", "other")
DROP_REASONS: Final = ("queue_full", "not_connected", "error", "lost")
FRAME_TYPES: Final = ("model", "routing", "latency", "request", "event", "health")
PARTS: Final = (
    "opening",
    "connections",
    "callers",
    "companions",
    "otlp",
    "spans",
    "canaries",
    "retention",
    "fleet",
    "shadow",
)
REFUSAL_REASONS: Final = (
    "malformed",
    "too_large",
    "unknown_version",
    "wrong_shape",
    "model_too_large",
    "duplicate",
    "late",
    "unannounced",
    "too_many_replicas",
    "memory",
)
CONTEXT_BUCKETS: Final[dict[str, int]] = {  # label -> longest prompt, tokens
    "4k": 4096,
    "16k": 16_384,
    "32k": 32_768,
    "64k": 65_536,
    "128k": 131_072,
}
CONTEXTS: Final = (*CONTEXT_BUCKETS, "longer")
TTFT_BUCKETS: Final = (0.1, 0.2, 0.4, 0.8, 1.1, 1.5, 2.0, 3.0, 3.8, 5.0, 8.0, 12.0, 20.0, 30.0, 60.0)
TPOT_BUCKETS: Final = (0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.067, 0.08, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0)
WRITE_BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
JOIN_BUCKETS: Final = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)

_REPLICA: Final = ("model", "replica")


@dataclass(frozen=True, eq=False)
class Metric:
    """One metric: what it is called, what it means to an on-call engineer, and which labels tell its series apart."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...]
    buckets: tuple[float, ...] = ()  # upper bounds of a histogram, ascending, without +Inf


ALL: Final[list[Metric]] = []


def _add(
    kind: Kind, name: str, text: str, labels: tuple[str, ...] = _REPLICA, buckets: tuple[float, ...] = ()
) -> Metric:
    ALL.append(Metric(f"moe_watch_{name}", kind, text, labels, buckets))
    return ALL[-1]


def _gauge(name: str, text: str, *labels: str) -> Metric:
    return _add("gauge", name, text, _REPLICA + labels)


def _counter(name: str, text: str, *labels: str) -> Metric:
    return _add("counter", name, text, _REPLICA + labels)


# The verdict
VERDICT = _gauge("verdict", "1 for the current verdict on this replica's routing, 0 for the others.", "verdict")
DRIFT_ACTIVE = _gauge(
    "drift_active", "1 while an alarm of this kind is open: expert routing left its baseline.", "kind"
)
DRIFT_BEGAN = _gauge(
    "drift_began_timestamp_seconds", "Estimated start of the open drift of this kind, 0 when there is none.", "kind"
)
DRIFT_EVIDENCE = _gauge(
    "drift_evidence_ratio",
    "Evidence of this part of the drift detector over its alarm threshold; the alarm is raised at 1.",
    "channel",
)
ALARMS = _counter("alarms_total", "Alarms raised since the sidecar started, by kind.", "kind")
EPISODES = _counter("episodes_total", "The former name of ``moe_watch_alarms_total``, for one version.", "kind")

REPLICA_DEVIATES = _gauge("replica_deviates", "1 while this replica routes differently than its siblings, else 0.")
REPLICA_EVIDENCE = _gauge(
    "replica_evidence_ratio", "Evidence that this replica differs from its siblings over the threshold; flagged at 1."
)
FLEET_REPLICAS = _add(
    "gauge", "fleet_replicas", "Replicas of this model that were compared with each other.", ("model",)
)
FLEET_OOD_RATIO = _add(
    "gauge", "fleet_ood_ratio", "Share of unusual requests over all replicas of this model.", ("model",)
)
FLEET_OOD_RATIO_LOWER = _add(
    "gauge", "fleet_ood_ratio_lower", "Lower confidence bound of moe_watch_fleet_ood_ratio.", ("model",)
)

# The tap
TAP_UP = _gauge("tap_up", "1 when the tap of this replica spoke in the last 30 s and records routing, else 0.")
TAP_INFO = _gauge(
    "tap_info",
    "What is served and by what, as the tap announced it; always 1.",
    "vllm_version",
    "tap_version",
    "runner",
    "moe_backend",
    "quantization",
)
TAP_CLOCK_SKEW = _gauge(
    "tap_clock_skew_seconds", "The sidecar's clock minus the tap's when its last health frame came, transit included."
)
EVENTS = _counter("events_total", "Things that may explain a change: restarts, rebalances, promotions.", "kind")

# Requests
REQUESTS = _counter("requests_total", "Finished requests that were joined, by the way they ended.", "outcome")
ROUTED_REQUESTS = _counter("routed_requests_total", "Finished requests whose expert routing was recorded.")
ROUTED_TOKENS = _counter("routed_tokens_total", "Tokens whose expert routing was recorded.")
CORRUPTED_REQUESTS = _counter("corrupted_requests_total", "Requests in whose logits vLLM saw NaN.")
OOD_REQUESTS = _counter("ood_requests_total", "Requests flagged as unusual; the exemplar is one of them.")
OOD_RATIO = _gauge("ood_ratio", "Share of unusual requests among the latest requests.")
OOD_RATIO_LOWER = _gauge("ood_ratio_lower", "Lower confidence bound of moe_watch_ood_ratio.")
OOD_RATIO_UPPER = _gauge("ood_ratio_upper", "Upper confidence bound of moe_watch_ood_ratio.")
OOD_EXPECTED_RATIO = _gauge("ood_expected_ratio", "Share of requests that would be flagged on the baseline's traffic.")
JOIN_RATIO = _gauge("join_ratio", "Share of the latest requests of which every expected part arrived in time.")
COVERAGE_RATIO = _gauge("coverage_ratio", "Share of the latest requests with recorded routing.")
TTFT = _add(
    "histogram",
    "time_to_first_token_seconds",
    "Time to first token by prompt length (vLLM's own has no such label).",
    (*_REPLICA, "context"),
    TTFT_BUCKETS,
)
TTFT_REQUESTS = _counter("ttft_requests_total", "Requests with a time to first token, by prompt length.", "context")
TTFT_OVER_BUDGET = _counter(
    "ttft_over_budget_total", "Requests whose time to first token was over the budget of their length.", "context"
)
TPOT = _add("histogram", "time_per_output_token_seconds", "Mean time per output token.", _REPLICA, TPOT_BUCKETS)

# Routing, layer by layer
LAYER_SHIFT = _gauge(
    "layer_shift_ratio", "How far this layer's routing is from the baseline: Hellinger distance, 0 same to 1.", "layer"
)
EXPERT_LOAD_MAX = _gauge(
    "expert_load_max_to_mean_ratio", "Load of the busiest expert over the mean load of this layer; 1 is even.", "layer"
)
EXPERT_LOAD_ENTROPY = _gauge(
    "expert_load_entropy_ratio", "Entropy of the load over this layer's experts over its maximum; 1 is even.", "layer"
)
MOVED_EXPERTS = _gauge(
    "moved_experts",
    "Experts of this layer that the open drift moved, with at most 10 % of them named falsely; absent until known.",
    "layer",
)
DEAD_EXPERTS = _gauge(
    "dead_experts", "Experts of this layer that should have been chosen by now and were not.", "layer"
)
ROUTER_ENTROPY = _gauge("router_entropy_nats", "Mean entropy of the router's probabilities per token.", "layer")
ROUTER_ENTROPY_BASELINE = _gauge("router_entropy_baseline_nats", "The same over the active baseline.", "layer")
ROUTER_MARGIN = _gauge("router_margin_ratio", "Mean probability of the first expert minus the second's.", "layer")
TOP_MOVER_SHARE = _gauge(
    "top_mover_share_ratio",
    "Share of the layer's load on this expert, for the experts that moved most.",
    "layer",
    "expert",
)
TOP_MOVER_SHIFT = _gauge(
    "top_mover_shift_ratio", "Change of that share against the baseline, in share points.", "layer", "expert"
)
RANK_LOAD_MAX = _gauge(
    "rank_load_max_to_mean_ratio", "Load of the busiest expert-parallel rank over the mean; 1 is even.", "layer"
)

# The baseline
BASELINE_INFO = _gauge("baseline_info", "The active baseline; always 1.", "baseline")
BASELINE_AGE = _gauge("baseline_age_seconds", "Time since the active baseline was promoted; absent without one.")
BASELINE_PROMOTED = _gauge("baseline_promoted_timestamp_seconds", "When the active baseline was promoted.")
BASELINE_REQUESTS = _gauge("baseline_requests", "Requests that the active baseline was fitted on.")

# Canaries: the same prompts, replayed
CANARY_VERDICT = _gauge("canary_verdict", "1 for the verdict of the last replay of the canaries.", "verdict")
CANARY_CHANGED = _gauge("canary_changed", "1 when the last replay of the canaries moved beyond its noise floor.")
CANARY_FIRST_LAYER = _gauge("canary_first_layer", "First layer that moved in the last replay, -1 for none.")
CANARY_EFFECT = _gauge(
    "canary_effect_ratio", "Shift of the last replay over its noise floor; above 1 is a change.", "load"
)
CANARY_LAST_RUN = _gauge("canary_last_run_timestamp_seconds", "When the canaries were replayed last.")

# Quality, against the dense model
QUALITY_GAP = _gauge("quality_gap_nats", "The MoE's output against the dense model's own, nats per token.")
QUALITY_GAP_LOWER = _gauge("quality_gap_nats_lower", "Lower confidence bound of moe_watch_quality_gap_nats.")
QUALITY_GAP_UPPER = _gauge("quality_gap_nats_upper", "Upper confidence bound of moe_watch_quality_gap_nats.")
QUALITY_GAP_BY_OOD = _gauge("quality_gap_by_ood_nats", "The quality gap by decile of the OOD score.", "decile")
QUALITY_DEGRADED = _gauge("quality_degraded", "1 while the sequential test on the quality gap is in alarm.")
GARBLED_RATIO = _gauge("garbled_ratio", "Share of sampled outputs with a defect such as repetition.")
GARBLED_RATIO_LOWER = _gauge("garbled_ratio_lower", "Lower confidence bound of moe_watch_garbled_ratio.")
GARBLED_REQUESTS = _counter("garbled_requests_total", "Sampled outputs with this defect.", "defect")
SHADOW_REQUESTS = _counter("shadow_requests_total", "Requests taken for the dense shadow, by outcome.", "outcome")
SHADOW_COVERAGE = _gauge("shadow_coverage_ratio", "Share of the latest requests that the shadow scored.")
MOE_ADVANTAGE = _gauge("moe_advantage_ratio", "Tokens per second of the MoE over the dense model's, same concurrency.")
MOE_ADVANTAGE_UPPER = _gauge("moe_advantage_ratio_upper", "Upper confidence bound of moe_watch_moe_advantage_ratio.")

# The monitor itself
FRAMES_RECEIVED = _add("counter", "frames_received_total", "Frames accepted, by type.", ("type",))
FRAMES_REFUSED = _add("counter", "frames_refused_total", "Frames that came and were not used, by reason.", ("reason",))
FRAMES_DROPPED = _counter(
    "frames_dropped_total", "Frames that never came: dropped by the tap, or lost on the way.", "reason"
)
DETECTOR_ERRORS = _counter("detector_errors_total", "Batches of requests that a detector failed on; see the log.")
INGEST_LAG = _add("gauge", "ingest_lag_seconds", "Age of the newest frame when the sidecar took it.", ())
PROCESSING_DELAY = _add(
    "histogram", "processing_delay_seconds", "From the end of a request to its metrics.", (), JOIN_BUCKETS
)
JOIN_PENDING = _add("gauge", "join_pending", "Requests of which some part is still awaited.", ())
STORE_UP = _add("gauge", "store_up", "1 when the last write to the store went through.", ())
STORE_WRITE = _add("histogram", "store_write_seconds", "Time of one batch's write to the store.", (), WRITE_BUCKETS)
STORE_ROWS = _add("counter", "store_rows_total", "Requests written to the store.", ())
STORE_REFUSED = _add("counter", "store_refused_total", "Rows that the store would not take; see the log.", ())
STORE_BYTES = _add("gauge", "store_bytes", "Size of the store.", ())
SPOOL_BYTES = _add("gauge", "spool_bytes", "Batches that wait on disk for the store to come back.", ())
PART_FAILURES = _add(
    "counter", "part_failures_total", "Failures of what runs beside the pipeline, which was started again.", ("part",)
)
SPOOL_DROPPED = _add("counter", "spool_dropped_total", "Requests lost because the spool was full.", ())
BUILD_INFO = _add("gauge", "build_info", "The running moe-watch; always 1.", ("version",))
