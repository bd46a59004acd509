"""From the stored rounds to the scorecard: right or wrong, how many canaries it takes, how often healthy is flagged."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from faults.catalogue import HARMLESS, HELD_OUT, INJECTED, RESTARTS, Restart, Row
from faults.running import ERROR, OUT, SETTINGS, work
from moe_watch.canary import words
from moe_watch.detect.canary import FAULTS, Judgement, judge
from moe_watch.detect.replay import Replay, Round
from moe_watch.store import canaries, engine

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


def score(resamples: int) -> Found:
    """Judge all that is stored and return it by setting."""
    return {s: _setting(s, resamples) for s in SETTINGS if (work(s) / "moe-watch.db").exists()}


def _setting(setting: str, resamples: int) -> Found:
    store = _Stored(setting)
    faults, restarts = kept(OUT / f"faults_{setting}.jsonl"), kept(OUT / f"restarts_{setting}.jsonl")
    healthy = kept(OUT / f"healthy_{setting}.jsonl")
    again = [restarts[row.name] for row in RESTARTS if row.name in restarts and row.name.startswith("restart_")]
    return {
        "shape": store.reference[0].shape[1:],
        "rounds": len(store.reference),
        "faults": {row.fault: _score(store, row, faults[row.fault]) for row in INJECTED if row.fault in faults},
        "held_out": {row.fault: _score(store, row, faults[row.fault]) for row in HELD_OUT if row.fault in faults},
        "restarts": {row.name: _score(store, row, restarts[row.name]) for row in RESTARTS if row.name in restarts},
        "healthy": _count(store.judged(run) for run in healthy.values()),
        "resampled": _resampled(store, [*healthy.values(), *again], resamples),
    }


class _Stored:
    """The rounds of one setting."""

    def __init__(self, setting: str) -> None:
        self._store = engine.connect(f"sqlite:///{work(setting)}/moe-watch.db")
        known = canaries.runs(self._store, limit=10_000)
        self.reference = [self.round(row.id) for row in sorted(known, key=lambda row: row.id) if row.reference]

    def round(self, run: int) -> Round:
        return canaries.round_of(self._store, run)

    def judged(self, run: int) -> Judgement:
        return judge(self.reference, self.round(run), error=ERROR)


def _score(store: _Stored, row: Row | Restart, run: int) -> Found:
    new = store.round(run)
    judged = judge(store.reference, new, error=ERROR)
    right = judged.verdict in row.accept
    expected = row.first_layer(new.shape[1])
    return {
        "verdict": judged.verdict,
        "reason": judged.reason,
        "flagged": judged.verdict in FAULTS | {"blind"},
        "right": right,
        "first_layer": judged.first_layer,
        "expected_layer": expected,
        "layer_right": None if expected is None else judged.first_layer == expected,
        "canaries": _needed(store.reference, new, row.accept) if right and row.accept != HARMLESS else None,
        "loads": list(judged.loads),
        "effect": judged.effect,
        "largest": max((e.value - e.floor for e in judged.effects if e.feature.layer is not None), default=0.0),
        "loss": None if judged.loss is None else asdict(judged.loss),
        "summary": words.summary(judged),
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


def _resampled(store: _Stored, healthy: Sequence[int], times: int) -> Found:
    """Judge as often as ``times`` a healthy round made of parts against eight others.

    The replays of a round, one for each load, were made one after the other and are independent: a resampled round
    takes each from another round. No part of the round that is judged is in its reference.
    """
    pool = [*store.reference, *(store.round(run) for run in healthy)]
    rounds, random = len(store.reference), np.random.default_rng(0)
    return {"pool": len(pool)} | _count(_resample(pool, rounds, random, seed) for seed in range(times))


def _resample(pool: Sequence[Round], rounds: int, random: np.random.Generator, seed: int) -> Judgement:
    loads = [replay.load for replay in pool[0].replays]
    drawn = {load: random.permutation(len(pool))[: rounds + 1] for load in loads}
    mixed = [Round(tuple(pool[drawn[load][i]].at(load) for load in loads)) for i in range(rounds + 1)]
    return judge(mixed[:-1], mixed[-1], error=ERROR, seed=seed)
