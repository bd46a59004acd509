"""The verdict in one sentence, over the answers and what to do. Nothing is called steady without data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from moe_watch import alarms as alarm_kinds
from moe_watch.alarms import Tone
from moe_watch.domain import alarm_endings, amounts
from moe_watch.report.data.review import Review
from moe_watch.report.data.sections import Alarm
from moe_watch.report.data.types import Missing
from moe_watch.report.say import advice, summary
from moe_watch.report.say.advice import Action
from moe_watch.report.say.phrases import gravest, standing
from moe_watch.report.say.summary import FEWEST, TONE, Answer, State


@dataclass(frozen=True)
class Verdict:
    """What the report comes to."""

    state: State
    tone: Tone
    headline: str
    answers: tuple[Answer, Answer, Answer]
    actions: tuple[Action, ...]


def verdict(review: Review) -> Verdict:
    """Return the verdict on one model in one period; its tone is that of the worst that headline or answers say."""
    state = _state(review)
    found = (summary.quality(review), summary.routing(review, state), summary.changed(review))
    wrong = [answer.tone for answer in found if answer.tone in {"bad", "warn"}]
    tone = alarm_kinds.worst([_tone(review, state), *wrong])
    return Verdict(state, tone, _headline(review, state), found, advice.actions(review, tone))


def _state(review: Review) -> State:
    worst = _worst(review)
    if not summary.has_sight(review) and not _outranks_blindness(worst):
        return "blind"
    if worst is not None:
        return alarm_kinds.named(worst.kind).verdict
    if not review.coverage.requests:
        return "empty"
    return "steady" if review.coverage.scored >= FEWEST else "learning"


def _outranks_blindness(worst: Alarm | None) -> bool:
    """Say whether an alarm is worse than that hardly any routing came, and not over."""
    return (
        worst is not None and standing(worst) != "settled" and alarm_kinds.rank(worst.kind) < alarm_kinds.rank("blind")
    )


def _tone(review: Review, state: State) -> Tone:
    worst = _worst(review)
    return TONE[state] if worst is None or not summary.has_sight(review) else summary.tone(worst)


def _worst(review: Review) -> Alarm | None:
    """Return the alarm to speak of: that of the cause where worse output came with unusual requests alone."""
    alarms, quality = review.timeline.alarms, review.quality
    if not isinstance(quality, Missing) and summary.trend(quality, review.promises.gap_tolerance) == "unusual":
        return gravest(alarm for alarm in alarms if alarm.kind not in alarm_kinds.OF_OUTPUT) or gravest(alarms)
    return gravest(alarms)


def _headline(review: Review, state: State) -> str:
    coverage, worst = review.coverage, _worst(review)
    clause = _quality_clause(review)
    known = "" if summary.quality(review).tone in {"calm", "unknown"} else clause
    if state == "empty":
        return f"Nothing is known: no request was recorded{known}"
    if state == "blind" and (worst is None or worst.kind != "blind"):
        share = amounts.share(coverage.routed / coverage.requests)
        return f"Blind: only {share} of the requests came with their routing{known}"
    if state == "learning":
        return f"{_learning(review)}{known}"
    if worst is None:
        return f"Routing held steady{clause}"
    started = amounts.moment(worst.began_at)
    if worst.ended_at is None:
        return f"{alarm_kinds.named(worst.kind).is_open} since {started}{clause}"
    lasted = f"for {amounts.duration(worst.ended_at - worst.began_at)}{alarm_endings.until(worst.ending)}"
    return f"{alarm_kinds.named(worst.kind).was_open} on {started}, {lasted}{clause}"


def _learning(review: Review) -> str:
    if isinstance(review.baseline, Missing):
        return "Learning: there is no baseline yet, so nothing can be called normal"
    scored = amounts.plural(review.coverage.scored, "request")
    return f"Too little to go by: {scored} could be held against the baseline"


def _quality_clause(review: Review) -> str:
    """Return what the headline adds on quality, unless it speaks of that anyway."""
    worst = _worst(review)
    return "" if worst is not None and worst.kind in alarm_kinds.OF_OUTPUT else _CLAUSES[summary.holding(review)]


_CLAUSES: Final[dict[summary.Holding, str]] = {
    "held": "; output quality held",
    "no sign": "; no sign of worse output",
    "perhaps": "; output may be getting worse",
    "harder": "; requests got harder, the MoE did not get worse",
    "unusual": "; output is worse on the unusual requests",
    "worse": "; and output got worse",
    "worse and harder": "; and output got worse, more than harder requests explain",
    "failing": "; and output is bad",
    "failed": "; and output was bad when it was last watched",
    "recovered": "; output was bad for a while",
    "unknown": "; whether quality held cannot be said yet",
    "unmeasured": "; output quality was not measured",
}
