"""Puts what the watches know on the board, and says the same as ``status`` structs."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from moe_watch.detect.canary.comparison import FAULTS
from moe_watch.detect.common.proportion import clopper_pearson
from moe_watch.domain import status
from moe_watch.domain.request import Joined
from moe_watch.domain.window import outcome
from moe_watch.metrics import series
from moe_watch.metrics.board import Board, Exemplar
from moe_watch.metrics.spans import Flagged, trace_id
from moe_watch.settings import Settings
from moe_watch.sidecar.background import Siblings
from moe_watch.sidecar.monitor.replica_monitor import Seen, Watch
from moe_watch.store.schema import CanaryRun

TOP_MOVERS = 10


def begin(board: Board, watch: Watch) -> None:
    """Make every yes-or-no gauge and every counter of a replica exist, at 0."""
    labels = watch.labels
    board.set(series.TAP_UP, 0, *labels)
    board.set(series.REPLICA_DEVIATES, 0, *labels)
    info = (watch.model.vllm_version, watch.model.tap_version, watch.model.runner)
    board.replace(series.TAP_INFO, labels, {(*info, watch.model.moe_backend, watch.model.quantization): 1.0})
    for kind in series.DRIFT_KINDS:
        board.set(series.DRIFT_ACTIVE, 0, *labels, kind)
        board.set(series.DRIFT_BEGAN, 0, *labels, kind)
        board.add(series.EPISODES, 0, *labels, kind)
    for kind in series.EVENT_KINDS:
        board.add(series.EVENTS, 0, *labels, kind)
    for how in series.OUTCOMES:
        board.add(series.REQUESTS, 0, *labels, how)
    for reason in series.DROP_REASONS:
        board.add(series.FRAMES_DROPPED, 0, *labels, reason)
    for metric in (
        series.ROUTED_REQUESTS,
        series.ROUTED_TOKENS,
        series.CORRUPTED_REQUESTS,
        series.OOD_REQUESTS,
        series.DETECTOR_ERRORS,
    ):
        board.add(metric, 0, *labels)
    baseline(board, watch)


def baseline(board: Board, watch: Watch) -> None:
    """Show which baseline is active, or that none is."""
    labels, normal = watch.labels, watch.normal
    if normal is None:
        for metric in (series.BASELINE_INFO, series.BASELINE_PROMOTED, series.BASELINE_REQUESTS):
            board.replace(metric, labels, {})
        return
    board.replace(series.BASELINE_INFO, labels, {(str(normal.active.version),): 1.0})
    board.set(series.BASELINE_PROMOTED, normal.active.promoted_at, *labels)
    board.set(series.BASELINE_REQUESTS, normal.active.requests, *labels)


def heard(board: Board, watch: Watch, now: float) -> None:
    """Show the tap's state."""
    board.set(series.TAP_UP, float(watch.heard.tap(now)[0]), *watch.labels)


def dropped(board: Board, watch: Watch, frames: Mapping[str, int]) -> None:
    """Count frames that never came, by reason."""
    for reason, n in frames.items():
        board.add(series.FRAMES_DROPPED, n, *watch.labels, reason)


def batch(board: Board, watch: Watch, seen: Seen, settings: Settings, now: float) -> None:
    """Count a batch of requests."""
    labels = watch.labels
    ends = [outcome(request) for request in seen.requests]
    for how in set(ends):
        board.add(series.REQUESTS, ends.count(how), *labels, how)
    board.add(series.ROUTED_REQUESTS, len(seen.scored), *labels)
    tokens = sum(r.routing.prompt_routed + r.routing.decode_routed for r in seen.scored if r.routing is not None)
    board.add(series.ROUTED_TOKENS, tokens, *labels)
    board.observe(series.PROCESSING_DELAY, [max(0.0, now - request.finished_at) for request in seen.requests])
    _latency(board, watch, seen, settings.serving.ttft_budget_s)
    if seen.ood is not None:
        flagged = np.flatnonzero(seen.ood.p <= settings.detect.ood_alpha)
        if len(flagged):
            worst = int(flagged[np.argmin(seen.ood.p[flagged])])
            board.add(series.OOD_REQUESTS, len(flagged), *labels, exemplar=_example(seen.scored[worst], 1.0, now))
        for index in flagged:
            board.spans.add(_span(watch, seen.scored[index], float(seen.ood.p[index])))


def _example(request: Joined, value: float, at: float) -> Exemplar:
    trace = trace_id(request.request.traceparent) if request.request is not None else ""
    return Exemplar(request.request_id, value, at, trace)


