"""Sections that rest on the dense shadow: quality, and whether the MoE still pays."""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from sqlalchemy.orm import Session

from moe_watch.detect.common import weighted_estimates
from moe_watch.detect.quality import against_dense, difference_in_differences
from moe_watch.detect.quality.advantage import BUCKETS, buckets, live
from moe_watch.domain import amounts
from moe_watch.report.data.sections import Advantage, Defect, Group, Quality, Shift, Slowdown, Speed
from moe_watch.report.data.types import Interval, Missing, Period
from moe_watch.store.read import report_queries as store
from moe_watch.store.records import shadows
from moe_watch.store.schema import Model, ServerBench

_NO_SHADOW: Final = Missing(
    "No output was compared with the dense model: quality is not known.",
    "Set MOE_WATCH_SAMPLE_RATE for vLLM and MOE_WATCH_SHADOW__URL for moe-watch.",
)
_NO_SPEED: Final = Missing(
    "MoE and dense model were never timed side by side.",
    "moe-watch bench-servers loads both with the same prompts for a minute; or set MOE_WATCH_SHADOW__URL.",
)
_UNEQUAL: Final = Missing(
    "The shadow's replays never had about as many requests under way as the MoE: their speeds do not compare.",
    "moe-watch bench-servers loads both with the same prompts, at equal concurrency, for a minute.",
)
_BENCH_DAYS: Final = 90
_FEWEST: Final = 20
_SLOWER: Final = 0.05  # relative change of a latency that matters


def section(
    session: Session, row: store.AnyRow, period: Period, previous: Period, tolerance: float
) -> Quality | Missing:
    """Return the quality of the sampled requests of ``period``, compared with ``previous``.

    It is that of this configuration; the period before may have had another one under the same name. A change of the
    gap of up to ``tolerance`` nats per token counts as none. Of several dense models the busiest one counts.
    """
    dense = next(iter(store.dense_models(session.connection(), row.id, period.since, period.until)), "")
    whole = shadows.observed(session, period.since, period.until, model=row.name, dense=dense or None)
    seen = whole.rows(np.asarray(whole.groups["version"], dtype=str) == str(row.id))
    if not len(seen.at):
        return _NO_SHADOW
    found = against_dense.review(seen)
    before = shadows.observed(session, previous.since, previous.until, model=row.name, dense=dense or None)
    groups = {by: _groups(found.by_group[by], found.garbled_by_group[by]) for by in found.by_group if by != "version"}
    groups["version"] = _versions(session, against_dense.review(whole), row.id)
    return Quality(
        dense_model=dense,
        sampled=len(seen.at),
        scored=int((seen.outcome == "scored").sum()),
        gap=_interval(found.gap),
        shift=_shift(before, seen, tolerance),
        deciles=_deciles(found),
        rise=_rise(found),
        groups={by: names for by, names in groups.items() if len(names) > 1},
        agreement=_interval(found.agreement),
        top1=_interval(found.top1),
        judge=_interval(found.judge),
        judge_agreement=_interval(found.judge_agreement),
        garbled=_interval(found.garbled),
        defects=_defects(found),
    )


def slowdowns(session: Session, name: str, period: Period, previous: Period) -> tuple[Slowdown, ...]:
    """Return how both models' latencies changed since ``previous``; nothing where either period has too little."""
    old, new = (shadows.speeds(session, part.since, part.until, model=name) for part in (previous, period))
    known = (
        _slowdown("time per output token", *(_timed(s, s.moe_tpot_s, s.dense_tpot_s) for s in (old, new))),
        _slowdown("time to first token", *(_timed(s, s.moe_ttft_s, s.dense_ttft_s) for s in (old, new))),
    )
    return tuple(found for found in known if found is not None)


_Timed = tuple[difference_in_differences.Pairs, "np.ndarray[tuple[int], np.dtype[np.int64]]"]


def _timed(seen: shadows.Speeds, moe: weighted_estimates.Floats, dense: weighted_estimates.Floats) -> _Timed:
    """Return a latency of both models, and in which buckets of concurrency they were: -1 where one is not known."""
    ours, theirs = buckets(seen.moe_concurrency, moe), buckets(seen.dense_concurrency, dense)
    return difference_in_differences.Pairs(moe, dense, seen.weight), np.where(
        (ours < 0) | (theirs < 0), -1, ours * len(BUCKETS) + theirs
    )


def _slowdown(name: str, old: _Timed, new: _Timed) -> Slowdown | None:
    before, after = difference_in_differences.alike(*old, *new)
    if min(len(before.moe), len(after.moe)) < _FEWEST:
        return None
    found = difference_in_differences.ratio(before, after, tolerance=_SLOWER)
    return Slowdown(name, _known(found.moe), _known(found.dense), _known(found.effect), found.cause)


