"""Puts what the watches know on the board, and says the same as ``status`` structs."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from moe_watch import status
from moe_watch.aggregate import outcome
from moe_watch.companions import Siblings
from moe_watch.detect.canary import FAULTS
from moe_watch.detect.rate import clopper_pearson
from moe_watch.export import metrics
from moe_watch.export.snapshot import Board, Exemplar
from moe_watch.export.traces import Flagged, trace_id
from moe_watch.join import Joined
from moe_watch.settings import Settings
from moe_watch.store.models import CanaryRun
from moe_watch.watch import Seen, Watch

TOP_MOVERS = 10


def begin(board: Board, watch: Watch) -> None:
    """Make every yes-or-no gauge and every counter of a replica exist, at 0."""
    labels = watch.labels
    board.set(metrics.TAP_UP, 0, *labels)
    board.set(metrics.REPLICA_DEVIATES, 0, *labels)
    info = (watch.model.vllm_version, watch.model.tap_version, watch.model.runner)
    board.replace(metrics.TAP_INFO, labels, {(*info, watch.model.moe_backend, watch.model.quantization): 1.0})
    for kind in metrics.DRIFT_KINDS:
        board.set(metrics.DRIFT_ACTIVE, 0, *labels, kind)
        board.set(metrics.DRIFT_BEGAN, 0, *labels, kind)
        board.add(metrics.EPISODES, 0, *labels, kind)
    for kind in metrics.EVENT_KINDS:
        board.add(metrics.EVENTS, 0, *labels, kind)
    for how in metrics.OUTCOMES:
        board.add(metrics.REQUESTS, 0, *labels, how)
    for reason in metrics.DROP_REASONS:
        board.add(metrics.FRAMES_DROPPED, 0, *labels, reason)
    for metric in (
        metrics.ROUTED_REQUESTS,
        metrics.ROUTED_TOKENS,
        metrics.CORRUPTED_REQUESTS,
        metrics.OOD_REQUESTS,
        metrics.DETECTOR_ERRORS,
    ):
        board.add(metric, 0, *labels)
    baseline(board, watch)


def baseline(board: Board, watch: Watch) -> None:
    """Show which baseline is active, or that none is."""
    labels, normal = watch.labels, watch.normal
    if normal is None:
        for metric in (metrics.BASELINE_INFO, metrics.BASELINE_PROMOTED, metrics.BASELINE_REQUESTS):
            board.replace(metric, labels, {})
        return
    board.replace(metrics.BASELINE_INFO, labels, {(str(normal.active.version),): 1.0})
    board.set(metrics.BASELINE_PROMOTED, normal.active.promoted_at, *labels)
    board.set(metrics.BASELINE_REQUESTS, normal.active.requests, *labels)


def heard(board: Board, watch: Watch, now: float) -> None:
    """Show the tap's state."""
    board.set(metrics.TAP_UP, float(watch.heard.tap(now)[0]), *watch.labels)


def dropped(board: Board, watch: Watch, frames: Mapping[str, int]) -> None:
    """Count frames that never came, by reason."""
    for reason, n in frames.items():
        board.add(metrics.FRAMES_DROPPED, n, *watch.labels, reason)


def batch(board: Board, watch: Watch, seen: Seen, settings: Settings, now: float) -> None:
    """Count a batch of requests."""
    labels = watch.labels
    ends = [outcome(request) for request in seen.requests]
    for how in set(ends):
        board.add(metrics.REQUESTS, ends.count(how), *labels, how)
    board.add(metrics.ROUTED_REQUESTS, len(seen.scored), *labels)
    tokens = sum(r.routing.prompt_routed + r.routing.decode_routed for r in seen.scored if r.routing is not None)
    board.add(metrics.ROUTED_TOKENS, tokens, *labels)
    board.observe(metrics.PROCESSING_DELAY, [max(0.0, now - request.finished_at) for request in seen.requests])
    _latency(board, watch, seen, settings.serving.ttft_budget_s)
    if seen.ood is not None:
        flagged = np.flatnonzero(seen.ood.p <= settings.detect.ood_alpha)
        if len(flagged):
            worst = int(flagged[np.argmin(seen.ood.p[flagged])])
            board.add(metrics.OOD_REQUESTS, len(flagged), *labels, exemplar=_example(seen.scored[worst], 1.0, now))
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
    board.add(metrics.CORRUPTED_REQUESTS, sum(latency.corrupted for latency in timed), *labels)
    board.observe(metrics.TPOT, [latency.tpot_s for latency in timed if latency.output_tokens > 1], *labels)
    bounds = list(metrics.CONTEXT_BUCKETS.values())
    contexts = np.searchsorted(bounds, [latency.prompt_tokens for latency in timed])
    ttft = np.array([latency.ttft_s for latency in timed])
    for bucket in np.unique(contexts):
        inside = np.flatnonzero(contexts == bucket)
        slowest = int(inside[np.nanargmax(np.nan_to_num(ttft[inside]))])
        example = _example(known[slowest], float(np.nan_to_num(ttft[slowest])), timed[slowest].finished_at)
        context = metrics.CONTEXTS[bucket]
        board.observe(metrics.TTFT, ttft[inside], *labels, context, exemplar=example)
        board.add(metrics.TTFT_REQUESTS, len(inside), *labels, context)
        over = int((ttft[inside] > budget_s(budget, context)).sum())
        board.add(metrics.TTFT_OVER_BUDGET, over, *labels, context)


def budget_s(budget: dict[str, float], context: str) -> float:
    """Return the longest acceptable time to first token of a context bucket; longer prompts have the longest's."""
    longest = list(metrics.CONTEXT_BUCKETS)[-1]
    return budget.get(longest if context == "longer" else context, float("inf"))


