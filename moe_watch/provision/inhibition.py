"""Which alert silences which, so that one cause pages once.

A cause silences its effects on the same model and replica, never anything more severe than itself: whatever is wrong,
something of the highest severity among the firing alerts still pages (``tests/provision/test_alerts.py`` holds this for
every pair, and that there is no circle).
"""

from __future__ import annotations

from typing import Final

# Without data the others are old news; last states of the gauges may still stand.
_NEEDS_DATA: Final = (
    "RoutingDrift",
    "DeadExperts",
    "TrafficDrift",
    "OODRateHigh",
    "ExpertImbalance",
    "BaselineStale",
    "FramesDropped",
    "ReplicaDeviates",
)

SILENCES: Final[dict[str, tuple[str, ...]]] = {
    "TapDown": _NEEDS_DATA,
    # The canary says which layer and since when; live drift, dead experts and worse text are the same fault seen again.
    "CanaryChanged": (
        *("RoutingDrift", "ReplicaDeviates", "DeadExperts", "QualityGap"),
        *("TrafficDrift", "OODRateHigh", "ExpertImbalance"),
    ),
    "RoutingDrift": ("ReplicaDeviates", "DeadExperts", "QualityGap", "TrafficDrift", "OODRateHigh", "ExpertImbalance"),
    # Dead experts at one replica alone say more than that it differs; all other signs of it are the same fault again.
    "ReplicaDeviates": ("QualityGap", "TrafficDrift", "OODRateHigh", "ExpertImbalance"),
    "DeadExperts": ("ReplicaDeviates", "QualityGap", "TrafficDrift", "OODRateHigh", "ExpertImbalance"),
    "GarbledOutput": ("QualityGap",),
    "TrafficDrift": ("OODRateHigh", "BaselineStale"),
    "TTFTBudgetBurn": ("KVCachePressure", "ExpertImbalance"),
    "ExpertImbalance": ("MoEAdvantageLost",),
}
EQUAL: Final = ("model", "replica")


def silencers(name: str) -> tuple[str, ...]:
    """Return the alerts that silence alert ``name``.

    >>> silencers("BaselineStale")
    ('TapDown', 'TrafficDrift')
    """
    return tuple(source for source, targets in SILENCES.items() if name in targets)
