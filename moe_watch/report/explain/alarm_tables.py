"""The tables that explain an alarm, each from one section of the review."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from moe_watch.domain import amounts
from moe_watch.report.data.review import Review
from moe_watch.report.data.types import Missing
from moe_watch.report.explain.request import Table


def drift_tables(review: Review) -> tuple[Table, ...]:
    """Return what moved, and the most unusual requests; nothing where the review lacks them."""
    found = []
    if not isinstance(review.change, Missing) and review.change.movers:
        rows = tuple(
            (
                f"layer {m.layer}, expert {m.expert}",
                amounts.share(m.before),
                amounts.share(m.after),
                f"{m.effect:+.2f}, {amounts.size(m.effect)}",
            )
            for m in review.change.movers[:8]
        )
        found.append(
            Table(f"What moved, against {review.change.reference}", ("", "before", "now", "effect size"), rows)
        )
    return (*found, *suspects(review))


def suspects(review: Review) -> tuple[Table, ...]:
    """Return the most unusual requests; nothing where the review lacks them."""
    if isinstance(review.suspects, Missing):
        return ()
    rows = tuple(
        (s.request_id, amounts.moment(s.finished_at), amounts.significant(s.p), s.domain, next(iter(s.reasons), ""))
        for s in review.suspects.requests[:8]
    )
    return (Table("Most unusual requests", ("request", "finished", "p", "domain", "where"), rows, numbers=False),)


def contexts(review: Review) -> tuple[Table, ...]:
    """Return time to first token by prompt length; nothing where the review lacks them."""
    if isinstance(review.latency, Missing):
        return ()
    rows = tuple(
        (
            c.name,
            amounts.count(c.requests),
            amounts.seconds(c.median),
            amounts.seconds(c.p95),
            amounts.seconds(c.budget),
            amounts.share(c.over.value if c.over else None),
        )
        for c in review.latency.contexts
    )
    return (Table("Time to first token", ("prompt up to", "requests", "median", "p95", "budget", "over it"), rows),)


def loads(review: Review) -> tuple[Table, ...]:
    """Return the busiest experts; nothing where the review lacks them."""
    if isinstance(review.load, Missing):
        return ()
    worst = sorted(review.load.layers, key=lambda layer: -layer.max_to_mean)[:8]
    rows = tuple(
        (
            f"layer {layer.layer}, expert {layer.busiest}",
            amounts.significant(layer.max_to_mean),
            amounts.significant(layer.baseline_max_to_mean) if layer.baseline_max_to_mean else amounts.UNKNOWN,
        )
        for layer in worst
    )
    return (Table("Load of the busiest experts over the mean", ("", "now", "busiest in the baseline"), rows),)


def replays(review: Review) -> tuple[Table, ...]:
    """Return the latest replays of the canaries; nothing where the review lacks them."""
    if isinstance(review.canaries, Missing):
        return ()
    rows = tuple((amounts.moment(r.at), r.verdict, r.load, r.summary) for r in review.canaries.replays[:8])
    return (Table("Replays of the canaries", ("at", "verdict", "load", "finding"), rows, numbers=False),)


OF_ALERT: Final[dict[str, Callable[[Review], tuple[Table, ...]]]] = {
    "RoutingDrift": drift_tables,
    "TrafficDrift": drift_tables,
    "OODRateHigh": suspects,
    "CanaryChanged": replays,
    "ExpertImbalance": loads,
    "DeadExperts": loads,
    "TTFTBudgetBurn": contexts,
    "KVCachePressure": contexts,
}
