"""Turns what ``bench/quality/run.py`` kept into numbers, and those into the tables of ``docs/quality.md``."""

from __future__ import annotations

import csv
import gzip
import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy.orm import Session

from bench import data
from bench.quality import harm, power
from moe_watch.detect.common import weighted_estimates
from moe_watch.detect.common.weighted_estimates import Estimate, Floats
from moe_watch.detect.quality import against_dense, gap_alarm
from moe_watch.detect.quality.against_dense import Observed
from moe_watch.ops import backtest
from moe_watch.shadow import signals
from moe_watch.shadow.trial import CLIP, Kind
from moe_watch.store import engine
from moe_watch.store.read import requests
from moe_watch.store.records import baselines, served_models, shadows

RUN_LENGTH = 10_000
ALPHA = 0.01
REFERENCE = 500
TOLERANCES: dict[Kind, float] = {"quality": 0.02, "garbled": 0.01}  # the settings' defaults
SAID = {
    "none": "nothing (control)",
    "experts_8_bits": "experts at 8 bits (control)",
    "experts_4_bits": "experts at 4 bits",
    "experts_2_bits": "experts at 2 bits",
    "one_expert_zeroed": "a dead expert (layer 1)",
    "upper_half_ignored": "half of the experts never chosen",
    "first_layer_rotated": "experts of the first layer rotated by one",
    "third_layer_rotated": "experts of layer 2 rotated by one",
    "last_layer_rotated": "experts of the last layer rotated by one",
    "two_experts_swapped": "two experts of layer 2 swapped",
    "not_renormalised": "weights of the top-k not renormalised",
    "equal_weights": "right experts, equal weights",
    "scale_lost": "experts of layer 2 four times too large",
    "shared_expert_lost": "the network beside layer 2's experts lost",
    "negative_logits": "negative logits: wrong experts",
    "nan_router": "NaN in the router of layer 2",
}


def load(folder: Path) -> tuple[dict[str, Observed], dict[str, Routed]]:
    """Return what the shadow found in the last stretch of each name, and what routing alone says of it."""
    stretches = [json.loads(line) for line in (folder / "stretches.jsonl").read_text().splitlines()]
    ends = [stretch["since"] for stretch in stretches[1:]] + [1e12]
    store = engine.connect(f"sqlite:///{folder}/moe-watch.db")
    active = baselines.active(store)
    model = next((one for one in served_models.by_name(store, None) if one.identity in active), None)
    fitted = None if model is None else baselines.load(store, active[model.identity].id)
    found, routed = {}, {}
    with Session(store) as session:
        for stretch, end in zip(stretches, ends, strict=True):
            found[stretch["name"]] = shadows.observed(session, stretch["since"], end)
            if model is not None and fitted is not None and stretch["name"] != "learned":
                parts = requests.fingerprints(store, model, stretch["since"], end, replica="bench")
                stream = (backtest.Recorded(part.batch, list(part.request_ids)) for part in parts)
                routed[stretch["name"]] = _routed(backtest.run("bench", stream, fitted, RUN_LENGTH, ALPHA))
    return found, routed


@dataclass(frozen=True)
class Routed:
    """What routing says of a stretch: requests, how many are out of distribution, and after how many is an alarm."""

    requests: int
    unusual: int
    alarm: int | None


def _routed(outcome: backtest.Outcome) -> Routed:
    return Routed(outcome.requests, outcome.unusual, outcome.fired[0].request + 1 if outcome.fired else None)


def healthy() -> dict[str, dict[str, Any]]:
    """Return how many texts of people each signal calls a defect, by source."""
    found = {}
    for name, texts in {
        "grade-school maths": _maths(),
        "Python functions": _code(),
        "mixed": _mixed(),
    }.items():
        kinds: Counter[str] = Counter()
        count = 0
        for prompt, answer in texts:
            count += 1
            kinds.update(signals.defects(answer, prompt=prompt))
        found[name] = {"texts": count, "defects": dict(kinds)}
    return found


def _maths() -> Iterator[tuple[str, str]]:
    for line in data.path("prompts/gsm8k_test.jsonl").read_text().splitlines():
        record = json.loads(line)
        yield record["question"], record["answer"]


def _code() -> Iterator[tuple[str, str]]:
    with gzip.open(data.path("prompts/HumanEval.jsonl.gz"), "rt") as file:
        for line in file:
            record = json.loads(line)
            yield record["prompt"], record["canonical_solution"]


