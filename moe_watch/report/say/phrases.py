"""Parts of sentences: estimates with their intervals, alarms, what the canaries say."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal

from moe_watch import alarms as alarm_kinds
from moe_watch.detect.canary.comparison import FAULTS
from moe_watch.detect.drift.naming_limits import FEWEST
from moe_watch.domain import alarm_endings, amounts
from moe_watch.report.data.review import Review
from moe_watch.report.data.sections import Alarm, Change, Quality
from moe_watch.report.data.types import Interval, Missing
from moe_watch.report.say.location import NAMED_LAYERS, expert

Standing = Literal["open", "unsettled", "settled"]
_STANDINGS: Final[tuple[Standing, ...]] = ("open", "unsettled", "settled")


def standing(alarm: Alarm) -> Standing:
    """Say where an alarm stands: one that nobody watched to its end is no better than open."""
    if alarm.ended_at is None:
        return "open"
    return "settled" if alarm_endings.is_settled(alarm.ended_at, alarm.ending) else "unsettled"


def by_gravity(alarms: Iterable[Alarm]) -> list[Alarm]:
    """Return alarms in the order in which to speak of them: by where they stand, then by what they mean."""
    return sorted(
        alarms, key=lambda d: (_STANDINGS.index(standing(d)), alarm_kinds.rank(d.kind), d.kind, -d.flagged_at)
    )


def gravest(alarms: Iterable[Alarm]) -> Alarm | None:
    """Return the alarm to speak of first."""
    return next(iter(by_gravity(alarms)), None)


def estimate(value: Interval, unit: str = "") -> str:
    r"""Return "0.10 (95 % interval 0.09 to 0.11) nats per token".

    >>> estimate(Interval(0.1, 0.09, 0.11, 50), "nats")
    '0.10 (95\u202f% interval 0.090 to 0.11) nats'
    """
    known = value.low is not None and value.high is not None
    bounds = f" (95\u202f% interval {number(value.low)} to {number(value.high)})" if known else ""
    return f"{number(value.value)}{bounds}{' ' + unit if unit else ''}"


def share_estimate(value: Interval) -> str:
    """Return a share with its interval: "5.0 % (95 % interval 4.1 % to 5.9 %)"."""
    return (
        f"{amounts.share(value.value)} (95\u202f% interval {amounts.share(value.low)} to {amounts.share(value.high)})"
    )


def change_estimate(value: Interval) -> str:
    """Return a relative change with its interval: "+21 % (95 % interval +18 % to +24 %)"."""
    bounds = f"{amounts.change(value.low)} to {amounts.change(value.high)}"
    return f"{amounts.change(value.value)} (95\u202f% interval {bounds})"


def alarm_sentence(alarm: Alarm, until: float) -> str:
    """Return one alarm in a sentence: what, since when, until when, where, and how it ended."""
    where = f", first in layer {alarm.layer}" if alarm.layer is not None else ""
    began = f"from about {amounts.moment(alarm.began_at)}"
    end = f"and goes on ({amounts.duration(until - alarm.began_at)} so far)"
    if alarm.ended_at is not None:
        end = f"to {amounts.moment(alarm.ended_at)} ({amounts.duration(alarm.ended_at - alarm.began_at)})"
        where += f": {alarm_endings.because(alarm.ending)}"
    return f"{alarm_kinds.named(alarm.kind).title} {began} {end}{where}."


def cause(review: Review) -> tuple[str, ...]:
    """Say what the checks of the canaries since a drift began tell of its cause."""
    began = [alarm.began_at for alarm in review.timeline.alarms if alarm.kind in {"traffic", "routing"}]
    if not began:
        return ()
    found = [] if isinstance(review.canaries, Missing) else [r for r in review.canaries.replays if r.at >= min(began)]
    since = [replay for replay in found if replay.verdict != "blind"]
    if not since:
        why = "no replay of the canaries since could be judged" if found else "no canary was replayed since"
        return (f"Whether it was the traffic or the model is not certain: {why}.",)
    bad = [replay for replay in since if replay.verdict in FAULTS]
    if bad:
        told = f"Of {amounts.plural(len(since), 'check')} of the canaries since then {len(bad)} found a change"
        return (f"{told} ({bad[0].verdict}): the model or its deployment moved.",)
    checks = (
        "The check of the canaries since then" if len(since) == 1 else f"All {len(since)} checks of the canaries since"
    )
    return (f"{checks} found the same prompts routed as before: it was the traffic, not the model.",)


def largest(change: Change | Missing) -> tuple[str, ...]:
    """Name the expert that moved most."""
    if isinstance(change, Missing):
        return ()
    if not change.named:
        layers = amounts.joined([str(layer) for layer in change.layers[:NAMED_LAYERS]])
        few = f"{amounts.plural(change.requests, 'request')} are too few to name experts ({FEWEST} are needed)"
        return (f"Most moved against {change.reference}: layers {layers}; {few}.",)
    if not change.movers:
        return (f"No expert moved by as much as a small effect against {change.reference}.",)
    first = change.movers[0]
    moved = expert(first.layer, first.expert, first.before, first.after, first.effect)
    return (f"Largest change against {change.reference}: {moved}.",)


def without_gap(found: Quality) -> str:
    """Say why there is no gap."""
    if not found.dense_model:
        return "no dense model answered"
    if found.scored:
        return f"{found.dense_model} scored no more than {amounts.plural(found.scored, 'request')}"
    return f"the server of {found.dense_model} does not say how likely a text is (vLLM does: prompt_logprobs)"


def number(value: float | None) -> str:
    """Return a number with two significant digits."""
    return amounts.UNKNOWN if value is None else amounts.significant(value)
