"""The demo's acts, in order; each ends with what it claims, and the demo ends where a claim is not shown."""

from __future__ import annotations

import bisect
import time
from datetime import UTC, datetime

from rich.markup import escape

from demo import claims
from demo.faults import rotate_experts
from demo.sidecar import NO_ANSWER
from demo.stage import MODELS, WINDOW_S, Stage
from demo.traffic import mixture
from moe_watch.cli.tables import Prose

_LEARN = 900
_NORMAL = 300
_MIXED = 300
_UNSEEN_SHARE = 0.3
_FAULTY_LAYER = 2
_ROUNDS = 4  # healthy replays of the canaries behind their noise floor


def run(stage: Stage) -> None:
    """Learn, stay silent, flag unseen traffic, then flag a broken deployment, and write the report."""
    stage.title("1. Real servers: a Gemma 4 MoE with the tap, its dense sibling, and the sidecar")
    stage.start_servers()
    _learn(stage)
    _stay_silent(stage)
    start = _flag_traffic(stage)
    _flag_deployment(stage)
    _report(stage, start)


def _learn(stage: Stage) -> None:
    stage.title("2. Learn what normal routing is")
    stage.traffic("normal traffic", mixture(_LEARN, seed=1))
    claims.ended_well(stage.command("baseline", "fit", "--promote"))
    stage.until("the sidecar judges by the baseline", stage.sidecar.unpromoted)
    claims.ended_well(stage.command("canary", "record", "--rounds", str(_ROUNDS)))
    _settle_shadow(stage)


def _stay_silent(stage: Stage) -> None:
    stage.title("3. Normal traffic again: there is nothing to see")
    stage.traffic("normal traffic", mixture(_NORMAL, seed=2))
    _settle_shadow(stage)
    stage.until("the verdict is healthy", lambda: _unhealthy(stage))
    stage.console.print(f"  {_NORMAL} requests judged, no alarm.")


def _unhealthy(stage: Stage) -> str:
    """Say which verdict there is other than healthy; an alarm will not go by waiting."""
    replica = stage.look()
    claims.no_alarm(stage.alarms)
    if replica is None:
        return NO_ANSWER
    return "" if replica.verdict == "healthy" else f"it is {replica.verdict}: {replica.reason}"


def _flag_traffic(stage: Stage) -> float:
    """Return when the unseen traffic began."""
    stage.title(f"4. {_UNSEEN_SHARE:.0%} of the requests are now of kinds that the model has never seen")
    start = time.time()
    answered = stage.traffic("mixed traffic", mixture(_MIXED, seed=3, unseen_share=_UNSEEN_SHARE))
    replica = stage.seen()
    alarm = claims.flagged(replica.alarms, start, len(answered))
    after = min(bisect.bisect_right(answered, alarm.flagged_at) + 1, len(answered))
    stage.console.print(f"  [bold]Traffic drift flagged after {after} requests, {alarm.flagged_at - start:.0f} s:")
    stage.console.print(Prose(alarm.summary, 2), soft_wrap=True)
    suspects = claims.suspected(replica.suspects)
    stage.console.print("  Most unusual requests:")
    for suspect in suspects:
        stage.console.print(f"    {escape(suspect.request_id)}  p = {suspect.p:.4f}")
    claims.names_layers_and_experts(stage.command("explain", suspects[0].request_id))
    claims.traffic_alone(stage.command("canary", "run"))
    stage.console.print("  The canaries are routed as before: it is the traffic, not the deployment.")
    _settle_shadow(stage)
    return start


def _flag_deployment(stage: Stage) -> None:
    stage.title(f"5. A broken deployment: the experts of layer {_FAULTY_LAYER} are not where the router thinks")
    broken = rotate_experts(MODELS / "moe", stage.out / "broken-moe", _FAULTY_LAYER)
    stage.console.print("  vLLM starts again with the broken checkpoint, under the same name.")
    stage.start_moe(broken)
    claims.routing_at_fault(stage.command("canary", "run"), _FAULTY_LAYER)
    stage.until("the sidecar has the alarm of the routing", lambda: stage.sidecar.unalarmed("routing"))
    claims.alarm_told(stage.command("status"))


def _report(stage: Stage, start: float) -> None:
    stage.title("6. The evidence since the traffic changed, against the same time before it")
    stage.until("both alarms are in the store", lambda: stage.sidecar.unwritten("traffic", "routing"))
    since = datetime.fromtimestamp(start // WINDOW_S * WINDOW_S, UTC)
    folder = stage.out / "report"
    claims.reported(stage.command("report", "--since", f"{since:%Y-%m-%dT%H:%M:%S}", "--out", str(folder)), folder)
    stage.console.print("\n[bold]Everything that the demo claims was shown.")
    stage.console.print("Open the report's page; `make demo KEEP=1` leaves the servers running, with the live page.")


def _settle_shadow(stage: Stage) -> None:
    """Wait until the dense model has answered what it was given, so that each act is judged by its own requests."""
    stage.until("the dense model has answered the sampled requests", stage.sidecar.unanswered)