def _mixed() -> Iterator[tuple[str, str]]:
    for line in data.path("prompts/selfinstruct_seed_tasks.jsonl").read_text().splitlines():
        record = json.loads(line)
        for instance in record["instances"]:
            yield f"{record['instruction']}\n{instance['input']}", instance["output"]
    with data.path("prompts/sqleval_questions_gen_postgres.csv").open() as file:
        for row in csv.DictReader(file):
            yield row["question"], row["query"]


def delay(learned: Observed, seen: Observed, kind: Kind) -> int | None:
    """Return the scored requests from a fault's start to the alarm of ``kind``; None where it stays silent."""
    low, high = CLIP[kind]
    old, new = (x.gap if kind == "quality" else x.garbled for x in (learned, seen))
    known = gap_alarm.reference(
        old[:REFERENCE], learned.weight[:REFERENCE], low=low, high=high, tolerance=TOLERANCES[kind]
    )
    _, alarms = gap_alarm.observe(known, gap_alarm.start(RUN_LENGTH), new, seen.weight)
    return alarms[0].at + 1 if alarms else None


def numbers(folders: Sequence[Path]) -> dict[str, Any]:
    """Return everything that the tables say; of a stretch that several folders have the first one's counts."""
    found: dict[str, Observed] = {}
    beside: dict[str, Routed] = {}
    for folder in reversed(folders):
        if (folder / "stretches.jsonl").exists():
            seen, routed = load(folder)
            found, beside = found | seen, beside | routed
    kept = {name: folders[0] / f"{name}.json" for name in ("healthy", "harm")}
    said: dict[str, Any] = {"average_run_length": RUN_LENGTH, "reference_requests": REFERENCE}
    if "learned" in found:
        said["normal"] = {name: _triple(e) for name, e in _by_domain(found["learned"]).items()}
        said["power"] = power.power(found["learned"].gap, REFERENCE, RUN_LENGTH, TOLERANCES["quality"])
    if "mixed" in found:
        said["ood"] = _curve(found["mixed"])
    faults = {
        fault: _fault(found["learned"], found[f"fault:{fault}"], beside[f"fault:{fault}"])
        for fault in SAID
        if f"fault:{fault}" in found
    }
    return said | {"faults": faults} | {n: json.loads(f.read_text()) for n, f in kept.items() if f.exists()}


def _by_domain(seen: Observed) -> dict[str, Estimate]:
    return {"all": weighted_estimates.mean(seen.gap, seen.weight)} | against_dense.review(seen).by_group["domain"]


def _curve(seen: Observed) -> dict[str, Any]:
    mixed = against_dense.review(seen)
    return {
        "deciles": [_triple(e) for e in mixed.curve.deciles],
        "monotone": mixed.curve.monotone,
        "trend": {"rise": mixed.trend.rise, "lower": mixed.trend.lower, "upper": mixed.trend.upper, "p": mixed.trend.p},
        "garbled_deciles": [_triple(e) for e in mixed.garbled_by_decile],
        "domains": {name: _triple(e) for name, e in mixed.by_group["domain"].items()},
    }


def _fault(learned: Observed, seen: Observed, routed: Routed) -> dict[str, Any]:
    compared = against_dense.compare(learned, seen, tolerance=TOLERANCES["quality"])
    return {
        "requests": len(seen.at),
        "gap": _triple(weighted_estimates.mean(seen.gap, seen.weight)),
        "effect": _triple(compared.effect),
        "cause": compared.cause,
        "alarm_quality": delay(learned, seen, "quality"),
        "alarm_garbled": delay(learned, seen, "garbled"),
        "garbled": _triple(weighted_estimates.share(seen.garbled, seen.sample_weight)),
        "defects": {kind: float(np.nanmean(flags)) for kind, flags in seen.defects.items()},
        "top1": _triple(weighted_estimates.mean(seen.top1, seen.weight)),
        "top1_change": _change(learned.top1, seen.top1),
        "ood_rate": routed.unusual / max(routed.requests, 1),
        "alarm_routing": routed.alarm,
    }


def _change(before: Floats, after: Floats) -> list[float | None]:
    """Return the change of a mean with its interval."""
    old, new = (weighted_estimates.mean(values, np.ones(len(values))) for values in (before, after))
    half = math.hypot(old.upper - old.value, new.upper - new.value)
    value = new.value - old.value
    known = [x if math.isfinite(x) else None for x in (value, value - half, value + half)]
    return [*known, new.requests]


