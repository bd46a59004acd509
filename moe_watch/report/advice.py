"""What to do: one action for each thing that is wrong or missing, the most urgent first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from moe_watch.provision.thresholds import (
    BASELINE_MAX_AGE_DAYS,
    FRAMES_DROPPED_RATIO,
    TTFT_MIN_REQUESTS,
    TTFT_OBJECTIVE_RATIO,
)
from moe_watch.report import figures
from moe_watch.report.review import BaselineFacts, Review
from moe_watch.report.sections import Drift, Latency, Load
from moe_watch.report.terms import Missing

MOST: Final = 6
_OF_KIND: Final = {
    "traffic": "See what the new requests are; if they are here to stay, fit a new baseline on them and promote it.",
    "routing": "Compare with the last change of vLLM, weights, quantisation or kernels, and take it back.",
    "garbled": "Read the outputs with defects; if usual requests have them, take back the last change of the model.",
    "quality": "Read the worst requests below; take back the last change of the model's deployment if there was one.",
    "dead_experts": "Check the expert map and the checkpoint: experts without tokens are a fault of the deployment.",
    "blind": "Find out why routing is missing.",
    "replica": "Take the replica that differs out of the load balancer and compare its start with its siblings'.",
}


@dataclass(frozen=True)
class Action:
    """Something to do, and the command that begins it, if there is one."""

    text: str
    command: str


def actions(review: Review) -> tuple[Action, ...]:
    """Return what to do about ``review``, at most six; one action that says so when there is nothing."""
    found = tuple(_all(review))[:MOST]
    return found or (Action("Nothing needs doing. The next look is due in a week.", ""),)


def _all(review: Review) -> Iterator[Action]:
    coverage = review.coverage
    if coverage.routed < review.promises.coverage_floor * coverage.requests:
        yield Action("Find out why requests come without their routing.", "moe-watch doctor")
    yield from _of_drifts(review.timeline.drifts)
    if not coverage.requests:
        yield Action("Find out why no request came, if there was traffic.", "moe-watch doctor")
    yield from _of_load(review.load)
    yield from _of_baseline(review)
    yield from _of_latency(review.latency)
    received = (coverage.received or 0) + sum(coverage.dropped.values())
    if received and sum(coverage.dropped.values()) / received > FRAMES_DROPPED_RATIO:
        lost = figures.share(sum(coverage.dropped.values()) / received)
        yield Action(
            f"Frames were lost ({lost}): give the sidecar a core of its own, or the tap a longer queue.",
            "moe-watch doctor",
        )
    if isinstance(review.canaries, Missing) and coverage.routed:
        yield Action(
            "Record canaries, so that a change of the model can be told from a change of traffic.",
            "moe-watch canary record",
        )
    if isinstance(review.quality, Missing) and coverage.requests:
        yield Action(f"Measure quality. {review.quality.remedy}", "")


def _of_drifts(drifts: tuple[Drift, ...]) -> Iterator[Action]:
    """Yield one action a kind of open alarm, the latest alarm of the kind as its example."""
    latest = {drift.kind: drift for drift in sorted(drifts, key=lambda d: d.flagged_at) if drift.ended_at is None}
    for kind, drift in latest.items():
        yield Action(_OF_KIND.get(kind, "Look into the open alarm."), f"moe-watch explain episode:{drift.id}")


def _of_load(load: Load | Missing) -> Iterator[Action]:
    if isinstance(load, Missing):
        return
    gone = [f"{expert} of layer {layer.layer}" for layer in load.layers for expert in layer.gone]
    if gone:
        more = f" and {len(gone) - 3} more" if len(gone) > 3 else ""
        yield Action(
            f"Check the expert map and the checkpoint: expert {', '.join(gone[:3])}{more} got no token in "
            f"{figures.plural(load.requests, 'request')}, and did in the baseline.",
            "moe-watch doctor",
        )


def _of_baseline(review: Review) -> Iterator[Action]:
    baseline = review.baseline
    if isinstance(baseline, Missing):
        if review.coverage.routed:
            yield Action("Fit a baseline on traffic that you trust, then promote it.", "moe-watch baseline fit")
    elif (age := _age_days(baseline, review.period.until)) > BASELINE_MAX_AGE_DAYS:
        yield Action(
            f"Baseline {baseline.version} is {age:.0f} days old: confirm it, or fit a new one on trusted traffic.",
            "moe-watch baseline fit",
        )


def _age_days(baseline: BaselineFacts, now: float) -> float:
    return (now - (baseline.promoted_at or baseline.created_at)) / 86_400


def _of_latency(latency: Latency | Missing) -> Iterator[Action]:
    if isinstance(latency, Missing):
        return
    judged = [c for c in latency.contexts if c.requests >= TTFT_MIN_REQUESTS]
    late = [c for c in judged if c.over is not None and (c.over.low or 0) > 1 - TTFT_OBJECTIVE_RATIO]
    if late:
        told = figures.joined([f"{figures.share(c.over.value)} at {c.name}" for c in late if c.over is not None])
        yield Action(
            f"Time to first token is over budget for {told}: shorten or queue long prompts apart, or raise the budget "
            "(serving.ttft_budget_s).",
            "",
        )
