"""What the demo claims of what it saw: each function raises ``NotShown`` unless it is so."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from demo.waiting import NotShown, claim
from moe_watch.domain.status import Alarm, Suspect

_LAYER = re.compile(r"\blayer\s+\d+")
_EXPERT = re.compile(r"\bexpert\s+\d+")
_FORMATS = (".html", ".md", ".json")


@dataclass(frozen=True)
class Said:
    """What a command printed, without colours, and its exit code."""

    command: str
    code: int
    text: str

    def __str__(self) -> str:
        """Say it in one line, the end of long texts only."""
        last = self.text.strip().splitlines()[-1:] or ["nothing"]
        return f"`moe-watch {self.command}` ended with code {self.code} and said: {last[0][-300:]}"


def ended_well(said: Said) -> None:
    """Claim that a command did what it was asked for."""
    claim(f"`moe-watch {said.command}` ends with code 0", str(said), true=said.code == 0)


def no_alarm(summaries: Sequence[str]) -> None:
    """Claim that normal traffic raised no alarm."""
    claim("no alarm on normal traffic", "; ".join(summaries), true=not summaries)


def flagged(alarms: Iterable[Alarm], start: float, sent: int) -> Alarm:
    """Claim that the unseen traffic was flagged as what it is; return that alarm."""
    found = [alarm for alarm in alarms if alarm.kind == "traffic" and alarm.flagged_at >= start]
    if not found:
        seen = ", ".join(alarm.kind for alarm in alarms) or "none"
        raise NotShown(
            f"traffic drift is flagged within {sent} requests", f"all of them are judged, open alarms: {seen}"
        )
    return found[0]


def suspected(suspects: Sequence[Suspect], most: int = 5) -> list[Suspect]:
    """Claim that some requests were unusual; return the most unusual ones."""
    claim("some requests are named as unusual", "none is", true=bool(suspects))
    return sorted(suspects, key=lambda suspect: suspect.p)[:most]


def names_layers_and_experts(said: Said) -> None:
    """Claim that an explanation says in which layers and experts a request is unusual."""
    ended_well(said)
    named = _LAYER.search(said.text) and _EXPERT.search(said.text)
    claim(f"`moe-watch {said.command}` names layers and experts", str(said), true=bool(named))


def traffic_alone(said: Said) -> None:
    """Claim that the canaries are routed as before, so the deployment is not at fault."""
    same = said.code == 0 and said.text.startswith(("healthy:", "benign:"))
    claim("the canaries are routed as before: it is the traffic", str(said), true=same)


def routing_at_fault(said: Said, layer: int) -> None:
    """Claim that the canaries call the deployment broken, in its routing, and name ``layer``."""
    named = re.search(rf"\blayer\s+{layer}\b", said.text)
    called = said.code == 2 and said.text.startswith("routing:") and named
    claim(f"the canaries call it routing, and name layer {layer}", str(said), true=bool(called))


def alarm_told(said: Said) -> None:
    """Claim that the sidecar's own verdict on the deployment is routing."""
    told = said.code == 2 and re.search(r"\bverdict\s+routing\b", said.text)
    claim("`moe-watch status` has the verdict routing and ends with code 2", str(said), true=bool(told))


def reported(said: Said, folder: Path) -> None:
    """Claim that the report was written in every format, with the alarm of the traffic and that of the deployment."""
    ended_well(said)
    written = {path.suffix: path for path in folder.glob("moe-watch-*")}
    names = ", ".join(sorted(path.name for path in written.values())) or "nothing"
    claim(f"{folder} has the report in {', '.join(_FORMATS)}", names, true=set(_FORMATS) <= set(written))
    kinds = alarms_in(json.loads(written[".json"].read_text(encoding="utf-8")))
    seen = ", ".join(sorted(kinds)) or "none"
    claim(
        "the report has the alarms of kind traffic and routing", f"it has {seen}", true={"traffic", "routing"} <= kinds
    )


def alarms_in(report: dict[str, list[dict[str, dict[str, list[dict[str, str]]]]]]) -> set[str]:
    """Return the kinds of the alarms in a report as JSON."""
    return {drift["kind"] for model in report["models"] for drift in model["timeline"]["alarms"]}
