"""A quality alarm in words, with the control group's say: did the dense model find the traffic harder too."""

from __future__ import annotations

import math
from typing import Any

from moe_watch.detect.common.weighted_estimates import Estimate
from moe_watch.detect.quality import against_dense
from moe_watch.detect.quality.against_dense import Observed
from moe_watch.detect.quality.difference_in_differences import Cause
from moe_watch.shadow.trial import Trial

_CONTROL: dict[Cause, str] = {
    "moe": "the dense model's own outputs did not change",
    "both": "the traffic got harder for the dense model too, and the MoE lost more",
    "traffic": "the dense model finds the traffic harder as well",
    "none": "the MoE did not change more than the dense model",
    "unknown": "there is no dense model to compare with",
}


def alarm(trial: Trial, before: Observed, after: Observed, where: str) -> tuple[str, dict[str, Any]]:
    """Return one line for a pager and the evidence behind it, from the requests before and since the change."""
    old, new = against_dense.review(before), against_dense.review(after)
    compared = against_dense.compare(before, after)
    if trial.kind == "quality":
        what = f"the quality gap is {said(new.gap)} nats per token, it was {said(old.gap)}"
    else:
        kinds = [kind for kind in against_dense.GARBLED if kind in new.defects]
        worst = sorted(kinds, key=lambda kind: -new.defects[kind].value)
        what = f"{said(new.garbled, percent=True)} of outputs are garbled, it was {said(old.garbled, percent=True)}"
        what += f" (mostly {worst[0]})" if worst else ""
    evidence = {
        "cause": compared.cause,
        "effect_nats": _triple(compared.effect),
        "moe_change_nats": _triple(compared.moe),
        "dense_change_nats": _triple(compared.dense),
        "gap_nats": _triple(new.gap),
        "garbled_ratio": _triple(new.garbled),
        "reference_mean_upper": trial.known.mean_upper if trial.known else None,
        "average_run_length": trial.run_length,
    }
    return f"{where}: {what}; {_CONTROL[compared.cause]}", evidence


def said(estimate: Estimate, *, percent: bool = False) -> str:
    """Return an estimate with its interval, or "unknown"."""
    if not estimate:
        return "unknown"
    form = "{:.1%}" if percent else "{:+.3f}"
    return f"{form} ({form} to {form})".format(estimate.value, estimate.lower, estimate.upper)


def _triple(estimate: Estimate) -> list[float] | None:
    return [estimate.value, estimate.lower, estimate.upper] if math.isfinite(estimate.value) else None