def _span(watch: Watch, request: Joined, p: float) -> Flagged:
    asked = request.request
    return Flagged(
        request.request_id,
        *watch.labels,
        baseline=watch.normal.active.version if watch.normal is not None else 0,
        p=p,
        started_at=asked.started_at if asked is not None else request.finished_at,
        finished_at=request.finished_at,
        traceparent=asked.traceparent if asked is not None else "",
    )


def _latency(board: Board, watch: Watch, seen: Seen, budget: dict[str, float]) -> None:
    labels = watch.labels
    known = [request for request in seen.requests if request.latency is not None]
    timed = [request.latency for request in known if request.latency is not None]
    if not timed:
        return
    board.add(series.CORRUPTED_REQUESTS, sum(latency.corrupted for latency in timed), *labels)
    board.observe(series.TPOT, [latency.tpot_s for latency in timed if latency.output_tokens > 1], *labels)
    bounds = list(series.CONTEXT_BUCKETS.values())
    contexts = np.searchsorted(bounds, [latency.prompt_tokens for latency in timed])
    ttft = np.array([latency.ttft_s for latency in timed])
    for bucket in np.unique(contexts):
        inside = np.flatnonzero(contexts == bucket)
        slowest = int(inside[np.nanargmax(np.nan_to_num(ttft[inside]))])
        example = _example(known[slowest], float(np.nan_to_num(ttft[slowest])), timed[slowest].finished_at)
        context = series.CONTEXTS[bucket]
        board.observe(series.TTFT, ttft[inside], *labels, context, exemplar=example)
        board.add(series.TTFT_REQUESTS, len(inside), *labels, context)
        over = int((ttft[inside] > budget_s(budget, context)).sum())
        board.add(series.TTFT_OVER_BUDGET, over, *labels, context)


def budget_s(budget: dict[str, float], context: str) -> float:
    """Return the longest acceptable time to first token of a context bucket; longer prompts have the longest's."""
    longest = list(series.CONTEXT_BUCKETS)[-1]
    return budget.get(longest if context == "longer" else context, float("inf"))


def state(board: Board, watch: Watch, settings: Settings, now: float) -> None:
    """Renew everything that depends on the time: the tap, the verdict, alarms, shares."""
    labels = watch.labels
    board.set(series.TAP_UP, float(watch.heard.tap(now)[0]), *labels)
    if watch.heard.skew_s is not None:
        board.set(series.TAP_CLOCK_SKEW, watch.heard.skew_s, *labels)
    board.set_state(series.VERDICT, watch.verdict, series.VERDICTS, *labels)
    for kind in series.DRIFT_KINDS:
        episode = watch.open.get(kind)
        board.set(series.DRIFT_ACTIVE, float(episode is not None), *labels, kind)
        board.set(series.DRIFT_BEGAN, episode.values["began_at"] if episode else 0.0, *labels, kind)
    begun, errors = watch.since_published()
    for kind, count in begun.items():
        board.add(series.EPISODES, count, *labels, kind)
    board.add(series.DETECTOR_ERRORS, errors, *labels)
    if watch.observation is not None:
        for channel, evidence in watch.observation.channels.items():
            board.set(series.DRIFT_EVIDENCE, evidence, *labels, channel)
    rate = ood_share(watch)
    if rate.value is not None:
        board.set(series.OOD_RATIO, rate.value, *labels)
        board.set(series.OOD_RATIO_LOWER, rate.lower, *labels)
        board.set(series.OOD_RATIO_UPPER, rate.upper, *labels)
        board.set(series.OOD_EXPECTED_RATIO, settings.detect.ood_alpha, *labels)
    joined, covered = watch.recent.shares()
    if math.isfinite(joined):
        board.set(series.JOIN_RATIO, joined, *labels)
        board.set(series.COVERAGE_RATIO, covered, *labels)
    if watch.normal is not None:
        board.set(series.BASELINE_AGE, max(0.0, now - watch.normal.active.promoted_at), *labels)


