"""Which layers and experts moved, since when, and whether the canaries moved with them."""

from __future__ import annotations

from typing import Any, Final

from moe_watch.metrics.series import DRIFT_KINDS
from moe_watch.provision import thresholds as limit

from .frame import Row, build
from .panels import MOE_WATCH, Limit, Query, grid, mapping, number, series, states, table
from .queries import of_baseline
from .states import CANARY, CANARY_NAMES

UID: Final = "moe-watch-routing"
_LAYER: Final = "layer {{layer}}"
_DRIFTS: Final = mapping({0: ("none", "green"), **{i + 1: (k, "red") for i, k in enumerate(DRIFT_KINDS)}})


def content() -> dict[str, Any]:
    """Return the dashboard's JSON."""
    return build(
        UID,
        "Routing",
        "What the routers do, layer by layer, against the baseline.",
        [
            Row("Drift", _drift()),
            Row("Siblings: the same traffic elsewhere", _siblings()),
            Row("Canaries: the same prompts again", _canaries()),
            Row("Layers and experts that moved", _movers()),
            Row("Confidence of the routers", _confidence()),
            Row("Load", _load()),
        ],
    )


def by_layer(metric: str) -> str:
    """Return the worst replica of each layer; single digits get a zero so that layers sort as numbers."""
    worst = f"max by (layer) ({metric}{{{MOE_WATCH}}})"
    return f'label_replace({worst}, "layer", "0$1", "layer", "(.)")'


def _drift() -> list[Any]:
    return [
        states(
            "Open drifts",
            "traffic: live requests left the baseline while the canaries stayed. routing: the canaries moved too.",
            [
                Query(
                    f'max by (model, replica) (moe_watch_drift_active{{{MOE_WATCH}, kind="{kind}"}}) * {index + 1}',
                    f"{{{{replica}}}} {kind}",
                )
                for index, kind in enumerate(DRIFT_KINDS)
            ],
            _DRIFTS,
            width=16,
        ),
        number(
            "Drift began",
            "Estimated start of the oldest open drift. Compare with restarts and rollouts (blue annotations).",
            Query(f"min(moe_watch_drift_began_timestamp_seconds{{{MOE_WATCH}}} > 0) * 1000", "began"),
            "dateTimeFromNow",
            height=6,
        ),
        number(
            "Alarms in the last day",
            "Alarms of every kind, raised since yesterday. The promise is one false alarm in as many requests as "
            "MOE_WATCH_DETECT__AVERAGE_RUN_LENGTH says.",
            Query(f"sum(increase(moe_watch_alarms_total{{{MOE_WATCH}}}[1d]))", "alarms"),
            "short",
            height=6,
        ),
        series(
            "Drift evidence by part",
            "Evidence over the alarm threshold, per replica and part of the detector; the alarm is raised at 1.",
            [
                Query(
                    of_baseline(f"max by (model, replica, channel) (moe_watch_drift_evidence_ratio{{{MOE_WATCH}}})"),
                    "{{replica}} {{channel}}",
                )
            ],
            "none",
            limit=Limit(1.0),
            width=24,
        ),
    ]


def _siblings() -> list[Any]:
    return [
        series(
            "Difference from siblings",
            "Evidence that a replica routes the shared traffic differently than the model's other replicas; it is "
            "flagged at 1. Absent with one replica.",
            [Query(f"max by (model, replica) (moe_watch_replica_evidence_ratio{{{MOE_WATCH}}})", "{{replica}}")],
            "none",
            limit=Limit(1.0),
            width=16,
            height=6,
        ),
        number(
            "Replicas that differ",
            "Replicas that are flagged now. One of many points at its node or build.",
            Query(f"sum(max by (model, replica) (moe_watch_replica_deviates{{{MOE_WATCH}}}))", "differ"),
            "none",
            limit=Limit(1),
            width=4,
            height=6,
        ),
        number(
            "OOD requests of the fleet",
            "Share of unusual requests over all replicas of the model together, of the last hour or so.",
            Query('max by (model) (moe_watch_fleet_ood_ratio{model=~"$model"})', "{{model}}"),
            "percentunit",
            width=4,
            height=6,
        ),
    ]


