"""The demo's acts, in order."""

from __future__ import annotations

import bisect
import time
from datetime import UTC, datetime

from moe_watch.demo.faults import rotate_experts
from moe_watch.demo.stage import MODELS, WINDOW_S, Stage
from moe_watch.demo.traffic import mixture

_LEARN = 900
_NORMAL = 300
_MIXED = 300
_UNSEEN_SHARE = 0.3
_FAULTY_LAYER = 2
_JUDGED = (0, 2)  # 2: something is wrong with the model or the deployment
_ROUNDS = 4  # healthy replays of the canaries behind their noise floor


def run(stage: Stage) -> None:
    """Learn, stay silent, flag unseen traffic, then flag a broken deployment, and write the report."""
    stage.title("1. Real servers: a Gemma 4 MoE with the tap, its dense sibling, and the sidecar")
    stage.start_servers()

    stage.title("2. Learn what normal routing is")
    stage.traffic("normal traffic", mixture(_LEARN, seed=1))
    stage.command("baseline", "fit", "--promote")
    stage.command("canary", "record", "--rounds", str(_ROUNDS))

    stage.title("3. Normal traffic again: there is nothing to see")
    stage.traffic("normal traffic", mixture(_NORMAL, seed=2))
    flagged = stage.open_episode("traffic")
    verdict = "no alarm" if flagged is None else "[red]a false alarm[/red]"
    stage.console.print(f"  {_NORMAL} requests, {verdict}.")
    stage.settle_shadow()

    stage.title(f"4. {_UNSEEN_SHARE:.0%} of the requests are now of kinds that the model has never seen")
    start = time.time()
    answered = stage.traffic("mixed traffic", mixture(_MIXED, seed=3, unseen_share=_UNSEEN_SHARE))
    _say_when(stage, start, answered)
    _say_suspects(stage)
    stage.command("canary", "run", may_exit=_JUDGED)
    stage.settle_shadow()

    stage.title(f"5. A broken deployment: the experts of layer {_FAULTY_LAYER} are not where the router thinks")
    broken = rotate_experts(MODELS / "moe", stage.out / "broken-moe", _FAULTY_LAYER)
    with stage.console.status("Restarting vLLM with the broken checkpoint under the same name …"):
        stage.start_moe(broken)
    stage.command("canary", "run", may_exit=_JUDGED)
    stage.command("status", may_exit=_JUDGED)

    stage.title("6. The evidence: since the traffic changed, against the same stretch of time before")
    since = datetime.fromtimestamp(start // WINDOW_S * WINDOW_S, UTC)
    stage.command("report", "--since", f"{since:%Y-%m-%dT%H:%M:%S}", "--out", str(stage.out / "report"))


def _say_when(stage: Stage, start: float, answered: list[float]) -> None:
    flagged = stage.open_episode("traffic")
    if flagged is None or flagged < start:
        stage.console.print(f"  [red]Not flagged within {len(answered)} requests.")
        return
    after = bisect.bisect_right(answered, flagged) + 1
    stage.console.print(f"  [bold]Traffic drift flagged after {after} requests, {flagged - start:.0f} s.")


def _say_suspects(stage: Stage, most: int = 5) -> None:
    replica = stage.status()
    suspects = sorted(replica.suspects, key=lambda suspect: suspect.p)[:most] if replica else []
    if not suspects:
        return
    stage.console.print("  Most suspicious requests:")
    for suspect in suspects:
        stage.console.print(f"    {suspect.request_id}  p = {suspect.p:.4f}")
    stage.command("explain", suspects[0].request_id)
