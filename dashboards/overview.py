"""First page after a page: is it traffic, the model or the deployment, and what changed."""

from __future__ import annotations

from typing import Any, Final

from moe_watch.provision import thresholds as limit
from moe_watch.provision.catalogue import ALERTS

from .frame import Row, build
from .panels import MOE_WATCH, VLLM, Limit, Query, number, series, states, table
from .queries import OOD_LIMIT, context_share_over_budget, within_budget
from .states import VERDICT, VERDICT_NAMES

UID: Final = "moe-watch-overview"
_FIRING: Final = f'ALERTS{{alertname=~"{"|".join(alert.name for alert in ALERTS)}", alertstate="firing"}}'


def content() -> dict[str, Any]:
    """Return the dashboard's JSON."""
    return build(
        UID,
        "Overview",
        "Is expert routing healthy, are its users served well, and what changed.",
        [Row("Now", _now()), Row("What changed", _changes()), Row("Promises", _promises())],
    )


def _now() -> list[Any]:
    return [
        number(
            "Verdict",
            "What moe-watch concludes. traffic: other requests than in the baseline. routing, deployment: the same "
            "requests go to other experts. blind: no data, so no verdict. learning: no baseline yet.",
            Query(VERDICT, "{{replica}}"),
            "none",
            mappings=VERDICT_NAMES,
            width=6,
        ),
        number(
            "Firing alerts",
            "Alerts of moe-watch that fire now, as Prometheus has them (Grafana-managed rules are not counted).",
            Query(f"count({_FIRING}) or vector(0)", "firing"),
            "none",
            limit=Limit(1),
            width=3,
        ),
        number(
            "Replicas without a tap",
            "vLLM replicas whose routing nobody sees. Every other number on this page is about the rest.",
            Query(f"count(moe_watch_tap_up{{{MOE_WATCH}}} == 0) or vector(0)", "down"),
            "none",
            limit=Limit(1),
            width=3,
        ),
        number(
            "OOD requests",
            "Highest share of unusual requests of any replica, estimate over the latest requests.",
            Query(f"max(moe_watch_ood_ratio{{{MOE_WATCH}}})", "share"),
            "percentunit",
            width=3,
        ),
        number(
            "Quality gap",
            "How much worse the MoE's text is than the dense model's own, in nats a token; needs the dense shadow.",
            Query(f"max(moe_watch_quality_gap_nats{{{MOE_WATCH}}})", "gap"),
            "none",
            width=3,
        ),
        number(
            "MoE advantage",
            "Tokens per second of the MoE over the dense model's at equal concurrency; below 1 the MoE does not pay.",
            Query(f"min(moe_watch_moe_advantage_ratio{{{MOE_WATCH}}})", "times"),
            "none",
            limit=Limit(limit.MOE_ADVANTAGE_RATIO, above=False),
            width=3,
        ),
        number(
            "First token in budget",
            "Share of requests of the last hour whose first token came within the budget of their prompt's length.",
            Query(within_budget("1h"), "in budget"),
            "percentunit",
            limit=Limit(limit.TTFT_OBJECTIVE_RATIO, above=False),
            width=3,
        ),
    ]


def _changes() -> list[Any]:
    return [
        states(
            "Verdict over time",
            "One bar a replica. A change at one replica only points at that node or its build; at all of them, at "
            "traffic or a rollout.",
            [Query(VERDICT, "{{model}} {{replica}}")],
            VERDICT_NAMES,
        ),
        series(
            "Drift evidence",
            "Evidence of each part of the drift detector over its alarm threshold: the alarm is raised at 1. ood: "
            "unusual requests. layer: single layers. mix: proportions of kinds of requests. confidence: router "
            "entropy. expert: single experts.",
            [
                Query(
                    f"max by (channel) (moe_watch_drift_evidence_ratio{{{MOE_WATCH}}})",
                    "{{channel}}",
                )
            ],
            "none",
            limit=Limit(1.0),
        ),
        series(
            "OOD requests",
            "Share of unusual requests per replica (lower bound), and the line where the alert starts.",
            [Query(f"moe_watch_ood_ratio_lower{{{MOE_WATCH}}}", "{{replica}}"), Query(OOD_LIMIT, "alert above")],
            "percentunit",
        ),
        table(
            "Firing alerts",
            "What fires now. Summary and runbook are in the notification and on the Runbooks dashboard.",
            [Query(_FIRING, "")],
            {
                "alertname": "Alert",
                "severity": "Severity",
                "incident": "Incident",
                "model": "Model",
                "replica": "Replica",
            },
        ),
        series(
            "Restarts, rebalances, promotions",
            "Events that may explain a change. A drift that begins with one of them is that event's until shown "
            "otherwise.",
            [
                Query(
                    f"sum by (kind) (increase(moe_watch_events_total{{{MOE_WATCH}}}[$__rate_interval]))",
                    "{{kind}}",
                )
            ],
            "short",
        ),
    ]


def _promises() -> list[Any]:
    return [
        series(
            "First tokens over budget",
            "Share of requests over the budget of their prompt's length, last hour. The line is what the objective "
            "allows.",
            [Query(context_share_over_budget("1h"), "{{context}}")],
            "percentunit",
            limit=Limit(round(1 - limit.TTFT_OBJECTIVE_RATIO, 6)),
            width=8,
        ),
        series(
            "KV cache in use",
            "From vLLM. Above the line requests are preempted and computed again.",
            [Query(f"vllm:kv_cache_usage_perc{{{VLLM}}}", "{{replica}}{{instance}}")],
            "percentunit",
            limit=Limit(limit.KV_CACHE_RATIO),
            high=1.0,
            width=8,
        ),
        series(
            "Requests",
            "Finished requests a second by the way they ended.",
            [
                Query(
                    f"sum by (outcome) (rate(moe_watch_requests_total{{{MOE_WATCH}}}[$__rate_interval]))",
                    "{{outcome}}",
                )
            ],
            "reqps",
            width=8,
        ),
    ]
