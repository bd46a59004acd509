"""Sections that look into layers and experts: what moved, who carries the load, which requests were strangest."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Final

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection

from moe_watch.detect.drift.localise import localise
from moe_watch.detect.drift.moments import Moments, of_baseline
from moe_watch.detect.fit.baseline_fit import Baseline
from moe_watch.detect.load.dead import dead_experts, use
from moe_watch.report.data.review import Served
from moe_watch.report.data.sections import Change, LayerLoad, Load, Mover
from moe_watch.report.data.types import Missing, Period
from moe_watch.store.codecs.arrays import unpack
from moe_watch.store.read import report_queries as store

Floats = NDArray[np.float64]  # [layers, experts]
_Sums = tuple[NDArray[np.uint64], Floats, int]
MOST_MOVERS: Final = 12
MOST_LAYERS: Final = 5
SMALL: Final = 0.2  # Cohen's d below it is called negligible
FEWEST: Final = 30  # requests below which nothing is said of layers and experts
MOST_WINDOWS: Final = 1500  # whose arrays are read
_THREADS: Final = 2
_AT_ONCE: Final = 32  # windows that one thread adds up before the next takes over


def routed(
    connection: Connection, model_id: int, served: Served, period: Period, *, most: int = MOST_WINDOWS
) -> Moments:
    """Add up the arrays of the windows of ``period``, or of ``most`` of them, evenly spread over it.

    A week of minutes at 30 x 128 is more than a gigabyte of arrays; a share of every expert is known well enough from
    far fewer requests, and every figure says how many it rests on.
    """
    shape = (2, served.layers, served.experts)
    counts, moments, requests = np.zeros(shape, np.uint64), np.zeros(shape), 0
    keys = store.routed_windows(connection, model_id, period.since, period.until)
    spread = [keys[place] for place in sorted(set(np.linspace(0, len(keys) - 1, most).astype(int)))] if keys else []
    rows = store.window_arrays(connection, spread)
    waiting: deque[Future[_Sums]] = deque()
    with ThreadPoolExecutor(_THREADS) as pool:  # zlib lets go of the interpreter's lock
        while (piece := list(islice(rows, _AT_ONCE))) or waiting:
            if piece:
                waiting.append(pool.submit(_sum, piece, shape))
            if len(waiting) > _THREADS or not piece:
                some, sums, n = waiting.popleft().result()
                counts, moments, requests = counts + some, moments + sums, requests + n
    return Moments(requests, counts.sum(0), moments[0], moments[1])


def _sum(rows: list[store.AnyRow], shape: tuple[int, int, int]) -> _Sums:
    """Return counts, moments and number of requests of some windows."""
    counts, moments = np.zeros(shape, np.uint64), np.zeros(shape)
    for row in rows:
        counts += unpack(row.counts, shape).astype(np.uint64)
        moments += unpack(row.moments, shape).astype(np.float64)
    return counts, moments, sum(row.routed_requests for row in rows)


@dataclass(frozen=True)
class Reference:
    """What routing is compared with, and over how many ``requests`` it was taken."""

    label: str
    requests: int
    routing: Moments


def reference(baseline: Baseline | None, label: str, before: Moments) -> Reference | None:
    """Return the baseline to compare with, else the requests ``before``; None where there is neither."""
    if baseline is not None:
        return Reference(label, baseline.requests, of_baseline(baseline))
    return None if before.requests < FEWEST else Reference("the period before", before.requests, before)


def change(
    served: Served, now: Moments, known: Reference | None, *, period: Period, alarm: int | None
) -> Change | Missing:
    """Return how far every expert is from the reference, and which moved with a bound on false discoveries.

    Of the experts that are named those with a negligible effect are left out: over many requests every difference is
    real and few matter.
    """
    if now.requests < FEWEST:
        return Missing(
            f"Only {now.requests} requests with routing came: {FEWEST} are needed to compare layers and experts.", ""
        )
    if known is None:
        return Missing(
            "There is neither a baseline nor an earlier period to compare with.",
            "Fit one on traffic that you trust: moe-watch baseline fit, then moe-watch baseline promote.",
        )
    found = localise(known.routing, now)
    moved = [one for one in found.experts or () if abs(one.effect) >= SMALL]
    movers = sorted(moved, key=lambda one: -abs(one.effect))[:MOST_MOVERS]
    return Change(
        reference=known.label,
        period=period,
        alarm=alarm,
        requests=now.requests,
        reference_requests=known.requests,
        effect=tuple(tuple(round(float(d), 3) for d in row) for row in found.effect),
        error=float(np.sqrt(1 / now.requests + 1 / known.requests)),
        layers=tuple(served.layer_ids[row] for row in found.layers[:MOST_LAYERS]),
        named=found.experts is not None,
        movers=tuple(Mover(served.layer_ids[m.layer], m.expert, m.before, m.now, m.effect) for m in movers),
        moved=len(moved),
    )


def load(served: Served, now: Moments, baseline: Baseline | None) -> Load | Missing:
    """Return how even the work of the experts of each layer was, over all tokens."""
    if not now.counts.any():
        return Missing("No routing was recorded in the period.", "moe-watch doctor says why the tap sees nothing.")
    before, gone = None if baseline is None else baseline.counts, _gone(now, baseline)
    return Load(now.requests, tuple(_layer_load(served, now.counts, before, gone, row) for row in range(served.layers)))


def _gone(now: Moments, baseline: Baseline | None) -> NDArray[np.bool_]:
    """Return which experts ``[layers, experts]`` got nothing, though few requests or rare use do not explain that."""
    normal = None if baseline is None else use(baseline.users, baseline.requests, baseline.counts)
    silent = now.counts == 0
    passed = np.broadcast_to(now.counts.sum(1, keepdims=True), silent.shape).astype(np.int64)
    return np.asarray(silent & dead_experts(np.full(silent.shape, now.requests), passed, normal).dead)


def _layer_load(
    served: Served, counts: NDArray[np.uint64], before: NDArray[np.uint64] | None, gone: NDArray[np.bool_], row: int
) -> LayerLoad:
    share = _shares(counts[row])
    log = np.log(share, out=np.zeros_like(share), where=share > 0)
    even = np.log(served.experts) if served.experts > 1 else 1.0
    return LayerLoad(
        layer=served.layer_ids[row],
        busiest=int(share.argmax()),
        max_to_mean=float(share.max() * served.experts),
        baseline_max_to_mean=None if before is None else float(_shares(before[row]).max() * served.experts),
        entropy=float(-(share * log).sum() / even),
        unused=tuple(int(e) for e in np.flatnonzero(counts[row] == 0)),
        unused_before=None if before is None else tuple(int(e) for e in np.flatnonzero(before[row] == 0)),
        gone=tuple(int(e) for e in np.flatnonzero(gone[row])),
    )


def _shares(counts: NDArray[np.uint64]) -> Floats:
    """Return each expert's share of the choices of its layer."""
    values = counts.astype(np.float64)
    total = values.sum(-1, keepdims=True)
    shares: Floats = np.divide(values, total, out=np.zeros_like(values), where=total > 0)
    return shares
