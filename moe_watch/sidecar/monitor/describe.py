"""Says in ``status`` structs what is on the board, and what is too much for it."""

from __future__ import annotations

import math
from typing import Any

import msgspec

from moe_watch.domain import status
from moe_watch.sidecar.background import Siblings
from moe_watch.sidecar.monitor.publish import movers, ood_share, share, shares
from moe_watch.sidecar.monitor.replica_monitor import Normal, Watch


def replica(watch: Watch, now: float) -> status.Replica:
    """Return everything that is known of one replica; looking changes nothing."""
    joined, covered = watch.recent.shares()
    model, normal, observed = watch.model, watch.normal, watch.observation
    return status.Replica(
        model=model.model,
        identity=watch.identity,
        replica=model.replica,
        layers=watch.layers,
        experts=watch.experts,
        top_k=model.top_k,
        verdict=watch.verdict,
        reason=watch.reason,
        since=watch.since,
        tap=_tap(watch, now),
        baseline=_baseline(normal),
        requests=watch.requests,
        routed=watch.routed,
        coverage=covered if math.isfinite(covered) else None,
        join_ratio=joined if math.isfinite(joined) else None,
        ood=ood_share(watch),
        evidence=observed.evidence if observed is not None else 0.0,
        channels=dict(observed.channels) if observed is not None else {},
        episodes=[_episode(kind, one.values) for kind, one in watch.open.items()],
        movers=movers(watch),
        suspects=[status.Suspect(s.request_id, s.p, s.at) for s in reversed(watch.recent.suspects)],
        siblings=None if watch.siblings is None else _siblings(watch.siblings),
        ended=[_ended(values) for values in watch.raised.ended],
    )


def _tap(watch: Watch, now: float) -> status.Tap:
    up, state, why = watch.heard.tap(now)
    age, model = None if watch.heard.at is None else now - watch.heard.at, watch.model
    return status.Tap(up, state, why, age, watch.heard.skew_s, model.vllm_version, model.tap_version, model.runner)


def _episode(kind: str, values: dict[str, Any]) -> status.Episode:
    where = values["evidence"].get("where")
    found = msgspec.convert(where, status.Where) if where else None
    return status.Episode(kind, values["began_at"], values["flagged_at"], values["summary"], found)


def _ended(values: dict[str, Any]) -> status.Ended:
    times = (values["began_at"], values["flagged_at"], values["ended_at"])
    return status.Ended(values["kind"], *times, values["ending"], values["summary"])


def _siblings(found: Siblings) -> status.Siblings:
    return status.Siblings(
        found.replicas,
        found.standing.evidence,
        found.standing.deviates,
        share(found.unusual, found.scored),
    )


def _baseline(normal: Normal | None) -> status.Baseline | None:
    if normal is None:
        return None
    return status.Baseline(normal.active.version, normal.active.promoted_at, normal.active.requests)


def matrix(watch: Watch) -> status.Matrix:
    """Return the expert shares of the latest windows beside the baseline's."""
    latest = watch.latest()
    return status.Matrix(
        watch.model.model,
        watch.model.replica,
        [watch.layer_id(index) for index in range(watch.layers)],
        latest.routed_requests,
        shares(latest.counts.sum(0)).round(6).tolist(),
        None if watch.normal is None else shares(watch.normal.fitted.counts).round(6).tolist(),
    )
