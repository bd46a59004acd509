"""From the stored rounds to the scorecard: right or wrong, how many canaries it takes, how often healthy is flagged."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench import RESULTS
from bench.incidents.faults.catalogue import HARMLESS, HELD_OUT, INJECTED, RESTARTS, Restart, Row
from bench.incidents.faults.running import ERROR, OUT, SETTINGS, TRANSFORMERS, work
from moe_watch.canary import verdict_text
from moe_watch.detect.canary.comparison import FAULTS, FEWEST_ROUNDS, Judgement, judge
from moe_watch.detect.canary.replay import Replay, Round, same_loads
from moe_watch.store import engine
from moe_watch.store.records import canaries

FIRST = RESULTS / "incidents_first.json"
SIZES = (10, 20, 40, 70, 106)
Found = dict[str, Any]


def kept(path: Path) -> dict[str, int]:
    """Return the rows of the store that the stage's rounds became, by name; the last of each name."""
    if not path.exists():
        return {}
    return {found["name"]: found["run"] for found in map(json.loads, path.read_text().splitlines())}


def recorded(setting: str) -> int:
    """Return how many rounds the reference of a setting has."""
    path = work(setting) / "moe-watch.db"
    if not path.exists():
        return 0
    known = canaries.runs(engine.connect(f"sqlite:///{path}"), limit=10_000)
    return sum(row.reference for row in known)


@dataclass(frozen=True)
class Stored:
    """The rounds of one setting."""

    reference: list[Round]
    faults: dict[str, Round]
    restarts: dict[str, Round]
    healthy: list[Round]


def of_vllm(setting: str) -> Stored:
    """Return what vLLM gave."""
    store = engine.connect(f"sqlite:///{work(setting)}/moe-watch.db")
    known = sorted(canaries.runs(store, limit=10_000), key=lambda row: row.id)

    def rounds(stage: str) -> dict[str, Round]:
        return {name: canaries.round_of(store, run) for name, run in kept(OUT / f"{stage}_{setting}.jsonl").items()}

    reference = [canaries.round_of(store, row.id) for row in known if row.reference]
    return Stored(reference, rounds("faults"), rounds("restarts"), list(rounds("healthy").values()))


def of_transformers(setting: str) -> Stored:
    """Return what the stage ``transformers`` gave."""

    def rounds(stage: str) -> dict[str, Round]:
        found = sorted(work(setting).glob(f"{stage}-*.npz"))
        return {path.stem.partition("-")[2]: Round.from_bytes(path.read_bytes()) for path in found}

    reference, healthy = (list(rounds(stage).values()) for stage in ("reference", "healthy"))
    return Stored(reference, rounds("faults"), {}, healthy)


def score(resamples: int) -> Found:
    """Judge all that is stored and return it by setting; rows that were not run again are those of the first run."""
    first = json.loads(FIRST.read_text())["faults"]
    scored: Found = {}
    for setting in SETTINGS:
        if recorded(setting) >= FEWEST_ROUNDS:
            scored[setting] = _setting(of_vllm(setting), resamples)
        elif setting in first:
            scored[setting] = {"shape": [106, 6, 16], "faults": {}, "held_out": {}, "restarts": {}}
        if setting in first:
            again = scored[setting]["faults"]
            scored[setting]["faults"] = {name: _of_first(found) for name, found in first[setting].items()} | again
    scored |= {s: _setting(of_transformers(s), resamples) for s in TRANSFORMERS if _has_reference(s)}
    return scored


def _has_reference(setting: str) -> bool:
    return len(list(work(setting).glob("reference-*.npz"))) >= FEWEST_ROUNDS


def _of_first(found: Found) -> Found:
    """Return a row of the first run, whose rounds were not kept, in today's terms; judged as the code was then."""
    return {**found, "first_run": True, "canaries": found["prompts_needed"], "tested": ["1", "4", "16", "mixed"]}


def _setting(stored: Stored, resamples: int) -> Found:
    again = [found for name, found in stored.restarts.items() if name.startswith("restart_")]
    pool = [*stored.reference, *stored.healthy, *again]

    def part(rows: Sequence[Row] | Sequence[Restart], found: dict[str, Round]) -> dict[str, Found]:
        named = {row.fault if isinstance(row, Row) else row.name: row for row in rows}
        return {name: _score(stored.reference, row, found[name]) for name, row in named.items() if name in found}

    return {
        "shape": stored.reference[0].shape,
        "rounds": len(stored.reference),
        "loads": [replay.load for replay in stored.reference[0].replays],
        "faults": part(INJECTED, stored.faults),
        "held_out": part(HELD_OUT, stored.faults),
        "restarts": part(RESTARTS, stored.restarts),
        "healthy": _count(judge(stored.reference, one, error=ERROR) for one in stored.healthy),
        "resampled": {"pool": len(pool)} | _resampled(pool, len(stored.reference), resamples),
    }


def _score(reference: Sequence[Round], row: Row | Restart, new: Round) -> Found:
    judged = judge(reference, new, error=ERROR)
    right = judged.verdict in row.accept
    expected = row.first_layer(reference[0].shape[1])
    return {
        "verdict": judged.verdict,
        "reason": judged.reason,
        "flagged": judged.verdict in FAULTS | {"blind"},
        "right": right,
        "first_layer": judged.first_layer,
        "expected_layer": expected,
        "layer_right": None if expected is None else judged.first_layer == expected,
        "canaries": _needed(reference, new, row.accept) if right and row.accept != HARMLESS else None,
        "loads": list(judged.loads),
        "tested": list(judged.tested),
        "effect": judged.effect,
        "largest": max((e.value - e.floor for e in judged.effects if e.feature.layer is not None), default=0.0),
        "loss": None if judged.loss is None else asdict(judged.loss),
        "summary": verdict_text.summary(judged),
        "accept": list(row.accept),
        "incident": row.incident,
        "how": row.how,
    }


def _needed(reference: Sequence[Round], new: Round, accept: Sequence[str]) -> int | None:
    """Return the fewest canaries, of those tried, from which on every larger set gives the right verdict."""
    order = np.random.default_rng(0).permutation(new.shape[0])
    fewest = None
    for size in sorted({min(size, new.shape[0]) for size in SIZES}, reverse=True):
        chosen = np.sort(order[:size])
        if judge([_part(r, chosen) for r in reference], _part(new, chosen), error=ERROR).verdict not in accept:
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


def _count(judged: Iterator[Judgement]) -> Found:
    """Return how many healthy rounds there were, how many moved, and how many were flagged."""
    found = list(judged)
    return {
        "rounds": len(found),
        "moved": sum(one.effect > 1 for one in found),
        "flagged": sum(one.verdict not in HARMLESS for one in found),
    }


def _resampled(pool: Sequence[Round], rounds: int, times: int) -> Found:
    """Judge as often as ``times`` a healthy round made of parts against ``rounds`` others.

    The replays of a round, one for each load, were made one after the other and are independent: a resampled round
    takes each from another round. No part of the round that is judged is in its reference.
    """
    random = np.random.default_rng(0)
    loads = same_loads(pool)
    return _count(_resample(pool, loads, rounds, random, seed) for seed in range(times if len(pool) > rounds else 0))


def _resample(
    pool: Sequence[Round], loads: Sequence[str], rounds: int, random: np.random.Generator, seed: int
) -> Judgement:
    drawn = {load: random.permutation(len(pool))[: rounds + 1] for load in loads}
    mixed = [Round(tuple(pool[drawn[load][i]].at(load) for load in loads)) for i in range(rounds + 1)]
    return judge(mixed[:-1], mixed[-1], error=ERROR, seed=seed)
