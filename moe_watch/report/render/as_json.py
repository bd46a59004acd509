"""The report for machines: the whole tree with its verdicts, in one document."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import Any, Final

from moe_watch.domain import amounts
from moe_watch.report.data.review import Report, Review
from moe_watch.report.say import verdict

SCHEMA: Final = 1  # raised when the meaning of a field changes


def render(report: Report) -> str:
    """Return the report as JSON; what is not known is null, a section without data has ``why`` and ``remedy``."""
    document = {
        "schema": SCHEMA,
        "version": report.version,
        "made_at": amounts.stamp(report.made_at),
        "since": amounts.stamp(report.period.since),
        "until": amounts.stamp(report.period.until),
        "models": [_model(review) for review in report.reviews],
    }
    return json.dumps(plain(document), ensure_ascii=False, allow_nan=False, indent=1) + "\n"


def _model(review: Review) -> dict[str, Any]:
    """Return what is known of one model; alarms under their former names as well, for one version."""
    found = asdict(review)
    for section in filter(None, (found["timeline"], found["totals"], found["previous"])):
        section["drifts"] = section["alarms"]
    if "alarm" in found["change"]:
        found["change"]["drift"] = found["change"]["alarm"]
    return {"verdict": asdict(verdict.verdict(review)), **found}


def plain(value: Any) -> Any:
    """Return ``value`` as JSON knows it: no nan, no tuples, no lone surrogates."""
    if isinstance(value, dict):
        return {plain(str(key)): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value
