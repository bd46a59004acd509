"""From what the stages found to the scorecard: right or wrong, and how many canaries it takes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from faults.catalogue import HARMLESS, INJECTED, RESTARTS, Restart, Row
from moe_watch.detect.canary import FAULTS, judge
from moe_watch.detect.replay import Replay, Round
from moe_watch.store import canaries, engine

KINDS = ("quiet", "noisy")
SIZES = (10, 20, 40, 70, 106)
START, END = "<!-- scorecard: python bench/incidents.py table -->", "<!-- end of scorecard -->"
Found = dict[str, Any]


def write(out: Path, results: Path, document: Path) -> None:
    """Score what is under ``out``; write the JSON and replace the table in the document."""
    scored: dict[str, Any] = {"faults": {}, "restarts": _restarts(out), "healthy": _healthy(out)}
    for kind in KINDS:
        found = _latest(out / f"faults_{kind}.jsonl")
        rows = [row for row in INJECTED if row.fault in found]
        scored["faults"][kind] = {row.fault: _score(row, found[row.fault], out / kind) for row in rows}
    results.parent.mkdir(exist_ok=True)
    results.write_text(json.dumps(scored, indent=1) + "\n")
    text = document.read_text(encoding="utf-8")
    before, _, rest = text.partition(START)
    after = rest.partition(END)[2]
    document.write_text(f"{before}{START}\n{_tables(scored)}\n{END}{after}", encoding="utf-8")
    print(_tables(scored))


def _latest(path: Path) -> dict[str, Found]:
    """Return the last result of each name."""
    if not path.exists():
        return {}
    return {found["name"]: found for found in map(json.loads, path.read_text().splitlines())}


def _score(row: Row | Restart, found: Found, work: Path | None) -> Found:
    right = found["verdict"] in row.accept
    layer_right = found["first_layer"] == row.first_layer if set(row.accept) & {"routing"} else None
    needed = _needed(work, found["run"], row.accept) if work is not None and right else None
    return {
        **found,
        "incident": row.incident,
        "how": row.how,
        "accept": list(row.accept),
        "flagged": found["verdict"] in FAULTS | {"blind"},
        "right": right,
        "expected_layer": row.first_layer,
        "layer_right": layer_right,
        "prompts_needed": needed,
    }


def _needed(work: Path, run: int, accept: Sequence[str]) -> int | None:
    """Return the fewest prompts, of those tried, from which on every larger set gives the right verdict."""
    store = engine.connect(f"sqlite:///{work}/moe-watch.db")
    known = {row.id: row for row in canaries.runs(store, limit=1000)}
    reference = [canaries.round_of(store, i) for i, row in sorted(known.items()) if row.reference]
    new = canaries.round_of(store, run)
    order = np.random.default_rng(0).permutation(new.shape[0])
    fewest = None
    for size in reversed(SIZES):
        chosen = np.sort(order[:size])
        if judge([_part(r, chosen) for r in reference], _part(new, chosen)).verdict not in accept:
            break
        fewest = size
    return fewest


def _part(round_: Round, chosen: np.ndarray) -> Round:
    return Round(
        tuple(
            Replay(load=r.load, top_k=r.top_k, **{name: value[chosen] for name, value in r.arrays().items()})
            for r in round_.replays
        )
    )


def _restarts(out: Path) -> dict[str, Found]:
    found = _latest(out / "restarts.jsonl")
    return {row.name: _score(row, found[row.name], None) for row in RESTARTS if row.name in found}


def _healthy(out: Path) -> dict[str, Found]:
    """Return how many healthy rounds there were and which verdicts they got."""
    counted = {}
    for kind in KINDS:
        path = out / f"healthy_{kind}.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        moved = sum(row["effect"] > 1 for row in rows)
        flagged = sum(row["verdict"] not in HARMLESS for row in rows)
        counted[kind] = {"rounds": len(rows), "moved": moved, "flagged": flagged}
        if rows:
            counted[kind]["resampled"] = _resampled(out / kind)
    return counted


def _resampled(work: Path, times: int = 500) -> Found:
    """Judge each round drawn at random against eight others, as often as ``times``."""
    store = engine.connect(f"sqlite:///{work}/moe-watch.db")
    rows = [row for row in canaries.runs(store, limit=2000) if row.verdict in ("", "healthy") and row.engine == "vllm"]
    rounds = [canaries.round_of(store, row.id) for row in rows]
    random = np.random.default_rng(0)
    moved = flagged = 0
    for seed in range(times):
        drawn = random.permutation(len(rounds))[:9]
        judged = judge([rounds[i] for i in drawn[:8]], rounds[drawn[8]], seed=seed)
        moved += judged.effect > 1
        flagged += judged.verdict not in HARMLESS
    return {"pool": len(rounds), "times": times, "moved": int(moved), "flagged": int(flagged)}


def _tables(scored: dict[str, Any]) -> str:
    lines = [
        "| incident | the fault here | expected | quiet: verdict, layer, prompts | noisy: verdict, layer, prompts |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in INJECTED:
        cells = [_cell(scored["faults"][kind].get(row.fault)) for kind in KINDS]
        expected = " or ".join(row.accept) + ("" if row.first_layer is None else f", layer {row.first_layer}")
        lines.append(f"| {row.incident} | {row.how} | {expected} | {' | '.join(cells)} |")
    lines += ["", "| restart | what changed | expected | verdict |", "| --- | --- | --- | --- |"]
    for row in RESTARTS:
        if found := scored["restarts"].get(row.name):
            lines.append(f"| {row.name} | {row.how} | {' or '.join(row.accept)} | {_cell(found)} |")
    lines += ["", *_totals(scored)]
    return "\n".join(lines)


def _cell(found: Found | None) -> str:
    if found is None:
        return "not run"
    mark = "" if found["right"] else "**wrong** "
    layer = "" if found["first_layer"] is None else f", layer {found['first_layer']}"
    if found["layer_right"] is False and found["right"]:
        layer += " (**wrong layer**)"
    loads = "" if len(found["loads"]) in {0, 4} else f", at load {', '.join(found['loads'])}"
    needed = f", {found['prompts_needed']}" if found["prompts_needed"] else ""
    return f"{mark}{found['verdict']}{layer}{loads}{needed}"


def _totals(scored: dict[str, Any]) -> list[str]:
    lines = []
    for kind in KINDS:
        rows = scored["faults"][kind].values()
        right = sum(row["right"] for row in rows)
        named = [row["layer_right"] for row in rows if row["layer_right"] is not None and row["right"]]
        lines.append(
            f"- {kind}: {right} of {len(rows)} verdicts right, {sum(named)} of {len(named)} first layers right."
        )
        healthy = scored["healthy"][kind]
        again = healthy.get("resampled")
        lines.append(
            f"- {kind}, healthy rounds: {healthy['rounds']} replayed, {healthy['moved']} moved, "
            f"{healthy['flagged']} flagged"
            + (
                "."
                if again is None
                else f"; {again['times']} resamples of {again['pool']}: {again['flagged']} flagged."
            )
        )
    restarts = scored["restarts"].values()
    lines.append(f"- restarts: {sum(row['right'] for row in restarts)} of {len(restarts)} verdicts right.")
    return lines
