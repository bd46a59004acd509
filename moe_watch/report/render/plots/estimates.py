"""Points with intervals, bars and ranges: the plots of estimates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from markupsafe import Markup

from moe_watch.domain import amounts
from moe_watch.report.data.sections import Advantage, Latency, Load, Ood, Quality
from moe_watch.report.data.types import Interval
from moe_watch.report.render.plots.svg import Drawing, Scale, linear, logarithmic, ticks

_LEFT: Final = 46
_HEIGHT: Final = 200
_TIMES: Final = "\u00d7"
_LEAST: Final = 0.05  # of a ratio that is drawn; wider intervals end there
_TTFT_TICKS: Final = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)


def p_values(ood: Ood, width: int = 460) -> Markup:
    """Return the histogram of p-values; on the baseline's own traffic every bar ends at the dashed line."""
    drawing = Drawing(width, _HEIGHT + 52, "Requests by p-value against the baseline")
    total = sum(ood.histogram) or 1
    parts = [n / total for n in ood.histogram]
    flat = 1 / len(parts)
    highest = max(*parts, 2 * flat) * 1.05
    y = linear(0, highest, _HEIGHT, 10)
    _shares(drawing, y, highest)
    wide = (width - _LEFT - 8) / len(parts)
    for i, part in enumerate(parts):
        name = "bar-strong" if i == 0 else "bar"
        drawing.rect(
            _LEFT + i * wide + 1.5,
            y(part),
            wide - 3,
            _HEIGHT - y(part),
            name,
            title=amounts.plural(ood.histogram[i], "request"),
        )
    drawing.line(_LEFT, y(flat), width - 8, y(flat), "expected")
    for i in range(0, len(parts) + 1, 2):
        drawing.text(
            _LEFT + i * wide, _HEIGHT + 18, f"{i / len(parts):g}", anchor="end" if i == len(parts) else "middle"
        )
    drawing.text(_LEFT, _HEIGHT + 40, "← unlike the baseline", anchor="start")
    drawing.text(width - 8, _HEIGHT + 40, "p-value · ordinary →", anchor="end")
    return drawing.svg()


def gap_by_decile(quality: Quality, width: int = 960) -> Markup:
    """Return the quality gap from the most ordinary to the most unusual tenth of the traffic."""
    drawing = Drawing(width, _HEIGHT + 58, "Quality gap by tenth of the traffic, from ordinary to unusual")
    low, high = _range([*quality.deciles, *([quality.gap] if quality.gap else [])])
    y = linear(min(low, 0), max(high, 0), _HEIGHT, 12)
    for value in ticks(min(low, 0), max(high, 0)):
        drawing.line(_LEFT, y(value), width - 8, y(value), "grid" if value else "axis")
        drawing.text(_LEFT - 6, y(value) + 4, f"{value:g}", anchor="end")
    if quality.gap is not None:
        drawing.line(_LEFT, y(quality.gap.value), width - 8, y(quality.gap.value), "expected")
    wide = (width - _LEFT - 8) / len(quality.deciles)
    for i, decile in enumerate(quality.deciles):
        _point(
            drawing, _LEFT + (i + 0.5) * wide, decile, y, "point-strong" if i == len(quality.deciles) - 1 else "point"
        )
        drawing.text(_LEFT + (i + 0.5) * wide, _HEIGHT + 20, str(i + 1))
        if width > 600:
            drawing.text(_LEFT + (i + 0.5) * wide, _HEIGHT + 36, f"n {amounts.count(decile.requests)}", "faint")
    drawing.text(_LEFT, _HEIGHT + 54, "← ordinary", anchor="start")
    label = "tenth of the traffic by OOD score · unusual →" if width > 600 else "tenth of the traffic · unusual →"
    drawing.text(width - 8, _HEIGHT + 54, label, anchor="end")
    return drawing.svg()


def advantage(found: Advantage, width: int = 460) -> Markup:
    """Return MoE over dense tokens per second by concurrency, with the line where both are equal."""
    drawing = Drawing(width, _HEIGHT + 44, "MoE over dense tokens per second by concurrency")
    ends = [end for step in found.steps for end in (step.ratio.low, step.ratio.value, step.ratio.high) if end]
    low, high = max(min([0.9, *ends]) / 1.05, _LEAST), min(max([1.1, *ends]) * 1.05, 1 / _LEAST)
    y = logarithmic(low, high, _HEIGHT, 12)
    for value in (0.1, 0.2, 0.5, 1, 2, 5, 10):
        if low <= value <= high:
            drawing.line(_LEFT, y(value), width - 8, y(value), "axis" if value == 1 else "grid")
            drawing.text(_LEFT - 6, y(value) + 4, f"{value:g}{_TIMES}", anchor="end")
    wide = (width - _LEFT - 8) / len(found.steps)
    for i, step in enumerate(found.steps):
        bad = step.ratio.high is not None and step.ratio.high < 1
        _point(drawing, _LEFT + (i + 0.5) * wide, step.ratio, y, "point-strong" if bad else "point")
        drawing.text(_LEFT + (i + 0.5) * wide, _HEIGHT + 20, step.concurrency)
    drawing.text(width - 8, _HEIGHT + 38, "requests at the same time", anchor="end")
    return drawing.svg()


