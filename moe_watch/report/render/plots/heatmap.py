"""Change of every expert of every layer: colour is the effect size, blue for less used, orange for more."""

from __future__ import annotations

import math
from typing import Final

from markupsafe import Markup

from moe_watch.report.data.sections import Change
from moe_watch.report.render.plots.svg import Drawing

BOUNDS: Final = (0.2, 0.5, 0.8, 1.2)  # Cohen's small, medium and large, and beyond
_LEFT: Final = 46
_TOP: Final = 24


def draw(change: Change, layer_ids: tuple[int, ...], width: int = 960) -> Markup:
    """Return the heatmap ``[layers, experts]``; cells below the smallest bound are left empty."""
    layers, experts = len(change.effect), len(change.effect[0])
    across = (width - _LEFT - 8) / experts
    down = max(4.0, min(across, 22.0, 430 / layers) if layers > 12 else min(across, 26.0))
    drawing = Drawing(width, _TOP + down * layers + 38, "Change of each expert of each layer, as effect size")
    drawing.rect(_LEFT, _TOP, across * experts, down * layers, "plane")
    for name, cells in _cells(change).items():
        drawing.path("".join(_box(_LEFT + e * across, _TOP + l * down, across, down) for l, e in cells), name)  # noqa: E741
    _axes(drawing, layer_ids, experts, across, down)
    return drawing.svg()


def level(effect: float) -> int:
    """Return how many bounds an effect passes, negative when the expert is used less.

    >>> level(0.1), level(0.3), level(-2.0)
    (0, 1, -4)
    """
    passed = sum(abs(effect) >= bound for bound in BOUNDS)
    return passed if effect > 0 else -passed


def _cells(change: Change) -> dict[str, list[tuple[int, int]]]:
    """Return the cells of each colour: one path a colour keeps the page small."""
    cells: dict[str, list[tuple[int, int]]] = {}
    for layer, row in enumerate(change.effect):
        for expert, effect in enumerate(row):
            if step := level(effect):
                cells.setdefault(f"{'more' if step > 0 else 'less'}{abs(step)}", []).append((layer, expert))
    return cells


def _box(x: float, y: float, width: float, height: float) -> str:
    inset = 0.5 if min(width, height) >= 5 else 0
    wide, high = width - 2 * inset, height - 2 * inset
    return f"M{x + inset:.2f} {y + inset:.2f}h{wide:.2f}v{high:.2f}h-{wide:.2f}z"


def _axes(drawing: Drawing, layer_ids: tuple[int, ...], experts: int, across: float, down: float) -> None:
    bottom = _TOP + down * len(layer_ids)
    step = next(s for s in (1, 2, 5, 10, 20, 50, 100) if s * down >= 13)
    for row, layer in enumerate(layer_ids):
        if row % step == 0:
            drawing.text(_LEFT - 6, _TOP + (row + 0.5) * down + 4, str(layer), anchor="end")
    stride = 2 ** max(0, math.ceil(math.log2(26 / across)))
    for expert in range(0, experts, stride):
        drawing.line(_LEFT + (expert + 0.5) * across, bottom, _LEFT + (expert + 0.5) * across, bottom + 4, "axis")
        drawing.text(_LEFT + (expert + 0.5) * across, bottom + 17, str(expert))
    drawing.text(_LEFT - 6, _TOP - 9, "layer", anchor="end")
    drawing.text(_LEFT + across * experts, bottom + 33, "expert", anchor="end")
