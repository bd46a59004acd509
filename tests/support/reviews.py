"""Reviews of one simulated week, as it was and with one thing changed."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

from moe_watch.report.build.gather import gather
from moe_watch.report.data.review import Review
from moe_watch.report.data.sections import Alarm, Quality, Shift
from moe_watch.report.data.types import Interval, Missing, Period
from moe_watch.settings import Settings
from tests.support import store_factory
from tests.support.store_factory import DAY, UNTIL

WEEK = Period(UNTIL - 7 * DAY, UNTIL)
NOTHING = Missing("There is none.", "Switch it on.")


@cache
def drifted() -> Review:
    """Return a week in which traffic drifted and quality held."""
    review = gather(store_factory.shared(), Settings(), WEEK, now=UNTIL).reviews[0]
    assert isinstance(review.quality, Quality)
    held = Shift(Interval(0.0, -0.01, 0.01, 300), "none", None)
    return replace(review, quality=replace(review.quality, shift=held))


def quiet() -> Review:
    """Return the same week as if nothing had been flagged."""
    return replace(drifted(), timeline=replace(drifted().timeline, alarms=(), marks=()))


def with_drift(kind: str, ended_at: float | None = None) -> Review:
    """Return the week with one alarm of ``kind``."""
    drift = Alarm(7, kind, "gpu-a", UNTIL - DAY, UNTIL - DAY + 600, ended_at, "summary", "layer", 3)
    return replace(drifted(), timeline=replace(drifted().timeline, alarms=(drift,)))


def with_shift(low: float, high: float, cause: str, alike: tuple[float, float] | None = None) -> Review:
    """Return a quiet week in which the quality gap changed by an interval, among requests like before by ``alike``."""
    quality = drifted().quality
    assert isinstance(quality, Quality)
    among = None if alike is None else Interval(sum(alike) / 2, *alike, 200)
    shift = Shift(Interval((low + high) / 2, low, high, 300), cause, among)  # type: ignore[arg-type]
    return replace(quiet(), quality=replace(quality, shift=shift))
