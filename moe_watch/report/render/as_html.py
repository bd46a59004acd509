"""One self-contained page: no script, nothing fetched, and a content-security policy that would forbid both."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from moe_watch import alarms as alarm_kinds
from moe_watch.domain import amounts
from moe_watch.domain.sanitise import neutralise, one_line
from moe_watch.report.data.review import Report, Review
from moe_watch.report.data.types import Missing
from moe_watch.report.render import view_model
from moe_watch.report.render.plots import estimates, heatmap, timeline
from moe_watch.report.render.view_model import Part

_WIDE: Final = 960
_HALF: Final = 460
_NARROW: Final = 358  # a phone of 390 pixels less its margins
_WORDS: Final = {
    "calm": "Steady",
    "warn": "Needs a look",
    "bad": "Needs action",
    "unknown": "Not known",
}


@dataclass(frozen=True)
class Plot:
    """One plot at two widths: text must not shrink on a phone."""

    wide: Markup
    narrow: Markup


@dataclass(frozen=True)
class Now:
    """What the sidecar says of one replica at this moment."""

    replica: str
    model: str
    tone: str
    verdict: str
    reason: str


def render(report: Report, *, nothing: str = "", refresh: int | None = None, now: tuple[Now, ...] = ()) -> str:
    """Return the page; ``nothing`` says what to do when there is no data; ``refresh`` in seconds renews it.

    ``now`` are lines about this moment, over everything else.
    """
    found = view_model.of(report)
    template = _environment().get_template("report.html.j2")
    return template.render(
        report=report,
        parts=found,
        plots=[_plots(part.review) for part in found],
        nothing=nothing,
        refresh=refresh,
        now=now,
        style=Markup(_style()),  # noqa: S704 - a file of this package
        policy=policy(),
        span=view_model.span(report),
        title=_title(report, found),
        worst=alarm_kinds.worst(part.verdict.tone for part in found),
        words=_WORDS,
    )


def policy() -> str:
    """Return the content-security policy of the page: its own style sheet and nothing else."""
    digest = base64.b64encode(hashlib.sha256(_style().encode()).digest()).decode()
    return f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"


def _title(report: Report, found: list[Part]) -> str:
    if len(found) == 1:
        return f"{found[0].verdict.headline} · {found[0].review.served.name} · moe-watch"
    return f"moe-watch {view_model.span(report)}, {amounts.plural(len(found), 'model')}"


def _plots(review: Review) -> dict[str, Plot | None]:
    r = review
    expected = 0.0 if isinstance(r.ood, Missing) else r.ood.expected
    return {
        "timeline": _both(lambda width: timeline.draw(r.timeline, r.period, expected, width)),
        "change": _of(r.change, lambda found, width: heatmap.draw(found, r.served.layer_ids, width)),
        "ood": _of(r.ood, estimates.p_values, _HALF),
        "quality": None
        if isinstance(r.quality, Missing) or not r.quality.deciles
        else _of(r.quality, estimates.gap_by_decile),
        "advantage": _of(r.advantage, estimates.advantage, _HALF),
        "latency": _of(r.latency, estimates.first_token),
        "load": _of(r.load, estimates.load),
    }


def _of(section: Any, draw: Any, wide: int = _WIDE) -> Plot | None:
    return None if isinstance(section, Missing) else _both(lambda width: draw(section, width), wide)


def _both(draw: Any, wide: int = _WIDE) -> Plot:
    return Plot(draw(wide), draw(_NARROW))


@cache
def _style() -> str:
    return resources.files("moe_watch.report.render").joinpath("templates/style.css").read_text(encoding="utf-8")


@cache
def _environment() -> Environment:
    """Return the engine: everything is escaped, and every string that is printed is neutralised first."""
    environment = Environment(
        loader=PackageLoader("moe_watch.report.render"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_finalize,
    )
    environment.filters.update(view_model.filters())
    environment.filters["one_line"] = one_line
    return environment


def _finalize(value: Any) -> Any:
    return neutralise(value) if isinstance(value, str) and not isinstance(value, Markup) else value