def layers(board: Board, watch: Watch) -> None:
    """Renew the gauges of every layer from the latest fingerprints and windows."""
    if watch.assessment is None:
        return
    labels, assessed = watch.labels, watch.assessment
    ids = [str(watch.layer_id(index)) for index in range(watch.layers)]

    def by_layer(metric: series.Metric, values: NDArray[np.floating] | NDArray[np.integer]) -> None:
        board.replace(metric, labels, {(i,): float(v) for i, v in zip(ids, values, strict=True) if np.isfinite(v)})

    by_layer(series.EXPERT_LOAD_MAX, assessed.balance.max_violation + 1)
    by_layer(series.EXPERT_LOAD_ENTROPY, assessed.balance.entropy)
    if assessed.ranks is not None:
        by_layer(series.RANK_LOAD_MAX, assessed.ranks.max_violation + 1)
    by_layer(series.DEAD_EXPERTS, assessed.dead.dead.sum(1))
    latest = watch.latest()
    for metric, name in ((series.ROUTER_ENTROPY, "entropy"), (series.ROUTER_MARGIN, "margin")):
        known = latest.vectors.get(f"{name}_n")
        if known is not None:
            by_layer(metric, latest.vectors[name] / np.where(known > 0, known, np.nan))
    if watch.normal is not None:
        by_layer(series.ROUTER_ENTROPY_BASELINE, watch.normal.fitted.entropy)
        now, before = shares(latest.counts.sum(0)), shares(watch.normal.fitted.counts)
        distance = np.sqrt(np.maximum(0, 1 - np.sqrt(now * before).sum(1)))
        by_layer(series.LAYER_SHIFT, distance)
    by_layer(series.MOVED_EXPERTS, moved_experts(watch))
    top = movers(watch)
    of = {(str(mover.layer), str(mover.expert)): mover for mover in top}
    board.replace(series.TOP_MOVER_SHARE, labels, {key: mover.share for key, mover in of.items()})
    board.replace(series.TOP_MOVER_SHIFT, labels, {key: mover.share - mover.baseline for key, mover in of.items()})


def canary(board: Board, watch: Watch, run: CanaryRun) -> None:
    """Show the result of the last check by canaries."""
    labels = watch.labels
    board.set_state(series.CANARY_VERDICT, run.verdict, series.CANARY_VERDICTS, *labels)
    board.set(series.CANARY_CHANGED, float(run.verdict in FAULTS), *labels)
    board.set(series.CANARY_FIRST_LAYER, -1 if run.first_layer is None else watch.layer_id(run.first_layer), *labels)
    by_load: dict[tuple[str, ...], float] = {
        (load,): float(ratio) for load, ratio in (run.evidence.get("by_load") or {"": run.effect or 0.0}).items()
    }
    board.replace(series.CANARY_EFFECT, labels, by_load)
    board.set(series.CANARY_LAST_RUN, run.at, *labels)


def siblings(board: Board, watch: Watch, found: Siblings) -> None:
    """Show how a replica compares with its siblings, and what they say together."""
    labels, model = watch.labels, watch.model.model
    board.set(series.REPLICA_DEVIATES, float(found.standing.deviates), *labels)
    board.set(series.REPLICA_EVIDENCE, found.standing.evidence, *labels)
    board.set(series.FLEET_REPLICAS, found.replicas, model)
    if found.scored:
        rate = clopper_pearson(found.unusual, found.scored)
        board.set(series.FLEET_OOD_RATIO, rate.value, model)
        board.set(series.FLEET_OOD_RATIO_LOWER, rate.lower, model)


def shares(counts: NDArray[np.integer]) -> NDArray[np.float64]:
    """Return the share ``[layers, experts]`` of each expert in its layer; 0 in a layer without counts."""
    total = counts.sum(1, keepdims=True).astype(np.float64)
    return np.asarray(np.divide(counts, total, out=np.zeros(counts.shape), where=total > 0))


def movers(watch: Watch) -> list[status.Mover]:
    """Return the experts whose share moved most against the baseline; none without a baseline or requests."""
    latest = watch.latest()
    if watch.normal is None or not latest.routed_requests:
        return []
    now, before = shares(latest.counts.sum(0)), shares(watch.normal.fitted.counts)
    order = np.argsort(-np.abs(now - before), axis=None)[:TOP_MOVERS]
    pairs = zip(*np.unravel_index(order, now.shape), strict=True)
    return [
        status.Mover(watch.layer_id(int(layer)), int(expert), float(now[layer, expert]), float(before[layer, expert]))
        for layer, expert in pairs
    ]


def moved_experts(watch: Watch) -> NDArray[np.float64]:
    """Return the number of experts ``[layers]`` that the open drift moved; nan while none can be named."""
    found = watch.whereabouts.found if watch.whereabouts is not None else None
    if found is None or found.experts is None:
        return np.full(watch.layers, np.nan)
    return np.bincount([one.layer for one in found.experts], minlength=watch.layers).astype(np.float64)


def ood_share(watch: Watch) -> status.Share:
    """Return the share of the latest scored requests that are out of distribution."""
    flags = watch.recent.ood.rows()
    return share(int(flags.sum()), len(flags))


def share(hits: int, n: int) -> status.Share:
    """Return ``hits`` among ``n`` as a share with its interval."""
    rate = clopper_pearson(hits, n)
    return status.Share(rate.value if n else None, rate.lower, rate.upper, n)