def _triple(estimate: Estimate) -> list[float | None]:
    return [x if math.isfinite(x) else None for x in (estimate.value, estimate.lower, estimate.upper)] + [
        estimate.requests
    ]


def write(folders: Sequence[Path], results: Path, document: Path) -> None:
    """Write the numbers, and the tables between the marks of ``document``."""
    said = numbers(folders)
    results.parent.mkdir(exist_ok=True)
    results.write_text(json.dumps(said, indent=1) + "\n")
    text = document.read_text()
    for mark, make in (
        ("normal", _normal),
        ("power", power.table),
        ("ood", _ood),
        ("faults", _faults),
        ("harm", harm.table),
        ("healthy", _healthy),
    ):
        if not said.get(mark):
            continue  # not measured: what the document says stays
        start, end = f"<!-- {mark} -->\n", f"<!-- end {mark} -->"
        before, rest = text.split(start)
        text = f"{before}{start}{make(said[mark])}{end}{rest.split(end, 1)[1]}"
    document.write_text(text)


def _normal(domains: dict[str, Any]) -> str:
    lines = ["| domain | requests | gap, nats per token |", "| --- | --- | --- |"]
    lines += [f"| {name} | {row[3]} | {_said(row)} |" for name, row in domains.items()]
    return "\n".join(lines) + "\n"


def _ood(curve: dict[str, Any]) -> str:
    lines = ["| decile of the OOD score | requests | gap, nats per token | garbled |", "| --- | --- | --- | --- |"]
    for k, (row, garbled) in enumerate(zip(curve["deciles"], curve["garbled_deciles"], strict=True), 1):
        lines.append(f"| {k} | {row[3]} | {_said(row)} | {_share(garbled)} |")
    trend = curve["trend"]
    lines += ["", f"Rise from the most ordinary to the most unusual request: {trend['rise']:+.2f} nats per token "]
    lines[-1] += f"({trend['lower']:+.2f} to {trend['upper']:+.2f}, one-sided p = {trend['p']:.1g})."
    return "\n".join(lines) + "\n"


def _faults(faults: dict[str, Any]) -> str:
    lines = [
        (
            "| fault | gap, nats per token | MoE's own change | garbled | dense model's first choice, change "
            "| routing alarm | QualityGap | GarbledOutput | caught by |"
        ),
        "| " + " | ".join(["---"] * 9) + " |",
    ]
    for name, row in faults.items():
        after = [f"after {row[key]}" if row[key] else "-" for key in ALARMS]
        choices = (
            "-"
            if row["top1_change"][0] is None
            else "{:+.1f} points ({:+.1f} to {:+.1f})".format(*(100 * x for x in row["top1_change"][:3]))
        )
        lines.append(
            f"| {SAID[name]} | {_said(row['gap'])} | {_said(row['effect'])} | {_share(row['garbled'])} "
            f"| {choices} | {' | '.join(after)} | {_caught(row)} |"
        )
    return "\n".join(lines) + "\n"


ALARMS = ("alarm_routing", "alarm_quality", "alarm_garbled")


def _caught(row: dict[str, Any]) -> str:
    """Name the signals that saw the fault: alarms, and what the report would blame the MoE for."""
    names = {"alarm_routing": "routing", "alarm_quality": "QualityGap", "alarm_garbled": "GarbledOutput"}
    found = [name for key, name in names.items() if row[key]]
    found += ["gap in the report"] if row["cause"] in {"moe", "both"} else []
    found += ["first choice"] if (row["top1_change"][2] or 0) < 0 else []
    return ", ".join(found) or "nothing"


def _healthy(sources: dict[str, Any]) -> str:
    lines = ["| texts written by people | texts | called a defect |", "| --- | --- | --- |"]
    for name, row in sources.items():
        kinds = ", ".join(f"{kind} {count}" for kind, count in row["defects"].items()) or "none"
        lines.append(f"| {name} | {row['texts']} | {kinds} |")
    return "\n".join(lines) + "\n"


def _said(row: list[Any]) -> str:
    return "-" if row[0] is None else f"{row[0]:+.3f} ({row[1]:+.3f} to {row[2]:+.3f})"


def _share(row: list[Any]) -> str:
    return "-" if row[0] is None else f"{row[0]:.1%} ({row[1]:.1%} to {row[2]:.1%})"
