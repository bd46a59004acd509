"""What the page and Markdown print of one model: the review, its verdict, its sentences, its rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from moe_watch.domain import amounts
from moe_watch.report.data.review import Report, Review
from moe_watch.report.render import tables
from moe_watch.report.say import verdict as words
from moe_watch.report.say.captions import leads, unknowns

_FILTERS: Final = (
    "share",
    "seconds",
    "duration",
    "count",
    "plural",
    "moment",
    "stamp",
    "significant",
    "size",
    "change",
)


@dataclass(frozen=True)
class Part:
    """One model's part of a report, ready to be printed."""

    review: Review
    verdict: words.Verdict
    leads: dict[str, str]
    unknowns: tuple[str, ...]
    figures: tuple[tables.Figure, ...]
    happened: tuple[tables.Happened, ...]
    compared: tuple[tables.Compared, ...]
    compared_lead: str
    unused: str


def of(report: Report) -> list[Part]:
    """Return the parts of ``report``."""
    return [
        Part(
            review=review,
            verdict=words.verdict(review),
            leads=leads(review),
            unknowns=unknowns(review),
            figures=tables.key_figures(review),
            happened=tables.happened(review),
            compared=tables.compared(review),
            compared_lead=tables.compared_lead(review),
            unused=tables.unused(review.load),
        )
        for review in report.reviews
    ]


def span(report: Report) -> str:
    """Return what kind of review this is by the length of its period."""
    length = report.period.seconds
    return "weekly review" if abs(length - 7 * 86_400) < 3600 else f"review of {amounts.duration(length)}"


def filters() -> dict[str, Callable[..., Any]]:
    """Return the forms of numbers by the names that templates use."""
    return {name: getattr(amounts, name) for name in _FILTERS}
