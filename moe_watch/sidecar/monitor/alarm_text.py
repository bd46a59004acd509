"""What an alarm says when it opens: a line for the pager, and the evidence that stays with it."""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np

from moe_watch.detect.common.attribution import Dating
from moe_watch.detect.online import Alarm
from moe_watch.sidecar.background import Siblings
from moe_watch.sidecar.monitor.layer_health import Assessment
from moe_watch.sidecar.monitor.snapshot import ReplicaSnapshot

_MOST_DEAD: Final = 3  # dead experts that a line names

Text = tuple[str, dict[str, Any]]


def of_drift(seen: ReplicaSnapshot, alarm: Alarm, alpha: float, run_length: float) -> Text:
    """Return line and evidence of live routing that left its baseline."""
    layer = None if alarm.layer is None else seen.layer_id(alarm.layer)
    where = "" if layer is None else f" in layer {layer}"
    share = seen.shares.ood
    summary = (
        f"{seen.name}: expert routing left baseline {seen.baseline_version}{where} "
        f"({alarm.channel}); {share:.1%} of the latest requests are unusual, {alpha:.1%} expected"
    )
    return summary, {
        "channel": alarm.channel,
        "layer": layer,
        "requests_since": alarm.began,
        "evidence": alarm.evidence,
        "average_run_length": run_length,
        "ood_ratio": share if math.isfinite(share) else None,
        "channels": dict(seen.observation.channels) if seen.observation is not None else {},
        "requests": [suspect.request_id for suspect in seen.suspects[-10:]],
    }


def dated(text: Text, dating: Dating | None) -> Text:
    """Add the event to which the change is dated."""
    if dating is None:
        return text
    found = {"event": dating.event.kind, "detail": dating.event.detail, "requests": dating.requests}
    return f"{text[0]}; {dating.words}", {**text[1], "dated": {**found, "seconds": dating.seconds}}


def of_dead(seen: ReplicaSnapshot, found: Assessment) -> Text:
    """Return line and evidence of experts that get no tokens any more."""
    places = [(seen.layer_id(int(row)), int(expert)) for row, expert in np.argwhere(found.dead.dead)]
    named = ", ".join(f"expert {expert} of layer {layer}" for layer, expert in places[:_MOST_DEAD])
    more = f" and {len(places) - _MOST_DEAD} more" if len(places) > _MOST_DEAD else ""
    chance = float(found.dead.probability[found.dead.dead].max())
    idle = int(found.idle[found.dead.dead].min())
    summary = (
        f"{seen.name}: {named}{more} got no token in {idle:,} requests; "
        f"were all well, the chance of that would be {chance:.1g} at most"
    )
    return summary, {"experts": places, "requests_since": idle, "probability": chance}


def of_siblings(seen: ReplicaSnapshot, found: Siblings) -> Text:
    """Return line and evidence of a replica that routes differently than its siblings."""
    layers = (found.where or {}).get("layers") or []
    where = f", most in layer {layers[0]}" if layers else ""
    summary = (
        f"{seen.name}: routes differently than its {found.replicas - 1} siblings{where} ({found.standing.measure})"
    )
    return summary, {
        "measure": found.standing.measure,
        "siblings": found.replicas - 1,
        "blocks": found.standing.blocks,
        "layer": layers[0] if layers else None,
        "where": found.where,
    }
