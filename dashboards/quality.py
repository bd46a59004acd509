"""How unusual the requests are, and what that costs in the quality of the text."""

from __future__ import annotations

from typing import Any, Final

from moe_watch.provision import thresholds as limit

from .frame import Row, build
from .panels import MOE_WATCH, Limit, Query, bars, number, series
from .queries import OOD_LIMIT, of_baseline
from .states import YES_NO

UID: Final = "moe-watch-quality"


def content() -> dict[str, Any]:
    """Return the dashboard's JSON."""
    return build(
        UID,
        "OOD and quality",
        "Unusual requests, and the MoE's text against the dense model's on the same prompts.",
        [
            Row("Unusual requests", _ood()),
            Row("Quality against the dense shadow", _gap()),
            Row("Broken text", _garbled()),
        ],
    )


def _ood() -> list[Any]:
    bounds = [
        Query(of_baseline(f"moe_watch_ood_ratio{{{MOE_WATCH}}}"), "{{replica}}"),
        Query(of_baseline(f"moe_watch_ood_ratio_lower{{{MOE_WATCH}}}"), "{{replica}} at least"),
        Query(of_baseline(f"moe_watch_ood_ratio_upper{{{MOE_WATCH}}}"), "{{replica}} at most"),
        Query(OOD_LIMIT, "alert when 'at least' is above"),
    ]
    return [
        series(
            "OOD rate with its bounds",
            "Share of the latest requests whose routing is unlike the chosen baseline's. The alert compares the "
            "lower bound.",
            bounds,
            "percentunit",
            width=16,
        ),
        series(
            "OOD requests",
            "Flagged requests a second; exemplars carry request ids for `moe-watch explain`.",
            [
                Query(
                    f"sum by (replica) (rate(moe_watch_ood_requests_total{{{MOE_WATCH}}}[$__rate_interval]))",
                    "{{replica}}",
                )
            ],
            "reqps",
            width=8,
        ),
    ]


def _gap() -> list[Any]:
    return [
        series(
            "Quality gap with its bounds",
            "Negative log-likelihood of the MoE's text under the dense model minus that of the dense model's own "
            "text, in nats a token. Above 0: worse than the dense model.",
            [
                Query(f"moe_watch_quality_gap_nats{{{MOE_WATCH}}}", "{{replica}}"),
                Query(f"moe_watch_quality_gap_nats_lower{{{MOE_WATCH}}}", "{{replica}} at least"),
                Query(f"moe_watch_quality_gap_nats_upper{{{MOE_WATCH}}}", "{{replica}} at most"),
            ],
            "none",
            low=None,
        ),
        bars(
            "Quality gap by decile of the OOD score",
            "1: most ordinary requests, 10: most unusual. A rise to the right is what unusual traffic costs; a "
            "flat shift is the model's own fault.",
            Query(f"max by (decile) (moe_watch_quality_gap_by_ood_nats{{{MOE_WATCH}}})", "decile {{decile}}"),
            "none",
        ),
        number(
            "Degraded",
            "The sequential test on the gap is in alarm: the alert QualityGap.",
            Query(f"max by (replica) (moe_watch_quality_degraded{{{MOE_WATCH}}})", "{{replica}}"),
            "none",
            mappings=YES_NO,
            height=8,
        ),
        number(
            "Scored by the shadow",
            "Share of the latest requests that the dense model scored: what the gap rests on.",
            Query(f"min(moe_watch_shadow_coverage_ratio{{{MOE_WATCH}}})", "scored"),
            "percentunit",
            height=8,
        ),
        series(
            "Shadow requests",
            "Requests taken for the dense model by what became of them. Many dropped or over budget: raise its budget.",
            [
                Query(
                    f"sum by (outcome) (rate(moe_watch_shadow_requests_total{{{MOE_WATCH}}}[$__rate_interval]))",
                    "{{outcome}}",
                )
            ],
            "reqps",
            width=16,
        ),
    ]


def _garbled() -> list[Any]:
    return [
        series(
            "Outputs with a defect",
            "Share of sampled outputs that loop, break their encoding or come from NaN. The alert compares the "
            "lower bound.",
            [
                Query(f"moe_watch_garbled_ratio{{{MOE_WATCH}}}", "{{replica}}"),
                Query(f"moe_watch_garbled_ratio_lower{{{MOE_WATCH}}}", "{{replica}} at least"),
            ],
            "percentunit",
            limit=Limit(limit.GARBLED_RATIO),
            width=8,
        ),
        series(
            "Defects by kind",
            "Sampled outputs with each kind of defect, a second.",
            [
                Query(
                    f"sum by (defect) (rate(moe_watch_garbled_requests_total{{{MOE_WATCH}}}[$__rate_interval]))",
                    "{{defect}}",
                )
            ],
            "reqps",
            width=8,
        ),
        series(
            "NaN in the logits",
            "Requests in whose logits vLLM saw NaN, a second. Any at all is a fault of a kernel or of the weights.",
            [
                Query(
                    f"sum by (replica) (rate(moe_watch_corrupted_requests_total{{{MOE_WATCH}}}[$__rate_interval]))",
                    "{{replica}}",
                )
            ],
            "reqps",
            width=8,
        ),
    ]