def advantage(session: Session, name: str, period: Period) -> Advantage | Missing:
    """Return MoE over dense speed: from the last side-by-side load, else from the shadow's replays of the period."""
    rows = shadows.benches(session, period.until - _BENCH_DAYS * 86400, period.until, model=name)
    return _from_bench(rows) if rows else _from_live(session, name, period)


def _from_bench(rows: list[ServerBench]) -> Advantage:
    latest = {row.concurrency: row for row in reversed(rows) if rows[0].at - row.at < 3600}
    steps = [
        Speed(
            str(row.concurrency),
            Interval(row.ratio, row.ratio_lower, row.ratio_upper, row.requests),
            row.moe_tokens_per_s,
            row.dense_tokens_per_s,
        )
        for _, row in sorted(latest.items())
    ]
    return Advantage("bench", rows[0].at, rows[0].dense_model, tuple(steps))


def _from_live(session: Session, name: str, period: Period) -> Advantage | Missing:
    """Compare requests that both servers answered at about the same concurrency, as the gauge does."""
    seen = shadows.speeds(session, period.since, period.until, model=name)
    times = (seen.moe_tpot_s, seen.moe_concurrency, seen.dense_tpot_s, seen.dense_concurrency)
    found = {at: _interval(one) for at, one in live(*times, seen.weight).by_concurrency.items()}
    steps = tuple(Speed(at, ratio, None, None) for at, ratio in found.items() if ratio is not None)
    if steps:
        return Advantage("live", period.until, "the shadow", steps)
    return _UNEQUAL if len(seen.at) else _NO_SPEED


def _interval(found: weighted_estimates.Estimate) -> Interval | None:
    return Interval(found.value, found.lower, found.upper, found.requests) if found else None


def _known(found: weighted_estimates.Estimate) -> Interval:
    """Return an estimate; nan with 0 requests where there is none."""
    return _interval(found) or Interval(math.nan, None, None, 0)


def _groups(
    gaps: dict[str, weighted_estimates.Estimate], garbled: dict[str, weighted_estimates.Estimate]
) -> tuple[Group, ...]:
    """Return the parts of the traffic, those with the largest gap first."""
    nothing = weighted_estimates.Estimate(math.nan, math.nan, math.nan, 0, 0.0)
    found = [
        Group(name or "untagged", _interval(gaps.get(name, nothing)), _interval(garbled.get(name, nothing)))
        for name in {**gaps, **garbled}
    ]
    return tuple(sorted(found, key=lambda group: math.inf if group.gap is None else -group.gap.value))


def _versions(session: Session, found: against_dense.Quality, this: int) -> tuple[Group, ...]:
    """Return the quality of each configuration that was served under the name, called by when it came."""

    def called(pk: str) -> str:
        model = session.get(Model, int(pk))
        since = "unknown" if model is None else amounts.moment(model.first_seen)
        return f"since {since}{', this one' if pk == str(this) else ''}"

    by, garbled = (
        {called(pk): estimate for pk, estimate in part["version"].items() if pk.isdigit()}
        for part in (found.by_group, found.garbled_by_group)
    )
    return _groups(by, garbled)


def _deciles(found: against_dense.Quality) -> tuple[Interval, ...]:
    deciles = tuple(_known(estimate) for estimate in found.curve.deciles)
    return deciles if any(decile.requests for decile in deciles) else ()


def _rise(found: against_dense.Quality) -> Interval | None:
    trend = found.trend
    return None if math.isnan(trend.rise) else Interval(trend.rise, trend.lower, trend.upper, trend.requests)


def _shift(before: against_dense.Observed, after: against_dense.Observed, tolerance: float) -> Shift | None:
    """Return how the gap changed since the previous period; None where either has too little."""
    if not len(before.at):
        return None
    found = against_dense.compare(before, after, tolerance=tolerance)
    effect = _interval(found.effect)
    if effect is None:
        return None
    among = against_dense.compare_alike(before, after, tolerance=tolerance).effect
    return Shift(effect, found.cause, _interval(among) if among.requests >= _FEWEST else None)


def _defects(found: against_dense.Quality) -> tuple[Defect, ...]:
    """Return the kinds of defects, the most frequent first."""
    kinds = sorted({*found.defects, *found.dense_defects})
    nothing = weighted_estimates.Estimate(math.nan, math.nan, math.nan, 0, 0.0)
    rows = [
        Defect(kind, _known(found.defects.get(kind, nothing)), _interval(found.dense_defects.get(kind, nothing)))
        for kind in kinds
    ]
    return tuple(sorted(rows, key=lambda row: -row.moe.value if row.moe.requests else 0.0))
