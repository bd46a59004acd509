"""The verdict on one replica, in one word and one sentence. Without data nothing is ever called healthy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from moe_watch.watch import Watch

_FEWEST: Final = 20  # finished requests before missing routing counts as blindness
_OF_EPISODE: Final = {
    "routing": "routing",
    "quality": "quality",
    "garbled": "quality",
    "replica": "deployment",
    "traffic": "traffic",
    "dead_experts": "deployment",  # after traffic: when a whole domain leaves, its experts fall silent as well
}  # worst first

_OF_THE_DEPLOYMENT: Final = frozenset({"weights", "deployment"})  # what canaries find besides routing


def decide(watch: Watch, now: float) -> tuple[str, str]:
    """Return one of ``metrics.VERDICTS`` and the reason for it."""
    up, state, why = watch.heard.tap(now)
    if state == "dense":
        return "idle", "a dense model has no experts to watch"
    if not up and state != "unknown":
        return "blind", why or f"the tap is {state}"
    blind = _blind(watch)
    if blind:
        return "blind", f"requests finish, but their routing cannot be used: {blind}"
    return _of_alarms(watch) or _of_baseline(watch)


def _blind(watch: Watch) -> str:
    if watch.assessment is None or len(watch.recent.flags) < _FEWEST:
        return ""
    return watch.assessment.sight.reason.replace("_", " ")


def _of_alarms(watch: Watch) -> tuple[str, str] | None:
    for kind, verdict in _OF_EPISODE.items():
        episode = watch.open.get(kind)
        if episode is not None:
            found = episode.values["evidence"].get("verdict", verdict)
            return "deployment" if found in _OF_THE_DEPLOYMENT else verdict, str(episode.values["summary"])
    return None


def _of_baseline(watch: Watch) -> tuple[str, str]:
    if watch.normal is None:
        return "learning", f"no baseline: learning ({watch.routed} requests with routing so far)"
    if watch.observation is None:
        return "idle", "no request has been judged against this baseline yet"
    return "healthy", f"requests are routed as in baseline {watch.normal.active.version}"
