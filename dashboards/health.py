"""Can the other dashboards be believed: does everything arrive, in time, and is it kept."""

from __future__ import annotations

from typing import Any, Final

from moe_watch.provision import thresholds as limit
from moe_watch.settings import DetectSettings

from .frame import Row, build
from .panels import MOE_WATCH, Limit, Query, number, series, states, table
from .queries import quantile
from .states import UP_DOWN

UID: Final = "moe-watch-health"
_COVERAGE_FLOOR: Final = float(DetectSettings().coverage_floor)
_DAY_S: Final = 86_400


def content() -> dict[str, Any]:
    """Return the dashboard's JSON."""
    return build(
        UID,
        "Monitor health",
        "Tap, wire, join, store and baseline of moe-watch itself.",
        [Row("Tap", _tap()), Row("On the way", _wire()), Row("Store", _store()), Row("Baseline", _baseline())],
    )


def _tap() -> list[Any]:
    return [
        states(
            "Tap",
            "up: the tap inside this vLLM spoke in the last 30 s and records routing.",
            [Query(f"moe_watch_tap_up{{{MOE_WATCH}}}", "{{replica}}")],
            UP_DOWN,
            width=12,
        ),
        table(
            "What is served",
            "As the tap announced it. Compare a deviating replica's row with its siblings'.",
            [Query(f"moe_watch_tap_info{{{MOE_WATCH}}}", "")],
            {
                "replica": "Replica",
                "model": "Model",
                "vllm_version": "vLLM",
                "tap_version": "Tap",
                "runner": "Runner",
                "moe_backend": "MoE kernel",
                "quantization": "Quantisation",
            },
            height=6,
        ),
        series(
            "Requests with routing",
            "Share of the latest requests whose routing was recorded. Below the line moe-watch calls itself blind.",
            [Query(f"moe_watch_coverage_ratio{{{MOE_WATCH}}}", "{{replica}}")],
            "percentunit",
            limit=Limit(_COVERAGE_FLOOR, above=False),
            high=1.0,
        ),
        series(
            "Routed tokens",
            "Tokens a second whose routing was recorded. 0 under load: the tap is blind.",
            [
                Query(
                    f"sum by (replica) (rate(moe_watch_routed_tokens_total{{{MOE_WATCH}}}[$__rate_interval]))",
                    "{{replica}}",
                )
            ],
            "short",
        ),
    ]


def _wire() -> list[Any]:
    return [
        series(
            "Frames lost",
            "Frames a second that never came: dropped by the tap (queue_full, not_connected, error) or lost on the "
            "way.",
            [
                Query(
                    f"sum by (replica, reason) (rate(moe_watch_frames_dropped_total{{{MOE_WATCH}}}[$__rate_interval]))",
                    "{{replica}} {{reason}}",
                )
            ],
            "short",
            width=8,
        ),
        series(
            "Frames refused",
            "Frames a second that came and could not be used, by reason. unknown_version: tap and sidecar differ.",
            [Query("sum by (reason) (rate(moe_watch_frames_refused_total[$__rate_interval]))", "{{reason}}")],
            "short",
            width=8,
        ),
        series(
            "Frames received",
            "Frames a second, by type; a type that is missing names the half of the tap that is silent.",
            [Query("sum by (type) (rate(moe_watch_frames_received_total[$__rate_interval]))", "{{type}}")],
            "short",
            width=8,
        ),
        series(
            "Requests joined in full",
            "Share of the latest requests of which routing, latency and HTTP part all arrived in time.",
            [Query(f"moe_watch_join_ratio{{{MOE_WATCH}}}", "{{replica}}")],
            "percentunit",
            limit=Limit(limit.JOIN_RATIO, above=False),
            high=1.0,
            width=8,
        ),
        series(
            "Delay from request to metric",
            "Median and 99th percentile from the end of a request to its metrics.",
            [
                Query(quantile(0.5, "moe_watch_processing_delay_seconds", ""), "median"),
                Query(quantile(0.99, "moe_watch_processing_delay_seconds", ""), "99th percentile"),
            ],
            "s",
            limit=Limit(limit.INGEST_LAG_S),
            width=8,
        ),
        series(
            "Lag and clock skew",
            "Age of the newest frame when the sidecar took it, and the difference of the two clocks.",
            [
                Query("max by (instance) (moe_watch_ingest_lag_seconds)", "lag {{instance}}"),
                Query(f"moe_watch_tap_clock_skew_seconds{{{MOE_WATCH}}}", "skew {{replica}}"),
            ],
            "s",
            low=None,
            width=8,
        ),
    ]


def _store() -> list[Any]:
    return [
        number(
            "Store",
            "Whether the last write went through. down: batches wait in the spool and nothing is lost until it is "
            "full.",
            Query("min(moe_watch_store_up)", "store"),
            "none",
            mappings=UP_DOWN,
            height=8,
        ),
        series(
            "Writes",
            "Median and 99th percentile of one batch's write.",
            [
                Query(quantile(0.5, "moe_watch_store_write_seconds", ""), "median"),
                Query(quantile(0.99, "moe_watch_store_write_seconds", ""), "99th percentile"),
            ],
            "s",
            width=7,
        ),
        series(
            "Rows written and lost",
            "Requests a second written to the store, and lost because the spool was full.",
            [
                Query("sum(rate(moe_watch_store_rows_total[$__rate_interval]))", "written"),
                Query("sum(rate(moe_watch_spool_dropped_total[$__rate_interval]))", "lost"),
            ],
            "reqps",
            width=7,
        ),
        series(
            "Size",
            "Bytes of the store and of the spool in front of it.",
            [Query("sum(moe_watch_store_bytes)", "store"), Query("sum(moe_watch_spool_bytes)", "spool")],
            "bytes",
            width=6,
        ),
    ]


def _baseline() -> list[Any]:
    return [
        series(
            "Age of the baseline",
            "Time since the active baseline was promoted. Older than the line: it has not seen recent traffic.",
            [Query(f"moe_watch_baseline_age_seconds{{{MOE_WATCH}}}", "{{replica}}")],
            "s",
            limit=Limit(float(limit.BASELINE_MAX_AGE_DAYS * _DAY_S)),
        ),
        table(
            "Active baselines",
            "Version, and how many requests it was fitted on.",
            [
                Query(
                    f"moe_watch_baseline_requests{{{MOE_WATCH}}} * on (model, replica) group_left (baseline) "
                    f'moe_watch_baseline_info{{{MOE_WATCH}, baseline=~"$baseline"}}',
                    "",
                )
            ],
            {"model": "Model", "replica": "Replica", "baseline": "Baseline", "Value": "Fitted on requests"},
        ),
        series(
            "Requests awaiting a part and detector errors",
            "Requests of which some part is still awaited. It grows when one half of the tap went silent. "
            "A detector error costs its result, not the request: see the sidecar's log.",
            [
                Query("sum(moe_watch_join_pending)", "pending"),
                Query(f"sum(increase(moe_watch_detector_errors_total{{{MOE_WATCH}}}[$__rate_interval]))", "errors"),
            ],
            "short",
        ),
        table(
            "Running versions",
            "moe-watch itself, one row a sidecar.",
            [Query("moe_watch_build_info", "")],
            {"instance": "Sidecar", "version": "moe-watch"},
        ),
    ]
