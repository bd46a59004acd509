"""Puts snapshots of replicas, and the batches of requests that were judged, on the board."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from moe_watch.detect.canary.comparison import FAULTS
from moe_watch.detect.common.proportion import clopper_pearson
from moe_watch.domain.request import Joined
from moe_watch.domain.window import outcome
from moe_watch.metrics import series
from moe_watch.metrics.board import Board, Exemplar
from moe_watch.metrics.spans import Flagged, trace_id
from moe_watch.settings import Settings
from moe_watch.sidecar.background import Siblings
from moe_watch.sidecar.monitor import expert_shares
from moe_watch.sidecar.monitor.detectors import Normal
from moe_watch.sidecar.monitor.snapshot import JudgedBatch, ReplicaSnapshot
from moe_watch.store.schema import CanaryRun

Labels = tuple[str, str]  # model and replica


def begin(board: Board, seen: ReplicaSnapshot) -> None:
    """Make every yes-or-no gauge and every counter of a replica exist, at 0."""
    labels, model = seen.labels, seen.model
    board.set(series.TAP_UP, 0, *labels)
    board.set(series.REPLICA_DEVIATES, 0, *labels)
    info = (model.vllm_version, model.tap_version, model.runner, model.moe_backend, model.quantization)
    board.replace(series.TAP_INFO, labels, {info: 1.0})
    for kind in series.DRIFT_KINDS:
        board.set(series.DRIFT_ACTIVE, 0, *labels, kind)
        board.set(series.DRIFT_BEGAN, 0, *labels, kind)
        board.add(series.ALARMS, 0, *labels, kind)
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
    baseline(board, labels, seen.normal)


def baseline(board: Board, labels: Labels, normal: Normal | None) -> None:
    """Show which baseline is active, or that none is."""
    if normal is None:
        for metric in (series.BASELINE_INFO, series.BASELINE_PROMOTED, series.BASELINE_REQUESTS):
            board.replace(metric, labels, {})
        return
    board.replace(series.BASELINE_INFO, labels, {(str(normal.active.version),): 1.0})
    board.set(series.BASELINE_PROMOTED, normal.active.promoted_at, *labels)
    board.set(series.BASELINE_REQUESTS, normal.active.requests, *labels)


def tap_up(board: Board, labels: Labels, *, up: bool) -> None:
    """Show whether the tap is up."""
    board.set(series.TAP_UP, float(up), *labels)


def dropped(board: Board, labels: Labels, frames: Mapping[str, int]) -> None:
    """Count frames that never came, by reason."""
    for reason, n in frames.items():
        board.add(series.FRAMES_DROPPED, n, *labels, reason)


def batch(board: Board, judged: JudgedBatch, settings: Settings, now: float) -> None:
    """Count a batch of requests."""
    labels = judged.labels
    ends = [outcome(request) for request in judged.requests]
    for how in set(ends):
        board.add(series.REQUESTS, ends.count(how), *labels, how)
    board.add(series.ROUTED_REQUESTS, len(judged.scored), *labels)
    tokens = sum(r.routing.prompt_routed + r.routing.decode_routed for r in judged.scored if r.routing is not None)
    board.add(series.ROUTED_TOKENS, tokens, *labels)
    board.observe(series.PROCESSING_DELAY, [max(0.0, now - request.finished_at) for request in judged.requests])
    _latency(board, judged, settings.serving.ttft_budget_s)
    if judged.ood is not None:
        flagged = np.flatnonzero(judged.ood.p <= settings.detect.ood_alpha)
        if len(flagged):
            worst = int(flagged[np.argmin(judged.ood.p[flagged])])
            board.add(series.OOD_REQUESTS, len(flagged), *labels, exemplar=_example(judged.scored[worst], 1.0, now))
        for index in flagged:
            board.spans.add(_span(judged, judged.scored[index], float(judged.ood.p[index])))


def _example(request: Joined, value: float, at: float) -> Exemplar:
    trace = trace_id(request.request.traceparent) if request.request is not None else ""
    return Exemplar(request.request_id, value, at, trace)


def _span(judged: JudgedBatch, request: Joined, p: float) -> Flagged:
    asked = request.request
    return Flagged(
        request.request_id,
        *judged.labels,
        baseline=judged.baseline_version,
        p=p,
        started_at=asked.started_at if asked is not None else request.finished_at,
        finished_at=request.finished_at,
        traceparent=asked.traceparent if asked is not None else "",
    )


def _latency(board: Board, judged: JudgedBatch, budget: dict[str, float]) -> None:
    labels = judged.labels
    known = [request for request in judged.requests if request.latency is not None]
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


def state(board: Board, seen: ReplicaSnapshot, ood_alpha: float) -> None:
    """Renew everything that depends on the time: the tap, the verdict, alarms, shares."""
    labels, shares = seen.labels, seen.shares
    tap_up(board, labels, up=seen.tap.up)
    if seen.tap.skew_s is not None:
        board.set(series.TAP_CLOCK_SKEW, seen.tap.skew_s, *labels)
    board.set_state(series.VERDICT, seen.verdict, series.VERDICTS, *labels)
    for kind in series.DRIFT_KINDS:
        board.set(series.DRIFT_ACTIVE, float(kind in seen.open), *labels, kind)
        board.set(series.DRIFT_BEGAN, seen.open[kind]["began_at"] if kind in seen.open else 0.0, *labels, kind)
    if seen.observation is not None:
        for channel, evidence in seen.observation.channels.items():
            board.set(series.DRIFT_EVIDENCE, evidence, *labels, channel)
    if shares.scored:
        rate = clopper_pearson(shares.flagged, shares.scored)
        board.set(series.OOD_RATIO, rate.value, *labels)
        board.set(series.OOD_RATIO_LOWER, rate.lower, *labels)
        board.set(series.OOD_RATIO_UPPER, rate.upper, *labels)
        board.set(series.OOD_EXPECTED_RATIO, ood_alpha, *labels)
    if math.isfinite(shares.joined):
        board.set(series.JOIN_RATIO, shares.joined, *labels)
        board.set(series.COVERAGE_RATIO, shares.routed, *labels)
    if seen.normal is not None:
        board.set(series.BASELINE_AGE, max(0.0, seen.at - seen.normal.active.promoted_at), *labels)


def counted(board: Board, labels: Labels, begun: Mapping[str, int], errors: int) -> None:
    """Count alarms that were raised, by kind, and detectors that failed."""
    for kind, count in begun.items():
        board.add(series.ALARMS, count, *labels, kind)
        board.add(series.EPISODES, count, *labels, kind)
    board.add(series.DETECTOR_ERRORS, errors, *labels)


def layers(board: Board, seen: ReplicaSnapshot) -> None:
    """Renew the gauges of every layer from the latest fingerprints and windows."""
    if seen.assessment is None:
        return
    labels, assessed, latest = seen.labels, seen.assessment, seen.latest
    ids = [str(layer) for layer in seen.layer_ids]

    def by_layer(metric: series.Metric, values: NDArray[np.floating] | NDArray[np.integer]) -> None:
        board.replace(metric, labels, {(i,): float(v) for i, v in zip(ids, values, strict=True) if np.isfinite(v)})

    by_layer(series.EXPERT_LOAD_MAX, assessed.balance.max_violation + 1)
    by_layer(series.EXPERT_LOAD_ENTROPY, assessed.balance.entropy)
    if assessed.ranks is not None:
        by_layer(series.RANK_LOAD_MAX, assessed.ranks.max_violation + 1)
    by_layer(series.DEAD_EXPERTS, assessed.dead.dead.sum(1))
    for metric, means in ((series.ROUTER_ENTROPY, latest.entropy), (series.ROUTER_MARGIN, latest.margin)):
        if means is not None:
            by_layer(metric, means)
    if seen.normal is not None:
        by_layer(series.ROUTER_ENTROPY_BASELINE, seen.normal.fitted.entropy)
        by_layer(series.LAYER_SHIFT, expert_shares.shift(seen.latest, seen.normal))
    by_layer(series.MOVED_EXPERTS, expert_shares.moved_experts(seen))
    of = {(str(mover.layer), str(mover.expert)): mover for mover in expert_shares.movers(seen)}
    board.replace(series.TOP_MOVER_SHARE, labels, {key: mover.share for key, mover in of.items()})
    board.replace(series.TOP_MOVER_SHIFT, labels, {key: mover.share - mover.baseline for key, mover in of.items()})


def canary(board: Board, seen: ReplicaSnapshot, run: CanaryRun) -> None:
    """Show the result of the last check by canaries."""
    labels = seen.labels
    board.set_state(series.CANARY_VERDICT, run.verdict, series.CANARY_VERDICTS, *labels)
    board.set(series.CANARY_CHANGED, float(run.verdict in FAULTS), *labels)
    board.set(series.CANARY_FIRST_LAYER, -1 if run.first_layer is None else seen.layer_id(run.first_layer), *labels)
    by_load: dict[tuple[str, ...], float] = {
        (load,): float(ratio) for load, ratio in (run.evidence.get("by_load") or {"": run.effect or 0.0}).items()
    }
    board.replace(series.CANARY_EFFECT, labels, by_load)
    board.set(series.CANARY_LAST_RUN, run.at, *labels)


def siblings(board: Board, labels: Labels, found: Siblings) -> None:
    """Show how a replica compares with its siblings, and what they say together."""
    model = labels[0]
    board.set(series.REPLICA_DEVIATES, float(found.standing.deviates), *labels)
    board.set(series.REPLICA_EVIDENCE, found.standing.evidence, *labels)
    board.set(series.FLEET_REPLICAS, found.replicas, model)
    if found.scored:
        rate = clopper_pearson(found.unusual, found.scored)
        board.set(series.FLEET_OOD_RATIO, rate.value, model)
        board.set(series.FLEET_OOD_RATIO_LOWER, rate.lower, model)
