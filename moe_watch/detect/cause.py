"""Traffic or model? The live detectors see that fingerprints moved; the canaries say whether the prompts did it."""

from __future__ import annotations

from typing import Final, Literal

from moe_watch.detect.canary import Verdict

Cause = Literal["healthy", "traffic", "routing", "deployment", "blind", "unknown"]

_OF_CANARY: Final[dict[Verdict, Cause]] = {
    "routing": "routing",
    "weights": "routing",  # the model computes something else, even if the routers choose as before
    "deployment": "deployment",
    "blind": "blind",
    "benign": "healthy",
    "healthy": "healthy",
}


def name_drift(*, drifted: bool, canary: Verdict | None, current: bool = True) -> Cause:
    """Name what is going on from live traffic (``drifted``) and the last canary verdict.

    ``canary`` is None where none was ever replayed; ``current`` says that it was replayed after the drift began. A
    canary that saw a fault counts whether traffic moved or not, since a fault may leave the mix of experts as it is.
    Drifted traffic with healthy canaries is a change of the traffic; without a current canary it is "unknown".

    >>> name_drift(drifted=True, canary="healthy"), name_drift(drifted=True, canary="routing")
    ('traffic', 'routing')
    """
    seen = _OF_CANARY[canary] if canary is not None else None
    if seen in {"routing", "deployment"}:
        return seen
    if not drifted:
        return "blind" if seen == "blind" else "healthy"
    if seen == "healthy" and current:
        return "traffic"
    return "unknown"