def state(board: Board, watch: Watch, settings: Settings, now: float) -> None:
    """Renew everything that depends on the time: the tap, the verdict, alarms, shares."""
    labels = watch.labels
    board.set(metrics.TAP_UP, float(watch.heard.tap(now)[0]), *labels)
    if watch.heard.skew_s is not None:
        board.set(metrics.TAP_CLOCK_SKEW, watch.heard.skew_s, *labels)
    board.set_state(metrics.VERDICT, watch.verdict, metrics.VERDICTS, *labels)
    for kind in metrics.DRIFT_KINDS:
        episode = watch.open.get(kind)
        board.set(metrics.DRIFT_ACTIVE, float(episode is not None), *labels, kind)
        board.set(metrics.DRIFT_BEGAN, episode.values["began_at"] if episode else 0.0, *labels, kind)
    begun, errors = watch.since_published()
    for kind, count in begun.items():
        board.add(metrics.EPISODES, count, *labels, kind)
    board.add(metrics.DETECTOR_ERRORS, errors, *labels)
    if watch.observation is not None:
        for channel, evidence in watch.observation.channels.items():
            board.set(metrics.DRIFT_EVIDENCE, evidence, *labels, channel)
    rate = ood_share(watch)
    if rate.value is not None:
        board.set(metrics.OOD_RATIO, rate.value, *labels)
        board.set(metrics.OOD_RATIO_LOWER, rate.lower, *labels)
        board.set(metrics.OOD_RATIO_UPPER, rate.upper, *labels)
        board.set(metrics.OOD_EXPECTED_RATIO, settings.detect.ood_alpha, *labels)
    joined, covered = watch.recent.shares()
    if math.isfinite(joined):
        board.set(metrics.JOIN_RATIO, joined, *labels)
        board.set(metrics.COVERAGE_RATIO, covered, *labels)
    if watch.normal is not None:
        board.set(metrics.BASELINE_AGE, max(0.0, now - watch.normal.active.promoted_at), *labels)


def layers(board: Board, watch: Watch) -> None:
    """Renew the gauges of every layer from the latest fingerprints and windows."""
    if watch.assessment is None:
        return
    labels, assessed = watch.labels, watch.assessment
    ids = [str(watch.layer_id(index)) for index in range(watch.layers)]

    def by_layer(metric: metrics.Metric, values: NDArray[np.floating] | NDArray[np.integer]) -> None:
        board.replace(metric, labels, {(i,): float(v) for i, v in zip(ids, values, strict=True) if np.isfinite(v)})

    by_layer(metrics.EXPERT_LOAD_MAX, assessed.balance.max_violation + 1)
    by_layer(metrics.EXPERT_LOAD_ENTROPY, assessed.balance.entropy)
    if assessed.ranks is not None:
        by_layer(metrics.RANK_LOAD_MAX, assessed.ranks.max_violation + 1)
    by_layer(metrics.DEAD_EXPERTS, assessed.dead.dead.sum(1))
    latest = watch.latest()
    for metric, name in ((metrics.ROUTER_ENTROPY, "entropy"), (metrics.ROUTER_MARGIN, "margin")):
        known = latest.vectors.get(f"{name}_n")
        if known is not None:
            by_layer(metric, latest.vectors[name] / np.where(known > 0, known, np.nan))
    if watch.normal is not None:
        by_layer(metrics.ROUTER_ENTROPY_BASELINE, watch.normal.fitted.entropy)
        now, before = shares(latest.counts.sum(0)), shares(watch.normal.fitted.counts)
        distance = np.sqrt(np.maximum(0, 1 - np.sqrt(now * before).sum(1)))
        by_layer(metrics.LAYER_SHIFT, distance)
    by_layer(metrics.MOVED_EXPERTS, moved_experts(watch))
    top = movers(watch)
    of = {(str(mover.layer), str(mover.expert)): mover for mover in top}
    board.replace(metrics.TOP_MOVER_SHARE, labels, {key: mover.share for key, mover in of.items()})
    board.replace(metrics.TOP_MOVER_SHIFT, labels, {key: mover.share - mover.baseline for key, mover in of.items()})


def canary(board: Board, watch: Watch, run: CanaryRun) -> None:
    """Show the result of the last check by canaries."""
    labels = watch.labels
    board.set_state(metrics.CANARY_VERDICT, run.verdict, metrics.CANARY_VERDICTS, *labels)
    board.set(metrics.CANARY_CHANGED, float(run.verdict in FAULTS), *labels)
    board.set(metrics.CANARY_FIRST_LAYER, -1 if run.first_layer is None else watch.layer_id(run.first_layer), *labels)
    by_load: dict[tuple[str, ...], float] = {
        (load,): float(ratio) for load, ratio in (run.evidence.get("by_load") or {"": run.effect or 0.0}).items()
    }
    board.replace(metrics.CANARY_EFFECT, labels, by_load)
    board.set(metrics.CANARY_LAST_RUN, run.at, *labels)


def siblings(board: Board, watch: Watch, found: Siblings) -> None:
    """Show how a replica compares with its siblings, and what they say together."""
    labels, model = watch.labels, watch.model.model
    board.set(metrics.REPLICA_DEVIATES, float(found.standing.deviates), *labels)
    board.set(metrics.REPLICA_EVIDENCE, found.standing.evidence, *labels)
    board.set(metrics.FLEET_REPLICAS, found.replicas, model)
    if found.scored:
        rate = clopper_pearson(found.unusual, found.scored)
        board.set(metrics.FLEET_OOD_RATIO, rate.value, model)
        board.set(metrics.FLEET_OOD_RATIO_LOWER, rate.lower, model)


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
