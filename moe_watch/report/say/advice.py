"""What to do: one action for each thing that is wrong or missing, the most urgent first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from moe_watch import alarms as alarm_kinds
from moe_watch.alarms import Tone
from moe_watch.domain import alarm_endings, amounts
from moe_watch.provision.thresholds import (
    BASELINE_MAX_AGE_DAYS,
    FRAMES_DROPPED_RATIO,
    TTFT_MIN_REQUESTS,
    TTFT_OBJECTIVE_RATIO,
)
from moe_watch.report.data.review import BaselineFacts, Review
from moe_watch.report.data.sections import Alarm, Latency, Load
from moe_watch.report.data.types import Missing
from moe_watch.report.say import phrases, summary

MOST: Final = 6
_OF_HOLDING: Final[dict[summary.Holding, str]] = {
    "failing": "Read the requests with NaN in their logits, and check weights, kernels and quantisation.",
    "worse": alarm_kinds.named("quality").advice,
    "worse and harder": alarm_kinds.named("quality").advice,
    "unusual": "Read the worst requests below: outputs are worse on what is unlike the baseline.",
    "perhaps": "Look at quality again in a day: it may be getting worse.",
}


@dataclass(frozen=True)
class Action:
    """Something to do, and the command that begins it, if there is one."""

    text: str
    command: str


def actions(review: Review, tone: Tone) -> tuple[Action, ...]:
    """Return what to do about ``review``, at most six, or that it is nothing: never where ``tone`` is worse than calm.

    ``tone`` is that of the verdict.
    """
    found = tuple(_all(review))[:MOST]
    if found:
        return found
    if tone == "calm":
        return (Action("Nothing needs doing. The next look is due in a week.", ""),)
    return (Action("Look again when more requests have come: these are too few to go by.", "moe-watch status"),)


def _all(review: Review) -> Iterator[Action]:
    coverage = review.coverage
    if not summary.has_sight(review):
        yield Action("Find out why requests come without their routing.", "moe-watch doctor")
    yield from _of_alarms(review.timeline.alarms)
    yield from _of_quality(review)
    if not coverage.requests:
        yield Action("Find out why no request came, if there was traffic.", "moe-watch doctor")
    yield from _of_load(review.load)
    yield from _of_baseline(review)
    yield from _of_latency(review.latency)
    received = (coverage.received or 0) + sum(coverage.dropped.values())
    if received and sum(coverage.dropped.values()) / received > FRAMES_DROPPED_RATIO:
        lost = amounts.share(sum(coverage.dropped.values()) / received)
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


def _of_alarms(alarms: tuple[Alarm, ...]) -> Iterator[Action]:
    """Yield one action a kind of alarm, the gravest first; the alarm of the kind to speak of first is its example."""
    example = {alarm.kind: alarm for alarm in reversed(phrases.by_gravity(alarms))}
    for alarm in phrases.by_gravity(example.values()):
        yield Action(_of_alarm(alarm), f"moe-watch explain alarm:{alarm.id}")


def _of_alarm(alarm: Alarm) -> str:
    todo = alarm_kinds.named(alarm.kind).advice
    standing = phrases.standing(alarm)
    if standing == "open":
        return todo
    if standing == "settled":
        return f"{alarm_kinds.named(alarm.kind).title} recovered: find out what it was before it comes back."
    if (alarm.kind, alarm.ending) == ("traffic", "baseline_replaced"):
        return "Make sure that the new baseline is of traffic that you trust: what it replaced said that traffic left."
    return f"{todo} The alarm is closed: {alarm_endings.because(alarm.ending)}."


def _of_quality(review: Review) -> Iterator[Action]:
    """Yield what to do about output of which no alarm tells."""
    if not summary.of_output(review) and (todo := _OF_HOLDING.get(summary.holding(review))):
        yield Action(todo, "")


def _of_load(load: Load | Missing) -> Iterator[Action]:
    if isinstance(load, Missing):
        return
    gone = [f"{expert} of layer {layer.layer}" for layer in load.layers for expert in layer.gone]
    if gone:
        more = f" and {len(gone) - 3} more" if len(gone) > 3 else ""
        yield Action(
            f"Check the expert map and the checkpoint: expert {', '.join(gone[:3])}{more} got no token in "
            f"{amounts.plural(load.requests, 'request')}, and did in the baseline.",
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
        told = amounts.joined([f"{amounts.share(c.over.value)} at {c.name}" for c in late if c.over is not None])
        yield Action(
            f"Time to first token is over budget for {told}: shorten or queue long prompts apart, or raise the budget "
            "(serving.ttft_budget_s).",
            "",
        )
