"""Sections that say what happened: drifts, events, baselines, canaries."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from itertools import pairwise
from typing import Any, Final

from sqlalchemy import Engine

from moe_watch.domain import amounts
from moe_watch.report.data.review import BaselineFacts, Served
from moe_watch.report.data.sections import Alarm, Canaries, Mark, Replay
from moe_watch.report.data.types import Missing, Period
from moe_watch.store import schema
from moe_watch.store.read import report_queries as store
from moe_watch.store.records import alarms as stored_alarms
from moe_watch.store.records import baselines, events, served_models
from moe_watch.store.records import canaries as checks

_FACTS: Final = {
    "vllm_version": "vLLM",
    "architecture": "architecture",
    "revision": "revision",
    "weights": "weights",
    "quantization": "quantisation",
    "moe_backend": "MoE kernels",
    "dtype": "type",
    "runner": "model runner",
    "tap_version": "tap",
}
_WORDS: Final = {
    "engine_start": "vLLM started",
    "eplb_rebalance": "experts rebalanced",
    "tap_off": "the tap switched itself off",
    "tap_refused": "the tap refused to attach",
    "tap_blind": "the tap saw no routing",
    "baseline_promoted": "baseline promoted",
    "model_changed": "another configuration was served",
}
_MOST_CHECKS: Final = 10_000


def served(row: schema.Model | store.AnyRow) -> Served:
    """Return the model of a row of ``models``."""
    detail: dict[str, Any] = row.detail or {}
    ids = detail.get("layer_ids") or []
    layer_ids = tuple(int(i) for i in ids) if len(ids) == row.layers else tuple(range(row.layers))
    facts = {word: str(detail[key]) for key, word in _FACTS.items() if detail.get(key)}
    facts |= {f"{name} ranks": str(n) for name, n in (detail.get("parallel") or {}).items() if n and n > 1}
    return Served(row.name, row.identity, row.layers, row.experts, row.top_k, layer_ids, row.first_seen, facts)


def differences(before: Served, after: Served) -> list[str]:
    """Return what two configurations of one model differ in: "vLLM 0.32.0 instead of 0.31.2"."""
    shape = [("layers", before.layers, after.layers), ("experts", before.experts, after.experts)]
    shape += [("top-k", before.top_k, after.top_k)]
    facts = [(name, before.facts.get(name, ""), after.facts.get(name, "")) for name in after.facts]
    return [f"{name} {new} instead of {old or 'unknown'}" for name, old, new in [*facts, *shape] if old != new]


def alarms(engine: Engine, model_id: int, period: Period) -> tuple[Alarm, ...]:
    """Return the alarms that were open in the period, the oldest first."""
    found = stored_alarms.between(engine, period.since, period.until, model_id)
    return tuple(alarm(row) for row in reversed(found))


def alarm(row: schema.Alarm) -> Alarm:
    """Return one alarm."""
    layer = row.evidence.get("layer")
    return Alarm(
        id=row.id,
        kind=row.kind,
        replica=row.replica,
        began_at=row.began_at,
        flagged_at=row.flagged_at,
        ended_at=row.ended_at,
        summary=row.summary,
        channel=str(row.evidence.get("channel", "")),
        layer=layer if isinstance(layer, int) else None,
        ending=row.ending,
    )


def marks(engine: Engine, row: store.AnyRow, replicas: Collection[str], period: Period) -> tuple[Mark, ...]:
    """Return what may explain a change of the model ``row``, in order of time."""
    seen = events.between(engine, period.since, period.until, row.id)
    own = [e for e in seen if e.model_id is not None or not e.replica or e.replica in replicas]
    found = [mark(e) for e in own]
    return tuple(sorted([*found, *_configurations(engine, row.name, period)], key=lambda one: one.at))


def mark(event: schema.Event) -> Mark:
    """Return one event."""
    return _mark(event.at, event.kind, event.detail, event.replica)


def baseline(engine: Engine, row: store.AnyRow) -> tuple[int | None, BaselineFacts | Missing]:
    """Return key and facts of the active baseline of the model ``row``."""
    model = served_models.by_name(engine, row.name)
    own = next((one for one in model if one.id == row.id), None)
    known = [found for found, _ in baselines.listed(engine, own)] if own is not None else []
    active = next((found for found in known if found.active), None)
    if active is not None:
        facts = BaselineFacts(active.version, active.promoted_at, active.created_at, active.requests, active.note)
        return active.id, facts
    if known:
        return None, Missing(
            f"This model has {amounts.plural(len(known), 'baseline')}, but none is active.",
            f"Choose one: moe-watch baseline promote {known[0].version}.",
        )
    return None, Missing(
        "This model has no baseline, so nothing says what normal routing is.",
        "Fit one on traffic that you trust: moe-watch baseline fit, then moe-watch baseline promote.",
    )


def canaries(engine: Engine, row: store.AnyRow, period: Period) -> Canaries | Missing:
    """Return the checks of the canaries of the model ``row`` in the period.

    Neither rounds of a reference, earlier ones included, nor comparisons with transformers say anything of a change.
    """
    runs = checks.runs(engine, row.name, verdicts=checks.CHECKED, kind="vllm", since=period.since, limit=_MOST_CHECKS)
    own = [run for run in runs if run.model_id == row.id and run.at < period.until]
    if not own:
        return Missing(
            "No canary was replayed, so a change of traffic cannot be told from a change of the model with certainty.",
            "moe-watch canary record, once on a healthy server; then moe-watch canary run after every change.",
        )
    found = [Replay(run.at, run.load, run.verdict, run.first_layer, run.summary) for run in own]
    return Canaries(tuple(found), dict(Counter(replay.verdict for replay in found)))


def _mark(at: float, kind: str, detail: str, replica: str) -> Mark:
    words = _WORDS.get(kind, kind.replace("_", " "))
    return Mark(at, kind, f"{words}: {detail}" if detail else words, replica)


def _configurations(engine: Engine, name: str, period: Period) -> list[Mark]:
    """Return when the model of this name was first seen in another configuration."""
    known = [served(row) for row in reversed(served_models.by_name(engine, name))]
    found = []
    for before, after in pairwise(known):
        if period.since <= after.first_seen < period.until:
            text = amounts.joined(differences(before, after)) or "of another identity"
            found.append(_mark(after.first_seen, "model_changed", text, ""))
    return found
