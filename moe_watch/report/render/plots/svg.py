"""A drawing, its scales and its ticks: the little of SVG that the plots need.

Looks are classes of the page's style sheet, never ``style`` attributes, which the content-security policy forbids.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Final

from markupsafe import Markup, escape

from moe_watch.domain.sanitise import one_line

Scale = Callable[[float], float]
_STEPS: Final = (60, 300, 600, 1800, 3600, 3 * 3600, 6 * 3600, 12 * 3600, 86400, 2 * 86400, 7 * 86400, 28 * 86400)


class Drawing:
    """Collects shapes in user units, which are CSS pixels when the drawing is shown at its natural width."""

    def __init__(self, width: float, height: float, label: str) -> None:
        self.width, self.height = width, height
        self._label = label
        self._parts: list[str] = []

    def line(self, x1: float, y1: float, x2: float, y2: float, name: str) -> None:
        """Draw a straight line of class ``name``."""
        self._parts.append(f'<line x1="{_n(x1)}" y1="{_n(y1)}" x2="{_n(x2)}" y2="{_n(y2)}" class="{name}"/>')

    def rect(self, x: float, y: float, width: float, height: float, name: str, *, title: str = "") -> None:
        """Draw a box of class ``name``, with a tooltip if ``title``."""
        size = f'x="{_n(x)}" y="{_n(y)}" width="{_n(max(width, 0))}" height="{_n(max(height, 0))}"'
        self._parts.append(_element("rect", f'{size} class="{name}"', title))

    def circle(self, x: float, y: float, radius: float, name: str, *, title: str = "") -> None:
        """Draw a disc of class ``name``, with a tooltip if ``title``."""
        self._parts.append(_element("circle", f'cx="{_n(x)}" cy="{_n(y)}" r="{_n(radius)}" class="{name}"', title))

    def path(self, d: str, name: str, *, title: str = "") -> None:
        """Draw path data ``d`` with class ``name``."""
        if d:
            self._parts.append(_element("path", f'd="{d}" class="{name}"', title))

    def text(self, x: float, y: float, words: str, name: str = "tick", anchor: str = "middle") -> None:
        """Write ``words`` with their baseline at ``y``; ``anchor`` is start, middle or end."""
        place = f'x="{_n(x)}" y="{_n(y)}" text-anchor="{anchor}" class="{name}"'
        self._parts.append(f"<text {place}>{escape(one_line(words))}</text>")

    def svg(self) -> Markup:
        """Return the drawing as one inline element."""
        box = f'viewBox="0 0 {_n(self.width)} {_n(self.height)}" width="{_n(self.width)}" height="{_n(self.height)}"'
        body = "".join(self._parts)
        return Markup(f'<svg {box} role="img" aria-label="{escape(one_line(self._label))}">{body}</svg>')  # noqa: S704 - escaped above


def linear(low: float, high: float, start: float, end: float) -> Scale:
    """Return the map of ``low..high`` onto ``start..end``."""
    span = (high - low) or 1.0
    return lambda value: start + (value - low) / span * (end - start)


def logarithmic(low: float, high: float, start: float, end: float) -> Scale:
    """Return the map of ``low..high``, both above 0, onto ``start..end`` by their logarithm; clamped to it."""
    inner = linear(math.log(low), math.log(high), start, end)
    return lambda value: inner(math.log(min(max(value, low), high)))


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Return round numbers in ``low..high``.

    >>> ticks(0, 0.047)
    [0.0, 0.02, 0.04]
    """
    raw = (high - low) / max(about, 1)
    if raw <= 0:
        return [low]
    power = 10 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(k * step, 12) for k in range(first, last + 1)]


def time_ticks(since: float, until: float, about: int = 8) -> list[tuple[float, str]]:
    """Return times on whole hours or days (UTC) with their labels; a new day is named.

    >>> [label for _, label in time_ticks(0, 2 * 86400, 4)]
    ['Thu 1', '12:00', 'Fri 2', '12:00', 'Sat 3']
    """
    step = next((s for s in _STEPS if (until - since) / s <= about), _STEPS[-1])
    first = math.ceil(since / step) * step
    return [(at, _label(at, step)) for at in range(first, math.floor(until) + 1, step)]


def runs(points: Iterable[tuple[float, float]], gap: float) -> list[list[tuple[float, float]]]:
    """Split points into stretches wherever x jumps by more than ``gap``.

    >>> runs([(0, 1), (1, 1), (5, 2)], 1.5)
    [[(0, 1), (1, 1)], [(5, 2)]]
    """
    out: list[list[tuple[float, float]]] = []
    for point in points:
        if not out or point[0] - out[-1][-1][0] > gap:
            out.append([])
        out[-1].append(point)
    return out


def polyline(points: Iterable[tuple[float, float]]) -> str:
    """Return path data through ``points``."""
    return "".join(f"{'L' if i else 'M'}{_n(x)} {_n(y)}" for i, (x, y) in enumerate(points))


def _label(at: float, step: float) -> str:
    when = datetime.fromtimestamp(at, UTC)
    if step >= 7 * 86400:
        return f"{when.day} {when:%b}"
    return f"{when:%a} {when.day}" if at % 86400 == 0 else f"{when:%H:%M}"


def _element(tag: str, attributes: str, title: str) -> str:
    return (
        f"<{tag} {attributes}><title>{escape(one_line(title, 300))}</title></{tag}>"
        if title
        else f"<{tag} {attributes}/>"
    )


def _n(value: float) -> str:
    """Return a coordinate with at most one digit after the point."""
    return f"{value:.1f}".removesuffix(".0")
