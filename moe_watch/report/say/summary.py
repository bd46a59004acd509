"""The questions of the first screen, answered in sentences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from moe_watch import alarms as alarm_kinds
from moe_watch.alarms import Tone
from moe_watch.domain import amounts
from moe_watch.report.data.review import Review, Totals
from moe_watch.report.data.sections import Alarm, Ood, Quality, Shift, Slowdown
from moe_watch.report.data.types import Interval, Missing
from moe_watch.report.say import phrases

State = Literal["empty", "blind", "learning", "quality", "routing", "deployment", "traffic", "steady"]
Trend = Literal["held", "no sign", "perhaps", "unusual", "worse", "worse and harder", "harder", "unknown"]
Holding = Trend | Literal["failing", "failed", "recovered", "unmeasured"]
_OF_CAUSE: Final[dict[str, Trend]] = {"moe": "worse", "both": "worse and harder", "traffic": "harder"}
TONE: Final[dict[State, Tone]] = {
    "empty": "unknown", "blind": "bad", "learning": "unknown", "quality": "bad",
    "routing": "bad", "deployment": "bad", "traffic": "warn", "steady": "calm",
}  # fmt: skip
_TOLD: Final = 3  # alarms and events named
_FEWEST: Final = 100  # requests of two periods that are compared
FEWEST: Final = 30  # scored requests below which nothing is called steady
_WORTH_TELLING: Final = 0.2  # relative change of a total


@dataclass(frozen=True)
class Answer:
    """A question of the first screen: the answer in a word, and in sentences."""

    question: str
    short: str
    sentences: tuple[str, ...]
    tone: Tone


def holding(review: Review) -> Holding:
    """Say whether quality holds, from alarms of the outputs, from vLLM and from the gap alike."""
    found = review.quality
    gap: Holding = "unmeasured"
    if not isinstance(found, Missing) and found.gap is not None:
        gap = trend(found, review.promises.gap_tolerance)
    broken = bool(review.totals.corrupted)
    told = of_output(review)
    if gap == "unusual" and not broken and (not told or len(told) < len(review.timeline.alarms)):
        return gap
    worst = phrases.gravest(told)
    standing = None if worst is None else phrases.standing(worst)
    if broken or standing == "open":
        return "failing"
    if gap in {"worse", "worse and harder"} or standing is None:
        return gap
    return "failed" if standing == "unsettled" else "recovered"


def of_output(review: Review) -> tuple[Alarm, ...]:
    """Return the alarms of what the MoE writes."""
    return tuple(alarm for alarm in review.timeline.alarms if alarm.kind in alarm_kinds.OF_OUTPUT)


def quality(review: Review) -> Answer:
    """Answer whether quality is holding."""
    found, tolerance = review.quality, review.promises.gap_tolerance
    told = tuple(
        phrases.alarm_sentence(alarm, review.period.until) for alarm in phrases.by_gravity(of_output(review))[:_TOLD]
    )
    first = (*_broken(review), *told)
    if isinstance(found, Missing):
        measured: tuple[str, ...] = (found.why, found.remedy)
    elif found.gap is None:
        looked = amounts.plural(found.sampled, "request")
        why = f"Texts of {looked} were looked at for defects only: {phrases.without_gap(found)}."
        measured = (why, *_garbled(found))
    else:
        measured = (_shifted(found, tolerance), _gap(found.gap), *_by_decile(found), *_garbled(found))
    short, tone = _QUALITY[holding(review)]
    return Answer("Is quality holding?", short, (*first, *measured), tone)


_QUALITY: Final[dict[Holding, tuple[str, Tone]]] = {
    "held": ("Yes", "calm"),
    "no sign": ("No sign of worse", "calm"),
    "harder": ("Yes", "calm"),
    "perhaps": ("Perhaps not", "warn"),
    "unusual": ("Not on unusual requests", "warn"),
    "worse": ("No", "bad"),
    "worse and harder": ("No", "bad"),
    "failing": ("No", "bad"),
    "failed": ("Not when it was last watched", "bad"),
    "recovered": ("Not all of the time", "warn"),
    "unknown": ("Not known yet", "unknown"),
    "unmeasured": ("Not known", "unknown"),
}


def routing(review: Review, state: State) -> Answer:
    """Answer whether routing moved."""
    question = "Did routing move?"
    coverage = review.coverage
    alarms = [alarm for alarm in review.timeline.alarms if alarm.kind not in alarm_kinds.OF_OUTPUT]
    largest = phrases.largest(review.change)
    if alarms:
        return _moved(review, phrases.by_gravity(alarms), (*_ood(review.ood), *largest))
    if state == "empty":
        return Answer(question, "Not known", ("No request was recorded in the period.",), "unknown")
    if not has_sight(review):
        share = amounts.share(coverage.routed / coverage.requests)
        return Answer(question, "Not known", (f"Only {share} of the requests came with their routing.",), "bad")
    if coverage.scored < FEWEST:
        scored = f"{coverage.scored} of {amounts.plural(coverage.requests, 'request')} could be scored."
        why = review.baseline.why if isinstance(review.baseline, Missing) else f"Only {scored}"
        return Answer(question, "Not known", (why, *largest), "unknown")
    calm = (
        f"No alarm in {amounts.plural(coverage.scored, 'scored request')}; false ones come at least "
        f"{amounts.count(review.promises.run_length)} requests apart."
    )
    return Answer(question, "No", (calm, *_ood(review.ood), *largest), "calm")


def has_sight(review: Review) -> bool:
    """Say whether enough of the requests came with their routing to speak of it."""
    return review.coverage.routed >= review.promises.coverage_floor * review.coverage.requests


def tone(alarm: Alarm) -> Tone:
    """Return how bad an alarm is: what recovered, and traffic that is just another one, need no more than a look."""
    return "warn" if phrases.standing(alarm) == "settled" else TONE[alarm_kinds.named(alarm.kind).verdict]


def _moved(review: Review, alarms: list[Alarm], measured: tuple[str, ...]) -> Answer:
    """Answer from alarms; a blind tap alone does not say that anything moved."""
    sentences = [phrases.alarm_sentence(alarm, review.period.until) for alarm in alarms[:_TOLD]]
    if len(alarms) > _TOLD:
        sentences.append(f"And {amounts.plural(len(alarms) - _TOLD, 'alarm')} more.")
    short = "Not known" if {alarm.kind for alarm in alarms} == {"blind"} else "Yes"
    blind: tuple[Tone, ...] = () if has_sight(review) else ("bad",)
    found = alarm_kinds.worst([*map(tone, alarms), *blind])
    return Answer("Did routing move?", short, (*sentences, *phrases.cause(review), *measured), found)


def changed(review: Review) -> Answer:
    """Answer what changed, as far as it was recorded."""
    marks = review.timeline.marks
    sentences = [f"{amounts.moment(mark.at)}: {mark.text}." for mark in marks[:_TOLD]]
    if len(marks) > _TOLD:
        sentences.append(f"And {amounts.plural(len(marks) - _TOLD, 'event')} more, in the timeline below.")
    quiet = "No restart, no new baseline and no new configuration was recorded."
    short = amounts.plural(len(marks), "event") if marks else "Nothing that was recorded"
    compared = _against_previous(review.totals, review.previous)
    return Answer("What changed?", short, (*(sentences or [quiet]), compared, *_slower(review.slowdowns)), "unknown")


def trend(found: Quality, tolerance: float) -> Trend:
    """Say what the change of the gap since the period before amounts to; ``tolerance`` is in nats per token."""
    if found.shift is None or found.shift.cause == "unknown":
        return "unknown"
    if found.shift.cause != "none":
        return "unusual" if _came_with_unusual_requests(found.shift, tolerance) else _OF_CAUSE[found.shift.cause]
    low, high = found.shift.effect.low, found.shift.effect.high
    if high is not None and high <= tolerance:
        return "held"
    return "perhaps" if low is not None and low > 0 else "no sign"


def _came_with_unusual_requests(shift: Shift, tolerance: float) -> bool:
    """Tell whether the gap grew while it did not among requests as unusual as those of the period before."""
    low, high = (None, None) if shift.alike is None else (shift.alike.low, shift.alike.high)
    return low is not None and high is not None and low <= tolerance and high < shift.effect.value


def _gap(gap: Interval) -> str:
    return (
        f"The dense model finds the MoE's output less likely than its own by {phrases.estimate(gap)} nats per token, "
        f"over {amounts.plural(gap.requests, 'request')}; some gap is normal."
    )


def _shifted(found: Quality, tolerance: float) -> str:
    """Return a sentence for the change of the gap."""
    if found.shift is None or found.shift.cause == "unknown":
        return "There is too little from the period before to compare with."
    change = phrases.estimate(found.shift.effect, "nats per token")
    told: dict[Trend, str] = {
        "held": f"The gap to the dense model changed by {change}; up to {tolerance:g} is tolerated.",
        "no sign": f"The gap changed by {change}; a rise above {tolerance:g} is not ruled out.",
        "perhaps": f"The gap grew by {change}, perhaps more than the tolerated {tolerance:g}.",
        "unusual": f"The gap grew by {change}. {_alike(found.shift)}: it came with the unusual requests.",
        "worse": f"The gap grew by {change}; the dense model did not share it.",
        "worse and harder": f"Requests got harder for both models, and the gap still grew by {change}.",
        "harder": f"Requests got harder for both models; the gap between them changed by {change}.",
    }
    return told[trend(found, tolerance)]


def _alike(shift: Shift) -> str:
    known = "not known" if shift.alike is None else phrases.estimate(shift.alike)
    return f"Among requests like those of the period before its change is {known}"


def _by_decile(found: Quality) -> tuple[str, ...]:
    ends = [decile for decile in (found.deciles[:1] + found.deciles[-1:]) if decile.requests]
    if len(ends) < 2:
        return ()
    first, last = (phrases.number(decile.value) for decile in ends)
    return (f"On the most ordinary tenth of the traffic the gap is {first}, on the most unusual {last}.",)


def _garbled(found: Quality) -> tuple[str, ...]:
    if found.garbled is None or not found.garbled.value:
        return ()
    share = phrases.share_estimate(found.garbled)
    return (f"Garbled outputs: {share} of {amounts.count(found.sampled)} sampled ones.",)


def _broken(review: Review) -> tuple[str, ...]:
    """Return what vLLM itself says of broken output."""
    corrupted = review.totals.corrupted
    return (f"vLLM saw NaN in the logits of {amounts.plural(corrupted, 'request')}.",) if corrupted else ()


def _ood(ood: Ood | Missing) -> tuple[str, ...]:
    if isinstance(ood, Missing):
        return ()
    share, of = phrases.share_estimate(ood.rate), amounts.plural(ood.rate.requests, "request")
    return (f"Unusual: {share} of {of}, {amounts.share(ood.expected)} expected.",)


def _against_previous(now: Totals, before: Totals | None) -> str:
    """Name the totals that changed by a fifth or more."""
    if before is None:
        return "There is no data from the period before."
    if min(now.requests, before.requests) < _FEWEST:
        return "There are too few requests to compare with the period before."
    pairs = (
        ("requests", now.requests, before.requests),
        ("prompt tokens a request", _mean(now.prompt_tokens, now), _mean(before.prompt_tokens, before)),
        ("output tokens a request", _mean(now.output_tokens, now), _mean(before.output_tokens, before)),
        ("time to first token", now.ttft, before.ttft),
        ("time per output token", now.tpot, before.tpot),
    )
    moved = [
        f"{name} {amounts.change(new / old - 1)}"
        for name, new, old in pairs
        if new and old and abs(new / old - 1) >= _WORTH_TELLING
    ]
    if not moved:
        return "Volume, lengths and latency are within a fifth of the period before."
    return f"Against the period before: {amounts.joined(moved)}."


def _slower(found: tuple[Slowdown, ...]) -> tuple[str, ...]:
    """Name the latencies of the MoE that grew while the dense model's did not."""
    return tuple(
        f"The MoE's {slow.name} changed by {phrases.change_estimate(slow.effect)} more than the dense model's."
        for slow in found
        if slow.cause in {"moe", "both"}
    )


def _mean(total: int, of: Totals) -> float:
    return total / max(of.requests, 1)