def first_token(latency: Latency, width: int = 960) -> Markup:
    """Return a line from median to 95th percentile for each bucket of prompt length, and a tick at its budget."""
    left, row = 62, 34
    bottom = 12 + row * len(latency.contexts)
    drawing = Drawing(width, bottom + 40, "Time to first token by prompt length")
    ends = [v for c in latency.contexts for v in (c.median, c.p95, c.budget) if v]
    x = logarithmic(min(ends) / 1.4, max(ends) * 1.4, left, width - 12)
    for value in _TTFT_TICKS:
        if min(ends) / 1.4 <= value <= max(ends) * 1.4:
            drawing.line(x(value), 8, x(value), bottom, "grid")
            drawing.text(x(value), bottom + 18, amounts.seconds(value))
    for i, context in enumerate(latency.contexts):
        y = 12 + (i + 0.5) * row
        late = context.budget is not None and context.p95 > context.budget
        drawing.text(left - 10, y + 4, context.name, "label", "end")
        drawing.line(x(context.median), y, x(context.p95), y, "range-late" if late else "range")
        drawing.circle(x(context.median), y, 4.5, "point", title=f"median {amounts.seconds(context.median)}")
        end = "point-strong" if late else "point-hollow"
        drawing.circle(x(context.p95), y, 4.5, end, title=f"95 % {amounts.seconds(context.p95)}")
        if context.budget is not None:
            drawing.line(x(context.budget), y - 11, x(context.budget), y + 11, "budget")
    drawing.text(width - 12, bottom + 36, "seconds, logarithmic", anchor="end")
    return drawing.svg()


def load(found: Load, width: int = 960) -> Markup:
    """Return the load of the busiest expert of each layer over the mean, now and in the baseline."""
    drawing = Drawing(width, _HEIGHT + 44, "Load of the busiest expert over the mean, by layer")
    values = [v for layer in found.layers for v in (layer.max_to_mean, layer.baseline_max_to_mean) if v is not None]
    highest = max([2.0, *values]) * 1.05
    y = linear(1, highest, _HEIGHT, 12)
    for value in ticks(1, highest):
        drawing.line(_LEFT, y(value), width - 8, y(value), "axis" if value == 1 else "grid")
        drawing.text(_LEFT - 6, y(value) + 4, f"{value:g}{_TIMES}", anchor="end")
    wide = (width - _LEFT - 8) / len(found.layers)
    every = next(s for s in (1, 2, 5, 10, 20, 50) if s * wide >= 20)
    for i, layer in enumerate(found.layers):
        x = _LEFT + (i + 0.5) * wide
        drawing.rect(
            x - min(wide * 0.36, 11), y(layer.max_to_mean), min(wide * 0.72, 22), _HEIGHT - y(layer.max_to_mean), "bar"
        )
        if layer.baseline_max_to_mean is not None:
            drawing.line(
                x - wide * 0.42, y(layer.baseline_max_to_mean), x + wide * 0.42, y(layer.baseline_max_to_mean), "was"
            )
        if i % every == 0:
            drawing.text(x, _HEIGHT + 18, str(layer.layer))
    drawing.text(width - 8, _HEIGHT + 38, "layer", anchor="end")
    return drawing.svg()


def _point(drawing: Drawing, x: float, estimate: Interval, y: Scale, name: str) -> None:
    """Draw an estimate with its interval; nothing where there is none."""
    if estimate.requests == 0 or math.isnan(estimate.value):
        return
    if estimate.low is not None and estimate.high is not None:
        drawing.line(x, y(estimate.low), x, y(estimate.high), "whisker")
    drawing.circle(x, y(estimate.value), 5, name, title=f"{estimate.value:.3g}")


def _range(estimates: Sequence[Interval]) -> tuple[float, float]:
    """Return the lowest and highest end of the intervals, with a little air."""
    ends = [v for e in estimates for v in (e.low, e.value, e.high) if v is not None and not math.isnan(v)]
    low, high = min(ends, default=0.0), max(ends, default=1.0)
    air = 0.06 * (high - low or 1.0)
    return low - air, high + air


def _shares(drawing: Drawing, y: Scale, highest: float) -> None:
    for value in ticks(0, highest):
        drawing.line(_LEFT, y(value), drawing.width - 8, y(value), "grid" if value else "axis")
        drawing.text(_LEFT - 6, y(value) + 4, amounts.share(value) if value else "0", anchor="end")
