"""Out-of-distribution share over time, with what happened written on it."""

from __future__ import annotations

from collections import Counter
from typing import Final

from markupsafe import Markup

from moe_watch.report import figures
from moe_watch.report.plots.svg import Drawing, Scale, linear, polyline, runs, ticks, time_ticks
from moe_watch.report.sections import Bucket, Drift, Timeline
from moe_watch.report.terms import Interval, Period

_TOP: Final = 46  # room for the letters of the marks
_RATE: Final = 170  # height of the upper panel
_TRAFFIC: Final = 44  # height of the lower one
_BETWEEN: Final = 26
MOST_MARKS: Final = 12
_OFTEN: Final = 6  # marks of one kind, above which they get no letters
_APART: Final = 19.0  # pixels between two letters


def letters(timeline: Timeline) -> dict[int, str]:
    """Return letters by index in ``timeline.marks``: for at most twelve marks, none of a kind that is frequent."""
    often = {kind for kind, n in Counter(mark.kind for mark in timeline.marks).items() if n > _OFTEN}
    rare = [i for i, mark in enumerate(timeline.marks) if mark.kind not in often][:MOST_MARKS]
    return {i: chr(ord("A") + place) for place, i in enumerate(rare)}


def draw(timeline: Timeline, period: Period, expected: float, width: int = 960) -> Markup:
    """Return the timeline: the upper panel shares with their intervals, the lower one requests."""
    left = 46
    drawing = Drawing(width, _TOP + _RATE + _BETWEEN + _TRAFFIC + 26, "Share of out-of-distribution requests over time")
    x = linear(period.since, period.until, left, width - 8)
    known = [(b, b.rate) for b in timeline.buckets if b.rate is not None]
    highest = max([expected * 2.5, *(min(rate.high or 0, rate.value * 2 + 0.02) for _, rate in known)])
    y = linear(0, min(highest * 1.06, 1), _TOP + _RATE, _TOP)
    for drift in timeline.drifts:
        _span(drawing, drift, period, x)
    _grid(drawing, y, min(highest * 1.06, 1), left)
    drawing.line(left, y(expected), width - 8, y(expected), "expected")
    _curve(drawing, known, timeline.step, x, y)
    _traffic(drawing, timeline, x, left)
    _time_axis(drawing, period, x, width)
    _marks(drawing, timeline, x)
    return drawing.svg()


def _marks(drawing: Drawing, timeline: Timeline, x: Scale) -> None:
    """Draw a line for each mark, with its letter; letters that would touch stand over each other."""
    named = letters(timeline)
    last, high = -_APART, False
    for i, mark in enumerate(timeline.marks):
        drawing.line(x(mark.at), _TOP - 4, x(mark.at), _TOP + _RATE, "mark")
        if i not in named:
            continue
        high = x(mark.at) - last < _APART and not high
        last = x(mark.at)
        y = _TOP - (31 if high else 12)
        drawing.circle(x(mark.at), y, 9, "mark-disc", title=mark.text)
        drawing.text(x(mark.at), y + 4, named[i], "mark-letter")


def _span(drawing: Drawing, drift: Drift, period: Period, x: Scale) -> None:
    """Shade the time from the estimated start of a drift to its end."""
    start = x(max(drift.began_at, period.since))
    end = x(min(drift.ended_at or period.until, period.until))
    drawing.rect(start, _TOP, max(end - start, 2), _RATE, "drift", title=drift.summary)
    flagged = x(max(drift.flagged_at, period.since))
    drawing.line(flagged, _TOP, flagged, _TOP + _RATE, "flagged")


def _grid(drawing: Drawing, y: Scale, highest: float, left: float) -> None:
    for value in ticks(0, highest):
        drawing.line(left, y(value), drawing.width - 8, y(value), "grid" if value else "axis")
        drawing.text(left - 6, y(value) + 4, figures.share(value) if value else "0", anchor="end")


def _curve(drawing: Drawing, known: list[tuple[Bucket, Interval]], step: float, x: Scale, y: Scale) -> None:
    """Draw the share with the band of its intervals; a step without data leaves a hole."""
    middle = {b.start: x(b.start + step / 2) for b, _ in known}
    top = y(1) if not known else _TOP
    rates = {b.start: rate for b, rate in known}
    for run in runs(((b.start, rate.value) for b, rate in known), step * 1.5):
        upper = [(middle[at], max(y(rates[at].high or 0), top)) for at, _ in run]
        lower = [(middle[at], y(rates[at].low or 0)) for at, _ in reversed(run)]
        drawing.path(f"{polyline([*upper, *lower])}Z", "band")
        drawing.path(polyline((middle[at], y(value)) for at, value in run), "curve")
        if len(run) == 1:
            drawing.circle(middle[run[0][0]], y(run[0][1]), 2.5, "dot")


def _traffic(drawing: Drawing, timeline: Timeline, x: Scale, left: float) -> None:
    """Draw requests as bars, those without routing in another colour."""
    base = _TOP + _RATE + _BETWEEN + _TRAFFIC
    most = max((b.requests for b in timeline.buckets), default=0) or 1
    height = linear(0, most, 0, _TRAFFIC)
    for bucket in timeline.buckets:
        start = x(bucket.start)
        wide = max(x(bucket.start + timeline.step) - start - 1, 0.8)
        routed = height(bucket.routed)
        drawing.rect(start, base - routed, wide, routed, "routed")
        if bucket.requests > bucket.routed:
            unrouted = height(bucket.requests - bucket.routed)
            drawing.rect(start, base - routed - unrouted, wide, unrouted, "unrouted")
    drawing.line(left, base, drawing.width - 8, base, "axis")
    drawing.text(left - 6, base - _TRAFFIC + 9, figures.count(most), anchor="end")
    drawing.text(left - 6, base + 3, "0", anchor="end")


def _time_axis(drawing: Drawing, period: Period, x: Scale, width: int) -> None:
    base = _TOP + _RATE + _BETWEEN + _TRAFFIC
    for at, label in time_ticks(period.since, period.until, max(4, width // 105)):
        drawing.line(x(at), base, x(at), base + 4, "axis")
        anchor = "start" if x(at) < 60 else "end" if x(at) > width - 24 else "middle"
        drawing.text(x(at), base + 18, label, anchor=anchor)
