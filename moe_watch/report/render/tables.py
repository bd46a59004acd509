"""Rows that the page and Markdown both print: key figures, what happened, the period before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from moe_watch.domain import amounts
from moe_watch.report.data.review import Review, Totals
from moe_watch.report.data.sections import LayerLoad, Load
from moe_watch.report.data.types import Missing
from moe_watch.report.render.plots import timeline
from moe_watch.report.say import phrases

_MOST_EVENTS: Final = 24
_MOST_UNUSED: Final = 12


@dataclass(frozen=True)
class Figure:
    """One number of the first screen, and a line on what to think of it."""

    name: str
    value: str
    note: str


@dataclass(frozen=True)
class Compared:
    """One total in the period before and now."""

    name: str
    before: str
    now: str
    change: str


@dataclass(frozen=True)
class Happened:
    """One event or alarm; ``letter`` is the one in the timeline, empty where it has none."""

    at: float
    text: str
    replica: str
    letter: str
    alarm: bool


def key_figures(review: Review) -> tuple[Figure, ...]:
    """Return the numbers of the first screen."""
    totals, before = review.totals, review.previous
    return (
        Figure("Requests", amounts.count(totals.requests), _than(totals.requests, before.requests if before else None)),
        _ood(review),
        _quality(review),
        Figure("Median time to first token", amounts.seconds(totals.ttft), _was(amounts.seconds, "ttft", review)),
        Figure("Requests with routing", amounts.share(totals.coverage), _was(amounts.share, "coverage", review)),
    )


def compared(review: Review) -> tuple[Compared, ...]:
    """Return the totals of both periods; nothing when the period before has no data."""
    before, now = review.previous, review.totals
    if before is None:
        return ()
    rows = [
        _row("Requests", before.requests, now.requests, amounts.count),
        _row("Prompt tokens a request", _mean(before, "prompt"), _mean(now, "prompt"), amounts.count),
        _row("Output tokens a request", _mean(before, "output"), _mean(now, "output"), amounts.count),
        _points("Unusual requests", *(None if t.ood is None else t.ood.value for t in (before, now))),
        _row("Router entropy, nats", before.entropy, now.entropy, lambda v: amounts.significant(v, 3)),
        _row("Median time to first token", before.ttft, now.ttft, amounts.seconds),
        _row("Median time per output token", before.tpot, now.tpot, amounts.seconds),
        _points("Requests with routing", before.coverage, now.coverage),
        _row("Requests with NaN logits", before.corrupted, now.corrupted, amounts.count),
        _row("Preemptions", before.preemptions, now.preemptions, amounts.count),
        _row("Alarms", before.alarms, now.alarms, amounts.count),
    ]
    return tuple(row for row in rows if (row.before, row.now) != (amounts.UNKNOWN, amounts.UNKNOWN))


def compared_lead(review: Review) -> str:
    """Return the sentence over the comparison with the period before."""
    if review.previous is None:
        return "There is no data from the period before, so there is nothing to compare with."
    before, now = review.previous.ood, review.totals.ood
    if before is None or now is None:
        return "What both periods have in common."
    moved = "rose" if (now.low or 0) > (before.high or 1) else "fell" if (now.high or 1) < (before.low or 0) else ""
    was = f"from {amounts.share(before.value)} to {amounts.share(now.value)}"
    if not moved:
        return f"The share of unusual requests went {was}, within what chance allows."
    return f"The share of unusual requests {moved} {was}."


def happened(review: Review) -> tuple[Happened, ...]:
    """Return events and alarms in order of time; of kinds that are frequent only a count.

    Where there are too many, alarms come before events and late ones before early ones.
    """
    letters = timeline.letters(review.timeline)
    rows = [
        Happened(mark.at, mark.text, mark.replica, letters[i], alarm=False)
        for i, mark in enumerate(review.timeline.marks)
        if i in letters
    ]
    rows += [
        Happened(
            d.began_at, f"Alarm {d.id}: {phrases.alarm_sentence(d, review.period.until)}", d.replica, "", alarm=True
        )
        for d in review.timeline.alarms
    ]
    rest: dict[str, list[float]] = {}
    for i, mark in enumerate(review.timeline.marks):
        if i not in letters:
            rest.setdefault(mark.kind, []).append(mark.at)
    for kind, times in rest.items():
        often = "once" if len(times) == 1 else f"{len(times)} times until {amounts.moment(times[-1])}"
        rows.append(Happened(times[0], f"{kind.replace('_', ' ')}, {often}", "", "", alarm=False))
    kept = sorted(rows, key=lambda row: (not row.alarm, -row.at))[:_MOST_EVENTS]
    return tuple(sorted(kept, key=lambda row: row.at))


def unused(load: Load | Missing) -> str:
    """Name the experts without a single token, and say which were so in the baseline."""
    if isinstance(load, Missing):
        return ""
    found = [(layer, expert) for layer in load.layers for expert in layer.unused]
    if not found:
        return "none."
    named = [f"{expert} of layer {layer.layer}{_since(layer, expert)}" for layer, expert in found[:_MOST_UNUSED]]
    more = f" and {len(found) - _MOST_UNUSED} more" if len(found) > _MOST_UNUSED else ""
    return f"{', '.join(named)}{more}."


def _since(layer: LayerLoad, expert: int) -> str:
    if expert in layer.gone:
        return " (new)"
    return " (as in the baseline)" if expert in (layer.unused_before or ()) else ""


def _ood(review: Review) -> Figure:
    name = "Unusual requests"
    if isinstance(review.ood, Missing):
        return Figure(name, amounts.UNKNOWN, "no baseline" if isinstance(review.baseline, Missing) else "not scored")
    rate = review.ood.rate
    return Figure(
        name,
        amounts.share(rate.value),
        f"{amounts.share(rate.low)} to {amounts.share(rate.high)}, {amounts.share(review.ood.expected)} expected",
    )


def _quality(review: Review) -> Figure:
    name = "Quality gap, nats per token"
    if isinstance(review.quality, Missing) or review.quality.gap is None:
        return Figure(name, amounts.UNKNOWN, "not measured")
    gap = review.quality.gap
    return Figure(name, phrases.number(gap.value), f"{phrases.number(gap.low)} to {phrases.number(gap.high)}")


def _than(now: float, before: float | None) -> str:
    return f"{amounts.change(now / before - 1)} against the period before" if before else "no data from before"


def _was(form: amounts.Form, name: str, review: Review) -> str:
    value = getattr(review.previous, name) if review.previous is not None else None
    return "no data from before" if value is None else f"{form(value)} before"


def _row(name: str, before: float | None, now: float | None, form: amounts.Form) -> Compared:
    known = before is not None and now is not None and before != 0
    change = amounts.change(now / before - 1) if known and now is not None and before is not None else amounts.UNKNOWN
    return Compared(name, _form(before, form), _form(now, form), change)


def _points(name: str, before: float | None, now: float | None) -> Compared:
    """Return a row of shares, whose change is in points."""
    change = amounts.UNKNOWN if before is None or now is None else amounts.points(now - before)
    return Compared(name, amounts.share(before), amounts.share(now), change)


def _form(value: float | None, form: amounts.Form) -> str:
    return amounts.UNKNOWN if value is None else form(value)


def _mean(totals: Totals, which: str) -> float | None:
    total = totals.prompt_tokens if which == "prompt" else totals.output_tokens
    return total / totals.requests if totals.requests else None
