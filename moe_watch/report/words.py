"""The verdict in one sentence, over the answers and what to do. Nothing is called steady without data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from moe_watch.report import advice, answers, figures
from moe_watch.report.advice import Action
from moe_watch.report.answers import FEWEST, TONE, Answer, State, Tone
from moe_watch.report.phrases import OF_OUTPUT, gravest
from moe_watch.report.review import Review
from moe_watch.report.sections import Drift
from moe_watch.report.terms import Missing

_STATE_OF: Final[dict[str, State]] = {
    "garbled": "quality",
    "quality": "quality",
    "routing": "routing",
    "traffic": "traffic",
    "blind": "blind",
}


@dataclass(frozen=True)
class Verdict:
    """What the report comes to."""

    state: State
    tone: Tone
    headline: str
    answers: tuple[Answer, Answer, Answer]
    actions: tuple[Action, ...]


def verdict(review: Review) -> Verdict:
    """Return the verdict on one model in one period."""
    state = _state(review)
    found = (answers.quality(review), answers.routing(review, state), answers.changed(review))
    tone = "bad" if found[0].tone == "bad" else TONE[state]
    return Verdict(state, tone, _headline(review, state), found, advice.actions(review))


def _state(review: Review) -> State:
    coverage, worst = review.coverage, _worst(review)
    if coverage.routed < review.promises.coverage_floor * coverage.requests:
        return "blind"
    if worst is not None:
        return _STATE_OF.get(worst.kind, "deployment")
    if not coverage.requests:
        return "empty"
    return "steady" if coverage.scored >= FEWEST else "learning"


def _worst(review: Review) -> Drift | None:
    """Return the alarm to speak of: that of the cause where worse output came with unusual requests alone."""
    drifts, quality = review.timeline.drifts, review.quality
    if not isinstance(quality, Missing) and answers.trend(quality, review.promises.gap_tolerance) == "unusual":
        return gravest(tuple(drift for drift in drifts if drift.kind not in OF_OUTPUT)) or gravest(drifts)
    return gravest(drifts)


def _headline(review: Review, state: State) -> str:
    coverage, worst = review.coverage, _worst(review)
    if state == "empty":
        return "Nothing is known: no request was recorded"
    if state == "blind" and (worst is None or worst.kind != "blind"):
        return (
            f"Blind: only {figures.share(coverage.routed / coverage.requests)} of the requests came with their routing"
        )
    if state == "learning":
        return _learning(review)
    if worst is None:
        return f"Routing held steady{_quality_clause(review)}"
    started = figures.moment(worst.began_at)
    if worst.ended_at is None:
        return f"{_OPEN.get(worst.kind, 'An alarm is open')} since {started}{_quality_clause(review)}"
    lasted = figures.duration(worst.ended_at - worst.began_at)
    return f"{_OVER.get(worst.kind, 'An alarm was raised')} on {started}, for {lasted}{_quality_clause(review)}"


def _learning(review: Review) -> str:
    if isinstance(review.baseline, Missing):
        return "Learning: there is no baseline yet, so nothing can be called normal"
    scored = figures.plural(review.coverage.scored, "request")
    return f"Too little to go by: {scored} could be held against the baseline"


_OPEN: Final = {
    "traffic": "Traffic is unlike the baseline",
    "routing": "The same prompts go to other experts",
    "garbled": "The MoE writes broken text",
    "quality": "The MoE writes worse",
    "dead_experts": "Experts get no tokens",
    "blind": "The tap sees no routing",
    "replica": "One replica differs from its siblings",
}
_OVER: Final = {
    "traffic": "Traffic left the baseline",
    "routing": "The same prompts went to other experts",
    "garbled": "The MoE wrote broken text",
    "quality": "The MoE wrote worse",
    "dead_experts": "Experts got no tokens",
    "blind": "The tap saw no routing",
    "replica": "One replica differed from its siblings",
}


def _quality_clause(review: Review) -> str:
    quality = review.quality
    worst = _worst(review)
    if worst is not None and worst.kind in OF_OUTPUT:
        return ""
    if isinstance(quality, Missing) or quality.gap is None:
        return "; output quality was not measured"
    return {
        "held": "; output quality held",
        "no sign": "; no sign of worse output",
        "perhaps": "; output may be getting worse",
        "harder": "; requests got harder, the MoE did not get worse",
        "unusual": "; output is worse on the unusual requests",
        "worse": "; and output got worse",
        "worse and harder": "; and output got worse, more than harder requests explain",
        "unknown": "; whether quality held cannot be said yet",
    }[answers.trend(quality, review.promises.gap_tolerance)]
