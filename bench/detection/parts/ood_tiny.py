"""Unseen kinds of text on the demo's MoE, by length; the score is fitted on normal text alone."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from bench.detection.parts.separation import Judge, apart, judge, supervised
from bench.detection.traffic import kinds
from bench.detection.traffic.recorded import Recording, recording

LENGTHS: Final = (16, 64, 256)
SHORTEST, LONGEST = 12, 256  # tokens of the requests of a baseline, log-uniform between them
NO_SHORT: Final = 64  # shortest request of a baseline without short ones
TOP_K: Final = 4
HARD: Final = 12  # kinds that a supervised classifier is tried on as well, the hardest at 64 tokens
Rng = np.random.Generator


def run(seed: int) -> dict[str, Any]:
    """Return AUROC and FPR by kind and length, for a baseline of mixed lengths and one without short requests."""
    record = recording()
    found = list(dict.fromkeys(g.split("/")[1] for g in record.group if g.startswith("unseen/")))
    tuning, held_out = kinds.halves(found)
    rng = np.random.default_rng(seed)
    result: dict[str, Any] = {"tuning": tuning, "held out": held_out, "tests": {}}
    for name, shortest in (("mixed", SHORTEST), ("no short", NO_SHORT)):
        reference = _reference(record, rng, shortest)
        result["requests"] = len(reference)
        judged = judge(reference, TOP_K)
        result["tests"][name] = {str(n): _kinds(record, judged, n, found) for n in LENGTHS}
    scored = result["tests"]["mixed"]["64"]["kinds"]
    hardest = sorted(scored, key=lambda kind: scored[kind]["auroc"])[:HARD]
    result["supervised"] = {str(n): _oracle(record, n, hardest) for n in LENGTHS}
    return result


def _reference(record: Recording, rng: Rng, shortest: int) -> NDArray[np.uint32]:
    rows = rng.permutation(np.flatnonzero(np.char.startswith(record.group, "reference/")))
    drawn = np.exp(rng.uniform(np.log(shortest), np.log(LONGEST + 1), len(rows))).astype(np.int64)
    return record.counts(rows, np.minimum(drawn, record.lengths[rows]))


def _of(record: Recording, group: str, n: int) -> NDArray[np.uint32]:
    """Return the counts of the first ``n`` tokens of all texts of a group, or side, that have nearly as many."""
    mine = np.char.startswith(record.group, group) if group.endswith("/") else record.group == group
    rows = np.flatnonzero(mine & (record.lengths >= min(n, 200)))
    return record.counts(rows, np.full(len(rows), n))


def _kinds(record: Recording, judged: Judge, n: int, found: list[str]) -> dict[str, Any]:
    normal = judged(_of(record, "test/", n))
    flagged = {str(a): round(float((normal.p <= a).mean()), 4) for a in (0.01, 0.05)}
    counts = {kind: _of(record, f"unseen/{kind}", n) for kind in found}
    scored = {kind: apart(normal.score, judged(c).score) for kind, c in counts.items() if len(c) > 4}
    return {"normal": len(normal.score), "flagged": flagged, "kinds": scored}


def _oracle(record: Recording, n: int, hardest: list[str]) -> dict[str, float]:
    normal = np.concatenate([_of(record, "test/", n), _of(record, "reference/", n)[::2]])
    return {kind: supervised(normal, _of(record, f"unseen/{kind}", n)) for kind in hardest}