def _canaries() -> list[Any]:
    return [
        states(
            "Verdict of the replays",
            "benign: other numerics, same decisions. routing: other experts. weights: same experts, other output. "
            "deployment: prompt or template changed.",
            [Query(CANARY, "{{replica}}")],
            CANARY_NAMES,
            width=12,
        ),
        series(
            "Shift over the noise floor",
            "Size of the last replay's shift over what healthy restarts and other batch compositions do; 1 is a "
            "change.",
            [Query(f"moe_watch_canary_effect_ratio{{{MOE_WATCH}}}", "{{replica}}, load {{load}}")],
            "none",
            limit=Limit(1.0),
            width=6,
            height=6,
        ),
        number(
            "First layer that moved",
            "Everything below it computed as before: the fault is in this layer or in what feeds it. -1: none.",
            Query(f"min by (replica) (moe_watch_canary_first_layer{{{MOE_WATCH}}})", "{{replica}}"),
            "none",
            width=3,
            height=6,
        ),
        number(
            "Since the last replay",
            "Canaries are replayed at start, after a restart of vLLM and on a slow schedule.",
            Query(f"time() - min(moe_watch_canary_last_run_timestamp_seconds{{{MOE_WATCH}}} > 0)", "ago"),
            "s",
            width=3,
            height=6,
        ),
    ]


def _movers() -> list[Any]:
    return [
        grid(
            "Distance from the baseline",
            "Hellinger distance of each layer's routing from the baseline, worst replica. A band from one layer "
            "down is a fault that starts there; single rows are traffic.",
            Query(by_layer("moe_watch_layer_shift_ratio"), _LAYER),
            "none",
        ),
        table(
            "Experts that moved most",
            "Share of the layer's load and its change against the baseline. The whole matrix is at /api/v1/matrix.",
            [
                Query(of_baseline(f"moe_watch_top_mover_share_ratio{{{MOE_WATCH}}}"), ""),
                Query(of_baseline(f"moe_watch_top_mover_shift_ratio{{{MOE_WATCH}}}"), ""),
            ],
            {
                "replica": "Replica",
                "layer": "Layer",
                "expert": "Expert",
                "Value #A": "Share of the load",
                "Value #B": "Change against the baseline",
            },
            unit="percentunit",
        ),
        series(
            "Experts that moved for certain",
            "Experts of each layer that the open drift moved, told by the requests after its alarm with at most a "
            "tenth of them named falsely. Empty while no drift is open, and until 500 such requests came.",
            [Query(f"max by (layer) (moe_watch_moved_experts{{{MOE_WATCH}}})", _LAYER)],
            "short",
            width=24,
            height=6,
        ),
    ]


def _confidence() -> list[Any]:
    return [
        series(
            "Router entropy",
            "Mean entropy of each layer's router in nats a token, worst replica. It rises when the routers are "
            "less sure of what they see than they were.",
            [Query(f"max by (layer) (moe_watch_router_entropy_nats{{{MOE_WATCH}}})", _LAYER)],
            "none",
        ),
        series(
            "Router margin",
            "Mean probability of the first expert minus the second's. Small margins let rounding choose the expert.",
            [Query(f"min by (layer) (moe_watch_router_margin_ratio{{{MOE_WATCH}}})", _LAYER)],
            "none",
        ),
        series(
            "Router entropy against the baseline",
            "The same less its mean on the baseline's requests, worst replica; 0 is as always.",
            [
                Query(
                    f"max by (layer) (moe_watch_router_entropy_nats{{{MOE_WATCH}}} "
                    f"- moe_watch_router_entropy_baseline_nats{{{MOE_WATCH}}})",
                    _LAYER,
                )
            ],
            "none",
            low=None,
            width=24,
            height=6,
        ),
    ]


def _load() -> list[Any]:
    return [
        series(
            "Busiest expert-parallel rank",
            "Load of the busiest rank over the mean in the worst layer: every step waits for it.",
            [Query(f"max by (replica) (moe_watch_rank_load_max_to_mean_ratio{{{MOE_WATCH}}})", "{{replica}}")],
            "none",
            limit=Limit(limit.RANK_LOAD_RATIO),
        ),
        series(
            "Dead experts",
            "Experts that should have been chosen by now and were not, by layer.",
            [Query(f"max by (layer) (moe_watch_dead_experts{{{MOE_WATCH}}})", _LAYER)],
            "short",
            limit=Limit(1.0),
        ),
        grid(
            "Busiest expert by layer",
            "Load of the busiest expert over the layer's mean, worst replica; 1 is even. Trained models are "
            "uneven: look for a change, not for a height.",
            Query(by_layer("moe_watch_expert_load_max_to_mean_ratio"), _LAYER),
            "none",
        ),
        grid(
            "Evenness by layer",
            "Entropy of the load over its maximum, worst replica; 1 is even. It falls when traffic concentrates.",
            Query(by_layer("moe_watch_expert_load_entropy_ratio").replace("max by", "min by"), _LAYER),
            "percentunit",
        ),
    ]
