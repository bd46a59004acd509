"""Out-of-distribution share over time, with what happened written on it."""

from __future__ import annotations

from collections import Counter
from typing import Final

from markupsafe import Markup

from moe_watch.domain import amounts
from moe_watch.report.data.sections import Alarm, Bucket, Timeline
from moe_watch.report.data.types import Interval, Period
from moe_watch.report.render.plots.svg import Drawing, Scale, linear, polyline, runs, ticks, time_ticks

_TOP: Final = 46  # room for the letters of the marks
_LEFT: Final = 46
_RATE: Final = 170  # height of the upper panel
_STRIP: Final = 16  # the same where there is nothing to draw in it
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
    """Return the timeline: the upper panel shares with their intervals, the lower one requests.

    Where no request was scored the upper panel shrinks to a strip for marks and alarms.
    """
    known = [(b, b.rate) for b in timeline.buckets if b.rate is not None]
    floor = _TOP + (_RATE if known else _STRIP)
    base = floor + _BETWEEN + _TRAFFIC
    drawing = Drawing(width, base + 26, "Share of unusual requests over time")
    inside = linear(period.since, period.until, _LEFT, width - 8)

    def x(at: float) -> float:
        return inside(min(max(at, period.since), period.until))  # the first and last step may reach beyond

    for alarm in timeline.alarms:
        _span(drawing, alarm, period, x, floor)
    if known:
        _rates(drawing, known, timeline.step, expected, x)
    _traffic(drawing, timeline, x, base)
    _time_axis(drawing, period, x, base)
    _marks(drawing, timeline, x, floor)
    return drawing.svg()


def _rates(drawing: Drawing, known: list[tuple[Bucket, Interval]], step: float, expected: float, x: Scale) -> None:
    """Draw the upper panel; its scale fits the shares, and cuts bands that are wider than that."""
    highest = max([expected * 2.5, *(min(rate.high or 0, rate.value * 2 + 0.02) for _, rate in known)])
    highest = min(highest * 1.06, 1)
    y = linear(0, highest, _TOP + _RATE, _TOP)
    _grid(drawing, y, highest)
    drawing.line(_LEFT, y(expected), drawing.width - 8, y(expected), "expected")
    _curve(drawing, known, step, x, y)


def _marks(drawing: Drawing, timeline: Timeline, x: Scale, floor: float) -> None:
    """Draw a line for each mark, with its letter; letters that would touch stand over each other."""
    named = letters(timeline)
    last, high = -_APART, False
    for i, mark in enumerate(timeline.marks):
        drawing.line(x(mark.at), _TOP - 4, x(mark.at), floor, "mark")
        if i not in named:
            continue
        high = x(mark.at) - last < _APART and not high
        last = x(mark.at)
        y = _TOP - (31 if high else 12)
        drawing.circle(x(mark.at), y, 9, "mark-disc", title=mark.text)
        drawing.text(x(mark.at), y + 4, named[i], "mark-letter")


def _span(drawing: Drawing, alarm: Alarm, period: Period, x: Scale, floor: float) -> None:
    """Shade the time from the estimated start of an alarm to its end."""
    start = x(max(alarm.began_at, period.since))
    end = x(min(alarm.ended_at or period.until, period.until))
    drawing.rect(start, _TOP, max(end - start, 2), floor - _TOP, "drift", title=alarm.summary)
    flagged = x(max(alarm.flagged_at, period.since))
    drawing.line(flagged, _TOP, flagged, floor, "flagged")


def _grid(drawing: Drawing, y: Scale, highest: float) -> None:
    for value in ticks(0, highest):
        drawing.line(_LEFT, y(value), drawing.width - 8, y(value), "grid" if value else "axis")
        drawing.text(_LEFT - 6, y(value) + 4, amounts.share(value) if value else "0", anchor="end")


def _curve(drawing: Drawing, known: list[tuple[Bucket, Interval]], step: float, x: Scale, y: Scale) -> None:
    """Draw the share with the band of its intervals; a step without data leaves a hole."""
    middle = {b.start: x(b.start + step / 2) for b, _ in known}
    rates = {b.start: rate for b, rate in known}
    for run in runs(((b.start, rate.value) for b, rate in known), step * 1.5):
        upper = [(middle[at], max(y(rates[at].high or 0), _TOP)) for at, _ in run]
        lower = [(middle[at], y(rates[at].low or 0)) for at, _ in reversed(run)]
        drawing.path(f"{polyline([*upper, *lower])}Z", "band")
        drawing.path(polyline((middle[at], y(value)) for at, value in run), "curve")
        if len(run) == 1:
            drawing.circle(middle[run[0][0]], y(run[0][1]), 2.5, "dot")


def _traffic(drawing: Drawing, timeline: Timeline, x: Scale, base: float) -> None:
    """Draw requests as bars, those without routing in another colour."""
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
    drawing.line(_LEFT, base, drawing.width - 8, base, "axis")
    drawing.text(_LEFT - 6, base - _TRAFFIC + 9, amounts.count(most), anchor="end")
    drawing.text(_LEFT - 6, base + 3, "0", anchor="end")


def _time_axis(drawing: Drawing, period: Period, x: Scale, base: float) -> None:
    for at, label in time_ticks(period.since, period.until, max(4, int(drawing.width // 105))):
        drawing.line(x(at), base, x(at), base + 4, "axis")
        anchor = "start" if x(at) < 60 else "end" if x(at) > drawing.width - 24 else "middle"
        drawing.text(x(at), base + 18, label, anchor=anchor)
