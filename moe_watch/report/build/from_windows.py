"""Sections that windows alone fill: totals, timeline, out-of-distribution share, latency, coverage."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection

from moe_watch.detect.common.proportion import clopper_pearson
from moe_watch.domain.window import P_EDGES, Window
from moe_watch.metrics.series import CONTEXT_BUCKETS, CONTEXTS, TPOT_BUCKETS, TTFT_BUCKETS
from moe_watch.report.data.review import Totals
from moe_watch.report.data.sections import Bucket, Context, Latency, Ood, Slice
from moe_watch.report.data.types import Interval, Missing, Period
from moe_watch.store.read import report_queries as store

_STEPS: Final = (10, 20, 30, 60, 120, 300, 600, 1800, 3600, 7200, 14_400, 21_600, 43_200, 86_400, 604_800)
_MOST_STEPS: Final = 96
_FEWEST_STEPS: Final = 24
_FEWEST_IN_STEP: Final = 75  # requests, so that the interval of a step says something
_P_BINS: Final = 10


@dataclass
class Step:
    """Sums over one step of the timeline."""

    requests: int = 0
    routed: int = 0
    scored: int = 0
    flagged: int = 0


@dataclass
class Measured:
    """The windows of one model in one period, added up as a whole and by step."""

    period: Period
    step: float
    whole: Window = field(default_factory=lambda: Window(0, 0))
    steps: dict[int, Step] = field(default_factory=dict)
    replicas: set[str] = field(default_factory=set)
    covered: list[tuple[float, float]] = field(default_factory=list)
    longest: float = 0.0  # window, seconds


def step_of(period: Period, requests: int, longest: float = 0.0) -> float:
    """Return the length of a step: at most 96 of them, fewer where that leaves too few requests in each.

    None is shorter than the ``longest`` window, seconds: a window counts where it begins.

    >>> step_of(Period(0, 7 * 86400), 100_000), step_of(Period(0, 7 * 86400), 2_400), step_of(Period(0, 3600), 900)
    (7200, 21600, 300)
    """
    most = min(_MOST_STEPS, max(_FEWEST_STEPS, requests / _FEWEST_IN_STEP))
    return next((s for s in _STEPS if period.seconds / s <= most and s >= longest), _STEPS[-1])


def measure(connection: Connection, model_id: int, period: Period) -> Measured:
    """Read and add up the windows that begin in ``period``."""
    requests, longest = store.extent(connection, model_id, period.since, period.until)
    found = Measured(period, step_of(period, requests, longest))
    for row in store.windows(connection, model_id, period.since, period.until):
        window = Window(0, 0, row.requests, row.routed_requests)
        window.load_scalars(row.scalars)
        found.whole.merge(window)
        found.replicas.add(row.replica)
        _cover(found.covered, row.start, row.start + row.seconds)
        found.longest = max(found.longest, row.seconds)
        step = found.steps.setdefault(int(row.start // found.step), Step())
        step.requests += row.requests
        step.routed += row.routed_requests
        step.scored += round(window.sums.scored or 0)
        step.flagged += round(window.sums.ood or 0)
    return found


def buckets(found: Measured) -> tuple[Bucket, ...]:
    """Return the steps of the timeline in order; empty ones are left out."""
    return tuple(
        Bucket(
            key * found.step, step.requests, step.routed, interval(step.flagged, step.scored) if step.scored else None
        )
        for key, step in sorted(found.steps.items())
    )


def totals(found: Measured, alarms: int) -> Totals:
    """Return what two periods are compared in."""
    whole, sums = found.whole, found.whole.sums
    scored = round(sums.scored or 0)
    return Totals(
        requests=whole.requests,
        prompt_tokens=round(sums.prompt_tokens or 0),
        output_tokens=round(sums.output_tokens or 0),
        coverage=whole.routed_requests / whole.requests if whole.requests else None,
        ood=interval(round(sums.ood or 0), scored) if scored else None,
        entropy=_entropy(whole),
        ttft=_median_ttft(whole),
        tpot=quantile(whole.vectors.tpot_s, TPOT_BUCKETS, 0.5),
        corrupted=round(sums.corrupted or 0),
        preemptions=round(sums.preemptions or 0),
        alarms=alarms,
    )


def ood(found: Measured, alpha: float) -> Ood | Missing:
    """Return the out-of-distribution section; ``alpha`` is the share that normal traffic has by construction."""
    scored, tallies = round(found.whole.sums.scored or 0), found.whole.tallies
    if not scored:
        return Missing(
            "No request of the period was scored: there was no active baseline, or no routing.",
            "Fit one on traffic that you trust: moe-watch baseline fit, then moe-watch baseline promote.",
        )
    rates = [step.flagged / step.scored for step in found.steps.values() if step.scored >= 1 / alpha]
    spread = np.quantile(rates, [0.05, 0.95]) if len(rates) >= 8 else None
    return Ood(
        rate=interval(round(found.whole.sums.ood or 0), scored),
        expected=alpha,
        histogram=_even_bins(found.whole.vectors.ood_p),
        domains=_slices(tallies.scored_domains, tallies.ood_domains),
        modalities=_slices(tallies.scored_modalities, tallies.ood_modalities),
        over_steps=None if spread is None else (float(spread[0]), float(spread[1])),
    )


def latency(found: Measured, budgets: dict[str, float], long_tokens: int) -> Latency | Missing:
    """Return times to first token by prompt length against ``budgets``, seconds by name of the bucket."""
    whole = found.whole
    contexts = [c for name in CONTEXTS if (c := _context(whole, name, budgets.get(name))) is not None]
    if not contexts:
        return Missing(
            "No request of the period came with its latency.",
            "The tap reads it from vLLM's statistics: moe-watch doctor says whether they are switched off.",
        )
    total = sum(c.requests for c in contexts)
    beyond = sum(c.requests for c in contexts if CONTEXT_BUCKETS.get(c.name, math.inf) > long_tokens)
    tpot = quantile(whole.vectors.tpot_s, TPOT_BUCKETS, 0.5)
    return Latency(tuple(contexts), tpot, beyond / total)


def silent(found: Measured, since: float) -> tuple[Period, ...]:
    """Return the stretches after ``since`` without any window: of three windows' and of 1 % of the period's length."""
    shortest = max(3 * found.longest, found.period.seconds / 100)
    gaps: list[Period] = []
    at = max(found.period.since, since)
    for start, end in [*found.covered, (found.period.until, found.period.until)]:
        if start - at >= shortest:
            gaps.append(Period(at, start))
        at = max(at, end)
    return tuple(gaps)


def interval(hits: int, n: int) -> Interval:
    """Return a share with its Clopper-Pearson interval: the look of a report is fixed beforehand."""
    found = clopper_pearson(hits, n)
    return Interval(found.value, found.lower, found.upper, n)


def quantile(counts: NDArray[np.float64] | None, edges: Sequence[float], q: float) -> float | None:
    """Return a quantile read off a histogram with upper bounds ``edges`` and one open bucket; None when it is empty.

    Within a bucket values count as spread evenly; in the open one the answer is its lower bound.

    >>> quantile(np.array([0.0, 10.0, 0.0]), (1.0, 2.0), 0.5)
    1.5
    """
    if counts is None or not counts.sum():
        return None
    upto = np.cumsum(counts)
    place = int(np.searchsorted(upto, q * upto[-1]))
    if place >= len(edges):
        return float(edges[-1])
    low = edges[place - 1] if place else 0.0
    inside = (q * upto[-1] - (upto[place] - counts[place])) / counts[place]
    return float(low + inside * (edges[place] - low))


def above(counts: NDArray[np.float64], edges: Sequence[float], bound: float) -> float:
    """Return how many values of a histogram are above ``bound``, spread evenly within a bucket.

    >>> above(np.array([5.0, 10.0, 1.0]), (1.0, 2.0), 1.5)
    6.0
    """
    bounds = np.array([0.0, *edges, np.inf])
    low, high = bounds[:-1], bounds[1:]
    part = np.clip((high - bound) / np.where(np.isfinite(high), high - low, 1), 0, 1)
    return float((counts * np.where(np.isfinite(high), part, float(bound <= edges[-1]))).sum())


def _context(whole: Window, name: str, budget: float | None) -> Context | None:
    counts = whole.vectors.ttft_s.get(name)
    median, p95 = (quantile(counts, TTFT_BUCKETS, q) for q in (0.5, 0.95))
    if counts is None or median is None or p95 is None:
        return None
    n = round(float(counts.sum()))
    unknown = budget is None or (budget > TTFT_BUCKETS[-1] and counts[-1] > 0)  # within the open bucket
    over = None if unknown or budget is None else interval(min(n, round(above(counts, TTFT_BUCKETS, budget))), n)
    return Context(name, n, median, p95, budget, over)


def _median_ttft(whole: Window) -> float | None:
    found = list(whole.vectors.ttft_s.values())
    return quantile(np.sum(found, axis=0), TTFT_BUCKETS, 0.5) if found else None


def _entropy(whole: Window) -> float | None:
    total, n = whole.vectors.entropy, whole.vectors.entropy_n
    return float(total.sum() / n.sum()) if total is not None and n is not None and n.sum() else None


def _even_bins(counts: NDArray[np.float64] | None) -> tuple[int, ...]:
    """Return requests by p-value in ten equal bins from the uneven ones of the windows."""
    bins = [0] * _P_BINS
    for upper, n in zip((*P_EDGES, 1.0), () if counts is None else counts, strict=False):
        bins[min(math.ceil(upper * _P_BINS - 1e-9), _P_BINS) - 1] += round(n)
    return tuple(bins)


def _slices(scored: dict[str, int], flagged: dict[str, int]) -> tuple[Slice, ...]:
    """Return the out-of-distribution share by domain tag or modality, the highest first; nothing of one part alone."""
    found = [Slice(name or "untagged", n, interval(flagged.get(name, 0), n)) for name, n in scored.items() if n]
    if len(found) < 2:
        return ()
    return tuple(sorted(found, key=lambda part: -(part.rate.low or 0)))


def _cover(covered: list[tuple[float, float]], start: float, end: float) -> None:
    """Add a stretch; windows come in order of time, so it usually extends the last one."""
    if covered and start <= covered[-1][1]:
        covered[-1] = (covered[-1][0], max(end, covered[-1][1]))
    else:
        covered.append((start, end))
