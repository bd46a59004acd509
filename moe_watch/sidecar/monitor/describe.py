"""Says in ``status`` structs what a snapshot holds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgspec

from moe_watch.detect.common.proportion import clopper_pearson
from moe_watch.domain import status
from moe_watch.sidecar.background import Siblings
from moe_watch.sidecar.monitor.detectors import Normal
from moe_watch.sidecar.monitor.expert_shares import movers, shares
from moe_watch.sidecar.monitor.snapshot import ReplicaSnapshot


def replica(seen: ReplicaSnapshot) -> status.Replica:
    """Return everything that is known of one replica."""
    model, observed = seen.model, seen.observation
    alarms = [_alarm(kind, values) for kind, values in seen.open.items()]
    return status.Replica(
        model=model.model,
        identity=seen.identity,
        replica=model.replica,
        layers=seen.layers,
        experts=seen.experts,
        top_k=model.top_k,
        verdict=seen.verdict,
        reason=seen.reason,
        since=seen.since,
        tap=_tap(seen),
        baseline=_baseline(seen.normal),
        requests=seen.requests,
        routed=seen.routed,
        coverage=_known(seen.shares.routed),
        join_ratio=_known(seen.shares.joined),
        ood=_share(seen.shares.flagged, seen.shares.scored),
        evidence=observed.evidence if observed is not None else 0.0,
        channels=dict(observed.channels) if observed is not None else {},
        alarms=alarms,
        movers=movers(seen),
        suspects=[status.Suspect(s.request_id, s.p, s.at) for s in reversed(seen.suspects)],
        siblings=None if seen.siblings is None else _siblings(seen.siblings),
        ended=[_ended(values) for values in seen.ended],
        episodes=alarms,
    )


def _known(share: float) -> float | None:
    return share if math.isfinite(share) else None


def _tap(seen: ReplicaSnapshot) -> status.Tap:
    tap, model = seen.tap, seen.model
    versions = (model.vllm_version, model.tap_version, model.runner)
    return status.Tap(tap.up, tap.state, tap.reason, tap.age_s, tap.skew_s, *versions)


def _alarm(kind: str, values: Mapping[str, Any]) -> status.Alarm:
    where = values["evidence"].get("where")
    found = msgspec.convert(where, status.Where) if where else None
    return status.Alarm(kind, values["began_at"], values["flagged_at"], values["summary"], found)


def _ended(values: Mapping[str, Any]) -> status.Ended:
    times = (values["began_at"], values["flagged_at"], values["ended_at"])
    return status.Ended(values["kind"], *times, values["ending"], values["summary"])


def _siblings(found: Siblings) -> status.Siblings:
    return status.Siblings(
        found.replicas,
        found.standing.evidence,
        found.standing.deviates,
        _share(found.unusual, found.scored),
    )


def _share(hits: int, n: int) -> status.Share:
    rate = clopper_pearson(hits, n)
    return status.Share(rate.value if n else None, rate.lower, rate.upper, n)


def _baseline(normal: Normal | None) -> status.Baseline | None:
    if normal is None:
        return None
    return status.Baseline(normal.active.version, normal.active.promoted_at, normal.active.requests)


def matrix(seen: ReplicaSnapshot) -> status.Matrix:
    """Return the expert shares of the latest windows beside the baseline's."""
    return status.Matrix(
        seen.model.model,
        seen.model.replica,
        seen.layer_ids,
        seen.latest.requests,
        shares(seen.latest.counts).round(6).tolist(),
        None if seen.normal is None else shares(seen.normal.fitted.counts).round(6).tolist(),
    )
