"""The verdict on one replica, in one word and one sentence. Without data nothing is ever called healthy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from moe_watch import alarms

if TYPE_CHECKING:
    from moe_watch.sidecar.monitor.replica_monitor import Watch

_FEWEST: Final = 20  # finished requests before missing routing counts as blindness
_OF_THE_DEPLOYMENT: Final = frozenset({"weights", "deployment"})  # what canaries find besides routing


def decide(watch: Watch, now: float) -> tuple[str, str]:
    """Return one of ``metrics.VERDICTS`` and the reason for it."""
    if watch.heard.tap(now)[1] == "dense":
        return "idle", "a dense model has no experts to watch"
    reason = blindness(watch, now)
    wrong = {*watch.open, "blind"} if reason else {*watch.open} - {"blind"}
    worst = min(wrong, key=lambda kind: (alarms.rank(kind), kind), default=None)
    if worst is None:
        return _of_baseline(watch)
    return ("blind", reason) if worst == "blind" else _of_alarm(watch, worst)


def blindness(watch: Watch, now: float) -> str:
    """Return why nothing can be said of the routing now; empty where it is seen, or nothing is to be seen."""
    up, state, why = watch.heard.tap(now)
    if not up and state not in {"unknown", "dense"}:
        return why or f"the tap is {state}"
    if state == "dense" or watch.assessment is None or len(watch.recent.flags) < _FEWEST:
        return ""
    unseen = watch.assessment.sight.reason.replace("_", " ")
    return f"requests finish, but their routing cannot be used: {unseen}" if unseen else ""


def _of_alarm(watch: Watch, kind: str) -> tuple[str, str]:
    values = watch.open[kind].values
    of_deployment = values["evidence"].get("verdict") in _OF_THE_DEPLOYMENT
    return "deployment" if of_deployment else alarms.named(kind).verdict, str(values["summary"])


def _of_baseline(watch: Watch) -> tuple[str, str]:
    if watch.normal is None:
        return "learning", f"no baseline: learning ({watch.routed} requests with routing so far)"
    if watch.observation is None:
        return "idle", "no request has been judged against this baseline yet"
    return "healthy", f"requests are routed as in baseline {watch.normal.active.version}"
