"""What an alarm says when it opens: a line for the pager, and the evidence that stays with it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from moe_watch.detect.common.attribution import Dating
from moe_watch.detect.online import Alarm
from moe_watch.sidecar.monitor.layer_health import Assessment

if TYPE_CHECKING:
    from moe_watch.sidecar.background import Siblings
    from moe_watch.sidecar.monitor.replica_monitor import Watch

_MOST_DEAD: Final = 3  # dead experts that a line names

Told = tuple[str, dict[str, Any]]


def of_drift(watch: Watch, alarm: Alarm, alpha: float, run_length: float) -> Told:
    """Return line and evidence of live routing that left its baseline."""
    layer = None if alarm.layer is None else watch.layer_id(alarm.layer)
    where = "" if layer is None else f" in layer {layer}"
    version = watch.normal.active.version if watch.normal is not None else 0
    flags = watch.recent.ood.rows()
    share = float(flags.mean()) if len(flags) else math.nan
    summary = (
        f"{watch.model.model} at {watch.model.replica}: expert routing left baseline {version}{where} "
        f"({alarm.channel}); {share:.1%} of the latest requests are out of distribution, {alpha:.1%} expected"
    )
    return summary, {
        "channel": alarm.channel,
        "layer": layer,
        "requests_since": alarm.began,
        "evidence": alarm.evidence,
        "average_run_length": run_length,
        "ood_ratio": share if math.isfinite(share) else None,
        "channels": dict(watch.observation.channels) if watch.observation is not None else {},
        "requests": [s.request_id for s in list(watch.recent.suspects)[-10:]],
    }


def dated(told: Told, dating: Dating | None) -> Told:
    """Add to what is told to which event the change is dated."""
    if dating is None:
        return told
    found = {"event": dating.event.kind, "detail": dating.event.detail, "requests": dating.requests}
    return f"{told[0]}; {dating.words}", {**told[1], "dated": {**found, "seconds": dating.seconds}}


def of_dead(watch: Watch, found: Assessment) -> Told:
    """Return line and evidence of experts that get no tokens any more."""
    places = [(watch.layer_id(int(row)), int(expert)) for row, expert in np.argwhere(found.dead.dead)]
    named = ", ".join(f"expert {expert} of layer {layer}" for layer, expert in places[:_MOST_DEAD])
    more = f" and {len(places) - _MOST_DEAD} more" if len(places) > _MOST_DEAD else ""
    chance = float(found.dead.probability[found.dead.dead].max())
    idle = int(watch.recent.idle[found.dead.dead].min())
    summary = (
        f"{watch.model.model} at {watch.model.replica}: {named}{more} got no token in {idle:,} requests; "
        f"were all well, the chance of that would be {chance:.1g} at most"
    )
    return summary, {"experts": places, "requests_since": idle, "probability": chance}


def of_siblings(watch: Watch, found: Siblings) -> Told:
    """Return line and evidence of a replica that routes differently than its siblings."""
    layers = (found.where or {}).get("layers") or []
    where = f", most in layer {layers[0]}" if layers else ""
    summary = (
        f"{watch.model.model} at {watch.model.replica}: routes differently than its {found.replicas - 1} siblings"
        f"{where} ({found.standing.measure})"
    )
    return summary, {
        "measure": found.standing.measure,
        "siblings": found.replicas - 1,
        "blocks": found.standing.blocks,
        "layer": layers[0] if layers else None,
        "where": found.where,
    }
