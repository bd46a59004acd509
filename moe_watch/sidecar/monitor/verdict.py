"""The verdict on one replica, in one word and one sentence. Without data nothing is ever called healthy."""

from __future__ import annotations

from typing import Final

from moe_watch import alarms
from moe_watch.sidecar.monitor.snapshot import ReplicaSnapshot

_FEWEST: Final = 20  # finished requests before missing routing counts as blindness
_OF_THE_DEPLOYMENT: Final = frozenset({"weights", "deployment"})  # what canaries find besides routing


def decide(seen: ReplicaSnapshot) -> tuple[str, str]:
    """Return one of ``series.VERDICTS`` and the reason for it."""
    if seen.tap.state == "dense":
        return "idle", "a dense model has no experts to watch"
    reason = blindness(seen)
    wrong = {*seen.open, "blind"} if reason else {*seen.open} - {"blind"}
    worst = min(wrong, key=lambda kind: (alarms.rank(kind), kind), default=None)
    if worst is None:
        return _of_baseline(seen)
    return ("blind", reason) if worst == "blind" else _of_alarm(seen, worst)


def blindness(seen: ReplicaSnapshot) -> str:
    """Return why nothing can be said of the routing now; empty where it is seen, or nothing is to be seen."""
    tap = seen.tap
    if not tap.up and tap.state not in {"unknown", "dense"}:
        return tap.reason or f"the tap is {tap.state}"
    if tap.state == "dense" or seen.assessment is None or seen.shares.requests < _FEWEST:
        return ""
    unseen = seen.assessment.sight.reason.replace("_", " ")
    return f"requests finish, but their routing cannot be used: {unseen}" if unseen else ""


def _of_alarm(seen: ReplicaSnapshot, kind: str) -> tuple[str, str]:
    values = seen.open[kind]
    of_deployment = values["evidence"].get("verdict") in _OF_THE_DEPLOYMENT
    return "deployment" if of_deployment else alarms.named(kind).verdict, str(values["summary"])


def _of_baseline(seen: ReplicaSnapshot) -> tuple[str, str]:
    if seen.normal is None:
        return "learning", f"no baseline: learning ({seen.routed} requests with routing so far)"
    if seen.observation is None:
        return "idle", "no request has been judged against this baseline yet"
    return "healthy", f"requests are routed as in baseline {seen.normal.active.version}"
